#!/usr/bin/env python3
"""The performance test suite: does it work on this machine, and what does it measure here?

    python test_performance.py

starts a daemon of its own in a temporary directory, with real processes beside it, prints a report
and ends with status 1 when something failed. It needs nothing but the installed package; pytest
collects it as well. Figures are told, never judged: what is slow here is for you to say.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from bi_performance import PerformanceOptimizer
from bi_performance_wire import __version__

OURS = ("BI_", "PERFORMANCE_", "REDIS_", "DATABASE_", "DB_")
"""What begins the names of variables that would make the suite's daemon use what is the user's."""
START_WITHIN = 30.0
ROUNDS = 2000


class Host:
    """A daemon of the suite's own, and this process as a scraper of it."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="bi-performance-test-")
        place = Path(self.folder.name)
        (place / "run").mkdir(mode=0o700)
        self.socket = place / "run" / "control.sock"
        environ = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
        self.environ = environ | {"BI_PERFORMANCE_SOCKET": str(self.socket)}
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bi_performanced.main", "--http", "off"),
                *("--state-dir", str(place / "state"), "--log-file", str(place / "log")),
            ],
            env=self.environ | {"RUNTIME_DIRECTORY": str(place / "run")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        deadline = time.monotonic() + START_WITHIN
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                said, _ = self._process.communicate()
                self.folder.cleanup()
                raise RuntimeError(f"the daemon did not start: {said}")
            time.sleep(0.02)
        self.optimizer = PerformanceOptimizer(str(self.socket), mode="on")
        self.cache = self.optimizer.sync.cache
        # The socket is there a moment before somebody answers on it.
        until(lambda: self.cache.stats() is not None, "the daemon's first answer")

    def close(self) -> None:
        self.optimizer.close()
        self._process.terminate()
        self._process.communicate()
        self.folder.cleanup()

    def in_another_process(self, code: str) -> str:
        """What Python code prints in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.environ, capture_output=True, text=True
        )
        if done.returncode:
            raise AssertionError(done.stderr)
        return done.stdout.strip()


def until(condition: Callable[[], Any], what: str, within: float = 20.0) -> Any:
    """The condition's result once it is true."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {within:g} s")
        time.sleep(0.02)
    return found


class Suite(unittest.TestCase):
    """The base of the parts: each has a daemon of its own, and tells figures by `tell`."""

    title: ClassVar[str] = ""
    host: ClassVar[Host]
    figures: ClassVar[dict[str, str]] = {}
    """By a test's name, what it measured."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.host = Host()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.host.close()

    def tell(self, figure: str) -> None:
        self.figures[self.id()] = figure

    def median(self, act: Callable[[int], object], rounds: int = ROUNDS) -> float:
        """Microseconds of one call, the median of many."""
        durations = []
        for number in range(rounds):
            began = time.perf_counter_ns()
            act(number)
            durations.append(time.perf_counter_ns() - began)
        return sorted(durations)[rounds // 2] / 1000


class CacheOperations(Suite):
    title = "Cache operations and hit rates"

    def setUp(self) -> None:
        self.cache = self.host.cache
        self.cache.clear()

    def test_a_value_comes_back_as_it_was_stored(self) -> None:
        values: list[Any] = [None, True, -7, 2**70, 1.5, "text", b"bytes", [1, [2]], {"a": {1: 2}}]
        values += [datetime(2026, 1, 2, tzinfo=UTC), {1, 2}, (1, "two"), "x" * 100_000]
        for number, value in enumerate(values):
            self.assertTrue(self.cache.set(f"type:{number}", value))
            found = self.cache.get_entry(f"type:{number}")
            self.assertTrue(found.found)
            self.assertEqual(found.value, value)
            self.assertIs(type(found.value), type(value))
        self.tell(f"{len(values)} types")

    def test_a_hit_is_read_in_place(self) -> None:
        self.cache.set("page", "x" * 1024)
        took = self.median(lambda _: self.cache.get("page"))
        self.tell(f"{took:.1f} µs a hit of 1 KB")

    def test_a_write_is_there_for_everybody_when_it_returns(self) -> None:
        took = self.median(lambda n: self.cache.set(f"write:{n % 100}", "x" * 1024), 500)
        code = "from bi_performance import get_performance_optimizer as g\n"
        code += "print(g().sync.cache.get('write:42') is not None)"
        self.assertEqual(self.host.in_another_process(code), "True")
        self.tell(f"{took:.0f} µs a set of 1 KB")

    def test_many_values_go_in_few_messages(self) -> None:
        pairs = {f"many:{n}": "x" * 1024 for n in range(100)}
        took = self.median(lambda _: self.cache.set_many(pairs), 50)
        self.assertEqual(len(self.cache.get_many(pairs)), 100)
        self.tell(f"{took / 100:.1f} µs a value, 100 at once")

    def test_the_hit_rate_is_what_was_read(self) -> None:
        before = self.host.optimizer.sync.run_performance_analysis()["cache_performance"]
        self.cache.set_many({f"rate:{n}": n for n in range(80)})
        for number in range(100):
            self.cache.get(f"rate:{number}")
        after = self.host.optimizer.sync.run_performance_analysis()["cache_performance"]
        hits, misses = (after[name] - before[name] for name in ("hits", "misses"))
        self.assertEqual((hits, misses), (80, 20))
        self.tell(f"{hits / (hits + misses):.0%} of {hits + misses} reads hit")

    def test_an_entry_goes_when_its_time_is_over(self) -> None:
        self.cache.set("short", 1, ttl=0.2)
        self.assertEqual(self.cache.get("short"), 1)
        until(lambda: self.cache.get("short") is None, "the expiry")

    def test_what_is_deleted_or_cleared_is_gone(self) -> None:
        self.cache.set_many({"analytics:1": 1, "analytics:2": 2, "other": 3, "gone": 4})
        self.cache.delete("gone")
        self.assertIsNone(self.cache.get("gone"))
        self.assertEqual(self.cache.clear("analytics"), 2)
        self.assertIsNone(self.cache.get("analytics:1"))
        self.assertEqual(self.cache.get("other"), 3)

    def test_only_one_process_is_first_to_see_a_fingerprint(self) -> None:
        code = "from bi_performance import get_performance_optimizer as g\n"
        code += "print(sum(not g().sync.cache.seen(f'seen:{n}', ttl=60) for n in range(200)))"
        began = time.perf_counter()
        news = [int(self.host.in_another_process(code)) for _ in range(2)]
        self.assertEqual(sum(news), 200)
        self.assertGreater(time.perf_counter(), began)

    def test_it_works_under_asyncio(self) -> None:
        async def main() -> list[Any]:
            cache = self.host.optimizer.cache
            await cache.set("await", 1)
            return await asyncio.gather(*(cache.get("await") for _ in range(50)))

        self.assertEqual(asyncio.run(main()), [1] * 50)


class SystemResources(Suite):
    title = "System resource monitoring"

    def system(self) -> dict[str, Any]:
        found: dict[str, Any] = self.host.optimizer.sync.run_performance_analysis()
        return dict(found["system_resources"])

    def test_the_host_s_figures_are_measured(self) -> None:
        system = until(
            lambda: (s := self.system()).get("cpu_percent") is not None and s, "two samples"
        )
        self.assertGreater(system["memory_total_bytes"], system["memory_available_bytes"])
        self.assertTrue(0 <= system["cpu_percent"] <= 100)
        self.tell(
            f"CPU {system['cpu_percent']:.0f} %, memory {system['memory_used_percent']:.0f} % used"
        )

    def test_what_is_unknown_is_null_with_the_reason(self) -> None:
        system = until(
            lambda: (s := self.system()).get("cpu_percent") is not None and s, "two samples"
        )
        unknown = system.pop("unknown")
        nulls = [name for name, value in system.items() if value is None]
        self.assertEqual(sorted(nulls), sorted(unknown))
        self.tell(f"{len(system) - len(nulls)} figures known, {len(nulls)} not")


class Optimization(Suite):
    title = "Profiles and recommendations"

    def test_a_profile_changes_what_it_says_and_balanced_restores_it(self) -> None:
        apply = self.host.optimizer.sync.apply_optimizations
        first = apply("performance_focused")
        self.assertEqual(first["profile_applied"], "performance_focused", first.get("reason"))
        self.assertTrue(first["changes"])
        back = apply("balanced")
        there = {each["setting"]: each["before"] for each in first["changes"]}
        again = {each["setting"]: each["after"] for each in back["changes"]}
        self.assertEqual(there, again)
        self.tell(f"{len(there)} settings")

    def test_a_healthy_cache_gets_no_recommendations(self) -> None:
        self.host.cache.set("one", 1)
        for _ in range(100):
            self.host.cache.get("one")
        found = self.host.optimizer.sync.run_performance_analysis()
        self.assertEqual(found["recommendations"], [])


PARTS = (CacheOperations, SystemResources, Optimization)


class Report(unittest.TestResult):
    """Prints a line for each test as it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._part: type[unittest.TestCase] | None = None

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        if type(test) is not self._part:
            self._part = type(test)
            print(f"\n{getattr(test, 'title', '')}")

    def _line(self, mark: str, test: unittest.TestCase) -> None:
        name = test.id().rpartition(".")[2].removeprefix("test_").replace("_s_", "'s_")
        figure = Suite.figures.get(test.id(), "")
        print(f"  {mark:6} {name.replace('_', ' '):58} {figure}".rstrip(), flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.count += 1
        self._line("ok", test)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._line("FAILED", test)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._line("FAILED", test)


def main() -> int:
    """Run all parts; 0 when everything passed, else 1."""
    began = time.monotonic()
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"bi-performance {__version__} on Python {version}, {os.cpu_count()} processors")
    report = Report()
    load = unittest.defaultTestLoader.loadTestsFromTestCase
    unittest.TestSuite(load(part) for part in PARTS).run(report)
    print("\nTask processing and memory optimization: not in this version")
    failed = [*report.failures, *report.errors]
    for test, text in failed:
        print(f"\n{test}\n{text}")
    seconds = time.monotonic() - began
    print(f"\n{report.count} passed, {len(failed)} failed in {seconds:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
