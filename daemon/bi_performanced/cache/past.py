"""What is remembered of keys that left, or were not let in, and of what was cleared.

A log of fixed size, the latest DEPARTURES of them in 24 bytes each (1.5 MiB): a departure is on the
way of a put, so it is one write at the log's end, and looking for one, which only people ask for,
is a search through the bytes. Keys are not kept, only their hashes. The log is this daemon's: of
what an earlier one did nothing is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

DEPARTURES: Final = 65_536
CLEARS: Final = 128
"""Clears that are remembered, the latest."""
SEEDS: Final = 8
"""Stores whose hashes are still understood, the latest: each has a seed of its own."""
_RECORD: Final = Struct("<QIIIBBH")
_DIGEST: Final = Struct("<Q")
_NUMBERS: Final = 1 << 16


class Why(IntEnum):
    """Why a key is not here."""

    EVICTED = 1
    EXPIRED = 2
    DELETED = 3
    CLEARED = 4
    """By a pattern or a tag; its `clear` says which."""
    TAG = 5
    """By a tag, found when it was passed; which of its tags is not remembered."""
    ELSEWHERE = 6
    """Another host, or a program, has changed the key in Redis."""
    NEWS_MISSED = 7
    """What other hosts had changed was not known any more."""
    TOO_LARGE = 8
    """It was not let in."""
    REFUSED = 9
    """It was not let in: it was loaded under a lease that was over, or before a deletion."""
    CROWDED = 10
    """Its neighbourhood of the index was full."""
    STALE = 11
    """It was made stale by a command, and had no grace."""


class Use(IntEnum):
    """Whether anybody read it."""

    UNKNOWN = 0
    UNREAD = 1
    READ = 2


class Departure(NamedTuple):
    """Times in tenths of a second on the boot clock; `when` is 0 where it is not known."""

    digest: int
    when: int
    created: int
    """0 where there was no entry."""
    size: int
    """Bytes of the record; of what was too large, of the payload. 0 where there was no entry."""
    why: Why
    use: Use
    clear: int
    """The number of the clear, or 0."""


class Clear(NamedTuple):
    """Entries that went, or became stale, together. `when` as in a Departure."""

    number: int
    when: int
    sequence: int
    """Entries with this one or a lower one were concerned."""
    pattern: str | None
    tags: tuple[bytes, ...]
    stale: bool
    elsewhere: bool
    """Another host has done it."""
    what: str | None
    """Where nobody asked for it: why it was done all the same."""

    @property
    def everything(self) -> bool:
        return self.pattern is None and not self.tags


class Past:
    """The departures and clears of one daemon, over all the stores that it had."""

    def __init__(self, departures: int = DEPARTURES) -> None:
        self._log = bytearray(_RECORD.size * departures)
        self._at = 0
        self._full = False
        self._seeds: deque[int] = deque(maxlen=SEEDS)
        self._clears: deque[Clear] = deque(maxlen=CLEARS)
        self._number = 0

    def store(self, seed: int) -> None:
        """A store with this seed is made: hashes may be of it from now on."""
        if seed not in self._seeds:
            self._seeds.append(seed)

    def note(
        self,
        digest: int,
        why: int,
        when: int,
        created: int,
        size: int,
        use: int = 0,
        clear: int = 0,
    ) -> None:
        """A key left, or was not let in."""
        at = self._at
        _RECORD.pack_into(self._log, at, digest, when, created, size, why, use, clear)
        at += 24
        if at == len(self._log):
            at, self._full = 0, True
        self._at = at

    def cleared(
        self,
        when: int,
        sequence: int,
        *,
        pattern: str | None = None,
        tags: Iterable[bytes] = (),
        stale: bool = False,
        elsewhere: bool = False,
        what: str | None = None,
    ) -> int:
        """Entries go together, or become stale; the number by which departures may name it."""
        self._number = self._number % (_NUMBERS - 1) + 1
        self._clears.append(
            Clear(self._number, when, sequence, pattern, tuple(tags), stale, elsewhere, what)
        )
        return self._number

    # ── asked for by people

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the stores whose hashes the log may hold."""
        return tuple(self._seeds)

    @property
    def full(self) -> bool:
        """Whether older departures have been forgotten."""
        return self._full

    @property
    def reach(self) -> int | None:
        """When the oldest departure that is remembered was; None when there is none."""
        if self._full:
            return int(_RECORD.unpack_from(self._log, self._at)[1])
        return int(_RECORD.unpack_from(self._log, 0)[1]) if self._at else None

    def find(self, digests: Iterable[int]) -> Departure | None:
        """The latest departure of a key, given its hashes by each of `seeds`. About 1 ms."""
        found: Departure | None = None
        for digest in digests:
            departure = next(self._latest_first(digest), None)
            if departure is not None and (found is None or departure.when >= found.when):
                found = departure
        return found

    def _latest_first(self, digest: int) -> Iterator[Departure]:
        wanted = _DIGEST.pack(digest)
        for start, end in ((0, self._at), (self._at, len(self._log) if self._full else 0)):
            while (at := self._log.rfind(wanted, start, end)) >= 0:
                if at % _RECORD.size == 0:
                    _, when, created, size, why, use, clear = _RECORD.unpack_from(self._log, at)
                    yield Departure(digest, when, created, size, Why(why), Use(use), clear)
                end = at + _DIGEST.size - 1

    def clear_of(self, number: int) -> Clear | None:
        """A clear by its number, if it is still remembered."""
        return next((each for each in reversed(self._clears) if each.number == number), None)

    def clears(self) -> Iterator[Clear]:
        """Those that are remembered, the latest first."""
        return reversed(self._clears)
