"""What the demo shows: headings, progress and tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from bi_performance_ctl.console import Console
from bi_performance_ctl.render.paper import plain_table, terminal
from bi_performance_ctl.render.status import status as status_text
from bi_performance_ctl.render.units import size


class Bar:
    """A progress bar, or a line at every quarter where there is no terminal."""

    def __init__(self, label: str, out: Terminal) -> None:
        self._label = label
        self._out = out
        self._quarter = 0
        self._rich: Progress | None = None

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            self._rich = Progress(
                TextColumn("  {task.description:26}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self._out,
                transient=True,
            )
            self._rich.start()
            self._rich.add_task(self._label, total=None)
        return self

    def to(self, done: int, total: int) -> None:
        """So much of so much is done."""
        if self._rich is not None:
            self._rich.update(self._rich.task_ids[0], completed=done, total=total)
            return
        quarter = done * 4 // max(1, total)
        if quarter > self._quarter and quarter in (2, 4):
            self._out.print(f"  {self._label}: {done} of {total}")
        self._quarter = max(self._quarter, quarter)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()


class Screen:
    """Where the demo's story goes: standard output, or standard error beside --json-output."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._out = terminal(console)
        if console.json:
            self._out.file = sys.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._out.file.flush()

    def head(self, title: str, rest: str) -> None:
        self._out.print()
        self._out.print(Text(title, style="bold"), end="\n" if not rest else "")
        if rest:
            self._out.print(Text(f"  {rest}", style="dim"))

    def note(self, text: str) -> None:
        self._out.print(Text(text))

    def progress(self, label: str) -> Bar:
        return Bar(label, self._out)

    def arms(self, rows: list[dict[str, Any]]) -> None:
        """One line an arm; the best figures are not marked, they can be seen."""
        table = plain_table(
            "  ", "time", "pages fetched", "repeats avoided", "hit rate", "bytes", "times as fast"
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            avoided = f"{row['hits']} of {row['repeated']}" if row["arm"] != "none" else "–"
            table.add_row(
                f"  {row['label']}",
                f"{row['seconds']:.2f} s",
                f"{row['fetched']}",
                avoided,
                f"{row['hit_rate']:.0%}" if row["arm"] != "none" else "–",
                size(row["bytes"]),
                f"{row['times_faster']:.2f}×",
            )
        self._out.print(table)

    def status(self, result: dict[str, Any]) -> None:
        self.head("bi-performance status", "")
        for line in status_text(result, self._console).splitlines():
            self._out.print(Text.from_ansi(f"  {line}") if line else "")
