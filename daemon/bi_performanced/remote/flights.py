"""Fetches that are under way, and what happened to their keys meanwhile.

A value must not be installed after the news that it is old: it would stay. So each fetch is noted
here from before its request is sent until its result is handed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from bi_performanced.remote.envelope import NEVER, Version

if TYPE_CHECKING:
    from collections.abc import Iterator


MOST_AHEAD: Final = 10_000
"""Entries that are known to be newer than what is read of the log; others are fetched once more."""


class Flight:
    """One fetch of some keys."""

    def __init__(self, flights: Flights) -> None:
        self._flights = flights
        self.all_touched = 0
        self.touched: dict[bytes, int] = {}
        self.changed: dict[bytes, Version] = {}
        self.cleared = NEVER

    def mark(self) -> int:
        """To be taken before a request is sent: what this host has heard of up to now."""
        return self._flights.heard

    def raced(self, key: bytes, seen: Version, mark: int) -> bool:
        """Whether a value may be old by now that was asked for at `mark` and read when the log
        ended at `seen`, or later."""
        return (
            self.all_touched > mark
            or self.touched.get(key, 0) > mark
            or self.changed.get(key, NEVER) > seen
            or self.cleared > seen
        )


class Flights:
    """All fetches of a shard."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, list[Flight]] = {}
        self._all: set[Flight] = set()
        self.heard = 0
        """News that have no place in the log, counted."""

    @contextmanager
    def noted(self, keys: Iterable[bytes]) -> Iterator[Flight]:
        """While this is open, news of these keys reach the flight."""
        flight = Flight(self)
        wanted = set(keys)
        self._all.add(flight)
        for key in wanted:
            self._by_key.setdefault(key, []).append(flight)
        try:
            yield flight
        finally:
            self._all.discard(flight)
            for key in wanted:
                flights = self._by_key[key]
                flights.remove(flight)
                if not flights:
                    del self._by_key[key]

    def changed(self, key: bytes, id_: Version) -> None:
        """The log says that a key was changed."""
        for flight in self._by_key.get(key, ()):
            flight.changed[key] = max(id_, flight.changed.get(key, NEVER))

    def touched(self, key: bytes) -> None:
        """This host or a foreign program has changed a key: where in the log is unknown."""
        self.heard += 1
        for flight in self._by_key.get(key, ()):
            flight.touched[key] = self.heard

    def cleared(self, id_: Version) -> None:
        """The log says that something was cleared."""
        for flight in self._all:
            flight.cleared = max(flight.cleared, id_)

    def touch_all(self) -> None:
        """This host clears something, or nothing is known of what was missed."""
        self.heard += 1
        for flight in self._all:
            flight.all_touched = self.heard


class Ahead:
    """Entries here that are newer than what was read of the log when they were installed.

    The news of that version must not throw them away again.
    """

    def __init__(self) -> None:
        self._versions: dict[bytes, Version] = {}

    def __len__(self) -> int:
        return len(self._versions)

    def note(self, key: bytes, version: Version, read_to: Version) -> None:
        """An entry of this version is here now, while the log is read up to `read_to`."""
        self._versions.pop(key, None)
        if version > read_to and len(self._versions) < MOST_AHEAD:
            self._versions[key] = version

    def has_newer(self, key: bytes, version: Version) -> bool:
        """Whether a later version of a key than this has been here."""
        return self._versions.get(key, NEVER) > version

    def had(self, key: bytes, id_: Version) -> bool:
        """Whether the entry that was installed has the change of which the log tells now."""
        version = self._versions.get(key, NEVER)
        if version <= id_:
            self._versions.pop(key, None)
        return version >= id_

    def forget(self) -> None:
        """The log is read from elsewhere on."""
        self._versions.clear()
