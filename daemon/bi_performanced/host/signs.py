"""How short memory is: what the host and the process's control groups say of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from bi_performanced.host import Unknown, cgroups, procfs


class Signs(NamedTuple):
    """Of the host or the control group, whichever has less; None for what nobody tells."""

    share: float | None
    """Of the memory, what can be had, 0 to 1."""
    free_bytes: int | None
    """The same in bytes."""
    some: float | None
    """Percent of the last ten seconds in which some task waited for memory."""
    full: float | None
    """And in which all did."""
    where: str = "the host"
    """Whose memory `share` is of."""


def memory_signs(root: Path = Path("/")) -> Signs:
    """What is known at this moment; never raises."""
    found: list[tuple[float, int, str]] = []
    with suppress(Unknown):
        total, available = procfs.memory(root)
        if 0 <= available <= total and total:
            found.append((available / total, available, "the host"))
    with suppress(Unknown):
        limit = cgroups.memory_limit(root)
        free = max(0, limit - cgroups.memory_used(root))
        if limit:
            found.append((free / limit, free, "the control group"))
    stalls: dict[str, float] = {}
    looks: tuple[Callable[[], dict[str, float]], ...] = (
        lambda: procfs.pressure(root, "memory"),
        lambda: cgroups.memory_pressure(root),
    )
    for ask in looks:
        with suppress(Unknown):
            for kind, percent in ask().items():
                stalls[kind] = max(percent, stalls.get(kind, 0.0))
    some, full = stalls.get("some"), stalls.get("full")
    if not found:
        return Signs(None, None, some, full)
    share, free_bytes, where = min(found)
    return Signs(share, free_bytes, some, full, where)
