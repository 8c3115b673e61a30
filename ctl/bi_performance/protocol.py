"""One request and its answer on one connection, without knowing how to wait.

The exchange is a generator: it yields (socket, READ or WRITE) where it would block, and its driver
waits in whatever way its world has: poll, asyncio, trio. Closing the generator, as a driver does on
a timeout or a cancellation, leaves the connection unusable, and its owner closes it.
"""

from __future__ import annotations

import os
import select
import socket
import time
import weakref
from collections.abc import Generator, Iterator
from typing import Any, Final, TypeVar

import msgpack

from bi_performance_wire.errors import TOO_LARGE, WireError
from bi_performance_wire.framing import Framer, Limits

READ: Final = select.POLLIN
WRITE: Final = select.POLLOUT

Wait = tuple[socket.socket, int]
T = TypeVar("T")
Steps = Generator[Wait, None, T]

ANSWER_LIMITS: Final = Limits(
    frame_bytes=64 << 20, shape_bytes=16 << 20, objects=1 << 20, depth=100
)
_RECEIVE: Final = 1 << 18
MAX_REQUEST: Final = 32 << 20
"""Bytes of a message that the daemon takes."""
SMALL: Final = 1 << 14
"""Bytes of an answer that is decoded at once: whatever it holds, it cannot become large."""


class Unavailable(Exception):
    """The daemon cannot be asked now: absent, too slow, or it broke off."""


class TimedOut(Unavailable):
    """The daemon did not answer in time."""


class QueueFull(Unavailable):
    """So many connect at once that the daemon has not come to accept them: it listens."""


