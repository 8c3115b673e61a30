"""The store keeps up with LRU on whatever comes, and leaves it behind where that can be done."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator

import pytest

from bi_performance_wire import layout as L
from bi_performanced.cache.index import NONE
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.policy import MOST_GATHERED
from bi_performanced.cache.recovery import copy_entries, settle
from bi_performanced.cache.store import Store

NOW = 1_000_000_000
LATER = 1 << 62
REQUESTS = 12_000


def new_store(max_entries: int, max_bytes: int = 4 << 20) -> Store:
    # One seed: by which entries of the same tick leave first, half a point is won or lost.
    return Store(Memory.create(None, max_entries, max_bytes, epoch=1, seed=1))


def store_hits(trace: list[int], entries: int) -> int:
    store = new_store(entries)
    hits = 0
    for key in trace:
        name = b"%d" % key
        if store.get(name, NOW) is not None:
            hits += 1
        else:
            store.put(name, b"-", expires=LATER, now=NOW)
    store.close()
    return hits


def lru_hits(trace: list[int], entries: int) -> int:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in kept:
            hits += 1
            kept.move_to_end(key)
        else:
            if len(kept) >= entries:
                kept.popitem(last=False)
            kept[key] = None
    return hits


def popular(rng: random.Random) -> Iterator[int]:
    while True:
        yield int(rng.paretovariate(0.9))


def loop(rng: random.Random) -> Iterator[int]:
    length = rng.choice([13, 60, 130, 550])
    while True:
        yield from range(length)


def walk(rng: random.Random) -> Iterator[int]:
    """What lies near a place that moves."""
    at = 0
    while True:
        at += rng.choice((-1, 1))
        yield at + rng.randrange(-30, 30)


def recent(rng: random.Random) -> Iterator[int]:
    """The less lately used, the less likely."""
    stack: list[int] = []
    for fresh in range(1 << 30):
        while stack and rng.random() < 0.8:
            depth = min(len(stack) - 1, int(rng.expovariate(1 / 40)))
            key = stack.pop(-1 - depth)
            stack.append(key)
            yield key
        stack.append(fresh)
        yield fresh


def twice(rng: random.Random) -> Iterator[int]:
    """Each key once more, a while after it came, and then never again: S3-FIFO's worst."""
    soon: dict[int, int] = {}
    for at in range(1 << 30):
        soon[at + rng.randrange(5, 100)] = at
        yield at
        if at in soon:
            yield soon.pop(at)


def scans(rng: random.Random) -> Iterator[int]:
    fresh = 1 << 40
    keys = popular(rng)
    while True:
        for _ in range(1500):
            yield next(keys)
        for _ in range(700):
            fresh += 1
            yield fresh


def in_turn(rng: random.Random) -> Iterator[int]:
    """Each of these for a while."""
    kinds = [kind(rng) for kind in (twice, loop, recent, scans)]
    while True:
        for kind in kinds:
            for _ in range(4000):
                yield next(kind)


def crawl(rng: random.Random) -> Iterator[int]:
    """Pages once a round, what all of them have, and those that were linked to shortly before."""
    while True:
        for page in range(1500):
            yield page
            yield 10_000 + int(60 * rng.random() ** 2)
            yield 20_000 + page // 25
            if rng.random() < 0.2:
                yield max(0, page - rng.randrange(50))


TRACES: list[Callable[[random.Random], Iterator[int]]] = [
    popular,
    loop,
    walk,
    recent,
    twice,
    scans,
    in_turn,
    crawl,
]


@pytest.mark.parametrize("entries", [10, 50, 138, 500])
@pytest.mark.parametrize("kind", TRACES)
def test_the_hit_ratio_is_never_half_a_point_below_that_of_lru(
    kind: Callable[[random.Random], Iterator[int]], entries: int
) -> None:
    keys = kind(random.Random(f"{kind.__name__} {entries}"))
    trace = [next(keys) for _ in range(REQUESTS)]
    assert store_hits(trace, entries) >= lru_hits(trace, entries) - 0.005 * REQUESTS


def filled(store: Store, count: int) -> None:
    for n in range(count):
        store.put(b"%d" % n, b"-", expires=LATER, now=NOW)


def test_until_there_is_evidence_what_was_used_longest_ago_leaves() -> None:
    store = new_store(40)
    filled(store, 40)
    for n in range(0, 40, 2):
        assert store.get(b"%d" % n, NOW)
        # A tick passes with each entry that is stored.
        store.put(b"again", b"-", expires=LATER, now=NOW)
    for n in range(20):
        store.put(b"new %d" % n, b"-", expires=LATER, now=NOW)
    left = [n for n in range(40) if store.get(b"%d" % n, NOW) is None]
    # One more left for the key that was stored over and over.
    assert left == sorted({*range(1, 40, 2), 0})


