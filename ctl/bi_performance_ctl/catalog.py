"""What can be commanded: the table's rows and the program's own, found by their words.

argparse is imported late: `status` does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bi_performance_ctl.console import USAGE, Exit
from bi_performance_wire.commands import COMMANDS, Command

if TYPE_CHECKING:
    import argparse


class Local(NamedTuple):
    """A command of the control program itself: its module has `add(parser)` and `run`."""

    words: str
    summary: str
    module: str
    example: str
    """Commands that work as they stand, one a line."""


LOCAL = (
    Local(
        "benchmark",
        "Measure the cache on this host, beside a plain dict.",
        "benchmark",
        "bi-performance benchmark --iterations 100",
    ),
    Local("demo", "Crawl a real site with and without the sidecar.", "demo", "bi-performance demo"),
    Local(
        "doctor",
        "Find out why it does not work, and how to mend it.",
        "doctor",
        "bi-performance doctor",
    ),
    Local("logs", "Show the daemon's log for people.", "logs", "bi-performance logs --follow"),
    Local(
        "monitor",
        "Watch the cache, the host and the attached processes as they are now.",
        "monitor",
        "bi-performance monitor\n"
        "bi-performance monitor --interval 10 >> monitor.txt\n"
        "bi-performance monitor --once",
    ),
    Local(
        "completion",
        "Print the shell's completion script.",
        "completion",
        "bi-performance completion bash > /etc/bash_completion.d/bi-performance",
    ),
)


def find_command(rest: list[str]) -> tuple[Command | Local, list[str]]:
    """The command that the words begin with, and what follows them. Raises Exit."""
    known: dict[str, Command | Local] = {row.cli: row for row in COMMANDS if row.cli}
    known.update({row.words: row for row in LOCAL})
    for count in (2, 1):
        words = " ".join(rest[:count])
        if words in known:
            return known[words], rest[count:]
    group = [words for words in known if words.split()[0] == rest[0]]
    if group:
        raise Exit(USAGE, f"{rest[0]} needs one of: {', '.join(w.split()[1] for w in group)}")
    import difflib

    near = difflib.get_close_matches(" ".join(rest[:2]), known, n=1) or difflib.get_close_matches(
        rest[0], known, n=1
    )
    hint = f"did you mean {near[0]}?" if near else "bi-performance --help lists them"
    raise Exit(USAGE, f"there is no command {rest[0]!r}; {hint}")


def parser_of(words: str, summary: str, example: str | None) -> argparse.ArgumentParser:
    """The parser of a command; the global options stand in its help, and are taken before."""
    import argparse

    made = argparse.ArgumentParser(
        prog=f"bi-performance {words}",
        description=summary,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_examples(example) if example else None,
    )
    add = made.add_argument_group("options of every command").add_argument
    add("--socket", metavar="PATH", help="the daemon's control socket")
    add("--json-output", action="store_true", help="print one JSON document, for scripts")
    add("--timeout", metavar="SECONDS", help="for the daemon's answer (10)")
    add("--no-color", action="store_true", help="no colors (also: NO_COLOR in the environment)")
    return made


def _examples(example: str) -> str:
    lines = example.splitlines()
    return "\n  ".join(["example:" if len(lines) == 1 else "examples:", *lines])
