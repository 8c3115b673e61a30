"""A store that shrinks where memory is short: it takes none first, and loses no truth."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bi_performance.client import SyncCache
from bi_performance.optimizer import PerformanceOptimizer
from support.cgroup import memory_group
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until

MIB = 1 << 20
SIZE = 64 << 10


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    options = f"size={size},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def small_host(folder: Path) -> Iterator[tuple[DaemonProcess, Path]]:
    """A daemon whose store lies on a small tmpfs."""
    with ExitStack() as stack:
        place = stack.enter_context(tmpfs(folder / "small", 400 * MIB))
        (folder / "config").mkdir()
        (folder / "config" / "performance.toml").write_text(
            f'[performance.cache]\nstore_dir = "{place}"\nmax_bytes = "96 MiB"\n'
        )
        daemon = stack.enter_context(DaemonProcess(folder))
        yield daemon, place


def value_of(key: str, number: int) -> bytes:
    return f"{key}={number};".encode().ljust(SIZE, b"x")


def fill(cache: SyncCache, client: RawClient, place: Path) -> list[str]:
    """Store until the store has its full size, and leave no room beside it for half of it."""
    keys = [f"page:{n}" for n in range(1400)]
    for key in keys:
        assert cache.set(key, os.urandom(SIZE - 1000))
    wait_until(lambda: store_limit(client) > 140 * MIB, what="the full store")
    # Those it has grown out of are freed once everybody who read there has moved.
    wait_until(lambda: moved(cache, place), within=60, what="the earlier stores' memory")
    with (place / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, room(place) - 16 * MIB)
    return keys


def store_limit(client: RawClient) -> int:
    found: int = client.result("cache.stats")["levels"]["local"]["store_bytes"]
    return found


@pytest.mark.root
def test_reads_and_writes_go_on_while_a_full_store_is_halved(tmp_path: Path) -> None:
    with small_host(tmp_path) as (daemon, place), RawClient(daemon.socket, timeout=60) as client:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        fill(optimizer.sync.cache, client, place)
        ended = threading.Event()
        wrong: list[str] = []
        stored: dict[str, int] = {}

        def write() -> None:
            cache, rng = optimizer.sync.cache, random.Random(1)
            number = 0
            while not ended.is_set():
                number += 1
                key = f"live:{rng.randrange(200)}"
                if cache.set(key, value_of(key, number)):
                    stored[key] = number

        def read() -> None:
            cache, rng = optimizer.sync.cache, random.Random(2)
            while not ended.is_set():
                key = f"live:{rng.randrange(200)}"
                least = stored.get(key, 0)
                found = cache.get(key)
                if found is not None:
                    name, _, rest = found.partition(b"=")
                    if name != key.encode() or int(rest.partition(b";")[0]) < least:
                        wrong.append(f"{key}: {found[:40]!r}, at least {least}")

        threads = [threading.Thread(target=work) for work in (write, read, read)]
        for thread in threads:
            thread.start()
        try:
            for size in (48 * MIB, 24 * MIB):
                client.result("server.adjust", setting="cache.max_bytes", value=size)
                assert store_limit(client) < 2 * size
                wait_until(lambda: len(stored) > 20, what="writes")
                stored.clear()
        finally:
            ended.set()
            for thread in threads:
                thread.join(30)
        assert wrong == []
        assert daemon.process is not None and daemon.process.poll() is None
        assert optimizer.sync.cache.set("after", 1) and optimizer.sync.cache.get("after") == 1
        wait_until(lambda: room(place) > 100 * MIB, within=40, what="the memory")
        optimizer.close()
        daemon.restart()
        assert client_status(daemon) == "ok"


def room(place: Path) -> int:
    stat = os.statvfs(place)
    return stat.f_bavail * stat.f_frsize


def client_status(daemon: DaemonProcess) -> str:
    with RawClient(daemon.socket) as client:
        found: str = client.result("status")["status"]
        return found


@pytest.mark.root
def test_a_daemon_killed_while_it_shrinks_comes_up_with_true_values(tmp_path: Path) -> None:
    with small_host(tmp_path) as (daemon, place), RawClient(daemon.socket, timeout=60) as client:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        cache = optimizer.sync.cache
        keys = fill(cache, client, place)
        for number, key in enumerate(keys):
            cache.set(key, value_of(key, number))
        assert cache.delete(keys[-1])
        tracer = subprocess.Popen(
            [
                *("strace", "-f", "-qq", "-p", str(daemon.pid), "-o", "/dev/null"),
                *("-e", "trace=madvise", "-e", "inject=madvise:signal=SIGKILL:when=1"),
            ]
        )
        try:
            wait_until(lambda: traced(daemon.pid), what="the tracer")
            client.send("server.adjust", setting="cache.max_bytes", value=24 * MIB)
            assert client.receive() is None, "it was killed while it gave memory back"
        finally:
            tracer.kill()
            tracer.wait()
        daemon.restart()
        found = {key: cache.get(key) for key in keys}
        assert found[keys[-1]] is None, "what was deleted stays deleted"
        for number, key in enumerate(keys):
            assert found[key] in (None, value_of(key, number))
        assert cache.set("after", 1) and cache.get("after") == 1
        optimizer.close()


def traced(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("TracerPid")).split()[1] != "0"


def moved(cache: SyncCache, place: Path) -> bool:
    """Whether the earlier stores are gone; a process moves when it reads."""
    cache.get("any")
    return room(place) > 240 * MIB


@pytest.mark.root
def test_a_store_does_not_grow_where_others_would_be_killed_for_it(tmp_path: Path) -> None:
    """In a control group that has no room for it the store stays, whatever the settings say."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as store,
        memory_group(300 * MIB) as group,
        group.ballast(130 * MIB),
    ):
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "performance.toml").write_text(
            f'[performance.cache]\nstore_dir = "{store}"\nmax_bytes = "1 GiB"\n'
        )
        command = (*group.shell, sys.executable, "-m", "bi_performanced.main")
        with DaemonProcess(tmp_path, python="sh", program=command) as daemon:
            optimizer = PerformanceOptimizer(str(daemon.socket))
            cache = optimizer.sync.cache
            for number in range(1000):
                value = os.urandom(SIZE - 1000)
                assert cache.set(f"page:{number}", value)
            with RawClient(daemon.socket, timeout=60) as client:
                part = client.result("status")["components"]["cache"]
                assert part["status"] == "degraded" and "not enough memory" in part["reason"]
                error = client.error("server.adjust", setting="cache.max_size", value=50_000_000)
                assert error["code"] == "unavailable" and "nothing was changed" in error["message"]
            assert cache.get("page:999") == value
            # What is kept and configured is no more than that at the next start either.
            daemon.restart()
            assert cache.set("after", 1) and cache.get("after") == 1
            optimizer.close()


@pytest.mark.root
def test_many_changes_of_size_do_not_fill_the_file_system(tmp_path: Path) -> None:
    with small_host(tmp_path) as (daemon, place), RawClient(daemon.socket, timeout=60) as client:
        attached = PerformanceOptimizer(str(daemon.socket))
        assert attached.sync.cache.get("nothing") is None
        for number in range(30):
            client.result("server.adjust", setting="cache.max_size", value=10_001 + number)
        assert room(place) > 150 * MIB
        attached.close()
