"""What `monitor` shows: looks at the daemon again and again, and makes rates of its counters.

The past is asked for once a connection, for it is large; from there on it grows by what each look
finds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from bi_performance.protocol import Connection, Steps, TimedOut, Unavailable
from bi_performance_ctl.console import FAILED, UNREACHABLE, Console, Exit
from bi_performance_wire.errors import WireError

PAST_SECONDS = 600.0
LATELY = 10
"""Points of the daemon's past, one a second, that are `now` before there are two looks."""
COUNTED = ("hits", "misses", "sets", "evictions")
SERIES = ("hit_rate", "hits_per_second", "cpu_percent", "memory_used_percent")

Rates = dict[str, float | None]
Drive = Callable[[Steps[Any], float], Any]


@dataclass(frozen=True)
class Point:
    """Figures of SERIES at a Unix time."""

    at: float
    figures: Rates


@dataclass(frozen=True)
class View:
    """What one look saw; while the daemon is away, what the last one saw."""

    at: float
    """Unix time of the look."""
    state: str
    """`ok`, `degraded` or `away`."""
    reasons: list[str] = field(default_factory=list)
    """Why it is not ok."""
    away_since: float | None = None
    status: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    recommendations: list[dict[str, Any]] = field(default_factory=list)
    now: Rates = field(default_factory=dict)
    """`hit_rate` (0 to 1) and the rates of COUNTED, between the last look and this one."""
    process_hits: dict[str, float] = field(default_factory=dict)
    """Hits per second of the attached processes, by instance."""
    past: tuple[Point, ...] = ()

    def document(self) -> dict[str, Any]:
        """The view as one JSON document."""
        found: dict[str, Any] = {"timestamp": self.at, "state": self.state}
        if self.reasons:
            found["reasons"] = self.reasons
        if self.away_since is not None:
            return found | {"away_since": self.away_since}
        assert self.metrics is not None
        metrics = {name: value for name, value in self.metrics.items() if name != "history"}
        processes = [
            each | {"hits_per_second": self.process_hits.get(each["instance"])}
            for each in metrics.pop("processes")
        ]
        return {
            **found,
            **metrics,
            "timestamp": self.at,
            "now": self.now,
            "processes": processes,
            "recommendations": self.recommendations,
        }


