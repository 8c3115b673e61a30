"""Callers of `get_or_set` in each world, factories that wait to be told what to do, and fixtures.

Two optimizers in one process have nothing in common: they stand for two processes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio

from bi_performance.drivers import sleep
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.options import Options
from support.daemon import DaemonProcess, wait_until

TTL = 0.5


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    """Leases last as long as ever, or for the module's `TTL`: where nobody waits for one to end,
    a machine that stands still for a moment must not end it."""
    ttl = getattr(request.module, "TTL", 2.0)
    folder = tmp_path_factory.mktemp("loads")
    (folder / "config.toml").write_text(f"[performance.leases]\nttl = {ttl}\n")
    with DaemonProcess(folder, "--config", str(folder / "config.toml"), http="off") as daemon:
        yield daemon


@pytest.fixture
def here(running: DaemonProcess) -> Iterator[PerformanceOptimizer]:
    made = attached(running)
    wait_until(lambda: made.sync.cache.clear() is not None, what="an empty cache")
    yield made
    made.close()


@pytest.fixture
def there(running: DaemonProcess) -> Iterator[PerformanceOptimizer]:
    made = attached(running)
    yield made
    made.close()


def attached(daemon: DaemonProcess) -> PerformanceOptimizer:
    """One that reads in place: a call that comes before calls its factory without a lease when the
    daemon has no turn for a quarter of a second."""
    made = PerformanceOptimizer(str(daemon.socket))
    wait_until(made.cache._loader.link.attach, what="the attachment")
    return made


def leases(optimizer: PerformanceOptimizer) -> Any:
    stats = optimizer.sync.cache.stats()
    assert stats is not None
    return stats["levels"]["local"]["leases"]


def until_waiting(optimizer: PerformanceOptimizer, count: int = 1) -> None:
    wait_until(lambda: leases(optimizer)["waiting"] == count, what=f"{count} waiters")


def until_joined(optimizer: PerformanceOptimizer, key: str, count: int = 1) -> None:
    flights = optimizer.cache._loader.flights

    def joined() -> bool:
        flight = flights._flights.get(key.encode())
        return flight is not None and len(flight.joiners) == count

    wait_until(joined, what=f"{count} that joined")


class Calls:
    """A factory in a thread that waits to be told what to do, and counts."""

    def __init__(self, *outcomes: Any) -> None:
        self.count = 0
        self.began = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self._outcomes = list(outcomes)

    def __call__(self) -> Any:
        self.count += 1
        outcome = self._outcomes[min(self.count, len(self._outcomes)) - 1]
        self.began.release()
        assert self.go.acquire(timeout=10)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Caller(threading.Thread):
    """A thread that calls, and keeps what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self._call = call
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._call()
        except Exception as error:
            self.outcome = error

    def result(self) -> Any:
        self.join(10)
        assert not self.is_alive()
        return self.outcome


def under_asyncio(call: Callable[[], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        return await call()

    return asyncio.run(run())


def under_trio(call: Callable[[], Awaitable[Any]]) -> Any:
    return trio.run(call)


LOOPS = pytest.mark.parametrize("run", [under_asyncio, under_trio])


WORLDS = pytest.mark.parametrize("run", [None, under_asyncio, under_trio])


def ask(optimizer: PerformanceOptimizer, run: Any, factory: Any, key: str = "k", **how: Any) -> Any:
    """The value of a key, asked for in one of the three worlds."""
    if run is None:
        return optimizer.sync.cache.get_or_set(key, factory, 60, **how)
    return run(lambda: optimizer.cache.get_or_set(key, factory, 60, **how))


GRACE = Options(ttl=60, grace=60, retry_after=0)


def make_stale(optimizer: PerformanceOptimizer, value: Any = "old", key: str = "k") -> None:
    assert optimizer.sync.cache.set(key, value, 60, grace=60)
    assert optimizer.sync.cache.expire(key)
    assert optimizer.sync.cache.get(key) is None
    assert optimizer.sync.cache.get_entry(key).stale


def use(optimizer: PerformanceOptimizer, run: Any, factory: Any, **how: Any) -> Any:
    """The entry of "k", and then what is stored when the loads in the background have ended."""
    options = how.pop("options", GRACE)

    async def call() -> Any:
        found = await optimizer.cache.get_or_set_entry("k", factory, options=options, **how)
        while optimizer._server.background.count:
            await sleep(0.001)
        return found

    if run is not None:
        return run(call)
    found = optimizer.sync.cache.get_or_set_entry("k", factory, options=options, **how)
    wait_until(lambda: not optimizer._server.background.count, what="the end of the load")
    return found
