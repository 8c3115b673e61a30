"""Argument and result types of the commands that tell what the cache knows of its keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

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


class CacheTop(Args, frozen=True, kw_only=True):
    by: Annotated[
        Literal["hits", "misses", "size", "age", "cold"],
        msgspec.Meta(
            description="hits: the hottest; misses: most asked for and not there; size: the"
            " largest; age: the oldest; cold: never read since they were stored, the oldest first"
        ),
    ] = "hits"
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000, description="how many, at most 1000")] = 20


class TopKey(Result, frozen=True, kw_only=True):
    key: str | bytes
    """Text where it is valid UTF-8, else bytes."""
    cut: bool = False
    """It is only the beginning of a longer key."""
    count: float | None = None
    """Hits or misses: an estimate."""
    at_least: float | None = None
    """With a certainty of 95 % not fewer."""
    at_most: float | None = None
    here: bool | None = None
    """Whether this host's store has an entry of it now; nil where the key was cut."""
    stored_bytes: int | None = None
    age_seconds: float | None = None
    ttl_seconds: float | None = None


class Top(Result, frozen=True, kw_only=True):
    by: str
    keys: list[TopKey]
    seconds: float | None = None
    """By hits and misses: over how long they were counted."""
    counted: float | None = None
    """By hits and misses: how many there were in that time, as the sample says."""
    unnamed: float | None = None
    """Hits on entries that had left before their key was looked up; they are in no count."""
    entries: int | None = None
    """Of the others: how many entries were looked at."""
    unread: int | None = None
    """By cold: how many of these were never read, what they take, and of how many it is not
    known."""
    unread_bytes: int | None = None
    unknown: int | None = None
