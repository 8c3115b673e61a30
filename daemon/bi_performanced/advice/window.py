"""What the cache and the host did lately: the evidence that recommendations rest on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bi_performance_wire.types import CacheCurve
from bi_performanced.cache.component import Cache
from bi_performanced.cache.departures import Tally
from bi_performanced.config.settings import Settings
from bi_performanced.monitor.component import Monitor

LATELY = 30
"""Seconds over which the host's memory is looked at: a peak of a moment is none of our business."""


class Mark(NamedTuple):
    """Cumulative figures at a moment (seconds on a clock that only advances)."""

    at: float
    figures: dict[str, int]
    live_bytes: int


@dataclass(frozen=True)
class Evidence:
    """All that a rule may look at."""

    seconds: float
    """How far back `grown` and `peak_live_bytes` go."""
    whole: bool
    """Whether that is the whole window, or only what has passed since the last change."""
    grown: dict[str, int]
    """By how much each counter grew."""
    peak_live_bytes: int
    entries: int
    max_entries: int
    live_bytes: int
    max_bytes: int
    """What `cache.max_bytes` is."""
    budget: int
    """What of it the store may have while memory is short."""
    budget_reason: str | None
    store_limit: int
    """Bytes of live entries that the store in service can hold, without growing."""
    store_bytes: int
    """Bytes that its file takes."""
    room: int
    """Bytes that `cache.max_bytes` could be on this host."""
    default_ttl: float
    compression: bool
    departures: Tally
    used: Callable[[bytes], tuple[int, int]]
    """Of entries whose key begins with a prefix: how many were looked at, and how many are read."""
    profile: str
    raised: frozenset[str]
    """What was recommended at the last look."""
    host: dict[str, list[float]]
    """The known values of the last LATELY seconds, one a second."""
    curve: CacheCurve | None = None

    @property
    def reads(self) -> int:
        return self.grown["hits"] + self.grown["misses"]

    @property
    def hit_rate(self) -> float:
        return self.grown["hits"] / self.reads if self.reads else 0.0


HOST = (
    "memory_used_percent",
    "memory_total_bytes",
    "pressure_memory_some_percent",
    "cgroup_memory_bytes",
    "cgroup_memory_limit_bytes",
)


class Window:
    """Marks of the last `seconds`, begun anew whenever a setting or the entries are changed."""

    def __init__(self, cache: Cache, monitor: Monitor, seconds: float, now: float) -> None:
        self._cache = cache
        self._monitor = monitor
        self._seconds = seconds
        self._marks: deque[Mark] = deque()
        self.restart(now)

    def restart(self, now: float) -> None:
        """Forget what was: it rests on other settings or other entries."""
        self._cache.departures.restart()
        self._cache.restart_curve()
        self._restarted_at = self._rotated_at = now
        self._marks.clear()
        self._marks.append(self._mark(now))

    def _mark(self, now: float) -> Mark:
        stats = self._cache.stats()
        local: dict[str, Any] = stats.levels.local
        figures = {
            name: getattr(stats, name)
            for name in ("hits", "misses", "sets", "evictions", "expirations")
        }
        figures |= {name: local[name] for name in ("inserts", "returns", "default_ttl_sets")}
        figures["refilled"] = self._cache.departures.refilled
        figures |= {f"compression_{name}": value for name, value in local["compression"].items()}
        return Mark(now, figures, stats.size_bytes)

    def look(
        self, now: float, settings: Settings, profile: str, raised: frozenset[str]
    ) -> Evidence:
        """Add a mark, and what can be told since the oldest that is within the window."""
        marks = self._marks
        marks.append(self._mark(now))
        # The mark before the window's edge stays: the figures grew from there.
        while len(marks) > 2 and marks[1].at <= now - self._seconds:
            marks.popleft()
        if now - self._rotated_at >= self._seconds / 2:
            self._cache.departures.rotate()
            self._rotated_at = now
        first, last = marks[0], marks[-1]
        cache, stats = self._cache, self._cache.stats()
        local: dict[str, Any] = stats.levels.local
        store_limit, store_bytes = cache.allocated
        return Evidence(
            seconds=last.at - first.at,
            whole=last.at - first.at >= self._seconds,
            grown={name: value - first.figures[name] for name, value in last.figures.items()},
            peak_live_bytes=max(mark.live_bytes for mark in marks),
            entries=stats.entries,
            max_entries=stats.max_entries,
            live_bytes=stats.size_bytes,
            max_bytes=stats.max_bytes,
            budget=local["budget_bytes"],
            budget_reason=local["budget_reason"],
            store_limit=store_limit,
            store_bytes=store_bytes,
            room=cache.room(),
            default_ttl=settings.cache.default_ttl,
            compression=settings.cache.compression,
            departures=cache.departures.tally(),
            used=cache.used,
            profile=profile,
            raised=raised,
            host={name: self._known(name, now - self._restarted_at) for name in HOST},
            curve=cache.curve(),
        )

    def _known(self, name: str, seconds: float) -> list[float]:
        # A sample of before the last change says nothing of what is now.
        newest = self._monitor.recent(name, min(LATELY, int(seconds)))
        return [value for value in newest if value is not None]
