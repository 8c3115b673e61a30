"""The miss-ratio curve of the live traffic: what the store would hit at other sizes.

For each of some sizes the store is played in miniature (miniature.py) with the keys of a sample
by their hash, of which the policy is told anyway. A model tells how its misses compare with those
of the store itself on the same keys; that ratio, and all reads and misses of the store as they were
counted, give the hit rate at its size. So whatever the sample has too much or too little of, such
as the few keys that are read most, cancels out (an estimator as SHARDS-adj is, Waldspurger et al.,
FAST 2015, taken one step further), and repeated reads need not be told.

Memory: for each size three models of at most MODEL entries, and FORGOTTEN digests, whatever the
store's size; about 5.5 MB. Processor time: SHARE of the process's; when that is used up the curve
rests, and counts again once the models hold later traffic.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from math import sqrt
from typing import Final, NamedTuple

from bi_performance_wire.types import CacheCurve, CurvePoint
from bi_performanced.cache.miniature import (
    EVENT_BITS,
    READ,
    RENEWED,
    REPLACED,
    STORED,
    Miniature,
    Sample,
    Tally,
)
from bi_performanced.cache.policy import SAMPLE_SHIFT, Put, name_of

FACTORS: Final = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
"""The sizes, in sizes of the store."""
MODEL: Final = 512
"""Entries of a model at the most; it has more than half as many where its size has."""
FEED: Final = 2048
"""Entries of the store whose keys are sampled, at the most: what its smallest models need."""
FORGOTTEN: Final = 8 * FEED
"""Keys of which is remembered when they expire, or that they were deleted."""
MOST_BATCH: Final = 512
"""Reads and puts, of the sample or not, that are taken at once; of a small store an eighth of its
entries, and LEAST_BATCH, for the models choose their rule after each batch."""
LEAST_BATCH: Final = 16
WANTED: Final = 256
"""Accesses of a size's sample, and one for each entry of its model, until its hit rate is told."""

WINDOW: Final = 3600.0
"""Seconds that the curve looks back, and longer while too little was seen in them."""
BLOCK: Final = 300.0
"""Seconds in which what is older goes at once."""
MOST_BLOCKS: Final = 36
BEAT: Final = 10.0
"""Seconds between two looks at whether something is too old."""

SHARE: Final = 0.008
"""Of the process's processor time that may be spent: with what it costs to be told, under 1 %."""
AHEAD: Final = 0.5
"""Seconds that may be spent ahead: at the start, and after times in which little was asked for."""
RESTED: Final = 0.25
"""Seconds that must have been saved up until it goes on: so much makes all models warm."""


class Allowance:
    """Processor time that may be spent: a share of the process's, some of it ahead."""

    def __init__(
        self,
        share: float = SHARE,
        *,
        process: Callable[[], float] = time.process_time,
        thread: Callable[[], float] = time.thread_time,
    ) -> None:
        self._share = share
        self._process = process
        self._thread = thread
        self._left = AHEAD
        self._seen = process()
        self.spent = 0.0
        """Seconds in all."""
        self.resting = False

    def look(self) -> bool:
        """Whether it is time to rest."""
        now = self._process()
        self._left = min(AHEAD, self._left + self._share * (now - self._seen))
        self._seen = now
        self.resting = self._left < (RESTED if self.resting else 0)
        return self.resting

    def spend(self, work: Callable[[], None]) -> None:
        """Do the work, at this allowance's expense."""
        began = self._thread()
        work()
        took = self._thread() - began
        self.spent += took
        self._left -= took


class Totals(NamedTuple):
    """What was counted since the daemon began."""

    hits: int
    misses: int
    inserts: int
    """Entries that were stored because none was there."""


@dataclass
class Block:
    """What was seen in a while."""

    began: float
    first: Totals
    last: Totals
    heard: int = 0
    skipped: int = 0
    tallies: list[Tally] = field(default_factory=list)

    def add(self, later: Block) -> None:
        self.last = later.last
        self.heard += later.heard
        self.skipped += later.skipped
        for tally, other in zip(self.tallies, later.tallies, strict=True):
            tally.add(other)


