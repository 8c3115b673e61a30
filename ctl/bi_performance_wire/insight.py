"""Argument and result types of the commands that tell what the cache knows of its keys."""

from __future__ import annotations

from typing import Any, Literal

from bi_performance_wire.types import Args, Key, Result


class CacheExplain(Args, frozen=True, kw_only=True):
    key: Key


class Explained(Result, frozen=True, kw_only=True):
    key: str | bytes
    """Text where it is valid UTF-8, else bytes."""
    outcome: Literal["hit", "stale", "miss"]
    """What a read would come to now; stale: a miss, but served to those who ask for stale ones."""
    level: Literal["local", "redis"] | None
    """Where it would come from."""
    reason: str
    """fresh, in_grace, in_redis, expired, evicted, deleted, cleared, elsewhere, news_missed,
    too_large, refused, crowded, stale, partition, never_seen, off, or unknown."""
    why: str
    """The same as a sentence."""
    more: list[str]
    """Further sentences."""
    local: dict[str, Any] | None
    """What the store of this host has, readable or not; nil where it has nothing."""
    redis: dict[str, Any] | None
    """What Redis has; nil where none is configured."""
    lease: dict[str, Any] | None
    """Who loads it on this host; nil when nobody does."""
    past: dict[str, Any] | None
    """Why and when the last entry left, when it is remembered."""
    unknown: dict[str, str]
    """What could not be found out, and why."""
