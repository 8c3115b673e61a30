"""Completion scripts, made from the table."""

from __future__ import annotations

import argparse

from bi_performance_ctl.catalog import LOCAL, parser_of
from bi_performance_ctl.console import Console
from bi_performance_wire.commands import COMMANDS

GLOBAL = ("--socket", "--json-output", "--timeout", "--no-color", "--help")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace, console: Console) -> int:
    console.say({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell]())
    return 0


def _words() -> dict[str, list[str]]:
    """The options after each command, by its words."""
    found: dict[str, list[str]] = {}
    for row in COMMANDS:
        if row.cli:
            parser = parser_of(row.cli, row.summary, None)
            if row.args:
                from bi_performance_ctl.arguments import add_fields

                add_fields(parser, row)
            found[row.cli] = _options(parser)
    import importlib

    for local in LOCAL:
        parser = parser_of(local.words, local.summary, None)
        importlib.import_module(f"bi_performance_ctl.local.{local.module}").add(parser)
        found[local.words] = _options(parser)
    return found


def _inner(words: dict[str, list[str]], group: str) -> list[str]:
    """The second words of a group's commands."""
    return [name.split()[1] for name in words if name.startswith(group + " ")]


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return sorted(
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    )


def _bash() -> str:
    words = _words()
    first = sorted({name.split()[0] for name in words})
    cases = []
    for group in first:
        if inner := _inner(words, group):
            cases.append(
                f'        {group}) [ "$COMP_CWORD" -eq 2 ] && words="{" ".join(inner)}" ;;'
            )
    options = [
        f'        "{name}") words="$words {" ".join(found)}" ;;' for name, found in words.items()
    ]
    return f"""\
# bash completion for bi-performance
_bi_performance() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{" ".join([*first, *GLOBAL])}"
    fi
    case "${{COMP_WORDS[1]}}" in
{chr(10).join(cases)}
    esac
    local two="${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}"
    local said="${{COMP_WORDS[1]}}"
    [ "$COMP_CWORD" -gt 2 ] && case "$two" in
{chr(10).join(f'        "{name}") said="$two" ;;' for name in words if " " in name)}
    esac
    [ "$COMP_CWORD" -gt 1 ] && case "$said" in
{chr(10).join(options)}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}
complete -F _bi_performance bi-performance"""


def _zsh() -> str:
    words = _words()
    lines = [f"        '{name}') compadd -- {' '.join(found)} ;;" for name, found in words.items()]
    first = sorted({name.split()[0] for name in words})
    groups = sorted({name.split()[0] for name in words if " " in name})
    inner = "\n".join(
        f"            {group}) compadd -- {' '.join(_inner(words, group))} ;;" for group in groups
    )
    known = "|".join(f"'{name}'" for name in words if " " in name)
    return f"""\
#compdef bi-performance
_bi_performance() {{
    if (( CURRENT == 2 )); then
        compadd -- {" ".join([*first, *GLOBAL])}
        return
    fi
    if (( CURRENT == 3 )); then
        case "$words[2]" in
{inner}
        esac
    fi
    local said="$words[2]"
    case "$words[2] $words[3]" in
        {known}) said="$words[2] $words[3]" ;;
    esac
    case "$said" in
{chr(10).join(lines)}
    esac
}}
compdef _bi_performance bi-performance"""


def _fish() -> str:
    lines = ["# fish completion for bi-performance", "complete -c bi-performance -f"]
    seen: set[str] = set()
    for name, found in _words().items():
        first, _, second = name.partition(" ")
        if first not in seen:
            seen.add(first)
            lines.append(f"complete -c bi-performance -n __fish_use_subcommand -a {first}")
        if second:
            lines.append(
                f"complete -c bi-performance -n '__fish_seen_subcommand_from {first}' -a {second}"
            )
        where = f"__fish_seen_subcommand_from {first}"
        if second:
            where += f"; and __fish_seen_subcommand_from {second}"
        lines += [f"complete -c bi-performance -n '{where}' -l {option[2:]}" for option in found]
    return "\n".join(lines)
