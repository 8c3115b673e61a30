"""The program `bi-performanced`."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from bi_performance_wire.errors import WireError
from bi_performance_wire.streams import complain, open_streams, output_failed, visible
from bi_performanced.advice.catalog import read_profiles
from bi_performanced.config import ConfigError, Settings, load
from bi_performanced.config.load import listing
from bi_performanced.config.parse import Problem

PROGRAM = "bi-performanced"
_M_MMAP_THRESHOLD = -3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; returns the exit status (0 stopped, 1 failed, 2 wrong configuration)."""
    open_streams()
    try:
        try:
            options = load(sys.argv[1:] if argv is None else argv, os.environ, Path.cwd())
            read_profiles(options.settings.advice.profiles_dir)
            if options.check:
                _show(options.settings)
                return 0
        finally:
            # Here, where it can be told that there is no room, and not at the interpreter's end.
            sys.stdout.flush()
    except ConfigError as error:
        for problem in error.problems:
            _say(problem)
        return 2
    except Problem as problem:
        _say(str(problem))
        return 2
    except OSError as error:
        output_failed(PROGRAM, error)
        return 1
    _allow_descriptors()
    _give_memory_back()
    # Late: what only checks the configuration need not load the loop and the fronts.
    from bi_performanced.app import App, StartError

    try:
        App(options.settings, os.environ, Path.cwd()).run()
    except StartError as error:
        _say(str(error))
        return 1
    except WireError as error:
        where = f"{error.field}: " if error.field else ""
        _say(f"{where}{error.message}{'; ' + error.hint if error.hint else ''}")
        return 1
    return 0


def _show(settings: Settings) -> None:
    rows = listing(settings)
    width = max(len(row.key) for row in rows)
    for row in rows:
        value = f"{row.value}{' ' + row.unit if row.unit and row.value is not None else ''}"
        sys.stdout.write(f"{row.key:{width}}  {visible(value):28}  {visible(row.origin)}\n")


def _say(problem: str) -> None:
    complain(PROGRAM, visible(problem))


def _allow_descriptors() -> None:
    """Raise the soft limit of open files to the hard one: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _give_memory_back() -> None:
    """Let glibc return every large block to the system when it is freed.

    By itself it raises the threshold (mallopt(3), M_MMAP_THRESHOLD) with the blocks it sees, up to
    32 MiB: one burst of large messages then stays with the process for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


if __name__ == "__main__":
    sys.exit(main())
