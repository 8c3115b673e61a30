"""The monitor: samples the host, the daemon and the attached processes, and keeps their past."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import structlog
import trio

from bi_performanced.cache.clients import Attachment
from bi_performanced.cache.component import Cache
from bi_performanced.config import MonitoringSettings
from bi_performanced.monitor.figures import DAEMON, PROCESS, SERIES, Reasons, Sample
from bi_performanced.monitor.history import History, Track
from bi_performanced.monitor.host import HostReader
from bi_performanced.monitor.process import ProcessReader

log = structlog.get_logger("performance")

EVERY = 1.0
"""Seconds between two samples of the host and of the daemon."""
PROCESSES_EVERY = 5
"""Samples of the host between two of the attached processes."""
SHARES_EVERY = 30
"""Samples between two walks over a process's whole memory for its proportional set size."""
SAVE_EVERY = 300
"""Samples between two times that the past is written to disk."""
FILE = "history"

_OFF = "monitoring.enabled is false"
_HOST_OFF = "monitoring.system_monitoring is false"
_NOT_YET = "no sample has been taken yet"


class Reading(NamedTuple):
    """Values, and for each that is null why."""

    sample: Sample
    reasons: Reasons


class Monitor:
    """Samples in a thread, each second, while `run` runs."""

    def __init__(
        self, settings: MonitoringSettings, cache: Cache, state_dir: Path, root: Path = Path("/")
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._path = state_dir / FILE
        self._root = root
        self._host_reader = HostReader(root)
        self._own_reader = ProcessReader(os.getpid(), root)
        self._readers: dict[int, ProcessReader] = {}
        self._history = History(SERIES)
        self._threads = trio.CapacityLimiter(1)
        self._counted: dict[str, int] | None = None
        self._samples = 0
        self._save_failed: str | None = None
        self._failed: str | None = None
        reason = _NOT_YET if settings.enabled else _OFF
        self.host = self._absent(_HOST_OFF if not settings.system_monitoring else reason)
        self.daemon = self._absent(reason)
        self.processes: dict[int, Reading] = {}

    @property
    def settings(self) -> MonitoringSettings:
        """What the monitor goes by."""
        return self._settings

    async def reconfigure(self, settings: MonitoringSettings) -> None:
        """Go by another `metrics_interval` from the next sample on."""
        self._settings = settings

    @staticmethod
    def _absent(reason: str) -> Reading:
        return Reading({}, {"": reason})

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sample until cancelled; the past is written to disk at the end."""
        if not self._settings.enabled:
            task_status.started()
            await trio.sleep_forever()
        await trio.to_thread.run_sync(self._load, limiter=self._threads)
        task_status.started()
        since_long = 0
        due = trio.current_time()
        try:
            while True:
                try:
                    await self._sample_once()
                except Exception as error:
                    # Whatever a kernel or a library may answer, the cache goes on.
                    if self._failed is None:
                        log.error("monitor.failed", exc_info=error)
                    self._failed = f"the last sample failed: {error!r:.200}"
                else:
                    self._failed = None
                self._samples += 1
                since_long += 1
                if since_long >= round(self._settings.metrics_interval / EVERY):
                    minutes = self._history.minutes
                    minutes.add(time.time(), self._history.seconds.mean(since_long))
                    since_long = 0
                if self._samples % SAVE_EVERY == 0:
                    data = self._history.dump()
                    await trio.to_thread.run_sync(self._save, data, limiter=self._threads)
                # A pause of the machine, or of this process, is not made up for.
                due = max(due + EVERY, trio.current_time())
                await trio.sleep_until(due)
        finally:
            with trio.CancelScope(shield=True):
                data = self._history.dump()
                await trio.to_thread.run_sync(self._save, data, limiter=self._threads)

    async def _sample_once(self) -> None:
        attached = self._cache.attachments()
        self._readers = {
            number: self._readers.get(number) or ProcessReader(each.peer_pid, self._root)
            for number, each in attached.items()
        }
        with_processes = self._samples % PROCESSES_EVERY == 0
        with_shares = self._samples % SHARES_EVERY == 0

        def read() -> tuple[Reading | None, Reading, dict[int, Reading] | None]:
            host = Reading(*self._host_reader.read()) if self._settings.system_monitoring else None
            own = Reading(*self._own_reader.read(shares=with_shares))
            processes = None
            if with_processes:
                processes = {
                    number: Reading(*reader.read(shares=with_shares))
                    for number, reader in readers.items()
                }
            return host, own, processes

        readers = dict(self._readers)
        host, self.daemon, processes = await trio.to_thread.run_sync(read, limiter=self._threads)
        if host is not None:
            self.host = host
        if processes is not None:
            self.processes = processes
        point = dict(self.host.sample)
        point.update((f"daemon_{name}", self.daemon.sample[name]) for name in DAEMON)
        point.update(self._cache_point())
        self._history.seconds.add(time.time(), point)

    def _cache_point(self) -> Sample:
        stats = self._cache.stats()
        counted = {name: getattr(stats, name) for name in ("hits", "misses", "sets", "evictions")}
        before, self._counted = self._counted, counted
        point: Sample = {"cache_entries": stats.entries, "cache_size_bytes": stats.size_bytes}
        if before is not None:
            grown = {name: max(0, counted[name] - before[name]) for name in counted}
            point.update(
                (f"cache_{name}_per_second", count / EVERY) for name, count in grown.items()
            )
            reads = grown["hits"] + grown["misses"]
            point["cache_hit_rate"] = grown["hits"] / reads if reads else None
        return point

    # ── the past

    def history(self, span: str) -> dict[str, Any]:
        """The past by `seconds` (ten minutes) or `minutes` (a day): times (Unix) and series."""
        track: Track = getattr(self._history, span)
        interval = EVERY if span == "seconds" else self._settings.metrics_interval
        return {
            "interval_seconds": interval,
            "timestamps": track.times(),
            "series": track.series(),
        }

    def recent(self, name: str, count: int) -> list[float | None]:
        """The newest values of a series, one a second, oldest first."""
        return self._history.seconds.last(name, count)

    def _load(self) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("monitor.history_lost", file=str(self._path), reason=error.strerror)
            return
        try:
            self._history.load(data)
        except ValueError as error:
            log.warning("monitor.history_lost", file=str(self._path), reason=str(error))
            self._history = History(SERIES)

    def _save(self, data: bytes) -> None:
        try:
            self._history.save(self._path, data)
        except OSError as error:
            if self._save_failed is None:
                log.warning(
                    "monitor.history_not_saved", reason=error.strerror, file=str(self._path)
                )
            self._save_failed = f"the past cannot be kept in {self._path}: {error.strerror}"
        else:
            self._save_failed = None

    # ── what is told

    def status(self) -> dict[str, Any]:
        """`ok`, `degraded` with the reason, or `off`."""
        if not self._settings.enabled:
            return {"status": "off", "reason": _OFF}
        found: dict[str, Any] = {"status": "ok", "source": self._host_reader.source.name}
        for name in ("cpu_percent", "memory_used_percent"):
            found[name] = self.host.sample.get(name)
        if reason := self._failed or self._save_failed:
            found["status"], found["reason"] = "degraded", reason
        return found

    def process_figures(self, attached: Mapping[int, Attachment]) -> list[dict[str, Any]]:
        """Each attached process with its identity, its reads, and its figures."""
        found = []
        for number, each in attached.items():
            reading = self.processes.get(number)
            if reading is None:
                reason = _NOT_YET if self._settings.enabled else _OFF
                reading = Reading({figure.name: None for figure in PROCESS}, {"": reason})
            found.append(
                {
                    "instance": each.instance.hex(),
                    "name": each.name,
                    "pid": each.peer_pid or None,
                    "own_pid": each.pid or None,
                    "uid": each.uid,
                    "hits": each.figures.hits,
                    "misses": each.figures.misses,
                    "trusted": each.plausible,
                    **reading.sample,
                    "unknown": reading.reasons,
                }
            )
        return found
