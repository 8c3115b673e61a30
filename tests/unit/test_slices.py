"""How much is done in one go, in a store with many entries: counted, not timed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from bi_performance_wire import layout as L
from bi_performance_wire.batch import pack
from bi_performance_wire.types import CacheSetMany
from bi_performanced.cache import eviction, recovery
from bi_performanced.cache.component import Cache
from bi_performanced.cache.index import Index
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.policy import RULES
from bi_performanced.cache.recovery import copy_entries, settle
from bi_performanced.cache.ring import Ring
from bi_performanced.cache.room import Growing
from bi_performanced.cache.store import Store
from bi_performanced.cache.terms import Terms
from bi_performanced.config import CacheSettings
from bi_performanced.handlers import cache as handlers

MANY = 20_000
NEVER = L.NEVER


def new_store(entries: int = MANY, max_bytes: int = 4 << 20) -> Store:
    return Store(Memory.create(None, entries, max_bytes, epoch=1))


def put(store: Store, n: int, size: int = 60) -> None:
    store.put(b"key-%d" % n, bytes(size), expires=NEVER, now=1)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Records appended to rings since the last call."""
    count = 0
    append = Ring.append

    def counting(ring: Ring, body: bytes, size: int) -> int:
        nonlocal count
        count += 1
        return append(ring, body, size)

    def taken() -> int:
        nonlocal count
        found, count = count, 0
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Ring, "append", counting)
        yield taken


def go_by(store: Store, rule: int) -> None:
    store.policy._go_by(rule, store.sequence)


# ── the search for the oldest


