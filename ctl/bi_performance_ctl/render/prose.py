"""Lines of text: folded to the terminal, labels and values in columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from bi_performance_ctl.console import Console
from bi_performance_ctl.render.cells import broken, width
from bi_performance_wire.streams import visible

NARROWEST = 30
"""Columns below which folding only makes it worse."""


def fold(text: str, indent: str, console: Console, *, first: str | None = None) -> list[str]:
    """Text in lines that the terminal shows whole; one line when the output is no terminal."""
    begin = indent if first is None else first
    columns = console.columns
    if columns is None or columns - len(indent) < NARROWEST:
        return [begin + text]
    if not text.isascii():
        return _folded(text, begin, indent, columns)
    return textwrap.wrap(
        text,
        columns,
        initial_indent=begin,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [begin]


def _folded(text: str, begin: str, indent: str, columns: int) -> list[str]:
    """The same by the columns that characters take. Some languages write no blanks: what is longer
    than a line is broken where it ends."""
    room = columns - max(width(begin), width(indent))
    lines, start = [], begin
    for word in text.split():
        whole = start if start in (begin, indent) else start + " "
        if whole != begin and whole != indent and width(whole + word) > columns:
            lines.append(start)
            whole = indent
        *full, last = broken(word, room)
        for piece in full:
            lines.append(whole + piece)
            whole = indent
        start = whole + last
    return [*lines, start]


def fold_parts(parts: list[str], indent: int, columns: int | None) -> str:
    """The parts in one line, or in as many as the terminal needs; each part whole."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines[-1] else part
        if lines[-1] and columns is not None and indent + width(longer) > columns:
            lines.append(part)
        else:
            lines[-1] = longer
    return ("\n" + " " * indent).join(lines)


def pairs(rows: Iterable[tuple[str, str]], console: Console, *, indent: str = "  ") -> list[str]:
    """A label and a value a line, the values below each other; folded where they are long."""
    found = [(visible(name), visible(value)) for name, value in rows]
    column = max((width(name) for name, _ in found), default=0) + 2
    lines = []
    for name, value in found:
        begin = indent + name + " " * (column - width(name))
        lines += fold(value, " " * (len(indent) + column), console, first=begin)
    return lines


def heading(text: str, console: Console) -> str:
    return console.paint(visible(text), "1")


def joined(parts: Sequence[str | None]) -> str:
    """Those parts that there are, with a dot between them."""
    return " · ".join(part for part in parts if part)
