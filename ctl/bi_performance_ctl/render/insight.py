"""What the cache knows of its keys, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bi_performance_ctl.console import Console
from bi_performance_ctl.render.cells import shortened, width
from bi_performance_ctl.render.prose import fold, fold_parts, heading, pairs
from bi_performance_ctl.render.units import UNKNOWN, count, duration, known, share, size
from bi_performance_wire.streams import visible

_STANDS = {
    "fresh": "fresh",
    "stale": "stale, in its grace",
    "over": "over, until a sweep passes it",
    "cleared": "cleared",
    "unsure": "not served: what other hosts changed is not known",
    "unreadable": "not to be read",
}


def key_text(key: str | bytes) -> str:
    """A key as a person reads it."""
    return visible(key if isinstance(key, str) else key.decode("utf-8", "backslashreplace"))


def explained(result: dict[str, Any], console: Console) -> str:
    """Sentences, and a table of what each level has."""
    color = {"hit": "32", "stale": "33"}.get(result["outcome"], "31")
    mark = console.paint(f"● {result['outcome']}", color)
    name = key_text(result["key"])
    if console.columns is not None:
        name = shortened(name, console.columns - len(f"* {result['outcome']}  "))
    lines = [f"{mark}  {console.paint(name, '1')}", ""]
    for sentence in (result["why"], *result["more"]):
        lines += fold(visible(sentence), "  ", console)
    for title, rows in (
        ("Store of this host", _local(result["local"])),
        ("Redis", _redis(result["redis"])),
        ("Lease", _lease(result["lease"])),
        ("The last entry", _past(result["past"])),
        ("Not known", iter(sorted(result["unknown"].items()))),
    ):
        if shown := list(rows):
            lines += ["", heading(title, console), *pairs(shown, console)]
    return "\n".join(lines)


def _local(found: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if found is None:
        yield "entry", "none"
        return
    yield "state", _STANDS[found["state"]]
    yield "age", duration(found["age_seconds"])
    yield "time left", _left(found["ttl_seconds"], found["said_ttl_seconds"])
    if found["grace_seconds"]:
        left = duration(found["served_stale_for_seconds"])
        yield "grace", f"{duration(found['grace_seconds'])}, {left} of it left"
    if found["sliding_seconds"]:
        yield "sliding", f"a read renews it for {duration(found['sliding_seconds'])}"
    if found["namespace"]:
        yield "namespace", found["namespace"]
    if found["tags"]:
        yield "tags", ", ".join(found["tags"])
    yield "value", _value(found)
    yield "in the store", size(found["stored_bytes"])
    yield "other hosts", "shared with them by Redis" if found["shared"] else "of this host alone"
    yield "leaves", _order(found)
    if found["reads_noted"]:
        more = " or more" if found["reads_noted"] == 3 else ""
        yield "read", f"in {found['reads_noted']}{more} of the ticks that are remembered"
    for name, value in found["about"].items():
        yield name, str(value)


def _left(seconds: float | None, said: float) -> str:
    if seconds is None:
        return "without an end"
    return f"{duration(seconds)} of {duration(said)}" if seconds else "none"


def _value(found: dict[str, Any]) -> str:
    raw, stored = found["raw_bytes"], found["value_bytes"]
    if found["compressed"]:
        return f"{size(raw)}, compressed to {size(stored)}"
    return f"{size(raw)}, not compressed"


def _order(found: dict[str, Any]) -> str:
    """Where it stands among those that leave, by the policy in force."""
    if found["order"] is None and found["policy"].startswith("second"):
        return f"by {found['policy']}: its place in that is not known"
    if found["order"] is None:
        return "not known: too few others were found to compare it with"
    error = found["order_error"]
    about = f" (± {share(error)})" if error else ""
    text = f"after {share(found['order'])} of {found['order_among']:,} entries{about}"
    if found["policy"] != "lru":
        text = f"after {share(found['order'])} of the {found['queue']} queue's bytes"
    return f"{text}, by {found['policy'].upper() if found['policy'] == 'lru' else found['policy']}"


def _redis(found: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if found is None:
        return
    if found["present"] is None:
        yield "entry", "not known"
    elif not found["present"]:
        yield "entry", "none"
    else:
        yield "state", _STANDS[found["state"]]
        if found.get("ttl_seconds") is not None:
            yield "time left", duration(found["ttl_seconds"])
        if "kept_seconds" in found:
            kept = found["kept_seconds"]
            yield "kept for", "without an end" if kept is None else duration(kept)
        if "stored_bytes" in found:
            yield "size", size(found["stored_bytes"])
        if "version" in found:
            yield "version", found["version"]
        if found["reason"]:
            yield "reason", found["reason"]
    if found.get("waiting"):
        yield "to be written", found["waiting"]
    if found.get("leased_for_seconds"):
        yield "lease", f"for another {duration(found['leased_for_seconds'])}"


def _lease(found: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if found is None:
        return
    name = f" ({found['name']})" if found["name"] else ""
    yield "process", f"{found['pid']}{name}" if found["pid"] else "not to be seen from here"
    yield "user id", str(found["uid"])
    yield "held for", duration(found["held_seconds"])
    yield "left", duration(found["left_seconds"])
    yield "waiting", str(found["waiting"])


def _past(found: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if found is None:
        return
    if found["ago_seconds"] is not None:
        yield "left", f"{duration(found['ago_seconds'])} ago"
    if found["stored_for_seconds"] is not None:
        yield "was there for", duration(found["stored_for_seconds"])
    if found["stored_bytes"]:
        yield "size", size(found["stored_bytes"])
    yield "read", {None: "not known", True: "yes", False: "never"}[found["read"]]


# ── cache top

_TITLES = {
    "hits": "The hottest keys",
    "misses": "Most asked for and not in this host's store",
    "size": "The largest entries",
    "age": "The oldest entries",
    "cold": "Never read since they were stored, the oldest first",
}
KEY_COLUMNS = 30
"""Columns that a key which needs them has at the least beside its figures."""


def top(result: dict[str, Any], console: Console) -> str:
    """The keys in a table, and below it what the figures are of."""
    by, keys = result["by"], result["keys"]
    lines = [heading(_TITLES[by], console)]
    if by in ("hits", "misses"):
        head = [by, "not fewer", "not more", "size", "age"]
        cells = [
            [*(_about(each[name]) for name in ("count", "at_least", "at_most")), *_there(each)]
            for each in keys
        ]
    else:
        head = ["size", "age", "time left"]
        cells = [
            [*_there(each), duration(each["ttl_seconds"]) if each["ttl_seconds"] else "none"]
            for each in keys
        ]
    lines += table(head, cells, [_named(each) for each in keys], console)
    if not keys:
        lines.append("  none yet")
    for note in _notes(result):
        lines += ["", *fold(note, "  ", console)]
    return "\n".join(lines)


def table(
    head: list[str], cells: list[list[str]], names: list[str], console: Console, last: str = "key"
) -> list[str]:
    """Figures to the right of their columns, and names behind them. On a terminal that is too
    narrow for that the titles are in two lines, then the names above their figures, then the
    figures in as many lines as they need; a name that is longer than its place loses its middle."""
    if not cells:
        return []
    columns = console.columns
    needed = min(KEY_COLUMNS, max(width(each) for each in [last, *names]))
    for stacked in (False, True):
        titles = _titles(head, last, stacked)
        widths = _widths(titles, cells)
        room = None if columns is None else columns - width(_line(cells[0], widths))
        if room is None or room >= needed:
            shown = names if room is None else [shortened(name, room) for name in names]
            rows = zip(cells, shown, strict=True)
            return [
                *_heads(titles, widths, console),
                *(_line(row, widths) + it for row, it in rows),
            ]
    assert columns is not None
    titles = [title[:-1] for title in titles]
    fits = width(_line(cells[0], widths).rstrip()) <= columns
    lines = _heads(titles, widths, console) if fits else []
    for row, name in zip(cells, names, strict=True):
        lines.append("  " + console.paint(shortened(name, columns - 2), "1"))
        if fits:
            lines.append(_line(row, widths).rstrip())
        else:
            parts = [f"{title} {cell}" for title, cell in zip(head, row, strict=True)]
            lines.append("    " + fold_parts(parts, 4, columns))
    return lines


def _titles(head: list[str], last: str, stacked: bool) -> list[list[str]]:
    """The lines of titles, the name's at the end."""
    if not stacked:
        return [[*head, last]]
    halves = [title.rpartition(" ") for title in head]
    return [[*(half[0] for half in halves), ""], [*(half[2] for half in halves), last]]


