"""The host's figures: psutil's where it is installed, else /proc's own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from bi_performanced.host import Unknown, cgroups, procfs
from bi_performanced.monitor.figures import HOST, Reasons, Sample


class Source(Protocol):
    """Where the figures that psutil has too come from; each method raises Unknown."""

    name: str

    def cpu_seconds(self) -> tuple[float, float]: ...
    def memory(self) -> tuple[int, int, int, int]: ...
    def disk_bytes(self) -> tuple[int, int]: ...
    def network_bytes(self) -> tuple[int, int]: ...


class ProcfsSource:
    """Without any library."""

    name = "procfs"

    def __init__(self, root: Path) -> None:
        self._root = root

    def cpu_seconds(self) -> tuple[float, float]:
        return procfs.cpu_seconds(self._root)

    def memory(self) -> tuple[int, int, int, int]:
        return procfs.memory(self._root)

    def disk_bytes(self) -> tuple[int, int]:
        return procfs.disk_bytes(self._root)

    def network_bytes(self) -> tuple[int, int]:
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

    def memory(self) -> tuple[int, int, int, int]:
        memory, swap = self._ask(self._psutil.virtual_memory), self._ask(self._psutil.swap_memory)
        return memory.total, memory.available, swap.total, swap.used

    def disk_bytes(self) -> tuple[int, int]:
        found = self._ask(self._psutil.disk_io_counters)
        if found is None:
            raise Unknown("psutil: there are no disks")
        return found.read_bytes, found.write_bytes

    def network_bytes(self) -> tuple[int, int]:
        found = dict(self._ask(lambda: self._psutil.net_io_counters(pernic=True)))
        found.pop("lo", None)
        if not found:
            raise Unknown("psutil: there is no interface but loopback")
        each = found.values()
        return sum(one.bytes_recv for one in each), sum(one.bytes_sent for one in each)

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


class _Totals(NamedTuple):
    at: float
    first: float
    second: float


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
        self._before: dict[str, _Totals] = {}

    def read(self) -> tuple[Sample, Reasons]:
        """A value or null for each figure of HOST, and why the nulls are null."""
        sample: Sample = {figure.name: None for figure in HOST}
        reasons: Reasons = {}

        def take(names: tuple[str, ...], how: Callable[[], tuple[float | None, ...]]) -> None:
            try:
                sample.update(zip(names, how(), strict=True))
            except Unknown as unknown:
                reasons.update(dict.fromkeys(names, str(unknown)))

        take(("cpu_percent",), self._cpu_percent)
        take(("cpu_count",), lambda: (os.cpu_count(),))
        take(("load_1m", "load_5m", "load_15m"), lambda: procfs.load(self._root))
        take(
            (
                "memory_total_bytes",
                "memory_available_bytes",
                "swap_total_bytes",
                "swap_used_bytes",
                "memory_used_percent",
            ),
            self._memory,
        )
        for what, (first, second), totals in (
            ("disk", ("read", "write"), self.source.disk_bytes),
            ("network", ("receive", "send"), self.source.network_bytes),
        ):
            rates = tuple(f"{what}_{name}_bytes_per_second" for name in (first, second))
            take(rates, partial(self._rates, what, totals))
        for resource, kinds in _PRESSURES.items():
            names = tuple(f"pressure_{resource}_{kind}_percent" for kind in kinds)
            take(names, partial(self._pressure, resource, kinds))
        take(("open_files", "open_files_max"), lambda: procfs.open_files(self._root))
        take(("cgroup_memory_bytes",), lambda: (cgroups.memory_used(self._root),))
        take(("cgroup_memory_limit_bytes",), lambda: (cgroups.memory_limit(self._root),))
        take(("cgroup_cpu_limit",), lambda: (cgroups.cpu_limit(self._root),))
        return sample, reasons

    def _memory(self) -> tuple[float, ...]:
        total, available, swap, swap_used = self.source.memory()
        return total, available, swap, swap_used, 100.0 * (total - available) / total

    def _cpu_percent(self) -> tuple[float]:
        busy, total = self.source.cpu_seconds()
        before = self._before.get("cpu")
        self._before["cpu"] = _Totals(0.0, busy, total)
        if before is None or total <= before.second or busy < before.first:
            raise Unknown("needs two samples")
        return (min(100.0, 100.0 * (busy - before.first) / (total - before.second)),)

    def _rates(self, what: str, how: Callable[[], tuple[int, int]]) -> tuple[float, float]:
        totals = how()
        now = self._clock()
        before = self._before.get(what)
        self._before[what] = _Totals(now, *totals)
        if before is None or now <= before.at:
            raise Unknown("needs two samples")
        first, second = totals[0] - before.first, totals[1] - before.second
        if first < 0 or second < 0:
            raise Unknown("a device went away between two samples")
        seconds = now - before.at
        return first / seconds, second / seconds

    def _pressure(self, resource: str, kinds: tuple[str, ...]) -> tuple[float, ...]:
        found = procfs.pressure(self._root, resource)
        try:
            return tuple(found[kind] for kind in kinds)
        except KeyError:
            raise Unknown(f"the kernel does not tell {resource} pressure in full") from None
