"""A pseudo-terminal, to see what a person sees."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence


def on_a_terminal(
    command: Sequence[str], *, columns: int = 80, env: Mapping[str, str] | None = None
) -> str:
    """What a program that ends with status 0 writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command, env={**kept, "TERM": "xterm-256color", **(env or {})}, stdout=theirs, stderr=theirs
    )
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
