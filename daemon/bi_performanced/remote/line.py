"""One connection to Redis on which requests are pipelined.

What is asked for while a round trip is under way goes together with the next. The round trip
itself, send and read, is made in a thread. A connection on which anything failed, or whose time was
up, is closed and never used again: what would still come on it belongs to nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import trio

from bi_performanced.remote.breaker import Breaker, RemoteAway
from bi_performanced.remote.connection import Command, Connection, close, exchange, usable

MAX_COMMANDS: Final = 1024
"""Commands of a round trip, about."""
MAX_WAITING: Final = 4096
"""Requests that wait for a round trip; a further one is refused as if Redis were away."""

Connect = Callable[[], Connection]
"""Makes a connection and all that must be said on it first. Blocks; raises what redis-py raises."""


class _Trip:
    """A connection and the thread that works with it."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True
        close(self.connection)


class _Request:
    def __init__(self, commands: Sequence[Command]) -> None:
        self.commands = commands
        self.done = trio.Event()
        self.replies: list[Any] = []
        self.reason: str | None = None


class Line:
    """Requests of one kind to one shard. `run` must be running for `call` to be answered."""

    def __init__(
        self,
        connect: Connect,
        breaker: Breaker,
        limiter: trio.CapacityLimiter,
        timeout: float,
        explain: Callable[[BaseException], str],
    ) -> None:
        """`explain` turns an exception into a reason without credentials."""
        self._connect = connect
        self._breaker = breaker
        self._limiter = limiter
        self._timeout = timeout
        self._explain = explain
        self._trip = _Trip()
        self._queue: deque[_Request] = deque()
        self._wake = trio.Event()
        self.latencies: deque[float] = deque(maxlen=512)
        """Seconds of the latest round trips."""
        self.timeouts = 0
        self.errors = 0

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to these commands, in their order; errors of single ones are exceptions.

        Raises RemoteAway: at once while the breaker is open, else within the timeout. Cancelled,
        the commands may be carried out or not.
        """
        self._breaker.check()
        if len(self._queue) >= MAX_WAITING:
            raise RemoteAway(f"{MAX_WAITING} requests are waiting for Redis")
        request = _Request(commands)
        self._queue.append(request)
        self._wake.set()
        with trio.move_on_after(self._timeout) as scope:
            await request.done.wait()
        if scope.cancelled_caught and not request.done.is_set():
            # Its own round trip has not begun, for that ends by itself.
            with suppress(ValueError):
                self._queue.remove(request)
            self._fail(f"no answer within {self._timeout:g} s")
            self.timeouts += 1
            raise RemoteAway(f"no answer within {self._timeout:g} s")
        if request.reason is not None:
            raise RemoteAway(request.reason)
        return request.replies

    async def run(self) -> None:
        """Make the round trips, until cancelled."""
        try:
            while True:
                while not self._queue:
                    self._wake = trio.Event()
                    await self._wake.wait()
                await self._round_trip(self._take())
        finally:
            self.drop()
            self._answer(list(self._queue), "the daemon is stopping")
            self._queue.clear()

    def _take(self) -> list[_Request]:
        taken: list[_Request] = []
        size = 0
        while self._queue and (not taken or size + len(self._queue[0].commands) <= MAX_COMMANDS):
            request = self._queue.popleft()
            size += len(request.commands)
            taken.append(request)
        return taken

    async def _round_trip(self, requests: list[_Request]) -> None:
        commands = [command for request in requests for command in request.commands]
        began = trio.current_time()
        trip = self._trip
        replies: list[Any] | None = None
        try:
            with trio.move_on_after(self._timeout):
                replies = await trio.to_thread.run_sync(
                    self._exchange,
                    trip,
                    commands,
                    limiter=self._limiter,
                    abandon_on_cancel=True,
                )
            if replies is None:
                self.timeouts += 1
                self._fail(f"no answer within {self._timeout:g} s")
        except trio.Cancelled:
            self.drop()
            self._answer(requests, "the daemon is stopping")
            raise
        except Exception as error:
            # Whatever a library makes of a peer that answers nonsense.
            if not trip.dropped:
                self.errors += 1
                self._fail(self._explain(error))
        if replies is None:
            self._answer(requests, self._breaker.reason or "the connection was lost")
            return
        self.latencies.append(trio.current_time() - began)
        at = 0
        for request in requests:
            request.replies = replies[at : at + len(request.commands)]
            at += len(request.commands)
            request.done.set()

    def _exchange(self, trip: _Trip, commands: Sequence[Command]) -> list[Any]:
        if trip.connection is None or not usable(trip.connection):
            connection = self._connect()
            trip.connection = connection
            if trip.dropped:
                # The time was up while it was being made.
                connection.disconnect()
        assert trip.connection is not None
        return exchange(trip.connection, commands)

    def _answer(self, requests: Sequence[_Request], reason: str) -> None:
        for request in requests:
            request.reason = reason
            request.done.set()

    def _fail(self, reason: str) -> None:
        self._breaker.fail(reason)
        self.drop()
        waiting = list(self._queue)
        self._queue.clear()
        self._answer(waiting, reason)

    def drop(self) -> None:
        """Close the connection; the next request makes another."""
        self._trip.drop()
        self._trip = _Trip()
