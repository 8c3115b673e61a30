"""From a method's name and arguments to a handler's result, for every front alike."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal, NamedTuple, Protocol, get_args, get_origin, get_type_hints

import msgspec
import structlog

from bi_performance_wire.commands import COMMANDS, Command
from bi_performance_wire.errors import INTERNAL, INVALID_ARGUMENT, UNKNOWN_METHOD, WireError
from bi_performance_wire.near import nearest
from bi_performance_wire.texts import listed, split_list
from bi_performance_wire.types import Args

log = structlog.get_logger("performance")


class Line(Protocol):
    """The connection that a request came on, as handlers know it."""

    def at_end(self, act: Callable[[], None]) -> None:
        """Have `act` called when the connection ends, or at once when it has."""

    def at_death(self, act: Callable[[], None]) -> None:
        """Have `act` called when the process that made the connection ends, which another one may
        hold open. Where that cannot be told, never."""


class Caller(NamedTuple):
    """Who asks: credentials of the socket's peer, or None over HTTP."""

    transport: str
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    line: Line | None = None


Handler = Callable[[Any, Caller], Any]
"""Takes the row's arguments (None when it has none) and the caller; returns the result or a
coroutine for it; raises WireError."""


class Bound(NamedTuple):
    """A row with what is needed to run it."""

    row: Command
    handler: Handler
    args: type[Args] | None
    decode: Callable[[bytes | msgspec.Raw], Any] | None
    fields: tuple[str, ...]


class Pending(NamedTuple):
    """A request whose result is to be waited for: `run` it once, then `close` it in any case."""

    row: Command
    work: Coroutine[Any, Any, Any]

    async def run(self) -> Any:
        """The result. Raises WireError, and nothing else."""
        try:
            return await self.work
        except WireError:
            raise
        except Exception as error:
            raise internal(self.row.name, error) from error

    def close(self) -> None:
        """Let go of what was not run to its end."""
        self.work.close()


class IncompleteTable(Exception):
    """Rows without a handler, or handlers without a row: the daemon must not start."""


class Dispatcher:
    """The command table with a handler bound to each row."""

    def __init__(
        self, handlers: Mapping[str, Handler], rows: tuple[Command, ...] = COMMANDS
    ) -> None:
        names = {row.name for row in rows}
        missing, unknown = sorted(names - set(handlers)), sorted(set(handlers) - names)
        if missing or unknown:
            raise IncompleteTable(
                f"commands without a handler: {', '.join(missing) or 'none'};"
                f" handlers without a command: {', '.join(unknown) or 'none'}"
            )
        self.rows = rows
        self.bound = {row.name: _bind(row, handlers[row.name]) for row in rows}

    def find(self, method: str) -> Bound:
        """The bound row of a method; raises WireError naming the nearest one."""
        bound = self.bound.get(method)
        if bound is None:
            near = nearest(method, self.bound)
            raise WireError(
                UNKNOWN_METHOD,
                f"there is no method {method[:100]!r}",
                field="method",
                hint=f"did you mean {near}?" if near else None,
            )
        return bound

    def start(self, bound: Bound, params: bytes | msgspec.Raw, caller: Caller) -> Any:
        """Run a handler on MessagePack arguments (`[]` or `[map]`).

        Returns the result, or Pending. Raises WireError, and nothing else.
        """
        data = bytes(params)
        if bound.decode is None:
            if data not in (b"\x90", b"\x91\x80", b"\x91\xc0"):
                raise WireError(
                    INVALID_ARGUMENT, f"{bound.row.name} takes no arguments", field="params"
                )
            return self._call(bound, None, caller)
        try:
            # A method whose arguments all have defaults may be called with none at all.
            args = bound.decode(b"\x91\x80" if data == b"\x90" else data)[0]
        except UnicodeDecodeError:
            raise WireError(
                INVALID_ARGUMENT,
                "text in the arguments must be UTF-8",
                field="params",
                hint="send a key of other bytes as bytes (MessagePack bin)",
            ) from None
        except (msgspec.MsgspecError, RecursionError) as error:
            raise _argument_error(bound, str(error)) from None
        return self._call(bound, args, caller)

    def start_text(self, bound: Bound, query: Mapping[str, str], caller: Caller) -> Any:
        """Run a handler on arguments that are text, as of a URL's query; as `start`."""
        unknown = [name for name in query if name not in bound.fields]
        if unknown:
            raise _unknown_argument(bound, unknown[0])
        if bound.args is None:
            return self._call(bound, None, caller)
        given: dict[str, Any] = dict(query)
        for name in given.keys() & listed(bound.args):
            given[name] = split_list(given[name])
        try:
            args = msgspec.convert(given, bound.args, strict=False)
        except msgspec.ValidationError as error:
            raise _argument_error(bound, str(error)) from None
        return self._call(bound, args, caller)

    def _call(self, bound: Bound, args: Any, caller: Caller) -> Any:
        ttl = getattr(args, "ttl", None)
        if ttl is not None and not (math.isfinite(ttl) and ttl > 0):
            raise WireError(
                INVALID_ARGUMENT,
                f"ttl must be a number of seconds more than 0, not {ttl!r}",
                field="ttl",
                hint="leave ttl out for the configured default; use delete to remove an entry",
            )
        try:
            result = bound.handler(args, caller)
        except WireError:
            raise
        except Exception as error:
            raise internal(bound.row.name, error) from error
        return Pending(bound.row, result) if isinstance(result, Coroutine) else result


