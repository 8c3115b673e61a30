"""The monitor: what it samples and keeps, and that nothing the machine does stops it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from bi_performance_wire import layout as L
from bi_performanced.cache.clients import Attachment
from bi_performanced.cache.component import Cache
from bi_performanced.config import CacheSettings, MonitoringSettings
from bi_performanced.host.processes import PAGE
from bi_performanced.monitor.component import (
    EVERY,
    FILE,
    LATE,
    PROCESSES_EVERY,
    SAVE_EVERY,
    SHARES_EVERY,
    Monitor,
)
from bi_performanced.monitor.figures import HOST, PROCESS
from bi_performanced.monitor.process import ProcessReader
from support.kernel import FakeKernel


class Times:
    """The clocks of a monitor: each sample is a second after the one before."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall_now = 1_700_000_000.0
        self.points = 0
        self.at_point: Callable[[int], None] = lambda number: None

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        self.points += 1
        self.now += EVERY
        self.wall_now += EVERY
        self.at_point(self.points)
        return self.wall_now


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path / "root")


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache.open(
        CacheSettings(max_bytes=4 << 20), runtime_dir=tmp_path, state_dir=tmp_path, mode="on"
    )
    yield made
    made.close()


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    with structlog.testing.capture_logs() as found:
        yield found  # type: ignore[misc]  # a list of mutable mappings


def available(kernel: FakeKernel, kib: int) -> None:
    kernel.write("proc/meminfo", f"MemTotal: 16000 kB\nMemAvailable: {kib} kB\n")


Make = Callable[..., Monitor]


@pytest.fixture
def make(kernel: FakeKernel, times: Times, state: Path, cache: Cache) -> Make:
    def make(**settings: Any) -> Monitor:
        return Monitor(
            MonitoringSettings(**settings),
            cache,
            state,
            kernel.root,
            clock=times.clock,
            wall=times.wall,
        )

    return make


