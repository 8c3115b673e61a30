"""What connections hold in memory, counted together; and which of them leaves when it is too much.

Each connection's own limits bound one client. This bounds all of them, as Redis's client eviction
(`maxmemory-clients`) does: when the sum passes the limit the connection goes that has made no
progress for the longest time.
"""

from __future__ import annotations

from typing import Protocol


class Holder(Protocol):
    """A connection with unfinished input or unsent output."""

    def evict(self) -> None:
        """Close as soon as it can be done; what is held has been taken off the account."""


class Buffers:
    """The account of held bytes over all connections of a front."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._held: dict[Holder, int] = {}
        """In the order of their last progress, the longest ago first."""

    def update(self, holder: Holder, count: int, *, progress: bool) -> None:
        """Say that a connection holds `count` bytes now, and whether it got on with its work.

        Evicts the oldest holders, which may be this one, until the sum is within the limit.
        """
        held = self._held
        before = held.pop(holder, 0) if progress or not count else held.get(holder, 0)
        self._total += count - before
        if count:
            held[holder] = count
        while self._total > self._limit:
            oldest = next(iter(held))
            self._total -= held.pop(oldest)
            oldest.evict()
