"""Argument and result types of the command table.

Declared once: from here come validation that names the field, the JSON Schema of the OpenAPI
document, and the coercion of text from HTTP queries and the command line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from bi_performance_wire.extra import MAX_META_BYTES, MAX_TAG_BYTES, MAX_TAGS

MAX_KEY_BYTES = 8192
MAX_PATTERN_CHARS = 1024
MAX_BATCH = 10_000
MAX_FETCH = 1000
"""Keys that the second level is asked for at once."""
MAX_KEYS = 100_000
"""Keys that one request lists."""
MAX_TTL = 315_360_000.0
"""Seconds: ten years."""
MAX_LEASE_WAIT = 3600.0
TOKEN_BYTES = 16

Key = Annotated[
    # Text or bytes; msgspec has no union of the two, so `key_bytes` of the handlers decides.
    Any,
    msgspec.Meta(description=f"text or bytes, 1 to {MAX_KEY_BYTES} bytes (text as UTF-8)"),
]
Ttl = Annotated[
    float, msgspec.Meta(description="time to live in seconds, more than 0, at most ten years")
]
RedisTtl = Annotated[
    float, msgspec.Meta(description="seconds for which Redis has it, when that is less than ttl")
]
Sliding = Annotated[bool, msgspec.Meta(description="reads renew the entry for its ttl")]
LocalOnly = Annotated[bool, msgspec.Meta(description="for this host alone: not put into Redis")]
Grace = Annotated[
    float,
    msgspec.Meta(
        ge=0,
        le=MAX_TTL,
        description="seconds after its expiry for which the entry may be served stale",
    ),
]
Tags = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TAG_BYTES)]],
    msgspec.Meta(max_length=MAX_TAGS, description="names under which it can be cleared"),
]
Meta = Annotated[
    bytes,
    msgspec.Meta(
        max_length=MAX_META_BYTES, description="a MessagePack map that is kept with the entry"
    ),
]
Token = Annotated[
    bytes,
    msgspec.Meta(
        min_length=TOKEN_BYTES,
        max_length=TOKEN_BYTES,
        description=f"the {TOKEN_BYTES} bytes that name a lease; a later one's are greater",
    ),
]
Ticket = Annotated[
    int,
    msgspec.Meta(ge=0, le=(1 << 63) - 1, description="the client's name for one of its requests"),
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


class CacheFetch(Args, frozen=True, kw_only=True):
    """Ask the second level for keys that were not found in the store."""

    keys: Annotated[list[Key], msgspec.Meta(min_length=1, max_length=MAX_FETCH)]


class CacheSet(Args, frozen=True, kw_only=True):
    key: Key
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """Any msgpack value of at most 64 KiB and 4,096 objects."""
    payload: bytes | msgspec.UnsetType = msgspec.UNSET
    """An encoded entry of our own clients, opaque to the daemon."""
    ttl: Ttl | None = None
    grace: Grace = 0.0
    sliding: Sliding = False
    tags: Tags = []
    meta: Meta = b""
    token: Token | None = None
    """The lease under which the value was loaded: stored only if that is current, and the key was
    neither deleted nor cleared since. Not for `cache.add`."""
    local: LocalOnly = False
    redis_ttl: RedisTtl | None = None


class CacheSetMany(Args, frozen=True, kw_only=True):
    items: (
        Annotated[list[tuple[Key, msgspec.Raw]], msgspec.Meta(max_length=MAX_BATCH)]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    """[key, value] pairs."""
    payload: bytes | msgspec.UnsetType = msgspec.UNSET
    """Of our own clients instead: encoded entries, packed as `bi_performance_wire.batch` says."""
    ttl: Ttl | None = None
    grace: Grace = 0.0
    sliding: Sliding = False
    tags: Tags = []
    meta: Meta = b""
    local: LocalOnly = False
    redis_ttl: RedisTtl | None = None


class CacheLease(Args, frozen=True, kw_only=True):
    key: Key
    wait: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=MAX_LEASE_WAIT,
            description="seconds to be left unanswered while another one loads; at most"
            " leases.max_wait",
        ),
    ] = 30.0
    refresh: bool = False
    """True: to load anew what is there; False: a value that is there is the answer."""
    payload: bool = False
    """True: with the answer that there is a value comes the encoded entry, unless it is large."""
    ticket: Ticket | None = None


class Leased(Result, frozen=True, kw_only=True, omit_defaults=True):
    state: Literal["hit", "leader", "held"]
    """hit: a value is there, read it; leader: load it, and store it with `token`; held: another one
    is still loading, after the wait."""
    token: bytes | None = None
    ttl: float = 0.0
    """Seconds without a `cache.renew` after which the lease is another one's."""
    payload: bytes | None = None


