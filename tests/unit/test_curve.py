"""The curve tells what the store would hit at other sizes, or that it does not know."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import accumulate

import pytest

from bi_performance_wire.types import CacheCurve, CurvePoint
from bi_performanced.cache.curve import (
    AHEAD,
    FACTORS,
    FORGOTTEN,
    WANTED,
    WINDOW,
    Allowance,
    Curve,
    Totals,
)
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.shadows import LruShadow, S3FifoShadow
from bi_performanced.cache.store import Store

LATER = 1 << 62
POINTS = 0.02
"""How far a prediction may be from what happens."""


class Unlimited(Allowance):
    """Tests do not depend on how fast they run."""

    def look(self) -> bool:
        return False


class Played:
    """A store and its curve, and what was read of them."""

    def __init__(self, max_entries: int, max_bytes: int = 8 << 20) -> None:
        memory = Memory.create(None, max_entries, max_bytes, epoch=1, seed=7)
        self.store = Store(memory)
        self.hits = self.misses = 0
        self.now = 1_000_000_000
        self.seconds = 0.0
        self.curve = Curve(self._totals, Unlimited(), clock=lambda: self.seconds)
        self.store.policy.listen(self.curve, self.store.fullness)

    def _totals(self) -> Totals:
        return Totals(self.hits, self.misses, self.store.counters.inserts)

    def ask(self, key: bytes, *, size: int = 1, lives: int = LATER) -> None:
        """Read a key, and store it when it is missing."""
        if self.store.get(key, self.now) is not None:
            self.hits += 1
            return
        self.misses += 1
        expires = LATER if lives == LATER else self.now + lives
        self.store.put(key, bytes(size), expires=expires, now=self.now)

    def play(self, trace: list[int]) -> Played:
        for key in trace:
            self.ask(b"%d" % key)
        return self

    @property
    def hit_rate(self) -> float:
        return self.hits / (self.hits + self.misses)


def at(curve: CacheCurve, size: float) -> CurvePoint:
    return next(point for point in curve.points if point.size == size)


def popular(rng: random.Random, keys: int = 3000) -> Iterator[int]:
    """By Zipf's law."""
    shares = list(accumulate(1 / rank**0.8 for rank in range(1, keys + 1)))
    while True:
        yield from rng.choices(range(keys), cum_weights=shares, k=1000)


def recent(rng: random.Random) -> Iterator[int]:
    """The less lately used, the less likely."""
    stack: list[int] = []
    for fresh in range(1 << 30):
        while stack and rng.random() < 0.7:
            key = stack.pop(-1 - min(len(stack) - 1, int(rng.expovariate(1 / 400))))
            stack.append(key)
            yield key
        stack.append(fresh)
        yield fresh


def scans(rng: random.Random) -> Iterator[int]:
    """What is asked for again and again, and now and then as much that is not."""
    fresh = 1 << 40
    while True:
        for _ in range(1500):
            yield int(900 * rng.random() ** 2)
        for _ in range(700):
            fresh += 1
            yield fresh


@pytest.mark.parametrize("kind", [popular, recent, scans])
def test_it_predicts_a_store_of_half_and_twice_the_size_within_two_points(
    kind: Callable[[random.Random], Iterator[int]],
) -> None:
    keys = kind(random.Random(kind.__name__))
    trace = [next(keys) for _ in range(8000)]
    curve = Played(400).play(trace).curve.curve()
    for size, entries in ((0.5, 200), (1.0, 400), (2.0, 800)):
        found = at(curve, size)
        assert found.max_size == entries
        assert found.hit_rate == pytest.approx(Played(entries).play(trace).hit_rate, abs=POINTS)


def test_a_store_of_many_entries_is_told_of_by_a_sample_of_its_keys() -> None:
    keys = popular(random.Random(3), 40_000)
    trace = [next(keys) for _ in range(40_000)]
    played = Played(5000).play(trace)
    curve = played.curve.curve()
    assert played.store.policy.mask, "not all keys are told of"
    for size in (0.5, 2.0):
        found = at(curve, size)
        really = Played(round(5000 * size)).play(trace).hit_rate
        assert found.hit_rate == pytest.approx(really, abs=POINTS)
        assert found.margin is not None
        assert 0 < found.margin < POINTS
        assert found.sample_rate < 0.5


def test_where_bytes_are_the_limit_its_sizes_are_bytes() -> None:
    def play(max_bytes: int) -> Played:
        played = Played(100_000, max_bytes)
        keys = popular(random.Random(5))
        for n in range(10_000):
            key = next(keys)
            played.ask(b"%d" % key, size=100 + key % 13 * 100)
            if n == 1500:
                # That it is bytes is known when they are all in use.
                played.hits = played.misses = 0
        return played

    first = play(400_000)
    curve = first.curve.curve()
    assert curve.limit == "bytes"
    for size in (0.5, 2.0):
        found = at(curve, size)
        assert (found.max_size, found.max_bytes) == (None, round(400_000 * size))
        assert found.hit_rate == pytest.approx(play(round(400_000 * size)).hit_rate, abs=POINTS)


