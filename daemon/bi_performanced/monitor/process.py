"""Figures of single processes: the daemon's own, and those that are attached."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bi_performanced.host import Unknown, procfs
from bi_performanced.monitor.figures import PROCESS, Reasons, Sample


class ProcessReader:
    """Reads one process, never another that got its pid later."""

    def __init__(
        self,
        pid: int,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pid` 0 stands for a process in a namespace that this one cannot see into."""
        self.pid = pid
        self._root = root
        self._clock = clock
        self._started: int | None = None
        self._cpu: tuple[float, float] | None = None
        self._disk: tuple[float, int, int] | None = None
        self._shares: tuple[int, int] | Unknown | None = None
        if pid:
            try:
                self._started = procfs.process(root, pid).started
            except Unknown:
                # It ended at once, or /proc is hidden: each reading says so.
                self._started = None

    def read(self, *, shares: bool) -> tuple[Sample, Reasons]:
        """A value or null for each figure of PROCESS, and why the nulls are null.

        `shares`: look at the proportional set size too, which walks the process's whole memory;
        else it is the one that was seen last.
        """
        sample: Sample = {figure.name: None for figure in PROCESS}
        reasons: Reasons = {}

        def take(names: tuple[str, ...], how: Callable[[], tuple[float, ...]]) -> None:
            try:
                sample.update(zip(names, how(), strict=True))
            except Unknown as unknown:
                reasons.update(dict.fromkeys(names, str(unknown)))

        if not self.pid:
            reason = "the process is in another PID namespace"
            return sample, dict.fromkeys(sample, reason)
        try:
            times = procfs.process(self._root, self.pid)
            if times.started != self._started:
                raise Unknown("the process has ended, and another has its pid")
        except Unknown as unknown:
            return sample, dict.fromkeys(sample, str(unknown))
        sample["rss_bytes"], sample["threads"] = times.rss_bytes, times.threads
        take(("cpu_percent",), lambda: (self._cpu_percent(times.cpu_seconds),))
        if shares or self._shares is None:
            try:
                self._shares = procfs.process_shares(self._root, self.pid)
            except Unknown as unknown:
                self._shares = unknown
        take(("pss_bytes", "swap_bytes"), self._seen_shares)
        take(("read_bytes_per_second", "write_bytes_per_second"), self._disk_rates)
        take(("open_files",), lambda: (procfs.process_files(self._root, self.pid),))
        return sample, reasons

    def _seen_shares(self) -> tuple[float, float]:
        if isinstance(self._shares, Unknown):
            raise self._shares
        assert self._shares is not None
        return self._shares

    def _cpu_percent(self, seconds: float) -> float:
        now = self._clock()
        before, self._cpu = self._cpu, (now, seconds)
        if before is None or now <= before[0]:
            raise Unknown("needs two samples")
        return max(0.0, 100.0 * (seconds - before[1]) / (now - before[0]))

    def _disk_rates(self) -> tuple[float, float]:
        read, written = procfs.process_disk_bytes(self._root, self.pid)
        now = self._clock()
        before, self._disk = self._disk, (now, read, written)
        if before is None or now <= before[0]:
            raise Unknown("needs two samples")
        seconds = now - before[0]
        return max(0, read - before[1]) / seconds, max(0, written - before[2]) / seconds
