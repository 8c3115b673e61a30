"""The monitor: samples the host, the daemon and the attached processes, and keeps their past."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from bi_performanced.cache.clients import Attachment, OwnWords, boot_clock
from bi_performanced.cache.component import Cache
from bi_performanced.config import MonitoringSettings
from bi_performanced.host.processes import numbered_as_here
from bi_performanced.monitor.figures import DAEMON, HOST, PROCESS, SERIES, Reading, Sample
from bi_performanced.monitor.history import MAX_BYTES, History, Mean, Track
from bi_performanced.monitor.host import HostReader
from bi_performanced.monitor.process import ProcessReader

log = structlog.get_logger("performance")

EVERY = 1.0
"""Seconds between two samples of the host and of the daemon."""
PROCESSES_EVERY = 5
"""Samples of the host between two of the attached processes, and of all of the daemon's own
figures; a new process is looked at at once."""
SHARES_EVERY = 60
"""Samples between two walks over a process's whole memory for its proportional set size."""
SHARES_SECONDS = 0.005
"""Time that such walks may take together at one sample: the others wait for the next one."""
SAVE_EVERY = 300
"""Samples between two times that the past is written to disk."""
FILE = "history"

LATE = 15.0
"""Seconds without a sample after which the monitor is degraded."""

_OFF = "monitoring.enabled is false"
_HOST_OFF = "monitoring.system_monitoring is false"
_NOT_YET = "no sample has been taken yet"


@dataclass
class _Watched:
    """A process that is looked at."""

    reader: ProcessReader
    reading: Reading | None = None
    shares_due: int = 0
    """The sample from which on its proportional set size is to be looked at again."""


