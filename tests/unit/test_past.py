"""What is remembered of keys that left the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bi_performance_wire import layout as L
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.past import CLEARS, Departure, Past, Use, Why
from bi_performanced.cache.store import Store

NOW = 10**15
TENTHS = NOW // L.CREATED_UNIT_NS
LATER = NOW + 10**12
VALUE = b"\x00\xc0"


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store(Memory.create(None, 10, 1 << 20, epoch=1))
    yield made
    made.close()


def last(store: Store, key: bytes) -> Departure | None:
    return store.departures.past.find([store.digest(key)])


def put(store: Store, key: bytes, expires: int = LATER, now: int = NOW) -> None:
    store.put(key, VALUE, expires=expires, now=now)


def test_a_deleted_key_is_remembered_with_its_time_and_size(store: Store) -> None:
    put(store, b"key")
    store.delete(b"key", NOW + 5 * 10**9)
    size = L.RECORD_OVERHEAD + len(b"key") + len(VALUE)
    digest = store.digest(b"key")
    assert last(store, b"key") == Departure(
        digest, TENTHS + 50, TENTHS, size, Why.DELETED, Use.UNKNOWN, 0
    )
    assert last(store, b"other") is None


def test_what_leaves_for_others_is_told_from_what_expired(store: Store) -> None:
    put(store, b"short", expires=NOW + 1)
    put(store, b"used")
    assert store.get(b"used", NOW)
    for number in range(30):
        put(store, b"%d" % number, now=NOW + 10**9)
    departure = last(store, b"short")
    assert departure is not None and departure.why is Why.EXPIRED
    departure = last(store, b"0")
    assert departure is not None and (departure.why, departure.use) == (Why.EVICTED, Use.UNREAD)
    departure = last(store, b"used")
    assert departure is not None and (departure.why, departure.use) == (Why.EVICTED, Use.READ)


def test_the_latest_departure_of_a_key_is_found(store: Store) -> None:
    put(store, b"key")
    store.delete(b"key", NOW)
    put(store, b"key", expires=NOW + 1)
    (found,) = store.sweep(0, 1 << 20)[0]
    store.drop_expired(found, NOW + 10**9)
    departure = last(store, b"key")
    assert departure is not None and departure.why is Why.EXPIRED


def test_only_the_latest_departures_are_remembered_and_it_is_said_that_older_ones_are_not() -> None:
    past = Past(4)
    assert past.reach is None and not past.full
    for digest in range(1, 5):
        past.note(digest, Why.DELETED, 10 * digest, 0, 0)
    assert past.full and past.reach == 10
    past.note(5, Why.EVICTED, 50, 40, 100, Use.READ)
    assert past.find([1]) is None and past.reach == 20
    assert past.find([2]) == Departure(2, 20, 0, 0, Why.DELETED, Use.UNKNOWN, 0)
    assert past.find([5]) == Departure(5, 50, 40, 100, Why.EVICTED, Use.READ, 0)


def test_bytes_that_look_like_a_hash_within_a_record_are_none() -> None:
    past = Past(8)
    # As bytes, when and created of the first are the second's hash.
    past.note(1, Why.DELETED, 7, 9, 0)
    assert past.find([9 << 32 | 7]) is None
    past.note(9 << 32 | 7, Why.EVICTED, 1, 0, 0)
    departure = past.find([9 << 32 | 7])
    assert departure is not None and departure.why is Why.EVICTED


def test_a_departure_is_found_by_the_hash_of_each_store_that_there_was() -> None:
    first = Store(Memory.create(None, 10, 1 << 20, epoch=1))
    second = Store(Memory.create(None, 10, 1 << 20, epoch=2), first.departures)
    put(first, b"key")
    first.delete(b"key", NOW)
    past = second.departures.past
    assert past.seeds == (first.memory.words[L.W_SEED], second.memory.words[L.W_SEED])
    assert last(second, b"key") is None
    departure = past.find([second.digest(b"key"), first.digest(b"key")])
    assert departure is not None and departure.why is Why.DELETED
    first.close()
    second.close()


def test_of_clears_the_latest_are_remembered() -> None:
    past = Past(1)
    numbers = [past.cleared(n, n, tags=[b"t"]) for n in range(CLEARS + 1)]
    assert past.clear_of(numbers[0]) is None
    clear = past.clear_of(numbers[-1])
    assert clear is not None and clear.when == CLEARS and not clear.everything
    assert next(past.clears()) is clear
