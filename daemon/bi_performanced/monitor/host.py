"""The host's figures: psutil's where it is installed, else /proc's own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from bi_performanced.host import Unknown, cgroups, procfs
from bi_performanced.host.procfs import Pair
from bi_performanced.monitor.figures import HOST, Reading, Reasons, Sample


class Source(Protocol):
    """Where the figures that psutil has too come from; each method raises Unknown."""

    name: str

    def cpu_seconds(self) -> tuple[float, float]: ...
    def memory(self) -> Pair: ...
    def swap(self) -> Pair: ...
    def disk_bytes(self) -> dict[str, Pair]: ...
    def network_bytes(self) -> dict[str, Pair]: ...


class ProcfsSource:
    """Without any library."""

    name = "procfs"

    def __init__(self, root: Path) -> None:
        self._root = root

    def cpu_seconds(self) -> tuple[float, float]:
        return procfs.cpu_seconds(self._root)

    def memory(self) -> Pair:
        return procfs.memory(self._root)

    def swap(self) -> Pair:
        return procfs.swap(self._root)

    def disk_bytes(self) -> dict[str, Pair]:
        return procfs.disk_bytes(self._root)

    def network_bytes(self) -> dict[str, Pair]:
        return procfs.network_bytes(self._root)


class PsutilSource:
    """With psutil, of the `performance` extra."""

    name = "psutil"

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil

    def cpu_seconds(self) -> tuple[float, float]:
        times = self._ask(self._psutil.cpu_times)
        # Guest time is within user time already.
        total = sum(times[:8])
        return total - times.idle - getattr(times, "iowait", 0.0), total

    def memory(self) -> Pair:
        found = self._ask(self._psutil.virtual_memory)
        return found.total, found.available

    def swap(self) -> Pair:
        # Not psutil's: for two numbers it reads a second, larger file, and warns when it is hidden.
        return procfs.swap(Path("/"))

    def disk_bytes(self) -> dict[str, Pair]:
        ask = partial(self._psutil.disk_io_counters, perdisk=True, nowrap=False)
        found = self._ask(ask) or {}
        return {
            name: (found[name].read_bytes, found[name].write_bytes)
            for name in procfs.disks(Path("/"), found)
        }

    def network_bytes(self) -> dict[str, Pair]:
        ask = partial(self._psutil.net_io_counters, pernic=True, nowrap=False)
        found = dict(self._ask(ask))
        found.pop("lo", None)
        if not found:
            raise Unknown("psutil: there is no interface but loopback")
        return {name: (each.bytes_recv, each.bytes_sent) for name, each in found.items()}

    def _ask(self, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except Exception as error:
            # psutil parses what the kernel says, and fails in as many ways as that can differ.
            raise Unknown(f"psutil: {error!r:.200}") from None


def best_source(root: Path = Path("/")) -> Source:
    """psutil's when it can be imported, and the root is the machine's own."""
    if root == Path("/"):
        try:
            import psutil
        except ImportError:
            pass
        else:
            return PsutilSource(psutil)
    return ProcfsSource(root)


_PRESSURES: Final = {"cpu": ("some",), "memory": ("some", "full"), "io": ("some", "full")}
SLOW_EVERY: Final = 5
"""Reads between two looks at what moves slowly, or is an average over seconds already."""
LIMITS_EVERY: Final = 30
"""Reads between two looks at the limits of control groups, which seldom change."""
NEEDS_TWO: Final = "needs two samples"


class _Flow:
    """What passed through devices: since the last look as a rate, since the first one as a sum."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._before: dict[str, Pair] = {}
        self._sum = (0, 0)

    def look(self, now: float, found: dict[str, Pair]) -> tuple[float | None, ...]:
        """Two rates, None when there are none yet, and two sums.

        A device that came or went between two looks counts from the next one on; one whose
        counters went back was replaced or has wrapped, and what it did is left out.
        """
        before, at = self._before, self._at
        self._before, self._at = found, now
        first = second = 0
        for name, (one, other) in found.items():
            if name in before and one >= before[name][0] and other >= before[name][1]:
                first += one - before[name][0]
                second += other - before[name][1]
        self._sum = self._sum[0] + first, self._sum[1] + second
        if at is None or now <= at:
            return None, None, *self._sum
        seconds = now - at
        return first / seconds, second / seconds, *self._sum


