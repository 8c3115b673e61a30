"""Figures of single processes: the daemon's own, and those that are attached."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from bi_performanced.cache.clients import OwnWords
from bi_performanced.host import Unknown
from bi_performanced.host.processes import Folder, Times
from bi_performanced.host.procfs import TICK
from bi_performanced.monitor.figures import OWN_PAGE, PROCESS, Reading, Reasons, Sample
from bi_performanced.monitor.host import NEEDS_TWO

STALE: Final = 180.0
"""Seconds after which what a process told of itself is told no more."""
STALE_PSS: Final = 600.0
"""The same for its proportional set size, which it looks at less often."""
_MOST: Final = {
    "rss_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    "pss_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    "swap_bytes": 1 << 48,
    "threads": 1 << 22,
    "open_files": 1 << 30,
    "read_bytes": 1 << 60,
    "write_bytes": 1 << 60,
    "cpu_seconds": 1 << 40,
}
"""Beyond which a process is not believed."""
_LARGEST_RATE: Final = 1 << 40


class _Rate:
    """A counter's growth in a second, between two looks; each look has a time of its own."""

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None
        self._last: float | None = None

    def look(self, at: float, value: float) -> float:
        """Raises Unknown on the first look, and on one that went back."""
        before = self._before
        if before is not None and at == before[0]:
            # Nothing new: what a process tells of itself is seldom written.
            if self._last is None:
                raise Unknown(NEEDS_TWO)
            return self._last
        self._before, self._last = (at, value), None
        if before is None or at < before[0]:
            raise Unknown(NEEDS_TWO)
        if value < before[1]:
            raise Unknown("the counter went back")
        self._last = (value - before[1]) / (at - before[0])
        return self._last


