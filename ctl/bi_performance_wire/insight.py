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


class CacheBreakdown(Args, frozen=True, kw_only=True):
    by: Annotated[
        Literal["prefix", "process"],
        msgspec.Meta(description="prefix: what keys begin with; process: who reads"),
    ]
    limit: Annotated[
        int, msgspec.Meta(ge=1, le=1000, description="how many; the others together")
    ] = 20


class OfPrefix(Result, frozen=True, kw_only=True):
    """Entries and bytes are exact; hits, misses and evictions are estimates from samples."""

    prefix: str | bytes | None
    """Empty: keys that have none; nil: all others together."""
    entries: int
    size_bytes: int
    unread_entries: int
    """Never read since they were stored."""
    hits: float
    misses: float
    hit_rate: float | None
    """0 to 1; nil when it was not read."""
    hit_rate_error: float | None
    """With a certainty of 95 % it is no further off."""
    evicted_unread: float
    """Evicted without having been read."""


class OfProcess(Result, frozen=True, kw_only=True):
    """As the process itself counted, as far as that can be."""

    name: str | None
    pid: int
    pid_is_known: bool = False
    """The kernel says so; else it is what the process says."""
    instance: str | None = None
    """What tells it from others of its pid."""
    uid: int | None = None
    attached_seconds: float | None = None
    hits: int
    misses: int
    hit_rate: float | None
    hit_bytes: int
    plausible: bool = True
    """False: it has counted what cannot be, and is not believed any more."""


class Breakdown(Result, frozen=True, kw_only=True):
    by: str
    prefixes: list[OfPrefix] | None = None
    other: OfPrefix | None = None
    """All other prefixes together."""
    seconds: float | None = None
    """By prefix: over how long hits, misses and evictions were counted."""
    processes: list[OfProcess] | None = None
    more: int | None = None
    """By process: how many others are attached."""
    left: OfProcess | None = None
    """By process: all that have left, together."""
