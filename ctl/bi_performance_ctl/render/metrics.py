"""`metrics` for people: the cache, the host, the daemon, the attached processes, the past."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bi_performance_ctl.console import Console
from bi_performance_ctl.render.prose import fold, heading, joined, pairs
from bi_performance_ctl.render.units import (
    UNKNOWN,
    count,
    duration,
    figure,
    known,
    label,
    number,
    percent,
    share,
    size,
    span,
    spark,
)
from bi_performance_wire.streams import visible

NO_LIMIT = 1 << 60
"""What a kernel names as a limit when there is none."""
NARROW = 72
"""Columns below which the processes are lines instead of a table."""

Rows = list[tuple[str, str]]


def metrics(result: dict[str, Any], console: Console) -> Iterator[str | object]:
    """Lines, and rich's table of the processes between them."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(result["timestamp"]))
    yield (
        f"{heading('bi-performance ' + result['version'], console)}"
        f"  profile {visible(result['profile'])}"
        f"  up {duration(result['uptime_seconds'])}  {when}"
    )
    system, daemon = result["system"], result["daemon"]
    for title, rows in (
        ("Cache", cache(result["cache"])),
        ("Host", host(system)),
        ("Daemon", process(daemon)),
    ):
        yield ""
        yield heading(title, console)
        yield from pairs(rows, console)
    yield ""
    processes = result["processes"]
    yield heading(f"Attached processes: {len(processes):,}", console)
    if processes:
        yield from _processes(processes, console)
    if result.get("history"):
        yield ""
        yield from _past(result["history"], console)
    reasons = _reasons(result)
    if reasons:
        yield ""
        yield heading(f"Unknown ({UNKNOWN})", console)
        for reason, names in reasons.items():
            yield from fold(visible(f"{', '.join(names)}: {reason}"), "    ", console, first="  ")


def cache(stats: dict[str, Any]) -> Rows:
    """The cache's figures, also for `cache stats`."""
    asked = stats["hits"] + stats["misses"]
    local = stats["levels"]["local"]
    amplification = stats["write_amplification"]
    return [
        ("hit rate", share(stats["hit_rate"]) if asked else UNKNOWN),
        ("hits", f"{stats['hits']:,}"),
        ("misses", f"{stats['misses']:,}"),
        ("entries", f"{stats['entries']:,} of {stats['max_entries']:,}"),
        ("size", f"{size(stats['size_bytes'])} of {size(stats['max_bytes'])}"),
        *(
            [("while memory is short", f"{size(local['budget_bytes'])}: {visible(reason)}")]
            if (reason := local.get("budget_reason"))
            else []
        ),
        ("sets", f"{stats['sets']:,}"),
        ("deletes", f"{stats['deletes']:,}"),
        ("evictions", f"{stats['evictions']:,}"),
        ("expirations", f"{stats['expirations']:,}"),
        ("store's file", known(local.get("store_bytes"), size)),
        ("rings", f"{size(stats['ring_bytes'])}, {share(stats['live_ratio'])} live"),
        ("write amplification", known(amplification, lambda value: f"{value:.2f}")),
        ("compression", _compression(local)),
        ("attached processes", f"{stats['clients']:,}"),
        *(
            (f"namespace {visible(name)}" if name else "in no namespace", _namespace(each))
            for name, each in local.get("namespaces", {}).items()
        ),
    ]


def _namespace(each: dict[str, Any]) -> str:
    """What a namespace has, and of how much."""
    entries, most = f"{each['entries']:,}", each["max_entries"]
    held, limit = size(each["bytes"]), each["max_bytes"]
    return ", ".join(
        (
            f"{entries} of {most:,} entries" if most else f"{entries} entries",
            f"{held} of {size(limit)}" if limit else held,
            f"{each['evictions']:,} evicted for others of it",
        )
    )


def _compression(local: dict[str, Any]) -> str:
    """How many times smaller values became, and what that saved; of an older daemon, unknown."""
    saved = local.get("compression", {}).get("saved_bytes")
    return f"{known(local.get('compression_ratio'), lambda times: f'{times:.1f}×')}" + (
        f", {size(saved)} saved" if saved else ""
    )


def host(system: dict[str, Any]) -> Rows:
    get = system.get
    loads = [get(f"load_{span}") for span in ("1m", "5m", "15m")]
    files = known(get("open_files"))
    if (most := get("open_files_max")) is not None and most < NO_LIMIT:
        files += f" of {number(most)}"
    group = [get(f"cgroup_{name}") for name in ("memory_bytes", "memory_limit_bytes", "cpu_limit")]
    return [
        ("CPU", f"{known(get('cpu_percent'), percent)} of {_processors(get('cpu_count'))}"),
        (
            "load",
            f"{' '.join(known(load, lambda value: f'{value:.2f}') for load in loads)}"
            " over 1, 5, 15 min",
        ),
        ("memory", _memory(system)),
        ("swap", f"{_of(get('swap_used_bytes'), get('swap_total_bytes'))}"),
        (
            "disks",
            f"{_rate(get('disk_read_bytes_per_second'))} read"
            f" · {_rate(get('disk_write_bytes_per_second'))} written",
        ),
        (
            "network",
            f"{_rate(get('network_receive_bytes_per_second'))} received"
            f" · {_rate(get('network_send_bytes_per_second'))} sent",
        ),
        ("waiting for CPU", f"{known(get('pressure_cpu_some_percent'), percent)} of the time"),
        *(
            (
                f"waiting for {name}",
                f"{known(get(f'pressure_{key}_some_percent'), percent)} of the time some task,"
                f" {known(get(f'pressure_{key}_full_percent'), percent)} all of them",
            )
            for key, name in (("memory", "memory"), ("io", "disks"))
        ),
        ("open files", files),
        (
            "control group",
            f"memory {known(group[0], size)}, limit {known(group[1], size)}"
            f" · limit of processors {known(group[2])}",
        ),
    ]