def _widths(titles: list[list[str]], cells: list[list[str]]) -> list[int]:
    return [max(width(row[at]) for row in (*titles, *cells)) for at in range(len(cells[0]))]


def _heads(titles: list[list[str]], widths: list[int], console: Console) -> list[str]:
    lines = (
        _line(title[: len(widths)], widths) + "".join(title[len(widths) :]) for title in titles
    )
    return [console.paint(line.rstrip(), "2") for line in lines]


def _line(cells: list[str], widths: list[int]) -> str:
    figures = (" " * (each - width(cell)) + cell for cell, each in zip(cells, widths, strict=True))
    return "  " + "".join(figure + "  " for figure in figures)


def _named(each: dict[str, Any]) -> str:
    return key_text(each["key"]) + ("…" if each["cut"] else "")


def _about(value: float) -> str:
    return f"{value:,.0f}"


def _there(each: dict[str, Any]) -> list[str]:
    if each["here"] is None:
        return ["?", "?"]
    if not each["here"]:
        return ["gone", "–"]
    return [size(each["stored_bytes"]), duration(each["age_seconds"])]


def _notes(result: dict[str, Any]) -> Iterator[str]:
    by = result["by"]
    if by in ("hits", "misses"):
        yield (
            f"Estimates from a sample of some {result['counted']:,.0f} {by} in the last"
            f" {duration(result['seconds'])}; not fewer and not more hold for 95 of 100 keys."
        )
        if result["unnamed"]:
            yield f"{result['unnamed']:,.0f} hits were on entries that had left before a look."
        return
    yield f"Of {count(result['entries'], 'entry', 'entries')} on this host."
    if by == "cold":
        unread = count(result["unread"], "entry was", "entries were")
        text = f"{unread} never read, {size(result['unread_bytes'])}"
        if result["unknown"]:
            text += f"; of {result['unknown']:,} it is not known"
        yield text + "."


