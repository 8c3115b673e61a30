"""Each recommendation in a closed loop: caused for real, its command run, better, silent."""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bi_performance.client import SyncCache
from bi_performance.optimizer import PerformanceOptimizer
from support.cgroup import MemoryGroup, memory_group
from support.clients import RawClient
from support.daemon import QUICK, DaemonProcess, wait_until

PROGRAM = [sys.executable, "-m", "bi_performance_ctl.main"]
MIN_READS = 1000
PRESSED = (
    *(sys.executable, "-c"),
    "from bi_performanced.advice import rules; rules.PRESSURE_SAMPLES = 4\n" + QUICK[1],
)
"""Four samples instead of ten, each of which has to be a second after the start."""


class Advised:
    """A daemon that looks often, a scraper of it, and a person who follows its advice."""

    def __init__(self, daemon: DaemonProcess, window: float) -> None:
        self.daemon = daemon
        self.window = window
        self.optimizer = PerformanceOptimizer(str(daemon.socket))
        self.control = RawClient(daemon.socket)

    @property
    def cache(self) -> SyncCache:
        return self.optimizer.sync.cache

    def recommendations(self) -> dict[str, dict[str, Any]]:
        found = self.control.result("recommendations")["recommendations"]
        return {each["id"]: each for each in found}

    def raised(self, name: str, work: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """The recommendation, once it comes while the scraper does its work."""

        def look() -> dict[str, Any] | None:
            work()
            return self.recommendations().get(name)

        found: dict[str, Any] = wait_until(look, within=60, what=name)
        for part in ("severity", "title", "action", "command", "expected_effect"):
            assert found[part], part
        assert found["evidence"]["sample"] > 0
        assert found["evidence"]["window_seconds"] >= 0
        return found

    def follow(self, recommendation: dict[str, Any]) -> None:
        """Run the command as it stands there."""
        words = shlex.split(recommendation["command"])
        assert words[0] == "bi-performance"
        done = subprocess.run(
            [*PROGRAM, *words[1:]],
            env={**os.environ, "BI_PERFORMANCE_SOCKET": str(self.daemon.socket)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (done.stdout, done.stderr)

    def silent(self, name: str, work: Callable[[], object] = lambda: None) -> None:
        """The recommendation is gone, with enough measured since that it could have come."""

        def measured() -> bool:
            work()
            assert name not in self.recommendations()
            window = self.analysis()["window"]
            reads: int = window["hits"] + window["misses"]
            return reads >= MIN_READS

        wait_until(measured, within=60, what="a sample after the change")
        # Two further looks of the daemon at the whole of it.
        before = self.analysis()["window"]["seconds"]
        wait_until(
            lambda: self.analysis()["window"]["seconds"] >= min(before + 0.5, self.window),
            what="further looks",
        )
        assert name not in self.recommendations()

    def analysis(self) -> dict[str, Any]:
        found: dict[str, Any] = self.control.result("analysis")["cache_performance"]
        return found

    def hit_rate(self, work: Callable[[], object]) -> float:
        """The host's hit rate over some work."""
        before = self.control.result("cache.stats")
        work()
        after = self.control.result("cache.stats")
        hits, misses = (after[name] - before[name] for name in ("hits", "misses"))
        assert hits + misses
        return float(hits / (hits + misses))


@contextmanager
def advised(
    folder: Path, settings: str = "", *, window: float = 30.0, group: MemoryGroup | None = None
) -> Iterator[Advised]:
    (folder / "config").mkdir()
    (folder / "config" / "performance.toml").write_text(
        f"[performance.advice]\ninterval = 0.2\nwindow = {window}\n{settings}"
    )
    started = (
        DaemonProcess(folder, program=QUICK)
        if group is None
        else DaemonProcess(folder, python="sh", program=(*group.shell, *PRESSED))
    )
    with started as daemon:
        made = Advised(daemon, window)
        try:
            yield made
        finally:
            made.optimizer.close()
            made.control.close()


def scrape(cache: SyncCache, keys: list[str], *, ttl: float | None = None) -> None:
    """Read each key, and fetch and store what is missing: what a scraper does."""
    for key in keys:
        if cache.get(key) is None:
            # A daemon that was not given its turn within a second has not stored it.
            wait_until(partial(cache.set, key, {"page": key}, ttl), what="room")


def test_a_store_too_small_for_what_is_asked_again(tmp_path: Path) -> None:
    with advised(tmp_path, "[performance.cache]\nmax_size = 300\n") as host:
        rng = random.Random(4)

        def work() -> None:
            scrape(host.cache, [f"page:{rng.randrange(500)}" for _ in range(500)])

        found = host.raised("cache.too_small", work)
        evidence = found["evidence"]
        assert evidence["evictions"] > 0 and evidence["max_entries"] == 300
        assert evidence["sample"] >= MIN_READS
        before = host.hit_rate(work)
        host.follow(found)
        for _ in range(4):
            work()
        assert host.hit_rate(work) > before + 0.2
        host.silent("cache.too_small", work)


def test_a_scan_over_twice_what_the_store_holds(tmp_path: Path) -> None:
    with advised(tmp_path, "[performance.cache]\nmax_size = 200\n") as host:
        keys = [f"page:{n}" for n in range(400)]
        found = host.raised("cache.too_small", lambda: scrape(host.cache, keys))
        before = host.hit_rate(lambda: scrape(host.cache, keys))
        host.follow(found)
        for _ in range(3):
            scrape(host.cache, keys)
        assert host.hit_rate(lambda: scrape(host.cache, keys)) > before + 0.3
        host.silent("cache.too_small", lambda: scrape(host.cache, keys))


def test_keys_of_which_some_are_read_are_not_to_be_cleared(tmp_path: Path) -> None:
    """Pages of one site: most are read once, some often. Both kinds begin alike."""
    with advised(tmp_path, "[performance.cache]\nmax_size = 300\n") as host:
        often = [f"https://example.com/{n}" for n in range(200)]
        numbers = iter(range(1000, 1_000_000))

        def work() -> None:
            scrape(host.cache, often * 3)
            host.cache.set_many({f"https://example.com/{next(numbers)}": "x" for _ in range(100)})

        def enough() -> bool:
            work()
            assert "cache.never_read" not in host.recommendations()
            window = host.analysis().get("window", {})
            return bool(window.get("evictions", 0) > 2000)

        wait_until(enough, within=60, what="departures")


def test_misses_that_come_from_expiry(tmp_path: Path) -> None:
    with advised(tmp_path, "[performance.cache]\ndefault_ttl = 1\n", window=60.0) as host:
        keys = [f"price:{n}" for n in range(300)]

        def once_expired() -> None:
            wait_until(lambda: host.cache.get(keys[-1]) is None, what="the expiry")
            scrape(host.cache, keys)

        found = host.raised("cache.expiry", once_expired)
        evidence = found["evidence"]
        assert evidence["new_entries_expired_before"] > 300 and evidence["default_ttl"] == 1
        before = host.hit_rate(once_expired)
        host.follow(found)
        scrape(host.cache, keys)
        assert host.hit_rate(lambda: scrape(host.cache, keys * 5)) > before + 0.5
        host.silent("cache.expiry", lambda: scrape(host.cache, keys))


def test_keys_that_are_written_and_never_read(tmp_path: Path) -> None:
    with advised(tmp_path, "[performance.cache]\nmax_size = 300\n") as host:
        useful = [f"page:{n}" for n in range(100)]
        numbers = iter(range(1_000_000))

        def work() -> None:
            scrape(host.cache, useful)
            host.cache.set_many({f"log*:{next(numbers)}": "x" for _ in range(300)})

        found = host.raised("cache.never_read", work)
        assert found["evidence"]["prefix"] == "log*:"
        assert found["evidence"]["left_unread"] > 100
        held = host.cache.keys("log[*]:*")
        assert held
        host.follow(found)
        assert host.cache.keys("log[*]:*") == []
        # The scraper heeds the advice: it no longer stores them.
        host.silent("cache.never_read", lambda: scrape(host.cache, useful))
        assert host.hit_rate(lambda: scrape(host.cache, useful)) == 1.0


def test_what_is_advised_on_keys_is_not_told_over_http(tmp_path: Path) -> None:
    import httpx

    with advised(tmp_path, "[performance.cache]\nmax_size = 100\n") as host:
        numbers = iter(range(1_000_000))

        def work() -> None:
            host.cache.set_many({f"secret-host:{next(numbers)}": "x" for _ in range(200)})

        host.raised("cache.never_read", work)
        answer = httpx.get(f"{host.daemon.http_url}/performance/recommendations", trust_env=False)
        ids = [each["id"] for each in answer.json()["recommendations"]]
        assert "cache.never_read" in ids and "secret-host" not in answer.text


def test_values_that_do_not_compress(tmp_path: Path) -> None:
    with advised(tmp_path) as host:
        value = os.urandom(8192)

        def work() -> None:
            host.cache.set_many({f"image:{n}": value for n in range(100)})
            scrape(host.cache, [f"page:{n % 50}" for n in range(600)])

        found = host.raised("cache.incompressible", work)
        assert found["evidence"]["bytes_in_vain"] > 8192 * 200
        host.follow(found)
        tried = host.control.result("cache.stats")["levels"]["local"]["compression"]["tried"]
        compressible = b"a" * 8192
        host.cache.set("text", compressible)
        assert host.cache.get("text") == compressible
        size = len(host.control.result("cache.get", key="text", payload=True))
        assert size > 8192, "the scraper no longer compresses"
        host.silent("cache.incompressible", work)
        after = host.control.result("cache.stats")["levels"]["local"]["compression"]["tried"]
        assert after == tried, "nothing was compressed in vain since"


def test_a_store_larger_than_its_use(tmp_path: Path) -> None:
    with advised(tmp_path, '[performance.cache]\nmax_bytes = "128 MiB"\n', window=1.5) as host:
        value = os.urandom(256 << 10)
        for n in range(150):
            # A daemon that was not given its turn within a second has not stored it.
            wait_until(lambda: host.cache.set(f"large:{n}", value), what="room")  # noqa: B023 (done here)
        host.cache.clear()
        keys = [f"page:{n}" for n in range(50)]

        def store_bytes() -> int:
            stats = host.control.result("cache.stats")
            found: int = stats["levels"]["local"]["store_bytes"]
            return found

        before = store_bytes()
        assert before > 64 << 20
        found = host.raised("cache.oversized", lambda: scrape(host.cache, keys * 20))
        host.follow(found)
        assert store_bytes() < before / 2
        host.silent("cache.oversized", lambda: scrape(host.cache, keys * 20))
        assert host.hit_rate(lambda: scrape(host.cache, keys)) == 1.0


@pytest.mark.root
def test_memory_pressure_in_a_control_group(tmp_path: Path) -> None:
    with (
        # On a tmpfs, as it should be: on a disk its pages would be cache that the kernel drops.
        tempfile.TemporaryDirectory(dir="/dev/shm") as store,
        memory_group(320 << 20) as group,
        advised(
            tmp_path,
            f'[performance.cache]\nmax_bytes = "96 MiB"\nstore_dir = "{store}"\n',
            group=group,
        ) as host,
    ):
        value = os.urandom(512 << 10)
        kept = [f"page:{n}" for n in range(160)]
        for key in kept:
            assert host.cache.set(key, value)

        def settled() -> bool:
            # A process that reads moves on; what it has left is then given back.
            host.cache.get(kept[0])
            stats = host.control.result("cache.stats")
            store_bytes: int = stats["levels"]["local"]["store_bytes"]
            return group.used() < store_bytes + (48 << 20)

        wait_until(settled, within=60, what="the memory of the stores that it has grown out of")
        with group.ballast(group.free() - (20 << 20)):
            found = host.raised("memory.pressure")
            assert found["command"] == "bi-performance optimize memory_focused"
            assert found["evidence"]["cgroup_memory_used_percent"] > 90
            used = group.used()
            host.follow(found)
            wait_until(lambda: group.used() < used - (32 << 20), what="the memory")
            assert host.daemon.process is not None and host.daemon.process.poll() is None
            still = [key for key in kept if host.cache.get(key) is not None]
            assert len(still) > 40, "half the cache stayed"
            host.silent("memory.pressure", lambda: scrape(host.cache, still[:20] * 20))
            wait_until(
                lambda: (
                    "memory.pressure" not in host.recommendations()
                    and host.analysis()["window"]["seconds"] > 5
                ),
                within=40,
                what="a look at as many further samples",
            )


def test_a_healthy_cache_gets_no_advice(tmp_path: Path) -> None:
    with advised(tmp_path, window=1.0) as host:
        keys = [f"page:{n}" for n in range(500)]
        host.cache.set_many({f"text:{n}": "word " * 2000 for n in range(300)})
        began = time.monotonic()

        def measured() -> bool:
            scrape(host.cache, keys)
            scrape(host.cache, [f"text:{n}" for n in range(300)])
            assert host.recommendations() == {}
            return time.monotonic() - began > 2 * host.window

        wait_until(measured, within=30, what="two windows")
        assert host.control.result("recommendations")["window_seconds"] >= 1.0


def test_nothing_is_said_before_the_least_sample(tmp_path: Path) -> None:
    with advised(tmp_path, "[performance.cache]\nmax_size = 10\n") as host:
        for n in range(MIN_READS // 10):
            scrape(host.cache, [f"page:{n}"])
        wait_until(
            lambda: host.control.result("recommendations")["window_seconds"] > 1, what="looks"
        )
        assert host.recommendations() == {}
