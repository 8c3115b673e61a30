"""The store at another size, in miniature: what it would have missed of the traffic that comes.

A model of the store over a sample of the keys, and one of each rule that it may go by, among which
it chooses as the store does (policy.py), losing what a change costs; each as much smaller as the
sample is, so that all take about the same memory (Waldspurger, Saemundsson, Ahmad, Park: "Cache
modeling and optimization using miniature simulations", ATC 2017). It chooses after a batch of
accesses where the policy does after each, which costs a fraction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from math import sqrt
from typing import Final, NamedTuple

from bi_performanced.cache import policy as P
from bi_performanced.cache.shadows import LruShadow, S3FifoShadow, Shadow, SwitchingShadow

READ, STORED, RENEWED, REPLACED = range(4)
"""What happened to a key: it was read; stored because it was missing; because its time was over,
which no size changes; over what was there. An event is a digest, shifted by EVENT_BITS, and one of
these."""
EVENT_BITS: Final = 2
_KIND: Final = (1 << EVENT_BITS) - 1

GROUPS: Final = 8
"""Parts of the sample, by bits of the hash that decide nothing else: how far they differ tells how
far the sample may be from the whole."""
_GROUP_SHIFT: Final = 32
_LAST_GROUP: Final = GROUPS - 1

TURNED: Final = 8
"""Accesses for each entry, after which a model is taken for warm that has not been filled."""
FEW: Final = 30
"""Misses of the store, below which they are no measure for those of a model."""


@dataclass
class Tally:
    """What came of the sample of one size, over some time."""

    accesses: int = 0
    stored: list[int] = field(default_factory=lambda: [0] * GROUPS)
    """Misses of the store itself, by group."""
    missed: list[int] = field(default_factory=lambda: [0] * GROUPS)
    """Misses of the model."""

    def add(self, other: Tally) -> None:
        self.accesses += other.accesses
        for at in range(GROUPS):
            self.stored[at] += other.stored[at]
            self.missed[at] += other.missed[at]

    def growth(self) -> float | None:
        """How many times the store's misses the model's are; None where that is not to be told."""
        stored, missed = sum(self.stored), sum(self.missed)
        return missed / stored if stored and (missed <= stored or stored >= FEW) else None

    def growth_error(self) -> float:
        """The standard error of `growth`, by leaving out each group in turn (the jackknife)."""
        stored, missed = sum(self.stored), sum(self.missed)
        without = [
            (missed - self.missed[at]) / left
            for at in range(GROUPS)
            if (left := stored - self.stored[at])
        ]
        if not without:
            return 0.0
        mean = sum(without) / len(without)
        return sqrt((GROUPS - 1) / GROUPS * sum((each - mean) ** 2 for each in without))

    def further(self) -> tuple[int, float]:
        """How many more the model's misses are than the store's, and the standard error."""
        more = [one - other for one, other in zip(self.missed, self.stored, strict=True)]
        mean = sum(more) / GROUPS
        return sum(more), sqrt(GROUPS / (GROUPS - 1) * sum((each - mean) ** 2 for each in more))


class Sample(NamedTuple):
    """What was read or stored of the keys of a sample, in turn."""

    keys: list[int]
    stored: list[int]
    """How many were stored, by group."""

    @classmethod
    def of(cls, events: list[int]) -> Sample:
        stored = [0] * GROUPS
        for event in events:
            if event & _KIND:
                stored[event >> _GROUP_SHIFT + EVENT_BITS & _LAST_GROUP] += 1
        return cls([event >> EVENT_BITS for event in events], stored)


class Miniature:
    """The store with `entries` entries, on one in `rate` of the keys.

    `capacity` is in the unit of the limit. What is played is counted from the moment at which the
    models hold what the store would: at once with `warm`.
    """

    def __init__(self, entries: int, capacity: int, rate: int, *, warm: bool) -> None:
        self.entries = entries
        self.rate = rate
        self.mask = (rate - 1) << P.SAMPLE_SHIFT << EVENT_BITS
        self.tally = Tally()
        self.size = max(1, round(entries / rate))
        self._capacity = max(1, round(capacity / rate))
        self._at = 0
        self.clear(warm=warm)

    def clear(self, *, warm: bool) -> None:
        """Begin with empty models. What was counted stays."""
        self._shadows: list[Shadow] = [
            LruShadow(self._capacity)
            if rule.share is None
            else S3FifoShadow(self._capacity, rule.share, rule.promote_at)
            for rule in P.RULES
        ]
        self._store = SwitchingShadow(self._capacity)
        self._store.go_by(self.rule.share, self.rule.promote_at)
        self._scores = [0.0] * len(P.RULES)
        self._weight = self._lost = 0.0
        self._accesses = 0
        self._blocked_until = [0.0] * len(P.RULES)
        self._failed_spans = [P.BLOCKED] * len(P.RULES)
        self.warm = warm
        self._to_come = self.size
        self._since = 0

    def cool(self) -> None:
        """Some of the traffic was not heard: count again when the models hold later traffic."""
        self.warm = False
        self._to_come = self.size
        self._since = self._accesses

    @property
    def rule(self) -> P.Rule:
        return P.RULES[self._at]

    def play(self, sample: Sample, weigh: Callable[[int], int] | None) -> None:
        """What was read or stored of keys of this sample, none of it RENEWED or REPLACED."""
        keys = sample.keys
        if not keys:
            return
        missed = [shadow.play(keys, weigh) for shadow in self._shadows]
        own = self._store.play(keys, weigh)
        if self.warm:
            tally = self.tally
            tally.accesses += len(keys)
            counts = tally.missed
            for key in own:
                counts[key >> _GROUP_SHIFT & _LAST_GROUP] += 1
            tally.stored = [
                one + other for one, other in zip(tally.stored, sample.stored, strict=True)
            ]
        else:
            self._to_come -= len(missed[0])
            waited = self._accesses - self._since >= TURNED * self.size
            self.warm = self._to_come <= 0 or waited
        self._choose(len(keys), [len(each) for each in missed], len(own))

    def play_all(self, events: list[int], weigh: Callable[[int], int] | None) -> None:
        """As `play`, of any events."""
        for odd, some in groupby(events, lambda event: event & _KIND >= RENEWED):
            if not odd:
                self.play(Sample.of(list(some)), weigh)
                continue
            for event in some:
                key = event >> EVENT_BITS
                weight = weigh(key) if weigh else 1
                for shadow in (*self._shadows, self._store):
                    shadow.access(key, weight)
                if self.warm and event & _KIND == RENEWED:
                    group = key >> _GROUP_SHIFT & _LAST_GROUP
                    self.tally.accesses += 1
                    self.tally.stored[group] += 1
                    self.tally.missed[group] += 1

    def _choose(self, accesses: int, missed: list[int], own: int) -> None:
        """Choose a rule as Policy does, but for a batch."""
        at, size = self._at, self.size
        self._accesses += accesses
        faded = 2 ** (-accesses / (P.HALF_LIFE * size))
        self._weight = self._weight * faded + accesses
        scores = self._scores = [
            score * faded + accesses - misses
            for score, misses in zip(self._scores, missed, strict=True)
        ]
        if at:
            self._lost += own - missed[0]
            credit = P.CREDIT * size + P.LEAST_LOSS
            if self._lost <= -credit:
                self._lost = -credit
                self._failed_spans[at] = P.BLOCKED
            elif self._lost > P.LOSS * size + P.LEAST_LOSS:
                self._blocked_until[at] = self._accesses + self._failed_spans[at] * size
                self._failed_spans[at] *= 2
                self._go_by(0)
        if self._accesses < P.PATIENCE * size or max(scores) <= scores[self._at]:
            return
        best = self._at
        wanted = scores[best] + P.LEAD_OF_ALL * self._weight + P.LEAD * size + P.LEAST_LEAD
        for other, score in enumerate(scores):
            if score > wanted and self._accesses >= self._blocked_until[other]:
                best, wanted = other, score
        if best != self._at:
            self._go_by(best)

    def _go_by(self, at: int) -> None:
        if not self._at or not at:
            self._lost = 0.0
        self._at = at
        self._store.go_by(self.rule.share, self.rule.promote_at)
