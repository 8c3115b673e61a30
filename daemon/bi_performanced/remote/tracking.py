"""Hears of what foreign programs change under our prefix: CLIENT TRACKING, broadcast by prefix.

What daemons change is in the log, in order and complete. A program that knows nothing of us writes
no log; Redis itself tells of its writes, as long as both connections are there: the one that hears,
and the writing one on whose behalf (REDIRECT) it does, so that most of our own writes are kept back
(NOLOOP). What is missed meanwhile lives until its time is up, and is counted as a gap.

Redis tells only that something happened to a key: another daemon has stored it, which the log
tells too, or has prolonged it, or its time was up. So a key is suspected first, and looked at in
Redis: an entry of a daemon's making is no foreign write, and the log says all that is to be known
of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import structlog
import trio

from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.connection import Command, Connection, close, exchange
from bi_performanced.remote.envelope import HEAD, is_ours
from bi_performanced.remote.shard import Shard

log = structlog.get_logger("performance")

LISTEN: Final = 1.0
"""Seconds that a thread waits for news before it asks whether the other end is there."""
SLICE: Final = 500
AGAIN: Final = 0.5
"""Seconds before a new connection is tried."""
GATHER: Final = 0.005
"""Seconds in which suspected keys come together before they are looked at."""
LOOKED_AT: Final = 256
"""Keys in one round trip."""


class NotTracked(Exception):
    """Redis does not do it, with its reason."""


class Tracking:
    """The hearing connection of one shard. `run` must be running."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._client: int | None = None
        self._connection: Connection | None = None
        self.refused: str | None = None
        """Why this Redis does not tell of foreign writes."""
        self.gaps = 0
        self._suspects: dict[bytes, None] = {}
        self._suspected = trio.Event()
        shard.on_connect.append(self._register)
        shard.on_away.append(lambda: close(self._connection))

    @property
    def active(self) -> bool:
        return self._client is not None

    async def run(self) -> None:
        """Listen until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_at_suspects)
            nursery.start_soon(self._run)

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
                shard.flights.touched(key)
                if shard.sink.holds(key) is not None:
                    self._suspect(key)
                done += 1
                if done % SLICE == 0:
                    await trio.lowlevel.checkpoint()

    # ── who did it

    def _suspect(self, key: bytes) -> None:
        self._suspects[key] = None
        self._suspected.set()

    async def _look_at_suspects(self) -> None:
        while True:
            await self._suspected.wait()
            await trio.sleep(GATHER)
            suspects, self._suspects = list(self._suspects), {}
            self._suspected = trio.Event()
            for at in range(0, len(suspects), LOOKED_AT):
                await self._look(suspects[at : at + LOOKED_AT])

    async def _look(self, keys: list[bytes]) -> None:
        """Let go of the entries here whose key a foreign program has changed or deleted."""
        shard = self._shard
        held: dict[bytes, int] = {}
        for key in keys:
            place = shard.sink.holds(key)
            if place is None:
                continue
            if not shard.reading.waiting(key)[0]:
                held[key] = place
            elif not shard.breaker.open:
                # It may have been written before that happened, and the answer be on its way.
                self._suspect(key)
        if not held:
            return
        try:
            heads = await shard.reads.call(
                [("GETRANGE", shard.names.value(key), 0, HEAD - 1) for key in held]
            )
        except RemoteAway:
            # Nobody can say: they are let go of.
            heads = [b""] * len(held)
        for (key, place), head in zip(held.items(), heads, strict=True):
            if head == b"":
                # Deleted, or at the end of its time: no reason to think that what is being loaded
                # is old, nor that what was stored here since is.
                if shard.sink.holds(key) == place:
                    shard.sink.let_go(key)
                    shard.figures.foreign += 1
            elif not is_ours(head):
                shard.sink.invalidate(key)
                shard.figures.foreign += 1


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
