"""`cache get` and `cache set`: values of every type, encoded here as in every client of ours."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any, NoReturn

from bi_performance_ctl.arguments import add_fields, collect
from bi_performance_ctl.catalog import parser_of
from bi_performance_ctl.console import FAILED, USAGE, Console, Exit
from bi_performance_wire.commands import Command
from bi_performance_wire.streams import visible
from bi_performance_wire.value import ValueFormatError, decode, encode


def get(row: Command, rest: list[str], console: Console) -> int:
    """Print one value: text and bytes as they are, anything else as JSON."""
    parser = parser_of(row.cli or "", row.summary, row.example)
    add_fields(parser, row)
    args = collect(row, parser.parse_args(rest))
    payload = console.ask(row.name, {**args, "payload": True})
    if payload is None:
        if console.json:
            console.document({"found": False, "value": None})
        raise Exit(
            FAILED, "" if console.json else f"not_found: no entry has the key {args['key']!r}"
        )
    try:
        value = decode(payload)
    except ValueFormatError as error:
        raise Exit(FAILED, f"the entry cannot be read: {error}") from None
    if console.json:
        console.document({"found": True, "value": _plain(value)})
    elif isinstance(value, str | bytes):
        _write(value, console)
    else:
        console.document(_plain(value))
    return 0


def _write(value: str | bytes, console: Console) -> None:
    """To a terminal visibly; to anything else byte for byte, text with a newline at its end."""
    if sys.stdout.isatty():
        text = value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")
        console.say(visible(text, lines=True))
        return
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    if isinstance(value, str) and not value.endswith("\n"):
        data += b"\n"
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def _plain(value: Any) -> Any:
    """The value as JSON can say it: other keys as text, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else repr(key): _plain(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def put(row: Command, rest: list[str], console: Console) -> int:
    """Store text, a JSON value, or what standard input holds: bytes, when that is no UTF-8."""
    parser = parser_of(
        row.cli or "",
        row.summary + " The value is text; - reads it from standard input, where what is not"
        " UTF-8 is stored as bytes.",
        row.example,
    )
    add_fields(parser, row)
    parser.add_argument("--json", action="store_true", help="the value is JSON, not text")
    parsed = parser.parse_args(rest)
    data = _standard_input() if parsed.value == "-" else os.fsencode(parsed.value)
    value: Any
    try:
        value = data.decode()
    except UnicodeDecodeError:
        value = data
    if parsed.json:
        value = _from_json(data)
    parsed.value = None
    args = collect(row, parsed)
    try:
        payload = encode(value)
    except ValueError as error:
        raise Exit(USAGE, f"the value cannot be stored: {error}") from None
    result = console.ask(row.name, {**args, "payload": payload})
    if console.json:
        console.document(result)
    return 0


def _from_json(data: bytes) -> Any:
    """The value of a JSON text. Raises Exit (usage) for what is none; Python reads NaN."""
    try:
        return json.loads(data, parse_constant=_no_number, parse_float=_finite)
    except ValueError as error:
        raise Exit(USAGE, f"the value is not JSON: {error}") from None
    except RecursionError:
        raise Exit(USAGE, "the value cannot be stored: it is nested too deep") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON's; null stands for what has no value")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is larger than a number can be")
    return number


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise Exit(USAGE, "standard input is closed: there is no value to read from it")
    return sys.stdin.buffer.read()
