"""When Redis is not asked: from the first failure until a probe has succeeded.

No request is a probe, so none waits for a dead Redis except those that found it dead.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

import trio

FIRST: Final = 0.1
LONGEST: Final = 1.0
"""Seconds between two probes, at first and at most; each with up to half of it on top."""
STEADY: Final = 2.0
"""Seconds that Redis must have been used for before a failure counts as a new outage; after fewer
the next probe waits as long as if the one before had failed."""


class RemoteAway(Exception):
    """Redis does not answer, or not as it must; the reason has no credentials in it."""


class Breaker:
    """`open` from a failure to the next probe that succeeds; told once for each change."""

    def __init__(self, changed: Callable[[bool, str | None], None]) -> None:
        self._changed = changed
        self.reason: str | None = "not connected yet"
        self.opened = 0
        """How many times it has opened."""
        self._pause = 0.0
        self._closed_at = -math.inf
        self._told: bool | None = None
        self._wake = trio.Event()
        self._closed = trio.Event()

    @property
    def open(self) -> bool:
        return self.reason is not None

    @property
    def tried(self) -> bool:
        """Whether Redis has answered or failed to, since the start."""
        return self._told is not None

    def check(self) -> None:
        """Raises RemoteAway while it is open."""
        if self.reason is not None:
            raise RemoteAway(self.reason)

    def fail(self, reason: str) -> None:
        """A request or a probe has failed."""
        if self.reason is None:
            self.opened += 1
            if trio.current_time() - self._closed_at >= STEADY:
                self._pause = 0.0
            self._closed = trio.Event()
            self._wake.set()
        self.reason = reason
        if self._told is not False:
            self._told = False
            self._changed(False, reason)

    def succeed(self) -> None:
        """A probe has succeeded: requests may go again."""
        if self.reason is not None:
            self.reason = None
            self._closed_at = trio.current_time()
            self._wake = trio.Event()
            self._closed.set()
        if self._told is not True:
            self._told = True
            self._changed(True, None)

    async def wait_open(self) -> None:
        if not self.open:
            await self._wake.wait()

    async def wait_closed(self) -> None:
        if self.open:
            await self._closed.wait()

    async def pause(self) -> None:
        """Before a probe: not at all for the first of an outage, then doubling, with jitter, so
        that hosts do not come all at once."""
        await trio.sleep(self._pause * random.uniform(1.0, 1.5))
        self._pause = min(LONGEST, max(FIRST, self._pause * 2))
