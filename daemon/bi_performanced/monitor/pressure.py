"""Looks at how short memory is, and has the cache go by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
import trio

from bi_performanced.cache.component import Cache
from bi_performanced.host.signs import memory_signs

log = structlog.get_logger("performance")

EVERY = 2.0
"""Seconds between two looks."""


class Pressure:
    """Runs whether or not the monitor does: a few small files are read in a thread of its own."""

    def __init__(
        self,
        cache: Cache,
        root: Path = Path("/"),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._root = root
        self._clock = clock
        self._looking = trio.CapacityLimiter(1)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look until cancelled."""
        task_status.started()
        while True:
            await self.look()
            await trio.sleep(EVERY)

    async def look(self) -> None:
        """Look once. The store has the size that the budget allows when this returns."""
        if not self._cache.settings.shrink_under_pressure:
            await self._cache.give_back()
            return
        # A look that hangs is left behind when the daemon stops.
        signs = await trio.to_thread.run_sync(
            partial(memory_signs, self._root), limiter=self._looking, abandon_on_cancel=True
        )
        await self._cache.mind(signs, self._clock())
