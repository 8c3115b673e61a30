"""Many callers of one key in several processes at once, as a program of its own.

    python -m support.crowd '{"socket": …, "folder": …, "processes": 8, "callers": 125}'

Each factory call writes its process id as a line to `folder/calls`; each process writes what its
callers got as one JSON line to its standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TESTS = Path(__file__).parents[1]


class Crowd:
    """The running program; started and waiting to begin inside, gone outside."""

    def __init__(self, socket: Path, folder: Path, **how: Any) -> None:
        self._calls = folder / "calls"
        self._go = folder / "go"
        self._calls.touch()
        self._processes = how.setdefault("processes", 2)
        how |= {"socket": str(socket), "folder": str(folder)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.crowd", json.dumps(how)],
            stdout=subprocess.PIPE,
            cwd=TESTS,
            start_new_session=True,
        )

    @property
    def group(self) -> int:
        """The process group of all its processes."""
        return self._process.pid

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        for _ in range(self._processes):
            assert self._process.stdout.readline() == b"ready\n"
        return self

    def begin(self) -> None:
        self._go.touch()

    def callers(self) -> list[int]:
        """The process ids of those whose factory was called, in order."""
        return [int(line) for line in self._calls.read_text().split()]

    def results(self, count: int | None = None) -> list[dict[str, Any]]:
        """What so many processes, by default all, tell."""
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline() for _ in range(count or self._processes)]
        return [json.loads(line) for line in lines]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _one_process(how: dict[str, Any], world: str) -> dict[str, Any]:
    """Call as often as wanted at once, and tell what came of it."""
    from bi_performance.optimizer import PerformanceOptimizer

    optimizer = PerformanceOptimizer(how["socket"])
    optimizer.sync.cache.get("attach")
    folder, key, ttl = Path(how["folder"]), how.get("key", "k"), 60.0
    seconds = how.get("seconds", 0.3)

    def called() -> int:
        with (folder / "calls").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return os.getpid()

    def slow() -> int:
        found = called()
        time.sleep(seconds)
        return found

    os.write(1, b"ready\n")
    while not (folder / "go").exists():
        time.sleep(0.001)
    took: list[float] = []
    values: set[int] = set()

    def note(began: float, value: int) -> None:
        took.append(time.monotonic() - began)
        values.add(value)

    if world == "threads":

        def call() -> None:
            note(time.monotonic(), optimizer.sync.cache.get_or_set(key, slow, ttl))

        threads = [threading.Thread(target=call) for _ in range(how["callers"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elif world == "asyncio":

        async def slow_asyncio() -> int:
            found = called()
            await asyncio.sleep(seconds)
            return found

        async def call_asyncio() -> None:
            note(time.monotonic(), await optimizer.cache.get_or_set(key, slow_asyncio, ttl))

        async def all_asyncio() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(how["callers"]):
                    group.create_task(call_asyncio())

        asyncio.run(all_asyncio())
    else:
        import trio

        async def slow_trio() -> int:
            found = called()
            await trio.sleep(seconds)
            return found

        async def call_trio() -> None:
            note(time.monotonic(), await optimizer.cache.get_or_set(key, slow_trio, ttl))

        async def all_trio() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(how["callers"]):
                    nursery.start_soon(call_trio)

        trio.run(all_trio)
    return {"pid": os.getpid(), "values": sorted(values), "calls": len(took), "slowest": max(took)}


def main() -> None:
    import bi_performance.optimizer  # noqa: F401 (once for all)

    how = json.loads(sys.argv[1])
    worlds = how.get("worlds", ["threads", "asyncio", "trio"])
    for number in range(how["processes"]):
        if os.fork() == 0:
            found = _one_process(how, worlds[number % len(worlds)])
            os.write(1, json.dumps(found).encode() + b"\n")
            os._exit(0)
    signal.pause()


if __name__ == "__main__":
    main()
