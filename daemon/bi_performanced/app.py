"""The composition root: builds every part, and runs them in one nursery tree.

Nesting is lifetime. Outermost the cache, whose heartbeat readers trust; inside it the fronts; a
stop leaves the fronts first, with a deadline, then the cache.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog
import trio

from bi_performance_wire import __version__
from bi_performance_wire.address import NAME, runtime_folder, too_long
from bi_performance_wire.streams import complain
from bi_performanced.advice.choice import Kept
from bi_performanced.advice.component import Advisor
from bi_performanced.advice.tuner import Part, Plan, Planner, Tuner, restore
from bi_performanced.cache.component import Cache
from bi_performanced.config import Settings
from bi_performanced.config.limits import room
from bi_performanced.dispatch import Dispatcher
from bi_performanced.events import Broker
from bi_performanced.fronts.http import HttpFront
from bi_performanced.fronts.socket import SocketFront
from bi_performanced.handlers import cache as cache_handlers
from bi_performanced.handlers import insight as insight_handlers
from bi_performanced.handlers import leases as lease_handlers
from bi_performanced.handlers import monitor as monitor_handlers
from bi_performanced.handlers import optimizer as optimizer_handlers
from bi_performanced.handlers import server as server_handlers
from bi_performanced.health import watch_health
from bi_performanced.monitor.component import Monitor
from bi_performanced.monitor.pressure import Pressure
from bi_performanced.systemd import Notifier, inherited_sockets, watchdog_interval
from bi_performanced.telemetry.logs import LogSink, configure

log = structlog.get_logger("performance")

BACKLOG = 65_535
"""Connections that wait to be accepted: the kernel takes net.core.somaxconn of them."""
LAST_RESORT = 1.5
"""Seconds after `shutdown_timeout` at which the process ends itself, whatever hangs."""

SAME_ORDER = 1.0
"""Seconds within which a second signal is the first one over again: timeout(1) and terminals
signal the process and its group."""


class StartError(Exception):
    """Why the daemon cannot start: one sentence and the remedy."""


class Places(NamedTuple):
    """Where this daemon keeps things."""

    socket_path: Path
    runtime: Path
    state: Path
    log_file: Path | None
    log_moved: str | None
    """Why the log is not where it would be by default."""


def find_places(settings: Settings, environ: Mapping[str, str], cwd: Path) -> Places:
    """Resolve and make the directories. Raises StartError."""
    assert settings.state_dir is not None
    runtime = Path(runtime_folder(environ, os.getuid()))
    socket_path = settings.socket.path or runtime / NAME
    reason = too_long(str(socket_path))
    if reason:
        raise StartError(f"socket.path: {reason}; name a shorter one with --socket")
    _make_folder(runtime, "the runtime directory")
    if not socket_path.parent.is_dir():
        raise StartError(f"socket.path: {socket_path.parent} is not a directory; make it first")
    _make_folder(settings.state_dir, "state_dir")
    log_file, moved = _log_file(settings, environ, cwd)
    return Places(socket_path, runtime, settings.state_dir, log_file, moved)


def _make_folder(folder: Path, what: str) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise StartError(
            f"{what} {folder} cannot be made: {error.strerror}; name another or mend its parent"
        ) from error
    if found.st_uid not in (os.getuid(), 0):
        raise StartError(f"{what} {folder} belongs to uid {found.st_uid}; name another")
    if found.st_mode & stat.S_IWOTH:
        raise StartError(f"{what} {folder} can be written by everybody: chmod o-w {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartError(f"{what} {folder} cannot be written; change its mode or name another")


def _log_file(
    settings: Settings, environ: Mapping[str, str], cwd: Path
) -> tuple[Path | None, str | None]:
    given = settings.log.file
    if given == "-":
        return None, None
    if given is not None:
        return Path(given), None
    if folders := environ.get("LOGS_DIRECTORY"):
        return Path(folders.split(":")[0]) / "performance.log", None
    assert settings.state_dir is not None
    try:
        (cwd / "logs").mkdir(exist_ok=True)
        if os.access(cwd / "logs", os.W_OK):
            return cwd / "logs" / "performance.log", None
        reason = f"{cwd / 'logs'} cannot be written"
    except OSError as error:
        reason = f"{cwd / 'logs'} cannot be made: {error.strerror}"
    return settings.state_dir / "performance.log", reason


class ControlSocket:
    """The bound control socket and the lock that says whose it is."""

    def __init__(self, path: Path, inherited: socket.socket | None) -> None:
        """Bind `path`, taking the place of one that a dead daemon left. Raises StartError."""
        self.path = path
        self._lock = -1
        self._ours = inherited is None
        if inherited is not None:
            self.socket = inherited
            name = inherited.getsockname()
            self.path = Path(name) if isinstance(name, str) and name else path
            return
        self._take_lock()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            # No window in which everybody may connect: the mode is right from the start.
            before = os.umask(0o117)
            try:
                self.socket.bind(str(path))
            finally:
                os.umask(before)
            self.socket.listen(BACKLOG)
            self.socket.setblocking(False)
        except OSError as error:
            self.close()
            raise StartError(
                f"the control socket {path} cannot be bound: {error.strerror};"
                " name another with --socket"
            ) from error

    def _take_lock(self) -> None:
        lock = self.path.with_name(self.path.name + ".lock")
        try:
            if self.path.exists() and not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise StartError(f"{self.path} is there and is not a socket; name another")
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StartError(
                f"a daemon is running on {self.path} already: stop it, or name another socket"
                " with --socket"
            ) from None
        except OSError as error:
            raise StartError(f"{lock} cannot be made: {error.strerror}") from error

    def close(self) -> None:
        self.socket.close()
        if self._ours:
            self.path.unlink(missing_ok=True)
            os.close(self._lock)


class App:
    """One running daemon."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], cwd: Path) -> None:
        """Build everything that can fail before the loop runs. Raises StartError or WireError."""
        self._settings = settings
        self._notifier = Notifier(environ)
        self._watchdog = watchdog_interval(environ, os.getpid())
        places = find_places(settings, environ, cwd)
        self._sink = _open_log(settings, places)
        planner = Planner(settings, lambda: _room(settings, places))
        kept = Kept(places.state)
        plan, trouble = restore(planner, kept)
        inherited = inherited_sockets(environ, os.getpid())
        self._inherited_http = inherited.get("http")
        self._control = ControlSocket(places.socket_path, inherited.get("control"))
        try:
            self._build(settings, places, planner, kept, plan, trouble)
        except BaseException:
            # Nobody would listen there.
            self._control.close()
            raise

    def _build(
        self,
        settings: Settings,
        places: Places,
        planner: Planner,
        kept: Kept,
        plan: Plan,
        trouble: str | None,
    ) -> None:
        """The parts behind the control socket."""
        self._cache = Cache.open(
            plan.settings.cache,
            runtime_dir=places.runtime,
            state_dir=places.state,
            mode=settings.mode,
            leases=settings.leases,
        )
        self._broker = Broker()
        self._monitor = Monitor(plan.settings.monitoring, self._cache, places.state)
        self._pressure = Pressure(self._cache)
        parts: dict[str, Part] = {"cache": self._cache, "monitoring": self._monitor}
        tuner = Tuner(planner, plan, kept, parts, self._broker, trouble=trouble)
        self._advisor = Advisor(settings.advice, self._cache, self._monitor, tuner, self._broker)
        self._facts = server_handlers.Facts(
            tuner,
            self._cache,
            self._control.path,
            places.state,
            places.log_file,
            self._monitor,
            self._advisor,
        )
        # The fronts answer for a table whose handlers tell of the fronts.
        dispatcher = Dispatcher(
            {
                **cache_handlers.handlers(self._cache),
                **lease_handlers.handlers(self._cache),
                **insight_handlers.handlers(self._cache),
                **monitor_handlers.handlers(self._monitor, self._cache, self._facts),
                **optimizer_handlers.handlers(tuner, self._advisor, self._monitor),
                **server_handlers.handlers(self._facts, self._broker),
            }
        )
        self._sockets = SocketFront(settings.socket, dispatcher)
        self._http = self._facts.http = HttpFront(
            settings.http, dispatcher, self._unready, self._broker
        )
        self._stopping = trio.Event()
        self._told_to_stop = False
        _say_what_waits(settings, places)

    def run(self) -> None:
        """Serve until told to stop."""
        # Beneath trio's receiver, which is open while the loop serves: an order that came before is
        # carried out then, and one that comes again while everything is put away does not kill.
        orders = (signal.SIGTERM, signal.SIGINT)
        for number in orders:
            signal.signal(number, self._told_outside)
        try:
            trio.run(self._main, strict_exception_groups=True)
        finally:
            # The interpreter takes back every handler at its end, but not this.
            for number in orders:
                signal.signal(number, signal.SIG_IGN)

    def _told_outside(self, number: int, frame: object) -> None:
        self._told_to_stop = True

    async def _main(self) -> None:
        self._facts.started_at = trio.current_time()
        try:
            async with trio.open_nursery() as base:
                await base.start(self._listen_to_signals)
                await base.start(self._cache.run)
                await base.start(self._monitor.run)
                await base.start(self._pressure.run)
                await base.start(self._advisor.run)
                await base.start(watch_health, self._components, self._broker)
                if self._watchdog is not None:
                    base.start_soon(self._be_alive, self._watchdog)
                await self._serve()
                base.cancel_scope.cancel()
        finally:
            self._cache.close()
            self._control.close()
            log.info("daemon.stopped")
            self._sink.close()

    async def _serve(self) -> None:
        """The fronts, from the first connection to the last answer."""
        seconds = self._settings.shutdown_timeout
        async with trio.open_nursery() as stopping:
            async with trio.open_nursery() as fronts:
                listener = trio.socket.from_stdlib_socket(self._control.socket)
                await fronts.start(self._sockets.run, listener)
                await fronts.start(self._http.run, self._inherited_http)
                log.info(
                    "daemon.ready",
                    version=__version__,
                    pid=os.getpid(),
                    socket=str(self._control.path),
                    http=self._http.url,
                    entries=self._cache.recovered,
                )
                self._notifier.ready(f"serving on {self._control.path}")
                self._tell_the_terminal()
                await self._stopping.wait()
                self._notifier.stopping()
                log.info("daemon.stopping", timeout_seconds=seconds)
                _end_at_last(seconds + LAST_RESORT)
                self._broker.stop()
                self._cache.leasing.stop()
                self._sockets.stop()
                self._http.stop()
                fronts.cancel_scope.deadline = trio.current_time() + seconds
                stopping.start_soon(self._abort_writes, fronts.cancel_scope.deadline)
            stopping.cancel_scope.cancel()

    def _tell_the_terminal(self) -> None:
        """One line for the person who started this by hand, whose log is in a file."""
        if sys.stderr is not None and sys.stderr.isatty():
            url = f" and {self._http.url}" if self._http.url else ""
            complain("bi-performanced", f"serving on {self._control.path}{url}")

    async def _abort_writes(self, deadline: float) -> None:
        """At the deadline, end the writes that shield themselves from cancellation."""
        await trio.sleep_until(deadline)
        self._http.abort()

    async def _listen_to_signals(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with trio.open_signal_receiver(*wanted) as signals:
            if self._told_to_stop:
                self._stopping.set()
            task_status.started()
            told = 0.0
            async for number in signals:
                if number == signal.SIGHUP:
                    self._reload()
                elif not self._stopping.is_set():
                    told = trio.current_time()
                    self._stopping.set()
                elif trio.current_time() - told >= SAME_ORDER:
                    log.warning("daemon.stopping_at_once")
                    os._exit(1)

    def _reload(self) -> None:
        self._notifier.reloading()
        failed = self._sink.reopen()
        if failed:
            log.error("log.reopen_failed", reason=failed)
        else:
            log.info("log.reopened")
        self._notifier.ready(f"serving on {self._control.path}")

    async def _be_alive(self, interval: float) -> None:
        """Tell the service manager from the loop itself: a loop that hangs is not alive."""
        while True:
            self._notifier.alive()
            await trio.sleep(interval)

    def _components(self) -> Mapping[str, Mapping[str, Any]]:
        return self._facts.status().components

    def _unready(self) -> list[str]:
        if self._stopping.is_set():
            return ["the daemon is stopping"]
        return [
            f"{name}: {each.get('reason', each['status'])}"
            for name, each in self._components().items()
            if each["status"] == "degraded"
        ]


def _room(settings: Settings, places: Places) -> int:
    """Bytes that a profile may scale `cache.max_bytes` to."""
    folder = settings.cache.store_dir or places.runtime
    try:
        already = (folder / "store").stat().st_size
    except OSError:
        already = 0
    return room(folder, already=already)


def _open_log(settings: Settings, places: Places) -> LogSink:
    try:
        return configure(settings.log.level, places.log_file)
    except OSError as error:
        raise StartError(
            f"log.file: {places.log_file} cannot be opened: {error.strerror};"
            " name another with --log-file, or - for standard error"
        ) from error


def _say_what_waits(settings: Settings, places: Places) -> None:
    """Log once what is configured for parts that this version does not have."""
    if places.log_moved:
        log.warning("log.moved", reason=places.log_moved, file=str(places.log_file))
    parts = ("database.", "tasks.", "spool.", "memory.")
    waiting = [
        key
        for key, origin in settings.origins.items()
        if key.startswith(parts) and not origin.startswith("default")
    ]
    if waiting:
        log.warning("config.without_effect", keys=waiting, version=__version__)


def _end_at_last(after: float) -> None:
    """A thread stuck in a system call would keep the process: then it ends without it."""

    def end() -> None:
        log.critical("daemon.stop_forced", after_seconds=after)
        os._exit(1)

    timer = threading.Timer(after, partial(end))
    timer.daemon = True
    timer.start()