class Watcher:
    """Asks one daemon, over one connection as long as it lasts. Closed by its owner."""

    def __init__(
        self, console: Console, drive: Drive, clock: Callable[[], float] = time.time
    ) -> None:
        """`drive` runs an exchange and may be interrupted by what it waits for besides."""
        self._console = console
        self.drive = drive
        self._clock = clock
        self._connection: Connection | None = None
        self._past: deque[Point] = deque()
        self._last: View | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def look(self) -> View:
        """Ask the daemon. Raises Exit when it never answered before."""
        if self._last is None:
            # Says best why nobody answers.
            self._console.ask("ping")
        try:
            self._last = self._ask_again_if_cut_off()
        except WireError as error:
            self._away(FAILED, f"{error.code}: {error.message}")
        except Unavailable as error:
            self._away(UNREACHABLE, str(error))
        except OSError as error:
            self._away(UNREACHABLE, error.strerror or str(error))
        except Exit as error:
            self._away(error.status, error.message.partition(".")[0])
        assert self._last is not None
        return self._last

    def _ask_again_if_cut_off(self) -> View:
        """Ask; once more anew when the connection was kept and turns out to be dead."""
        kept = self._connection is not None
        try:
            return self._ask()
        except TimedOut:
            raise
        except (OSError, Unavailable):
            if not kept:
                raise
        return self._ask()

    def _away(self, status: int, reason: str) -> None:
        """Keep what was seen last, and say since when nothing more is."""
        self.close()
        last = self._last
        if last is None:
            raise Exit(status, f"the daemon cannot be watched: {reason}")
        now = self._clock()
        since = last.away_since if last.away_since is not None else now
        self._last = View(
            at=now,
            state="away",
            reasons=[reason],
            away_since=since,
            status=last.status,
            metrics=last.metrics,
            recommendations=last.recommendations,
            past=last.past,
        )

    def _ask(self) -> View:
        fresh = self._connection is None
        if self._connection is None:
            self._connection = Connection(self._console.find_socket())
        try:
            status = self._request("status")
            metrics = self._request("metrics", {"history": "seconds"} if fresh else None)
            advice = self._request("recommendations")["recommendations"]
        except BaseException:
            # Half an exchange: what comes next on this connection answers nobody.
            self.close()
            raise
        if fresh:
            self._past = deque(_points(metrics["history"]))
        before = None if fresh or self._last is None else self._last.metrics
        now = _rates(before, metrics) or _lately(metrics.get("history"))
        system = metrics["system"]
        if not fresh:
            figures = {
                "hit_rate": now.get("hit_rate"),
                "hits_per_second": now.get("hits_per_second"),
                "cpu_percent": system.get("cpu_percent"),
                "memory_used_percent": system.get("memory_used_percent"),
            }
            self._past.append(Point(metrics["timestamp"], figures))
        while self._past and self._past[0].at < metrics["timestamp"] - PAST_SECONDS:
            self._past.popleft()
        return View(
            at=metrics["timestamp"],
            state=status["status"],
            reasons=[
                f"{name}: {part['reason']}"
                for name, part in status["components"].items()
                if part["status"] == "degraded" and part.get("reason")
            ],
            status=status,
            metrics=metrics,
            recommendations=advice,
            now=now,
            process_hits=_process_hits(before, metrics),
            past=tuple(self._past),
        )

    def _request(self, method: str, args: dict[str, Any] | None = None) -> Any:
        assert self._connection is not None
        return self.drive(self._connection.exchange(method, args), self._console.seconds)


def _seconds_between(before: dict[str, Any] | None, after: dict[str, Any]) -> float | None:
    """By the daemon's own clock; None when it is another daemon than before."""
    if before is None:
        return None
    seconds: float = after["uptime_seconds"] - before["uptime_seconds"]
    return seconds if seconds > 0 else None


def _rates(before: dict[str, Any] | None, after: dict[str, Any]) -> Rates:
    """The rates between two looks; empty when there are no two."""
    seconds = _seconds_between(before, after)
    if before is None or seconds is None:
        return {}
    grown = {name: max(0, after["cache"][name] - before["cache"][name]) for name in COUNTED}
    reads = grown["hits"] + grown["misses"]
    rates: Rates = {f"{name}_per_second": value / seconds for name, value in grown.items()}
    return {"hit_rate": grown["hits"] / reads if reads else None, **rates}


def _lately(history: dict[str, Any] | None) -> Rates:
    """The same from the last points of the daemon's past; unknown where it has none."""
    found: Rates = {}
    for name in COUNTED:
        values = (history or {"series": {}})["series"].get(f"cache_{name}_per_second", [])
        known = [value for value in values[-LATELY:] if value is not None]
        found[f"{name}_per_second"] = sum(known) / len(known) if known else None
    hits, misses = found["hits_per_second"], found["misses_per_second"]
    reads = hits + misses if hits is not None and misses is not None else 0
    return {"hit_rate": hits / reads if hits is not None and reads else None, **found}


def _process_hits(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, float]:
    seconds = _seconds_between(before, after)
    if before is None or seconds is None:
        return {}
    earlier = {each["instance"]: each["hits"] for each in before["processes"]}
    return {
        each["instance"]: max(0, each["hits"] - earlier[each["instance"]]) / seconds
        for each in after["processes"]
        if each["instance"] in earlier
    }


def _points(history: dict[str, Any]) -> list[Point]:
    series = history["series"]
    columns = {name: series.get(name) or series.get(f"cache_{name}") or [] for name in SERIES}
    found = []
    for at, when in enumerate(history["timestamps"]):
        figures: Rates = {}
        for name, values in columns.items():
            with suppress(IndexError):
                figures[name] = values[at]
        found.append(Point(when, figures))
    return found
