"""What tables are printed on: rich, told what our console knows."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console as Terminal
from rich.table import Table

from bi_performance_ctl.console import Console


def terminal(console: Console) -> Terminal:
    """rich's console, told what ours knows; plain text is never folded when it goes to a file."""
    made = Terminal(no_color=not console.color, highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = 200
    return made


def plain_table(*columns: str, right: Collection[str] = ()) -> Table:
    """A table without lines; the columns of `right` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return table
