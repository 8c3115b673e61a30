"""Removes from Redis what clears have made unreadable, in slices, in the background.

A clear is in force with its entry in the log; this only frees memory, and makes the entries of a
soft pattern clear stale in Redis itself. One daemon does it for all: who has begun holds a key that
runs out, so that another goes on when that daemon dies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import structlog
import trio

from bi_performanced.remote import scripts
from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.connection import Command
from bi_performanced.remote.envelope import Version
from bi_performanced.remote.predicate import Matcher, Predicate
from bi_performanced.remote.records import pairs
from bi_performanced.remote.shard import Shard, is_full

log = structlog.get_logger("performance")

LOOK_EVERY: Final = 30.0
"""Seconds between two looks whether another daemon has left something undone."""
HELD_FOR: Final = 10_000
"""Milliseconds after which another may go on with it."""
AT_ONCE: Final = 500
FULL_PAUSE: Final = 5.0
"""Seconds until a sweep that a full Redis refused is tried again."""
PAUSE: Final = 0.002
"""Seconds between two slices, for the others that use this Redis."""


class _Full(Exception):
    """Redis has no memory for what is noted of a sweep. Reads go on, so that is no outage."""


class Sweeper:
    """The sweeper of one shard. `run` must be running."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._wake = trio.Event()
        shard.cleared_here = self._look_soon

    def _look_soon(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Sweep what there is, until cancelled."""
        while True:
            await self._shard.breaker.wait_closed()
            self._wake = trio.Event()
            try:
                await self._sweep_all()
            except RemoteAway:
                continue
            except _Full:
                await trio.sleep(FULL_PAUSE)
                continue
            except (ValueError, TypeError, IndexError) as error:
                self._shard.breaker.fail(self._shard.explain(error))
                continue
            with trio.move_on_after(LOOK_EVERY):
                await self._wake.wait()

    async def _sweep_all(self) -> None:
        names = self._shard.names
        (found,) = await self._call([("HGETALL", names.sweeps)])
        for id_, packed in pairs(found).items():
            predicate = Predicate.unpack(packed)
            if predicate is None:
                # Of a newer version, whose daemons sweep it.
                continue
            matches = self._matcher(predicate)
            held, mine = names.sweep(id_), self._shard.origin
            (got,) = await self._call([("SET", held, mine, "NX", "PX", HELD_FOR)])
            if matches is None or got is None:
                continue
            count = await self._sweep(Version.parse(id_), predicate, matches, held)
            said: list[Command] = [
                ("HDEL", names.sweeps, id_),
                (
                    *("XADD", names.log, "MAXLEN", "~", scripts.LOG_LENGTH, "*"),
                    *("o", mine, "w", id_),
                ),
                ("UNLINK", held),
            ]
            await self._call(said)
            self._shard.figures.swept += count
            log.info("redis.swept", shard=self._shard.index, entries=count)

    def _matcher(self, predicate: Predicate) -> Matcher | None:
        if predicate.pattern is None:
            return lambda key: True
        try:
            return self._shard.matcher(predicate.pattern)
        except Exception:
            # A pattern that this version does not take.
            return None

    async def _sweep(
        self, before: Version, predicate: Predicate, matches: Matcher, held: bytes
    ) -> int:
        names = self._shard.names
        ours = re.sub(rb"([*?\[\]\\])", rb"\\\1", names.prefix) + b"*"
        cursor: bytes | int = 0
        count = 0
        while True:
            scanned, _ = await self._call(
                [
                    ("SCAN", cursor, "MATCH", ours, "COUNT", AT_ONCE),
                    ("PEXPIRE", held, HELD_FOR),
                ]
            )
            cursor, found = scanned
            wanted = [
                name for name in found if (key := names.key(name)) is not None and matches(key)
            ]
            if wanted:
                (gone,) = await self._call([scripts.sweep(wanted, before, soft=predicate.soft)])
                count += gone
            if int(cursor) == 0:
                return count
            await trio.sleep(PAUSE)

    async def _call(self, commands: Sequence[Command]) -> list[Any]:
        replies = await self._shard.writes.call(commands)
        if is_full(replies):
            raise _Full
        self._shard.look(replies)
        return replies
