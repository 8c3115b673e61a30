"""The default size of the store, from what the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bi_performanced.host import Unknown, cgroups, procfs

MOST = 256 << 20
LEAST = 4 << 20


def default_max_bytes(folder: Path, *, root: Path = Path("/")) -> tuple[int, str]:
    """The least of 256 MiB, half the free space of `folder`, a quarter of the cgroup limit.

    Returns bytes and the reason, for `bi-performance config`. Never below 4 MiB: on less the
    start fails with a clear error instead of a store that holds nothing.
    """
    size, reason = min([(MOST, "256 MiB"), *_of_the_host(folder, root, 0)])
    return (size, reason) if size >= LEAST else (LEAST, f"4 MiB, for {reason} is less")


def room(folder: Path, *, already: int, root: Path = Path("/")) -> int:
    """Bytes that a store in `folder`, which takes `already` bytes there, may grow to by itself.

    What the host has, and a quarter of the memory that is available: a tmpfs is memory.
    """
    found = [size for size, _ in _of_the_host(folder, root, already)]
    with suppress(Unknown):
        found.append((procfs.memory(root)[1] + already) // 4)
    return max(LEAST, min(found, default=MOST))


def free_bytes(folder: Path) -> int:
    """Bytes that are free on a folder's file system. Raises OSError."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def headroom(folder: Path, *, spare: int, root: Path = Path("/")) -> int:
    """Bytes that a new file in `folder` could take at this moment, on a tmpfs too.

    `spare` bytes of memory are left to the other processes.
    """
    found = [free_bytes(folder)]
    with suppress(Unknown):
        found.append(procfs.memory(root)[1] - spare)
    with suppress(Unknown):
        found.append(cgroups.memory_limit(root) - cgroups.memory_used(root) - spare)
    return max(0, min(found))


def _of_the_host(folder: Path, root: Path, already: int) -> Iterator[tuple[int, str]]:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    with suppress(OSError):
        stat = os.statvfs(existing)
        free = stat.f_bavail * stat.f_frsize + already
        yield free // 2, f"half the free space of {folder}"
    with suppress(Unknown):
        yield cgroups.memory_limit(root) // 4, "a quarter of the cgroup's memory limit"
