"""Processes of several hosts that miss one key at once: one of them loads it."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.clients import RawClient
from support.crowd import Crowd
from support.daemon import wait_until
from support.hosts import Host, make_hosts
from support.redis import RedisServer


def test_misses_on_two_hosts_are_one_factory_call(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    with ExitStack() as stack:
        crowds = [
            stack.enter_context(
                Crowd(host.daemon.socket, tmp_path, key="many", processes=3, callers=40)
            )
            for host in hosts
        ]
        crowds[0].begin()
        found = [each for crowd in crowds for each in crowd.results()]
        callers = crowds[0].callers()
    assert len(callers) == 1
    assert all(each["values"] == callers and each["calls"] == 40 for each in found)
    wait_until(lambda: all(host.cache.get("many") == callers[0] for host in hosts))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_when_the_one_that_loads_dies_or_stops_another_host_does(
    hosts: tuple[Host, Host], tmp_path: Path, number: int
) -> None:
    """And what the stopped one brings when it wakes up is not stored over the newer value."""
    key = f"dies-{number}"
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(
                Crowd(host.daemon.socket, tmp_path, key=key, processes=1, callers=3, seconds=1.5)
            )
            for host in hosts
        )
        one.begin()
        first = wait_until(one.callers, what="the first factory call")[0]
        os.kill(first, number)
        second = wait_until(lambda: one.callers()[1:], what="the next factory call")[0]
        crowd = one if _is_of(second, one) else other
        (found,) = crowd.results(1)
        assert found["values"] == [second]
        wait_until(lambda: all(host.cache.get(key) == second for host in hosts))
        if number == signal.SIGSTOP:
            os.kill(first, signal.SIGCONT)
            late_crowd = other if crowd is one else one
            (late,) = late_crowd.results(1)
            assert first in late["values"] or late["values"] == [second]
            assert all(host.cache.get(key) == second for host in hosts)
        assert len(one.callers()) == 2


def _is_of(pid: int, crowd: Crowd) -> bool:
    return os.getpgid(pid) == crowd.group


def test_when_its_whole_host_is_gone_another_host_loads(redis: RedisServer, tmp_path: Path) -> None:
    with ExitStack() as stack:
        one, other = make_hosts(tmp_path, redis, stack)
        calls: list[str] = []
        go_on = threading.Event()

        def slow() -> str:
            calls.append("one")
            go_on.wait(20)
            return "one"

        def quick() -> str:
            calls.append("other")
            return "other"

        leading = threading.Thread(target=one.cache.get_or_set, args=("key", slow, 60))
        leading.start()
        wait_until(lambda: calls == ["one"])
        found: list[object] = []
        waiting = threading.Thread(
            target=lambda: found.append(other.cache.get_or_set("key", quick, 60))
        )
        waiting.start()
        one.daemon.kill9()
        waiting.join()
        assert found == ["other"] and calls == ["one", "other"]
        go_on.set()
        leading.join()
        assert other.cache.get("key") == "other"


def test_who_waits_for_another_host_keeps_no_other_lease_without_a_heartbeat(
    hosts: tuple[Host, Host],
) -> None:
    one, other = hosts
    began, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        began.set()
        go_on.wait(60)
        return "slow"

    loading = threading.Thread(target=other.cache.get_or_set, args=("theirs", slow, 60))
    loading.start()
    try:
        assert began.wait(20)
        with (
            RawClient(one.daemon.socket) as stopped,
            RawClient(one.daemon.socket, timeout=30) as next_one,
        ):
            assert stopped.result("cache.lease", key="own", wait=0)["state"] == "leader"
            # From here on it says nothing, and the daemon waits for the other host in its place.
            number = stopped.send("cache.lease", key="theirs", wait=60)
            assert next_one.result("cache.lease", key="own", wait=30)["state"] == "leader"
            # Not because its connection was closed.
            go_on.set()
            assert stopped.receive()[:3] == [1, number, None]
    finally:
        go_on.set()
        loading.join()


def test_a_deletion_on_another_host_wins_over_what_is_being_loaded(
    hosts: tuple[Host, Host],
) -> None:
    one, other = hosts
    began, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        began.set()
        go_on.wait(20)
        return "old"

    loading = threading.Thread(target=one.cache.get_or_set, args=("deleted", slow, 60))
    loading.start()
    assert began.wait(20)
    assert other.cache.delete("deleted")
    wait_until(lambda: other.redis_figures()["queued"] == 0, what="the deletion in Redis")
    go_on.set()
    loading.join()
    assert one.cache.get("deleted") is None and other.cache.get("deleted") is None


def test_without_redis_each_host_loads_for_itself(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    redis.stop()
    try:
        wait_until(lambda: not one.is_well() and not other.is_well(), what="degraded")
        assert one.cache.get_or_set("alone", lambda: "one", 60) == "one"
        assert other.cache.get_or_set("alone", lambda: "other", 60) == "other"
        assert one.cache.get("alone") == "one"
    finally:
        redis.resume()
