"""Connections that break off or stall at any byte: no exception, no foreign answer, no leak."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until
from support.proxy import CuttingProxy


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.fixture
def proxy(daemon: DaemonProcess, tmp_path: Path) -> Iterator[CuttingProxy]:
    with CuttingProxy(tmp_path / "proxy.sock", daemon.socket) as made:
        yield made


def open_files(pid: int | str = "self") -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (a count)


@pytest.mark.parametrize("direction", ["requests", "answers"])
def test_a_connection_cut_at_any_byte_costs_one_call(
    daemon: DaemonProcess, proxy: CuttingProxy, direction: str
) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.clear")
        client.result("cache.set", key="there", value="value")
    outcomes = set()
    for at in range(0, 260, 3):
        proxy.cut, proxy.cut_after = direction, at
        optimizer = PerformanceOptimizer(str(proxy.path))
        cache = optimizer.sync.cache
        assert cache.get("there") in ("value", None)
        outcomes.add(cache.set(f"cut-{at}", at))
        assert cache.seen(f"seen-{at}") in (True, False)
        assert cache.delete("absent") in (True, False)
        stats = cache.stats()
        assert stats is None or "hit_rate" in stats
        keys = cache.keys("there")
        assert keys in (None, ["there"])
        optimizer.close()
    assert outcomes == {True, False}, "some were cut, some were not"
    proxy.cut = None
    optimizer = PerformanceOptimizer(str(proxy.path))
    assert optimizer.sync.cache.get("there") == "value"
    assert optimizer.sync.cache.set("after", 1)
    optimizer.close()


def test_an_acknowledged_write_is_there_whatever_was_cut(
    daemon: DaemonProcess, proxy: CuttingProxy
) -> None:
    acknowledged = []
    for at in range(0, 400, 7):
        proxy.cut, proxy.cut_after = ("answers", "requests")[at % 2], at
        optimizer = PerformanceOptimizer(str(proxy.path))
        for n in range(5):
            if optimizer.sync.cache.set(f"written-{at}-{n}", n):
                acknowledged.append((f"written-{at}-{n}", n))
        optimizer.close()
    assert acknowledged
    with RawClient(daemon.socket) as client:
        values = client.result("cache.get_many", keys=[key for key, _ in acknowledged])
        assert values == [value for _, value in acknowledged]


@pytest.mark.parametrize("direction", ["requests", "answers"])
def test_a_stalled_connection_costs_its_deadline_and_is_not_used_again(
    proxy: CuttingProxy, direction: str
) -> None:
    optimizer = PerformanceOptimizer(str(proxy.path))
    cache = optimizer.cache

    async def use() -> None:
        assert await cache.set("key", 1)
        proxy.cut, proxy.cut_after, proxy.stall = direction, 0, True
        # The kept connection is whole; new ones stall.
        many = await asyncio.gather(*(cache.set(f"key-{n}", n) for n in range(4)))
        assert many.count(True) <= 1
        proxy.cut = None

    asyncio.run(use())
    wait_until(lambda: optimizer.sync.cache.set("key", 2), what="a write")
    assert optimizer.sync.cache.get("key") == 2
    optimizer.close()


def test_nothing_is_left_open_on_either_side(daemon: DaemonProcess, tmp_path: Path) -> None:
    before = open_files(), open_files(daemon.pid)
    with CuttingProxy(tmp_path / "other.sock", daemon.socket) as proxy:
        for at in range(0, 200, 5):
            proxy.cut, proxy.cut_after = "answers", at
            optimizer = PerformanceOptimizer(str(proxy.path))
            optimizer.sync.cache.get("key")
            optimizer.sync.cache.set("key", at)
            optimizer.close()
    wait_until(
        lambda: open_files() <= before[0] and open_files(daemon.pid) <= before[1],
        what="the descriptors of before",
    )
