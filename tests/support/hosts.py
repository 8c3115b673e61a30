"""Several daemons that stand for several hosts, each behind a proxy of its own to one Redis."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from bi_performance.client import SyncCache
from bi_performance.optimizer import PerformanceOptimizer
from support.daemon import DaemonProcess, wait_until
from support.proxy import CuttingProxy
from support.redis import RedisServer

MARK = "the mark of a test"


class Host:
    """A daemon, its client, and the proxy through which it reaches Redis."""

    def __init__(
        self,
        folder: Path,
        redis: RedisServer,
        stack: ExitStack,
        settings: str = "",
    ) -> None:
        folder.mkdir()
        self.proxy = stack.enter_context(CuttingProxy(folder / "redis.sock", redis.path))
        file = folder / "performance.toml"
        file.write_text(
            f'[performance.cache]\nredis_url = "unix://{self.proxy.path}"\n{settings}\n'
        )
        self.daemon = stack.enter_context(DaemonProcess(folder, "--config", str(file)))
        self.optimizer = PerformanceOptimizer(str(self.daemon.socket))
        stack.callback(self.optimizer.close)

    @property
    def cache(self) -> SyncCache:
        return self.optimizer.sync.cache

    def status(self) -> dict[str, Any]:
        """Of the cache."""
        answer = httpx.get(f"{self.daemon.http_url}/performance/status", trust_env=False)
        found: dict[str, Any] = answer.json()["components"]["cache"]
        return found

    def redis_figures(self) -> dict[str, Any]:
        stats = self.cache.stats()
        assert stats is not None
        found: dict[str, Any] = stats["levels"]["redis"]
        return found

    def is_well(self) -> bool:
        return bool(self.status()["status"] == "ok")

    def wait_well(self) -> None:
        wait_until(self.is_well, what="a daemon that has Redis")


def make_hosts(
    folder: Path, redis: RedisServer, stack: ExitStack, count: int = 2, settings: str = ""
) -> list[Host]:
    """So many hosts, all in touch with Redis."""
    hosts = [Host(folder / f"host-{n}", redis, stack, settings) for n in range(count)]
    for host in hosts:
        host.wait_well()
    return hosts


def heard(teller: Host, listener: Host) -> None:
    """Wait until a host has carried out all that another has told the log before this call.

    Not told by it are a clear of everything that is being carried out, and deletions of the mark.
    """
    listener.cache.set(MARK, "of the listener")

    def told() -> bool:
        # Once more each time: it has to come behind the listener's in Redis.
        teller.cache.set(MARK, "of the teller")
        # The listener's own goes by the log alone: tracking removes nothing for a daemon's write.
        return bool(listener.cache.get(MARK) == "of the teller")

    wait_until(told, what="the teller's mark")


def empty(hosts: Sequence[Host], redis: RedisServer) -> None:
    """Leave nothing on any of these hosts nor in Redis, nor anything that is still to be heard."""
    for host in hosts:
        host.wait_well()
    first, *others = hosts
    first.cache.clear()
    for other in others:
        # The first time the listener's mark may have been cleared; the second is behind that.
        heard(first, other)
        heard(first, other)
        heard(other, first)

    def gone() -> bool:
        # Once more each time: another's mark may still have been on its way to Redis.
        first.cache.delete(MARK)
        return not any(host.cache.keys() for host in hosts) and not redis.client.keys("bi:perf:*")

    wait_until(gone, what="an empty cache")
    wait_until(
        lambda: not any(host.redis_figures()["queued"] for host in hosts),
        what="no write on its way",
    )