class CacheRenew(Args, frozen=True, kw_only=True):
    token: Token | None = None


class Renewed(Result, frozen=True, kw_only=True):
    renewed: int
    """How many leases this connection has."""
    current: bool | None = None
    """Whether the lease of the token that was given still is."""


class CacheRelease(Args, frozen=True, kw_only=True):
    """`token` of a lease, or `ticket` of a request on this connection, answered or not."""

    token: Token | None = None
    ticket: Ticket | None = None
    failed: bool = False
    """The load was tried and failed: counted."""


class Released(Result, frozen=True, kw_only=True):
    released: bool
    """Whether there was something to give up."""


class CacheDelete(Args, frozen=True, kw_only=True):
    key: Key


class CacheKeys(Args, frozen=True, kw_only=True):
    pattern: Pattern | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_KEYS)] = 1000


class CacheExpire(Args, frozen=True, kw_only=True):
    key: Key


class CacheTouch(Args, frozen=True, kw_only=True):
    key: Key
    ttl: Ttl | None = None
    """None: as long as it was stored for, when it was stored with `sliding`."""


class CacheClear(Args, frozen=True, kw_only=True):
    pattern: Pattern | None = None
    tags: (
        Annotated[
            list[Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TAG_BYTES)]],
            msgspec.Meta(
                max_length=MAX_TAGS, description="only entries that have one of these; not empty"
            ),
        ]
        | None
    ) = None
    """None: whatever tags they have. An empty list is an error: it must not clear everything."""
    stale: Annotated[
        bool,
        msgspec.Meta(
            description="make them stale instead: they are served in their grace, when there is"
            " nothing better"
        ),
    ] = False
    dry_run: Annotated[
        bool, msgspec.Meta(description="change nothing, and say how many it would be")
    ] = False


class Stored(Result, frozen=True, kw_only=True, omit_defaults=True):
    stored: int
    """How many entries were written; 0 when `cache.add` found the key present."""
    refused: str | None = None
    """Why some entries of `cache.set_many`, being too large, or that of a `cache.set` under a lease
    were not written."""


class Fetched(Result, frozen=True, kw_only=True):
    payloads: list[bytes | None]
    """Encoded entries in the order of the keys; nil where there is none, or none that is fresh."""


class Deleted(Result, frozen=True, kw_only=True):
    deleted: bool


class Expired(Result, frozen=True, kw_only=True):
    expired: bool
    """Whether an entry was fresh."""


class Touched(Result, frozen=True, kw_only=True):
    touched: bool
    """Whether an entry was readable, and is renewed."""


class Keys(Result, frozen=True, kw_only=True):
    keys: list[str | bytes]
    """Text where the key is valid UTF-8, else bytes."""
    truncated: bool


class Cleared(Result, frozen=True, kw_only=True, omit_defaults=True):
    cleared: int
    dry_run: bool = False
    """There, and true, when nothing was removed: the entries would be."""


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


class CurvePoint(Result, frozen=True, kw_only=True):
    """The store at another size. What is unknown is null: until as many accesses of the sample were
    seen as are wanted."""

    size: float
    """In sizes of the store as it is."""
    max_size: int | None
    """Entries, where they are what is limited."""
    max_bytes: int | None
    """Bytes, where they are."""
    hit_rate: float | None
    """0 to 1, of the reads of the window."""
    margin: float | None
    """Two standard errors of the sampling: of other samples, 95 in 100 would differ by less."""
    rule: str
    """How entries would leave at that size."""
    accesses: int
    wanted: int
    sample_rate: float
    """The share of the keys that this size is told by."""


