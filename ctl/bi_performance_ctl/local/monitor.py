"""`monitor`: live in a terminal, a line an interval elsewhere, one report with `--once`."""

from __future__ import annotations

import argparse
import os
import select
import sys
import time

from bi_performance.protocol import drive
from bi_performance_ctl.console import USAGE, Console, Exit
from bi_performance_ctl.watch import Watcher

SHORTEST, LONGEST = 0.2, 3600.0
WIDTH = 100
"""Columns of the report where there is no terminal."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval", metavar="SECONDS", default="2", help="between two looks, 0.2 to 3600 (2)"
    )
    parser.add_argument("--once", action="store_true", help="one report, and the end")


def run(args: argparse.Namespace, console: Console) -> int:
    try:
        interval = float(args.interval)
    except ValueError:
        interval = 0.0
    if not SHORTEST <= interval <= LONGEST:
        raise Exit(
            USAGE,
            f"--interval must be a number of seconds from {SHORTEST:g} to {LONGEST:g},"
            f" not {args.interval!r}",
        )
    try:
        if args.once:
            _once(console)
        elif not console.json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            return _live(interval, console)
        else:
            _lines(interval, console)
    except KeyboardInterrupt:
        # This is how it is meant to be ended.
        pass
    return 0


def _once(console: Console) -> None:
    watcher = Watcher(console, drive)
    try:
        view = watcher.look()
    finally:
        watcher.close()
    if console.json:
        console.document(view.document())
        return
    from bi_performance_ctl.render.monitor import report
    from bi_performance_ctl.render.paper import terminal

    terminal(console).print(report(view, console.columns or WIDTH))


def _lines(interval: float, console: Console) -> None:
    """A line, or a JSON document in a line, each interval. Raises BrokenPipeError."""
    from bi_performance_ctl.render.monitor import json_line, line

    watcher = Watcher(console, drive)
    due = time.monotonic()
    try:
        while True:
            view = watcher.look()
            console.say(json_line(view) if console.json else line(view))
            sys.stdout.flush()
            # What took longer than an interval is not made up for.
            due = max(due + interval, time.monotonic())
            _pause(due - time.monotonic())
    finally:
        watcher.close()


def _pause(seconds: float) -> None:
    """Wait; raises BrokenPipeError as soon as nobody reads the lines any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if poll.poll(seconds * 1000):
        raise BrokenPipeError(32, "nobody reads")


def _live(interval: float, console: Console) -> int:
    from bi_performance_ctl.render.monitor import screen
    from bi_performance_ctl.render.paper import terminal
    from bi_performance_ctl.screen import Ended, Quit, Screen

    watcher = Watcher(console, drive)
    try:
        # Before the terminal is taken: without a daemon a sentence is all there is to see.
        shown = [watcher.look()]
        display = Screen(
            terminal(console), lambda width, height: screen(shown[0], width, height, interval)
        )
        with display:
            watcher.drive = display.drive
            while True:
                display.draw()
                display.pause(time.monotonic() + interval)
                shown[0] = watcher.look()
    except Quit:
        return 0
    except Ended as ended:
        return 128 + ended.number
    finally:
        watcher.close()
