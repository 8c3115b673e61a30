"""Results as tables, by rich."""

from __future__ import annotations

from typing import Any

from rich.console import Console as Terminal
from rich.table import Table
from rich.text import Text

from bi_performance_ctl.console import Console, visible
from bi_performance_ctl.render.units import size

NARROW = 100
"""Columns below which a table of four is harder to read than lines."""


def terminal(console: Console) -> Terminal:
    """rich's console, told what ours knows; plain text is never folded when it goes to a file."""
    made = Terminal(no_color=not console.color, highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = 200
    return made


def plain_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show(name: str, result: Any, console: Console) -> None:
    out = terminal(console)
    if name == "cache.stats":
        out.print(_stats(result))
    elif name == "server.config":
        if out.width < NARROW:
            _config_lines(result, console)
        else:
            out.print(_config(result))
    elif name == "cache.keys":
        for key in result["keys"]:
            text = key if isinstance(key, str) else key.decode("utf-8", "backslashreplace")
            console.say(visible(text))
        if result["truncated"]:
            raise_note(out, f"… more than these {len(result['keys'])}; --limit N shows more")
    elif name == "cache.clear":
        count = result["cleared"]
        out.print(f"cleared {count:,} {'entry' if count == 1 else 'entries'}")
    elif name == "cache.delete":
        out.print("deleted" if result["deleted"] else "there was no such key")
    else:
        console.document(result)


def raise_note(out: Terminal, text: str) -> None:
    out.print(Text(text, style="dim"))


def _stats(result: dict[str, Any]) -> Table:
    table = plain_table("figure", "value")
    rate = f"{result['hit_rate']:.1%}" if result["hits"] + result["misses"] else "–"
    amplification = result["write_amplification"]
    for label, value in (
        ("hit rate", rate),
        ("hits", f"{result['hits']:,}"),
        ("misses", f"{result['misses']:,}"),
        ("entries", f"{result['entries']:,} of {result['max_entries']:,}"),
        ("size", f"{size(result['size_bytes'])} of {size(result['max_bytes'])}"),
        ("sets", f"{result['sets']:,}"),
        ("deletes", f"{result['deletes']:,}"),
        ("evictions", f"{result['evictions']:,}"),
        ("expirations", f"{result['expirations']:,}"),
        ("rings", f"{size(result['ring_bytes'])}, {result['live_ratio']:.1%} live"),
        ("write amplification", "–" if amplification is None else f"{amplification:.2f}"),
        ("attached processes", f"{result['clients']:,}"),
    ):
        table.add_row(label, value)
    return table


def _config_lines(result: dict[str, Any], console: Console) -> None:
    for row in result["settings"]:
        value = "–" if row["value"] is None else f"{row['value']} {row['unit'] or ''}".rstrip()
        console.say(f"{row['key']} = {visible(value)}")
        console.say(f"  {console.paint(visible(row['origin']), '2')}")


def _config(result: dict[str, Any]) -> Table:
    table = plain_table("setting", "value", "unit", "from")
    for row in result["settings"]:
        value = "–" if row["value"] is None else str(row["value"])
        table.add_row(row["key"], Text(value), row["unit"] or "", Text(row["origin"]))
    return table
