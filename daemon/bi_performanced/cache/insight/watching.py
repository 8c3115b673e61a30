"""Which keys are hot, which are missed most, and what left unread: gathered four times a second.

Readers note of some 256 hits one, and of the misses some twenty a second, in pages of their own;
nothing is sent, and a hit costs what it did. Here the notes are added up, in sketches of a fixed
size, for the span of time that goes on and the one before it. What a process notes it could have
made up; nothing here decides what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import randint
from typing import Final

import trio

from bi_performance_wire import layout as L
from bi_performanced.cache.clients import Attachment, boot_clock
from bi_performanced.cache.departures import KEPT, Tally
from bi_performanced.cache.home import Home
from bi_performanced.cache.insight.configured import Configured, count
from bi_performanced.cache.insight.prefixes import Rule, rule_of
from bi_performanced.cache.insight.sketch import Spans
from bi_performanced.cache.sweeping import SLICE

EVERY: Final = 0.25
"""Seconds between two looks at the pages. A process that hits more than 30,000 times a second has
overwritten some of its notes by then: those that are left stand for all."""
SPAN: Final = 900.0
"""Seconds of a span."""
KEYS: Final = 256
"""Keys in a sketch. All of them together take 0.5 MiB, and 4 MiB more where keys have 8 KiB."""
PREFIXES: Final = 256
ASKED_EVERY: Final = 8
_CUT: Final = b"\0\xff"
MOST_AT_ONCE: Final = 512
LEAST_AT_ONCE: Final = 2
"""Notes of hits that are taken in at a look, of all processes and of each at the least: of more,
each stands for some."""


class Watch:
    """The sketches, and what feeds them. `run` must be running."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.configured = Configured(home.settings.prefixes)
        self.rule: Rule = rule_of(self.configured.names)
        self.hits = Spans(KEYS)
        self.misses = Spans(KEYS)
        self.prefix_hits = Spans(PREFIXES)
        self.prefix_misses = Spans(PREFIXES)
        self.prefix_unread = Spans(PREFIXES)
        """Evicted without having been read."""
        self.unnamed = 0.0
        """Hits on keys that had left before they were looked up."""
        self._unread_of: Tally | None = None
        self._unread_seen = 0
        self._skip = 0
        self._before = self._span_began = _seconds()
        home.clients.on_close = self.look_at

    @property
    def since(self) -> float:
        """Seconds that the figures are of."""
        return _seconds() - self._before

    async def run(self) -> None:
        """Look at the pages again and again, until cancelled."""
        while True:
            await trio.sleep(EVERY)
            await self.look()

    async def look(self) -> None:
        """Take in what was noted since the last time, in slices that let others run."""
        attached = list(self._home.clients.attached.values())
        most = max(LEAST_AT_ONCE, MOST_AT_ONCE // max(1, len(attached)))
        ends = trio.current_time() + SLICE
        for attachment in attached:
            self.look_at(attachment, most)
            if trio.current_time() >= ends:
                await trio.lowlevel.checkpoint()
                ends = trio.current_time() + SLICE
        self._look_at_unread()
        self.configured.sweep(self._home.store, boot_clock())
        if _seconds() - self._span_began >= SPAN:
            for spans in self._all:
                spans.rotate()
            self._before, self._span_began = self._span_began, _seconds()

    @property
    def _all(self) -> tuple[Spans, ...]:
        return (
            self.hits,
            self.misses,
            self.prefix_hits,
            self.prefix_misses,
            self.prefix_unread,
        )

    def look_at(self, attachment: Attachment, most: int = L.HOT_WORDS) -> None:
        """Take in what one process has noted, `most` of its hits."""
        noted = attachment.noted(boot_clock())
        if noted.hits:
            step = -(-len(noted.hits) // most)
            for digest in noted.hits[::step]:
                key = self._home.store.key_of(digest)
                if key is None:
                    self.unnamed += noted.hit_weight * step
                else:
                    self.hit(key, noted.hit_weight * step)
        for missed in noted.misses:
            self.miss(missed.beginning, missed.length, noted.miss_weight, missed.digest)

    def hit(self, key: bytes, weight: float) -> None:
        """A hit that stands for so many."""
        self.hits.now.add(key, weight)
        prefix = self.rule(key)
        self.prefix_hits.now.add(prefix, weight)
        count(self.configured.hits, prefix, weight)

    def miss(self, key: bytes, length: int, weight: float, digest: int | None = None) -> None:
        """A miss that stands for so many, of a key or the beginning of a long one."""
        name = key[: L.MISSED_BYTES]
        if length > len(name):
            # Told apart by their hashes: two long keys may begin alike.
            digest = self._home.store.digest(key) if digest is None else digest
            name += _CUT + digest.to_bytes(8, "little")
        self.misses.now.add(name, weight)
        prefix = self.rule(key)
        self.prefix_misses.now.add(prefix, weight)
        count(self.configured.misses, prefix, weight)

    def asked(self, keys: Sequence[bytes], found: Sequence[bytes | None]) -> None:
        """The daemon itself has answered a request: of its keys some eighth counts."""
        at = self._skip
        while at < len(keys):
            if found[at] is None:
                self.miss(keys[at], len(keys[at]), ASKED_EVERY)
            else:
                self.hit(keys[at], ASKED_EVERY)
            at += randint(1, 2 * ASKED_EVERY - 1)
        self._skip = at - len(keys)

    def _look_at_unread(self) -> None:
        """Of those that were evicted unread, all that are remembered, or the latest of many."""
        tally = self._home.store.departures.now
        if tally is not self._unread_of:
            self._unread_of, self._unread_seen = tally, 0
        new = tally.unread - self._unread_seen
        if not new:
            return
        self._unread_seen = tally.unread
        looked = min(new, KEPT)
        for at in range(tally.unread - looked, tally.unread):
            key, _, evicted = tally.keys[at % KEPT]
            if evicted:
                prefix = self.rule(key)
                self.prefix_unread.now.add(prefix, new / looked, sampled=looked < new)
                count(self.configured.unread, prefix, new / looked)


def uncut(name: bytes) -> tuple[bytes, bool]:
    """A missed key as it is to be shown, and whether it is only the beginning of one."""
    cut = len(name) > L.MISSED_BYTES
    return (name[: L.MISSED_BYTES] if cut else name), cut


def _seconds() -> float:
    """Seconds on the boot clock."""
    return boot_clock() / 1e9
