"""Hosts that share a Redis: real Remotes in one loop, each with a local level that is a dict."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from bi_performanced.cache.patterns import matcher
from bi_performanced.config import CacheSettings
from bi_performanced.remote import reader
from bi_performanced.remote.component import Remote
from bi_performanced.remote.envelope import Envelope
from bi_performanced.remote.predicate import Predicate

WITHIN = 15.0
# So that nobody waits for the answer that there is nothing new.
reader.BLOCK = 0.03


def entry(payload: bytes, *, ttl: float = 60.0, grace: float = 0.0, **more: Any) -> Envelope:
    """An entry that was made now."""
    soft = int(ttl * 1000)
    return Envelope(payload, time.time_ns() // 1_000_000, soft, soft + int(grace * 1000), **more)


async def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Let the loop run until the condition's result is true, and return it."""
    with trio.move_on_after(WITHIN):
        while True:
            found = condition()
            if found:
                return found
            await trio.sleep(0.002)
    raise AssertionError(f"{what} did not come within {WITHIN:g} s")


class Host:
    """A Remote and what it was told; reads go as in the cache, local first."""

    def __init__(self, settings: CacheSettings, state: Path) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.settings, self.state = settings, state
        self.local: dict[bytes, Envelope] = {}
        self.invalidated: list[bytes] = []
        self.applied: list[Predicate] = []
        self.drops = 0
        self.until = 0
        self.told: list[tuple[bool, str | None]] = []
        self.remote = Remote(settings, state, self, matcher)

    # The sink.

    def invalidate(self, key: bytes) -> None:
        self.invalidated.append(key)
        self.local.pop(key, None)

    def overtaken(self, key: bytes) -> None:
        pass

    def holds(self, key: bytes) -> int | None:
        found = self.local.get(key)
        return None if found is None else id(found)

    def payload(self, key: bytes) -> bytes | None:
        found = self.local.get(key)
        return None if found is None else found.payload

    def let_go(self, key: bytes) -> bool:
        self.invalidate(key)
        return True

    def apply(self, predicate: Predicate) -> None:
        self.applied.append(predicate)
        for key, found in list(self.local.items()):
            if predicate.hits(key, found.tags, matcher):
                del self.local[key]

    def drop_shared(self, shard: int | None) -> None:
        self.drops += 1
        for key in list(self.local):
            if shard is None or self.remote.shard_of(key) == shard:
                del self.local[key]

    def coherent(self, until: int) -> None:
        self.until = until

    def health(self, ok: bool, reason: str | None) -> None:
        self.told.append((ok, reason))

    # The cache.

    async def get(self, key: bytes) -> bytes | None:
        found = self.local.get(key)
        if found is None:
            found = await self.remote.fetch(key)
            if found is None:
                return None
            self.local[key] = found
            self.remote.installed(key, found)
        return found.payload

    async def set(self, key: bytes, payload: bytes, **more: Any) -> None:
        """Write-through."""
        self.local[key] = entry(payload, **more)
        self.remote.put(key, self.local[key])
        await self.remote.settled()

    async def delete(self, key: bytes) -> None:
        self.local.pop(key, None)
        self.remote.delete(key)
        await self.remote.settled()

    async def clear(self, predicate: Predicate) -> None:
        self.apply(predicate)
        self.applied.pop()
        self.remote.clear(predicate)
        await self.remote.settled()

    @property
    def ok(self) -> bool:
        return bool(self.remote.status()["status"] == "ok")

    @property
    def reason(self) -> str:
        return str(self.remote.status().get("reason", ""))

    @property
    def synced(self) -> bool:
        """Whether all news up to now have come."""
        return self.until > time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    async def in_sync(self) -> None:
        """Wait for the answer to a question to the log that is asked from now on."""
        await until(lambda: self.ok, "a healthy Redis")
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        await until(lambda: self.until - 1_000_000_000 > now, "the news")


@asynccontextmanager
async def running(host: Host) -> AsyncIterator[Host]:
    """Run a host; left, it is stopped as a daemon is."""
    async with trio.open_nursery() as nursery:
        await nursery.start(host.remote.run)
        try:
            yield host
        finally:
            nursery.cancel_scope.cancel()


def settings(url: str, **more: Any) -> CacheSettings:
    # No test waits for it: only what is stopped or cut does.
    return CacheSettings(redis_url=url, **{"redis_timeout": 5.0, **more})


def play(
    story: Callable[..., Awaitable[None]], folder: Path, url: str, *, hosts: int = 2, **more: Any
) -> None:
    """Run a story with that many healthy hosts."""

    async def main() -> None:
        made = [Host(settings(url, **more), folder / f"host-{at}") for at in range(hosts)]
        async with trio.open_nursery() as nursery:
            for host in made:
                await nursery.start(host.remote.run)
            for host in made:
                await host.in_sync()
            with trio.fail_after(180):
                await story(*made)
            nursery.cancel_scope.cancel()

    trio.run(main, strict_exception_groups=True)
