"""Readers that are elsewhere, stopped, foreign or hostile: what they can and cannot do."""

from __future__ import annotations

import ast
import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.reader import StoreReader
from bi_performance_wire import layout as L
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until

GROUP = 12345
USER = 12002


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own may not be."""
    folder = Path(tempfile.mkdtemp(prefix="bi-performance-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_user(uid: int, gid: int, groups: list[int], work: Callable[[], Any]) -> Any:
    """The result of `work` in a forked process of another user; raises what it raised."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            result: Any = (True, work())
        except BaseException as error:
            result = (False, f"{type(error).__name__}: {error}")
        os.write(theirs, repr(result).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        good, found = ast.literal_eval(pipe.read())
    os.waitpid(pid, 0)
    assert good, found
    return found


def share_with_group(daemon: DaemonProcess) -> None:
    """As a service with `Group=` has it."""
    os.chown(daemon.runtime, 0, GROUP)
    os.chown(daemon.socket, 0, GROUP)


IN_NAMESPACES = """
import os, sys
from bi_performance.optimizer import PerformanceOptimizer
assert os.getpid() == 1, os.getpid()
cache = PerformanceOptimizer(sys.argv[1]).sync.cache
assert cache.get("from outside") == ["value"], cache.get("from outside")
assert cache.set("from inside", os.getpid())
assert cache.get("from inside") == 1
print("read and written as process 1")
"""


@pytest.mark.root
def test_a_process_in_another_pid_and_user_namespace_reads_in_place(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        assert optimizer.sync.cache.set("from outside", ["value"])
        namespaces = ["unshare", "--user", "--map-root-user", "--pid", "--mount-proc", "--fork"]
        command = [sys.executable, "-c", IN_NAMESPACES, str(daemon.socket)]
        both = [
            subprocess.Popen(
                [*namespaces, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            # Two at once: both are process 1 of their namespace.
            for _ in range(2)
        ]
        for each in both:
            out, said = each.communicate(timeout=30)
            assert out == "read and written as process 1\n", said
        assert optimizer.sync.cache.get("from inside") == 1
        optimizer.close()


@pytest.mark.root
def test_another_user_of_the_group_reads_in_place_and_others_do_not(open_folder: Path) -> None:
    with DaemonProcess(open_folder) as daemon:
        share_with_group(daemon)
        mine = PerformanceOptimizer(str(daemon.socket))
        assert mine.sync.cache.set("key", {"a": 1})
        assert mine.sync.cache.get("key") == {"a": 1}

        def use() -> tuple[Any, bool, Any]:
            cache = PerformanceOptimizer(str(daemon.socket)).sync.cache
            return cache.get("key"), cache.set("theirs", os.getuid()), cache.get("theirs")

        assert as_user(USER, USER, [GROUP], use) == ({"a": 1}, True, USER)
        assert mine.sync.cache.get("theirs") == USER
        assert as_user(USER, USER, [], use) == (None, False, None)
        mine.close()


@pytest.mark.root
def test_another_user_cannot_write_to_the_store_it_was_handed(open_folder: Path) -> None:
    with DaemonProcess(open_folder) as daemon:
        share_with_group(daemon)
        mine = PerformanceOptimizer(str(daemon.socket))
        assert mine.sync.cache.set("key", "unchanged")
        assert mine.sync.cache.get("key") == "unchanged"

        def attack() -> list[str]:
            with RawClient(daemon.socket) as client:
                client.send("attach", instance=bytes(16), pid=0, name="attacker")
                import socket

                _, fds, _, _ = socket.recv_fds(client.socket, 65536, 8)
                store = fds[0]
                refused = []
                attempts: dict[str, Callable[[], object]] = {
                    "reopen": lambda: os.open(f"/proc/self/fd/{store}", os.O_RDWR),
                    "truncate": lambda: os.truncate(f"/proc/self/fd/{store}", 0),
                    "ftruncate": lambda: os.ftruncate(store, 0),
                    "write": lambda: os.pwrite(store, b"x", 0),
                    "map": lambda: mmap.mmap(store, L.PAGE, prot=mmap.PROT_WRITE),
                    "chmod": lambda: os.fchmod(store, 0o666),
                    "path": lambda: os.open(daemon.runtime / "store", os.O_RDONLY),
                    "shrink the page": lambda: os.ftruncate(fds[1], 0),
                    "shrink the touches": lambda: os.ftruncate(fds[2], 0),
                }
                for name, attempt in attempts.items():
                    try:
                        attempt()
                    except OSError as error:
                        assert error.errno in (errno.EACCES, errno.EPERM, errno.EBADF, errno.EINVAL)
                        refused.append(name)
                return refused

        assert as_user(USER, USER, [GROUP], attack) == [
            "reopen",
            "truncate",
            "ftruncate",
            "write",
            "map",
            "chmod",
            "path",
            "shrink the page",
            "shrink the touches",
        ]
        assert mine.sync.cache.get("key") == "unchanged"
        mine.close()


def test_a_client_that_scribbles_over_its_pages_misstates_only_itself(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        honest = PerformanceOptimizer(str(daemon.socket))
        hostile = PerformanceOptimizer(str(daemon.socket))
        cache = honest.sync.cache
        assert cache.set_many({f"k{n}": n for n in range(500)}) == 500
        for n in range(500):
            assert cache.get(f"k{n}") == n
        assert hostile.sync.cache.get("k1") == 1
        reader = hostile._link.reader
        assert isinstance(reader, StoreReader)
        for word in range(len(reader.page)):
            reader.page[word] = 2**64 - 1
        for at in range(0, len(reader._touches), 7):
            reader._touches[at] = 255
        stats = cache.stats()
        assert stats is not None
        assert 500 <= stats["hits"] < 100_000, "the absurd figures were not believed"
        assert stats["clients"] == 2
        status = honest.sync.cache.stats()
        assert status is not None and status["entries"] == 500
        assert cache.set_many({f"more{n}": n for n in range(20_000)}) == 20_000
        assert cache.get("more19999") == 19_999
        with RawClient(daemon.socket) as client:
            assert client.result("status")["components"]["cache"]["untrusted_clients"] == 1
        honest.close()
        hostile.close()


def test_a_reader_that_is_stopped_in_the_middle_delays_nobody(tmp_path: Path) -> None:
    """It is stopped at any point of its reads; writes, evictions, deletes, a resize go on."""
    with DaemonProcess(tmp_path, env={"PERFORMANCE_CACHE_MAX_SIZE": "2000"}) as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        cache = optimizer.sync.cache
        assert cache.set("key", "x" * 3000)
        code = (
            "import sys\nfrom bi_performance.optimizer import PerformanceOptimizer\n"
            "cache = PerformanceOptimizer(sys.argv[1]).sync.cache\n"
            "assert cache.get('key')\nprint('reading', flush=True)\n"
            "while True:\n    found = cache.get('key')\n"
            "    assert found is None or found == 'x' * 3000 or found == 'y' * 3000\n"
        )
        reader = subprocess.Popen(
            [sys.executable, "-c", code, str(daemon.socket)], stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline() == "reading\n"
            for round_ in range(20):
                reader.send_signal(signal.SIGSTOP)
                values = {f"{round_}:{n}": os.urandom(3000) for n in range(300)}
                assert cache.set_many(values) == 300
                assert cache.get(f"{round_}:299") == values[f"{round_}:299"]
                assert cache.delete(f"{round_}:299")
                assert cache.get(f"{round_}:299") is None
                assert cache.set("key", "xy"[round_ % 2] * 3000)
                reader.send_signal(signal.SIGCONT)
            assert reader.poll() is None, "it reads on, and saw no wrong value"
        finally:
            reader.kill()
            reader.wait()
            reader.stdout.close()
        optimizer.close()


@pytest.mark.root
def test_a_full_file_system_is_a_clear_error_and_kills_nobody(open_folder: Path) -> None:
    small = open_folder / "small"
    small.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "none", str(small)], check=True
    )
    try:
        file = open_folder / "performance.toml"
        file.write_text(f'[performance.cache]\nstore_dir = "{small}"\nmax_bytes = "256 MiB"\n')
        daemon = DaemonProcess(open_folder, "--config", str(file))
        with daemon:
            optimizer = PerformanceOptimizer(str(daemon.socket))
            cache = optimizer.sync.cache
            assert cache.set("first", "kept")
            free = os.statvfs(small)
            with (small / "filler").open("wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize)
            for n in range(400):
                value = os.urandom(100_000)
                assert cache.set(f"k{n}", value)
                assert cache.get(f"k{n}") == value
                assert cache.get("first") in ("kept", None)
            with RawClient(daemon.socket) as client:

                def reason() -> str | None:
                    found: str | None = client.result("status")["components"]["cache"].get("reason")
                    return found

                said = wait_until(reason, what="the reason")
                for _ in range(2):
                    error = client.error(
                        "cache.set", key="large", payload=b"\0" + b"\xa1" * (5 << 20)
                    )
                    assert error["code"] == "too_large", "not: try again"
                    assert "No space left" in error["message"]
            assert "No space left" in said and str(small) in said
            optimizer.close()
            daemon.kill9()
            (small / "store").unlink()
            free = os.statvfs(small)
            with (small / "filler2").open("wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize)
            with pytest.raises(AssertionError, match="No space left"):
                daemon.start()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_store_that_grows_under_load_loses_nothing(tmp_path: Path) -> None:
    """Attached readers move to each larger store; entries, deletions and lifetimes go with them."""
    with DaemonProcess(tmp_path) as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        cache = optimizer.sync.cache
        wrong: list[str] = []
        ended = threading.Event()

        def read() -> None:
            other = PerformanceOptimizer(str(daemon.socket))
            while not ended.is_set():
                for n in range(0, 600, 7):
                    found = other.sync.cache.get(f"k{n}")
                    if found is not None and found[:8] != b"%08d" % n:
                        wrong.append(f"k{n}")
            other.close()

        thread = threading.Thread(target=read)
        thread.start()
        try:
            for n in range(600):
                assert cache.set(f"k{n}", b"%08d" % n + os.urandom(150_000))
                if n % 10 == 9:
                    assert cache.delete(f"k{n - 4}")
        finally:
            ended.set()
            thread.join()
        assert not wrong
        events = [each for each in daemon.log_events() if each["event"] == "cache.resized"]
        assert events, "90 MB do not fit into the first 32 MiB"
        for n in range(600):
            found = cache.get(f"k{n}")
            if n % 10 == 5:
                assert found is None, "deleted"
            else:
                assert found is not None and found[:8] == b"%08d" % n
        daemon.restart()
        wait_until(lambda: cache.get("k0") is not None, what="the entries after a restart")
        assert all((cache.get(f"k{n}") is None) == (n % 10 == 5) for n in range(600))
        optimizer.close()


@pytest.mark.root
def test_by_default_a_store_can_grow_to_its_limit_where_the_file_system_is_small() -> None:
    """Where two stores cannot be there at once, it has that size from the start."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=110m", "none", folder], check=True)
        try:
            with DaemonProcess(Path(folder)) as daemon:
                optimizer = PerformanceOptimizer(str(daemon.socket))
                for n in range(130):
                    assert optimizer.sync.cache.set(f"k{n}", os.urandom(512 << 10))
                with RawClient(daemon.socket) as client:
                    stats = client.result("cache.stats")
                    assert stats["max_bytes"] > 32 << 20 and stats["evictions"] > 0
                    assert client.result("status")["status"] == "ok"
                optimizer.close()
        finally:
            subprocess.run(["umount", folder], check=True)