class CacheCurve(Result, frozen=True, kw_only=True):
    """What the store of this host would hit at other sizes, by its traffic lately."""

    limit: Literal["entries", "bytes"]
    """What entries leave for."""
    hit_rate: float | None
    """As it was counted, of all reads of the window; null before the first."""
    reads: int
    window_seconds: float
    heard: float
    """The share of the traffic at which the models were not resting to spare the processor."""
    cpu_seconds: float
    """Processor time that the models have taken since the daemon's start."""
    points: list[CurvePoint]
    """From the smallest to the largest."""


class MetricsArgs(Args, frozen=True, kw_only=True):
    history: Annotated[
        Literal["seconds", "minutes"] | None,
        msgspec.Meta(description="also the past: ten minutes by seconds, or a day by minutes"),
    ] = None
    format: Annotated[
        Literal["json", "prometheus", "openmetrics"],
        msgspec.Meta(description="json, or the text that Prometheus or OpenMetrics reads"),
    ] = "json"


class Exposition(Result, frozen=True, kw_only=True):
    """The result of `metrics` in another format than json; over HTTP, the body itself."""

    media_type: str
    text: str


class PastFigures(Result, frozen=True, kw_only=True):
    interval_seconds: float
    timestamps: list[float]
    """Unix time of each point, oldest first."""
    series: dict[str, list[float | None]]
    """For each figure a value at each point, null where it was unknown."""


class Metrics(Result, frozen=True, kw_only=True):
    timestamp: float
    """Unix time."""
    version: str
    uptime_seconds: float
    profile: str
    cache: CacheStats
    system: dict[str, Any]
    """The host's figures; `unknown` says of each that is null why."""
    daemon: dict[str, Any]
    """The daemon's own process, likewise."""
    processes: list[dict[str, Any]]
    """Every attached process, likewise, by `instance`."""
    cache_curve: CacheCurve
    history: PastFigures | None = None


Severity = Literal["info", "warning", "critical"]


class Recommendation(Result, frozen=True, kw_only=True):
    id: str
    """Stable, dotted: what is told apart by."""
    severity: Severity
    title: str
    evidence: dict[str, Any]
    """The figures, with `window_seconds` and `sample`: over how long, and of how many."""
    action: str
    command: str
    expected_effect: str
    since: float
    """Unix time at which it came up."""


class Recommendations(Result, frozen=True, kw_only=True):
    recommendations: list[Recommendation]
    window_seconds: float
    """How long figures have been gathered for these, since the last change of a setting."""


class Analysis(Result, frozen=True, kw_only=True):
    """A part that this version does not have is absent."""

    timestamp: float
    """Unix time."""
    profile: str
    cache_performance: dict[str, Any]
    system_resources: dict[str, Any]
    recommendations: list[Recommendation]


class ProfileSetting(Result, frozen=True, kw_only=True):
    setting: str
    value: Any
    """What it is, or would be, here."""
    unit: str | None
    reason: str


class Profile(Result, frozen=True, kw_only=True):
    name: str
    summary: str
    active: bool
    settings: list[ProfileSetting]


class Profiles(Result, frozen=True, kw_only=True):
    profiles: list[Profile]


class Optimize(Args, frozen=True, kw_only=True):
    profile: Annotated[
        str,
        msgspec.Meta(
            min_length=1,
            max_length=100,
            description="balanced, memory_focused, performance_focused, or one of your own",
        ),
    ]


class Adjust(Args, frozen=True, kw_only=True):
    setting: Annotated[
        str,
        msgspec.Meta(min_length=1, max_length=100, description="its key, as in the file"),
    ]
    value: Annotated[
        Any, msgspec.Meta(description="as in the file; default takes back what was set so")
    ]


class Change(Result, frozen=True, kw_only=True):
    setting: str
    before: Any
    after: Any
    unit: str | None = None
    reason: str | None = None


class Optimized(Result, frozen=True, kw_only=True):
    profile_applied: str
    previous_profile: str
    changes: list[Change]
    """Read back from the parts that were changed."""
    kept: dict[str, str]
    """Settings that were left as they are, and why."""


Topic = Literal["profile", "recommendation", "health"]


class Subscribe(Args, frozen=True, kw_only=True):
    topics: list[Topic]


class Subscribed(Result, frozen=True, kw_only=True):
    topics: list[Topic]


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
    beneath: list[Any] | None = None
    """The value and origin that a profile or `config set` lies over."""


class ConfigListing(Result, frozen=True, kw_only=True):
    settings: list[Setting]
    file: str | None = None
