"""A row's argument struct as command-line arguments, and back."""

from __future__ import annotations

import argparse
from typing import Any, get_type_hints

import msgspec

from bi_performance_ctl.console import USAGE, Exit
from bi_performance_wire.commands import Command

HIDDEN = frozenset({"payload"})
"""Arguments that only programs use."""


def add_fields(parser: argparse.ArgumentParser, row: Command) -> None:
    """An option or positional argument for each field of the row's struct."""
    kind = row.args_type()
    if kind is None:
        return
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        if field.name in HIDDEN:
            continue
        described = _description(hints[field.name])
        if field.name in row.positional:
            parser.add_argument(field.name, metavar=field.name.upper(), help=described)
        elif field.default is False:
            parser.add_argument(
                "--" + field.encode_name.replace("_", "-"), action="store_true", help=described
            )
        else:
            parser.add_argument(
                "--" + field.encode_name.replace("_", "-"),
                metavar=field.name.upper(),
                help=described,
            )


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
    try:
        checked = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        name = where.strip("`").removeprefix("$.")
        option = name.upper() if name in row.positional else f"--{name.replace('_', '-')}"
        raise Exit(USAGE, f"{option}: {what[:1].lower()}{what[1:].replace('`', '')}") from None
    return {name: getattr(checked, name) for name in given}
