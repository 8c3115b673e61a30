"""Several daemons that stand for several hosts, each behind a proxy of its own to one Redis."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from bi_performance.client import SyncCache
from bi_performance.optimizer import PerformanceOptimizer
from support.daemon import DaemonProcess, wait_until
from support.proxy import CuttingProxy
from support.redis import RedisServer


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