def test_nothing_is_told_before_enough_was_seen_and_it_says_how_much_that_is() -> None:
    played = Played(100)
    before = played.curve.curve()
    assert before.hit_rate is None
    assert [point.size for point in before.points] == list(FACTORS)
    assert all(point.hit_rate is None and point.margin is None for point in before.points)
    played.play(list(range(200)))
    some = played.curve.curve()
    assert (some.hit_rate, some.reads) == (0.0, 200)
    assert all(point.hit_rate is None for point in some.points)
    assert {point.accesses for point in some.points if point.size <= 4} <= {199, 200}
    assert at(some, 1.0).wanted == WANTED + 100
    played.play(list(range(at(some, 1.0).wanted)))
    now = played.curve.curve()
    assert at(now, 1.0).hit_rate is not None
    assert at(now, 1.0).margin == 0, "all keys are modelled"
    assert at(now, 8.0).hit_rate is None


def test_a_store_that_is_not_empty_is_told_of_when_the_models_hold_as_much() -> None:
    """As after a restart: what was stored before that nobody has told of."""
    played = Played(100)
    played.play(list(range(100)))
    played.store.policy.listen(None, played.store.fullness)
    curve = Curve(played._totals, Unlimited())
    played.store.policy.listen(curve, played.store.fullness)
    rng = random.Random(1)
    played.play([rng.randrange(130) for _ in range(60)])
    assert at(curve.curve(), 1.0).accesses == 0
    played.play([rng.randrange(130) for _ in range(8000)])
    assert at(curve.curve(), 1.0).hit_rate == pytest.approx(100 / 130, abs=POINTS)


def test_what_expires_or_is_deleted_would_be_missing_at_any_size() -> None:
    played = Played(200)
    for n in range(6000):
        played.now += 1000
        played.ask(b"%d" % (n % 150), lives=200_000)
        if n % 10 == 0:
            played.store.delete(b"%d" % (n // 2 % 150), played.now)
    curve = played.curve.curve()
    for size in (1.0, 2.0, 8.0):
        assert at(curve, size).hit_rate == pytest.approx(played.hit_rate, abs=0.001)


def test_a_clear_empties_every_size() -> None:
    played = Played(100)
    for _ in range(40):
        played.play([n for n in range(90) for _ in range(2)])
        played.store.clear()
    found = at(played.curve.curve(), 8.0).hit_rate
    assert found == pytest.approx(played.hit_rate, abs=0.01)


def test_traffic_of_long_ago_is_forgotten() -> None:
    played = Played(100)
    rng = random.Random(1)
    played.play([rng.randrange(150) for _ in range(6000)])
    early = played.curve.curve()
    for _ in range(14):
        played.seconds += WINDOW / 12
        played.play([rng.randrange(110) for _ in range(1200)])
        played.curve.beat()
    late = played.curve.curve()
    assert WINDOW <= late.window_seconds < 1.2 * WINDOW
    first, last = at(early, 0.5).hit_rate, at(late, 0.5).hit_rate
    assert first == pytest.approx(0.33, abs=0.04)
    assert last == pytest.approx(0.45, abs=0.04)


def test_of_little_traffic_it_looks_back_longer_and_keeps_few_blocks() -> None:
    played = Played(1000)
    for _ in range(100):
        played.seconds += WINDOW / 12
        played.play([1, 2, 3])
        played.curve.beat()
    assert played.curve.curve().window_seconds > 8 * WINDOW
    assert len(played.curve._blocks) < 40


@pytest.mark.parametrize("entries", [100, 20_000])
def test_it_takes_no_more_memory_for_a_larger_store(entries: int) -> None:
    played = Played(entries, 16 << 20)
    rng = random.Random(entries)
    for _ in range(2):
        played.play([rng.randrange(20 * entries) for _ in range(5000)])
    curve = played.curve
    held = len(curve._due) + len(curve._weights)
    for size in curve._sizes:
        for shadow in size._shadows:
            if isinstance(shadow, LruShadow):
                held += len(shadow._weights)
            if isinstance(shadow, S3FifoShadow):
                held += len(shadow._kept) + len(shadow._ghost)
    assert len(curve._due) <= FORGOTTEN
    assert held < FORGOTTEN + 9 * 5 * 513


class Clock:
    """Processor time that passes as a test says."""

    def __init__(self) -> None:
        self.process = self.thread = 0.0

    def tick(self) -> float:
        self.thread += 0.01
        return self.thread


def test_it_rests_when_it_has_used_up_its_share_of_the_processor() -> None:
    played = Played(100)
    clock = Clock()
    allowance = Allowance(0.01, process=lambda: clock.process, thread=clock.tick)
    curve = Curve(played._totals, allowance)
    played.store.policy.listen(curve, played.store.fullness)
    rng = random.Random(2)
    trace = [rng.randrange(200) for _ in range(4000)]
    played.play(trace)
    assert allowance.resting
    assert AHEAD <= allowance.spent < AHEAD + 0.1
    rested = curve.curve()
    assert 0 < rested.heard < 1
    clock.process += 200
    played.play(trace[:10])
    played.play(trace)
    assert allowance.spent > 1.5 * AHEAD
    assert allowance.spent < AHEAD + 0.01 * clock.process + 0.1
    found = at(curve.curve(), 1.0)
    assert found.accesses > at(rested, 1.0).accesses
    assert found.hit_rate == pytest.approx(played.hit_rate, abs=POINTS)
