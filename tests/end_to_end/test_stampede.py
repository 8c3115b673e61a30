"""Many processes that miss one key at once: one of them loads it, whatever becomes of that one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from support.crowd import Crowd
from support.daemon import DaemonProcess, wait_until


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("stampede")
    (folder / "config.toml").write_text("[performance.leases]\nttl = 0.5\n")
    with DaemonProcess(folder, "--config", str(folder / "config.toml"), http="off") as running:
        yield running


def test_a_thousand_misses_in_eight_processes_are_one_factory_call(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    with Crowd(daemon.socket, tmp_path, key="thousand", processes=8, callers=125) as crowd:
        crowd.begin()
        found = crowd.results()
        callers = crowd.callers()
    assert len(callers) == 1
    assert all(each["values"] == callers and each["calls"] == 125 for each in found)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_when_the_one_that_loads_is_killed_or_stopped_the_next_one_does(
    daemon: DaemonProcess, tmp_path: Path, number: int
) -> None:
    """And the value of the stopped one, when it wakes up, does not take the newer one's place."""
    key = f"dies-{number}"
    with Crowd(daemon.socket, tmp_path, key=key, processes=3, callers=5, seconds=0.8) as crowd:
        crowd.begin()
        first = wait_until(crowd.callers, what="the first factory call")[0]
        os.kill(first, number)
        found = crowd.results(2)
        second = crowd.callers()[1]
        assert all(each["values"] == [second] for each in found)
        optimizer = PerformanceOptimizer(str(daemon.socket))
        assert optimizer.sync.cache.get(key) == second
        if number == signal.SIGSTOP:
            os.kill(first, signal.SIGCONT)
            (late,) = crowd.results(1)
            assert first in late["values"] and set(late["values"]) <= {first, second}
            assert optimizer.sync.cache.get(key) == second
        assert len(crowd.callers()) == 2
        optimizer.close()
