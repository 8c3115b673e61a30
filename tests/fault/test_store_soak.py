"""No reader in another process ever sees a torn, superseded or deleted value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bi_performance.reader import MISS, StoreReader
from bi_performance_wire import layout as L
from bi_performanced.cache.clients import boot_clock, sealed_memory
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.ring import Ring
from bi_performanced.cache.store import Store
from support.soak import soak


def test_readers_see_no_wrong_value_while_the_writer_changes_and_is_killed(tmp_path: Path) -> None:
    found = soak(tmp_path, reads=400_000, readers=2, restarts=5)
    assert not found.wrong
    assert found.hits > found.reads // 10
    assert found.changes > 1000
    assert found.restarts == 5


@pytest.mark.long
def test_a_hundred_million_reads_see_no_wrong_value(tmp_path: Path) -> None:
    found = soak(tmp_path, reads=100_000_000, readers=3, restarts=200)
    print(found._replace(wrong=[]))
    assert not found.wrong
    assert found.reads >= 100_000_000


@pytest.mark.parametrize("sabotage", ["keep-old", "no-delete"])
def test_the_soak_notices_a_writer_that_breaks_the_promise(tmp_path: Path, sabotage: str) -> None:
    found = soak(tmp_path, reads=400_000, readers=1, restarts=0, sabotage=sabotage)
    assert found.wrong


class Planted:
    """A store with one entry, a reader, and ways to damage what the reader relies on."""

    def __init__(self, folder: Path) -> None:
        path = folder / "store"
        self.store = Store(Memory.create(path, 100, 1 << 20, epoch=5))
        now = boot_clock()
        self.store.memory.words[L.W_ALIVE + 5] = now + 60_000_000_000
        self.put(b"key", "right")
        self.reader = StoreReader(
            os.open(path, os.O_RDONLY),
            sealed_memory("page", L.PAGE),
            sealed_memory("touches", self.store.index.slots + L.GUARD_SLOTS),
            5,
        )
        assert self.reader.read(b"key") == "right"

    def put(self, key: bytes, text: str) -> None:
        payload = b"\0" + bytes([0xA0 | len(text)]) + text.encode()
        self.store.put(key, payload, expires=L.NEVER, now=boot_clock())

    @property
    def slot(self) -> int:
        return self.store.find(b"key", self.store.digest(b"key"))

    @property
    def ring(self) -> Ring:
        main = self.store.index.cells[self.slot] & L.MAIN_BIT
        return self.store.main if main else self.store.small

    @property
    def address(self) -> int:
        return self.store.address(self.store.index.cells[self.slot])


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def test_every_torn_byte_of_a_record_is_a_miss(planted: Planted) -> None:
    data = planted.store.memory.bytes
    at = planted.address
    size = int.from_bytes(data[at + 4 : at + 7], "little")
    for offset in range(size):
        whole = data[at + offset]
        data[at + offset] = whole ^ 0x55
        assert planted.reader.read(b"key") is MISS, f"byte {offset} was not noticed"
        data[at + offset] = whole
    assert planted.reader.read(b"key") == "right"


def test_a_slot_that_points_at_a_dead_record_is_a_miss(planted: Planted) -> None:
    cell = planted.store.index.cells[planted.slot]
    slot = planted.slot
    planted.store.delete(b"key", boot_clock())
    planted.store.index.cells[slot] = cell
    assert planted.reader.read(b"key") is MISS


def test_a_slot_that_the_tail_has_passed_is_a_miss(planted: Planted) -> None:
    ring = planted.ring
    ring.advance(ring.head)
    assert planted.reader.read(b"key") is MISS


def test_a_record_of_another_lap_at_the_same_address_is_a_miss(planted: Planted) -> None:
    """On a weakly ordered processor a reader may see a new slot before the record behind it."""
    cells, slot = planted.store.index.cells, planted.slot
    cells[slot] += planted.ring.bytes
    planted.ring.advance(0)
    assert planted.reader.read(b"key") is MISS


def test_a_key_of_the_same_fingerprint_is_not_taken_for_the_other(planted: Planted) -> None:
    """The slot's place is taken over by another key's record."""
    planted.put(b"kez", "other")
    store = planted.store
    other = store.index.cells[store.find(b"kez", store.digest(b"kez"))] & L.PLACE
    slot = planted.slot
    store.index.cells[slot] = store.index.cells[slot] & ~L.PLACE | other
    assert planted.reader.read(b"key") is MISS


def test_a_shared_entry_is_read_only_while_the_hosts_are_coherent(planted: Planted) -> None:
    store = planted.store
    payload = b"\0\xa5other"
    store.put(b"shared", payload, expires=L.NEVER, now=boot_clock(), flags=L.FLAG_SHARED)
    assert planted.reader.read(b"shared") is MISS
    store.memory.words[L.W_COHERENT_UNTIL] = boot_clock() + 60_000_000_000
    assert planted.reader.read(b"shared") == "other"
    assert planted.reader.read(b"key") == "right"
