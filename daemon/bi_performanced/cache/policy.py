"""Which entry leaves: chosen, from evidence, among LRU and S3-FIFO with two sizes of small queue.

No policy is the best for all traffic. S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all
you need for cache eviction", SOSP 2023) is far better than LRU where much is asked for once, and
below it where what was used last is what is used next, as in most caches of a few hundred entries.
So all are tried at all times on a sample of the keys, as models in miniature; the store goes by LRU
until another has proved better, and returns to it when the store's own hits, of the same sample,
fall behind those of the LRU model.

Nothing here awaits or reads a clock. Takes memory for `SAMPLED` keys, whatever the store's size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from math import isfinite
from struct import Struct
from typing import Final, NamedTuple, Protocol

from bi_performance_wire import layout as L
from bi_performanced.cache.shadows import LruShadow, S3FifoShadow, Shadow

SAMPLED: Final = 512
"""Entries that a model holds at the most. A store of so few is modelled in full."""
SAMPLE_SHIFT: Final = 40
"""Bits of the hash that decide nothing else in a store of fewer than 2^40 slots."""

TICKS_KEPT: Final = 62
"""How many ticks it may take until all that is kept has been replaced, when nothing is used."""

# In entries of a model, and in accesses of the sample for each of them; found by trying many on
# real and made traces (docs/architecture.md).
HALF_LIFE: Final = 30.0
"""Accesses after which a hit counts half."""
LEAD: Final = 0.1
"""Hits that another policy must be ahead for being followed, and LEAST_LEAD hits."""
LEAST_LEAD: Final = 5.0
LEAD_OF_ALL: Final = 0.001
"""The same as a share of all accesses that count."""
PATIENCE: Final = 6.0
"""Accesses before the first change: a shorter past says little of what is to come."""
LOSS: Final = 0.03
"""Hits that the store may lose on the LRU model until it returns to LRU, and LEAST_LOSS hits."""
LEAST_LOSS: Final = 5.0
CREDIT: Final = 2.0
"""Hits, and LEAST_LOSS hits, that are taken for at the most as gained before."""
BLOCKED: Final = 10.0
"""Accesses for which a policy that failed is not followed; twice as many each time it fails."""
FULL: Final = 0.9
"""The share of a limit from which entries are taken to leave for it."""
MOST_GATHERED: Final = 1 << 15
"""Reads that are kept until a tick ends, when nothing is stored for long."""
_LARGEST_STEP: Final = 1e12
_DOUBLE: Final = Struct("<d")
_BITS: Final = Struct("<Q")


class Rule(NamedTuple):
    """How entries leave. `share`: the small queue's part of the limits; None for LRU."""

    share: float | None
    promote_at: int = 2
    """Uses in the small queue that earn a place in the main queue."""


LRU: Final = Rule(None)
RULES: Final = (LRU, Rule(0.1), Rule(0.3))


class Put(NamedTuple):
    """A sampled key that was stored. `missed`: because it had been asked for and was not there.

    Of `size` 0: one that was deleted.
    """

    digest: int
    size: int
    expires: int
    now: int
    missed: bool


class Fullness(NamedTuple):
    """How full the store is."""

    entries: int
    max_entries: int
    live_bytes: int
    max_bytes: int


class Listener(Protocol):
    """Who hears what a policy is told, of a sample of its own."""

    mask: int
    """A digest that has none of these bits is of the sample."""

    def fit(self, entries: int, capacity: int, in_bytes: bool, *, empty: bool) -> None:
        """The store's size is another."""

    def hear(self, puts: list[Put], hits: list[int]) -> None:
        """What was stored and read in a tick, of this or another sample."""

    def cleared(self) -> None:
        """All were."""


