"""Reads entries of a shard, and hands over none that may be old by then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bi_performanced.remote.connection import Command
from bi_performanced.remote.envelope import NEVER, Codec, Envelope, Unreadable, Version, aged
from bi_performanced.remote.flights import Flight
from bi_performanced.remote.marks import Cleared

if TYPE_CHECKING:
    from bi_performanced.remote.shard import Shard

LARGEST: Final = 64 << 20
"""Bytes of an entry that are read; one of ours is never larger, a foreign one is a miss."""
AT_ONCE: Final = 256
ATTEMPTS: Final = 3
"""How often a fetch is made because the key was changed meanwhile."""


class _Found(NamedTuple):
    """An entry, where the log was and what this host had heard of when it was asked for."""

    envelope: Envelope | None
    seen: Version = NEVER
    mark: int = 0
    here: bool = False
    """It waits to be written, and was not asked for."""


class Fetch:
    """One fetch of some keys: `run`, then `result` without waiting for anything in between."""

    def __init__(self, reading: Reading, flight: Flight, keys: Sequence[bytes]) -> None:
        self._reading = reading
        self._flight = flight
        self._keys = keys
        self._found: dict[bytes, _Found] = {}

    async def run(self) -> None:
        """Ask Redis. Raises RemoteAway."""
        left = list(dict.fromkeys(self._keys))
        for _ in range(ATTEMPTS):
            left = [key for key in left if not self._is_here(key)]
            if not left:
                return
            self._reading.shard.breaker.check()
            for at in range(0, len(left), AT_ONCE):
                some = left[at : at + AT_ONCE]
                self._found.update(await self._reading.ask(some, self._flight.mark()))
            left = [key for key in left if self._raced(key)]
            self._reading.shard.figures.raced += len(left)

    def _is_here(self, key: bytes) -> bool:
        known, envelope = self._reading.waiting(key)
        if known:
            self._found[key] = _Found(envelope, here=True)
        return known

    def _raced(self, key: bytes) -> bool:
        found = self._found[key]
        if found.here or found.envelope is None:
            return False
        if self._reading.shard.ahead.has_newer(key, found.envelope.version):
            # Another fetch has brought a later one already.
            return True
        return self._flight.raced(key, found.seen, found.mark)

    def result(self) -> dict[bytes, Envelope | None]:
        """What the keys hold; None also for those that were changed since they were read."""
        figures = self._reading.shard.figures
        given: dict[bytes, Envelope | None] = {}
        for key, found in self._found.items():
            envelope = None if self._raced(key) else found.envelope
            if envelope is not None and found.here:
                # It may have been overwritten here while others were asked for.
                _, envelope = self._reading.waiting(key)
            elif envelope is not None:
                envelope = self._reading.judge(key, envelope)
            given[key] = envelope
            if envelope is None:
                figures.misses += 1
            else:
                figures.hits += 1
        return given


class Reading:
    """How entries of one shard are read."""

    def __init__(self, shard: Shard, codec: Codec) -> None:
        self.shard = shard
        self._codec = codec

    @contextmanager
    def fetch(self, keys: Sequence[bytes]) -> Iterator[Fetch]:
        """A fetch that hears, while this is open, of what happens to its keys."""
        with self.shard.flights.noted(keys) as flight:
            yield Fetch(self, flight, keys)

    def waiting(self, key: bytes) -> tuple[bool, Envelope | None]:
        """Whether what waits to be written says what the key holds, and that."""
        shard = self.shard
        if key in shard.outbox:
            return True, None
        write = shard.queue.find(key)
        if write is None:
            return False, None
        envelope = write.envelope
        if envelope is not None:
            envelope = aged(envelope, now_ms())
            for predicate in shard.queue.cleared_since(key, write):
                if envelope is not None and predicate.hits(key, envelope.tags, shard.matcher):
                    envelope = replace(envelope, stale=True) if predicate.soft else None
        return True, envelope if envelope is not None and envelope.remaining > 0 else None

    async def ask(self, keys: Sequence[bytes], mark: int) -> dict[bytes, _Found]:
        """What Redis holds for keys, as it is."""
        shard, names = self.shard, self.shard.names
        commands: list[Command] = [
            # First, so that all that is read is at least as new.
            ("XREVRANGE", names.log, "+", "-", "COUNT", 1),
            ("HMGET", names.state, "h", "s"),
        ]
        for key in keys:
            name = names.value(key)
            commands += [("GETRANGE", name, 0, LARGEST), ("PTTL", name)]
        replies = await shard.reads.call(commands)
        shard.look(replies[:2])
        seen = Version.parse(replies[0][0][0]) if replies[0] else NEVER
        hard, soft = (Version.parse(text or b"0") for text in replies[1])
        shard.marks.everything = shard.marks.everything.later(Cleared(hard, soft))
        envelopes = {
            key: self.read(key, replies[2 + 2 * at], replies[3 + 2 * at])
            for at, key in enumerate(keys)
        }
        await self.learn_tags(envelopes.values())
        return {key: _Found(each, seen, mark) for key, each in envelopes.items()}

    def read(self, key: bytes, data: Any, pttl: Any) -> Envelope | None:
        """An entry from the replies to GETRANGE and PTTL; what cannot be read is counted."""
        figures = self.shard.figures
        if isinstance(data, Exception) or isinstance(pttl, Exception):
            if not is_foreign(data):
                self.shard.look([data, pttl])
            figures.garbage += 1
            return None
        if not data or pttl == -2:
            return None
        try:
            return self._codec.unpack(key, data, pttl, now_ms())
        except Unreadable as error:
            if error.kind == "signature":
                figures.bad_signatures += 1
            elif error.kind == "unknown_format":
                figures.unknown_format += 1
            else:
                figures.garbage += 1
            return None

    def judge(self, key: bytes, envelope: Envelope) -> Envelope | None:
        """The entry as the clears leave it, those that wait to be sent included."""
        judged = self.weigh(key, envelope)
        if judged is None and envelope.remaining > 0:
            self.shard.figures.cleared += 1
        return judged

    def weigh(self, key: bytes, envelope: Envelope) -> Envelope | None:
        """As `judge`, counting nothing."""
        shard = self.shard
        if envelope.remaining <= 0:
            return None
        cleared = shard.marks.judge(key, envelope)
        gone, stale = cleared.hard > envelope.version, cleared.soft > envelope.version
        for waiting in (shard.queue.clears(), shard.outbox.clears):
            for predicate in waiting:
                if predicate.hits(key, envelope.tags, shard.matcher):
                    gone, stale = gone or not predicate.soft, stale or predicate.soft
        if gone:
            return None
        return replace(envelope, stale=True) if stale else envelope

    async def learn_tags(self, envelopes: Iterable[Envelope | None]) -> None:
        """Ask Redis when the tags of entries were cleared, where that is not known."""
        shard = self.shard
        tags = {tag for each in envelopes if each is not None for tag in each.tags}
        unknown = shard.marks.unknown(tags)
        if not unknown:
            return
        replies = await shard.reads.call([("HMGET", shard.names.tag(t), "h", "s") for t in unknown])
        # Of another's making: nothing that we have cleared is kept there.
        marks = [(None, None) if is_foreign(reply) else reply for reply in replies]
        shard.look(marks)
        for tag, (hard, soft) in zip(unknown, marks, strict=True):
            cleared = Cleared(Version.parse(hard or b"0"), Version.parse(soft or b"0"))
            shard.marks.learn(tag, cleared)


def is_foreign(reply: object) -> bool:
    """Whether Redis has answered that something of another kind lies under the name."""
    return isinstance(reply, Exception) and str(reply).startswith("WRONGTYPE")


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000
