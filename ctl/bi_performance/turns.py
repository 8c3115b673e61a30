"""Whose turn it is: a process opens few connections, and what it asks beyond them waits its turn.

Each event loop has turns of its own, and all threads without one share some. So a loop that stands
still keeps nobody else waiting, and nothing that it has queued is to be woken from another thread.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final
from weakref import WeakKeyDictionary

from bi_performance.protocol import Unavailable

CONNECTIONS: Final = 16
"""Requests of one event loop, or of all threads, that are made at one time."""
LONGEST_WAIT: Final = 10.0
"""Seconds that a request waits for its turn, however well those before it are answered."""


class Crowded(Unavailable):
    """Too many requests of this process wait for the daemon."""


def patience(began: float, moved: float, seconds: float) -> float:
    """Seconds left to wait for a turn since `began`. Raises Crowded when there are none.

    While turns are given back (the last one at `moved`), the daemon is well and waiting is worth
    it: to give up would drop what a burst of this process's own wrote.
    """
    now = time.monotonic()
    left = min(max(began, moved) + seconds, began + LONGEST_WAIT) - now
    if left <= 0:
        raise Crowded(f"{now - began:.1f} s behind other requests of this process")
    return left


class ThreadTurns:
    """Turns that threads take and wait for.

    A SimpleQueue of permissions, because it may be re-entered: by a signal handler that asks the
    cache while its thread is in the middle of taking a turn.
    """

    def __init__(self) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(CONNECTIONS):
            self._free.put(None)
        self._moved = 0.0

    def take(self, seconds: float) -> None:
        """Wait for a turn. Raises Crowded."""
        try:
            self._free.get_nowait()
        except Empty:
            self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        began = time.monotonic()
        while True:
            left = patience(began, self._moved, seconds)
            try:
                return self._free.get(timeout=left)
            except Empty:
                continue

    @property
    def wanted(self) -> bool:
        """Whether somebody may be waiting."""
        return self._free.empty()

    def give(self) -> None:
        """Give a turn back."""
        self._moved = time.monotonic()
        self._free.put(None)


class Place:
    """A place in the queue for a turn; `granted` when the turn has come."""

    __slots__ = ("began", "granted", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.granted = False
        self.began = time.monotonic()


class LoopTurns:
    """Turns of one event loop; used in its thread only. Who waits is told by `Place.wake`."""

    def __init__(self) -> None:
        self._free = CONNECTIONS
        # Ordered, and yet whoever is cancelled leaves from the middle at no cost.
        self._waiting: OrderedDict[Place, None] = OrderedDict()
        self._moved = 0.0

    def take(self) -> bool:
        """Take a turn if one is free: whoever waits is given those that come back."""
        if self._free:
            self._free -= 1
            return True
        return False

    def join(self, wake: Callable[[], object]) -> Place:
        """Wait at the end of the queue. `leave` must follow unless the turn came and is used."""
        place = Place(wake)
        self._waiting[place] = None
        return place

    def patience(self, place: Place, seconds: float) -> float:
        """Seconds left to wait. Raises Crowded."""
        return patience(place.began, self._moved, seconds)

    def leave(self, place: Place) -> None:
        """Wait no more; a turn that had been granted meanwhile goes to the next."""
        if place.granted:
            self.give()
        else:
            self._waiting.pop(place, None)

    @property
    def wanted(self) -> bool:
        """Whether somebody is waiting."""
        return bool(self._waiting)

    def give(self) -> None:
        """Give a turn back, to the first that waits."""
        self._moved = time.monotonic()
        while self._waiting:
            place, _ = self._waiting.popitem(last=False)
            place.granted = True
            try:
                place.wake()
            except RuntimeError:
                # The loop was closed over all of them, and its tasks are being collected.
                continue
            return
        self._free += 1


class Turns:
    """All turns of a process with one daemon."""

    def __init__(self) -> None:
        self.threads = ThreadTurns()
        self._loops: WeakKeyDictionary[Any, LoopTurns] = WeakKeyDictionary()

    def of(self, loop: object) -> LoopTurns:
        """The turns of an event loop, asked for in its own thread."""
        found = self._loops.get(loop)
        if found is None:
            found = self._loops[loop] = LoopTurns()
        return found
