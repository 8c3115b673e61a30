"""A real control group with a memory limit, version 2 or 1, and what fills it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.daemon import wait_until

_BASE = Path("/sys/fs/cgroup")
_BALLAST = """\
import sys
held = bytearray(int(sys.argv[1]))
held[::4096] = b"x" * len(held[::4096])
print("held", flush=True)
sys.stdin.read()
"""


class MemoryGroup:
    def __init__(self, folder: Path, *, second: bool) -> None:
        self.folder = folder
        self.shell = ("-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(folder))
        """Arguments of sh to run what follows within the group."""
        self._used = folder / ("memory.current" if second else "memory.usage_in_bytes")
        below = "" if second else "total_"
        self._files = (f"{below}inactive_file", f"{below}active_file")
        self._limit = folder / ("memory.max" if second else "memory.limit_in_bytes")

    def limit(self, count: int) -> None:
        self._limit.write_text(str(count))

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def used(self) -> int:
        """Bytes that are charged, without the pages of files: the kernel drops those."""
        words = (self.folder / "memory.stat").read_text().split()
        stat = dict(zip(words[::2], words[1::2], strict=True))
        return int(self._used.read_text()) - sum(int(stat[each]) for each in self._files)

    def free(self) -> int:
        return int(self._limit.read_text()) - self.used()

    @contextmanager
    def ballast(self, count: int) -> Iterator[None]:
        """A process in the group that holds so many bytes."""
        process = subprocess.Popen(
            ["sh", *self.shell, sys.executable, "-c", _BALLAST, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield
            assert process.poll() is None, "it was killed for want of memory"
        finally:
            process.kill()
            process.communicate()


@contextmanager
def memory_group(limit: int, name: str = "test") -> Iterator[MemoryGroup]:
    """A group of its own; what is in it at the end goes back to where this process is."""
    second = (_BASE / "cgroup.controllers").exists()
    above = _BASE if second else _BASE / "memory"
    if second:
        (above / "cgroup.subtree_control").write_text("+memory")
    folder = above / f"bi-performance-{name}-{os.getpid()}"
    folder.mkdir()
    group = MemoryGroup(folder, second=second)
    try:
        group.limit(limit)
        yield group
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            (above / "cgroup.procs").write_text(pid)
        wait_until(lambda: _removed(folder), what="the end of the group")


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
