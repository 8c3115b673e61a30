"""The program `bi-performance`: finds the command, builds its parser from the table, runs it.

`status` is what monitoring scripts call every few seconds, so nothing is imported here that it
does not need.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bi_performance_ctl.catalog import Local, find_command, parser_of
from bi_performance_ctl.console import FAILED, USAGE, Console, Exit
from bi_performance_wire import __version__
from bi_performance_wire.commands import Command
from bi_performance_wire.streams import complain, open_streams, output_failed


class Options(NamedTuple):
    """The options that stand before or after the command."""

    socket: str | None = None
    json_output: bool = False
    timeout: str = "10"
    no_color: bool = False


def take_options(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """The global options, wherever they stand, and the other words. Raises Exit (usage).

    Written out because argparse takes longer to import than `status` to run.
    """
    found: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, given, value = word.partition("=")
        if word == "--":
            rest += [word, *words]
        elif name in ("--socket", "--timeout"):
            text = value if given else next(words, None)
            if text is None:
                raise Exit(USAGE, f"{name} needs a value")
            found[name[2:]] = text
        elif word in ("--json-output", "--no-color"):
            found[word[2:].replace("-", "_")] = True
        else:
            rest.append(word)
    return Options(**found), rest


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 error, 2 usage, 3 not reachable)."""
    open_streams()
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except Exit as done:
        if done.message:
            complain("bi-performance", done.message)
        return done.status
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        output_failed("bi-performance", error)
        return FAILED


def _run(argv: list[str]) -> int:
    options, rest = take_options(argv)
    if rest[:1] == ["--version"]:
        sys.stdout.write(f"bi-performance {__version__}\n")
        return 0
    if not rest or rest[0] in ("-h", "--help", "help"):
        from bi_performance_ctl.help import overview

        sys.stdout.write(overview())
        return 0 if rest else USAGE
    if rest[1:] and rest[1] in ("-h", "--help"):
        from bi_performance_ctl.help import group

        if text := group(rest[0]):
            sys.stdout.write(text)
            return 0
    console = Console(
        options.socket, options.json_output, _seconds(options.timeout), _color(options)
    )
    row, rest = find_command(rest)
    if isinstance(row, Local):
        import importlib

        module = importlib.import_module(f"bi_performance_ctl.local.{row.module}")
        parser = parser_of(row.words, row.summary, row.example)
        module.add(parser)
        status: int = module.run(parser.parse_args(rest), console)
        return status
    run = _special(row)
    if run is not None:
        return run(row, rest, console)
    args = None
    if rest or row.args is not None:
        parser = parser_of(row.cli or "", row.summary, row.example)
        if row.args is None:
            parser.parse_args(rest)
        else:
            from bi_performance_ctl.arguments import add_fields, collect

            add_fields(parser, row)
            args = collect(row, parser.parse_args(rest))
    result = console.ask(row.name, args)
    if console.json:
        console.document(result)
    else:
        from bi_performance_ctl.render import show

        show(row.name, result, console)
    return 0


def _special(row: Command) -> Callable[[Command, list[str], Console], int] | None:
    """Commands whose values are encoded and decoded here, as every client of ours does."""
    if row.name in ("cache.get", "cache.set"):
        from bi_performance_ctl import entries

        return entries.get if row.name == "cache.get" else entries.put
    return None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise Exit(USAGE, f"--timeout must be a number of seconds more than 0, not {text!r}")
    return seconds


def _color(options: Options) -> bool:
    return (
        not options.no_color
        and not options.json_output
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
        and sys.stdout.isatty()
    )


if __name__ == "__main__":
    sys.exit(main())