class Monitor:
    """Samples in a thread, each second, while `run` runs."""

    def __init__(
        self,
        settings: MonitoringSettings,
        cache: Cache,
        state_dir: Path,
        root: Path = Path("/"),
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`clock` measures spans; `wall` is the time of day that people are shown."""
        self._settings = settings
        self._cache = cache
        self._path = state_dir / FILE
        self._root = root
        self._clock = clock
        self._wall = wall
        self._host_reader = HostReader(root, clock=clock)
        self._own = _Watched(ProcessReader(os.getpid(), root, clock))
        self._watched: dict[int, _Watched] = {}
        self._history = History(SERIES)
        self._mean = Mean(SERIES)
        self._looking = trio.CapacityLimiter(1)
        self._saving = trio.CapacityLimiter(1)
        self._counted: tuple[float, dict[str, int]] | None = None
        self._samples = 0
        self._sampled_at = clock()
        self._save_failed: str | None = None
        self._failed: str | None = None
        reason = _NOT_YET if settings.enabled else _OFF
        host_off = settings.enabled and not settings.system_monitoring
        self.host = Reading.absent(HOST, _HOST_OFF if host_off else reason)
        self.daemon = Reading.absent(PROCESS, reason)

    @property
    def settings(self) -> MonitoringSettings:
        """What the monitor goes by."""
        return self._settings

    async def reconfigure(self, settings: MonitoringSettings) -> None:
        """Go by another `metrics_interval` from the next sample on."""
        self._settings = settings

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sample until cancelled; the past is written to disk at the end."""
        if not self._settings.enabled:
            task_status.started()
            await trio.sleep_forever()
        await trio.to_thread.run_sync(self._load, limiter=self._saving)
        task_status.started()
        # Whether the past can be kept is known at once, not after the first five minutes.
        await self._save()
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
                    self._history.minutes.add(self._wall(), self._mean.take())
                    since_long = 0
                if self._samples % SAVE_EVERY == 0:
                    await self._save()
                # A pause of the machine, or of this process, is not made up for.
                due = max(due + EVERY, trio.current_time())
                await trio.sleep_until(due)
        finally:
            with trio.CancelScope(shield=True):
                await self._save()

    async def _sample_once(self) -> None:
        attached = self._cache.attachments()
        kept = self._watched
        self._watched = {
            number: kept.get(number) or self._watch(each) for number, each in attached.items()
        }
        everyone = self._samples % PROCESSES_EVERY == 0
        # The pages are unmapped by this thread, so they are read in it.
        now = boot_clock()
        due = [
            (watched, attached[number].own_words())
            for number, watched in self._watched.items()
            if everyone or watched.reading is None
        ]
        # A look that hangs is left behind when the daemon stops.
        host, own, readings = await trio.to_thread.run_sync(
            self._look, due, now, limiter=self._looking, abandon_on_cancel=True
        )
        self._sampled_at = self._clock()
        if host is not None:
            self.host = host
        self.daemon = own
        for (watched, _), reading in zip(due, readings, strict=True):
            watched.reading = reading
        point = dict(self.host.sample)
        point.update((f"daemon_{name}", self.daemon.sample[name]) for name in DAEMON)
        point.update(self._cache_point())
        self._history.seconds.add(self._wall(), point)
        self._mean.add(point)

    def _watch(self, process: Attachment) -> _Watched:
        pid = process.peer_pid if numbered_as_here(self._root) else 0
        return _Watched(ProcessReader(pid, self._root, self._clock, before=process.attached_at))

    def _look(
        self, due: list[tuple[_Watched, OwnWords]], now: int
    ) -> tuple[Reading | None, Reading, list[Reading]]:
        """The host if it is to be looked at, the daemon, and the processes that are due."""
        host = self._host_reader.read() if self._settings.system_monitoring else None
        left = SHARES_SECONDS

        def read(watched: _Watched, own: OwnWords | None, *, brief: bool = False) -> Reading:
            nonlocal left
            shares = left > 0 and watched.shares_due <= self._samples
            found = watched.reader.read(shares=shares, own=own, now=now, brief=brief)
            if shares:
                watched.shares_due = self._samples + SHARES_EVERY
                left -= watched.reader.seconds_for_pss
            return found

        # In full at the first two samples, so that rates are known from the second one on.
        brief = self._samples > 1 and self._samples % PROCESSES_EVERY != 0
        daemon = read(self._own, None, brief=brief)
        # Those that wait longest first.
        order = sorted(range(len(due)), key=lambda place: due[place][0].shares_due)
        found = {place: read(*due[place]) for place in order}
        return host, daemon, [found[place] for place in range(len(due))]

    def _cache_point(self) -> Sample:
        stats = self._cache.stats()
        counted = {name: getattr(stats, name) for name in ("hits", "misses", "sets", "evictions")}
        now = self._clock()
        before, self._counted = self._counted, (now, counted)
        point: Sample = {"cache_entries": stats.entries, "cache_size_bytes": stats.size_bytes}
        if before is not None and now > before[0]:
            grown = {name: max(0, counted[name] - before[1][name]) for name in counted}
            seconds = now - before[0]
            point.update(
                (f"cache_{name}_per_second", count / seconds) for name, count in grown.items()
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
        """The newest values of a series since the start, one a second, oldest first."""
        return self._history.seconds.last(name, min(count, self._samples))

    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        try:
            if len(data) > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            self._history.load(data)
        except ValueError as error:
            self._history = History(SERIES)
            self._lost(str(error))

    def _lost(self, reason: str) -> None:
        """What cannot be used here may be of use to the version that wrote it."""
        with suppress(OSError):
            self._path.replace(self._path.with_name(FILE + ".unused"))
        log.warning("monitor.history_lost", file=str(self._path), reason=reason)

    async def _save(self) -> None:
        data = self._history.dump()
        write = partial(self._history.save, self._path, data)
        try:
            await trio.to_thread.run_sync(write, limiter=self._saving)
        except OSError as error:
            reason = error.strerror or str(error)
            if self._save_failed is None:
                log.warning("monitor.history_not_saved", reason=reason, file=str(self._path))
            self._save_failed = f"the past cannot be kept in {self._path}: {reason}"
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
        late = self._clock() - self._sampled_at
        hangs = f"no sample was finished for {late:.0f} s" if late > LATE else None
        if reason := self._failed or hangs or self._save_failed:
            found["status"], found["reason"] = "degraded", reason
        return found

    def process_figures(self, attached: Mapping[int, Attachment]) -> list[dict[str, Any]]:
        """Each attached process with its identity, its reads, and its figures."""
        found = []
        for number, each in attached.items():
            watched = self._watched.get(number)
            reading = watched.reading if watched else None
            if reading is None:
                reading = Reading.absent(PROCESS, _NOT_YET if self._settings.enabled else _OFF)
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
                    "sources": reading.sources,
                }
            )
        return found