@asynccontextmanager
async def running(monitor: Monitor) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        yield
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Let virtual seconds pass until it is so."""
    with trio.fail_after(100_000):
        while not condition():  # noqa: ASYNC110 (virtual time)
            await trio.sleep(1)


def run(main: Callable[[], Any]) -> None:
    # Virtual time stands while a thread reads: without a threshold it would run ahead of it.
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.003))


def attach(cache: Cache, *, peer_pid: int, pid: int = 9, name: str = "scraper") -> Attachment:
    found = cache.attach(uid=12, instance=b"i" * 16, pid=pid, peer_pid=peer_pid, name=name)
    found.close_fds()
    return found


# ── the past


def test_a_point_each_second_and_their_mean_each_interval(
    make: Make, times: Times, kernel: FakeKernel
) -> None:
    monitor = make(metrics_interval=60)
    times.at_point = lambda number: available(kernel, number % 60)

    async def main() -> None:
        async with running(monitor):
            await until(lambda: len(monitor.history("minutes")["timestamps"]) == 2)

    run(main)
    seconds, minutes = monitor.history("seconds"), monitor.history("minutes")
    assert (seconds["interval_seconds"], minutes["interval_seconds"]) == (1.0, 60.0)
    assert len(seconds["timestamps"]) >= 120
    assert seconds["series"]["memory_available_bytes"][:2] == [4000 * 1024, 1024]
    # The first one is what was there before.
    first = pytest.approx((4000 + sum(range(1, 60))) / 60 * 1024)
    assert minutes["series"]["memory_available_bytes"] == [first, 29.5 * 1024]
    assert seconds["series"]["cache_entries"][0] == 0
    assert seconds["series"]["cache_hit_rate"][1] is None, "nothing was read"
    assert "disk_read_bytes" not in seconds["series"], "what only grows is in no history"
    json.dumps([seconds, minutes], allow_nan=False)


def test_a_long_interval_s_mean_is_of_all_of_it(
    make: Make, times: Times, kernel: FakeKernel
) -> None:
    monitor = make(metrics_interval=700)
    kernel.write("proc/loadavg", "7 0 0 x\n")

    def at_point(number: int) -> None:
        if number == 100:
            kernel.write("proc/loadavg", "0 0 0 x\n")

    times.at_point = at_point

    async def main() -> None:
        async with running(monitor):
            await until(lambda: monitor.history("minutes")["timestamps"])

    run(main)
    assert monitor.history("minutes")["series"]["load_1m"] == [pytest.approx(1.0)]
    assert len(monitor.history("seconds")["timestamps"]) == 600, "and no more are kept"


def test_another_interval_holds_from_the_next_sample_on(make: Make) -> None:
    monitor = make(metrics_interval=3600)

    async def main() -> None:
        async with running(monitor):
            await until(lambda: monitor.history("seconds")["timestamps"])
            await monitor.reconfigure(MonitoringSettings(metrics_interval=2))
            await until(lambda: len(monitor.history("minutes")["timestamps"]) >= 3)

    run(main)
    assert monitor.history("minutes")["interval_seconds"] == 2


def test_a_wall_clock_that_jumps_stops_nothing(make: Make, times: Times) -> None:
    monitor = make()

    def at_point(number: int) -> None:
        times.wall_now += {2: -1e9, 3: 1e9, 4: -5.0}.get(number, 0.0)

    times.at_point = at_point

    async def main() -> None:
        async with running(monitor):
            await until(lambda: len(monitor.history("seconds")["timestamps"]) >= 6)

    run(main)
    assert monitor.status()["status"] == "ok"
    stamps = monitor.history("seconds")["timestamps"]
    assert stamps[1] < stamps[0] < stamps[2] and stamps != sorted(stamps)
    load = monitor.history("seconds")["series"]["load_1m"]
    assert load == [0.5] * len(load)


def test_a_restart_keeps_the_past_and_takes_none_of_it_for_new(
    make: Make, kernel: FakeKernel, state: Path
) -> None:
    first = make(metrics_interval=2)

    async def main() -> None:
        async with running(first):
            await until(lambda: len(first.history("seconds")["timestamps"]) >= 5)

    run(main)
    before = first.history("seconds")
    assert (state / FILE).stat().st_size < 1 << 20
    again = make(metrics_interval=2)
    kernel.write("proc/loadavg", "9 9 9 x\n")

    async def go_on() -> None:
        async with running(again):
            assert again.recent("load_1m", 30) == [], "hours may lie between the two"
            await until(lambda: again.recent("load_1m", 30))
            assert set(again.recent("load_1m", 30)) == {9.0}

    run(go_on)
    after = again.history("seconds")
    count = len(before["timestamps"])
    assert after["timestamps"][:count] == before["timestamps"]
    assert after["series"]["load_1m"][count - 1 : count + 1] == [0.5, 9.0]
    assert len(again.history("minutes")["timestamps"]) >= 2


@pytest.mark.parametrize("content", [b"BIHISTORY2\nof a later version", b"", b"x" * (17 << 20)])
def test_a_past_that_cannot_be_used_is_set_aside_and_said(
    make: Make, state: Path, events: list[dict[str, Any]], content: bytes
) -> None:
    (state / FILE).write_bytes(content)
    monitor = make()

    async def main() -> None:
        async with running(monitor):
            await until(lambda: monitor.history("seconds")["timestamps"])

    run(main)
    assert (state / f"{FILE}.unused").read_bytes() == content
    assert [each["event"] for each in events] == ["monitor.history_lost"]
    assert events[0]["reason"] and events[0]["file"] == str(state / FILE)
    assert (state / FILE).read_bytes().startswith(b"BIHISTORY1")


def test_a_state_folder_that_cannot_be_written_degrades_at_once_and_recovers(
    make: Make, state: Path, events: list[dict[str, Any]]
) -> None:
    state.rmdir()
    monitor = make()

    async def main() -> None:
        async with running(monitor):
            await until(lambda: monitor.status()["status"] == "degraded")
            assert str(state / FILE) in monitor.status()["reason"]
            assert "No such file" in monitor.status()["reason"]
            await trio.Path(state).mkdir()
            await until(lambda: monitor.status()["status"] == "ok")

    run(main)
    assert [each["event"] for each in events] == ["monitor.history_not_saved"]
    assert len(monitor.history("seconds")["timestamps"]) >= SAVE_EVERY - 1


# ── switched off


def test_disabled_it_reads_nothing_and_says_why(make: Make, state: Path) -> None:
    monitor = make(enabled=False)

    async def main() -> None:
        async with running(monitor):
            await trio.sleep(100)

    run(main)
    assert monitor.status() == {"status": "off", "reason": "monitoring.enabled is false"}
    for reading, figures in ((monitor.host, HOST), (monitor.daemon, PROCESS)):
        assert reading.sample == {figure.name: None for figure in figures}
        assert set(reading.reasons) == set(reading.sample)
        assert set(reading.reasons.values()) == {"monitoring.enabled is false"}
    assert monitor.history("seconds")["timestamps"] == []
    assert list(state.iterdir()) == []


def test_without_the_system_the_daemon_and_the_cache_are_still_told(
    make: Make, kernel: FakeKernel, cache: Cache
) -> None:
    kernel.process("self")
    monitor = make(system_monitoring=False)

    async def main() -> None:
        async with running(monitor):
            await until(lambda: len(monitor.history("seconds")["timestamps"]) >= 3)

    run(main)
    assert set(monitor.host.reasons.values()) == {"monitoring.system_monitoring is false"}
    assert all(value is None for value in monitor.host.sample.values())
    assert monitor.daemon.sample["rss_bytes"] == 100 * PAGE
    series = monitor.history("seconds")["series"]
    assert set(series["load_1m"]) == {None}
    assert series["daemon_rss_bytes"][-1] == 100 * PAGE
    assert series["cache_hits_per_second"][-1] == 0


# ── what goes wrong


def test_a_fault_of_ours_degrades_is_logged_once_and_passes(
    make: Make, monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]]
) -> None:
    monitor = make()
    calls: list[int] = []
    read = monitor._host_reader.read

    def broken() -> Any:
        calls.append(1)
        if 2 <= len(calls) <= 5:
            raise ZeroDivisionError("of the test")
        return read()

    monkeypatch.setattr(monitor._host_reader, "read", broken)

    async def main() -> None:
        async with running(monitor):
            await until(lambda: monitor.status()["status"] == "degraded")
            assert "of the test" in monitor.status()["reason"]
            await until(lambda: monitor.status()["status"] == "ok")

    run(main)
    assert [each["event"] for each in events] == ["monitor.failed"]
    assert len(calls) >= 6


def test_a_look_that_hangs_is_said_and_holds_up_no_stop(
    make: Make, monkeypatch: pytest.MonkeyPatch, times: Times
) -> None:
    monitor = make()
    entered, leave = threading.Event(), threading.Event()

    def hang() -> Any:
        entered.set()
        leave.wait(30)
        raise ZeroDivisionError("too late")

    monkeypatch.setattr(monitor._host_reader, "read", hang)

    async def main() -> None:
        async with running(monitor):
            await until(entered.is_set)
            times.now += LATE + 1
            assert "no sample was finished for 16 s" in monitor.status()["reason"]

    run(main)
    leave.set()


# ── attached processes


def test_a_process_is_told_from_its_first_second_until_it_leaves(
    make: Make, kernel: FakeKernel, cache: Cache
) -> None:
    kernel.process(77, started=1)
    monitor = make()

    async def main() -> None:
        async with running(monitor):
            await until(lambda: monitor.history("seconds")["timestamps"])
            attachment = attach(cache, peer_pid=77)
            attachment._words[L.P_HITS] = 41
            cache.stats()
            (found,) = monitor.process_figures(cache.attachments())
            assert found["rss_bytes"] is None
            assert found["unknown"]["rss_bytes"] == "no sample has been taken yet"
            await until(lambda: monitor.process_figures(cache.attachments())[0]["rss_bytes"])
            (found,) = monitor.process_figures(cache.attachments())
            assert found["instance"] == (b"i" * 16).hex()
            assert (found["pid"], found["own_pid"], found["uid"]) == (77, 9, 12)
            assert (found["hits"], found["trusted"]) == (41, True)
            assert found["rss_bytes"] == 100 * PAGE
            assert (found["pss_bytes"], found["swap_bytes"]) == (5 * 1024, 12 * 1024)
            assert (found["threads"], found["open_files"], found["read_bytes"]) == (3, 3, 4096)
            assert found["unknown"]["cpu_percent"] == "needs two samples"
            assert found["sources"] == {}
            attachment.close()
            assert monitor.process_figures(cache.attachments()) == []
            await until(lambda: not monitor._watched)

    run(main)


def test_a_proc_of_another_namespace_is_asked_about_nobody_else(
    make: Make, kernel: FakeKernel, cache: Cache
) -> None:
    """Its numbers are those of other processes."""
    cgroup = (kernel.root / "proc/self/cgroup").read_text()
    (kernel.root / "proc/self/cgroup").unlink()
    (kernel.root / "proc/self").rmdir()
    kernel.process(4242, started=1)
    kernel.write("proc/4242/cgroup", cgroup)
    (kernel.root / "proc/self").symlink_to("4242")
    kernel.process(77, started=1)
    monitor = make()

    async def main() -> None:
        attachment = attach(cache, peer_pid=77)
        await monitor._sample_once()
        (found,) = monitor.process_figures(cache.attachments())
        assert found["rss_bytes"] is None
        assert "in another PID namespace" in found["unknown"]["rss_bytes"]
        assert monitor.daemon.sample["rss_bytes"] == 100 * PAGE
        attachment.close()

    run(main)


def test_walks_over_memory_are_bounded_and_each_has_its_turn(
    make: Make, kernel: FakeKernel, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[list[int]] = [[]]

    def walk(self: ProcessReader, folder: object) -> None:
        walked[-1].append(self.pid)
        self.seconds_for_pss = 0.003
        self._pss = 1, ""

    monkeypatch.setattr(ProcessReader, "_look_at_pss", walk)
    for pid in range(71, 79):
        kernel.process(pid, started=1)
    monitor = make()

    async def main() -> None:
        attached = [attach(cache, peer_pid=pid) for pid in range(71, 79)]
        for _ in range(SHARES_EVERY):
            await monitor._sample_once()
            monitor._samples += 1
            walked.append([])
        for each in attached:
            each.close()

    run(main)
    looks = [found for found in walked if found]
    assert max(map(len, looks)) == 2, "six milliseconds, and no more at one sample"
    own = os.getpid()
    once = [pid for found in looks for pid in found if pid != own]
    assert sorted(once) == list(range(71, 79)), "all had their turn, none had two"
    assert PROCESSES_EVERY * 4 < SHARES_EVERY