# ── cache by


def breakdown(result: dict[str, Any], console: Console) -> str:
    """A line for each prefix or process, and below them what the figures are of."""
    lines = (
        _by_prefix(result, console) if result["by"] == "prefix" else _by_process(result, console)
    )
    return "\n".join(lines)


def _by_prefix(result: dict[str, Any], console: Console) -> list[str]:
    head = ["hit rate", "±", "hits", "misses", "entries", "size", "never read", "evicted unread"]
    rows = [*result["prefixes"], *([result["other"]] if result["other"] else [])]
    cells = [
        [
            known(each["hit_rate"], share),
            known(each["hit_rate_error"], share),
            _about(each["hits"]),
            _about(each["misses"]),
            f"{each['entries']:,}",
            size(each["size_bytes"]),
            f"{each['unread_entries']:,}",
            _about(each["evicted_unread"]),
        ]
        for each in rows
    ]
    names = [_prefix(each["prefix"]) for each in rows]
    lines = [heading("By what keys begin with", console)]
    lines += table(head, cells, names, console, "prefix") or ["  nothing is stored"]
    note = (
        "Entries and sizes are exact. Hits, misses and evictions are estimates from samples of the"
        f" last {duration(result['seconds'])}; the hit rate is within ± for 95 of 100 prefixes."
    )
    return [*lines, "", *fold(note, "  ", console)]


def _prefix(prefix: str | bytes | None) -> str:
    if prefix is None:
        return "(all others)"
    return key_text(prefix) or "(none)"


def _by_process(result: dict[str, Any], console: Console) -> list[str]:
    head = ["pid", "hit rate", "hits", "misses", "read", "attached"]
    rows = result["processes"]
    cells = [
        [
            str(each["pid"] or UNKNOWN),
            known(each["hit_rate"], share),
            f"{each['hits']:,}",
            f"{each['misses']:,}",
            size(each["hit_bytes"]),
            duration(each["attached_seconds"]),
        ]
        for each in rows
    ]
    names = [_process(each) for each in rows]
    left = result["left"]
    if left["hits"] or left["misses"]:
        rate = known(left["hit_rate"], share)
        counts = f"{left['hits']:,}", f"{left['misses']:,}"
        cells.append([UNKNOWN, rate, *counts, size(left["hit_bytes"]), UNKNOWN])
        names.append("(those that have left)")
    lines = [heading("By the processes that read in place", console)]
    lines += table(head, cells, names, console, "process") or ["  no process is attached"]
    if result["more"]:
        more = count(result["more"], "other process is", "other processes are")
        lines += ["", f"  {more} attached; a larger --limit shows more"]
    return lines


def _process(each: dict[str, Any]) -> str:
    doubt = "" if each["plausible"] else " (not believed: it counted what cannot be)"
    return f"{visible(each['name'] or UNKNOWN)}  {each['instance'][:8]}{doubt}"