def process(found: dict[str, Any]) -> Rows:
    """A process's own figures."""
    get = found.get
    return [
        ("CPU", f"{known(get('cpu_percent'), percent)} of one processor"),
        (
            "memory",
            f"{known(get('rss_bytes'), size)} resident"
            f" · {known(get('pss_bytes'), size)} by share"
            f" · {known(get('swap_bytes'), size)} in swap",
        ),
        ("threads", known(get("threads"))),
        ("open files", known(get("open_files"))),
        (
            "disks",
            f"{_rate(get('read_bytes_per_second'))} read"
            f" · {_rate(get('write_bytes_per_second'))} written",
        ),
    ]


def _rate(value: float | None) -> str:
    return known(value, lambda found: f"{size(found)}/s")


def _of(value: float | None, limit: float | None) -> str:
    return f"{known(value, size)} of {known(limit, size)}"


def _processors(value: float | None) -> str:
    return UNKNOWN if value is None else count(round(value), "processor")


def _memory(system: dict[str, Any]) -> str:
    total, free = system.get("memory_total_bytes"), system.get("memory_available_bytes")
    used = None if total is None or free is None else total - free
    return f"{known(system.get('memory_used_percent'), percent)}, {_of(used, total)}"


def _processes(found: list[dict[str, Any]], console: Console) -> Iterator[str | object]:
    rows = [_process_cells(each) for each in found]
    columns = console.columns
    if columns is not None and columns < NARROW:
        for name, pid, hits, rate, cpu, rss, pss, threads in rows:
            yield f"  {name} ({pid})"
            figures = joined(
                [
                    f"{hits} hits",
                    f"hit rate {rate}",
                    f"CPU {cpu}",
                    f"{rss} resident",
                    f"{pss} by share",
                    f"{threads} threads",
                ]
            )
            yield from fold(figures, "    ", console)
        return
    from bi_performance_ctl.render.paper import plain_table

    titles = ("  name", "pid", "hits", "hit rate", "CPU", "resident", "by share", "threads")
    table = plain_table(*titles, right=titles[1:])
    for name, *rest in rows:
        table.add_row(f"  {name}", *rest)
    yield table


def _process_cells(each: dict[str, Any]) -> list[str]:
    asked = each["hits"] + each["misses"]
    doubt = "" if each.get("trusted", True) else " (its counts are not plausible)"
    return [
        visible(str(each.get("name") or UNKNOWN)) + doubt,
        str(each.get("pid") or UNKNOWN),
        f"{each['hits']:,}",
        share(each["hits"] / asked) if asked else UNKNOWN,
        known(each.get("cpu_percent"), percent),
        known(each.get("rss_bytes"), size),
        known(each.get("pss_bytes"), size),
        known(each.get("threads")),
    ]


def _past(history: dict[str, Any], console: Console) -> Iterator[str | object]:
    """Every series that changes, as a line of blocks from 0 to its largest value."""
    points = len(history["timestamps"])
    every = history["interval_seconds"]
    yield heading(
        f"The past {span(round(points * every))}: least, mean, most, last, and its course", console
    )
    rows = []
    for name, values in history["series"].items():
        there = [value for value in values if value is not None]
        if not there or name in ("cpu_count", "open_files_max", "memory_total_bytes"):
            continue
        numbers = (min(there), sum(there) / len(there), max(there), values[-1])
        rows.append((label(name), [figure(name, value) for value in numbers], values))
    if not rows:
        return
    widths = [max(len(cells[at]) for _, cells, _ in rows) for at in range(4)]
    labels = max(len(name) for name, _, _ in rows)
    used = 2 + labels + sum(widths) + 5 * 2
    room = max(0, min(60, (console.columns or 120) - used))
    for name, cells, values in rows:
        figures = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        yield f"  {name:{labels}}  {figures}  {spark(squeezed(values, room))}".rstrip()


def squeezed(values: list[float | None], room: int) -> list[float | None]:
    """The mean of the known values in each of at most `room` parts of equal length."""
    if not room:
        return []
    parts = min(room, len(values))
    found: list[float | None] = []
    for at in range(parts):
        piece = values[at * len(values) // parts : (at + 1) * len(values) // parts]
        there = [value for value in piece if value is not None]
        found.append(sum(there) / len(there) if there else None)
    return found


def _reasons(result: dict[str, Any]) -> dict[str, list[str]]:
    """For each reason the figures that are unknown for it, in words."""
    found: dict[str, list[str]] = {}
    parts = [("the host's", result["system"]), ("the daemon's", result["daemon"])]
    parts += [(f"process {each.get('pid') or UNKNOWN}:", each) for each in result["processes"]]
    for whose, part in parts:
        for name, reason in part.get("unknown", {}).items():
            what = label(name) if name else "figures"
            found.setdefault(str(reason), []).append(f"{whose} {what}")
    return found
