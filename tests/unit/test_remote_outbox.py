"""The outbox: what is noted there is not forgotten, whatever happens to the process or the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bi_performanced.remote.outbox import Outbox
from bi_performanced.remote.predicate import Predicate

EVERYTHING = Predicate()


def save(outbox: Outbox) -> bool:
    async def main() -> bool:
        return await outbox.save(trio.CapacityLimiter(1))

    return trio.run(main)


def contents(outbox: Outbox) -> tuple[list[bytes], list[Predicate]]:
    return outbox.some(1 << 30)


def again(outbox: Outbox) -> tuple[list[bytes], list[Predicate]]:
    """What another daemon would find."""
    return contents(Outbox(outbox.path))


def test_what_was_saved_is_found_by_the_next_daemon(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    outbox.add([b"a", b"b", b"a"], [Predicate(pattern="x*")])
    assert not outbox.saved and save(outbox) and outbox.saved
    outbox.add([b"c"], [Predicate(tags=(b"t",))])
    assert save(outbox)
    assert again(outbox) == (
        [b"a", b"b", b"c"],
        [Predicate(pattern="x*"), Predicate(tags=(b"t",))],
    )
    assert (tmp_path / "outbox").stat().st_mode & 0o777 == 0o600


def test_what_was_sent_is_gone_and_an_empty_outbox_leaves_no_file(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    outbox.add([b"a", b"b"], [EVERYTHING])
    save(outbox)
    outbox.sent([b"a"], [EVERYTHING])
    assert len(outbox) == 1 and b"b" in outbox
    outbox.sent([b"b"], [])
    assert save(outbox)
    assert list(tmp_path.iterdir()) == []
    assert again(outbox) == ([], [])


def test_more_than_the_bound_becomes_one_clear_of_everything(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox", max_keys=3)
    outbox.add([b"a", b"b", b"c"])
    assert len(outbox) == 3
    outbox.add([b"d"])
    outbox.add([b"e"], [Predicate(tags=(b"t",))])
    assert save(outbox)
    assert contents(outbox) == again(outbox) == ([], [EVERYTHING])
    outbox.sent([], [EVERYTHING])
    outbox.add([b"f"])
    save(outbox)
    assert again(outbox) == ([b"f"], [])


def test_the_file_does_not_grow_without_end(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    for at in range(40):
        keys = [b"%d:%d" % (at, key) + bytes(400) for key in range(200)]
        outbox.add(keys)
        save(outbox)
        outbox.sent(keys[1:], [])
        save(outbox)
    assert outbox.path.stat().st_size < 2 << 20
    assert len(again(outbox)[0]) >= 40


@given(cut=st.integers(0, 200))
def test_a_crash_in_a_write_loses_only_what_was_not_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    outbox = Outbox(tmp_path_factory.mktemp("outbox") / "outbox")
    outbox.add([b"acknowledged"], [Predicate(pattern="p")])
    save(outbox)
    whole = outbox.path.stat().st_size
    outbox.add([b"half %d" % at for at in range(5)])
    save(outbox)
    with outbox.path.open("r+b") as file:
        file.truncate(min(whole + cut, outbox.path.stat().st_size))
    keys, clears = again(outbox)
    assert b"acknowledged" in keys and clears == [Predicate(pattern="p")]
    # And what is noted next does not land behind the torn end.
    after = Outbox(outbox.path)
    after.add([b"next"])
    save(after)
    assert b"next" in again(after)[0]


@given(at=st.integers(0, 1000), value=st.integers(1, 255))
def test_a_damaged_file_never_forgets_a_deletion(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    outbox = Outbox(tmp_path_factory.mktemp("outbox") / "outbox")
    outbox.add([b"one", b"two", b"three"])
    save(outbox)
    data = bytearray(outbox.path.read_bytes())
    data[at % len(data)] ^= value
    outbox.path.write_bytes(bytes(data))
    keys, clears = again(outbox)
    assert clears == [EVERYTHING] or set(keys) == {b"one", b"two", b"three"}


def test_a_disk_that_refuses_is_said_and_tried_again_with_all_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    outbox = Outbox(folder / "outbox")
    outbox.add([b"a"])
    # Not by its mode, which root does not mind.
    folder.rename(tmp_path / "elsewhere")
    assert not save(outbox)
    assert outbox.failed is not None and "No such file" in outbox.failed
    outbox.add([b"b"])
    (tmp_path / "elsewhere").rename(folder)
    assert save(outbox) and outbox.failed is None
    assert again(outbox) == ([b"a", b"b"], [])


def test_a_file_that_cannot_be_read_clears_everything(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    path.mkdir()
    assert contents(Outbox(path)) == ([], [EVERYTHING])
