"""A row's argument struct as command-line arguments, and back."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from bi_performance_ctl.console import USAGE, Exit
from bi_performance_wire.commands import Command
from bi_performance_wire.texts import listed, split_list

HIDDEN = frozenset({"payload", "meta", "token"})
"""Arguments that only programs use."""


def add_fields(parser: argparse.ArgumentParser, row: Command) -> None:
    """An option or positional argument for each field of the row's struct."""
    kind = row.args_type()
    if kind is None:
        return
    hints = get_type_hints(kind, include_extras=True)
    lists = listed(kind)
    for field in msgspec.structs.fields(kind):
        if field.name in HIDDEN:
            continue
        described = _description(hints[field.name])
        choices = _choices(hints[field.name])
        if field.name in row.positional:
            parser.add_argument(
                field.name, metavar=field.name.upper(), choices=choices, help=described
            )
        elif field.default is False:
            parser.add_argument(
                "--" + field.encode_name.replace("_", "-"), action="store_true", help=described
            )
        else:
            parser.add_argument(
                "--" + field.encode_name.replace("_", "-"),
                metavar=None if choices else _metavar(field.name, field.name in lists),
                choices=choices,
                help=described,
            )


def _metavar(name: str, many: bool) -> str:
    one = name.upper()
    return f"{one.removesuffix('S')}[,…]" if many else one


def _choices(hint: Any) -> tuple[str, ...] | None:
    """The words that an argument may be, when its type says which."""
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Literal:
            return get_args(part)
        if part is not hint and (found := _choices(part)):
            return found
    return None


def _description(hint: Any) -> str | None:
    for part in (hint, *getattr(hint, "__args__", ())):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description.replace("%", "%%")
    return None


def collect(row: Command, parsed: argparse.Namespace) -> dict[str, Any]:
    """The arguments to send: those that were given, in their types. Raises Exit (usage)."""
    kind = row.args_type()
    assert kind is not None
    given = {
        name: value
        for name in kind.__struct_fields__
        if (value := getattr(parsed, name, None)) not in (None, False)
    }
    for name in given.keys() & listed(kind):
        given[name] = split_list(text := given[name])
        if not given[name]:
            # As an unset variable of a script's makes it: not the same as leaving it out.
            raise Exit(USAGE, f"{_option(row, name)} must name at least one, not {text!r}")
    for name, value in given.items():
        # What the shell gave that is no UTF-8 has come as text with lone surrogates.
        if isinstance(value, str) and not value.isascii() and value != _clean(value):
            if name != "key":
                raise Exit(USAGE, f"{_option(row, name)} must be UTF-8 text")
            given[name] = os.fsencode(value)
    try:
        checked = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        name = where.strip("`").removeprefix("$.")
        raise Exit(
            USAGE, f"{_option(row, name)} must {_wanted(what)}, not {given[name]!r}"
        ) from None
    return {name: getattr(checked, name) for name in given}


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _option(row: Command, name: str) -> str:
    return name.upper() if name in row.positional else f"--{name.replace('_', '-')}"


_KINDS = {"int": "be a whole number", "float": "be a number", "bool": "be true or false"}
_BOUNDS = {">=": "be at least", "<=": "be at most", ">": "be more than", "<": "be less than"}


def _wanted(what: str) -> str:
    """msgspec's complaint in words: what the argument must be."""
    length = re.search(r"of length (>=|<=) (\d+)", what)
    if length:
        most = "at most" if length[1] == "<=" else "at least"
        return f"have {most} {length[2]} character{'' if length[2] == '1' else 's'}"
    if "out of range" in what:
        return "be a finite number"
    bound = re.search(r"`(?:int|float)` (>=|<=|>|<) ([\d.]+)", what)
    if bound:
        return f"{_BOUNDS[bound[1]]} {bound[2]}"
    kind = re.search(r"Expected `(\w+)", what)
    return _KINDS.get(kind[1], f"be {kind[1]}") if kind else f"be right ({what})"
