"""What still lies in the rings of a key that has gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from bi_performance_wire import layout as L
from bi_performanced.cache.insight.remains import MOST_PLACES, remains
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.ring import Record
from bi_performanced.cache.store import Store

NOW = 10**15
LATER = NOW + 10**12


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store(Memory.create(None, 10_000, 4 << 20, epoch=1))
    yield made
    made.close()


def look(store: Store, key: bytes) -> tuple[Record | None, bool]:
    return trio.run(remains, lambda: store, key)


def put(store: Store, key: bytes, payload: bytes = b"\0\1") -> None:
    store.put(key, payload, expires=LATER, now=NOW)


def test_the_latest_record_is_found_after_a_deletion_and_after_a_clear(store: Store) -> None:
    put(store, b"before")
    put(store, b"key", b"\0old")
    put(store, b"key", b"\0new")
    put(store, b"key:longer")
    store.delete(b"key", NOW)
    record, whole = look(store, b"key")
    assert record is not None and whole
    assert (record.key, record.payload, record.state) == (b"key", b"\0new", L.DEAD)
    store.clear()
    record, _ = look(store, b"before")
    assert record is not None and record.state == L.LIVE
    assert record.sequence <= store.memory.words[L.W_CLEARED]
    assert look(store, b"never there") == (None, True)


def test_a_key_within_a_value_or_another_key_is_no_record_of_it(store: Store) -> None:
    put(store, b"outer:inner", b"\0inner")
    assert look(store, b"inner") == (None, True)


def test_a_record_is_found_until_the_ring_has_come_round(store: Store) -> None:
    put(store, b"key")
    store.delete(b"key", NOW)
    found = []
    for number in range(60):
        put(store, b"filler:%d" % number, b"\0" + bytes(200_000))
        record, _ = look(store, b"key")
        found.append(record is not None)
    assert found[0] and not found[-1]
    assert found == sorted(found, reverse=True), "what is overwritten does not come back"


def test_where_too_much_is_like_the_key_it_is_not_said_that_there_is_none(store: Store) -> None:
    put(store, b"filler", b"\0" + b"k" * (MOST_PLACES + 1))
    assert look(store, b"k") == (None, False)
