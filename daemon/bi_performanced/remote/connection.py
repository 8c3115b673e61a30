"""What is used of redis-py's connections, which carry no types: blocking calls, made in threads."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

Command = tuple[bytes | int | str, ...]


class Connection(Protocol):
    """A connection of redis-py. Its errors are those of `redis.exceptions`."""

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def pack_commands(self, commands: Sequence[Command]) -> list[bytes]: ...
    def send_packed_command(self, command: list[bytes], check_health: bool = True) -> None: ...
    def can_read(self, timeout: float = 0) -> bool: ...
    def read_response(self, disable_decoding: bool = False, *, push_request: bool = False) -> Any:
        """Raises ResponseError for an answer that is an error."""


def close(connection: Connection | None) -> None:
    """End a connection, whichever thread is waiting on it."""
    sock: socket.socket | None = getattr(connection, "_sock", None)
    if sock is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def usable(connection: Connection) -> bool:
    """Whether the peer has not closed it meanwhile, as a server does with idle ones."""
    if getattr(connection, "_sock", None) is None:
        return False
    try:
        connection.can_read(0)
    except Exception:
        # Closed, or in a state that only a new connection mends.
        return False
    return True


def exchange(connection: Connection, commands: Sequence[Command]) -> list[Any]:
    """Send commands and read their replies; those that are errors are exceptions in the list.

    Blocks, each read as long as the connection's timeout. Raises what redis-py raises for a lost
    connection, which is closed then.
    """
    from redis.exceptions import ResponseError

    connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(connection.read_response(disable_decoding=True))
        except ResponseError as error:
            replies.append(error)
    return replies
