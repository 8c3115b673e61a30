"""A daemon killed between any two of its stores to memory leaves a store that is never wrong.

Every line that the writer executes is a place where kill -9 may strike; the file is copied at
each, also with the last store half done, and recovered as a restarted daemon does it.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from bi_performance_wire import layout as L
from bi_performanced.cache import index, recovery, ring, store
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.policy import RULES
from bi_performanced.cache.recovery import copy_entries, recover, settle
from bi_performanced.cache.store import Store

NOW = 1_000_000_000
LATER = 1 << 62
WRITERS = {module.__file__ for module in (index, ring, store, recovery)}

State = dict[bytes, bytes | None]


class Camera:
    """Copies of a mapping at every line that the code of the store executes."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.images: list[bytes] = [memory.bytes[:]]

    def _look(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in WRITERS:
            return None
        image = self._memory.bytes[:]
        if image != self.images[-1]:
            self.images.append(image)
        return self._look

    def during(self, action: Callable[[], object]) -> list[bytes]:
        """The distinct images from before the action to after it."""
        self.images = [self._memory.bytes[:]]
        before = sys.gettrace()
        sys.settrace(self._look)
        try:
            action()
        finally:
            sys.settrace(before)
        if self.images[-1] != self._memory.bytes[:]:
            self.images.append(self._memory.bytes[:])
        return self.images


def torn(images: list[bytes]) -> Iterator[bytes]:
    """The images, and between two of them what a store cut short at a word boundary leaves."""
    yield images[0]
    for old, new in itertools.pairwise(images):
        words = [at for at in range(0, len(old), 8) if old[at : at + 8] != new[at : at + 8]]
        for share in (1, len(words) // 2, len(words) - 1):
            if 0 < share < len(words):
                cut = words[share]
                yield new[:cut] + old[cut:]
        yield new


def readable(found: Store) -> dict[bytes, bytes]:
    entries, end = found.sweep(0, 1 << 30)
    assert end == 0
    assert len(entries) == found.entries, "the books agree with the index"
    values = {}
    for entry in entries:
        value = found.get(entry.key, NOW)
        assert value is not None
        values[entry.key] = value[0]
    assert len(values) == len(entries), "no key has two entries"
    return values


def restart(path: Path, image: bytes) -> Store:
    path.write_bytes(image)
    found = Store(Memory.adopt(path))
    recover(found, NOW)
    return found


def check(path: Path, image: bytes, allowed: dict[bytes, set[bytes | None]]) -> None:
    found = restart(path, image)
    values = readable(found)
    for key, value in values.items():
        assert value in allowed.get(key, {None}), f"{key!r} came back as {value[:20]!r}"
    # What recovery settled stays settled: a key that is deleted now has no older version to
    # come back when the daemon is killed again.
    for key in list(values)[:2]:
        found.delete(key, NOW)
        again = restart(path.with_suffix(".again"), found.memory.bytes[:])
        assert again.get(key, NOW) is None, f"{key!r} came back after a delete"
        again.close()
    found.close()


def apply(target: Store, state: State, rng: random.Random, serial: int) -> tuple[Any, State]:
    """A random change as (action, the state after it)."""
    keys = [b"key-%d" % n for n in range(12)]
    key = rng.choice(keys)
    after = dict(state)
    kind = rng.choices(["set", "delete", "clear", "touch", "sweep"], weights=[14, 2, 0.2, 6, 0.3])[
        0
    ]
    if kind == "set":
        payload = b"%d:" % serial + key + rng.randbytes(rng.choice([0, 30, 120, 200]))
        after[key] = payload
        return lambda: target.put(key, payload, expires=LATER, now=NOW), after
    if kind == "delete":
        after[key] = None
        return lambda: target.delete(key, NOW), after
    if kind == "clear":
        return target.clear, dict.fromkeys(keys, None)
    if kind == "touch":
        return lambda: [target.get(key, NOW) for _ in range(3)], after
    after.update({k: None for k in keys if k.endswith(b"1")})

    def sweep() -> None:
        for entry in target.sweep(0, 1 << 30)[0]:
            if entry.key.endswith(b"1"):
                target.drop_found(entry, NOW)

    return sweep, after


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder where a file is made without a disk: there are thousands."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("seed", range(4))
def test_no_deleted_or_superseded_value_is_read_after_a_kill_at_any_store(
    in_memory: Path, seed: int
) -> None:
    _scenario(in_memory, seed, steps=120)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 130))
def test_no_deleted_or_superseded_value_is_read_after_a_kill_in_long_scenarios(
    in_memory: Path, seed: int
) -> None:
    _scenario(in_memory, seed, steps=250)


def _scenario(folder: Path, seed: int, *, steps: int) -> None:
    rng = random.Random(seed)
    memory = Memory.create(folder / "store", 6, 3000, epoch=1)
    # By LRU, or by S3-FIFO, which promotes.
    memory.words[L.W_POLICY] = seed % len(RULES)
    subject = Store(memory)
    camera = Camera(subject.memory)
    state: State = {}
    checked = 0
    for serial in range(steps):
        action, after = apply(subject, state, rng, serial)
        allowed = {key: {state.get(key), after.get(key), None} for key in state | after}
        images = camera.during(action)
        for image in torn(images):
            check(folder / "killed", image, allowed)
            checked += 1
        # What the change acknowledged holds from here on (evictions may take more away).
        held = readable(subject)
        assert all(after[key] == value for key, value in held.items())
        assert subject.entries <= subject.max_entries
        assert subject.live_bytes <= subject.max_bytes
        state = after
    assert checked > steps * 3
    assert subject.counters.evictions, "the scenario was larger than the store"
    assert subject.counters.bytes_appended > 2 * subject.small.bytes, "the rings came round"
    subject.close()


def test_a_kill_while_entries_are_copied_to_another_store_loses_and_revives_nothing(
    in_memory: Path,
) -> None:
    source = Store(Memory.create(in_memory / "store", 100, 40_000, epoch=1))
    target = Store(Memory.create(in_memory / "larger", 200, 80_000, epoch=2))
    for n in range(60):
        source.put(b"key-%d" % n, b"old-%d" % n * 20, expires=LATER, now=NOW)
    for n in range(0, 60, 7):
        source.delete(b"key-%d" % n, NOW)
    expected = readable(source)
    source.journal = set()
    steps = copy_entries(source, target, NOW)
    next(steps, None)
    source.put(b"key-1", b"new", expires=LATER, now=NOW)
    source.delete(b"key-2", NOW)
    expected[b"key-1"] = b"new"
    del expected[b"key-2"]
    for _ in steps:
        pass
    camera = Camera(target.memory)
    for image in torn(
        camera.during(lambda: list(settle(source, target, source.journal or (), NOW)))
    ):
        found = restart(in_memory / "killed", image)
        # The copy is not the truth before it is renamed; it only must be whole at the end.
        found.close()
    assert readable(target) == expected
    assert target.sequence >= source.sequence
    source.close()
    target.close()
