"""Results as tables, by rich."""

from __future__ import annotations

from typing import Any

from rich.console import Console as Terminal
from rich.table import Table
from rich.text import Text

from bi_performance_ctl.console import Console
from bi_performance_ctl.render.metrics import cache, metrics
from bi_performance_ctl.render.paper import plain_table, terminal
from bi_performance_ctl.render.prose import fold, pairs
from bi_performance_ctl.render.units import UNKNOWN, count, setting
from bi_performance_wire.streams import visible

NARROW = 100
"""Columns below which a table of four is harder to read than lines."""


def show(name: str, result: Any, console: Console) -> None:
    out = terminal(console)
    if name == "cache.stats":
        for line in pairs(cache(result), console, indent=""):
            console.say(line)
    elif name == "metrics":
        if "media_type" in result:
            console.say(visible(result["text"], lines=True))
            return
        for part in metrics(result, console):
            if isinstance(part, str):
                console.say(part)
            else:
                _print_table(out, part, console)
    elif name == "server.config":
        if out.width < NARROW:
            _config_lines(result, console)
        else:
            _print_table(out, _config(result), console)
    elif name == "cache.keys":
        for key in result["keys"]:
            text = key if isinstance(key, str) else key.decode("utf-8", "backslashreplace")
            console.say(visible(text))
        if result["truncated"]:
            shown = len(result["keys"])
            raise_note(
                out, f"… more than these {shown}; a larger --limit or a --pattern shows more"
            )
    elif name == "cache.clear":
        done = "would clear" if result.get("dry_run") else "cleared"
        console.say(f"{done} {count(result['cleared'], 'entry', 'entries')}")
    elif name == "cache.expire":
        console.say("stale from now on" if result["expired"] else "there was no fresh entry")
    elif name == "cache.touch":
        console.say("renewed" if result["touched"] else "there was no entry to renew")
    elif name == "cache.delete":
        console.say("deleted" if result["deleted"] else "there was no such key")
    else:
        console.document(result)


def _print_table(out: Terminal, table: object, console: Console) -> None:
    """A table without the blanks that fill its last column."""
    with out.capture() as capture:
        out.print(table)
    for line in capture.get().splitlines():
        console.say(line.rstrip())


def raise_note(out: Terminal, text: str) -> None:
    out.print(Text(text, style="dim"))


def _exact(value: Any, unit: str | None) -> str:
    """A value as it is written in the file, and what a large one comes to."""
    if value is None:
        return UNKNOWN
    text = f"{value} {unit or ''}".rstrip()
    if (unit == "bytes" and value >= 1024) or (unit == "s" and value >= 60):
        text += f" ({setting(value, unit)})"
    return visible(text)


def _beneath(row: dict[str, Any]) -> str:
    """What a profile or `config set` lies over."""
    if not row.get("beneath"):
        return ""
    value, origin = row["beneath"]
    return f"over {_exact(value, row['unit'])}, {visible(origin)}"


def _config_lines(result: dict[str, Any], console: Console) -> None:
    for row in result["settings"]:
        console.say(f"{visible(row['key'])} = {_exact(row['value'], row['unit'])}")
        for line in fold(visible(row["origin"]), "  ", console):
            console.say(console.paint(line, "2"))
        if beneath := _beneath(row):
            for line in fold(beneath, "  ", console):
                console.say(console.paint(line, "2"))


def _config(result: dict[str, Any]) -> Table:
    table = plain_table("setting", "value", "from")
    for row in result["settings"]:
        origin = "; ".join(part for part in (visible(row["origin"]), _beneath(row)) if part)
        table.add_row(visible(row["key"]), Text(_exact(row["value"], row["unit"])), Text(origin))
    return table