class ProcessReader:
    """Reads one process, never another that got its pid later."""

    def __init__(
        self,
        pid: int,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        *,
        before: int | None = None,
    ) -> None:
        """`pid` 0 stands for a process in a namespace that this one cannot see into.

        `before` is a time on the boot clock in ns: a process that started later is another one.
        """
        self.pid = pid
        self._root = root
        self._clock = clock
        self._before = before
        self._started: int | None = None
        self._rates: dict[str, _Rate] = {}
        self._rest: tuple[Sample, Reasons] = {}, {}
        self._pss: tuple[float | None, str] = (None, "it has not been looked at yet")
        self.seconds_for_pss = 0.0
        """How long the last look at the proportional set size took."""

    def read(
        self, *, shares: bool, own: OwnWords | None = None, now: int = 0, brief: bool = False
    ) -> Reading:
        """A value or null for each figure of PROCESS, and why the nulls are null.

        `shares`: look at the proportional set size too, which walks the process's whole memory;
        else it is the one that was seen last. `brief`: so are the others but processor time,
        memory and threads. `own` is what the process tells of itself, taken at
        `now` on the boot clock: used only for what cannot be seen from here.
        """
        sample: Sample = dict.fromkeys(figure.name for figure in PROCESS)
        reasons: Reasons = {}
        try:
            self._look(sample, reasons, shares, brief)
        except Unknown as unknown:
            for name in sample:
                sample[name], reasons[name] = None, str(unknown)
        sources: dict[str, str] = {}
        ended = any("has ended" in reason for reason in reasons.values())
        if own is not None and not ended:
            for name in [name for name in sample if sample[name] is None]:
                self._ask(name, own, now, sample, reasons, sources)
        return Reading(sample, reasons, sources)

    # ── as the kernel says

    def _look(self, sample: Sample, reasons: Reasons, shares: bool, brief: bool) -> None:
        if not self.pid:
            raise Unknown("the process is in another PID namespace")

        with Folder(self._root, self.pid) as folder:
            times = folder.times()
            self._check(times)
            sample["rss_bytes"], sample["threads"] = times.rss_bytes, times.threads
            sample["cpu_seconds"] = times.cpu_seconds
            rate = partial(self._rate("cpu").look, self._clock(), times.cpu_seconds)
            _take(sample, reasons, "cpu_percent", lambda: 100 * rate())
            if not (brief and self._rest[0]):
                self._rest = {}, {}
                self._look_at_rest(folder, *self._rest)
            if shares:
                self._look_at_pss(folder)
        sample.update(self._rest[0])
        reasons.update(self._rest[1])
        value, reason = self._pss
        sample["pss_bytes"] = value
        if value is None:
            reasons["pss_bytes"] = reason

    def _look_at_rest(self, folder: Folder, sample: Sample, reasons: Reasons) -> None:
        _take(sample, reasons, "swap_bytes", folder.swap_bytes)
        _take(sample, reasons, "open_files", folder.open_files)
        try:
            counts = folder.disk_bytes()
        except Unknown as unknown:
            for name in ("read", "write"):
                for kind in ("bytes", "bytes_per_second"):
                    sample[f"{name}_{kind}"], reasons[f"{name}_{kind}"] = None, str(unknown)
            return
        now = self._clock()
        for name, count in zip(("read", "write"), counts, strict=True):
            sample[f"{name}_bytes"] = count
            rate = partial(self._rate(name).look, now, count)
            _take(sample, reasons, f"{name}_bytes_per_second", rate)

    def _check(self, times: Times) -> None:
        if self._started is None:
            # A tick of leeway: a start is told in ticks.
            if self._before is not None and times.started - 1 > self._before * TICK // 10**9:
                raise Unknown("the process has ended, and another has its pid")
            self._started = times.started
        elif times.started != self._started:
            raise Unknown("the process has ended, and another has its pid")

    def _look_at_pss(self, folder: Folder) -> None:
        began = time.monotonic()
        try:
            self._pss = folder.pss_bytes(), ""
        except Unknown as unknown:
            self._pss = None, str(unknown)
        self.seconds_for_pss = time.monotonic() - began

    def _rate(self, name: str) -> _Rate:
        return self._rates.setdefault(name, _Rate())

    # ── as it says itself

    def _ask(
        self,
        name: str,
        own: OwnWords,
        now: int,
        sample: Sample,
        reasons: Reasons,
        sources: dict[str, str],
    ) -> None:
        """Fill in one figure from the process's own page, or say why that has none either."""
        if reasons[name] == NEEDS_TWO:
            # It can be seen from here: with the next sample it is.
            return
        try:
            sample[name] = self._told(name, own, now)
        except Unknown as unknown:
            reasons[name] = f"{reasons[name]}; the process's own page: {unknown}"
        else:
            del reasons[name]
            sources[name] = OWN_PAGE

    def _told(self, name: str, own: OwnWords, now: int) -> float:
        at = own.pss_at if name == "pss_bytes" else own.at
        if not at:
            raise Unknown("tells nothing yet")
        if at > now:
            raise Unknown("is of the future, and not believed")
        if now - at > 1e9 * (STALE_PSS if name == "pss_bytes" else STALE):
            raise Unknown(f"was written {(now - at) / 1e9:.0f} s ago")
        if name == "cpu_percent":
            most = 100.0 * (os.cpu_count() or 1) * 1.1 + 10
            return self._told_rate(name, at, own.cpu_ns, 100e-9, most)
        if name.endswith("_per_second"):
            count = getattr(own, name.removesuffix("_per_second"))
            return self._told_rate(name, at, count, 1, _LARGEST_RATE)
        value = own.cpu_ns if name == "cpu_seconds" else getattr(own, name)
        if value is None:
            raise Unknown("does not tell it")
        told: float = value / 1e9 if name == "cpu_seconds" else value
        if told > _MOST[name]:
            raise Unknown("tells what cannot be")
        return told

    def _told_rate(
        self, name: str, at: int, count: int | None, factor: float, most: float
    ) -> float:
        if count is None:
            raise Unknown("does not tell it")
        found = factor * self._rate(f"own {name}").look(at / 1e9, count)
        if found > most:
            raise Unknown("tells what cannot be")
        return found


def _take(sample: Sample, reasons: Reasons, name: str, how: Callable[[], float]) -> None:
    """Put what `how` returns under the name, or None and why."""
    try:
        sample[name] = how()
    except Unknown as unknown:
        sample[name], reasons[name] = None, str(unknown)
