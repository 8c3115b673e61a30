"""A pseudo-terminal, to see what a person sees, and to type into it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return {**kept, "TERM": "xterm-256color", **(env or {})}


def _set_size(fd: int, columns: int, lines: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))


def on_a_terminal(
    command: Sequence[str], *, columns: int = 80, env: Mapping[str, str] | None = None
) -> str:
    """What a program that ends with status 0 writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    _set_size(theirs, columns, 24)
    process = subprocess.Popen(command, env=_environment(env), stdout=theirs, stderr=theirs)
    os.close(theirs)
    data = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            # The other end was closed with the process's end.
            break
        if not piece:
            break
        data += piece
    os.close(ours)
    assert process.wait(30) == 0, data
    return data.decode()


_PIECE = re.compile(
    r"\x1b\[(?P<private>\??)(?P<numbers>[\d;]*)(?P<end>[A-Za-z])"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[=>78()][AB0]?|(?P<one>[^\x1b])",
    re.DOTALL,
)


class Picture:
    """What stands on a terminal: as much of one as full-screen programs of ours use."""

    def __init__(self, columns: int, lines: int) -> None:
        self.cursor_shown = True
        self.alternate = False
        """Whether the program has the screen that is put back at its end."""
        self._rest = ""
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        self.columns = columns
        self.cells = [[" "] * columns for _ in range(lines)]
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        text = self._rest + text
        at = 0
        while at < len(text):
            found = _PIECE.match(text, at)
            if found is None:
                # The rest of an escape sequence has not come yet.
                break
            at = found.end()
            if found["one"]:
                self._write(found["one"])
            elif found["end"]:
                self._command(found["private"], found["numbers"], found["end"])
        self._rest = text[at:]

    def _write(self, one: str) -> None:
        if one == "\r":
            self.column = 0
        elif one == "\n":
            self.row += 1
            if self.row >= len(self.cells):
                self.cells = [*self.cells[1:], [" "] * self.columns]
                self.row = len(self.cells) - 1
        elif one == "\b":
            self.column = max(0, self.column - 1)
        elif one >= " ":
            if self.column >= self.columns:
                self._write("\r")
                self._write("\n")
            self.cells[self.row][self.column] = one
            self.column += 1

    def _command(self, private: str, numbers: str, end: str) -> None:
        values = [int(number or 0) for number in numbers.split(";")] if numbers else []
        first = values[0] if values else 0
        if private:
            if 25 in values:
                self.cursor_shown = end == "h"
            if 1049 in values:
                self.alternate = end == "h"
                self.resize(self.columns, len(self.cells))
        elif end == "H":
            self.row = min(max(first, 1), len(self.cells)) - 1
            self.column = min(max(values[1] if len(values) > 1 else 1, 1), self.columns) - 1
        elif end == "A":
            self.row = max(0, self.row - max(first, 1))
        elif end == "K":
            for at in range(0 if first else self.column, self.columns):
                self.cells[self.row][at] = " "
        elif end == "J":
            begin = 0 if first else self.row
            for row in range(begin, len(self.cells)):
                self.cells[row] = [" "] * self.columns

    @property
    def text(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self.cells)


class Session:
    """A program on a terminal of its own, driven as a person does.

    A context manager: the program is gone outside. `raw` is all that it wrote.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        lines: int = 24,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._ours, theirs = pty.openpty()
        self._open = True
        _set_size(theirs, columns, lines)
        self.picture = Picture(columns, lines)
        self.raw = b""
        self._decoded = 0
        self.before: list[Any] = termios.tcgetattr(self._ours)

        def lead() -> None:
            # The terminal is the new session's own, so that Ctrl-C and Ctrl-Z are signals.
            os.setsid()
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        self.process = subprocess.Popen(
            command,
            env=_environment(env),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=lead,
        )
        # Kept open: what the program leaves of the terminal's modes can be looked at afterwards.
        self._theirs = theirs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(30)
        self.hang_up()
        os.close(self._theirs)

    def hang_up(self) -> None:
        """Close the window."""
        if self._open:
            self._open = False
            os.close(self._ours)

    @property
    def modes(self) -> list[Any]:
        """The terminal's modes as they are now."""
        return termios.tcgetattr(self._ours)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Another size of the window; the program is told, as by a terminal emulator."""
        self.look()
        self.picture.resize(columns, lines)
        _set_size(self._ours, columns, lines)

    def look(self) -> Picture:
        """Take in what was written up to now."""
        while select.select([self._ours], [], [], 0)[0]:
            try:
                self.raw += os.read(self._ours, 65536)
            except OSError:
                break
        # A sign of several bytes may have come in part.
        text = self.raw[self._decoded :].decode(errors="ignore")
        self._decoded += len(text.encode())
        self.picture.feed(text)
        return self.picture

    def wait_for(self, condition: Callable[[str], object], *, within: float = 20.0) -> str:
        """Look until the text on the screen fulfils the condition; returns the text."""
        deadline = time.monotonic() + within
        while True:
            text = self.look().text
            if condition(text):
                return text
            left = deadline - time.monotonic()
            assert left > 0, f"this did not come within {within:g} s; the screen has:\n{text}"
            assert self.process.poll() is None or select.select([self._ours], [], [], 0)[0], (
                f"the program ended; the screen has:\n{text}"
            )
            select.select([self._ours], [], [], min(left, 0.1))

    def end(self, within: float = 20.0) -> int:
        """Wait for the program's end, taking in what it writes; its exit status."""
        deadline = time.monotonic() + within
        while self.process.poll() is None:
            self.look()
            assert time.monotonic() < deadline, f"it does not end:\n{self.picture.text}"
            select.select([self._ours], [], [], 0.05)
        self.look()
        return self.process.returncode