def test_an_eviction_takes_a_bounded_number_of_looks_however_much_was_used() -> None:
    store = new_store(4000)
    filled(store, 4000)
    touches = memoryview(bytearray(store.index.slots + L.GUARD_SLOTS))
    store.index.touch_maps.append(touches)
    for slot, cell in enumerate(store.index.cells):
        if cell:
            touches[slot] = store.index.tick | 1
    before = sum(1 for touch in touches if touch)
    store.put(b"one more", b"-", expires=LATER, now=NOW)
    assert store.entries == 4000
    assert before - 70 < sum(1 for touch in touches if touch) < before


def test_what_clients_write_into_touch_maps_and_logs_does_no_harm() -> None:
    rng = random.Random(5)
    store = new_store(50)
    touches = memoryview(bytearray(store.index.slots + L.GUARD_SLOTS))
    store.index.touch_maps.append(touches)
    store.policy.drain = lambda: [rng.getrandbits(64) for _ in range(20)]
    for n in range(3000):
        touches[rng.randrange(len(touches))] = rng.randrange(256)
        store.put(b"%d" % rng.randrange(200), b"-", expires=LATER, now=NOW)
        assert store.entries == min(50, store.entries)
        if n % 100 == 0:
            assert all(
                1 <= store.index.frequency(slot) + 1 <= L.TOUCH_COUNT + 1
                for slot, cell in enumerate(store.index.cells)
                if cell
            )


def looped() -> Store:
    """A store that has found out that LRU is of no use for a loop that is larger than it."""
    store = new_store(100)
    for n in range(9000):
        key = b"%d" % (n % 150)
        if store.get(key, NOW) is None:
            store.put(key, b"-", expires=LATER, now=NOW)
    assert store.policy.share is not None
    return store


def test_a_restart_and_another_size_go_on_by_the_rule_that_was_found() -> None:
    store = looped()
    share = store.policy.share
    assert Store(store.memory).policy.share == share, "as the next daemon finds it"
    store.journal = set()
    target = new_store(200)
    for _ in copy_entries(store, target, NOW):
        pass
    list(settle(store, target, (), NOW))
    assert target.policy.share == share
    assert target.index.tick == store.index.tick


def test_the_store_returns_to_lru_when_the_traffic_turns_against_its_rule() -> None:
    store = looped()
    keys = twice(random.Random(1))
    for _ in range(9000):
        key = b"other %d" % next(keys)
        if store.get(key, NOW) is None:
            store.put(key, b"-", expires=LATER, now=NOW)
    assert store.policy.share is None


def test_entries_that_expire_are_no_evidence_against_a_rule() -> None:
    """A store with room for all, whose entries live shortly, misses as no policy's fault."""
    store = new_store(100)
    now = NOW
    for n in range(9000):
        now += 1000
        key = b"%d" % (n % 90)
        if store.get(key, now) is None:
            store.put(key, b"-", expires=now + 200_000, now=now)
    rates = store.policy.figures()["hit_rates"]
    assert isinstance(rates, dict)
    assert len({round(rate, 6) for rate in rates.values()}) == 1


@pytest.mark.parametrize("size", [300, 3000])
def test_where_bytes_are_the_limit_the_models_are_limited_in_bytes(size: int) -> None:
    store = new_store(100_000, 1 << 20)
    rng = random.Random(size)
    for n in range(10_000):
        store.put(b"%d" % n, bytes(rng.randint(1, 2 * size)), expires=LATER, now=NOW)
        if store.counters.evictions > 3000:
            break
    assert store.counters.evictions
    assert store.policy.in_bytes
    assert store.policy.mask >> 40 < max(1, store.entries // 256)


def test_a_tick_s_search_finds_an_entry_wherever_slots_have_moved() -> None:
    store = new_store(300)
    rng = random.Random(2)
    for n in range(20_000):
        store.put(b"%d" % n, b"-", expires=LATER, now=NOW)
        if rng.random() < 0.2:
            store.delete(b"%d" % rng.randrange(n + 1), NOW)
        if n % 500 == 0 and store.entries == 300:
            slot = store.index.oldest()
            assert slot != NONE
            ages = [
                store.index.age(store.index.last_used(at))
                for at, cell in enumerate(store.index.cells)
                if cell
            ]
            assert max(ages) - store.index.age(store.index.last_used(slot)) <= 1


def test_where_bytes_are_the_limit_as_many_keys_are_remembered_as_there_is_room_for() -> None:
    """Not as many as the limit of entries says: what left long ago says nothing."""
    store = new_store(100_000, 1 << 20)
    for n in range(3000):
        store.put(b"%d" % n, bytes(3000), expires=LATER, now=NOW)
    assert store.counters.evictions
    assert store.ghost.held <= store.entries + 20


def test_what_clients_note_is_gathered_several_times_a_tick_and_never_without_end() -> None:
    store = new_store(2000)
    calls = 0

    def drain() -> list[int]:
        nonlocal calls
        calls += 1
        return [0] * 384

    store.policy.drain = drain
    filled(store, 640)
    ticks = 640 // (store.policy.pace + 1)
    assert 4 * ticks - 1 <= calls <= 4 * ticks + 1
    for _ in range(1000):
        store.policy.gather()
    assert len(store.policy.hits) < 2 * MOST_GATHERED
