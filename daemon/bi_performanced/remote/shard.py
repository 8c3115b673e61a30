"""One shard of Redis: its entries, its log, and what waits to be written to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from bi_performanced.remote import scripts
from bi_performanced.remote.breaker import Breaker, RemoteAway
from bi_performanced.remote.connection import Command, Connection
from bi_performanced.remote.envelope import NEVER, Codec, Envelope, Version, aged
from bi_performanced.remote.fetching import ATTEMPTS, LARGEST, Reading, now_ms
from bi_performanced.remote.figures import Figures
from bi_performanced.remote.flights import Ahead, Flights
from bi_performanced.remote.line import Line
from bi_performanced.remote.marks import Marks
from bi_performanced.remote.names import Names
from bi_performanced.remote.outbox import Outbox
from bi_performanced.remote.predicate import Matcher, Predicate
from bi_performanced.remote.queue import Batch, Queue
from bi_performanced.remote.sink import Sink

log = structlog.get_logger("performance")

SENT_AT_ONCE: Final = 512
"""Deletions of the outbox in one transaction."""
EXTENDED_AT_ONCE: Final = 256
FULL_FOR: Final = 1.0
"""Seconds after a refusal for lack of memory, in which values are not tried."""
SAVE_AGAIN: Final = 1.0


class Shard:
    """Reads, writes and their order. `run` must be running."""

    def __init__(
        self,
        *,
        index: int,
        names: Names,
        origin: bytes,
        codec: Codec,
        matcher: Callable[[str], Matcher],
        sink: Sink,
        outbox: Path,
        limiter: trio.CapacityLimiter,
        timeout: float,
        connect: Callable[[float], Connection],
        explain: Callable[[BaseException], str],
        changed: Callable[[], None],
        figures: Figures,
    ) -> None:
        self.index = index
        self.names = names
        self.origin = origin
        self.sink = sink
        self.limiter = limiter
        self.timeout = timeout
        self.figures = figures
        self.explain = explain
        self.connect = connect
        self.matcher = matcher
        self.marks = Marks(matcher)
        self.flights = Flights()
        self.queue = Queue()
        self.outbox = Outbox(outbox)
        self.full: str | None = None
        """Why values are not stored although Redis answers."""
        self.read_to = NEVER
        """The last entry of the log that was carried out here."""
        self.ahead = Ahead()
        self.publishing: set[bytes] = set()
        """Keys whose values Redis is being told of, beside the queue."""
        self.reading = Reading(self, codec)
        self._read_on = trio.Event()
        self._codec = codec
        self._changed = changed
        self._full_until = 0.0
        self._finished = 0
        self._settled = trio.Event()
        self._work = trio.Event()
        self._unsaved = trio.Event()
        self.breaker = Breaker(self._turn)
        self.on_connect: list[Callable[[Connection], None]] = []
        """Called in a thread for each new connection of the writing line."""
        self.reads = Line(lambda: connect(timeout), self.breaker, limiter, timeout, self.explain)
        self.writes = Line(self._connect_to_write, self.breaker, limiter, timeout, self.explain)
        self.on_away: list[Callable[[], None]] = [self.reads.drop, self.writes.drop]
        """Called when the breaker opens, to close connections."""
        self.cleared_here: Callable[[], None] = lambda: None
        """Called when a clear of ours is in the log, and entries are to be removed."""

    # ── reading

    async def fetch(self, keys: Sequence[bytes]) -> list[Envelope | None]:
        """What Redis holds for these keys. Raises RemoteAway."""
        with self.reading.fetch(keys) as fetch:
            await fetch.run()
            found = fetch.result()
        return [found[key] for key in keys]

    async def read_up_to(self, id_: Version) -> None:
        """Until the log has been read and carried out up to there."""
        while self.read_to < id_:
            await self._read_on.wait()

    def note_read(self, id_: Version) -> None:
        """The log has been carried out up to there."""
        self.read_to = id_
        if self._read_on.statistics().tasks_waiting:
            self._read_on.set()
            self._read_on = trio.Event()

    def look(self, replies: Sequence[Any]) -> None:
        """Raises RemoteAway, the breaker opened, when one of the replies is an error."""
        for reply in replies:
            if isinstance(reply, Exception):
                reason = self.explain(reply)
                self.figures.errors += 1
                self.breaker.fail(reason)
                raise RemoteAway(reason)

    # ── writing

    def put(self, key: bytes, envelope: Envelope) -> bool:
        """Queue a value; False when the queue is full and the key will be deleted instead."""
        self.flights.touched(key)
        if self.breaker.open:
            self._to_outbox(key)
            return True
        if not self.queue.room(key, envelope):
            self.figures.overflows += 1
            self._to_outbox(key)
            return False
        self.queue.add(key, envelope)
        self._work.set()
        return True

    def delete(self, key: bytes) -> None:
        """Queue a deletion."""
        self.flights.touched(key)
        if self.breaker.open or len(self.queue) >= 2 * self.queue.max_writes:
            self._to_outbox(key)
            return
        self.queue.add(key, None)
        self._work.set()

    def _to_outbox(self, key: bytes) -> None:
        self.queue.accepted += 1
        self.queue.forget(key)
        self.outbox.add([key])
        self._unsaved.set()
        self._work.set()

    def clear(self, predicate: Predicate) -> None:
        """Queue a clear."""
        self.flights.touch_all()
        if self.breaker.open:
            self.queue.accepted += 1
            self.outbox.add([], [predicate])
            self._unsaved.set()
        else:
            self.queue.clear(predicate)
        self._work.set()

    async def catch_up(self) -> bool:
        """Until this host has read what is in the log now; False when that takes too long."""
        (newest,) = replies = await self.reads.call(
            [("XREVRANGE", self.names.log, "+", "-", "COUNT", 1)]
        )
        self.look(replies)
        with trio.move_on_after(self.timeout) as scope:
            if newest:
                await self.read_up_to(Version.parse(newest[0][0]))
        return not scope.cancelled_caught

    async def extend(self, keys: Sequence[tuple[bytes, int]]) -> None:
        """Have entries live so many milliseconds, if that is longer and they are not newer than
        what this host has read of. An entry tells by what is left of its time how long it is
        fresh, so nothing else is to be written."""
        known = self.read_to
        for at in range(0, len(keys), EXTENDED_AT_ONCE):
            some = [(self.names.value(key), ms) for key, ms in keys[at : at + EXTENDED_AT_ONCE]]
            self.look(await self.writes.call([scripts.prolong(some, known)]))

    async def drop_if_there(self, keys: Sequence[bytes]) -> None:
        """Delete entries; where there is one, all hosts are told."""
        for at in range(0, len(keys), SENT_AT_ONCE):
            some = keys[at : at + SENT_AT_ONCE]
            self.look(await self.writes.call([scripts.drop(self.names, self.origin, some)]))

    async def settled(self) -> None:
        """Until all that was queued before is in Redis, or in the outbox and on disk."""
        target = self.queue.accepted
        while self._finished < target or not self.outbox.saved:
            if self._finished >= target and not len(self.outbox):
                # What was noted has been sent since; the file need not follow first.
                return
            if self.outbox.failed and not len(self.queue):
                # It is kept in memory, and the status says so.
                return
            self._settled = trio.Event() if self._settled.is_set() else self._settled
            await self._settled.wait()

    def _note_finished(self, number: int | None = None) -> None:
        self._finished = self.queue.accepted if not len(self.queue) else number or self._finished
        self._settled.set()

    async def write(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self.breaker.wait_closed()
            if not len(self.outbox) and not len(self.queue):
                self._note_finished()
                self._work = trio.Event()
                if not len(self.queue):
                    await self._work.wait()
                continue
            # What has begun is ended, in the time that a call takes at most.
            with trio.CancelScope(shield=True):
                await self.write_once()

    async def write_once(self) -> None:
        """Send one batch; what waits in the outbox goes first."""
        batch: Batch | None = None
        try:
            if len(self.outbox):
                await self._send_outbox()
                return
            batch = self.queue.take()
            if batch is None:
                return
            if batch.clear is not None:
                await self._send_clear(batch.clear)
            else:
                await self._send_writes(batch)
        except RemoteAway:
            # What waited, this batch with it, went to the outbox when the breaker opened.
            if batch is not None and not self.breaker.open:
                self.breaker.fail("a write was not carried out")
            return
        if not self.breaker.open:
            self.queue.done()
            self._note_finished(batch.last)

    async def _send_outbox(self) -> None:
        keys, clears = self.outbox.some(SENT_AT_ONCE)
        commands: list[Command] = []
        for predicate in clears:
            commands += scripts.clear(self.names, self.origin, predicate)
        if keys:
            commands += scripts.write(self.names, self.origin, [], keys)
        replies = await self.writes.call(commands)
        self.look(replies)
        for predicate, id_ in zip(clears, replies, strict=False):
            self._note_clear(Version.parse(id_), predicate)
        if keys:
            self.look(replies[-1])
        self.outbox.sent(keys, clears)
        self.figures.flushed += len(keys) + len(clears)
        self._unsaved.set()

    async def _send_clear(self, predicate: Predicate) -> None:
        replies = await self.writes.call(scripts.clear(self.names, self.origin, predicate))
        self.look(replies)
        self._note_clear(Version.parse(replies[0]), predicate)
        self.figures.clears += 1

    def _note_clear(self, id_: Version, predicate: Predicate) -> None:
        self.marks.note(id_, predicate)
        if predicate.pattern is not None or (predicate.everything and not predicate.soft):
            self.cleared_here()

    async def _send_writes(self, batch: Batch) -> None:
        values: list[tuple[bytes, bytes, int]] = []
        deleted: list[bytes] = []
        now = now_ms()
        full = trio.current_time() < self._full_until
        for key, (_, envelope) in batch.writes.items():
            left = 0 if envelope is None else aged(envelope, now).remaining
            if envelope is None or left <= 0 or full:
                deleted.append(key)
                self.figures.refused += envelope is not None and left > 0
            else:
                values.append((key, self._codec.pack(key, envelope), left))
        reply = await self._transact(values, deleted)
        if values and is_full(reply):
            self._full_until = trio.current_time() + FULL_FOR
            self.say_full(self.explain(_first_error(reply)))
            self.figures.refused += len(values)
            deleted += [key for key, _, _ in values]
            values = []
            reply = await self._transact(values, deleted)
        elif values:
            self.say_full(None)
        self.look(reply)
        self.figures.stores += len(values)
        self.figures.deletes += len(deleted)

    async def _transact(
        self, values: Sequence[tuple[bytes, bytes, int]], deleted: Sequence[bytes]
    ) -> list[Any]:
        """The errors of a transaction, or its results."""
        replies = await self.writes.call(scripts.write(self.names, self.origin, values, deleted))
        errors = [reply for reply in replies[:-1] if isinstance(reply, Exception)]
        if errors:
            return errors
        return replies[-1] if isinstance(replies[-1], list) else [replies[-1]]

    def has_room(self) -> None:
        """Values can be stored again."""
        self._full_until = 0.0
        self.say_full(None)

    def say_full(self, reason: str | None) -> None:
        """Why values are not stored; None when they can be."""
        if reason != self.full:
            self.full = reason
            self._changed()

    async def add(self, key: bytes, envelope: Envelope) -> bool:
        """Store a value if there is none, exact over all hosts. Raises RemoteAway."""
        await self.settled()
        self.flights.touched(key)
        for _ in range(ATTEMPTS):
            self.breaker.check()
            name = self.names.value(key)
            replies = await self.reads.call([("GETRANGE", name, 0, LARGEST), ("PTTL", name)])
            data = b"" if isinstance(replies[0], Exception) else replies[0]
            seen: bytes | None = None
            if replies[1] != -2:
                found = self.reading.read(key, replies[0], replies[1])
                if found is not None:
                    await self.reading.learn_tags([found])
                    found = self.reading.judge(key, found)
                if found is not None:
                    return False
                seen = data
            packed = self._codec.pack(key, envelope)
            replies = await self.writes.call(
                scripts.add(self.names, self.origin, key, packed, envelope.hard, seen)
            )
            errors = [reply for reply in replies[:-1] if isinstance(reply, Exception)]
            if is_full(errors):
                self.say_full(self.explain(_first_error(errors)))
                raise RemoteAway(self.explain(_first_error(errors)))
            self.look(errors or replies[-1:])
            self.look(replies[-1])
            if replies[-1][0] is not None:
                version = Version.parse(replies[-1][0])
                self.figures.stores += 1
                await self.writes.call([scripts.put_version(self.names, key, version)])
                return True
        return False

    # ── being away and coming back

    def _turn(self, ok: bool, reason: str | None) -> None:
        """The breaker has opened or closed."""
        if not ok:
            waiting = len(self.queue)
            keys, clears = self.queue.take_all()
            self.figures.lost_values += waiting
            self.outbox.add(keys, clears)
            self._unsaved.set()
            # None of them may still be to a server that is not the right one any more.
            for let_go in self.on_away:
                let_go()
        self._changed()

    async def supervise(self, begin: Callable[[], None]) -> None:
        """Probe while the breaker is open, until cancelled. `begin` blocks in a thread."""
        while True:
            await self.breaker.wait_open()
            await self.breaker.pause()
            reason = f"no answer within {self.timeout:g} s"
            try:
                with trio.move_on_after(2 * self.timeout):
                    await trio.to_thread.run_sync(
                        begin, limiter=self.limiter, abandon_on_cancel=True
                    )
                    self.breaker.succeed()
                    self._work.set()
                    continue
            except Exception as error:
                reason = self.explain(error)
            self.breaker.fail(reason)

    async def save(self) -> None:
        """Keep the outbox on disk, until cancelled."""
        while True:
            await self._unsaved.wait()
            self._unsaved = trio.Event()
            before = self.outbox.failed
            accepted = self.queue.accepted
            if await self.outbox.save(self.limiter):
                if self.breaker.open:
                    self._note_finished(accepted)
                self._settled.set()
            else:
                self._unsaved.set()
                await trio.sleep(SAVE_AGAIN)
            if self.outbox.failed != before:
                self._changed()

    async def flush(self) -> None:
        """Send what is queued as long as Redis answers; the rest goes to the outbox, on disk."""
        with suppress(RemoteAway):
            while not self.breaker.open and (len(self.queue) or len(self.outbox)):
                await self.write_once()

    async def put_away(self) -> None:
        """What still waits goes to the outbox, and that to disk."""
        keys, clears = self.queue.take_all()
        self.outbox.add(keys, clears)
        await self.outbox.save(self.limiter)

    def _connect_to_write(self) -> Connection:
        connection = self.connect(self.timeout)
        for each in self.on_connect:
            each(connection)
        return connection


def _first_error(replies: Sequence[Any]) -> Exception:
    """The first that is an error, the one that made a transaction fail."""
    return next(reply for reply in replies if isinstance(reply, Exception))


def is_full(replies: Sequence[Any]) -> bool:
    from redis.exceptions import OutOfMemoryError

    return any(isinstance(reply, OutOfMemoryError) for reply in replies)
