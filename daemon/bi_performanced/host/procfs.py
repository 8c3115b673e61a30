"""What Linux tells in /proc and /sys, read without any library (proc(5), cgroups(7)).

Each function reads below a root, raises Unknown with the file and the fault, and believes nothing:
a file may be missing, hidden by a service's hardening, cut short, or of another form.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from bi_performanced.host import Unknown

SECTOR: Final = 512
"""Bytes of a sector in /proc/diskstats, whatever the disk's own are."""
TICK: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_NO_DISKS: Final = ("loop", "ram", "zram", "dm-", "md", "sr", "fd")
"""Block devices that are none, or whose traffic is counted at the disks below them."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unknown(f"{path}: {error.strerror or error}") from None
    except (ValueError, IndexError, KeyError):
        raise Unknown(f"{path}: is not of the form that is known") from None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def cpu_seconds(root: Path) -> tuple[float, float]:
    """Seconds of all processors together since boot: in use, and in all."""
    path = root / "proc/stat"
    with _reading(path):
        words = _text(path).split("\n", 1)[0].split()
        if words[0] != "cpu" or len(words) < 5:
            raise ValueError
        # Guest time, from the ninth on, is within user time already.
        ticks = [int(word) for word in words[1:9]]
        total = sum(ticks)
        idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
        return (total - idle) / TICK, total / TICK


def memory(root: Path) -> tuple[int, int, int, int]:
    """Bytes: total and available memory, total and used swap."""
    path = root / "proc/meminfo"
    with _reading(path):
        found = {}
        for line in _text(path).splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if words:
                found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
        swap = found["SwapTotal"]
        return found["MemTotal"], found["MemAvailable"], swap, swap - found["SwapFree"]


def disk_bytes(root: Path) -> tuple[int, int]:
    """Bytes read from and written to all disks since boot."""
    path = root / "proc/diskstats"
    with _reading(path):
        whole = set(os.listdir(root / "sys/block"))  # noqa: PTH208 (names)
        read = written = disks = 0
        for line in _text(path).splitlines():
            words = line.split()
            if words[2] in whole and not words[2].startswith(_NO_DISKS):
                disks += 1
                read += int(words[5]) * SECTOR
                written += int(words[9]) * SECTOR
        if not disks:
            raise Unknown(f"{path}: there are no disks")
        return read, written


def network_bytes(root: Path) -> tuple[int, int]:
    """Bytes received and sent since boot on all interfaces but loopback."""
    path = root / "proc/net/dev"
    with _reading(path):
        received = sent = interfaces = 0
        for line in _text(path).splitlines()[2:]:
            name, _, rest = line.partition(":")
            if name.strip() != "lo":
                words = rest.split()
                interfaces += 1
                received += int(words[0])
                sent += int(words[8])
        if not interfaces:
            raise Unknown(f"{path}: there is no interface but loopback")
        return received, sent


def load(root: Path) -> tuple[float, float, float]:
    """The load averages over 1, 5 and 15 minutes."""
    path = root / "proc/loadavg"
    with _reading(path):
        first, second, third = (float(word) for word in _text(path).split()[:3])
        return first, second, third


def pressure(root: Path, resource: str) -> dict[str, float]:
    """Pressure stall information: percent of the last ten seconds, by `some` and `full`."""
    path = root / "proc/pressure" / resource
    with _reading(path):
        found = {}
        for line in _text(path).splitlines():
            kind, average, *_ = line.split()
            found[kind] = float(average.removeprefix("avg10="))
        return found


def open_files(root: Path) -> tuple[int, int]:
    """Open file descriptions of the host, and the limit."""
    path = root / "proc/sys/fs/file-nr"
    with _reading(path):
        used, free, most = (int(word) for word in _text(path).split())
        return used - free, most


class ProcessTimes(NamedTuple):
    """What says which process a pid is, and how long it has run."""

    started: int
    """Ticks after boot; with the pid it names one process and no later one of the same pid."""
    cpu_seconds: float
    threads: int
    rss_bytes: int


def process(root: Path, pid: int) -> ProcessTimes:
    """A process's figures that every user may read."""
    path = root / "proc" / str(pid) / "stat"
    with _reading(path):
        # The name, in parentheses, may hold anything; what follows the last one is ours.
        words = _text(path).rpartition(")")[2].split()
        if words[0] in ("Z", "X"):
            raise Unknown(f"{path}: the process has ended")
        return ProcessTimes(
            started=int(words[19]),
            cpu_seconds=(int(words[11]) + int(words[12])) / TICK,
            threads=int(words[17]),
            rss_bytes=int(words[21]) * PAGE,
        )


def process_shares(root: Path, pid: int) -> tuple[int, int]:
    """Bytes: proportional set size and swap; only of one's own user's processes."""
    path = root / "proc" / str(pid) / "smaps_rollup"
    with _reading(path):
        found = {}
        for line in _text(path).splitlines()[1:]:
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
        return found["Pss"], found["Swap"]


def process_disk_bytes(root: Path, pid: int) -> tuple[int, int]:
    """Bytes that a process made the disks read and write; only of one's own user's processes."""
    path = root / "proc" / str(pid) / "io"
    with _reading(path):
        found = dict(line.split(": ", 1) for line in _text(path).splitlines())
        return int(found["read_bytes"]), int(found["write_bytes"])


def process_files(root: Path, pid: int) -> int:
    """Open descriptors; only of one's own user's processes."""
    path = root / "proc" / str(pid) / "fd"
    with _reading(path):
        return len(os.listdir(path))  # noqa: PTH208 (a count)
