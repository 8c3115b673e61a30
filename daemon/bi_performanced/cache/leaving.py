"""Stores that were left for one of another size, until nobody reads there any more."""

from __future__ import annotations

import math
from typing import NamedTuple

import trio

from bi_performanced.cache.store import Store

RELEASE_AFTER = 30.0
"""Seconds until the pages of a store that was left are taken from readers who stayed on it."""
RELEASE_SOON = 1.0
"""The same when all have moved, or when the store was made smaller: who reads there still finds
zeros, which are a miss."""
MOST_LEFT = 2
"""Stores that were left and are kept for those who still read there, at the most."""


class Left(NamedTuple):
    """A store that was resized away, and when its memory is given back to the system."""

    store: Store
    epoch: int
    """Its last; who attached later does not read there."""
    at_first: float
    at_last: float

    def is_due(self, now: float, oldest: int) -> bool:
        """`oldest`: the epoch at which the attached process came that has not moved longest."""
        return now >= self.at_last or (now >= self.at_first and oldest > self.epoch)


class LeftStores:
    """Stores that were left, oldest first. They are freed by threads within `limiter`."""

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._left: list[Left] = []

    def add(self, store: Store, epoch: int) -> None:
        """Take over a store whose last epoch this was."""
        now = trio.current_time()
        self._left.append(Left(store, epoch, now + RELEASE_SOON, now + RELEASE_AFTER))

    def hurry(self) -> None:
        """Who gives memory back wants that of the store that was left last now."""
        self._left[-1] = self._left[-1]._replace(at_last=trio.current_time() + RELEASE_SOON)

    async def make_way(self, oldest: int, *, short: bool) -> None:
        """Free all where memory is short, else those beyond MOST_LEFT."""
        if self._left and short:
            await self.release(math.inf, oldest)
        elif len(self._left) > MOST_LEFT:
            await self.release(self._left[-MOST_LEFT].at_last - 0.001, oldest)

    async def release(self, now: float, oldest: int) -> None:
        """Free the stores whose time is over; see Left.is_due."""
        for left in [each for each in self._left if each.is_due(now, oldest)]:
            if left not in self._left:
                # Another task was faster.
                continue
            self._left.remove(left)
            # Some 10 ms for each 100 MiB: not on the loop. What was begun is not left undone.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_free, left.store, limiter=self._limiter)

    def close(self) -> None:
        for left in self._left:
            _free(left.store)


def _free(store: Store) -> None:
    """On a tmpfs a store's pages are memory."""
    store.memory.release_pages()
    store.close()
