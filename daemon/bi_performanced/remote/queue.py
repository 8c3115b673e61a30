"""What waits to be written to Redis: by key the latest, in order around clears, bounded."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bi_performanced.remote.envelope import Envelope
from bi_performanced.remote.predicate import Predicate

MAX_WRITES: Final = 20_000
MAX_BYTES: Final = 32 << 20
"""What waits at most; beyond, a value becomes the deletion of its key."""
BATCH_WRITES: Final = 256
BATCH_BYTES: Final = 512 << 10
"""What goes in one transaction: Redis serves nobody else meanwhile."""


class Write(NamedTuple):
    """`envelope` None: a deletion. `number` grows with each."""

    number: int
    envelope: Envelope | None

    def size(self, key: bytes) -> int:
        return len(key) + (64 if self.envelope is None else self.envelope.size())


@dataclass
class Batch:
    """What is sent together: writes, or one clear."""

    last: int
    writes: dict[bytes, Write] = field(default_factory=dict)
    clear: Predicate | None = None


@dataclass
class _Segment:
    """Writes between two clears; `clear` is the one behind them."""

    writes: OrderedDict[bytes, Write] = field(default_factory=OrderedDict)
    clear: Predicate | None = None
    cleared: int = 0


class Queue:
    """The write-behind queue of a shard."""

    def __init__(self, max_writes: int = MAX_WRITES, max_bytes: int = MAX_BYTES) -> None:
        self.max_writes, self._max_bytes = max_writes, max_bytes
        self._segments: deque[_Segment] = deque([_Segment()])
        self._sent: Batch | None = None
        self._writes = self._bytes = 0
        self.accepted = 0
        """The number of the latest write or clear."""

    def __len__(self) -> int:
        """Writes and clears that wait or are on their way."""
        sent = 0 if self._sent is None else len(self._sent.writes) + (self._sent.clear is not None)
        return self._writes + len(self._segments) - 1 + sent

    def room(self, key: bytes, envelope: Envelope) -> bool:
        """Whether this value may wait here."""
        size = len(key) + envelope.size()
        return self._writes < self.max_writes and self._bytes + size <= self._max_bytes

    def add(self, key: bytes, envelope: Envelope | None) -> None:
        """Queue a value or a deletion, in place of what waits for that key."""
        self.accepted += 1
        self.forget(key)
        write = Write(self.accepted, envelope)
        self._segments[-1].writes[key] = write
        self._writes += 1
        self._bytes += write.size(key)

    def forget(self, key: bytes) -> None:
        """Take out what waits for a key behind the last clear; what is on its way goes on."""
        old = self._segments[-1].writes.pop(key, None)
        if old is not None:
            self._writes -= 1
            self._bytes -= old.size(key)

    def clear(self, predicate: Predicate) -> None:
        """Queue a clear behind all that waits."""
        self.accepted += 1
        last = self._segments[-1]
        last.clear, last.cleared = predicate, self.accepted
        self._segments.append(_Segment())

    def find(self, key: bytes) -> Write | None:
        """The latest that waits for a key or is on its way."""
        for segment in reversed(self._segments):
            found = segment.writes.get(key)
            if found is not None:
                return found
        return None if self._sent is None else self._sent.writes.get(key)

    def clears(self) -> Iterator[Predicate]:
        """The clears that wait or are on their way."""
        if self._sent is not None and self._sent.clear is not None:
            yield self._sent.clear
        for segment in self._segments:
            if segment.clear is not None:
                yield segment.clear

    def cleared_since(self, key: bytes, write: Write) -> list[Predicate]:
        """The clears that wait behind a write that waits."""
        return [
            segment.clear
            for segment in self._segments
            if segment.clear is not None and segment.cleared > write.number
        ]

    def take(self) -> Batch | None:
        """What is to be sent next; `done` or `take_all` must follow before another."""
        assert self._sent is None
        segment = self._segments[0]
        if not segment.writes:
            if segment.clear is None:
                return None
            self._segments.popleft()
            self._sent = Batch(segment.cleared, clear=segment.clear)
            return self._sent
        batch = Batch(0)
        size = 0
        while segment.writes and len(batch.writes) < BATCH_WRITES and size < BATCH_BYTES:
            key, write = segment.writes.popitem(last=False)
            batch.writes[key] = write
            batch.last = write.number
            size += write.size(key)
            self._writes -= 1
            self._bytes -= write.size(key)
        self._sent = batch
        return batch

    def done(self) -> None:
        """What was taken has been carried out."""
        self._sent = None

    def take_all(self) -> tuple[list[bytes], list[Predicate]]:
        """Empty the queue: the keys and clears that waited or were on their way."""
        keys: dict[bytes, None] = {}
        clears: list[Predicate] = []
        if self._sent is not None:
            keys.update(dict.fromkeys(self._sent.writes))
            if self._sent.clear is not None:
                clears.append(self._sent.clear)
        for segment in self._segments:
            keys.update(dict.fromkeys(segment.writes))
            if segment.clear is not None:
                clears.append(segment.clear)
        self._segments = deque([_Segment()])
        self._sent = None
        self._writes = self._bytes = 0
        return list(keys), clears
