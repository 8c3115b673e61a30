"""What is told of an entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What `get_entry` or `get_or_set_entry` found.

    `age` is in seconds; `stale` tells an entry that is served beyond its time; `level` is
    "local" (the shared store of this host), "loaded" (what a factory just returned), or None when
    nothing was found.
    """

    found: bool
    value: Any = None
    age: float | None = None
    stale: bool = False
    level: str | None = None
    ttl: float | None = None
    """Seconds left, or None for an entry that does not expire, and for what was just loaded."""
