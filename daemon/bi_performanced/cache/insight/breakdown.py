"""The cache's figures by what keys begin with, and by the processes that read."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import trio

from bi_performance_wire.insight import Breakdown, OfPrefix, OfProcess
from bi_performanced.cache.clients import Attachment, boot_clock
from bi_performanced.cache.home import Home
from bi_performanced.cache.insight.ranking import shown
from bi_performanced.cache.insight.sketch import Estimate
from bi_performanced.cache.insight.watching import PREFIXES, Watch
from bi_performanced.cache.sweeping import every_entry

MOST_PREFIXES: Final = 2048
"""Prefixes that a sweep tells apart; when there are more, the smaller half becomes the rest."""


@dataclass
class Held:
    """What entries there are."""

    entries: int = 0
    size: int = 0
    unread: int = 0

    def add(self, other: Held) -> None:
        self.entries += other.entries
        self.size += other.size
        self.unread += other.unread


class Breaking:
    """Answers `cache.breakdown`."""

    def __init__(self, home: Home, watch: Watch) -> None:
        self._home = home
        self._watch = watch
        self._limiter = trio.CapacityLimiter(1)

    # ── by prefix

    async def by_prefix(self, limit: int) -> Breakdown:
        """The `limit` prefixes that take most, and all others together."""
        async with self._limiter:
            held, rest = await self._sweep()
        watch = self._watch
        await watch.look()
        spans = (watch.prefix_hits, watch.prefix_misses, watch.prefix_unread)
        asked = [{each.key: each for each in one.top(PREFIXES)} for one in spans]
        nothing = [Estimate(b"", 0.0, 0.0, one.unseen) for one in spans]
        names = held.keys() | {key for estimates in asked for key in estimates}

        def weight(name: bytes) -> tuple[float, float, bytes]:
            found = held.get(name)
            times = sum(each[name].times for each in asked if name in each)
            return (-(found.size if found else 0), -times, name)

        first = sorted(names, key=weight)
        for name in first[limit:]:
            if name in held:
                rest.add(held[name])
        rows = [
            _row(
                shown(name),
                held.get(name, Held()),
                *(each.get(name, none) for each, none in zip(asked, nothing, strict=True)),
            )
            for name in first[:limit]
        ]
        others = []
        for one, estimates in zip(spans, asked, strict=True):
            told = sum(estimates[name].times for name in first[:limit] if name in estimates)
            others.append(Estimate(b"", max(0.0, one.total - told), 0.0, one.unseen))
        other = _row(None, rest, *others) if len(first) > limit or rest.entries else None
        return Breakdown(by="prefix", prefixes=rows, other=other, seconds=watch.since)

    async def _sweep(self) -> tuple[dict[bytes, Held], Held]:
        """The entries of each prefix, and those of prefixes beyond the bound."""
        held: dict[bytes, Held] = {}
        rest = Held()

        def begin_again() -> None:
            held.clear()
            rest.entries = rest.size = rest.unread = 0

        rule = self._watch.rule
        async with aclosing(every_entry(lambda: self._home.store, begin_again)) as entries:
            async for store, entry, now in entries:
                if entry.kept_until <= now or not store.is_at(entry):
                    continue
                prefix = rule(entry.key)
                found = held.get(prefix)
                if found is None:
                    if len(held) >= MOST_PREFIXES:
                        _fold(held, rest)
                    found = held[prefix] = Held()
                found.entries += 1
                found.size += store.size_and_creation(entry.place)[0]
                found.unread += store.was_read(entry) is False
        return held, rest

    # ── by process

    def by_process(self, limit: int) -> Breakdown:
        """The `limit` attached processes that read most, and all that have left together."""
        now = boot_clock()
        clients = self._home.clients
        rows = [_process(each, now) for each in clients.attached.values()]
        rows.sort(key=lambda row: (-(row.hits + row.misses), row.pid))
        left = clients.retired
        return Breakdown(
            by="process",
            processes=rows[:limit],
            more=max(0, len(rows) - limit),
            left=OfProcess(
                name=None,
                pid=0,
                hits=left.hits,
                misses=left.misses,
                hit_rate=_rate(left.hits, left.misses),
                hit_bytes=left.hit_bytes,
            ),
        )


def _fold(held: dict[bytes, Held], rest: Held) -> None:
    """Make room: what takes least is told together."""
    for name in sorted(held, key=lambda name: held[name].size)[: MOST_PREFIXES // 2]:
        rest.add(held.pop(name))


def _rate(hits: float, misses: float) -> float | None:
    return hits / (hits + misses) if hits + misses else None


def _row(
    name: str | bytes | None, held: Held, hits: Estimate, misses: Estimate, unread: Estimate
) -> OfPrefix:
    asked = hits.times + misses.times
    error = None
    if asked:
        one, other = misses.times * hits.sampling, hits.times * misses.sampling
        error = min(1.0, (one**2 + other**2) ** 0.5 / asked**2)
    return OfPrefix(
        prefix=name,
        entries=held.entries,
        size_bytes=held.size,
        unread_entries=held.unread,
        hits=hits.times,
        misses=misses.times,
        hit_rate=_rate(hits.times, misses.times),
        hit_rate_error=error,
        evicted_unread=unread.times,
    )


def _process(attachment: Attachment, now: int) -> OfProcess:
    figures = attachment.sample(now)
    return OfProcess(
        name=attachment.name,
        pid=attachment.peer_pid or attachment.pid,
        pid_is_known=bool(attachment.peer_pid),
        instance=attachment.instance.hex(),
        uid=attachment.uid,
        attached_seconds=max(0.0, (now - attachment.attached_at) / 1e9),
        hits=figures.hits,
        misses=figures.misses,
        hit_rate=_rate(figures.hits, figures.misses),
        hit_bytes=figures.hit_bytes,
        plausible=attachment.plausible,
    )
