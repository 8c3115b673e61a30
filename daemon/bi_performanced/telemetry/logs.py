"""Structured logs: one JSON object a line, whatever is logged.

Lines are written as they come, unbuffered: a slow disk slows the daemon for as long as one write
takes, and a full one costs the line, which is counted and reported once there is room again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import sys
import time
import traceback
from collections.abc import MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

MAX_TEXT = 8192
MAX_ITEMS = 100
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


class LogSink:
    """Where lines go: a file that can be opened anew, or standard error. Never raises."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._fd = -1
        self.lost = 0
        """Lines that could not be written."""
        self._open()

    def _open(self) -> None:
        if self.path is None:
            self._fd = 2
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
        try:
            # Without waiting: a pipe would keep the daemon until somebody reads it.
            fd = os.open(self.path, flags | os.O_NONBLOCK, 0o640)
        except OSError as error:
            # What open(2) says of a socket, and of a pipe that nobody reads.
            raise _no_file() if error.errno == errno.ENXIO else error from None
        kind = os.fstat(fd).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISCHR(kind):
            os.close(fd)
            raise _no_file()
        os.set_blocking(fd, True)
        self._fd = fd

    def reopen(self) -> str | None:
        """Open the file anew, after it was renamed; the reason when that fails.

        The old file is written on then.
        """
        if self.path is None:
            return None
        old = self._fd
        try:
            self._open()
        except OSError as error:
            self._fd = old
            return error.strerror
        os.close(old)
        return None

    def write(self, line: str) -> bool:
        """Write a line; whether it is there whole. One that is not is counted in `lost`."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written < len(data):
            self.lost += 1
            return False
        return True

    def close(self) -> None:
        if self._fd > 2:
            os.close(self._fd)
            self._fd = 2


def _no_file() -> OSError:
    return OSError(errno.EINVAL, "it is neither a regular file nor a terminal or another device")


def render(event: MutableMapping[str, Any]) -> str:
    """One line of JSON for an event; anything that JSON cannot say becomes text."""
    return json.dumps(_plain(event, 0), ensure_ascii=True, allow_nan=False)


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + "…"
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else _text(value)
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, bytes):
        return _plain(value[:MAX_TEXT].decode("utf-8", "backslashreplace"), depth)
    if depth < 6:
        if isinstance(value, dict):
            items = list(value.items())[:MAX_ITEMS]
            return {_text(key): _plain(item, depth + 1) for key, item in items}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value[:MAX_TEXT]
    try:
        return str(value)[:MAX_TEXT]
    except Exception as error:
        # An object's own __str__ may do anything; the line matters more.
        return f"<{type(value).__name__}: {type(error).__name__} in __str__>"


class _Processor:
    """structlog's last processor: adds what every line has, and writes it."""

    def __init__(self, sink: LogSink, level: int) -> None:
        self.sink = sink
        self.level = level

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        level = method.upper() if method != "exception" else "ERROR"
        if _LEVELS.get(level, 20) < self.level:
            raise structlog.DropEvent
        line: dict[str, Any] = {
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level.lower(),
            "event": event.pop("event", ""),
            "logger": "performance",
        }
        error = event.pop("exc_info", None)
        if error is True:
            error = sys.exc_info()[1]
        if isinstance(error, tuple):
            error = error[1]
        line.update({key if key not in line else f"{key}_": item for key, item in event.items()})
        if isinstance(error, BaseException):
            line["exception"] = {
                "type": type(error).__qualname__,
                "message": _text(error),
                "traceback": "".join(traceback.format_exception(error))[-MAX_TEXT:],
            }
        lost = self.sink.lost
        if lost:
            line["lines_lost"] = lost
        if self.sink.write(render(line)):
            self.sink.lost -= lost
        raise structlog.DropEvent


class _Handler(logging.Handler):
    """Lines of libraries that use the standard library's logging."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            method = record.levelname.lower()
            log = structlog.get_logger("performance")
            getattr(log, method if method in ("debug", "info", "error", "critical") else "warning")(
                "library.message",
                source=record.name,
                message=_message(record),
                exc_info=record.exc_info[1] if record.exc_info else None,
            )
        except Exception:
            self.handleError(record)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        # A library whose arguments do not fit its format: say what there is.
        return f"{record.msg} {record.args}"


def configure(level: str, path: Path | None) -> LogSink:
    """Send every structlog and logging line to `path` (None: standard error).

    Raises OSError when the file cannot be opened.
    """
    sink = LogSink(path)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _Processor(sink, _LEVELS[level]),
        ],
        wrapper_class=structlog.BoundLogger,
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Handler()]
    root.setLevel(max(_LEVELS[level], logging.INFO))
    return sink


class Limited:
    """Lets a repeated event through at most once in `every` seconds, and counts the others."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._next: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def warning(self, event: str, **fields: Any) -> None:
        now = time.monotonic()
        if now < self._next.get(event, 0.0):
            self._held[event] = self._held.get(event, 0) + 1
            return
        self._next[event] = now + self._every
        held = self._held.pop(event, 0)
        if held:
            fields["suppressed"] = held
        structlog.get_logger("performance").warning(event, **fields)
