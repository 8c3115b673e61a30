"""docs/commands.md, from the command table."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from bi_performance_wire.commands import COMMANDS, Command

_HEAD = """\
# Commands

One table in `ctl/bi_performance_wire/commands.py` declares every operation; the control socket, the
HTTP routes, the control program, its help and completion, the OpenAPI document and this page come
from its rows. This page is written by `scripts/generate.py`.

- **Socket**: MessagePack-RPC, see [protocol.md](protocol.md). `params` is `[]` or `[map]`.
- **HTTP**: see [http.md](http.md). Arguments come in the query.
- **CLI**: see [cli.md](cli.md). Arguments are options, save those written in capitals.
"""


def commands() -> str:
    """The page: a table of all rows, then each row's arguments and results."""
    lines = [_HEAD, "| method | HTTP | CLI | what |", "| --- | --- | --- | --- |"]
    for row in COMMANDS:
        http = f"`{row.http[0]} {row.http[1]}`" if row.http else ""
        cli = f"`bi-performance {_words(row)}`" if row.cli else ""
        lines.append(f"| `{row.name}` | {http} | {cli} | {row.summary} |")
    for row in COMMANDS:
        lines += ["", f"## `{row.name}`", "", row.summary]
        if row.example:
            lines += ["", f"```\n{row.example}\n```"]
        lines += _struct("arguments", row.args_type())
        lines += _struct("result", row.result_type())
    return "\n".join(lines) + "\n"


def _words(row: Command) -> str:
    return " ".join([row.cli or "", *(name.upper() for name in row.positional)])


def _struct(title: str, kind: type[msgspec.Struct] | None) -> list[str]:
    if kind is None:
        return []
    lines = ["", f"{title}:", ""]
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        optional = "" if field.required else ", optional"
        about, bounds = _meta(hints[field.name])
        said = f": {about}" if about else ""
        lines.append(f"- `{field.name}` ({_type(hints[field.name])}{bounds}{optional}){said}")
    return lines


def _type(hint: Any) -> str:
    """A type in a reader's words."""
    if get_origin(hint) is Annotated:
        return _type(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        parts = [_type(part) for part in get_args(hint) if part is not msgspec.UnsetType]
        return " or ".join(parts)
    if get_origin(hint) is list:
        return f"array of {_type(get_args(hint)[0])}"
    if get_origin(hint) is tuple:
        return "[" + ", ".join(_type(part) for part in get_args(hint)) + "]"
    if get_origin(hint) is dict or (isinstance(hint, type) and issubclass(hint, msgspec.Struct)):
        return "map"
    if hint is NoneType:
        return "nil"
    names = {str: "text", bytes: "bin", int: "integer", float: "number", bool: "true or false"}
    return names.get(hint, "any value")


def _meta(hint: Any) -> tuple[str, str]:
    """The description and the bounds that a type carries."""
    about = bounds = ""
    for part in (hint, *get_args(hint)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta):
                about = about or meta.description or ""
                if meta.ge is not None and meta.le is not None:
                    bounds = f", {meta.ge} to {meta.le}"
                if meta.max_length is not None:
                    bounds = f", at most {meta.max_length}"
    return about, bounds