class Watched:
    """Bytes whose slices are counted."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.read = 0

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, at: int | slice) -> int | memoryview:
        if isinstance(at, slice):
            self.read += len(self.view[at])
        return self.view[at]

    def __setitem__(self, at: int, value: int) -> None:
        self.view[at] = value


def full_index(entries: int, tick_of: Callable[[int], int]) -> Index:
    slots = entries * 4 // 3
    room = slots + L.GUARD_SLOTS
    index = Index(memoryview(bytearray(9 * room)), slots, 0, 8 * room)
    rng = random.Random(3)
    for n in range(entries):
        index.insert(rng.getrandbits(64), n + 1, tick_of(n) * L.TICK_ONE)
    return index


def test_the_oldest_are_found_without_a_sweep_for_each_of_them() -> None:
    # Of each old tick few are left, as where most of what is stored is read.
    index = full_index(60_000, lambda n: 1 + n // 10 if n < 400 else 50)
    index.tick = 50 * L.TICK_ONE
    index.begin_search()
    watched = Watched(index._frequency)
    index._frequency = watched  # type: ignore[assignment]
    for _ in range(1_000):
        slot = index.oldest()
        assert slot >= 0
        index.remove(slot)
    # One sweep has as many bytes as there are slots.
    assert watched.read < 40 * index.slots


def test_in_a_small_index_the_oldest_tick_goes_first() -> None:
    index = full_index(300, lambda n: 1 + n // 10)
    index.tick = 40 * L.TICK_ONE
    index.begin_search()
    ticks = []
    for _ in range(300):
        slot = index.oldest()
        ticks.append(index.last_used(slot))
        index.remove(slot)
    assert ticks == sorted(ticks)
    assert index.oldest() < 0


@pytest.mark.parametrize("seed", range(5))
def test_the_index_knows_how_many_entries_each_tick_has(seed: int) -> None:
    rng = random.Random(seed)
    store = new_store(300, 1 << 20)
    # Far more than the distance field can tell apart in so few slots, too.
    store.index.touch_maps.append(memoryview(bytearray(store.index.slots + L.GUARD_SLOTS)))
    for n in range(4_000):
        if not n % 1_000:
            go_by(store, rng.randrange(len(RULES)))
        chance = rng.random()
        key = rng.randrange(600)
        if chance < 0.6:
            put(store, key)
        elif chance < 0.7:
            store.delete(b"key-%d" % key, 1)
        elif chance < 0.9:
            store.get(b"key-%d" % key, 1)
        else:
            slot = store.find(b"key-%d" % key, store.digest(b"key-%d" % key))
            if slot >= 0:
                store.index.touch_maps[0][slot] = store.index.tick | rng.randrange(4)
    index = store.index
    there = [index._frequency[slot] // L.TICK_ONE for slot, cell in enumerate(index.cells) if cell]
    assert {tick: n for tick, n in enumerate(index._counts) if n} == dict(Counter(there))
    store.index.touch_maps.clear()
    store.close()


# ── what leaves and what moves for one that comes


@pytest.mark.parametrize("rule", range(len(RULES)))
def test_one_eviction_passes_few_entries_though_all_are_used(
    monkeypatch: pytest.MonkeyPatch, rule: int
) -> None:
    store = new_store(5_000)
    go_by(store, rule)
    for n in range(5_000):
        put(store, n)
    for _ in range(3):
        for n in range(5_000):
            store.get(b"key-%d" % n, 1)
        store.index.tick = L.next_tick(store.index.tick)
    most = 0
    with counted(monkeypatch) as appended:
        for n in range(5_000, 5_200):
            put(store, n)
            most = max(most, appended())
    assert most <= eviction.MOST_CARRIED + eviction.MOST_TIDIED + 1
    assert store.entries == 5_000
    store.close()


@pytest.mark.parametrize("rule", range(len(RULES)))
def test_few_keys_rewritten_move_the_others_a_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch, rule: int
) -> None:
    store = new_store(MANY + 10, 110 * MANY)
    go_by(store, rule)
    for n in range(MANY):
        put(store, n)
    most = total = 0
    with counted(monkeypatch) as appended:
        for n in range(3 * MANY):
            put(store, n % 10)
            total += (count := appended())
            most = max(most, count)
    if RULES[rule].share is None:
        assert total > 4 * MANY, "the others lie in the same ring, and had to be moved"
    assert most <= eviction.MOST_CARRIED + eviction.MOST_TIDIED + 1
    assert all(store.get(b"key-%d" % n, 1) for n in range(MANY))
    store.close()


def test_room_for_a_large_value_is_made_in_steps() -> None:
    store = new_store(MANY, 100 * MANY)
    for n in range(MANY):
        put(store, n)
    size = store.max_record
    assert store.cramped(size)
    before = store.entries
    for _ in store.make_room(size, 1):
        assert before - store.entries <= eviction.AT_ONCE
        before = store.entries
    assert not store.cramped(size)
    assert store.entries + 2 * size // 95 > MANY, "no more left than had to"
    store.close()


# ── copies


def test_a_copy_goes_by_records_and_by_bytes() -> None:
    old, new = new_store(1_000, 64 << 20), new_store(1_000, 64 << 20)
    for n in range(60):
        put(old, n, 800_000)
    for n in range(60, 900):
        put(old, n)
    old.journal = set()
    for steps in (
        copy_entries(old, new, 1),
        settle(old, new, [b"key-%d" % n for n in range(900)], 1),
    ):
        before = new.main.head, new.small.head
        records = 0
        for _ in steps:
            after = new.main.head, new.small.head
            moved = sum(after) - sum(before)
            assert moved <= recovery.SLICE_BYTES + 2 * 800_100
            before = after
            records += 1
        assert records >= 60 * 800_000 // (recovery.SLICE_BYTES + 800_100)
    assert new.entries == 900
    old.close()
    new.close()


# ── through the cache


def test_a_batch_is_stored_in_slices() -> None:
    assert handlers.slices([50] * 100) == [100]
    assert handlers.slices([50] * 600) == [250, 500, 600]
    assert handlers.slices([]) == [0]
    megabyte = 1 << 20
    assert handlers.slices([megabyte] * 3) == [1, 2, 3]
    assert handlers.slices([3 * megabyte, 1, megabyte // 2]) == [1, 3]
    assert handlers.slices([megabyte // 2] * 4) == [2, 4]


def run_with_cache(folder: Path, settings: CacheSettings, act: Callable[[Cache], object]) -> None:
    async def main() -> None:
        cache = Cache.open(settings, runtime_dir=folder, state_dir=folder, mode="on")
        async with trio.open_nursery() as nursery:
            await nursery.start(cache.run)
            await act(cache)  # type: ignore[misc]
            nursery.cancel_scope.cancel()
        cache.close()

    trio.run(main)


def test_others_have_their_turn_while_a_large_batch_is_stored(tmp_path: Path) -> None:
    async def act(cache: Cache) -> None:
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        batch = pack([(b"key-%d" % n, b"\0value") for n in range(10_000)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            stored = await handlers.put_many(cache, CacheSetMany(payload=batch))
            nursery.cancel_scope.cancel()
        assert stored.stored == 10_000
        assert turns >= 10_000 // handlers.SLICE // 2
        assert cache.stats().entries == 10_000

    run_with_cache(tmp_path, CacheSettings(max_bytes=8 << 20, max_size=50_000), act)


def test_a_large_value_waits_for_its_room_and_is_stored(tmp_path: Path) -> None:
    async def act(cache: Cache) -> None:
        terms = Terms(3600)
        for n in range(40_000):
            cache.set(b"key-%d" % n, b"\0" + bytes(60), terms)
        large = b"\0" + bytes(150_000)
        with pytest.raises(Growing, match="room is being made for 1500"):
            cache.set(b"large", large, terms)
        evicted = cache.stats().evictions
        await cache.wait_grown()
        assert cache.stats().evictions > evicted + 1_000
        cache.set(b"large", large, terms)
        assert cache.get(b"large") == large

    settings = CacheSettings(max_bytes=3 << 20, max_size=40_000)
    run_with_cache(tmp_path, settings, act)
