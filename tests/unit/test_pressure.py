"""The store of a host that is short of memory: smaller while that lasts, and then as it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from bi_performance_wire.errors import WireError
from bi_performanced.cache.budget import CALM, LOOKS, is_calm, why_short
from bi_performanced.cache.component import Cache
from bi_performanced.cache.terms import Terms
from bi_performanced.config import CacheSettings
from bi_performanced.host.signs import memory_signs
from bi_performanced.monitor.pressure import EVERY, Pressure
from support.kernel import FakeKernel

MIB = 1 << 20
SETTINGS = CacheSettings(max_bytes=16 * MIB, max_size=100_000)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path / "root")


def say(kernel: FakeKernel, available: int, some: float = 0.0) -> None:
    """`available` percent of the memory can be had."""
    kernel.write("proc/meminfo", f"MemTotal: 1000000 kB\nMemAvailable: {available * 10_000} kB\n")
    lines = [f"{kind} avg10={some:.2f} avg60=0.00 avg300=0.00 total=1" for kind in ("some", "full")]
    kernel.write("proc/pressure/memory", "\n".join(lines) + "\n")


def test_the_signs_are_those_of_who_has_less(kernel: FakeKernel) -> None:
    say(kernel, 40)
    assert memory_signs(kernel.root)[:4] == (0.4, 400_000 * 1024, 0.0, 0.0)
    kernel.cgroup2(
        "/pod",
        **{
            "pod:memory.max": "1000",
            "pod:memory.current": "950",
            "pod:memory.stat": "inactive_file 50",
            "pod:memory.pressure": "some avg10=20.00 avg60=0 avg300=0 total=1\n"
            "full avg10=7.50 avg60=0 avg300=0 total=1",
        },
    )
    assert memory_signs(kernel.root) == (0.1, 100, 20.0, 7.5, "the control group")
    for path in list(kernel.files()):
        path.write_text("nonsense")
    assert memory_signs(kernel.root) == (None, None, None, None, "the host")


def test_pages_of_files_that_are_read_over_and_over_are_not_want_of_memory(
    kernel: FakeKernel,
) -> None:
    """As of a scraper whose database and logs have filled what its container may have."""
    say(kernel, 60)
    files = {
        "pod:memory.max": str(1024 * MIB),
        "pod:memory.current": str(1000 * MIB),
        "pod:memory.stat": f"anon {100 * MIB}\ninactive_file {30 * MIB}\nactive_file {870 * MIB}",
    }
    kernel.cgroup2("/pod", **files)
    signs = memory_signs(kernel.root)
    assert (signs.share, signs.where) == (0.6, "the host")
    assert why_short(signs) is None and is_calm(signs)
    # What lies on a tmpfs cannot be taken back: the kernel tells it as anonymous.
    stat = f"anon {100 * MIB}\nshmem {870 * MIB}\ninactive_anon {970 * MIB}\ninactive_file 0"
    kernel.cgroup2("/pod", **files | {"pod:memory.stat": stat})
    reason = why_short(memory_signs(kernel.root))
    assert reason == "2% of the memory of the control group is left"


def with_cache(
    folder: Path, kernel: FakeKernel, act: Callable[[Cache, Pressure, list[float]], Awaitable[None]]
) -> None:
    async def main() -> None:
        now = [0.0]
        cache = Cache.open(SETTINGS, runtime_dir=folder, state_dir=folder, mode="on")
        pressure = Pressure(cache, kernel.root, clock=lambda: now[0])
        async with trio.open_nursery() as nursery:
            await nursery.start(cache.run)
            await act(cache, pressure, now)
            nursery.cancel_scope.cancel()
        cache.close()

    trio.run(main)


async def look(pressure: Pressure, now: list[float], times: int) -> None:
    for _ in range(times):
        now[0] += EVERY
        await pressure.look()


def test_a_store_shrinks_under_pressure_and_grows_back(tmp_path: Path, kernel: FakeKernel) -> None:
    async def act(cache: Cache, pressure: Pressure, now: list[float]) -> None:
        for n in range(6_000):
            cache.set(b"key-%d" % n, b"\0" + bytes(1_000), Terms(3600))
        entries, file_bytes = cache.stats().entries, cache.allocated[1]
        say(kernel, 50)
        await look(pressure, now, 5)
        assert cache.allocated == (16 * MIB, file_bytes)
        say(kernel, 3)
        with structlog.testing.capture_logs() as logs:
            await look(pressure, now, LOOKS)
        assert cache.allocated[0] == 8 * MIB
        assert cache.allocated[1] < 0.6 * file_bytes
        assert cache.stats().entries == entries, "they fit"
        (event,) = (each for each in logs if each["event"] == "cache.budget_shrunk")
        assert event["bytes"] == 8 * MIB
        assert event["reason"] == "3% of the memory of the host is left"
        status, local = cache.status(), cache.stats().levels.local
        assert status["status"] == "ok"
        assert (status["budget_bytes"], status["max_bytes"]) == (8 * MIB, 16 * MIB)
        assert "3% of the memory" in status["budget_reason"]
        assert local["budget_bytes"] == 8 * MIB
        await look(pressure, now, 40)
        assert cache.allocated[0] == 2 * MIB, "an eighth is left to it"
        assert 0 < cache.stats().size_bytes <= 2 * MIB
        # While it is so it does not grow, whatever comes.
        for n in range(6_000):
            cache.set(b"key-%d" % n, b"\0" + bytes(1_000), Terms(3600))
        await trio.testing.wait_all_tasks_blocked()
        assert cache.allocated[0] == 2 * MIB
        say(kernel, 60)
        epoch = cache.epoch
        await look(pressure, now, 4 * int(CALM / EVERY) + 10)
        assert "budget_bytes" not in cache.status()
        assert cache.epoch > epoch, "processes are told what the largest value is now"

    with_cache(tmp_path, kernel, act)


def test_an_entry_that_is_too_large_while_memory_is_short_is_told_so(
    tmp_path: Path, kernel: FakeKernel
) -> None:
    async def act(cache: Cache, pressure: Pressure, now: list[float]) -> None:
        def refused(size: int) -> WireError:
            with pytest.raises(WireError) as caught:
                cache.set(b"large", b"\0" + bytes(size), Terms(3600))
            assert caught.value.field == "value"
            return caught.value

        most = cache._home.largest_record()
        say(kernel, 3)
        await look(pressure, now, 41)
        assert cache._home.largest_record() < most // 2
        told = refused(most // 2)
        assert "while memory is short the limit is" in told.message
        assert "3% of the memory of the host is left" in told.message
        assert told.hint is not None and "free memory" in told.hint
        # That one would be too large without the shortage, too.
        told = refused(most + 1)
        assert "short" not in told.message
        assert told.hint is not None and told.hint.startswith("raise cache.max_bytes")

    with_cache(tmp_path, kernel, act)


def test_it_can_be_turned_off(tmp_path: Path, kernel: FakeKernel) -> None:
    async def act(cache: Cache, pressure: Pressure, now: list[float]) -> None:
        say(kernel, 3)
        await look(pressure, now, LOOKS)
        assert cache.allocated[0] == 8 * MIB
        await cache.reconfigure(replace(SETTINGS, shrink_under_pressure=False))
        await look(pressure, now, 10)
        assert "budget_bytes" not in cache.status()

    with_cache(tmp_path, kernel, act)


def test_another_limit_begins_a_budget_of_its_own(tmp_path: Path, kernel: FakeKernel) -> None:
    async def act(cache: Cache, pressure: Pressure, now: list[float]) -> None:
        say(kernel, 3)
        await look(pressure, now, LOOKS)
        await cache.reconfigure(replace(SETTINGS, max_bytes=12 * MIB))
        assert cache.stats().levels.local["budget_bytes"] == 12 * MIB
        # The old limit with everything else as it was: what was found holds.
        say(kernel, 3)
        await look(pressure, now, LOOKS)
        assert cache.stats().levels.local["budget_bytes"] == 4 * MIB

    with_cache(tmp_path, kernel, act)
