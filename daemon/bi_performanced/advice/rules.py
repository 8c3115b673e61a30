"""The rules: what is recommended, on what evidence, and by which command.

Each rule is a function of the evidence that returns a finding or None. None of them speaks before
its minimum sample, and all are silent on a cache that serves most reads without losing anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from bi_performance_wire.types import CacheCurve, Severity
from bi_performanced.advice import sizes
from bi_performanced.advice.window import Evidence
from bi_performanced.cache.opening import START_BYTES

MIN_READS: Final = 1000
MIN_SETS: Final = 200
GOOD_HIT_RATE: Final = 0.9
"""Above this share of reads that hit, nothing is said about misses."""
RETURNS: Final = 0.1
"""Share of new entries that had been evicted lately, from which the store is too small: within so
many evictions as four times the entries."""
REFILLS: Final = 0.5
"""Share of new entries that had expired, from which the time to live is too short."""
LONGER: Final = 4
"""By how much the time to live is made longer at least, so that most reloads are spared."""
WANTED_AGAIN: Final = 0.9
"""Share of the refills that came within the age which is told and gone by."""
LONGEST_TTL: Final = 86_400.0
UNCOMPRESSED: Final = 0.1
"""Share of the large values that took less room compressed, below which trying is not worth it."""
UNREAD: Final = 0.5
"""Share of the departed entries that nobody read, from which a prefix is named."""
MIN_LOOKED_AT: Final = 20
MOST_READ: Final = 0.1
"""Share of the entries of a prefix that are read, above which they are not to be cleared."""
FULL: Final = 0.9
"""The share of a limit from which the cache is full."""
ROOM_TO_GROW: Final = 4
"""A store that could be halved, and would still hold so many times what was ever in it, is too
large."""
SMALLEST_STORE: Final = 4 << 20
PRESSURE_SAMPLES: Final = 10
CALM: Final = 0.94
"""Times the limit, below which pressure that was told of is over."""
WORTH: Final = 0.05
"""Share of the memory that is short, from which the store is worth shrinking."""
MEMORY_USED: Final = 90.0
STALLED: Final = 10.0
"""Percent of the time in which some task waited for memory."""


class Finding(NamedTuple):
    """A recommendation as a rule makes it; the advisor adds since when."""

    id: str
    severity: Severity
    title: str
    evidence: dict[str, Any]
    action: str
    command: str
    expected_effect: str
    secret: str | None = None
    """A part of a key, which is not told on open routes."""


Rule = Callable[[Evidence], Finding | None]


def _evidence(seen: Evidence, sample: int, **figures: Any) -> dict[str, Any]:
    return {**figures, "window_seconds": round(seen.seconds, 1), "sample": sample}


def _size(count: float) -> str:
    return f"{count / (1 << 20):.0f} MiB"


def _set(key: str, value: object) -> str:
    return f"bi-performance config set {key} {value}"


def _seconds(count: float) -> str:
    return f"{count:.0f} s" if count < 7200 else f"{count / 3600:.0f} h"


def too_small(seen: Evidence) -> Finding | None:
    """Low hit rate with evictions: what was evicted is asked for again."""
    grown = seen.grown
    inserts = grown["inserts"]
    if seen.reads < MIN_READS or inserts < MIN_SETS or not grown["evictions"]:
        return None
    if seen.curve is not None and sizes.knows_larger(seen.curve):
        # Better evidence than how many come back.
        return _too_small_by_curve(seen, seen.curve)
    returns = grown["returns"] / inserts
    if seen.hit_rate >= GOOD_HIT_RATE or returns < RETURNS:
        return None
    if memory_pressure(seen) is not None:
        # One thing at a time: what is short now is memory.
        return None
    evidence = _evidence(
        seen,
        seen.reads,
        hit_rate=round(seen.hit_rate, 4),
        evictions=grown["evictions"],
        new_entries=inserts,
        new_entries_evicted_before=grown["returns"],
        entries=seen.entries,
        max_entries=seen.max_entries,
        size_bytes=seen.live_bytes,
        max_bytes=seen.max_bytes,
    )
    title = f"{returns:.0%} of what is stored had been evicted shortly before"
    effect = (
        f"most of the {grown['returns']:,} misses on evicted entries become hits: the hit rate"
        f" rises from {seen.hit_rate:.0%} towards"
        f" {min(1.0, (grown['hits'] + grown['returns']) / seen.reads):.0%}"
    )
    if seen.entries >= 0.9 * seen.max_entries:
        return Finding(
            "cache.too_small",
            "warning",
            title,
            evidence,
            "Keep more entries.",
            _set("cache.max_size", 2 * seen.max_entries),
            effect,
        )
    limit = min(2 * seen.max_bytes, seen.room)
    if limit <= seen.max_bytes:
        return None
    return Finding(
        "cache.too_small",
        "warning",
        title,
        evidence,
        "Let the cache take more memory.",
        _set("cache.max_bytes", limit),
        effect,
    )


def _too_small_by_curve(seen: Evidence, curve: CacheCurve) -> Finding | None:
    if seen.hit_rate >= GOOD_HIT_RATE or memory_pressure(seen) is not None:
        return None
    in_bytes = curve.limit == "bytes"
    # More entries than there are bytes for would be another limit, of which the curve says nothing.
    most = seen.room / seen.max_bytes if in_bytes else seen.max_bytes / max(1, seen.live_bytes)
    to = sizes.larger(curve, most)
    if to is None:
        return None
    now = sizes.rate_at(curve, 1.0) or seen.hit_rate
    return Finding(
        "cache.too_small",
        "warning",
        f"{to.point.size:g} times as large, the cache would hit"
        f" {100 * (to.hit_rate - now):.0f} points more",
        {
            **sizes.evidence(curve, to),
            "evictions": seen.grown["evictions"],
            "entries": seen.entries,
            "max_entries": seen.max_entries,
            "size_bytes": seen.live_bytes,
            "max_bytes": seen.max_bytes,
            "window_seconds": round(curve.window_seconds, 1),
            "sample": curve.reads,
        },
        "Let the cache take more memory." if in_bytes else "Keep more entries.",
        _set("cache.max_bytes" if in_bytes else "cache.max_size", to.limit),
        f"the hit rate rises from {now:.1%} to {to.hit_rate:.1%},"
        f" give or take {100 * (to.point.margin or 0):.1f} points of the sampling:"
        " bi-performance cache curve draws it",
    )


def larger_than_needed(seen: Evidence) -> Finding | None:
    """A full cache that would hit as much with half of its entries."""
    curve, full = seen.curve, FULL * seen.max_entries
    if curve is None or seen.reads < MIN_READS or memory_pressure(seen) is not None:
        return None
    if seen.entries < full and seen.live_bytes < FULL * seen.max_bytes:
        return None
    to = sizes.smaller(curve)
    spared = 0.0 if to is None else (1 - to.point.size) * seen.live_bytes
    if to is None or spared < SMALLEST_STORE:
        return None
    now = sizes.rate_at(curve, 1.0) or seen.hit_rate
    in_bytes = curve.limit == "bytes"
    return Finding(
        "cache.larger_than_needed",
        "info",
        f"with {to.point.size:.0%} of its size the cache would hit as much",
        {
            **sizes.evidence(curve, to),
            "entries": seen.entries,
            "max_entries": seen.max_entries,
            "size_bytes": seen.live_bytes,
            "max_bytes": seen.max_bytes,
            "window_seconds": round(curve.window_seconds, 1),
            "sample": curve.reads,
        },
        "Keep less." if in_bytes else "Keep fewer entries.",
        _set("cache.max_bytes" if in_bytes else "cache.max_size", to.limit),
        f"entries take some {_size(spared)} less, and the hit rate goes from {now:.1%}"
        f" to {to.hit_rate:.1%}",
    )


def expiry(seen: Evidence) -> Finding | None:
    """Misses dominated by expiry: what expired is stored again soon after."""
    inserts, refilled = seen.grown["inserts"], seen.grown["refilled"]
    if seen.reads < MIN_READS or inserts < MIN_SETS or seen.hit_rate >= GOOD_HIT_RATE:
        return None
    if refilled < REFILLS * inserts or 2 * seen.grown["default_ttl_sets"] < seen.grown["sets"]:
        return None
    age = seen.departures.age_of_refills(WANTED_AGAIN)
    if age is None:
        return None
    ttl = min(LONGEST_TTL, max(LONGER * seen.default_ttl, 2 * age))
    if ttl <= seen.default_ttl:
        return None
    return Finding(
        "cache.expiry",
        "warning",
        f"{refilled / inserts:.0%} of what is stored had been there until it expired",
        _evidence(
            seen,
            seen.reads,
            hit_rate=round(seen.hit_rate, 4),
            new_entries=inserts,
            new_entries_expired_before=refilled,
            wanted_again_within_seconds=round(age, 1),
            default_ttl=seen.default_ttl,
        ),
        "Serve entries for longer, if what they hold stays right for as long.",
        _set("cache.default_ttl", f"{ttl:g}"),
        f"one load serves the reads of {_seconds(ttl)} instead of {_seconds(seen.default_ttl)}:"
        f" most of those {refilled:,} reloads become hits",
    )


def incompressible(seen: Evidence) -> Finding | None:
    """Values that do not compress: each is tried, and stored as it was."""
    tried, kept = seen.grown["compression_tried"], seen.grown["compression_kept"]
    if not seen.compression or tried < MIN_SETS or kept > UNCOMPRESSED * tried:
        return None
    vain = seen.grown["compression_tried_bytes"]
    return Finding(
        "cache.incompressible",
        "info",
        f"{tried - kept:,} of {tried:,} large values were compressed in vain",
        _evidence(seen, tried, kept_compressed=kept, bytes_in_vain=vain),
        "Store values as they are.",
        _set("cache.compression", "false"),
        f"the scrapers' processors are spared compressing {_size(vain)} in"
        f" {seen.seconds:.0f} seconds",
    )


def never_read(seen: Evidence) -> Finding | None:
    """Keys that are written and never read."""
    departures = seen.departures
    if departures.left < MIN_SETS or departures.unread < UNREAD * departures.left:
        return None
    prefix, (count, size) = max(departures.prefixes().items(), key=lambda item: item[1][0])
    if count < UNREAD * len(departures.keys):
        return None
    there, read = seen.used(prefix)
    if there < MIN_LOOKED_AT or read > MOST_READ * there:
        # Of keys of which some are read it is not known which to leave out.
        return None
    try:
        shown = prefix.decode()
    except UnicodeDecodeError:
        return None
    if not shown.isprintable():
        # It could not be pasted as it is shown.
        return None
    pattern = re.sub(r"([*?\[])", r"[\1]", shown.replace("\\", "\\\\")) + "*"
    return Finding(
        "cache.never_read",
        "info",
        f"{departures.unread / departures.left:.0%} of the entries that left had never been read",
        _evidence(
            seen,
            departures.left,
            left_unread=departures.unread,
            prefix=shown,
            prefix_looked_at=there,
            prefix_read=read,
            prefix_of_the_latest=round(count / len(departures.keys), 3),
            prefix_entry_bytes=size // count,
        ),
        "Clear these keys, and do not store them, or for a shorter time.",
        f"bi-performance clear-cache --pattern={shlex.quote(pattern)}",
        "room for entries that are read: what leaves for them now stays",
        secret=shown,
    )


def oversized(seen: Evidence) -> Finding | None:
    """A store that is much larger than what was ever in it."""
    if not seen.whole or seen.reads < MIN_READS or not seen.peak_live_bytes:
        return None
    wanted = max(START_BYTES, _whole_mib(ROOM_TO_GROW * seen.peak_live_bytes))
    if wanted > seen.store_limit // 2:
        return None
    freed = round(seen.store_bytes * (1 - wanted / seen.store_limit))
    return Finding(
        "cache.oversized",
        "info",
        f"the store takes {_size(seen.store_bytes)} for at most {_size(seen.peak_live_bytes)}",
        _evidence(
            seen,
            seen.reads,
            entries=seen.entries,
            store_bytes=seen.store_bytes,
            peak_size_bytes=seen.peak_live_bytes,
        ),
        "Give the memory back.",
        _set("cache.max_bytes", wanted),
        f"some {_size(freed)} of memory are free again",
    )


def shrunk(seen: Evidence) -> Finding | None:
    """A store that had to be made smaller because memory was short."""
    if seen.budget >= seen.max_bytes:
        return None
    return Finding(
        "cache.shrunk",
        "warning",
        f"memory is or was short: the store may have {_size(seen.budget)}"
        f" of {_size(seen.max_bytes)}",
        _evidence(
            seen,
            seen.reads,
            budget_bytes=seen.budget,
            max_bytes=seen.max_bytes,
            reason=seen.budget_reason,
        ),
        "Give the host more memory or less to do, or have the store keep the smaller size.",
        _set("cache.max_bytes", seen.budget),
        "the store stays as it is, instead of growing back and shrinking again",
    )


def _whole_mib(count: int) -> int:
    return (count + (1 << 20) - 1) >> 20 << 20


def memory_pressure(seen: Evidence) -> Finding | None:
    """The host, or the control group, is about to run out of memory."""
    found = _pressed(seen.host, raised="memory.pressure" in seen.raised)
    if found is None:
        return None
    title, sample, figures, total = found
    evidence = _evidence(seen, sample, **figures, store_bytes=seen.store_bytes)
    evidence["window_seconds"] = sample
    focused = seen.max_bytes // 2
    # A store that is a small part of what is short would be given up for nothing.
    worth = seen.store_limit > SMALLEST_STORE and seen.store_bytes > WORTH * total
    if worth and seen.profile == "balanced" and focused < seen.store_limit:
        command, left = "bi-performance optimize memory_focused", focused
    elif worth:
        left = max(SMALLEST_STORE, seen.store_limit // 2)
        command = _set("cache.max_bytes", left)
    else:
        return Finding(
            "memory.pressure",
            "critical",
            title,
            evidence,
            "The cache is small already: run fewer processes, or give the host more memory.",
            "bi-performance metrics",
            "it shows which process takes how much",
        )
    freed = seen.store_bytes * (1 - left / seen.store_limit)
    cost = _cost_of(seen, left)
    return Finding(
        "memory.pressure",
        "critical",
        title,
        evidence,
        "Let the cache take less.",
        command,
        f"some {_size(freed)} of memory are free at once{cost}",
    )


def _cost_of(seen: Evidence, left: int) -> str:
    """What so few bytes would cost in hits, where the curve tells."""
    curve = seen.curve
    size = left / max(1, seen.live_bytes)
    now, then = (
        (None, None)
        if curve is None
        else (
            sizes.rate_at(curve, 1.0),
            sizes.rate_at(curve, min(1.0, size)),
        )
    )
    if now is None or then is None:
        return ""
    return f"; the hit rate goes from {now:.1%} to {then:.1%}"


def _pressed(
    host: dict[str, list[float]], *, raised: bool
) -> tuple[str, int, dict[str, float], float] | None:
    """What is short, over how many samples, the figures, and how much there is of it in bytes.

    What was `raised` stays until it is well below the limit.
    """
    calm = CALM if raised else 1.0
    total = host["memory_total_bytes"][-1] if host["memory_total_bytes"] else 0.0
    used, limits = host["cgroup_memory_bytes"], host["cgroup_memory_limit_bytes"]
    count = min(len(used), len(limits))
    if count >= PRESSURE_SAMPLES:
        pairs = zip(used[-PRESSURE_SAMPLES:], limits[-PRESSURE_SAMPLES:], strict=True)
        lately = min(100 * use / limit for use, limit in pairs)
        if lately > calm * MEMORY_USED:
            title = f"the control group uses {lately:.0f} % of the memory it may"
            figures = {"cgroup_memory_used_percent": round(lately, 1)}
            figures["cgroup_memory_limit_bytes"] = limits[-1]
            return title, PRESSURE_SAMPLES, figures, limits[-1]
    percents = host["memory_used_percent"][-PRESSURE_SAMPLES:]
    if len(percents) == PRESSURE_SAMPLES and min(percents) > calm * MEMORY_USED:
        figures = {"memory_used_percent": round(min(percents), 1)}
        return f"{min(percents):.0f} % of the host's memory is used", len(percents), figures, total
    stalls = host["pressure_memory_some_percent"][-PRESSURE_SAMPLES:]
    if len(stalls) == PRESSURE_SAMPLES and min(stalls) > calm * STALLED:
        figures = {"pressure_memory_some_percent": round(min(stalls), 1)}
        return f"tasks wait for memory {min(stalls):.0f} % of the time", len(stalls), figures, total
    return None


RULES: Final[tuple[Rule, ...]] = (
    memory_pressure,
    shrunk,
    too_small,
    expiry,
    never_read,
    incompressible,
    oversized,
    larger_than_needed,
)
"""In the order in which they are shown."""
