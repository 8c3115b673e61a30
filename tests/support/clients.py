"""A MessagePack-RPC client of the tests, independent of ours."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Self

import msgpack


class RawClient:
    """Blocking, one socket, full control over what is sent."""

    def __init__(self, path: Path, *, timeout: float = 10.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(str(path))
        self._unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=1 << 27)
        self._serial = 0

    def send(self, method: str, args: Any = None, **named: Any) -> int:
        """Send a request without waiting; its id."""
        self._serial += 1
        params = [args if args is not None else named] if args is not None or named else []
        self.socket.sendall(msgpack.packb([0, self._serial, method, params]))
        return self._serial

    def receive(self) -> Any:
        """The next message, or None at the end of the stream."""
        while True:
            for message in self._unpacker:
                return message
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                # Closed by the daemon before it had read everything.
                return None
            if not data:
                return None
            self._unpacker.feed(data)

    def call(self, method: str, args: Any = None, **named: Any) -> tuple[Any, Any]:
        """(error, result) of a request."""
        number = self.send(method, args, **named)
        kind, found, error, result = self.receive()
        assert (kind, found) == (1, number)
        return error, result

    def result(self, method: str, args: Any = None, **named: Any) -> Any:
        error, result = self.call(method, args, **named)
        assert error is None, error
        return result

    def error(self, method: str, args: Any = None, **named: Any) -> dict[str, str]:
        error, _ = self.call(method, args, **named)
        assert error is not None
        found: dict[str, str] = error
        return found

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
