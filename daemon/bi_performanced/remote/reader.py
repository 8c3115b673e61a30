"""Reads the log of a shard: what other hosts have changed, in the order of Redis.

As long as replies come, this host knows every change that was made before the last question was
sent. After an outage or a restart reading goes on where it ended, and only when that is not
possible everything shared goes (cursor.decide).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
import trio

from bi_performanced.remote import scripts
from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.cursor import Cursor, CursorFile, Found, decide
from bi_performanced.remote.envelope import NEVER, Version
from bi_performanced.remote.leases import RemoteLeases
from bi_performanced.remote.line import Line
from bi_performanced.remote.marks import Cleared
from bi_performanced.remote.predicate import Predicate
from bi_performanced.remote.records import Record, pairs, read_record, read_reply
from bi_performanced.remote.shard import Shard
from bi_performanced.remote.topology import field

log = structlog.get_logger("performance")

BLOCK = 0.3
"""Seconds that Redis waits for news before it says that there are none."""
GATHER: Final = 0.002
"""Seconds between two questions while there are news: they come together then."""
AT_ONCE: Final = 256
TRUSTED_FOR: Final = 1.0
"""Seconds after a question for which its answer is good: Sink.coherent."""
SAVE_EVERY: Final = 1.0
ROOM_AT: Final = 0.98
"""The share of its memory below which a Redis that was full has room again."""
SLICE: Final = 500
"""Keys after which other tasks have their turn."""


class LogReader:
    """Follows the log of a shard, and tells the sink. `run` must be running."""

    def __init__(
        self,
        shard: Shard,
        file: CursorFile,
        target: str,
        coherent: Callable[[int], None],
        leases: RemoteLeases,
    ) -> None:
        """`coherent` gets the boot clock's nanoseconds until which this shard is known."""
        self._shard = shard
        self._file = file
        self._target = target
        self._coherent = coherent
        self._leases = leases
        self._saved_at = 0.0
        self._saved: Cursor | None = None
        self.cursor = file.read()
        self.line = Line(
            lambda: shard.connect(shard.timeout + BLOCK),
            shard.breaker,
            shard.limiter,
            shard.timeout + BLOCK,
            shard.explain,
        )
        shard.on_away.append(self.line.drop)

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self._shard.breaker.wait_closed()
            try:
                await self._resume()
                while True:
                    await self._round()
            except RemoteAway:
                # Said already; the supervisor looks when Redis is back.
                continue
            except (ValueError, TypeError, KeyError, IndexError) as error:
                # What came is not what Redis sends.
                self._shard.breaker.fail(self._shard.explain(error))

    # ── at a connection

    async def _resume(self) -> None:
        names, shard = self._shard.names, self._shard
        last = self.cursor.last if self.cursor else NEVER
        info, epoch, marks, sweeps, stream, here = await self.line.call(
            [
                ("INFO", "replication"),
                scripts.begin(names, os.urandom(12).hex().encode()),
                ("HMGET", names.state, "h", "s"),
                ("HGETALL", names.sweeps),
                ("XINFO", "STREAM", names.log),
                ("XRANGE", names.log, last.text(), last.text()),
            ]
        )
        self._shard.look([epoch, marks, sweeps, here])
        found = _found(info, epoch, stream, present=bool(here))
        reason = decide(self.cursor, self._target, found)
        before = self.cursor
        at = last if reason is None else found.last
        if reason is not None:
            # Forgotten first: these may be marks of another Redis.
            shard.marks.reset()
        hard, soft = (Version.parse(text or b"0") for text in marks)
        shard.marks.everything = shard.marks.everything.later(Cleared(hard, soft))
        for id_, packed in pairs(sweeps).items():
            predicate = Predicate.unpack(packed)
            if predicate is not None and predicate.pattern is not None:
                shard.marks.note(Version.parse(id_), predicate)
        self.cursor = Cursor(self._target, found.epoch, found.replication, at)
        shard.note_read(at)
        if reason is not None:
            self._drop(reason, first=before is None)
        await self._catch_up(found.last)

    async def _catch_up(self, newest: Version) -> None:
        """Replay what was missed."""
        assert self.cursor is not None
        replayed = 0
        while self.cursor.last < newest:
            stream, after = self._shard.names.log, b"(" + self.cursor.last.text()
            replies = await self.line.call([("XRANGE", stream, after, "+", "COUNT", AT_ONCE)])
            self._shard.look(replies)
            records = [read_record(entry) for entry in replies[0]]
            if not records:
                break
            replayed += len(records)
            await self._take(records)
        if replayed:
            self._shard.figures.replayed += replayed
            log.info("redis.replayed", shard=self._shard.index, records=replayed)

    def _drop(self, reason: str, *, first: bool = False) -> None:
        self._shard.flights.touch_all()
        self._shard.ahead.forget()
        self._leases.lose_all()
        self._shard.sink.drop_shared(self._shard.index)
        if not first:
            self._shard.figures.dropped += 1
            log.warning("redis.dropped", shard=self._shard.index, reason=reason)

    # ── following

    async def _round(self) -> None:
        assert self.cursor is not None
        names = self._shard.names
        last = self.cursor.last
        asked = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        epoch, role, stream, news = await self.line.call(
            [
                ("HGET", names.state, "e"),
                ("ROLE",),
                ("XINFO", "STREAM", names.log),
                (
                    *("XREAD", "COUNT", AT_ONCE, "BLOCK", int(BLOCK * 1000)),
                    *("STREAMS", names.log, last.text()),
                ),
            ]
        )
        self._shard.look([epoch, news])
        if isinstance(role, list) and role and role[0] != b"master":
            self._shard.breaker.fail("this Redis has become a replica")
            raise RemoteAway("this Redis has become a replica")
        newest = _newest(stream)
        if epoch is None or epoch.decode() != self.cursor.epoch or newest < last:
            # All data are gone, or others have taken their place: as at a new connection.
            await self._resume()
            return
        if self._shard.full:
            await self._look_for_room()
        records = read_reply(news, names.log)
        await self._take(records)
        if len(records) < AT_ONCE:
            self._coherent(asked + int(TRUSTED_FOR * 1e9))
        await self._save()
        if records:
            await trio.sleep(GATHER)

    async def _look_for_room(self) -> None:
        """Values were refused for lack of memory: say so no longer when there is some, whether
        anything is written now or not."""
        (info,) = await self.line.call([("INFO", "memory")])
        self._shard.look([info])
        used, most = (int(field(info, name) or 0) for name in ("used_memory", "maxmemory"))
        if not most or used < ROOM_AT * most:
            self._shard.has_room()

    async def _take(self, records: Sequence[Record]) -> None:
        """Carry out what records say, in slices."""
        done = 0
        for record in records:
            self._apply(record)
            assert self.cursor is not None
            self.cursor = self.cursor._replace(last=record.id)
            self._shard.note_read(record.id)
            done += 1 + len(record.keys)
            if done >= SLICE:
                done = 0
                await trio.lowlevel.checkpoint()

    def _apply(self, record: Record) -> None:
        shard = self._shard
        for predicate in record.predicates:
            shard.marks.note(record.id, predicate)
            self._leases.cleared(record.id, predicate)
        for id_ in record.swept:
            shard.marks.swept(id_)
            # What was asked for before its removal can not be judged any more when it comes.
            shard.flights.touch_all()
        for key in record.released:
            self._leases.ended(key, record.id)
        for key in record.keys:
            self._leases.ended(key, record.id)
        if not record.understood:
            self._drop("a newer version has written what this one cannot read")
            return
        current = {key for key in record.keys if shard.ahead.had(key, record.id)}
        if record.origin == shard.origin:
            return
        for key in record.keys:
            shard.flights.changed(key, record.id)
            if key in current:
                shard.sink.overtaken(key)
            else:
                shard.sink.invalidate(key)
        shard.figures.invalidated += len(record.keys)
        for predicate in record.predicates:
            shard.flights.cleared(record.id)
            shard.sink.apply(predicate)

    async def _save(self) -> None:
        now = trio.current_time()
        if now - self._saved_at >= SAVE_EVERY and self.cursor != self._saved:
            self._saved_at = now
            await self.save()

    async def save(self) -> None:
        """Keep the place, so that a restart goes on from it."""
        cursor = self.cursor
        if cursor is None or cursor == self._saved:
            return
        try:
            await trio.to_thread.run_sync(self._file.write, cursor, limiter=self._shard.limiter)
        except OSError as error:
            # An older place replays more, nothing else.
            log.warning("redis.cursor_not_saved", reason=error.strerror)
        self._saved = cursor


def _newest(stream: Any) -> Version:
    """The newest id of a stream by XINFO; NEVER where there is none."""
    if isinstance(stream, Exception):
        return NEVER
    return Version.parse(pairs(stream)[b"last-generated-id"])


def _found(info: Any, epoch: bytes, stream: Any, *, present: bool) -> Found:
    replication = field(info, "master_replid")
    if isinstance(stream, Exception):
        return Found(epoch.decode(), replication, NEVER, NEVER, untrimmed=True, present=present)
    told = pairs(stream)
    first = told.get(b"first-entry")
    added = told.get(b"entries-added", -1)
    return Found(
        epoch=epoch.decode(),
        replication=replication,
        first=Version.parse(first[0]) if first else NEVER,
        last=Version.parse(told[b"last-generated-id"]),
        untrimmed=added == told[b"length"],
        present=present,
    )