class Connection:
    """A connection to the daemon, owned by one request at a time."""

    def __init__(self, path: str) -> None:
        """Connect; a Unix socket does so at once or fails. Raises OSError."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        # One that is collected unclosed is closed without a warning: who forgot an optimizer
        # could do nothing about it.
        self._forgotten = weakref.finalize(self, self.socket.close)
        self._forgotten.atexit = False
        self._serial = 0
        self._framer = Framer(ANSWER_LIMITS)
        self._whole = True
        """Whether what was received are answers as they should be."""

    def request(self, method: str, args: dict[str, Any] | None) -> tuple[int, bytes]:
        """A new message id, and the message. Raises WireError (too_large)."""
        self._serial = serial = (self._serial + 1) & 0xFFFFFFFF
        params = [] if args is None else [args]
        message: bytes = msgpack.packb((0, serial, method, params))
        if len(message) > MAX_REQUEST:
            # The daemon would break off in the middle of it.
            raise WireError(
                TOO_LARGE, f"the request has {len(message)} bytes; the limit is {MAX_REQUEST}"
            )
        return serial, message

    def exchange(self, method: str, args: dict[str, Any] | None = None) -> Steps[Any]:
        """Send a request and return its result.

        Raises WireError when the daemon answered with an error, Unavailable or OSError when the
        connection is of no more use.
        """
        serial, message = self.request(method, args)
        yield from self.send(message)
        while True:
            # Nobody answers at once: to try before waiting would be one system call in vain.
            yield self.socket, READ
            try:
                data = self.socket.recv(_RECEIVE)
            except BlockingIOError:
                continue
            if 0 < len(data) <= SMALL and not self._framer.pending:
                try:
                    answer = msgpack.unpackb(data, strict_map_key=False)
                except Exception:
                    # Not one whole message: its end is looked for like that of a large one.
                    self.take(data)
                else:
                    return self._result(answer, serial)
            else:
                self.take(data)
            frame = self._next_frame()
            if frame is not None:
                return self._result(_unpacked(frame), serial)

    def exchange_many(self, method: str, several: list[dict[str, Any]]) -> Steps[list[Any]]:
        """Send several requests at once, and return for each its result, or the WireError that
        was its answer. Raises Unavailable or OSError as `exchange`."""
        places: dict[int, int] = {}
        messages: list[bytes] = []
        for at, args in enumerate(several):
            serial, message = self.request(method, args)
            places[serial] = at
            messages.append(message)
        yield from self.send(b"".join(messages))
        found: list[Any] = [None] * len(several)
        while places:
            yield self.socket, READ
            try:
                self.take(self.socket.recv(_RECEIVE))
            except BlockingIOError:
                continue
            for number, error, result in self.answers():
                if number not in places:
                    self._whole = False
                    raise Unavailable("the peer answered another request")
                found[places.pop(number)] = result if error is None else WireError.from_map(error)
        return found

    def send(self, message: bytes) -> Steps[None]:
        left = memoryview(message)
        while left:
            try:
                sent = self.socket.send(left, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                yield self.socket, WRITE
                continue
            left = left[sent:]

    def take(self, data: bytes) -> None:
        """Received bytes; raises Unavailable at the end of the stream."""
        if not data:
            raise Unavailable("the daemon closed the connection")
        self._framer.feed(data)

    def answer(self, serial: int) -> Any:
        """The result that has arrived, or None when it is not whole; raises as `exchange`."""
        frame = self._next_frame()
        return None if frame is None else self._result(_unpacked(frame), serial)

    def answers(self) -> Iterator[tuple[int, Any, Any]]:
        """Number, error and result of each answer that has arrived whole.

        Raises Unavailable for what is none, and for an error that concerns the connection.
        """
        while (frame := self._next_frame()) is not None:
            try:
                kind, number, error, result = _unpacked(frame)
            except (TypeError, ValueError):
                kind = number = error = result = None
            if kind != 1 or not isinstance(number, int):
                raise Unavailable("the peer's answer is not MessagePack-RPC")
            if error is not None and not number:
                raise Unavailable(WireError.from_map(error).message)
            yield number, error, result

    def _next_frame(self) -> bytes | None:
        try:
            return self._framer.next_frame()
        except WireError as error:
            self._whole = False
            if error.code != TOO_LARGE:
                raise Unavailable(f"the peer's answer is not MessagePack-RPC: {error}") from None
            text = error.message.replace("the message", "the daemon's answer")
            raise WireError(TOO_LARGE, f"{text}, the client's limit", hint="ask for less") from None

    def _result(self, answer: Any, serial: int) -> Any:
        try:
            kind, number, error, result = answer
        except (TypeError, ValueError):
            kind = None
        if kind != 1:
            raise Unavailable("the peer's answer is not MessagePack-RPC")
        if number != serial:
            self._whole = False
            # An error that concerns the connection has no request's id.
            if error is None:
                raise Unavailable("the peer answered another request")
        if error is not None:
            raise WireError.from_map(error)
        return result

    @property
    def reusable(self) -> bool:
        """Whether another request may be made: nothing odd or unasked has been received."""
        return self._whole and not self._framer.pending

    def is_idle(self) -> bool:
        """Whether the daemon has neither closed the connection nor said anything unasked."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return self.reusable
        except OSError:
            return False
        return False

    def close(self) -> None:
        self._forgotten.detach()
        self.socket.close()


def _unpacked(frame: bytes) -> Any:
    try:
        return msgpack.unpackb(frame, strict_map_key=False)
    except Exception:
        # Whatever msgpack found wrong, these bytes are no answer.
        raise Unavailable("the peer's answer is not MessagePack-RPC") from None


def drive(steps: Steps[T], seconds: float) -> T:
    """Run an exchange in this thread. Raises TimedOut after `seconds`."""
    deadline = time.monotonic() + seconds
    try:
        while True:
            waiting, event = next(steps)
            poll = select.poll()
            poll.register(waiting, event)
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimedOut(f"no answer within {seconds:g} s")
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


def ask(path: str | os.PathLike[str], method: str, args: Any = None, *, seconds: float) -> Any:
    """One request on a connection of its own, as the control program does.

    Raises WireError, Unavailable or OSError.
    """
    connection = Connection(os.fspath(path))
    try:
        return drive(connection.exchange(method, args), seconds)
    finally:
        connection.close()