class Curve:
    """Hears what a policy is told (it is its listener), and says the curve when asked.

    `beat` must be called every now and then. Nothing here awaits.
    """

    def __init__(
        self,
        totals: Callable[[], Totals],
        allowance: Allowance | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._totals = totals
        self._clock = clock
        self.allowance = allowance or Allowance()
        self.mask = 0
        """A digest that has none of these bits is of the sample."""
        self._shape: tuple[int, int, bool] | None = None
        self._sizes: list[Miniature] = []
        self._limits: list[tuple[float, int]] = []
        self._blocks: deque[Block] = deque()
        self._forget()

    def _forget(self) -> None:
        self._untold: list[tuple[list[Put], list[int]]] = []
        self._waiting = 0
        self._due: dict[int, int] = {}
        """Digest to the time at which what was stored for it last expires."""
        self._weights: dict[int, int] = {}

    # ── what a policy tells

    def fit(self, entries: int, capacity: int, in_bytes: bool, *, empty: bool) -> None:
        """The store holds so many entries when it is full, and its limit is this many entries or
        bytes. Begins anew where that is news; with `empty` as the store does."""
        if (entries, capacity, in_bytes) == self._shape:
            return
        self._shape = entries, capacity, in_bytes
        self._batch = min(MOST_BATCH, max(LEAST_BATCH, entries // 8))
        self._typical = max(1, capacity // entries) if in_bytes else 1
        rate = 1
        while entries > rate * FEED:
            rate *= 2
        self.mask = (rate - 1) << SAMPLE_SHIFT
        chosen = {max(1, round(entries * factor)): factor for factor in (*FACTORS, 1.0)}
        self._limits, self._sizes = [], []
        for count, factor in sorted(chosen.items()):
            own = rate
            while count > own * MODEL:
                own *= 2
            limit = max(1, round(capacity * factor))
            self._limits.append((factor, limit))
            self._sizes.append(Miniature(count, limit, own, warm=empty))
        self._forget()
        self._blocks.clear()
        self._begin()

    def hear(self, puts: list[Put], hits: list[int]) -> None:
        """What was stored, and then read, since the last time; of the sample or not."""
        block, count = self._blocks[-1], len(puts) + len(hits)
        if self.allowance.resting:
            block.skipped += count
            if not self.allowance.look():
                self._wake()
            return
        block.heard += count
        self._untold.append((puts.copy(), hits))
        self._waiting += count
        if self._waiting >= self._batch:
            self.allowance.spend(self._play)
            self.allowance.look()

    def cleared(self) -> None:
        """The store is empty: so would it be at any size."""
        self._forget()
        for size in self._sizes:
            size.clear(warm=True)

    # ── at work

    def _play(self) -> None:
        weigh = self._weigh if self._typical > 1 else None
        events, odd = self._taken()
        sample, mask = Sample([], []), -1
        for size in self._sizes:
            # The sizes are in order: each one's sample is a part of the one's before it.
            if size.mask != mask:
                mask = size.mask
                events = [event for event in events if not event & mask]
                sample = Sample.of(events)
            if odd:
                size.play_all(events, weigh)
            else:
                size.play(sample, weigh)

    def _taken(self) -> tuple[list[int], bool]:
        """What was told and not played yet, and whether something of it is out of the ordinary."""
        told, self._untold, self._waiting = self._untold, [], 0
        mask, due = self.mask, self._due
        events: list[int] = []
        odd = False
        for puts, hits in told:
            for put in puts:
                digest = put.digest
                if digest & mask:
                    continue
                before = due.pop(digest, None)
                due[digest] = put.expires
                if not put.size:
                    continue
                if self._typical > 1:
                    self._weights[digest] = put.size
                kind = STORED
                if before is not None and before <= put.now:
                    kind, odd = RENEWED, True
                elif not put.missed:
                    kind, odd = REPLACED, True
                events.append(digest << EVENT_BITS | kind)
            events += [digest << EVENT_BITS | READ for digest in hits if not digest & mask]
        for kept in (due, self._weights):
            if len(kept) > FORGOTTEN:
                for digest in list(islice(kept, len(kept) // 4)):
                    del kept[digest]
        return events, odd

    def _weigh(self, digest: int) -> int:
        return self._weights.get(digest, self._typical)

    def _wake(self) -> None:
        self._forget()
        for size in self._sizes:
            size.cool()

    # ── over time

    def _begin(self) -> None:
        now, totals = self._clock(), self._totals()
        for size in self._sizes:
            size.tally = Tally()
        tallies = [size.tally for size in self._sizes]
        self._blocks.append(Block(now, totals, totals, tallies=tallies))

    def restart(self) -> None:
        """Count anew; the models hold what they hold."""
        if self._waiting:
            self.allowance.spend(self._play)
        self._blocks.clear()
        self._begin()

    def beat(self) -> None:
        """Let what is too old go."""
        if self._blocks and self._clock() - self._blocks[-1].began >= BLOCK:
            self._blocks[-1].last = self._totals()
            self._begin()
            self._drop_old()

    def _drop_old(self) -> None:
        blocks = self._blocks
        while len(blocks) > 2 and self._clock() - blocks[1].began >= WINDOW:
            if not self._enough(list(blocks)[1:]):
                break
            blocks.popleft()
        if len(blocks) > MOST_BLOCKS:
            # Of a traffic so low that much of a day tells little.
            oldest = blocks.popleft()
            oldest.add(blocks[0])
            blocks[0] = oldest

    def _enough(self, blocks: list[Block]) -> bool:
        seen = [sum(block.tallies[at].accesses for block in blocks) for at in self._places]
        return all(count >= self._wanted(at) for count, at in zip(seen, self._places, strict=True))

    @property
    def _places(self) -> range:
        return range(len(self._sizes))

    def _wanted(self, at: int) -> int:
        return WANTED + self._sizes[at].size

    # ── what it says

    def curve(self) -> CacheCurve:
        """The curve of what was seen lately."""
        if self._waiting:
            self.allowance.spend(self._play)
        blocks = self._blocks
        assert blocks and self._shape is not None, "nobody has told how large the store is"
        blocks[-1].last = self._totals()
        counted = Totals(
            *(sum(block.last[at] - block.first[at] for block in blocks) for at in range(3))
        )
        heard = sum(block.heard for block in blocks)
        heard_of = heard + sum(block.skipped for block in blocks)
        share = heard / heard_of if heard else 1.0
        reads = counted.hits + counted.misses
        return CacheCurve(
            limit="bytes" if self._shape[2] else "entries",
            hit_rate=counted.hits / reads if reads else None,
            reads=reads,
            window_seconds=self._clock() - blocks[0].began,
            heard=share,
            cpu_seconds=self.allowance.spent,
            points=[self._point(at, share, counted) for at in self._places],
        )

    def _point(self, at: int, heard: float, counted: Totals) -> CurvePoint:
        tally = Tally()
        for block in self._blocks:
            tally.add(block.tallies[at])
        size, wanted = self._sizes[at], self._wanted(at)
        factor, limit = self._limits[at]
        in_bytes = self._shape is not None and self._shape[2]
        hit_rate = margin = None
        if tally.accesses >= wanted and counted.hits + counted.misses:
            hit_rate, margin = _estimate(tally, size.rate, heard, counted)
        return CurvePoint(
            size=factor,
            max_size=None if in_bytes else limit,
            max_bytes=limit if in_bytes else None,
            hit_rate=hit_rate,
            margin=margin,
            rule=name_of(size.rule),
            accesses=tally.accesses,
            wanted=wanted,
            sample_rate=1 / size.rate,
        )


def _estimate(tally: Tally, rate: int, heard: float, totals: Totals) -> tuple[float, float]:
    """The hit rate at a size, and two standard errors of it."""
    reads = totals.hits + totals.misses
    # A miss that nothing was stored after says nothing, and is taken for one at any size.
    explained = min(totals.misses, totals.inserts)
    growth = tally.growth()
    if growth is not None:
        misses = totals.misses + explained * (growth - 1)
        error = explained * tally.growth_error()
    else:
        further, error = tally.further()
        scale = rate / heard * (explained / totals.inserts if totals.inserts else 1.0)
        misses, error = totals.misses + scale * further, scale * error
    # The sample may be all of it.
    error *= sqrt(1 - 1 / rate)
    return min(1.0, max(0.0, 1 - misses / reads)), min(1.0, 2 * error / reads)