Take = Callable[[tuple[str, ...], Callable[[], tuple[float | None, ...]]], None]


class HostReader:
    """Reads the host's figures; rates are between one call and the next."""

    def __init__(
        self,
        root: Path = Path("/"),
        source: Source | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self.source = source or best_source(root)
        self._clock = clock
        self._cpu: tuple[float, float] | None = None
        self._flows = {"disk": _Flow(), "network": _Flow()}
        self._kept: dict[Callable[[Take], None], tuple[Sample, Reasons]] = {}
        self._reads = 0

    def read(self) -> Reading:
        """A value or null for each figure of HOST, and why the nulls are null."""
        sample: Sample = {figure.name: None for figure in HOST}
        reasons: Reasons = {}
        take = partial(_take, sample, reasons)
        take(("cpu_percent",), self._cpu_percent)
        take(("cpu_count",), lambda: (os.cpu_count(),))
        memory = ("memory_total_bytes", "memory_available_bytes", "memory_used_percent")
        take(memory, self._memory)
        for what, kinds, how in (
            ("disk", ("read", "write"), self.source.disk_bytes),
            ("network", ("receive", "send"), self.source.network_bytes),
        ):
            flow = [f"{what}_{kind}_bytes_per_second" for kind in kinds]
            flow += [f"{what}_{kind}_bytes" for kind in kinds]
            take(tuple(flow), partial(self._flow, what, how))
        for look, every in ((self._slow, SLOW_EVERY), (self._limits, LIMITS_EVERY)):
            if self._reads % every == 0:
                found: tuple[Sample, Reasons] = {}, {}
                look(partial(_take, *found))
                self._kept[look] = found
            sample.update(self._kept[look][0])
            reasons.update(self._kept[look][1])
        self._reads += 1
        return Reading(sample, reasons)

    def _slow(self, take: Take) -> None:
        take(("load_1m", "load_5m", "load_15m"), lambda: procfs.load(self._root))
        take(("swap_total_bytes", "swap_used_bytes"), self.source.swap)
        for resource, shares in _PRESSURES.items():
            stalls = tuple(f"pressure_{resource}_{share}_percent" for share in shares)
            take(stalls, partial(self._pressure, resource, shares))
        take(("open_files", "open_files_max"), lambda: procfs.open_files(self._root))
        take(("cgroup_memory_bytes",), lambda: (cgroups.memory_used(self._root),))

    def _limits(self, take: Take) -> None:
        take(("cgroup_memory_limit_bytes",), lambda: (cgroups.memory_limit(self._root),))
        take(("cgroup_cpu_limit",), lambda: (cgroups.cpu_limit(self._root),))

    def _memory(self) -> tuple[float, ...]:
        total, available = self.source.memory()
        if not 0 <= available <= total or not total:
            raise Unknown("more memory is said to be available than there is")
        return total, available, 100.0 * (total - available) / total

    def _cpu_percent(self) -> tuple[float]:
        busy, total = self.source.cpu_seconds()
        before, self._cpu = self._cpu, (busy, total)
        if before is None:
            raise Unknown(NEEDS_TWO)
        if total <= before[1] or busy < before[0]:
            raise Unknown("the processors' counters did not grow between two samples")
        return (min(100.0, 100.0 * (busy - before[0]) / (total - before[1])),)

    def _flow(self, what: str, how: Callable[[], dict[str, Pair]]) -> tuple[float | None, ...]:
        found = how()
        return self._flows[what].look(self._clock(), found)

    def _pressure(self, resource: str, kinds: tuple[str, ...]) -> tuple[float, ...]:
        found = procfs.pressure(self._root, resource)
        try:
            return tuple(found[kind] for kind in kinds)
        except KeyError:
            raise Unknown(f"the kernel does not tell {resource} pressure in full") from None


def _take(
    sample: Sample,
    reasons: Reasons,
    names: tuple[str, ...],
    how: Callable[[], tuple[float | None, ...]],
) -> None:
    """Put what `how` returns under the names, and say why those that are None are so."""
    try:
        found = how()
    except Unknown as unknown:
        reasons.update(dict.fromkeys(names, str(unknown)))
        found = (None,) * len(names)
    for name, value in zip(names, found, strict=True):
        sample[name] = value
        if value is None:
            reasons.setdefault(name, NEEDS_TWO)