def internal(method: str, error: Exception) -> WireError:
    """Log a fault of ours once, and make the answer that tells the peer no more than that."""
    log.error("request.failed", method=method, exc_info=error)
    return WireError(INTERNAL, f"{method} failed inside the daemon", hint="its log has the details")


def _bind(row: Command, handler: Handler) -> Bound:
    args: Any = row.args_type()
    if args is None:
        return Bound(row, handler, None, None, ())
    decoder = msgspec.msgpack.Decoder(tuple[args])
    return Bound(row, handler, args, decoder.decode, args.__struct_fields__)


def _argument_error(bound: Bound, text: str) -> WireError:
    """msgspec's complaint as an error that names the field."""
    unknown = re.search(r"unknown field `([^`]*)`", text)
    if unknown:
        return _unknown_argument(bound, unknown[1])
    missing = re.search(r"missing required field `([^`]*)`", text)
    place = re.search(r" - at `\$(?:\[0\])?\.?([A-Za-z_]\w*)?", text)
    field = missing[1] if missing else place[1] if place else None
    message = re.sub(r" - at `.*`$", "", text)
    choice = re.match(r"Invalid enum value (.*)", message, re.DOTALL)
    if choice and bound.args is not None and field in bound.fields:
        known = ", ".join(_choices(get_type_hints(bound.args)[field]))
        return WireError(
            INVALID_ARGUMENT,
            f"{field}: there is no {choice[1][:100]}",
            field=field,
            hint=f"these there are: {known}",
        )
    message = re.sub(r"`([\w |]+)`", lambda found: _in_words(found[1]), message)
    message = message.replace("Object ", "the arguments are ", 1).replace("`", "")
    if message.startswith("Expected "):
        message = f"{field or 'params'}: " + message[0].lower() + message[1:]
    return WireError(INVALID_ARGUMENT, message, field=field or "params")


def _choices(hint: Any) -> list[str]:
    """The values of the Literal in a type."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [value for part in get_args(hint) for value in _choices(part)]


_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bytes": "bytes",
    "array": "a list",
    "object": "a map",
    "null": "null",
}


def _in_words(types: str) -> str:
    """msgspec's names of types, as `float | null`, in words."""
    return " or ".join(_WORDS.get(name, name) for name in types.split(" | "))


def _unknown_argument(bound: Bound, name: str) -> WireError:
    near = nearest(name, bound.fields)
    known = ", ".join(bound.fields) or "none"
    return WireError(
        INVALID_ARGUMENT,
        f"{bound.row.name} has no argument {name[:100]!r}",
        field=name[:100],
        hint=f"did you mean {near}?" if near else f"it takes: {known}",
    )
