"""A store of a million entries: what stalls the daemon's loop, what an entry and a read cost.

    python benchmarks/scale.py [--entries N] [--readers N] [--rate N] [--where] [--json FILE]

The daemon is a real one, with a probe in its loop: a task that sleeps a millisecond and notes how
late it wakes. On a machine with fewer processors than readers the loop also waits for its turn, so
beside that the processor time is given that the loop's thread took between two wakes: what the
daemon itself did in one go. `--where` prints which steps were long.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import cycle
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Final
from unittest import mock

import trio
from measure import Spread, arguments, ratio, save, say

from bi_performance.client import SyncCache
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.protocol import Unavailable, ask
from bi_performance_wire import layout as L
from bi_performanced.cache.memory import Geometry

GOAL_MS: Final = 25.0
LONG_MS: Final = 8.0
VALUE: Final = "x" * 96
BATCH: Final = 1_000
SECONDS: Final = 10.0
ROUNDS: Final = 25
READS: Final = 10_000
PACE: Final = 1_000
"""Reads a second of each reader."""
SMALL: Final = 10_000
"""Entries of the store that a read in the large one is held against."""
_WORDS: Final = 8
_WORST, _CPU, _WAKES, _LATE = range(4)
_context = multiprocessing.get_context("fork")


# ── in the daemon


def probed_daemon(shared: Path, where: bool, arguments: list[str]) -> int:
    """Run the daemon with the probe in its loop, whose figures stand in a shared file."""
    from bi_performanced import main

    with shared.open("r+b") as file:
        words = memoryview(mmap.mmap(file.fileno(), 8 * _WORDS)).cast("Q")

    async def probe() -> None:
        while True:
            before, busy = time.perf_counter_ns(), time.thread_time_ns()
            await trio.sleep(0.001)
            late = time.perf_counter_ns() - before - 1_000_000
            words[_WORST] = max(words[_WORST], late, 0)
            words[_CPU] = max(words[_CPU], time.thread_time_ns() - busy)
            words[_WAKES] += 1
            words[_LATE] += late > GOAL_MS * 1e6

    run = trio.run

    def run_probed(act: Callable[[], Any], **options: Any) -> Any:
        async def started() -> Any:
            trio.lowlevel.spawn_system_task(probe)
            return await act()

        return run(started, instruments=[LongSteps()] if where else [], **options)

    with mock.patch.object(trio, "run", run_probed):
        return main.main(arguments)


class LongSteps(trio.abc.Instrument):
    """Prints each step of a task that took LONG_MS of processor time, and where it ended."""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time_ns()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if (took := (time.thread_time_ns() - self._began) / 1e6) > LONG_MS:
            frames = [f"{f.f_code.co_name}:{n}" for f, n in task.iter_await_frames()]
            say(f"  {took:5.1f} ms of {task.name}: {' > '.join(frames[-4:])}")


class Daemon:
    """A daemon with the probe, on a folder in memory."""

    def __init__(self, folder: Path, entries: int, *, where: bool = False) -> None:
        self.folder = folder
        self.socket = folder / "control.sock"
        self._where = where
        shared = folder / "probe"
        shared.write_bytes(bytes(8 * _WORDS))
        with shared.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 8 * _WORDS)).cast("Q")
        config = folder / "performance.toml"
        config.write_text(
            f"[performance.cache]\nmax_size = {entries}\nmax_bytes = {max_bytes(entries)}\n"
            "default_ttl = 36000\n"
        )
        self.start()

    def start(self) -> float:
        """Start it; seconds until it answers."""
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [
                *(sys.executable, __file__, "--daemon", str(self.folder / "probe")),
                *(["--where"] if self._where else []),
                *("--config", str(self.folder / "performance.toml"), "--http", "off"),
                *("--state-dir", str(self.folder / "state")),
                *("--log-file", str(self.folder / "log")),
            ],
            env={**os.environ, "RUNTIME_DIRECTORY": str(self.folder)},
            cwd=self.folder,
        )
        while True:
            try:
                ask(self.socket, "ping", seconds=1)
                return time.perf_counter() - began
            except (OSError, Unavailable):
                if self.process.poll() is not None:
                    raise RuntimeError("the daemon did not start") from None
                time.sleep(0.005)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def begin(self) -> None:
        """Begin to measure anew."""
        for word in range(_WORDS):
            self._words[word] = 0

    def stall(self) -> dict[str, float]:
        """Since `begin`: ms that the probe woke late at the worst, and that the loop's thread
        worked in one go; how often it woke, and how often beyond the goal."""
        time.sleep(0.05)
        words = self._words
        return {
            "late_ms": words[_WORST] / 1e6,
            "busy_ms": words[_CPU] / 1e6,
            "wakes": words[_WAKES],
            "beyond_goal": words[_LATE],
        }

    def stats(self) -> Any:
        return ask(self.socket, "cache.stats", seconds=60)

    def private_bytes(self) -> int:
        """What the process has for itself: the store's file is not in it."""
        lines = (Path("/proc") / str(self.process.pid) / "smaps_rollup").read_text().splitlines()
        wanted = ("Private_Dirty", "Private_Clean", "Anonymous")
        found = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        return 1024 * found[wanted[2]]


