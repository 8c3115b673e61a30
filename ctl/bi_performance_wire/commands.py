"""The command table: one row an operation, from which socket, HTTP, CLI, help and OpenAPI come.

Rows name their argument and result types of `bi_performance_wire.types` as text, so that reading
the table costs a control program that only wants `status` no import of the validation library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import msgspec


class Command(NamedTuple):
    """One operation.

    `args` and `result` name structs in `bi_performance_wire.types` (None: no arguments, or a
    result of any form). `http` is (verb, path); `{name}` in the path is an argument. `cli` is the
    command's words as a person types them. `positional` are the arguments that the CLI takes
    without a flag. `changes` marks what alters state: only such a command is a POST, and
    `http.post` guards it. `large` marks an answer that can have megabytes: a connection is given
    one such at a time. `waits` marks a request that may be left unanswered for long: limits of its
    own bound how many of them there are.
    """

    name: str
    summary: str
    args: str | None = None
    result: str | None = None
    http: tuple[str, str] | None = None
    cli: str | None = None
    positional: tuple[str, ...] = ()
    example: str | None = None
    changes: bool = False
    large: bool = False
    waits: bool = False

    def args_type(self) -> type[msgspec.Struct] | None:
        """The struct that validates this row's arguments."""
        return _struct(self.args)

    def result_type(self) -> type[msgspec.Struct] | None:
        """The struct that describes this row's result."""
        return _struct(self.result)


def _struct(name: str | None) -> type[msgspec.Struct] | None:
    if name is None:
        return None
    from bi_performance_wire import insight, types

    found: type[msgspec.Struct] | None = getattr(types, name, None) or getattr(insight, name)
    return found


