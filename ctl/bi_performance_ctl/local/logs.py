"""`logs`: the daemon's JSON lines for people, followed over rotation."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from bi_performance_ctl.console import FAILED, USAGE, Console, Exit
from bi_performance_wire.streams import visible

LEVELS = ("debug", "info", "warning", "error", "critical")
_COLORS = {"warning": "33", "error": "31", "critical": "31;1", "debug": "2"}
LOOK_EVERY = 0.2
MAX_LINE = 1 << 20
"""Bytes; what is longer is shown in parts."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow", "-f", action="store_true", help="go on as lines come")
    parser.add_argument("--lines", "-n", metavar="N", default="20", help="how many to begin with")
    parser.add_argument("--level", choices=LEVELS, default="debug", help="least level shown")
    parser.add_argument("--file", metavar="PATH", help="this file instead of the daemon's own")


def run(args: argparse.Namespace, console: Console) -> int:
    if not args.lines.isdigit():
        raise Exit(USAGE, f"--lines must be a whole number, not {args.lines!r}")
    path = Path(args.file) if args.file else find_log(console)
    least = LEVELS.index(args.level)
    try:
        file = path.open("rb")
    except OSError as error:
        raise Exit(FAILED, f"{path} cannot be read: {error.strerror}") from None
    with file:
        lines = iter(partial(file.readline, MAX_LINE), b"")
        for line in deque(lines, maxlen=int(args.lines)) if int(args.lines) else ():
            _print(line, least, console)
        at = file.seek(0, os.SEEK_END)
    if args.follow:
        sys.stdout.flush()
        for line in follow(path, at):
            _print(line, least, console)
            sys.stdout.flush()
    return 0


def find_log(console: Console) -> Path:
    """The file that the daemon names; without a daemon the default places."""
    try:
        named = console.ask("server.info")["log_file"]
    except Exit:
        state = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
        places = [
            Path("logs/performance.log"),
            Path(state) / "bi-performance" / "performance.log",
            Path("/var/log/bi-performance/performance.log"),
        ]
        for place in places:
            if place.is_file():
                return place
        raise
    if named is None:
        raise Exit(
            FAILED,
            "the daemon logs to its standard error; under systemd read it with"
            " journalctl -u bi-performance",
        )
    return Path(named)


def follow(path: Path, at: int) -> Iterator[bytes]:
    """Whole lines that are appended from `at` on, also to files that take the path's place."""
    while True:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            # Between a rotation and the daemon's next line.
            time.sleep(LOOK_EVERY)
            continue
        with file:
            file.seek(at)
            yield from _appended(file, path)
        at = 0


def _appended(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Whole lines of one file until another has its place, or it was cut short."""
    rest = b""
    while True:
        # Looked at before it is read: what was written before a rotation is read after it.
        replaced = _is_replaced(file, path)
        data = file.read()
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if replaced:
            return
        if not data:
            time.sleep(LOOK_EVERY)


def _is_replaced(file: BinaryIO, path: Path) -> bool:
    ours = os.fstat(file.fileno())
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev) or ours.st_size < file.tell()


def _print(line: bytes, least: int, console: Console) -> None:
    text = line.decode("utf-8", "backslashreplace").strip()
    try:
        event: dict[str, Any] = json.loads(text)
        level = str(event["level"])
        if level in LEVELS and LEVELS.index(level) < least:
            return
        console.say(visible(text) if console.json else _person(event, console))
    except (ValueError, KeyError, TypeError, RecursionError):
        # Not a line of ours: shown as it is rather than hidden.
        console.say(visible(text))


def _person(event: dict[str, Any], console: Console) -> str:
    level = str(event.pop("level"))
    when = visible(str(event.pop("timestamp", ""))[:23].replace("T", " "))
    name = visible(str(event.pop("event", "")))
    event.pop("logger", None)
    error = event.pop("exception", None)
    fields = " ".join(
        f"{key}={value if isinstance(value, str) and ' ' not in value else json.dumps(value)}"
        for key, value in event.items()
    )
    color = _COLORS.get(level, "0")
    line = f"{console.paint(when, '2')} {console.paint(f'{visible(level):8}', color)}"
    line += f" {console.paint(name, '1')} {visible(fields)}".rstrip()
    if isinstance(error, dict):
        line += "\n" + visible(str(error.get("traceback", "")).rstrip(), lines=True)
    return line
