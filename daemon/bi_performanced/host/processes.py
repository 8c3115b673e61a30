"""What Linux tells of one process in /proc, and never of another that has its pid by now.

A process's folder is opened once for each look: what is read below an open folder is that
process's, or fails when it has ended.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from bi_performanced.host import Unknown
from bi_performanced.host.procfs import TICK, Pair
from bi_performanced.host.text import reading, text, whole

PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def numbered_as_here(root: Path) -> bool:
    """Whether /proc numbers processes as this process's PID namespace does."""
    try:
        return os.readlink(root / "proc/self") == str(os.getpid())  # noqa: PTH115 (text)
    except OSError:
        # Hidden altogether: nothing can be mistaken there.
        return True


class Times(NamedTuple):
    """What every user may read, where /proc is not hidden."""

    started: int
    """Ticks after boot; with the pid it names one process and no later one of the same pid."""
    cpu_seconds: float
    threads: int
    rss_bytes: int


class Folder:
    """A process's folder in /proc, open; a context manager. Raises Unknown when it is not there."""

    def __init__(self, root: Path, pid: int) -> None:
        self._own = pid == os.getpid()
        # A process in a PID namespace may see the /proc of another: only `self` is it everywhere.
        self._path = root / "proc" / ("self" if self._own else str(pid))
        self._real = root == Path("/")
        # Named by the file that is read first, for people.
        with reading(self._path / "stat"):
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise OSError(error.errno, error.strerror) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def times(self) -> Times:
        """Identity, processor time, threads and resident memory."""
        path = self._path / "stat"
        with reading(path):
            # The name, in parentheses, may hold anything; what follows the last one is ours.
            words = text("stat", self._fd).rpartition(")")[2].split()
            if words[0] in ("Z", "X"):
                raise Unknown(f"{path}: the process has ended")
            return Times(
                started=whole(words[19]),
                cpu_seconds=(whole(words[11]) + whole(words[12])) / TICK,
                threads=whole(words[17]),
                rss_bytes=whole(words[21]) * PAGE,
            )

    def swap_bytes(self) -> int:
        """Bytes in swap."""
        return self._line("status", "VmSwap")

    def pss_bytes(self) -> int:
        """Resident bytes, shared ones by share: only of one's own user's processes.

        The kernel walks all the process's memory for it: milliseconds for a large one.
        """
        return self._line("smaps_rollup", "Pss")

    def _line(self, name: str, wanted: str) -> int:
        path = self._path / name
        with reading(path):
            for line in text(name, self._fd).splitlines():
                found, _, rest = line.partition(":")
                if found == wanted:
                    words = rest.split()
                    if words[1:] != ["kB"]:
                        raise ValueError
                    return whole(words[0]) * 1024
            raise Unknown(f"{path}: does not tell {wanted}")

    def disk_bytes(self) -> Pair:
        """Bytes that it made the disks read and write; only of one's own user's processes."""
        path = self._path / "io"
        with reading(path):
            lines = (line.partition(": ") for line in text("io", self._fd).splitlines())
            found = {name: rest for name, _, rest in lines}
            return whole(found["read_bytes"]), whole(found["write_bytes"])

    def open_files(self) -> int:
        """Open descriptors; before Linux 6.2 only of one's own user's processes."""
        path = self._path / "fd"
        with reading(path):
            # Since 6.2 the folder's size is their number, and nothing has to be listed.
            count = os.stat("fd", dir_fd=self._fd).st_size if self._real else 0
            if not count:
                fd = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
                try:
                    count = len(os.listdir(fd)) - self._own  # noqa: PTH208 (a count)
                finally:
                    os.close(fd)
            # Without the folder that is open for this look.
            return count - self._own
