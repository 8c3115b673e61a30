"""Argument and result types of the command table.

Declared once: from here come validation that names the field, the JSON Schema of the OpenAPI
document, and the coercion of text from HTTP queries and the command line.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

MAX_KEY_BYTES = 8192
MAX_PATTERN_CHARS = 1024
MAX_BATCH = 10_000
MAX_KEYS = 100_000
"""Keys that one request lists."""
MAX_TTL = 315_360_000.0
"""Seconds: ten years."""

Key = Annotated[
    # Text or bytes; msgspec has no union of the two, so `key_bytes` of the handlers decides.
    Any,
    msgspec.Meta(description=f"text or bytes, 1 to {MAX_KEY_BYTES} bytes (text as UTF-8)"),
]
Ttl = Annotated[
    float, msgspec.Meta(description="time to live in seconds, more than 0, at most ten years")
]
Pattern = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=MAX_PATTERN_CHARS,
        description="a glob over the whole key when it has *, ? or [; else text the key contains",
    ),
]


class Args(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of all arguments: unknown names are errors."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all results: clients must accept fields that they do not know."""


class Attach(Args, frozen=True, kw_only=True):
    """`instance` is a random identity that the client made for itself (16 bytes)."""

    instance: bytes
    pid: int = 0
    """The client's own process id as it sees it: shown to people, never trusted."""
    name: str = ""


class Attached(Result, frozen=True, kw_only=True):
    """Comes with descriptors by SCM_RIGHTS, in this order: store (read-only), page, touch map."""

    epoch: int
    mode: str
    default_ttl: float
    compression: bool
    max_payload: int
    """The largest encoded entry in bytes that `cache.set` accepts."""


class CacheGet(Args, frozen=True, kw_only=True):
    key: Key
    payload: bool = False
    """True: answer with the encoded entry (bin) instead of the value."""


class CacheGetMany(Args, frozen=True, kw_only=True):
    keys: Annotated[list[Key], msgspec.Meta(max_length=MAX_BATCH)]
    payload: bool = False


class CacheSet(Args, frozen=True, kw_only=True):
    key: Key
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """Any msgpack value of at most 64 KiB and 4,096 objects."""
    payload: bytes | msgspec.UnsetType = msgspec.UNSET
    """An encoded entry of our own clients, opaque to the daemon."""
    ttl: Ttl | None = None


class CacheSetMany(Args, frozen=True, kw_only=True):
    items: (
        Annotated[list[tuple[Key, msgspec.Raw]], msgspec.Meta(max_length=MAX_BATCH)]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    """[key, value] pairs."""
    payload: bytes | msgspec.UnsetType = msgspec.UNSET
    """Of our own clients instead: encoded entries, packed as `bi_performance_wire.batch` says."""
    ttl: Ttl | None = None


class CacheDelete(Args, frozen=True, kw_only=True):
    key: Key


class CacheKeys(Args, frozen=True, kw_only=True):
    pattern: Pattern | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_KEYS)] = 1000


class CacheClear(Args, frozen=True, kw_only=True):
    pattern: Pattern | None = None
    dry_run: bool = False


class Stored(Result, frozen=True, kw_only=True, omit_defaults=True):
    stored: int
    """How many entries were written; 0 when `cache.add` found the key present."""
    refused: str | None = None
    """Only of `cache.set_many` when some entries are too large: why they were not written."""


class Deleted(Result, frozen=True, kw_only=True):
    deleted: bool


class Keys(Result, frozen=True, kw_only=True):
    keys: list[str | bytes]
    """Text where the key is valid UTF-8, else bytes."""
    truncated: bool


class Cleared(Result, frozen=True, kw_only=True):
    cleared: int


class CacheLevels(Result, frozen=True, kw_only=True):
    local: dict[str, Any]
    redis: dict[str, Any] | None


class CacheStats(Result, frozen=True, kw_only=True):
    hits: int
    misses: int
    hit_rate: float
    """0 to 1; 0.0 before the first request."""
    entries: int
    size_bytes: int
    evictions: int
    expirations: int
    sets: int
    deletes: int
    max_entries: int
    max_bytes: int
    ring_bytes: int
    live_ratio: float
    """Live bytes over allocated ring bytes."""
    write_amplification: float | None
    """Bytes written to the rings over bytes that clients stored; null before the first set."""
    clients: int
    levels: CacheLevels


class Component(Result, frozen=True, kw_only=True):
    status: str
    """`ok`, `degraded`, or `off`."""
    reason: str | None = None
    details: dict[str, Any] = {}


class Status(Result, frozen=True, kw_only=True):
    status: str
    profile: str
    uptime_seconds: float
    version: str
    components: dict[str, dict[str, Any]]


class ServerInfo(Result, frozen=True, kw_only=True):
    version: str
    pid: int
    uid: int
    boot_id: str
    epoch: int
    socket: str
    http: str | None
    state_dir: str
    log_file: str | None
    store: str
    limits: dict[str, int | float]


class Setting(Result, frozen=True, kw_only=True):
    key: str
    value: Any
    origin: str
    unit: str | None = None


class ConfigListing(Result, frozen=True, kw_only=True):
    settings: list[Setting]
    file: str | None = None
