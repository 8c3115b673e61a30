"""What the control groups of this process allow it, and what they count (cgroups(7), v2 and v1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bi_performanced.host import Unknown
from bi_performanced.host.procfs import stalls
from bi_performanced.host.text import reading, text, whole

NO_LIMIT: Final = 1 << 60
"""cgroup v1 says "no limit" with a number near 2^63."""


class Group(NamedTuple):
    """The folders of one controller, from the process's own group up to the root's."""

    folders: tuple[Path, ...]
    version: int


def groups(root: Path, controller: str) -> Group:
    """Where a controller's files are for this process. Raises Unknown."""
    path = root / "proc/self/cgroup"
    base = root / "sys/fs/cgroup"
    with reading(path):
        for line in text(path).splitlines():
            _, controllers, own = [*line.split(":", 2), "", ""][:3]
            if controllers == "" and _there(base / "cgroup.controllers"):
                return Group(tuple(_upwards(base, own)), 2)
            if controller in controllers.split(","):
                together = base / controllers
                mounted = together if _there(together) else base / controller
                return Group(tuple(_upwards(mounted, own)), 1)
    raise Unknown(f"{path}: names no group that is mounted at {base}")


def _upwards(base: Path, own: str) -> Iterator[Path]:
    # A process outside of its namespace's root is in "/../…", which is not mounted here.
    parts = [part for part in own.split("/") if part]
    if ".." in parts or "\0" in own:
        parts = []
    for end in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:end])


def memory_used(root: Path) -> int:
    """Bytes charged to the process's own group that the kernel cannot take back from it.

    Without the pages of files, read once or over and over: they go before anything else does, as
    in the host's MemAvailable, and a group that reads large files is not short of memory. What
    lies on a tmpfs is not among them (the kernel counts it with `inactive_anon`). Raises Unknown.
    """
    group = groups(root, "memory")
    second = group.version == 2
    name = "memory.current" if second else "memory.usage_in_bytes"
    below = "" if second else "total_"
    # In a container the own group's folder may be what is mounted as the root.
    folder = next((each for each in group.folders if _there(each / name)), None)
    if folder is None:
        raise Unknown(f"{group.folders[0] / name}: is not there")
    with reading(folder / name):
        used = whole(text(folder / name).strip())
    with reading(folder / "memory.stat"):
        words = text(folder / "memory.stat").split()
        pairs = dict(zip(words[::2], words[1::2], strict=True))
        files = whole(pairs[f"{below}inactive_file"]) + whole(pairs.get(f"{below}active_file", "0"))
        return max(0, used - files)


def memory_limit(root: Path) -> int:
    """The least limit in bytes of the group and those it is in. Raises Unknown."""
    group = groups(root, "memory")
    name = "memory.max" if group.version == 2 else "memory.limit_in_bytes"
    limits = []
    for folder in group.folders:
        words = _words(folder / name)
        if words not in ([], ["max"]):
            with reading(folder / name):
                (word,) = words
                limits.append(whole(word))
    known = [limit for limit in limits if limit < NO_LIMIT]
    if not known:
        raise Unknown("no control group limits the memory")
    return min(known)


def memory_pressure(root: Path) -> dict[str, float]:
    """As `procfs.pressure`, of the process's own group, where the kernel counts that (version 2).

    Raises Unknown.
    """
    return stalls(groups(root, "memory").folders[0] / "memory.pressure")


def cpu_limit(root: Path) -> float:
    """Processors that the group may use, as a number. Raises Unknown."""
    group = groups(root, "cpu")
    found = []
    for folder in group.folders:
        if group.version == 2:
            path = folder / "cpu.max"
            words = _words(path)
        else:
            path = folder / "cpu.cfs_quota_us"
            words = _words(path) + _words(folder / "cpu.cfs_period_us")
        if words and words[0] not in ("max", "-1"):
            with reading(path):
                quota, period = (whole(word) for word in words)
                if not period:
                    raise ValueError
                found.append(quota / period)
    if not found:
        raise Unknown("no control group limits the processors")
    return min(found)


def _words(path: Path) -> list[str]:
    """A file's words; none for one that is not there. Raises Unknown for one that is empty."""
    with reading(path):
        try:
            found = text(path).split()
        except (FileNotFoundError, NotADirectoryError):
            return []
        if not found:
            raise ValueError
        return found


def _there(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True
