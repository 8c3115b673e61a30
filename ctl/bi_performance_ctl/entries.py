"""`cache get` and `cache set`: values of every type, encoded here as in every client of ours."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from bi_performance_ctl.arguments import add_fields, collect
from bi_performance_ctl.catalog import parser_of
from bi_performance_ctl.console import FAILED, USAGE, Console, Exit
from bi_performance_wire.commands import Command
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
        raise Exit(FAILED, "" if console.json else f"not_found: no entry has the key {args['key']}")
    try:
        value = decode(payload)
    except ValueFormatError as error:
        raise Exit(FAILED, f"the entry cannot be read: {error}") from None
    if console.json:
        console.document({"found": True, "value": _plain(value)})
    elif isinstance(value, bytes):
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), value)
    elif isinstance(value, str):
        console.say(value.encode("utf-8", "backslashreplace").decode())
    else:
        console.document(_plain(value))
    return 0


def _plain(value: Any) -> Any:
    """The value with map keys that JSON can say."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else repr(key): _plain(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def put(row: Command, rest: list[str], console: Console) -> int:
    """Store text, a JSON value, or what standard input holds."""
    parser = parser_of(
        row.cli or "",
        row.summary + " The value is text; - reads it from standard input.",
        row.example,
    )
    add_fields(parser, row)
    parser.add_argument("--json", action="store_true", help="the value is JSON, not text")
    parsed = parser.parse_args(rest)
    text = sys.stdin.read() if parsed.value == "-" else parsed.value
    value: Any = text
    if parsed.json:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise Exit(USAGE, f"the value is not JSON: {error}") from None
    parsed.value = None
    args = collect(row, parsed)
    result = console.ask(row.name, {**args, "payload": encode(value)})
    if console.json:
        console.document(result)
    return 0
