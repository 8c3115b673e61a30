"""Standard output and error as our programs use them: whatever they are, and whoever reads.

Both programs begin with `open_streams`; nothing heavy is imported here.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

_ORDERING = (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
"""Characters without a sign of their own that change the order in which a terminal, or what shows a
log, writes others, and the two that end a line in some: a key could seem to be another one."""
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_CONTROLS = {
    code: _NAMED.get(chr(code), f"\\x{code:02x}") for code in (*range(0x20), *range(0x7F, 0xA0))
} | {code: f"\\u{code:04x}" for code in _ORDERING}
_CONTROLS_IN_LINES = {code: text for code, text in _CONTROLS.items() if chr(code) not in "\n\t"}
CONTROLS_IN_JSON = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), *_ORDERING)}
"""Those that JSON leaves as they are."""
_PLAIN_SIGNS = {
    "●": "*",
    "–": "-",
    "…": "...",
    "µ": "u",
    "→": "->",
    "·": "|",
    "±": "+-",
    "│": "|",
    "└": "+",
    "─": "-",
    "▲": "^",
    **dict(zip("▁▂▃▄▅▆▇█", "_.:-=+*#", strict=True)),
}


def visible(text: str, *, lines: bool = False) -> str:
    """Text that commands no terminal: control characters, also those of the writing's direction, as
    escapes, but in `lines` \\n and \\t."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.translate(_CONTROLS_IN_LINES if lines else _CONTROLS)


def open_streams() -> None:
    """Make output possible whatever the streams are: closed, or without our signs."""
    for fd in (0, 1, 2):
        # Else the next file that is opened takes the number, and what is said goes into it.
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 (as Python's own)
    if sys.stderr is None:
        sys.stderr = sys.stdout
    import codecs

    codecs.register_error("signs", _plain_sign)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="signs")


def _plain_sign(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    found = (
        _PLAIN_SIGNS.get(each, each.encode("ascii", "backslashreplace").decode()) for each in text
    )
    return "".join(found), error.end


def writable(text: str) -> str:
    """Text as it will stand on standard output, to be measured before it is written."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "signs").decode(encoding)


def complain(program: str, message: str) -> None:
    """Say what is wrong on standard error, when that can be written, and command no terminal."""
    try:
        sys.stderr.write(f"{program}: {visible(message, lines=True)}\n")
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)


def output_failed(program: str, error: OSError) -> None:
    """After a write to standard output raised `error`: say so, unless the reader has left.

    Raises the error again when it came from something else, as a file that was opened.
    """
    if error.filename is not None or error.errno is None:
        raise error
    _discard(sys.stdout)
    if not isinstance(error, BrokenPipeError):
        complain(program, f"the output cannot be written: {error.strerror}")


def _discard(stream: TextIO) -> None:
    """What is left in the buffer cannot be written, nor shall the interpreter try at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
