"""What Linux tells of this machine in /proc and /sys, read without any library (proc(5)).

Each function reads below a root, raises Unknown with the file and the fault, and believes nothing:
a file may be missing, hidden by a service's hardening, cut short, or of another form.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bi_performanced.host import Unknown
from bi_performanced.host.text import decimal, reading, text, whole

SECTOR: Final = 512
"""Bytes of a sector in /proc/diskstats, whatever the disk's own are."""
TICK: Final = os.sysconf("SC_CLK_TCK")
_NO_DISKS: Final = ("loop", "ram", "zram", "dm-", "md", "sr", "fd", "bcache")
"""Block devices that are none, or whose traffic is counted at the disks below them."""

Pair = tuple[int, int]


def cpu_seconds(root: Path) -> tuple[float, float]:
    """Seconds of all processors together since boot: in use, and in all."""
    path = root / "proc/stat"
    with reading(path):
        words = text(path).split("\n", 1)[0].split()
        if words[0] != "cpu" or len(words) < 5:
            raise ValueError
        # Guest time, from the ninth on, is within user time already.
        ticks = [whole(word) for word in words[1:9]]
        total = sum(ticks)
        idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
        return (total - idle) / TICK, total / TICK


def _meminfo(root: Path, *names: str) -> list[int]:
    """Bytes, for lines of /proc/meminfo."""
    path = root / "proc/meminfo"
    with reading(path):
        found = {}
        for line in text(path).splitlines():
            name, _, rest = line.partition(":")
            if name in names:
                words = rest.split()
                if words[1:] != ["kB"]:
                    raise ValueError
                found[name] = whole(words[0]) * 1024
        absent = [name for name in names if name not in found]
        if absent:
            raise Unknown(f"{path}: does not tell {absent[0]}")
        return [found[name] for name in names]


def memory(root: Path) -> Pair:
    """Bytes of memory: in all, and available."""
    total, available = _meminfo(root, "MemTotal", "MemAvailable")
    return total, available


def swap(root: Path) -> Pair:
    """Bytes of swap space: in all, and in use."""
    total, free = _meminfo(root, "SwapTotal", "SwapFree")
    if free > total:
        raise Unknown(f"{root / 'proc/meminfo'}: tells more free swap space than there is")
    return total, total - free


def disks(root: Path, names: Iterable[str]) -> set[str]:
    """Of the names of block devices those that are whole disks."""
    path = root / "sys/block"
    with reading(path):
        there = set(os.listdir(path))  # noqa: PTH208 (names)
    found = {name for name in names if name in there and not name.startswith(_NO_DISKS)}
    if not found:
        raise Unknown("there are no disks")
    return found


def disk_bytes(root: Path) -> dict[str, Pair]:
    """Bytes read from and written to each disk since boot."""
    path = root / "proc/diskstats"
    with reading(path):
        lines = [line.split() for line in text(path).splitlines()]
        rows = {words[2]: words for words in lines}
        return {
            name: (whole(rows[name][5]) * SECTOR, whole(rows[name][9]) * SECTOR)
            for name in disks(root, rows)
        }


def network_bytes(root: Path) -> dict[str, Pair]:
    """Bytes received and sent since boot on each interface but loopback."""
    path = root / "proc/net/dev"
    with reading(path):
        found = {}
        for line in text(path).splitlines()[2:]:
            name, colon, rest = line.rpartition(":")
            if not colon:
                raise ValueError
            words = rest.split()
            if name.strip() != "lo":
                found[name.strip()] = whole(words[0]), whole(words[8])
        if not found:
            raise Unknown(f"{path}: there is no interface but loopback")
        return found


def load(root: Path) -> tuple[float, float, float]:
    """The load averages over 1, 5 and 15 minutes."""
    path = root / "proc/loadavg"
    with reading(path):
        first, second, third = (decimal(word) for word in text(path).split()[:3])
        return first, second, third


def pressure(root: Path, resource: str) -> dict[str, float]:
    """Pressure stall information: percent of the last ten seconds, by `some` and `full`."""
    return stalls(root / "proc/pressure" / resource)


def stalls(path: Path) -> dict[str, float]:
    """What a file of pressure stall information says. Raises Unknown."""
    with reading(path):
        found = {}
        for line in text(path).splitlines():
            kind, average, *_ = line.split()
            if not average.startswith("avg10="):
                raise ValueError
            found[kind] = decimal(average.removeprefix("avg10="))
            if found[kind] > 100:
                raise ValueError
        return found


def open_files(root: Path) -> Pair:
    """Open file descriptions of the host, and the limit."""
    path = root / "proc/sys/fs/file-nr"
    with reading(path):
        used, free, most = (whole(word) for word in text(path).split())
        if free > used:
            raise ValueError
        return used - free, most
