"""The default size of the store, from what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

MOST = 256 << 20
LEAST = 4 << 20


def default_max_bytes(
    folder: Path, *, cgroup_root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc/self")
) -> tuple[int, str]:
    """The least of 256 MiB, half the free space of `folder`, a quarter of the cgroup limit.

    Returns bytes and the reason, for `bi-performance config`. Never below 4 MiB: on less the
    start fails with a clear error instead of a store that holds nothing.
    """
    candidates = [(MOST, "256 MiB")]
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        stat = os.statvfs(existing)
        candidates.append((stat.f_bavail * stat.f_frsize // 2, f"half the free space of {folder}"))
    except OSError:
        pass
    limit = cgroup_limit(cgroup_root, proc)
    if limit is not None:
        candidates.append((limit // 4, "a quarter of the cgroup's memory limit"))
    size, reason = min(candidates)
    return (size, reason) if size >= LEAST else (LEAST, f"4 MiB, for {reason} is less")


def cgroup_limit(root: Path, proc: Path) -> int | None:
    """The memory limit in bytes of this process's cgroup or a parent of it (v2, else v1)."""
    try:
        lines = (proc / "cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        while folder == base or base in folder.parents:
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
            except OSError:
                text = "max"
            # cgroup v1 says "no limit" with a number near 2^63.
            if text.isdigit() and int(text) < 1 << 60:
                limits.append(int(text))
            folder = folder.parent
    return min(limits, default=None)
