"""Serving a stale value rather than none, and loading anew before a value is stale.

What `Options` has to say beyond the loading itself: see there. A stale value is served within the
grace that it was stored with: at once or after `soft_timeout` while a load goes on in the
background, or because the load failed or took too long.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from bi_performance.background import Background, Running
from bi_performance.drivers import let_others_run
from bi_performance.entries import CacheEntry
from bi_performance.forks import after_fork
from bi_performance.limited import Limited
from bi_performance.loading import Loader, NotLoaded, Work
from bi_performance.options import Options, is_early
from bi_performance.reader import DETACHED, MISS, Entry, Outcome
from bi_performance.workers import WORKERS
from bi_performance.worlds import THREADS, World, without

log = logging.getLogger("performance")

FAILURES_KEPT: Final = 10_000
"""Keys whose failed loads are remembered, each for its `retry_after`."""


class Server:
    """Reads and loads with options, for all caches of one link."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.background = Background()
        self.stale_served = 0
        """Stale values that this process's callers were given."""
        after_fork(self.background.reset)
        loader.link.renew = loader.touch
        self._failures: dict[bytes, float] = {}
        """Until when (monotonic) each is not tried again."""
        self._failed = Limited(log, "a load failed, and stale values are served instead (%s)")

    async def serve(
        self, world: World, key: bytes, factory: Callable[..., Any], options: Options
    ) -> CacheEntry:
        """The value of a key, fresh, stale or loaded. Raises as `Loader.load`."""
        work = Work(key, factory, options)
        found = self.find(key)
        if not isinstance(found, Entry):
            return _loaded(await self.loader.load(world, work))
        if found.ttl is None or found.ttl > 0:
            if options.early and is_early(found, options):
                self._start(world, work._replace(known=found, refresh=True, wait=0.0))
            if world is not THREADS:
                await let_others_run()
            return _told(found)
        if not options.grace:
            return _loaded(await self.loader.load(world, work))
        return await self._serve_stale(world, work._replace(known=found), found)

    async def refresh(
        self, world: World, key: bytes, factory: Callable[..., Any], options: Options
    ) -> Any:
        """What the factory returns, whatever is there; that is given to it as the older value."""
        found = self.find(key, count=False)
        known = found if isinstance(found, Entry) else None
        work = Work(key, factory, options, known=known, refresh=True)
        return await self.loader.load(world, work)

    def figures(self) -> dict[str, int]:
        """Of this process: factory calls without a lease, values too large to be stored, stale
        values served, loads that failed while there was one, loads in the background now, and
        those that were not begun because there were too many; factories that wait for a thread,
        and those that run in one now though nobody waits for them any more."""
        return {
            "unshared": self.loader.unshared,
            "too_large": self.loader.too_large.count,
            "stale_served": self.stale_served,
            "failed": self._failed.count,
            "in_background": self.background.count,
            "skipped": self.background.skipped,
            "queued": WORKERS.queued,
            "given_up": WORKERS.given_up,
        }

    def find(self, key: bytes, *, count: bool = True) -> Entry | Outcome:
        """What is known of an entry, stale or not, attaching if that can be done now."""
        link = self.loader.link
        try:
            found = link.reader.find(key, count=count)
            if found is DETACHED and link.attach():
                found = link.reader.find(key, count=count)
        except ValueError:
            # What a foreign client stored under another client's marker is no value.
            return MISS
        return found

    async def _serve_stale(self, world: World, work: Work, stale: Entry) -> CacheEntry:
        soft = work.options.soft_timeout
        if self._failures.get(work.key, 0.0) > time.monotonic():
            return self._stale(stale)
        if soft is None:
            try:
                return _loaded(await self.loader.load(world, work))
            except Exception as error:
                self._note_failure(work, error)
                return self._stale(stale)
        running = self._start(world, work._replace(wait=soft))
        if running is not None and soft and await running.wait(world, soft):
            fresh = self.find(work.key, count=False)
            if isinstance(fresh, Entry) and fresh.sequence != stale.sequence and not fresh.stale:
                return _told(fresh)
        elif world is not THREADS:
            await let_others_run()
        return self._stale(stale)

    def _stale(self, entry: Entry) -> CacheEntry:
        self.stale_served += 1
        return _told(entry)

    def _start(self, world: World, work: Work) -> Running | None:
        """Load in the background."""

        async def load() -> None:
            try:
                await self.loader.load(world, work)
            except NotLoaded:
                # Another process does.
                return
            except BaseException as error:
                # A SystemExit of the factory's must not end the loop of those who got a value.
                cancelled, failed = without(world.cancelled(), error)
                if failed is not None:
                    self._note_failure(work, failed)
                if cancelled is not None:
                    raise cancelled from None

        return self.background.start(world, work.key, load)

    def _note_failure(self, work: Work, error: BaseException) -> None:
        self._failed.say(f"{type(error).__name__}: {error}"[:200])
        now = time.monotonic()
        if len(self._failures) >= FAILURES_KEPT:
            self._failures = {key: at for key, at in self._failures.items() if at > now}
        if len(self._failures) < FAILURES_KEPT:
            self._failures[work.key] = now + work.options.retry_after


def _told(entry: Entry) -> CacheEntry:
    return CacheEntry(True, entry.value, entry.age, entry.stale, "local", entry.ttl)


def _loaded(value: Any) -> CacheEntry:
    return CacheEntry(True, value, 0.0, False, "loaded")
