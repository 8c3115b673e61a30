"""What a process tells of itself in its page, for a daemon that may not look.

Another user's proportional set size, disk traffic and descriptors are hidden from the daemon, and
everything of a process in another PID namespace. The process can see its own: cheaply enough to
write it down every ten seconds, from where a hit's duration is recorded anyway.
"""

from __future__ import annotations

import os
import time
from typing import Final

from bi_performance_wire import layout as L

EVERY_NS: Final = 10 * 10**9
PSS_EVERY_NS: Final = 60 * 10**9
PSS_COST: Final = 2000
"""A walk over the memory is followed by a pause of so many times what it took."""
PSS_MOST: Final = 256 << 20
"""Resident bytes beyond which the memory is not walked: some milliseconds."""
FILES_MOST: Final = 4096
"""Descriptors beyond which they are not listed, where the kernel does not tell their number."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class OwnFigures:
    """Writes this process's figures into its page, when it is time. Never raises."""

    def __init__(self) -> None:
        self.due = 0
        """The boot clock in ns from which on `write` is to be called."""
        self._pss_due = 0

    def write(self, page: memoryview[int], now: int) -> None:
        """Write what can be known at `now` on the boot clock; what cannot stays unknown."""
        # First: other threads come here too, and one is enough.
        self.due = now + EVERY_NS
        try:
            self._write(page, now)
        except Exception:
            # Whatever a system's /proc is like: the scraper asked for a value of the cache.
            return

    def _write(self, page: memoryview[int], now: int) -> None:
        page[L.P_OWN_CPU_NS] = time.process_time_ns() + 1
        rss = int(_read("statm").split()[1]) * _PAGE
        page[L.P_OWN_RSS] = rss + 1
        status = _fields("status")
        page[L.P_OWN_THREADS] = int(status[b"Threads"]) + 1
        page[L.P_OWN_SWAP] = _bytes(status[b"VmSwap"]) + 1
        files = _open_files(int(status[b"FDSize"]))
        page[L.P_OWN_FILES] = 0 if files is None else files + 1
        try:
            io = _fields("io")
        except OSError:
            # A kernel without the accounting of tasks.
            page[L.P_OWN_READ] = page[L.P_OWN_WRITTEN] = 0
        else:
            page[L.P_OWN_READ] = int(io[b"read_bytes"]) + 1
            page[L.P_OWN_WRITTEN] = int(io[b"write_bytes"]) + 1
        page[L.P_OWN_AT] = now
        if not self._pss_due:
            # Not while attaching: a child that lives for a moment would pay for its parent's size.
            self._pss_due = now + EVERY_NS
        elif now >= self._pss_due and rss <= PSS_MOST:
            self._pss_due = now + PSS_EVERY_NS
            began = time.monotonic_ns()
            page[L.P_OWN_PSS] = _bytes(_fields("smaps_rollup")[b"Pss"]) + 1
            page[L.P_OWN_PSS_AT] = now
            took = time.monotonic_ns() - began
            self._pss_due = now + max(PSS_EVERY_NS, PSS_COST * took)


def _read(name: str) -> bytes:
    fd = os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 14)
    finally:
        os.close(fd)


def _fields(name: str) -> dict[bytes, bytes]:
    lines = (line.partition(b":") for line in _read(name).splitlines())
    return {field: rest.strip() for field, _, rest in lines}


def _bytes(field: bytes) -> int:
    number, unit = field.split()
    if unit != b"kB":
        raise ValueError(field)
    return int(number) * 1024


def _open_files(slots: int) -> int | None:
    # Since Linux 6.2 the folder's size is their number.
    count = os.stat("/proc/self/fd").st_size  # noqa: PTH116 (called often)
    if count:
        return count
    # The folder's own descriptor is open while it is listed.
    return len(os.listdir("/proc/self/fd")) - 1 if slots <= FILES_MOST else None  # noqa: PTH208
