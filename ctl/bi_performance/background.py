"""Loads that nobody waits for: each has an owner, and none outlives it.

Under a loop such a load is a task of that loop, asyncio's or trio's, and ends with it at the
latest; without one it is a thread. `Background` holds them all, and `close` ends them: tasks are
cancelled, threads, which cannot be, are waited for and complained of.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from bi_performance.worlds import Make, Signal, World

log = logging.getLogger("performance")

MOST: Final = 64
"""Loads in the background of one process; beyond, a stale value is served without one."""
CLOSE_WITHIN: Final = 5.0
"""Seconds for the loads to end when they are told to."""


class Running:
    """One of them. Callers in any loop and thread may wait for its end."""

    def __init__(self, key: bytes, alive: Callable[[], bool]) -> None:
        self.key = key
        self.alive = alive
        """Whether it can go on: its event loop may have been closed over it."""
        self.cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._over = False
        self._signals: list[Signal] = []

    def end(self) -> None:
        with self._lock:
            self._over = True
            signals, self._signals = self._signals, []
        for signal in signals:
            signal.set()

    async def wait(self, world: World, seconds: float | None) -> bool:
        """Whether it ended within so many seconds."""
        with self._lock:
            if self._over:
                return True
            signal = world.signal()
            self._signals.append(signal)
        return await signal.wait(seconds)


class Background:
    """All of one process, at most one for a key."""

    def __init__(self) -> None:
        self.skipped = 0
        """Loads that were not begun because there were as many as there may be."""
        self.reset()

    def reset(self) -> None:
        """In a forked child: they are its parent's."""
        self._lock = threading.RLock()
        self._running: dict[bytes, Running] = {}

    def start(self, world: World, key: bytes, load: Make) -> Running | None:
        """The load of a key that runs already, or a new one; None when there are too many.

        `load` raises nothing but a cancellation.
        """
        with self._lock:
            running = self._running.get(key)
            if running is not None and running.alive():
                return running
            if len(self._running) >= MOST:
                self._running = {key: each for key, each in self._running.items() if each.alive()}
            if len(self._running) >= MOST:
                self.skipped += 1
                return None
            running = self._running[key] = Running(key, world.signal().alive)

        try:
            running.cancel = world.spawn(load, lambda: self._end(running))
        except RuntimeError:
            # No thread can be started, or the loop is ending.
            self._end(running)
            return None
        return running

    def _end(self, running: Running) -> None:
        with self._lock:
            if self._running.get(running.key) is running:
                del self._running[running.key]
        running.end()

    @property
    def count(self) -> int:
        return len(self._running)

    def cancel(self) -> list[Running]:
        """Cancel what can be; all that had not ended."""
        with self._lock:
            left = [running for running in self._running.values() if running.alive()]
        for running in left:
            if running.cancel is not None:
                running.cancel()
        return left

    def close(self) -> None:
        """End all: cancel what is a task of a loop, and wait for threads, for a while."""
        deadline = time.monotonic() + CLOSE_WITHIN
        threads = [running for running in self.cancel() if running.cancel is None]
        while any(self._running.get(each.key) is each for each in threads):
            if time.monotonic() > deadline:
                log.warning(
                    "%d loads in the background go on in threads, which cannot be stopped",
                    len(threads),
                )
                return
            time.sleep(0.005)

    async def aclose(self, world: World) -> None:
        """The same, waiting for tasks too."""
        deadline = time.monotonic() + CLOSE_WITHIN
        for running in self.cancel():
            if not await running.wait(world, max(0.0, deadline - time.monotonic())):
                log.warning("a load in the background did not end when it was told to")
