"""Several daemons on one Redis: a recorded history against a register, in health and in trouble."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.daemon import wait_until
from support.history import Away, Histories, turned_back, violations, work
from support.hosts import Host, make_hosts
from support.redis import RedisServer

HOSTS = 3
BOUND = 1.5
"""Seconds: what `coherent_until` and a slow machine may come to together."""


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def hosts(
    tmp_path: Path, redis: RedisServer, request: pytest.FixtureRequest
) -> Iterator[list[Host]]:
    """Three hosts; the parameter is `cache.write`."""
    redis.clean()
    settings = f'on_partition = "miss"\nwrite = "{request.param}"'
    with ExitStack() as stack:
        yield make_hosts(tmp_path, redis, stack, HOSTS, settings)


def record(hosts: list[Host], meanwhile: Callable[[], object], seed: int) -> Histories:
    """The history of 8 writers and 32 readers while something happens."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for n, host in enumerate(hosts):
        ours, theirs = context.Pipe()
        writers, readers = (3, 11) if n < 2 else (2, 10)
        args = (n, str(host.daemon.socket), writers, readers, 6, theirs, seed)
        process = context.Process(target=work, args=args, daemon=True)
        process.start()
        workers.append((process, ours))
    try:
        meanwhile()
    finally:
        for _, pipe in workers:
            pipe.send("stop")
    found = Histories([], [])
    for process, pipe in workers:
        part = pipe.recv()
        found.writes += part.writes
        found.reads += part.reads
        process.join()
    return found


@pytest.mark.parametrize(("hosts", "behind"), [("through", 0), ("behind", 0.5)], indirect=["hosts"])
def test_in_health_no_host_reads_what_another_has_superseded(
    hosts: list[Host], behind: float
) -> None:
    found = record(hosts, lambda: time.sleep(3), seed=1)
    assert len(found.writes) > 200 and len(found.reads) > 1000
    assert {each.host for each in found.reads if each.value} == {0, 1, 2}
    crossed = [
        each for each in found.reads if each.value and each.value.split("-")[1] != str(each.host)
    ]
    assert len(crossed) > 100, "values travel between hosts"
    assert violations(found.writes, found.reads, BOUND, behind) == []
    assert turned_back(found.writes, found.reads, behind) == []


Trouble = Callable[[list[Host], RedisServer], list[Away]]


def wait_all_well(hosts: list[Host]) -> None:
    for host in hosts:
        host.wait_well()


def cut_off(hosts: list[Host], redis: RedisServer) -> list[Away]:
    """One host's connections break again and again; it comes back each time."""
    away = []
    for _ in range(4):
        began = time.monotonic()
        hosts[0].proxy.drop()
        wait_until(hosts[0].is_well)
        away.append(Away(0, began, time.monotonic() + 0.5))
        time.sleep(0.3)
    return away


def partition(hosts: list[Host], redis: RedisServer) -> list[Away]:
    """One host's connections stay open and nothing comes through."""
    began = time.monotonic()
    hosts[0].proxy.flow.clear()
    wait_until(lambda: not hosts[0].is_well(), what="degraded")
    time.sleep(2)
    hosts[0].proxy.drop()
    hosts[0].proxy.flow.set()
    hosts[0].wait_well()
    return [Away(0, began, time.monotonic() + 0.5)]


def stopped(hosts: list[Host], redis: RedisServer) -> list[Away]:
    """Redis is stopped, and goes on with all it had."""
    began = time.monotonic()
    redis.stop()
    wait_until(lambda: not any(host.is_well() for host in hosts), what="degraded")
    time.sleep(1)
    redis.resume()
    wait_all_well(hosts)
    return [Away(None, began, time.monotonic() + 0.5)]


def flushed(hosts: list[Host], redis: RedisServer) -> list[Away]:
    """Somebody empties Redis, twice."""
    for _ in range(2):
        redis.client.flushall()
        time.sleep(0.7)
    wait_all_well(hosts)
    return []


def restarted_empty(hosts: list[Host], redis: RedisServer) -> list[Away]:
    """Redis is killed, and comes back without what it had."""
    began = time.monotonic()
    redis.restart()
    time.sleep(1)
    wait_all_well(hosts)
    return [Away(None, began, time.monotonic() + 0.5)]


def daemon_killed(hosts: list[Host], redis: RedisServer) -> list[Away]:
    """A daemon is killed and started again; what it had taken and not yet sent may be lost."""
    away = []
    for _ in range(2):
        began = time.monotonic()
        hosts[0].daemon.kill9()
        hosts[0].daemon.start()
        hosts[0].wait_well()
        away.append(Away(0, began - 0.5, time.monotonic() + 0.5))
    return away


@pytest.mark.parametrize("hosts", ["through"], indirect=True)
@pytest.mark.parametrize(
    "trouble", [cut_off, partition, stopped, flushed, restarted_empty, daemon_killed]
)
def test_in_trouble_no_host_reads_what_another_has_superseded(
    hosts: list[Host], redis: RedisServer, trouble: Trouble
) -> None:
    away: list[Away] = []

    def meanwhile() -> None:
        time.sleep(0.5)
        away.extend(trouble(hosts, redis))
        time.sleep(1.5)

    found = record(hosts, meanwhile, seed=2)
    assert len(found.writes) > 100 and len(found.reads) > 1000
    assert violations(found.writes, found.reads, BOUND, away=away) == []