COMMANDS: Final[tuple[Command, ...]] = (
    Command("ping", "Answer true: the shortest possible round trip.", result=None),
    Command("server.info", "Version, process, socket, files and limits.", result="ServerInfo"),
    Command(
        "server.config",
        "Every setting with its value and where it came from.",
        result="ConfigListing",
        cli="config",
        example="bi-performance config --json-output",
    ),
    Command(
        "attach",
        "Hand over the shared store and a page of counters as descriptors (SCM_RIGHTS).",
        args="Attach",
        result="Attached",
    ),
    Command(
        "status",
        "Is it well: each component with its state, and the reason when it is degraded.",
        result="Status",
        http=("GET", "/performance/status"),
        cli="status",
        example="bi-performance status",
    ),
    Command(
        "metrics",
        "Every figure of cache, host, daemon and attached processes.",
        args="MetricsArgs",
        result="Metrics",
        http=("GET", "/performance/metrics"),
        cli="metrics",
        example="bi-performance metrics --json-output",
        large=True,
    ),
    Command(
        "analysis",
        "What the measured figures of the cache and the host come to, with recommendations.",
        result="Analysis",
    ),
    Command(
        "recommendations",
        "What would make it faster or smaller, on measured evidence, each with its command.",
        result="Recommendations",
        http=("GET", "/performance/recommendations"),
        cli="recommendations",
        example="bi-performance recommendations",
    ),
    Command(
        "profiles",
        "The optimization profiles, and what each of them sets.",
        result="Profiles",
        http=("GET", "/performance/profiles"),
        cli="profiles",
        example="bi-performance profiles",
    ),
    Command(
        "optimize",
        "Apply an optimization profile, and keep it over restarts.",
        args="Optimize",
        result="Optimized",
        http=("POST", "/performance/optimize/{profile}"),
        cli="optimize",
        positional=("profile",),
        example="bi-performance optimize balanced",
        changes=True,
    ),
    Command(
        "server.adjust",
        "Change one setting while running, and keep it until the next `optimize`.",
        args="Adjust",
        result="Optimized",
        cli="config set",
        positional=("setting", "value"),
        example="bi-performance config set cache.default_ttl 7200",
        changes=True,
    ),
    Command(
        "subscribe",
        "Be sent events as they happen, as notifications `event`; no topics ends it.",
        args="Subscribe",
        result="Subscribed",
    ),
    Command(
        "cache.get",
        "Read one value.",
        args="CacheGet",
        cli="cache get",
        positional=("key",),
        example="bi-performance cache get https://example.com/",
        large=True,
    ),
    Command("cache.get_many", "Read several values in one frame.", args="CacheGetMany", large=True),
    Command(
        "cache.fetch",
        "Ask Redis for values that are not in the store; they are there from then on.",
        args="CacheFetch",
        result="Fetched",
        large=True,
    ),
    Command(
        "cache.set",
        "Store one value.",
        args="CacheSet",
        result="Stored",
        cli="cache set",
        positional=("key", "value"),
        example="bi-performance cache set greeting hello --ttl 60",
        changes=True,
    ),
    Command(
        "cache.set_many",
        "Store several values in one frame.",
        args="CacheSetMany",
        result="Stored",
        changes=True,
    ),
    Command(
        "cache.add",
        "Store one value only when the key is absent; exact over all processes.",
        args="CacheSet",
        result="Stored",
        changes=True,
    ),
    Command(
        "cache.delete",
        "Delete one key.",
        args="CacheDelete",
        result="Deleted",
        cli="cache delete",
        positional=("key",),
        example="bi-performance cache delete greeting",
        changes=True,
    ),
    Command(
        "cache.expire",
        "Make one entry stale: served in its grace only, by who asks for stale ones.",
        args="CacheExpire",
        result="Expired",
        cli="cache expire",
        positional=("key",),
        example="bi-performance cache expire greeting",
        changes=True,
    ),
    Command(
        "cache.touch",
        "Renew one entry's time to live.",
        args="CacheTouch",
        result="Touched",
        cli="cache touch",
        positional=("key",),
        example="bi-performance cache touch greeting --ttl 600",
        changes=True,
    ),
    Command(
        "cache.lease",
        "Ask who loads a missing key: a value is there, or this process loads it, or it waits.",
        args="CacheLease",
        result="Leased",
        waits=True,
    ),
    Command(
        "cache.renew",
        "Tell that the process is alive: its leases last on.",
        args="CacheRenew",
        result="Renewed",
    ),
    Command(
        "cache.release",
        "Give up a lease, or the wait for one: the next that waits for the key loads it.",
        args="CacheRelease",
        result="Released",
    ),
    Command(
        "cache.keys",
        "List keys, optionally those that a pattern matches.",
        args="CacheKeys",
        result="Keys",
        cli="cache keys",
        example="bi-performance cache keys --pattern 'https://*' --limit 20",
        large=True,
    ),
    Command(
        "cache.explain",
        "Why one key is a hit or a miss, on every level, or when and why it went.",
        args="CacheExplain",
        result="Explained",
        cli="cache explain",
        positional=("key",),
        example="bi-performance cache explain https://example.com/",
    ),
    Command(
        "cache.top",
        "The hottest keys, those missed most, the largest, the oldest, or those never read.",
        args="CacheTop",
        result="Top",
        cli="cache top",
        example="bi-performance cache top\n"
        "bi-performance cache top --by misses --limit 50\n"
        "bi-performance cache top --by size",
        large=True,
    ),
    Command(
        "cache.breakdown",
        "Hit rate, entries and bytes by what keys begin with, or by the processes that read.",
        args="CacheBreakdown",
        result="Breakdown",
        cli="cache by",
        positional=("by",),
        example="bi-performance cache by prefix\nbi-performance cache by process --limit 50",
        large=True,
    ),
    Command(
        "cache.clear",
        "Remove every entry, or those that a pattern matches or that have a tag.",
        args="CacheClear",
        result="Cleared",
        http=("POST", "/performance/cache/clear"),
        cli="clear-cache",
        example="bi-performance clear-cache --pattern analytics",
        changes=True,
    ),
    Command(
        "cache.stats",
        "Hits, misses, hit rate, entries, bytes, evictions, expirations.",
        result="CacheStats",
        http=("GET", "/performance/cache/stats"),
        cli="cache stats",
        example="bi-performance cache stats",
    ),
    Command(
        "cache.curve",
        "What the cache would hit at other sizes, by its traffic lately.",
        result="CacheCurve",
        http=("GET", "/performance/cache/curve"),
        cli="cache curve",
        example="bi-performance cache curve",
    ),
)

BY_NAME: Final = {row.name: row for row in COMMANDS}