@contextmanager
def running(entries: int, *, where: bool = False) -> Iterator[Daemon]:
    folder = Path(tempfile.mkdtemp(prefix="bi-performance-benchmark-", dir="/dev/shm"))
    daemon = Daemon(folder, entries, where=where)
    try:
        yield daemon
    finally:
        daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def max_bytes(entries: int) -> int:
    """Of some 150 bytes an entry: the limit by entries comes first."""
    return max(32 << 20, 180 * entries)


def largest(entries: int) -> int:
    """Bytes of the largest record."""
    return Geometry.for_limits(entries, max_bytes(entries)).max_record


# ── clients


def name(number: int) -> str:
    return f"page:{number % 10}:{number:08d}"


def fill(socket: Path, start: int, count: int, **options: Any) -> None:
    with closing(PerformanceOptimizer(str(socket))) as optimizer:
        cache = optimizer.sync.cache
        for at in range(start, start + count, BATCH):
            end = min(at + BATCH, start + count)
            cache.set_many({name(n): (n, VALUE) for n in range(at, end)}, **options)


def churn(socket: Path, entries: int) -> None:
    """Rewrite few of the keys until the rings have gone round."""
    few = entries // 100
    for _ in range(80):
        fill(socket, 0, few)


def read(socket: str, entries: int, until: float, seed: int, out: SimpleQueue[Any]) -> None:
    """Read at random, PACE a second, until a time on the monotonic clock; tells reads, hits and
    wrong values."""
    with closing(PerformanceOptimizer(socket)) as optimizer:
        cache = optimizer.sync.cache
        choose = random.Random(seed).randrange
        reads = hits = wrong = 0
        while time.monotonic() < until:
            for _ in range(PACE // 50):
                number = choose(entries)
                found: Any = cache.get(name(number))
                hits += found is not None
                wrong += found is not None and found[0] != number
            reads += PACE // 50
            time.sleep(0.02)
        out.put((reads, hits, wrong))


def write(socket: str, entries: int, until: float, rate: int, out: SimpleQueue[Any]) -> None:
    """Overwrite entries at a rate, in batches of 50; tells how many."""
    with closing(PerformanceOptimizer(socket)) as optimizer:
        cache = optimizer.sync.cache
        choose = random.Random(1).randrange
        began, done = time.monotonic(), 0
        while (now := time.monotonic()) < until:
            if (now - began) * rate < done + 50:
                time.sleep(0.001)
                continue
            numbers = [choose(entries) for _ in range(50)]
            done += cache.set_many({name(n): (n, VALUE) for n in numbers})
        out.put(done)


def crowd(daemon: Daemon, entries: int, readers: int, rate: int) -> dict[str, float]:
    """Readers and a writer for SECONDS."""
    told: SimpleQueue[Any] = _context.SimpleQueue()
    written: SimpleQueue[Any] = _context.SimpleQueue()
    until = time.monotonic() + SECONDS + 1
    socket = str(daemon.socket)
    processes = [
        _context.Process(target=read, args=(socket, entries, until, seed, told))
        for seed in range(readers)
    ]
    processes.append(_context.Process(target=write, args=(socket, entries, until, rate, written)))
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [told.get() for _ in range(readers)]
    reads, hits, wrong = (sum(each) for each in zip(*found, strict=True))
    return {
        "sets_per_second": written.get() / (SECONDS + 1),
        "reads_per_second": reads / (SECONDS + 1),
        "hit_rate": hits / reads,
        "wrong": wrong,
    }


# ── what is measured


def stalls(daemon: Daemon, entries: int, readers: int, rate: int) -> list[dict[str, Any]]:
    """Each thing that goes over many entries, and how long the loop stood still for it."""
    rows = []

    def phase(what: str, act: Callable[[], object]) -> None:
        daemon.begin()
        began = time.perf_counter()
        found = act()
        seconds = time.perf_counter() - began
        row: dict[str, Any] = {"what": what, "seconds": seconds, **daemon.stall()}
        if isinstance(found, dict):
            row |= found
        rows.append(row)
        say(
            f"{what:42} {seconds:8.2f} s  late {row['late_ms']:7.1f} ms"
            f"  busy {row['busy_ms']:7.1f} ms  {found if found is not None else ''}"
        )

    socket = daemon.socket
    with closing(PerformanceOptimizer(str(socket))) as optimizer:
        cache = optimizer.sync.cache

        def few_sets() -> None:
            for number in range(2_000):
                cache.set(name(number), (number, VALUE))

        def stats() -> None:
            for _ in range(50):
                daemon.stats()

        def answer(method: str, **args: Any) -> Callable[[], Any]:
            return lambda: ask(socket, method, args, seconds=300)

        def optimize(profile: str) -> Callable[[], object]:
            def act() -> dict[str, int]:
                ask(socket, "optimize", {"profile": profile}, seconds=300)
                return {"entries": daemon.stats()["entries"]}

            return act

        tenth = entries // 10
        phase(f"set_many, {BATCH:,} at a time", lambda: fill(socket, 0, entries))
        phase("set", few_sets)
        phase(f"{readers} readers, {rate:,} sets/s", lambda: crowd(daemon, entries, readers, rate))
        phase("50 × stats", stats)
        phase("a hundredth is rewritten again and again", lambda: churn(socket, entries))
        phase("list 10,000 keys", lambda: len(answer("cache.keys", limit=10_000)()["keys"]))
        phase("clear --dry-run", answer("cache.clear", pattern="page:3:*", dry_run=True))
        phase("eviction: a fifth is new", lambda: fill(socket, entries, entries // 5))
        large = os.urandom(min(4 << 20, int(0.95 * largest(entries))))
        phase(f"a value of {len(large) / 1e6:.1f} MB", lambda: cache.set("large", large))
        phase("clear by pattern, a tenth", answer("cache.clear", pattern="page:3:*"))
        phase("make stale by pattern", answer("cache.clear", pattern="page:4:*", stale=True))
        phase("set_many with a tag, a tenth", lambda: fill(socket, 0, tenth, tags=["site"]))
        phase("clear by tag, a tenth", answer("cache.clear", tags=["site"]))
        phase("set_many, 2 s to live, a tenth", lambda: fill(socket, 0, tenth, ttl=2.0))
        phase("fill up", lambda: fill(socket, 0, entries))
        phase("to half the size", optimize("memory_focused"))
        phase("back to the whole size", optimize("balanced"))
        phase("fill up again", lambda: fill(socket, 0, entries))

        def restart() -> dict[str, float]:
            daemon.kill()
            seconds = daemon.start()
            time.sleep(3)
            return {"seconds_away": seconds, "entries": daemon.stats()["entries"]}

        phase("kill -9 and start", restart)
        phase("clear", answer("cache.clear"))
    return rows


def memory(daemon: Daemon, entries: int) -> dict[str, float]:
    """Bytes an entry takes beside its key and value, of a store that is full."""
    before = daemon.private_bytes()
    fill(daemon.socket, 0, entries)
    stats = daemon.stats()
    geometry = Geometry.for_limits(entries, max_bytes(entries))
    index = geometry.small_at / entries
    own = (daemon.private_bytes() - before) / entries
    return {
        "entries": stats["entries"],
        "record": L.RECORD_OVERHEAD,
        "index": index,
        "daemon": own,
        "together": L.RECORD_OVERHEAD + index + own,
    }


def read_cost(large: Daemon, small: Daemon, entries: int) -> Spread:
    """How many times what it costs among few entries a read costs among many, round by round."""
    acts: dict[str, Callable[[], object]] = {}
    optimizers = []
    for kind, daemon, count in (("small", small, SMALL), ("large", large, entries)):
        optimizer = PerformanceOptimizer(str(daemon.socket))
        optimizers.append(optimizer)
        numbers = cycle(random.Random(5).sample(range(count), min(count, 200_000)))
        acts[kind] = partial(read_one, optimizer.sync.cache, numbers)
    # By processor time, in turns: others on the machine take turns away, but none of that.
    found: dict[str, list[float]] = {kind: [] for kind in acts}
    for _ in range(ROUNDS):
        for kind, act in acts.items():
            began = time.thread_time_ns()
            for _ in range(READS):
                act()
            found[kind].append((time.thread_time_ns() - began) / READS)
    for optimizer in optimizers:
        optimizer.close()
    return ratio(found["small"], found["large"])


def read_one(cache: SyncCache, numbers: Iterator[int]) -> None:
    assert cache.get(name(next(numbers))) is not None


def main() -> None:
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--entries", metavar="N", type=int, default=1_000_000)
    parser.add_argument("--readers", metavar="N", type=int, default=16)
    parser.add_argument("--rate", metavar="N", type=int, default=5_000, help="sets a second")
    parser.add_argument("--where", action="store_true", help="print which steps were long")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with running(options.entries, where=options.where) as daemon:
        rows += stalls(daemon, options.entries, options.readers, options.rate)
        per_entry = memory(daemon, options.entries)
        say("bytes an entry beside key and value:")
        say("  " + ", ".join(f"{what} {count:.1f}" for what, count in per_entry.items()))
        with running(SMALL) as small:
            fill(small.socket, 0, SMALL)
            cost = read_cost(daemon, small, options.entries)
        say(f"a read among {options.entries:,} entries, of one among {SMALL:,}: {cost}")
        rows.append({"what": "bytes an entry", **per_entry})
        rows.append({"what": "read", **cost._asdict()})
    save(options.json, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--daemon"]:
        rest = sys.argv[3:]
        sys.exit(
            probed_daemon(Path(sys.argv[2]), "--where" in rest, [w for w in rest if w != "--where"])
        )
    main()
