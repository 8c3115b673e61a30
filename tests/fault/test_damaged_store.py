"""A store that was damaged before it is opened, and readers that end in the middle of a read.

Every value carries its key and the change that wrote it, so that one which nobody wrote is known.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.reader import DETACHED, MISS, Entry, StoreReader
from bi_performance_wire import layout as L
from bi_performance_wire.extra import Extra, pack_extra
from bi_performance_wire.value import decode, encode
from bi_performanced.cache.clients import boot_clock, sealed_memory
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.opening import open_store
from bi_performanced.cache.store import Store
from bi_performanced.config import CacheSettings
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until

ENTRIES = 60
KEYS = [b"key-%d" % n for n in range(90)]
ODD_WORDS = (
    0,
    1,
    2,
    L.PAGE,
    1 << 31,
    1 << 32,
    1 << 47,
    1 << 48,
    1 << 62,
    (1 << 63) - 1,
    (1 << 64) - 1,
)


def value_of(key: bytes, change: int) -> bytes:
    return encode([key.decode(), change, "x" * (change % 200)])


def is_true(key: bytes, value: object, last: int) -> bool:
    """Whether a value was ever written under the key."""
    if not isinstance(value, list) or len(value) != 3:
        return False
    name, change, filling = value
    return bool(name == key.decode() and 0 < change <= last and filling == "x" * (change % 200))


class Victim:
    """The file that a killed daemon left."""

    def __init__(self, folder: Path) -> None:
        memory = Memory.create(folder / "made", ENTRIES, 20_000, epoch=7)
        # So that the same mutants come again.
        memory.words[L.W_SEED] = 5
        store = Store(memory)
        rng = random.Random(3)
        now = boot_clock()
        self.changes = 0
        for _ in range(600):
            key = rng.choice(KEYS)
            kind = rng.random()
            if kind < 0.8:
                self.changes += 1
                extra = pack_extra(Extra(tags=(b"shop",))) if kind < 0.1 else b""
                flags = L.FLAG_EXTRA if extra else 0
                payload = value_of(key, self.changes)
                expires = now + 3600 * 10**9
                store.put(key, payload, expires=expires, now=now, flags=flags, extra=extra)
            elif kind < 0.9:
                store.delete(key, now)
            else:
                store.get(key, now)
        store.memory.words[L.W_ALIVE + 7] = now + 10**9
        self.image = store.memory.bytes[:]
        words = store.memory.words
        self.parts = [
            (0, 8 * 128),
            (words[L.W_INDEX_AT], words[L.W_TAGS_AT]),
            (words[L.W_SMALL_AT], words[L.W_MAIN_AT]),
            (words[L.W_MAIN_AT], len(self.image)),
        ]
        store.close()

    def damaged(self, rng: random.Random) -> bytes:
        image = bytearray(self.image)
        size = len(image)
        for _ in range(rng.choice((1, 1, 2, 5))):
            start, end = rng.choice(self.parts)
            kind = rng.randrange(8)
            if kind == 0:
                del image[rng.randrange(size) :]
                image += bytes(rng.choice((0, 0, size - len(image))))
            elif kind == 1:
                image += rng.randbytes(rng.choice((1, 8, L.PAGE)))
            elif kind == 2:
                for _ in range(rng.choice((1, 3, 30))):
                    if image:
                        image[rng.randrange(start, end) % len(image)] = rng.randrange(256)
            elif kind == 3:
                page = rng.randrange(size // L.PAGE) * L.PAGE
                image[page : page + L.PAGE] = bytes(len(image[page : page + L.PAGE]))
            elif kind == 4:
                source, target = (rng.randrange(size // L.PAGE) * L.PAGE for _ in range(2))
                piece = image[source : source + L.PAGE]
                image[target : target + len(piece)] = piece
            elif kind == 5:
                at = rng.randrange(start, end)
                noise = rng.randbytes(rng.randrange(1, 600))
                image[at : at + len(noise)] = noise[: max(0, len(image) - at)]
            else:
                # Of the control page, for there each word is believed.
                word = rng.randrange(1, 48)
                odd = rng.choice((*ODD_WORDS, rng.getrandbits(64), word * 8 + rng.randrange(99)))
                if len(image) >= L.PAGE:
                    image[8 * word : 8 * word + 8] = odd.to_bytes(8, "little")
        return bytes(image)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: thousands of files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        (Path(made) / "state").mkdir()
        yield Path(made)


def reader_of(path: Path, store: Store) -> StoreReader:
    """As an attached process has it."""
    return StoreReader(
        os.open(path, os.O_RDONLY),
        sealed_memory("page", L.PAGE),
        sealed_memory("touches", store.index.slots + L.GUARD_SLOTS),
        store.memory.words[L.W_EPOCH],
    )


def check(folder: Path, image: bytes, last: int) -> bool:
    """Open the image as a daemon does and use it; whether its entries were taken up."""
    path = folder / "store"
    path.write_bytes(image)
    opened = open_store(
        CacheSettings(max_bytes=1 << 20, max_size=ENTRIES), folder, folder / "state"
    )
    store = opened.store
    os.close(opened.lock_fd)
    words = store.memory.words
    words[L.W_ALIVE + words[L.W_EPOCH] % L.ALIVE_WORDS] = boot_clock() + 60 * 10**9
    reader = reader_of(path, store)
    found, _ = store.sweep(0, 1 << 30)
    taken_up = bool(found)
    for entry in found:
        value = store.get(entry.key, boot_clock())
        assert value is None or is_true(entry.key, decode(value[0]), last), entry.key
    for key in KEYS:
        seen = reader.read(key)
        assert seen is not DETACHED
        assert seen is MISS or is_true(key, seen, last), (key, seen)
    # It is a store like any other from now on: what is put is there, what is deleted is not.
    for change in range(last + 1, last + 200):
        key = KEYS[change % len(KEYS)]
        now = boot_clock()
        store.put(key, value_of(key, change), expires=now + 3600 * 10**9, now=now)
        assert reader.read(key) == decode(value_of(key, change))
        if not change % 7:
            store.delete(key, now)
            assert reader.read(key) is MISS
    assert store.entries == len(store.sweep(0, 1 << 30)[0]) <= store.max_entries
    reader.close()
    store.close()
    return taken_up


def look(path: Path, image: bytes, last: int) -> None:
    """Read the image in place, without the daemon that would have set it right."""
    data = bytearray(image)
    until = (boot_clock() + 60 * 10**9).to_bytes(8, "little")
    for word in range(L.W_ALIVE, L.W_ALIVE + L.ALIVE_WORDS):
        data[8 * word : 8 * word + 8] = until
    path.write_bytes(data)
    try:
        reader = StoreReader(
            os.open(path, os.O_RDONLY), sealed_memory("page", L.PAGE), sealed_memory("t", L.PAGE), 7
        )
    except ValueError:
        return
    for key in KEYS:
        seen, entry = reader.read(key), reader.find(key)
        assert seen is MISS or is_true(key, seen, last), (key, seen)
        assert not isinstance(entry, Entry) or is_true(key, entry.value, last), (key, entry)
    reader.close()


def _mutants(folder: Path, seeds: range) -> None:
    victim = Victim(folder)
    assert check(folder, victim.image, victim.changes), "undamaged it is taken up"
    taken_up = 0
    for seed in seeds:
        image = victim.damaged(random.Random(seed))
        try:
            look(folder / "mutant", image, victim.changes)
            taken_up += check(folder, image, victim.changes)
        except BaseException as error:
            error.add_note(f"mutant {seed}")
            raise
    assert len(seeds) / 10 < taken_up < len(seeds), "both kinds came"


def test_a_store_damaged_before_it_is_opened_crashes_nobody_and_lies_to_nobody(
    folder: Path,
) -> None:
    _mutants(folder, range(150))


@pytest.mark.long
def test_2000_damaged_stores(folder: Path) -> None:
    _mutants(folder, range(1000, 3000))


def test_a_daemon_starts_on_what_is_no_store_at_all(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        cache = optimizer.sync.cache
        for content in (b"", b"x" * 5000, os.urandom(1 << 20), bytes(1 << 20)):
            daemon.kill9()
            (daemon.runtime / "store").write_bytes(content)
            daemon.start()
            wait_until(lambda: cache.set("key", 1), what="the daemon")
            wait_until(lambda: cache.get("key") == 1, what="the entry")
        optimizer.close()
        said = [each for each in daemon.log_events() if each["event"] == "cache.set_aside"]
        assert len(said) == 4 and all(each["reason"] for each in said)


# ── readers that end or stand still in the middle


def _read_for_ever(path: Path, ready: int) -> None:
    """What a forked reader does until it is killed; a wrong value ends it with status 9."""
    cache = PerformanceOptimizer(str(path)).sync.cache
    assert cache.get("key-1") is not None
    os.write(ready, b".")
    while True:
        for key in KEYS:
            found = cache.get(key.decode())
            if found is not None and not is_true(key, found, 1 << 40):
                os._exit(9)


def _end_readers(daemon: DaemonProcess, count: int) -> None:
    """Kill, or stop for a while, so many readers at any point of their reads."""
    rng = random.Random(count)
    optimizer = PerformanceOptimizer(str(daemon.socket))
    cache = optimizer.sync.cache
    change = 0

    def write(times: int) -> None:
        nonlocal change
        for _ in range(times):
            change += 1
            key = rng.choice(KEYS)
            if rng.random() < 0.1:
                cache.delete(key.decode())
                assert cache.get(key.decode()) is None
            value = decode(value_of(key, change))
            assert cache.set(key.decode(), value)
            assert cache.get(key.decode()) == value, "nobody else is in the way"

    def open_files() -> int:
        return min(len(os.listdir(f"/proc/{daemon.pid}/fd")) for _ in range(20))  # noqa: PTH208

    for key in KEYS:
        assert cache.set(key.decode(), decode(value_of(key, 1)))
    write(1)
    before = open_files()
    ours, theirs = os.pipe()
    for n in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                _read_for_ever(daemon.socket, theirs)
            finally:
                os._exit(8)
        assert os.read(ours, 1) == b"."
        if n % 2:
            os.kill(pid, signal.SIGSTOP)
            write(4)
            os.kill(pid, signal.SIGCONT)
        write(rng.randrange(3))
        # Any moment will do: there is nothing to wait for.
        time.sleep(rng.random() / 2000)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "it saw nothing wrong until then"
    os.close(ours)
    os.close(theirs)
    wait_until(lambda: open_files() <= before, what="the descriptors of before")
    with RawClient(daemon.socket) as client:
        wait_until(
            lambda: client.result("cache.stats")["clients"] == 1, what="the end of all readers"
        )
        assert client.result("cache.stats")["entries"] == len(KEYS)
        status = client.result("status")
        assert status["status"] == "ok" and "untrusted_clients" not in str(status)
    assert not [each for each in daemon.log_events() if each["level"] in ("error", "critical")]
    optimizer.close()


def test_readers_killed_or_stopped_in_the_middle_of_a_read_cost_nothing(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        _end_readers(daemon, 50)


@pytest.mark.long
def test_1000_readers_killed_or_stopped(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        _end_readers(daemon, 1000)
