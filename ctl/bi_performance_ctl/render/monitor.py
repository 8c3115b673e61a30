"""What `monitor` shows: a screen drawn for its size, a line, or a report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from bi_performance_ctl.console import MARKS
from bi_performance_ctl.render.prose import joined
from bi_performance_ctl.render.units import (
    UNKNOWN,
    count,
    duration,
    known,
    per_second,
    percent,
    share,
    size,
    spark,
)
from bi_performance_ctl.watch import Point, View
from bi_performance_wire.streams import visible, writable

_STYLES = {"32": "green", "36": "cyan", "33": "yellow", "2": "dim"}
LEFT = 30
"""Columns before a line of blocks."""
MOST_RECOMMENDATIONS = 3
LEAST_PROCESSES = 2
NARROW = 64
"""Columns below which the table of processes has fewer."""


def style(state: str) -> str:
    return _STYLES.get(MARKS.get(state, ""), "red")


class Page:
    """Lines of at most `width` columns; of more, where they need it, when `whole`."""

    def __init__(self, width: int, *, whole: bool = False) -> None:
        self.width = width
        self._whole = whole
        self.lines: list[Text] = []

    def add(self, *parts: str | tuple[str, str]) -> None:
        """A line of parts, each text or (text, style); what is too long is cut."""
        line = Text(no_wrap=True, end="")
        for part in parts:
            text, look = part if isinstance(part, tuple) else (part, "")
            left = self.width - line.cell_len
            text = writable(text)
            if cell_len(text) > left and not self._whole:
                text = set_cell_size(text, max(0, left))
            line.append(text, look)
        self.lines.append(line)


def screen(view: View, width: int, height: int, interval: float) -> Text:
    """The live view for a terminal of this size."""
    page = Page(width)
    _head(page, view)
    assert view.metrics is not None
    found = view.metrics
    _cache(page, view, found["cache"])
    _host(page, view, found["system"])
    _daemon(page, found["daemon"])
    advice = view.recommendations
    # Two lines for the heading and the blank before it, one for the foot.
    room = height - len(page.lines) - 1
    told = min(len(advice), MOST_RECOMMENDATIONS, max(0, room - 2 - LEAST_PROCESSES - 2))
    advice_lines = 2 + told + (1 if told < len(advice) else 0) if room > 4 else 0
    _processes(page, view, room - advice_lines - 2)
    if advice_lines:
        _advice(page, advice, told)
    lines = page.lines[: max(1, height - 1)]
    lines += [Text() for _ in range(height - 1 - len(lines))]
    foot = Page(width)
    foot.add((f"every {interval:g} s · space looks now · q ends", "dim"))
    if height > 1:
        lines += foot.lines
    return Text("\n", end="", no_wrap=True).join(lines)


def _head(page: Page, view: View) -> None:
    status = view.status
    assert status is not None
    when = time.strftime("%H:%M:%S", time.localtime(view.at))
    parts: list[str | tuple[str, str]] = [
        (f"bi-performance {visible(status['version'])}", "bold"),
        "  ",
        (f"● {visible(view.state)}", style(view.state)),
    ]
    if view.away_since is None:
        parts.append(
            f"  profile {visible(status['profile'])}  up {duration(status['uptime_seconds'])}"
        )
    else:
        since = time.strftime("%H:%M:%S", time.localtime(view.away_since))
        ago = duration(max(0.0, view.at - view.away_since))
        parts.append(f"  daemon away since {since} ({ago})")
    used = sum(cell_len(part if isinstance(part, str) else part[0]) for part in parts)
    parts.append((" " * max(2, page.width - used - len(when)) + when, "dim"))
    page.add(*parts)
    if view.away_since is not None:
        page.add((f"  {visible(view.reasons[0])}; what is below was seen before", "yellow"))
    else:
        for reason in view.reasons[:3]:
            page.add((f"  ! {visible(reason)}", "yellow"))
    page.add()


def _cache(page: Page, view: View, stats: dict[str, Any]) -> None:
    now = view.now
    asked = stats["hits"] + stats["misses"]
    overall = f"{share(stats['hit_rate'])} of {asked:,} in all" if asked else "not read yet"
    _course(page, view, "Cache", "hit rate", known(now.get("hit_rate"), share), "hit_rate", 1.0)
    _course(
        page,
        view,
        "",
        "hits",
        known(now.get("hits_per_second"), per_second),
        "hits_per_second",
        None,
    )
    _line(
        page,
        "",
        "",
        joined(
            [
                overall,
                f"{known(now.get('misses_per_second'), per_second)} misses",
                f"{known(now.get('sets_per_second'), per_second)} sets",
            ]
        ),
    )
    _line(
        page,
        "",
        "entries",
        joined(
            [
                f"{stats['entries']:,} of {stats['max_entries']:,}",
                f"{size(stats['size_bytes'])} of {size(stats['max_bytes'])}",
            ]
        ),
    )
    _line(
        page,
        "",
        "evictions",
        joined(
            [
                f"{known(now.get('evictions_per_second'), per_second)}",
                f"{stats['evictions']:,} in all",
                f"{stats['expirations']:,} expired",
            ]
        ),
    )


def _host(page: Page, view: View, system: dict[str, Any]) -> None:
    get = system.get
    _course(page, view, "Host", "CPU", known(get("cpu_percent"), percent), "cpu_percent", 100.0)
    used = known(get("memory_used_percent"), percent)
    _course(page, view, "", "memory", used, "memory_used_percent", 100.0)
    loads = " ".join(known(get(f"load_{span}"), _two) for span in ("1m", "5m", "15m"))
    _line(
        page,
        "",
        "load",
        joined([f"{loads}", f"{known(get('cpu_count'))} processors", _memory_free(system)]),
    )
    pressures = (("CPU", "cpu"), ("memory", "memory"), ("disks", "io"))
    waits = [
        f"{name} {known(get(f'pressure_{key}_some_percent'), percent)}" for name, key in pressures
    ]
    _line(page, "", "waiting", joined(["for " + waits[0], *waits[1:]]))


def _two(value: float) -> str:
    return f"{value:.2f}"


def _memory_free(system: dict[str, Any]) -> str:
    return f"{known(system.get('memory_available_bytes'), size)} of memory free"


def _daemon(page: Page, found: dict[str, Any]) -> None:
    _line(
        page,
        "Daemon",
        "CPU",
        joined(
            [
                known(found.get("cpu_percent"), percent),
                f"{known(found.get('rss_bytes'), size)} resident",
                f"{known(found.get('threads'))} threads",
                f"{known(found.get('open_files'))} open files",
            ]
        ),
    )


def _line(page: Page, part: str, name: str, text: str) -> None:
    page.add((f"{part:8}", "bold"), f"{name:11}", text)


def _course(
    page: Page, view: View, part: str, name: str, value: str, series: str, top: float | None
) -> None:
    """A figure as it is now, and its course in the last minutes."""
    minutes = 5 if page.width < 140 else 10
    told = f"  last {minutes} min" if page.width >= NARROW else ""
    room = max(0, page.width - LEFT - len(told))
    blocks = spark(buckets(view.past, series, view.at, 60.0 * minutes, room), top)
    page.add(
        (f"{part:8}", "bold"),
        f"{name:11}",
        (f"{value:>9}", "bold"),
        "  ",
        (blocks, "cyan"),
        (told, "dim"),
    )


def buckets(
    past: Sequence[Point], series: str, now: float, seconds: float, room: int
) -> list[float | None]:
    """The mean of a series in each of `room` equal parts of the last `seconds`, oldest first."""
    sums = [0.0] * room
    counts = [0] * room
    for point in past:
        value = point.figures.get(series)
        place = int((point.at - (now - seconds)) / seconds * room) if room else -1
        # The newest point stands at the very edge.
        place = min(place, room - 1) if point.at <= now + 1 else -1
        if value is not None and place >= 0:
            sums[place] += value
            counts[place] += 1
    found: list[float | None] = [
        total / many if many else None for total, many in zip(sums, counts, strict=True)
    ]
    return _bridged(found, seconds / room if room else 1.0)


def _bridged(values: list[float | None], seconds: float) -> list[float | None]:
    """Without the gaps that only come from looking less often than there are parts."""
    most = max(1, round(10 / seconds))
    found = list(values)
    last: int | None = None
    for at, value in enumerate(values):
        if value is None:
            continue
        if last is not None and at - last - 1 <= most:
            found[last + 1 : at] = [value] * (at - last - 1)
        last = at
    return found


def _processes(page: Page, view: View, room: int) -> None:
    """As many processes as there is room for, those with the most hits first."""
    assert view.metrics is not None
    found = view.metrics["processes"]
    if room < 0:
        return
    page.add()
    if not found:
        page.add(("Processes", "bold"), "  none is attached")
        return
    rates = view.process_hits
    found = sorted(found, key=lambda each: (-rates.get(each["instance"], 0.0), -each["hits"]))
    shown = found if len(found) <= room else found[: max(0, room - 1)]
    cells = [_cells(each, rates) for each in shown]
    # Of a single look there are no rates.
    hits = "hits/s" if rates else "hits"
    titles = [f"Processes {len(found):,}", "pid", hits, "hit rate", "CPU", "resident"]
    if page.width < NARROW:
        cells = [[row[0], row[1], row[2], row[4]] for row in cells]
        titles = [titles[0], titles[1], titles[2], titles[4]]
    widths = [max(len(row[at]) for row in [titles, *cells]) for at in range(1, len(titles))]
    first = max(4, page.width - sum(widths) - 2 * len(widths))
    for at, row in enumerate([titles, *cells]):
        text = set_cell_size(writable(row[0]), first)
        rest = "".join(f"  {cell:>{wide}}" for cell, wide in zip(row[1:], widths, strict=True))
        page.add((text + rest, "bold" if at == 0 else ""))
    if len(shown) < len(found) and room > 0:
        page.add((f"and {len(found) - len(shown):,} more", "dim"))


def _cells(each: dict[str, Any], rates: dict[str, float]) -> list[str]:
    asked = each["hits"] + each["misses"]
    return [
        visible(str(each.get("name") or UNKNOWN)),
        str(each.get("pid") or UNKNOWN),
        known(rates.get(each["instance"]), _hits) if rates else f"{each['hits']:,}",
        share(each["hits"] / asked) if asked else UNKNOWN,
        known(each.get("cpu_percent"), percent),
        known(each.get("rss_bytes"), size),
    ]


def _hits(value: float) -> str:
    return per_second(value).removesuffix("/s")


def _advice(page: Page, advice: list[dict[str, Any]], told: int) -> None:
    page.add()
    if not advice:
        page.add(("Recommendations", "bold"), "  none")
        return
    page.add(("Recommendations", "bold"), "  bi-performance recommendations has the commands")
    for each in advice[:told]:
        severity = visible(each["severity"])
        page.add((f"● {severity}", style(severity)), f"  {visible(each['title'])}")
    if told < len(advice):
        page.add((f"and {len(advice) - told:,} more", "dim"))


# ── without a terminal


def line(view: View) -> str:
    """One look in one line."""
    when = _utc(view.at)
    if view.away_since is not None:
        since = _utc(view.away_since)
        return f"{when}  away  since {since}: {visible(view.reasons[0])}"
    assert view.metrics is not None
    system, now = view.metrics["system"], view.now
    parts = [
        when,
        visible(view.state),
        f"hit rate {known(now.get('hit_rate'), share)}",
        f"{known(now.get('hits_per_second'), per_second).removesuffix('/s')} hits/s",
        count(view.metrics["cache"]["entries"], "entry", "entries"),
        f"CPU {known(system.get('cpu_percent'), percent)}",
        f"memory {known(system.get('memory_used_percent'), percent)}",
        count(len(view.recommendations), "recommendation"),
    ]
    return "  ".join(parts)


def json_line(view: View) -> str:
    """One look as a JSON document in one line."""
    return visible(json.dumps(view.document(), ensure_ascii=True, default=str))


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def report(view: View, width: int) -> Text:
    """`--once`: what the screen shows, without a screen's end."""
    page = Page(width, whole=True)
    _head(page, view)
    assert view.metrics is not None
    found = view.metrics
    _cache(page, view, found["cache"])
    _host(page, view, found["system"])
    _daemon(page, found["daemon"])
    _processes(page, view, len(found["processes"]))
    _advice(page, view.recommendations, len(view.recommendations))
    for each in page.lines:
        each.rstrip()
    return Text("\n").join(page.lines)
