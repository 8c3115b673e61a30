"""What the control groups of this process allow it, and what they count (cgroups(7), v2 and v1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bi_performanced.host import Unknown

NO_LIMIT: Final = 1 << 60
"""cgroup v1 says "no limit" with a number near 2^63."""


class Group(NamedTuple):
    """The folders of one controller, from the process's own group up to the root's."""

    folders: tuple[Path, ...]
    version: int


def groups(root: Path, controller: str) -> Group:
    """Where a controller's files are for this process. Raises Unknown."""
    path = root / "proc/self/cgroup"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise Unknown(f"{path}: {error.strerror}") from None
    base = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, own = [*line.split(":", 2), "", ""][:3]
        if controllers == "" and (base / "cgroup.controllers").exists():
            return Group(tuple(_upwards(base, own)), 2)
        if controller in controllers.split(","):
            together = base / controllers
            mounted = together if together.is_dir() else base / controller
            return Group(tuple(_upwards(mounted, own)), 1)
    raise Unknown(f"{path}: names no group that is mounted at {base}")


def _upwards(base: Path, own: str) -> Iterator[Path]:
    folder = base / own.lstrip("/")
    while folder == base or base in folder.parents:
        yield folder
        folder = folder.parent


def memory_used(root: Path) -> int:
    """Bytes charged to the process's own group, without file pages that nothing uses now.

    Those the kernel takes back before it runs out: a group that read large files is not short of
    memory. Raises Unknown.
    """
    group = groups(root, "memory")
    second = group.version == 2
    name = "memory.current" if second else "memory.usage_in_bytes"
    idle = "inactive_file" if second else "total_inactive_file"
    for folder in group.folders:
        found = _number(folder / name)
        if found is not None:
            words = _words(folder / "memory.stat")
            pairs = dict(zip(words[::2], words[1::2], strict=False))
            text = pairs.get(idle, "0")
            return max(0, found - (int(text) if text.isdigit() else 0))
    raise Unknown(f"{group.folders[0] / name}: is not there")


def memory_limit(root: Path) -> int:
    """The least limit in bytes of the group and those it is in. Raises Unknown."""
    group = groups(root, "memory")
    name = "memory.max" if group.version == 2 else "memory.limit_in_bytes"
    limits = [_number(folder / name) for folder in group.folders]
    known = [limit for limit in limits if limit is not None and limit < NO_LIMIT]
    if not known:
        raise Unknown("no control group limits the memory")
    return min(known)


def cpu_limit(root: Path) -> float:
    """Processors that the group may use, as a number. Raises Unknown."""
    group = groups(root, "cpu")
    found = []
    for folder in group.folders:
        if group.version == 2:
            words = _words(folder / "cpu.max")
        else:
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            found.append(int(words[0]) / int(words[1]))
    if not found:
        raise Unknown("no control group limits the processors")
    return min(found)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None
