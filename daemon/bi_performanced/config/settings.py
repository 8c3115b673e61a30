"""Every setting, declared once: type, default, bounds, unit, environment variable, consequence.

From these declarations come the validation, the shipped example files, the listing of
`bi-performance config` and docs/configuration.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Meta(NamedTuple):
    """What is said of a setting besides its type and default."""

    doc: str
    env: str | None = None
    unit: str | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False
    """Never shown in a listing, a log or an error."""
    kind: str = ""
    """`seconds`, `size` (bytes, or text such as 64 MiB), `url`, or empty."""


def setting(default: Any, doc: str, **meta: Any) -> Any:
    """A dataclass field that is a setting."""
    return dataclasses.field(default=default, metadata={"setting": Meta(doc, **meta)}, kw_only=True)


def seconds(default: float, doc: str, *, low: float = 0.001, **meta: Any) -> Any:
    return setting(default, doc, kind="seconds", unit="s", low=low, high=315_360_000, **meta)


def size(default: int | None, doc: str, *, low: int, high: int, **meta: Any) -> Any:
    return setting(default, doc, kind="size", unit="bytes", low=low, high=high, **meta)


@dataclass(frozen=True)
class CacheSettings:
    enabled: bool = setting(True, "false: every get is a miss and every set is refused")
    redis_url: str | None = setting(
        None,
        "Redis behind the shared store, for the other hosts; without one each host has its own",
        env="REDIS_URL",
        kind="url",
        secret=True,
    )
    default_ttl: float = seconds(
        3600.0,
        "how long an entry is served that was stored without a ttl of its own",
        env="PERFORMANCE_CACHE_TTL",
    )
    max_size: int = setting(
        10_000,
        "entries kept; beyond, the least useful one leaves for each new one",
        env="PERFORMANCE_CACHE_MAX_SIZE",
        unit="entries",
        low=1,
        high=50_000_000,
    )
    max_bytes: int = size(
        None,
        "bytes of live entries kept; the store takes 1.5 times this in store_dir when it is full."
        " Default: the least of 256 MiB, half the free space there, a quarter of the cgroup"
        " limit",
        low=1 << 20,
        high=1 << 40,
    )
    shrink_under_pressure: bool = setting(
        True,
        "the store is halved while the host or the control group is short of memory, down to an"
        " eighth of max_bytes, and grows back when that is over; false: it keeps its size",
    )
    tenants: tuple[str, ...] = setting(
        (),
        "quotas of namespaces, NAME=BYTES or NAME=BYTES/ENTRIES: one that is at its quota lets"
        " entries of its own leave, and none makes way for others while within it",
    )
    compression: bool = setting(
        True, "clients compress values of 4 KiB and more with zstd where that saves a fifth"
    )
    store_dir: Path | None = setting(
        None,
        "where the store's file lies: best a tmpfs, for it is read in place."
        " Default: the runtime directory",
    )
    redis_prefix: str = setting("bi:perf:", "what our keys in Redis begin with")
    redis_timeout: float = seconds(
        0.5,
        "how long a request waits for Redis at most; after that nothing waits until it is back",
        low=0.01,
    )
    write: str = setting(
        "behind",
        "when a write is answered: behind, before Redis has it, or through, when Redis has it (or,"
        " with Redis away, when its deletion there is noted on disk)",
        choices=("behind", "through"),
    )
    secret: str | None = setting(
        None, "signs what is put into Redis, so that others cannot plant values", secret=True
    )
    on_partition: str = setting(
        "stale(5)",
        "entries shared with other hosts while these cannot be heard: miss, or stale(SECONDS)",
    )
    prefixes: tuple[str, ...] = setting(
        (),
        "what keys begin with by which `cache by prefix` groups them before it goes by their own"
        " beginnings; of these alone the metrics tell too, to all who may read those. At most 50,"
        " each of 1 to 64 bytes",
    )


@dataclass(frozen=True)
class LeaseSettings:
    ttl: float = seconds(
        2.0,
        "without a heartbeat of the process that loads a missing key, after which the next one that"
        " waits for it loads it",
        low=0.2,
    )
    max_wait: float = seconds(60.0, "for a request for a lease to be left unanswered")
    max_total: int = setting(
        20_000,
        "leases and requests that wait for one, of all processes; half of them for one user",
        unit="leases",
        low=2,
        high=10_000_000,
    )
    max_per_connection: int = setting(
        5_000, "the same of one connection", unit="leases", low=1, high=10_000_000
    )
    max_waiters: int = setting(
        2_000,
        "requests that wait for one key, a process makes one; half of them for one user",
        unit="requests",
        low=2,
        high=1_000_000,
    )


@dataclass(frozen=True)
class DatabaseSettings:
    url: str | None = setting(
        None,
        "the database that queries and batched writes go to; default: SQLite in the state dir",
        env="DATABASE_URL",
        kind="url",
        secret=True,
    )
    pool_size: int = setting(
        20, "connections kept open", env="DB_POOL_SIZE", unit="connections", low=1, high=10_000
    )
    max_overflow: int = setting(
        30,
        "connections opened beyond pool_size under load, and closed when idle",
        env="DB_MAX_OVERFLOW",
        unit="connections",
        low=0,
        high=10_000,
    )
    pool_timeout: float = seconds(
        30.0, "how long a request waits for a connection", env="DB_POOL_TIMEOUT"
    )
    enable_query_cache: bool = setting(True, "false: cache_ttl of a query is ignored")


@dataclass(frozen=True)
class MonitoringSettings:
    enabled: bool = setting(
        True, "false: nothing is measured beyond counters", env="PERFORMANCE_MONITORING_ENABLED"
    )
    metrics_interval: float = seconds(60.0, "between two samples that are kept long", low=1.0)
    system_monitoring: bool = setting(True, "false: the host's own figures are left out")


@dataclass(frozen=True)
class TasksSettings:
    engine: str = setting(
        "embedded",
        "where tasks are queued: in the daemon's SQLite file, or by Procrastinate in PostgreSQL",
        choices=("embedded", "procrastinate"),
    )


@dataclass(frozen=True)
class SpoolSettings:
    retain: float = seconds(3600.0, "how long applied batches are kept for a fail-over", low=0.0)


@dataclass(frozen=True)
class MemorySettings:
    apply: bool = setting(
        False, "true: the profile's memory policy is applied in scrapers without being asked"
    )


@dataclass(frozen=True)
class AdviceSettings:
    profiles_dir: Path | None = setting(
        None, "profiles of your own, NAME.toml each, beside those that are shipped"
    )
    interval: float = seconds(10.0, "between two looks at what could be recommended", low=0.1)
    window: float = seconds(
        600.0, "how far back the figures go that recommendations rest on", low=1.0
    )


@dataclass(frozen=True)
class HttpSettings:
    listen: str = setting("127.0.0.1:8000", "host:port of the /performance routes, or off")
    post: str = setting(
        "local",
        "who may POST: local (any process of this host), owner (the daemon's own user and root),"
        " token (who sends the token of http.token_file)",
        choices=("local", "owner", "token"),
    )
    token_file: Path | None = setting(
        None, "holds the token for http.post = token; its mode must be 0600 or 0640"
    )
    allowed_hosts: tuple[str, ...] = setting(
        (), "further names that the Host header may have, for a proxy in front"
    )
    private: bool = setting(
        False, "true: reading needs what http.post asks for too; health checks stay open"
    )
    max_connections: int = setting(
        100, "open connections; further ones are closed", unit="connections", low=1, high=100_000
    )
    max_streams: int = setting(
        32,
        "open event streams among them; a further one is told busy",
        unit="connections",
        low=1,
        high=100_000,
    )
    max_body: int = size(65536, "bytes of a request's body", low=0, high=1 << 26)
    max_header: int = size(16384, "bytes of a request's head", low=256, high=1 << 20)
    header_timeout: float = seconds(5.0, "for a request's head to arrive")
    request_timeout: float = seconds(30.0, "for a request to be answered")
    idle_timeout: float = seconds(60.0, "for the next request on a connection kept open")
    write_timeout: float = seconds(10.0, "for a client to take what was sent to it")


@dataclass(frozen=True)
class SocketSettings:
    path: Path | None = setting(
        None,
        "the control socket; default: the first of $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/"
        "bi-performance, /tmp/bi-performance-UID",
        env="BI_PERFORMANCE_SOCKET",
    )
    max_connections: int = setting(
        1000, "open connections; a further one is told busy", unit="connections", low=1, high=50_000
    )
    max_in_flight: int = setting(
        128,
        "unanswered requests of one connection; a further one is told busy",
        unit="requests",
        low=1,
        high=10_000,
    )
    max_frame_bytes: int = size(32 << 20, "bytes of one message", low=1 << 16, high=1 << 28)
    max_shape_bytes: int = size(
        64 << 10, "bytes of one message outside text and binary", low=1 << 12, high=1 << 22
    )
    max_objects: int = setting(
        32_768, "objects in one message", unit="objects", low=64, high=1 << 20
    )
    max_depth: int = setting(64, "levels of nesting in one message", unit="levels", low=4, high=200)
    max_buffered_bytes: int = size(
        40 << 20,
        "bytes of unfinished messages and unread answers of all connections together; beyond, the"
        " connection is cut that has made no progress for the longest time",
        low=1 << 20,
        high=1 << 34,
    )
    idle_timeout: float = seconds(
        3600.0, "without a request, after which a connection is closed; attached ones stay"
    )
    write_timeout: float = seconds(
        10.0, "for a client to take an answer, after which its connection is cut"
    )


@dataclass(frozen=True)
class LogSettings:
    level: str = setting(
        "INFO",
        "least level that is logged",
        env="LOG_LEVEL",
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    )
    file: str | None = setting(
        None,
        "where the log goes, - for standard error; default: $LOGS_DIRECTORY, else"
        " logs/performance.log here, else in the state directory",
    )


@dataclass(frozen=True)
class Settings:
    """The whole configuration; `origins` says of each key where its value came from."""

    cache: CacheSettings = CacheSettings()
    leases: LeaseSettings = LeaseSettings()
    database: DatabaseSettings = DatabaseSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    tasks: TasksSettings = TasksSettings()
    spool: SpoolSettings = SpoolSettings()
    memory: MemorySettings = MemorySettings()
    advice: AdviceSettings = AdviceSettings()
    http: HttpSettings = HttpSettings()
    socket: SocketSettings = SocketSettings()
    log: LogSettings = LogSettings()
    mode: str = setting(
        "on",
        "on; observe: serve nothing and report what would have been saved; off: every call of a"
        " scraper is a local no-op",
        env="BI_PERFORMANCE_MODE",
        choices=("on", "observe", "off"),
    )
    state_dir: Path | None = setting(
        None,
        "what must survive a reboot; default: $STATE_DIRECTORY, else"
        " $XDG_STATE_HOME/bi-performance, else ~/.local/state/bi-performance",
    )
    shutdown_timeout: float = seconds(
        8.0, "for requests in flight to end when the daemon is told to stop"
    )
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    beneath: dict[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    """Of each key that an overlay has set: the value and origin that it hides."""
    file: Path | None = None


class Declared(NamedTuple):
    """A setting as declared: its dotted key, type as text, default and Meta."""

    key: str
    type: str
    default: Any
    meta: Meta


def declared() -> list[Declared]:
    """All settings, in the order of the files."""
    found = []
    for part in dataclasses.fields(Settings):
        if "setting" in part.metadata:
            found.append(
                Declared(part.name, str(part.type), part.default, part.metadata["setting"])
            )
        elif dataclasses.is_dataclass(part.default):
            found += [
                Declared(
                    f"{part.name}.{item.name}",
                    str(item.type),
                    item.default,
                    item.metadata["setting"],
                )
                for item in dataclasses.fields(part.default)
            ]
    return found
