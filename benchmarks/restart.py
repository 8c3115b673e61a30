"""What kill -9 costs: the hit rate before and after it, and the time until entries are there again.

    python benchmarks/restart.py [--traces FOLDER] [--entries N ...] [--json FILE]

The hit rate is that of a client that asks a real daemon and stores what is missing; a second daemon
gets the same requests and is not killed. The time to recover is a ratio to the time of storing the
same entries, in one process and round. With --traces real traffic too (see policy.py).
"""

from __future__ import annotations

import argparse
import bisect
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

from measure import Spread, save, say
from policy import load

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.protocol import Unavailable, ask
from bi_performance_wire import layout as L
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.recovery import recover
from bi_performanced.cache.store import Store

REQUESTS = 60_000
ENTRIES = 2_000
KEYS = 20_000
ROUNDS = 3
DEFAULT_ENTRIES = (10_000, 100_000, 1_000_000)
VALUE = b"\0\xc4\x64" + bytes(100)


def zipf(count: int, *, shift: int) -> list[int]:
    """Requests whose popularity falls with the rank; after each `shift` the first key is gone."""
    rng = Random(12)
    weights = list(accumulate(1 / rank for rank in range(1, KEYS + 1)))
    ranks = (bisect.bisect(weights, rng.random() * weights[-1]) for _ in range(count))
    return [rank + (at // shift if shift else 0) for at, rank in enumerate(ranks)]


class Daemon:
    """One that can be killed and started again on its folder."""

    def __init__(self, folder: Path, entries: int) -> None:
        self.folder = folder
        self.socket = folder / "control.sock"
        self._entries = entries
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        env = {
            **os.environ,
            "RUNTIME_DIRECTORY": str(self.folder),
            "PERFORMANCE_CACHE_MAX_SIZE": str(self._entries),
        }
        words = ("--state-dir", str(self.folder / "state"), "--log-file", str(self.folder / "log"))
        process = subprocess.Popen(
            [sys.executable, "-m", "bi_performanced.main", *words, "--http", "off"],
            env=env,
            cwd=self.folder,
        )
        while True:
            try:
                ask(self.socket, "ping", seconds=1)
                return process
            except (OSError, Unavailable):
                if process.poll() is not None:
                    raise RuntimeError("the daemon did not start") from None
                time.sleep(0.005)

    def kill_and_start(self) -> float:
        """Seconds from the kill until the next one answers."""
        began = time.perf_counter()
        self.end()
        self.process = self._start()
        return time.perf_counter() - began

    def end(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(entries: int) -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="bi-performance-benchmark-", dir="/dev/shm"))
    daemon = Daemon(folder, entries)
    try:
        yield daemon
    finally:
        daemon.end()
        shutil.rmtree(folder, ignore_errors=True)


def replay(optimizer: PerformanceOptimizer, requests: Iterable[int]) -> list[bool]:
    """For each request whether it was there; what was not is stored."""
    cache = optimizer.sync.cache
    found = []
    for key in requests:
        name = f"page:{key}"
        there = cache.get(name) is not None
        if not there:
            cache.set(name, key)
        found.append(there)
    return found


def rates(requests: Sequence[int], entries: int) -> dict[str, Any]:
    """Percent of hits before a kill in the middle and after it, and of a daemon that went on."""
    middle = len(requests) // 2
    soon = middle + min(2 * entries, middle)
    figures: dict[str, Any] = {}
    for kind in ("killed", "went_on"):
        with running(entries) as daemon:
            optimizer = PerformanceOptimizer(str(daemon.socket))
            found = replay(optimizer, requests[:middle])
            if kind == "killed":
                figures["seconds_away"] = daemon.kill_and_start()
                while optimizer.sync.cache.get(f"page:{requests[middle - 1]}") is None:
                    time.sleep(0.001)
            found += replay(optimizer, requests[middle:])
            optimizer.close()
        parts = {"before": (middle // 2, middle), "soon": (middle, soon), "after": (middle, None)}
        for name, (start, end) in parts.items():
            part = found[start:end]
            figures[f"{kind}_{name}"] = 100 * sum(part) / len(part)
    return figures


def times(entries: int) -> dict[str, float]:
    """Seconds to store so many entries of 100 bytes, and to recover them."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "store"
        size = entries * (L.RECORD_OVERHEAD + len(VALUE) + 16)
        store = Store(Memory.create(path, entries, max(size, 1 << 20), epoch=1))
        began = time.perf_counter()
        for n in range(entries):
            store.put(b"page:%d" % n, VALUE, expires=L.NEVER, now=1)
        stored = time.perf_counter() - began
        store.close()
        again = Store(Memory.adopt(path))
        began = time.perf_counter()
        kept = recover(again, 1)
        recovered = time.perf_counter() - began
        again.close()
        assert kept >= entries * 0.999, kept
    return {"store": stored, "recover": recovered}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=Path, help="a folder of traces, *.gz")
    parser.add_argument("--entries", metavar="N", type=int, nargs="+", default=DEFAULT_ENTRIES)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows here")
    args = parser.parse_args()
    traffic = {"steady": zipf(REQUESTS, shift=0), "shifting": zipf(REQUESTS, shift=20)}
    for path in sorted(args.traces.glob("*.gz")) if args.traces else ():
        traffic[path.name.removesuffix(".txt.gz")] = list(load(path)[:REQUESTS])
    rows: list[dict[str, Any]] = []
    say(f"hits of {REQUESTS:,} requests, {ENTRIES:,} entries, killed in the middle, in percent")
    for name, requests in traffic.items():
        found = rates(requests, ENTRIES)
        rows.append({"traffic": name, "requests": len(requests), "entries": ENTRIES, **found})
        say(
            f"  {name:10} before {found['killed_before']:.2f}"
            f"  after {found['killed_after']:.2f}, of one that went on {found['went_on_after']:.2f}"
            f"  first {2 * ENTRIES:,}: {found['killed_soon']:.2f}, {found['went_on_soon']:.2f}"
            f"  away {found['seconds_away']:.2f} s"
        )
    say("time to recover, as a share of the time of storing the same")
    for entries in args.entries:
        each = [times(entries) for _ in range(ROUNDS)]
        share = Spread.of([one["recover"] / one["store"] for one in each])
        seconds = Spread.of([one["recover"] for one in each])
        rows.append(
            {"entries": entries, "of_storing": share._asdict(), "seconds": seconds._asdict()}
        )
        say(f"  {entries:>9,} entries  {share}   {seconds.median:.2f} s")
    save(args.json, rows)


if __name__ == "__main__":
    main()