class Policy:
    """What the store goes by, and the evidence for it.

    The store tells what it stores (`puts`, where `digest & mask` is 0, of which the models here may
    take a part), what the daemon itself read
    (`hits`), and calls `turn` at every tick; what other processes read is fetched with `drain`.
    """

    def __init__(self, words: memoryview[int], max_entries: int) -> None:
        self._words = words
        self.puts: list[Put] = []
        self.hits: list[int] = []
        self.drain: Callable[[], list[int]] = list
        """Digests that processes read in place since the last call, of the sample or not."""
        self._listener: Listener | None = None
        self._heard_entries = 0
        """As many as the listener was told that there are where bytes are the limit."""
        self.in_bytes = False
        """Whether it is the bytes that are limited, rather than the entries."""
        self.changes = 0
        """How often another rule was gone over to."""
        if words[L.W_TICK] not in range(L.TICK_ONE, 256, L.TICK_ONE):
            words[L.W_TICK] = L.TICK_ONE
        found = words[L.W_POLICY]
        self._at = found if found < len(RULES) else 0
        self.direct_until = 0
        """Of entries of the main ring up to this sequence it is not known that they were used."""
        self._failed_spans = [BLOCKED] * len(RULES)
        self._turns = 0
        told = self._told()
        self._resize(max_entries, max_entries)
        self._go_by(self._at, 0)
        if told is not None:
            self._accesses, self._weight, *self._scores = told

    # ── what the store asks

    @property
    def rule(self) -> Rule:
        return RULES[self._at]

    def figures(self) -> dict[str, object]:
        """For people: the rule, and the hit ratio of each on the sample lately."""
        return {
            "rule": name_of(self.rule),
            "changes": self.changes,
            "sampled": self._accesses,
            "sample_rate": 1 / self._rate,
            "hit_rates": {
                name_of(rule): hits / self._weight if self._weight else None
                for rule, hits in zip(RULES, self._scores, strict=True)
            },
        }

    def turn(self, sequence: int, held: Fullness) -> int:
        """Another tick: look at what was read and stored since the last. Returns the tick.

        A tick is a number from 1 to TICKS in the upper six bits of a byte.
        """
        tick = L.next_tick(self._words[L.W_TICK])
        self._words[L.W_TICK] = tick
        self._turns += 1
        if not self._turns & 63:
            self._fit(held)
        self._play(sequence)
        return tick

    def listen(self, listener: Listener | None, held: Fullness) -> None:
        """Have somebody hear what is told here from now on."""
        self._listener = listener
        if listener is not None:
            listener.fit(held.max_entries, held.max_entries, False, empty=not held.entries)
            self._heard_entries = 0
            self._fit_listener(held)
        self._widen()

    def _fit_listener(self, held: Fullness) -> None:
        """Tell which limit entries leave for. While that is none, it stays what it was."""
        if self._listener is None:
            return
        entries = held.entries
        if entries >= FULL * held.max_entries:
            self._heard_entries = 0
            self._listener.fit(held.max_entries, held.max_entries, False, empty=False)
        elif (
            held.live_bytes >= FULL * held.max_bytes
            and entries
            and not (self._heard_entries / 2 <= entries <= 2 * self._heard_entries)
        ):
            self._heard_entries = entries
            self._listener.fit(entries, held.max_bytes, True, empty=False)
        self._widen()

    def filled(self, held: Fullness) -> None:
        """The store is full for the first time: its entries are as many as fit."""
        self._fit(held)

    def gather(self) -> None:
        """Take what was read since the last time; it is looked at with the rest of the tick."""
        if len(self.hits) < MOST_GATHERED:
            self.hits += self.drain()

    def removed(self, digest: int) -> None:
        """A key was deleted: that it is missing then is no policy's fault."""
        if not digest & self.mask:
            # In its turn among what was stored.
            self.puts.append(Put(digest, 0, 1, 0, missed=False))

    def clear(self) -> None:
        """Nothing is stored any more."""
        self._restart()
        if self._listener is not None:
            self._listener.cleared()

    def follow(self, other: Policy) -> None:
        """Go by what was found of the same traffic in a store of another size."""
        self._failed_spans = list(other._failed_spans)
        self.direct_until = max(self.direct_until, other.direct_until)
        if self._at != other._at:
            self._go_by(other._at, self.direct_until)

    # ── from one daemon to the next

    def _tell(self) -> None:
        """Leave the evidence to the next daemon: it begins with empty models, not at nothing."""
        step, at = self._step, L.W_EVIDENCE
        figures = (self._accesses, self._weight / step, *(score / step for score in self._scores))
        for figure in figures:
            self._words[at] = _BITS.unpack(_DOUBLE.pack(figure))[0]
            at += 1

    def _told(self) -> list[float] | None:
        """The accesses, their weight and the hits of each rule that a daemon has left, if that can
        be: the page may be damaged."""
        words = self._words[L.W_EVIDENCE : L.W_EVIDENCE + L.EVIDENCE_WORDS]
        told = [_DOUBLE.unpack(_BITS.pack(word))[0] for word in words]
        accesses, weight, *scores = told
        if not all(isfinite(each) and each >= 0 for each in told) or not 0 < accesses < 1e15:
            return None
        return told if weight > 0 and max(scores) <= weight else None

    # ── the models

    def _fit(self, now: Fullness) -> None:
        """Fit the sample to how many entries there are when the store is full."""
        entries, max_entries, _, max_bytes = now
        self._fit_listener(now)
        in_bytes = entries < FULL * max_entries
        held = max(1, entries if in_bytes else max_entries)
        sampled = held / self._rate
        if (
            in_bytes != self.in_bytes
            or sampled > 2 * SAMPLED
            or (self._rate > 1 and sampled < SAMPLED / 4)
        ):
            self.in_bytes = in_bytes
            self._resize(held, max_bytes if in_bytes else max_entries)
        else:
            self._set_pace(held)

    def _resize(self, entries: int, capacity: int) -> None:
        rate = 1
        while entries > rate * SAMPLED:
            rate *= 2
        self._rate = rate
        self._mask = (rate - 1) << SAMPLE_SHIFT
        self._widen()
        self._size = max(1, entries // rate)
        self._capacity = max(1, capacity // rate)
        self._typical = max(1, capacity // entries) if self.in_bytes else 1
        self._set_pace(entries)
        self._restart()

    def _widen(self) -> None:
        """Be told of all that somebody here wants to hear of."""
        self.mask = self._mask if self._listener is None else self._mask & self._listener.mask
        self._words[L.W_SAMPLE] = self.mask

    def _set_pace(self, entries: int) -> None:
        pace = 1
        while entries > pace * TICKS_KEPT:
            pace *= 2
        self.pace = pace - 1
        """A tick begins where the sequence and this have no bit in common."""
        self.part = self.pace >> 2
        """The same for a quarter of a tick, at which what was read is gathered: what clients note
        of it has room for a few hundred keys."""

    def _restart(self) -> None:
        """Begin with empty models."""
        capacity = self._capacity
        self._shadows: list[Shadow] = [
            LruShadow(capacity)
            if rule.share is None
            else S3FifoShadow(capacity, rule.share, rule.promote_at)
            for rule in RULES
        ]
        self._scores = [0.0] * len(RULES)
        self._weight = 0.0
        # Instead of every score shrinking, what is added to them grows.
        self._step = 1.0
        self._growth = 2 ** (1 / (HALF_LIFE * self._size))
        self._accesses = 0.0
        self._lost = 0.0
        self._blocked_until = [0.0] * len(RULES)
        self._due: dict[int, int] = {}
        """Digest to the time at which what was stored for it last expires."""
        self.puts.clear()
        self.hits.clear()

    def _play(self, sequence: int) -> None:
        # What was stored at a tick's begin comes before what was read in its course.
        mask = self._mask
        hits = self.hits + self.drain()
        if self._listener is not None:
            self._listener.hear(self.puts, hits)
        for put in self.puts:
            if not put.digest & mask:
                self._stored(put, sequence)
        self.puts.clear()
        self.hits.clear()
        for digest in hits:
            if not digest & mask:
                self._access(digest, True, sequence)
        self._look_ahead(sequence)
        self._tell()
        if (step := self._step) > _LARGEST_STEP:
            self._step = 1.0
            self._weight /= step
            self._scores = [score / step for score in self._scores]

    def _stored(self, put: Put, sequence: int) -> None:
        due = self._due
        digest = put.digest
        before = due.pop(digest, None)
        due[digest] = put.expires
        if len(due) > 4 * self._size + 64:
            for old in list(islice(due, len(due) // 2)):
                del due[old]
        if not put.size:
            return
        if put.missed and (before is None or before > put.now):
            self._access(digest, False, sequence, put.size)
        else:
            # It had expired, or was stored over what was there: no hit in any model says anything.
            weight = put.size if self.in_bytes else 1
            for shadow in self._shadows:
                shadow.access(digest, weight)

    def _access(self, digest: int, hit: bool, sequence: int, size: int = 0) -> None:
        weight = (size or self._typical) if self.in_bytes else 1
        self._accesses += 1
        self._step = step = self._step * self._growth
        self._weight += step
        scores = self._scores
        first = False
        for at, shadow in enumerate(self._shadows):
            if shadow.access(digest, weight):
                scores[at] += step
                if not at:
                    first = True
        if self._at and first is not hit:
            self._lost += 1 if first else -1
            self._look_back(sequence)

    def _look_back(self, sequence: int) -> None:
        """Return to LRU where the store did worse than it would have by it."""
        at = self._at
        credit = CREDIT * self._size + LEAST_LOSS
        if self._lost <= -credit:
            self._lost = -credit
            self._failed_spans[at] = BLOCKED
        elif self._lost > LOSS * self._size + LEAST_LOSS:
            self._blocked_until[at] = self._accesses + self._failed_spans[at] * self._size
            self._failed_spans[at] *= 2
            self._go_by(0, sequence)

    def _look_ahead(self, sequence: int) -> None:
        """Go over to a rule that is ahead by more than chance and the change would cost."""
        scores = self._scores
        if self._accesses < PATIENCE * self._size or max(scores) <= scores[self._at]:
            return
        wanted = scores[self._at] + LEAD_OF_ALL * self._weight
        wanted += self._step * (LEAD * self._size + LEAST_LEAD)
        best = self._at
        for at, score in enumerate(scores):
            if score > wanted and self._accesses >= self._blocked_until[at]:
                best, wanted = at, score
        if best != self._at:
            self._go_by(best, sequence)

    def _go_by(self, at: int, sequence: int) -> None:
        if self._at != at:
            self.changes += 1
        if not self._at or not at:
            self._lost = 0.0
            self.direct_until = sequence
        self._at = at
        self._words[L.W_POLICY] = at
        self.share = RULES[at].share
        """The small ring's share of the limits; None where entries leave by LRU."""
        self.promote_at = RULES[at].promote_at


def name_of(rule: Rule) -> str:
    return "lru" if rule.share is None else f"s3-fifo, {rule.share:.0%} small"
