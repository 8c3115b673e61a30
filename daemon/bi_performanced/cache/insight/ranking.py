"""The hottest keys, those missed most, the largest, the oldest, and those that nobody reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from heapq import heappush, heappushpop
from typing import Any, Final

import trio

from bi_performance_wire import layout as L
from bi_performance_wire.insight import Top, TopKey
from bi_performanced.cache.clients import boot_clock
from bi_performanced.cache.home import Home
from bi_performanced.cache.index import NONE
from bi_performanced.cache.insight.watching import KEYS, Watch, uncut
from bi_performanced.cache.store import Store
from bi_performanced.cache.sweeping import every_entry

SWEEPS: Final = 1
"""Sweeps over all entries at one time."""


class Ranking:
    """Answers `cache.top`."""

    def __init__(self, home: Home, watch: Watch) -> None:
        self._home = home
        self._watch = watch
        self._limiter = trio.CapacityLimiter(SWEEPS)

    async def top(self, by: str, limit: int) -> Top:
        """The first so many by `hits`, `misses`, `size`, `age` or `cold`."""
        if by in ("hits", "misses"):
            await self._watch.look()
            return self._most_asked(by, limit)
        async with self._limiter:
            return await self._swept(by, limit)

    # ── from the sketches

    def _most_asked(self, by: str, limit: int) -> Top:
        watch = self._watch
        spans = watch.hits if by == "hits" else watch.misses
        keys = []
        for each in spans.top(min(limit, KEYS)):
            name, cut = uncut(each.key) if by == "misses" else (each.key, False)
            keys.append(
                TopKey(
                    key=shown(name),
                    cut=cut,
                    count=each.times,
                    at_least=max(0.0, each.times - each.over - each.sampling),
                    at_most=each.times + each.sampling,
                    **({} if cut else self._here(name)),
                )
            )
        return Top(
            by=by,
            keys=keys,
            seconds=watch.since,
            counted=spans.total,
            unnamed=watch.unnamed if by == "hits" else 0.0,
        )

    def _here(self, key: bytes) -> dict[str, Any]:
        """What the store has of a key now."""
        store = self._home.store
        slot = store.find(key, store.digest(key))
        if slot == NONE:
            return {"here": False}
        place = store.index.cells[slot] & L.PLACE
        return {"here": True, **_facts(store, place, store.times_at(slot, 0)[0], boot_clock())}

    # ── from a sweep

    async def _swept(self, by: str, limit: int) -> Top:
        largest: list[tuple[float, int, TopKey]] = []
        entries = read = unread = unread_bytes = 0
        measure = _MEASURES[by]

        def begin_again() -> None:
            nonlocal entries, read, unread, unread_bytes
            largest.clear()
            entries = read = unread = unread_bytes = 0

        async with aclosing(every_entry(lambda: self._home.store, begin_again)) as found:
            async for store, entry, now in found:
                if entry.kept_until <= now or not store.is_at(entry):
                    # It may have moved or gone since the slice began.
                    continue
                entries += 1
                facts = _facts(store, entry.place, entry.fresh_until, now)
                if by == "cold":
                    was_read = store.was_read(entry)
                    read += was_read is True
                    if was_read is not False:
                        continue
                    unread += 1
                    unread_bytes += facts["stored_bytes"]
                score = measure(facts)
                if len(largest) < limit:
                    item = score, entries, TopKey(key=shown(entry.key), here=True, **facts)
                    heappush(largest, item)
                elif score > largest[0][0]:
                    item = score, entries, TopKey(key=shown(entry.key), here=True, **facts)
                    heappushpop(largest, item)
        keys = [key for _, _, key in sorted(largest, key=lambda item: (-item[0], item[1]))]
        return Top(
            by=by,
            keys=keys,
            entries=entries,
            unread=unread if by == "cold" else None,
            unread_bytes=unread_bytes if by == "cold" else None,
            unknown=entries - read - unread if by == "cold" else None,
        )


_MEASURES: Final[dict[str, Callable[[dict[str, Any]], float]]] = {
    "size": lambda facts: float(facts["stored_bytes"]),
    "age": lambda facts: float(facts["age_seconds"]),
    "cold": lambda facts: float(facts["age_seconds"]),
}


def _facts(store: Store, place: int, fresh_until: int, now: int) -> dict[str, Any]:
    size, created = store.size_and_creation(place)
    return {
        "stored_bytes": size,
        "age_seconds": max(0.0, now / 1e9 - created / 10),
        "ttl_seconds": max(0.0, (fresh_until - now) / 1e9),
    }


def shown(key: bytes) -> str | bytes:
    """Text where it is valid UTF-8."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key
