"""Every figure of the host and of a process, declared once: name, unit, meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple


class Figure(NamedTuple):
    """Its name ends in its unit, as JSON shows it."""

    name: str
    doc: str
    counts: bool = False
    """It only grows, from the daemon's or the process's start on: in no history."""


HOST: Final = (
    Figure("cpu_percent", "share of all processors in use, 0 to 100"),
    Figure("cpu_count", "processors online"),
    Figure("load_1m", "processes that run or wait to, averaged over a minute"),
    Figure("load_5m", "the same over 5 minutes"),
    Figure("load_15m", "the same over 15 minutes"),
    Figure("memory_total_bytes", "physical memory"),
    Figure("memory_available_bytes", "memory that can be had without swapping"),
    Figure("memory_used_percent", "share of memory that cannot, 0 to 100"),
    Figure("swap_total_bytes", "swap space"),
    Figure("swap_used_bytes", "swap space in use"),
    Figure("disk_read_bytes_per_second", "read from all disks"),
    Figure("disk_write_bytes_per_second", "written to all disks"),
    Figure("disk_read_bytes", "read from all disks since the daemon's start", True),
    Figure("disk_write_bytes", "written to all disks since the daemon's start", True),
    Figure("network_receive_bytes_per_second", "received on all interfaces but loopback"),
    Figure("network_send_bytes_per_second", "sent on all interfaces but loopback"),
    Figure("network_receive_bytes", "received on them since the daemon's start", True),
    Figure("network_send_bytes", "sent on them since the daemon's start", True),
    Figure("pressure_cpu_some_percent", "time in which some task waited for a processor (10 s)"),
    Figure("pressure_memory_some_percent", "time in which some task waited for memory (10 s)"),
    Figure("pressure_memory_full_percent", "time in which all tasks waited for memory (10 s)"),
    Figure("pressure_io_some_percent", "time in which some task waited for a disk (10 s)"),
    Figure("pressure_io_full_percent", "time in which all tasks waited for a disk (10 s)"),
    Figure("open_files", "open file descriptions of the host"),
    Figure("open_files_max", "the limit of them"),
    Figure("cgroup_memory_bytes", "memory of the daemon's control group without pages of files"),
    Figure("cgroup_memory_limit_bytes", "the least limit of that group and those it is in"),
    Figure("cgroup_cpu_limit", "processors that the group may use, as a number"),
)
"""What `metrics` tells of the host; rates and percentages are since the last sample."""

PROCESS: Final = (
    Figure("cpu_percent", "of one processor, 0 to 100 and more with threads"),
    Figure("cpu_seconds", "processor time since its start", True),
    Figure("rss_bytes", "resident memory, shared pages included"),
    Figure("pss_bytes", "resident memory, shared pages by share"),
    Figure("swap_bytes", "memory in swap"),
    Figure("threads", "threads"),
    Figure("open_files", "open descriptors"),
    Figure("read_bytes_per_second", "read from disks"),
    Figure("write_bytes_per_second", "written to disks"),
    Figure("read_bytes", "read from disks since its start", True),
    Figure("write_bytes", "written to disks since its start", True),
)
"""What `metrics` tells of the daemon and of each attached process."""

CACHE: Final = (
    Figure("cache_hits_per_second", "reads of the cache that found something"),
    Figure("cache_misses_per_second", "reads that did not"),
    Figure("cache_hit_rate", "hits of all reads, 0 to 1; null without reads"),
    Figure("cache_sets_per_second", "entries stored"),
    Figure("cache_evictions_per_second", "entries that left for others"),
    Figure("cache_entries", "entries that can be read"),
    Figure("cache_size_bytes", "their bytes"),
)
"""What the history tells of the cache."""

DAEMON: Final = ("cpu_percent", "rss_bytes", "open_files")
"""Figures of the daemon's own process that the history has, as `daemon_…`."""

SERIES: Final = (
    *(figure.name for figure in (*HOST, *CACHE) if not figure.counts),
    *(f"daemon_{name}" for name in DAEMON),
)

OWN_PAGE: Final = "own page"
"""The source of a figure that the process told of itself."""

Sample = dict[str, float | None]
"""A value or null for each figure of a table."""
Reasons = dict[str, str]
"""For each figure that is null, why."""


@dataclass(frozen=True)
class Reading:
    """Values, for each that is null why, and which of them come from elsewhere than the kernel."""

    sample: Sample
    reasons: Reasons
    sources: dict[str, str] = field(default_factory=dict)

    @classmethod
    def absent(cls, figures: tuple[Figure, ...], reason: str) -> Reading:
        """All null, for one reason."""
        names = [figure.name for figure in figures]
        return cls(dict.fromkeys(names), dict.fromkeys(names, reason))
