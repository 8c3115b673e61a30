"""The hit rate by the cache's size: a chart of blocks, and the figures below it."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, floor, log2
from typing import Any

from bi_performance_ctl.console import Console
from bi_performance_ctl.render.prose import fold, heading
from bi_performance_ctl.render.units import UNKNOWN, count, duration, share, size

_BLOCKS = " ▁▂▃▄▅▆▇█"
ROWS = 10
WIDEST = 72
"""Columns of the chart itself at the most; what stands beside it are AXIS columns more."""
AXIS = 7
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""What two lines of the axis may lie apart, in hit rate."""


def curve(result: dict[str, Any], console: Console) -> str:
    """What the cache would hit at other sizes, with what that rests on."""
    points = result["points"]
    limits = [_limit(point) for point in points]
    lines = [
        heading("Hit rate by size of the cache", console)
        + f", over the last {duration(result['window_seconds'])}",
        *_now(result, console),
        "",
    ]
    known = [point for point in points if point["hit_rate"] is not None]
    if len(known) >= 2:
        width = min(WIDEST, (console.columns or 80) - AXIS - 1)
        lines += [*_chart(points, limits, width, console), ""]
    elif not known:
        lines += [*fold(_why_not(result), "", console), ""]
    lines += _table(result, limits, console)
    if result["heard"] < 0.995:
        lines += [
            "",
            *fold(
                f"The models heard {share(result['heard'])} of the traffic: they rest when they"
                " have used 0.8% of the daemon's processor time.",
                "",
                console,
            ),
        ]
    return "\n".join(lines)


def _limit(point: dict[str, Any]) -> int:
    found: int = point["max_bytes"] if point["max_size"] is None else point["max_size"]
    return found


def _written(limit: int, in_bytes: bool) -> str:
    return size(limit) if in_bytes else f"{limit:,}"


def _now(result: dict[str, Any], console: Console) -> list[str]:
    """What the cache is now, and hits."""
    in_bytes = result["limit"] == "bytes"
    here = next(_limit(point) for point in result["points"] if point["size"] == 1)
    setting = "cache.max_bytes" if in_bytes else "cache.max_size"
    said = f"{setting} is {_written(here, in_bytes)}{'' if in_bytes else ' entries'}"
    if result["hit_rate"] is not None:
        said += f": {share(result['hit_rate'])} of {count(result['reads'], 'read')} hit"
    return fold(said, "", console)


def _why_not(result: dict[str, Any]) -> str:
    nearest = max(result["points"], key=lambda point: point["accesses"] / point["wanted"])
    return (
        f"Not known yet: {nearest['accesses']:,} of {nearest['wanted']:,} accesses that are wanted"
        " of the sampled keys were seen. Entries must be stored and read."
    )


def _chart(
    points: list[dict[str, Any]], limits: list[int], width: int, console: Console
) -> list[str]:
    """An area from the smallest size to the largest, by their logarithm."""
    low_size, high_size = log2(points[0]["size"]), log2(points[-1]["size"])
    span = (high_size - low_size) or 1.0
    known = [
        (log2(point["size"]), point["hit_rate"])
        for point in points
        if point["hit_rate"] is not None
    ]
    bottom, step = _scale([rate for _, rate in known])
    top = bottom + ROWS / 2 * step
    here = round(-low_size / span * (width - 1))
    heights = []
    for column in range(width):
        rate = _between(known, low_size + column / (width - 1) * span)
        height = None if rate is None else (rate - bottom) / (top - bottom) * ROWS * 8
        # What is known is seen, however low.
        heights.append(None if height is None else max(1, round(height)))
    lines = []
    for row in range(ROWS, 0, -1):
        mark = f"{bottom + row / 2 * step:6.0%}" if row % 2 == 0 else " " * 6
        cells = [
            " " if height is None else _BLOCKS[max(0, min(8, height - 8 * (row - 1)))]
            for height in heights
        ]
        body = (
            console.paint("".join(cells[:here]), "36")
            + console.paint(cells[here], "1;33")
            + console.paint("".join(cells[here + 1 :]), "36")
        )
        lines.append(f"{mark}│{body}".rstrip())
    lines.append(f"{bottom:6.0%}└" + "─" * here + "▲" + "─" * (width - here - 1))
    lines.append(_labels(points, limits, width, low_size, span))
    return lines


def _scale(rates: list[float]) -> tuple[float, float]:
    """Where the axis begins, and how far its lines are apart: round numbers, all rates within."""
    lines = ROWS // 2
    for step in STEPS:
        bottom = max(0.0, floor((min(rates) - step / 2) / step) * step)
        if bottom + lines * step >= max(rates):
            break
    # Not beyond what a rate can be.
    return max(0.0, min(bottom, ceil((1 - lines * step) / step - 1e-9) * step)), step


def _between(known: list[tuple[float, float]], place: float) -> float | None:
    for (left, before), (right, after) in pairwise(known):
        if left - 1e-9 <= place <= right + 1e-9:
            return before + (after - before) * (place - left) / (right - left)
    return None


def _labels(
    points: list[dict[str, Any]], limits: list[int], width: int, low: float, span: float
) -> str:
    """The sizes below the axis, as many as there is room for; the one that is now first."""
    in_bytes = points[0]["max_size"] is None
    line = [" "] * (width + AXIS + 8)
    order = sorted(range(len(points)), key=lambda at: (points[at]["size"] != 1, at))
    for at in order:
        text = _written(limits[at], in_bytes)
        middle = AXIS + round((log2(points[at]["size"]) - low) / span * (width - 1))
        start = max(0, min(middle - len(text) // 2, AXIS + width - len(text)))
        if all(cell == " " for cell in line[max(0, start - 2) : start + len(text) + 2]):
            line[start : start + len(text)] = text
    return "".join(line).rstrip()


def _table(result: dict[str, Any], limits: list[int], console: Console) -> list[str]:
    in_bytes = result["limit"] == "bytes"
    here = next(point for point in result["points"] if point["size"] == 1)
    name = "max_bytes" if in_bytes else "max_size"
    rows = []
    for point, limit in zip(result["points"], limits, strict=True):
        rate, base = point["hit_rate"], here["hit_rate"]
        known = rate is not None
        change = "" if point is here else UNKNOWN
        if known and base is not None and point is not here:
            change = f"{100 * (rate - base):+.1f}"
        heard = f"{point['accesses']:,} of {point['wanted']:,} accesses seen"
        rows.append(
            (
                _written(limit, in_bytes),
                share(rate) if known else UNKNOWN,
                f"± {100 * point['margin']:.1f}" if known else UNKNOWN,
                "now" if point is here else change,
                point["rule"] if known else heard,
            )
        )
    head = (name, "hit rate", "sampling", "points", "how entries leave")
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(4)]
    lines = []
    for row, point in zip((head, *rows), (None, *result["points"]), strict=True):
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)]
        line = "  ".join([*cells, row[4]]).rstrip()
        if point is None or point is here:
            line = console.paint(line, "1")
        elif point["hit_rate"] is None:
            line = console.paint(line, "2")
        lines.append(line)
    return lines
