"""Hears of what foreign programs change under our prefix: CLIENT TRACKING, broadcast by prefix.

What daemons change is in the log, in order and complete. A program that knows nothing of us writes
no log; Redis itself tells of its writes, as long as both connections are there: the one that hears,
and the writing one on whose behalf (REDIRECT) it does, so that most of our own writes are kept back
(NOLOOP). What is missed meanwhile lives until its time is up, and is counted as a gap.

It tells only that something happened to a key: see suspects.py.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
import trio

from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.connection import Command, Connection, close, exchange
from bi_performanced.remote.envelope import Codec
from bi_performanced.remote.shard import Shard
from bi_performanced.remote.suspects import Suspects

log = structlog.get_logger("performance")

LISTEN: Final = 1.0
"""Seconds that a thread waits for news before it asks whether the other end is there."""
SLICE: Final = 500
AGAIN: Final = 0.5
"""Seconds before a new connection is tried."""


class NotTracked(Exception):
    """Redis does not do it, with its reason."""


class Tracking:
    """The hearing connection of one shard. `run` must be running."""

    def __init__(self, shard: Shard, codec: Codec) -> None:
        self._shard = shard
        self._client: int | None = None
        self._tracked: int | None = None
        """The client that was told of what a writing connection changed."""
        self._connection: Connection | None = None
        self.refused: str | None = None
        """Why this Redis does not tell of foreign writes."""
        self.gaps = 0
        self._suspects = Suspects(shard, codec)
        shard.on_connect.append(self._register)
        shard.on_away.append(lambda: close(self._connection))

    @property
    def active(self) -> bool:
        return self._client is not None and self._client == self._tracked

    async def run(self) -> None:
        """Listen until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._suspects.run)
            nursery.start_soon(self._run)
            nursery.start_soon(self._use)

    async def _use(self) -> None:
        """Use the writing connection, whose state tracking is: one that nobody uses is closed some
        time, by Redis or by what lies between, and a new one must be told of."""
        while True:
            await trio.sleep(LISTEN)
            if self.active:
                with suppress(RemoteAway):
                    await self._shard.writes.call([("PING",)])

    async def _run(self) -> None:
        while True:
            await self._shard.breaker.wait_closed()
            try:
                await self._listen()
            except NotTracked as error:
                self.refused = str(error)
            except RemoteAway:
                continue
            except Exception as error:
                # Whatever redis-py makes of a connection that ends: another is made.
                log.debug("redis.tracking_lost", reason=self._shard.explain(error))
            finally:
                if self._client is not None:
                    self.gaps += 1
                self._client = None
                close(self._connection)
                self._connection = None
            await trio.sleep(AGAIN)

    async def _listen(self) -> None:
        shard = self._shard
        with trio.fail_after(2 * shard.timeout):
            connection, client = await trio.to_thread.run_sync(
                self._open, limiter=shard.limiter, abandon_on_cancel=True
            )
        self._connection, self._client = connection, client
        # The writing connection may be an older one that redirects to nobody.
        replies = await shard.writes.call([("CLIENT", "TRACKING", "OFF"), self._wanted(client)])
        if isinstance(replies[1], Exception):
            raise NotTracked(shard.explain(replies[1]))
        self.refused = None
        self._tracked = client
        while True:
            news = await trio.to_thread.run_sync(
                partial(_hear, connection), limiter=shard.limiter, abandon_on_cancel=True
            )
            await self._take(news)

    def _open(self) -> tuple[Connection, int]:
        connection = self._shard.connect(self._shard.timeout)
        parser: Any = getattr(connection, "_parser")  # noqa: B009
        parser.set_invalidation_push_handler(lambda message: message)
        (client,) = exchange(connection, [("CLIENT", "ID")])
        if isinstance(client, Exception):
            raise NotTracked(self._shard.explain(client))
        return connection, client

    def _wanted(self, client: int) -> Command:
        return (
            *("CLIENT", "TRACKING", "ON", "REDIRECT", client),
            *("BCAST", "PREFIX", self._shard.names.prefix, "NOLOOP"),
        )

    def _register(self, connection: Connection) -> None:
        """In a thread: have a new writing connection tell ours."""
        client = self._client
        if client is not None:
            # Another took its place, or this is the first.
            self.gaps += client == self._tracked
            exchange(connection, [self._wanted(client)])

    async def _take(self, news: list[Any]) -> None:
        shard = self._shard
        done = 0
        for names in news:
            if names is None:
                # FLUSHALL or FLUSHDB: the log is gone as well, and its reader finds out.
                shard.flights.touch_all()
                shard.ahead.forget()
                shard.marks.reset()
                shard.sink.drop_shared(shard.index)
                shard.figures.dropped += 1
                log.warning("redis.dropped", shard=shard.index, reason="Redis was emptied")
                continue
            for name in names:
                key = shard.names.key(name)
                if key is None:
                    continue
                self._suspects.add(key)
                done += 1
                if done % SLICE == 0:
                    await trio.lowlevel.checkpoint()


def _hear(connection: Connection) -> list[Any]:
    """The invalidations that come within LISTEN, None for all of them. Blocks.

    Raises what redis-py raises when the connection is lost.
    """
    found: list[Any] = []
    if not connection.can_read(LISTEN):
        connection.send_packed_command(connection.pack_commands([("PING",)]), check_health=False)
        # The answer is read like a message, within the connection's timeout.
        _take_message(connection, found)
    while len(found) < SLICE and connection.can_read(0):
        _take_message(connection, found)
    return found


def _take_message(connection: Connection, found: list[Any]) -> None:
    message = connection.read_response(disable_decoding=True, push_request=True)
    if isinstance(message, list) and len(message) == 2 and message[0] == b"invalidate":
        found.append(message[1])
