"""A process's link to the daemon: connections, the attached store, and what happens without it.

Nothing here raises into a scraper because the daemon is away. While it is, no call costs more than
a look at the clock; attempts to return are spaced with jitter, and one of them waits for an answer
only when the daemon was well before: a daemon that is stopped, not gone, costs one short wait.
"""

from __future__ import annotations

import logging
import os
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bi_performance.forks import after_fork
from bi_performance.protocol import Connection, QueueFull, Steps, TimedOut, Unavailable, drive
from bi_performance.reader import DETACHED, MISS, Outcome, StoreReader
from bi_performance.turns import Crowded, LoopTurns, ThreadTurns, Turns
from bi_performance_wire import layout as L
from bi_performance_wire.address import candidates, paths
from bi_performance_wire.errors import INVALID_ARGUMENT, NOT_FOUND, WireError

log = logging.getLogger("performance")

ATTACH_WAIT = 0.25
"""Seconds that an attempt to attach may keep its caller, the first time only."""
LOOK_AGAIN = 0.02
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
WARN_EVERY = 30.0
IDLE_CONNECTIONS = 8
QUEUE_PAUSE = 0.001
"""Seconds before connecting again to a daemon whose queue was full; it doubles each time."""
QUEUE_TRIES = 8
MODES = ("on", "observe", "off")
MISTAKES = frozenset({"pattern", "limit", "profile"})
"""Arguments that only the daemon can tell to be mistakes of the caller's."""


def _reason(error: Exception) -> str:
    """What happened, in words: an OSError's text without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Absent:
    """Stands for the store while there is none."""

    default_ttl: float | None = None
    asks = 0

    @property
    def now(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def read(self, key: bytes) -> Outcome:
        return DETACHED

    def find(self, key: bytes, *, count: bool = True) -> Outcome:
        return DETACHED


class ObservingReader(StoreReader):
    """Reads as ever and serves nothing: what it would have served is counted instead."""

    asks = 0

    def read(self, key: bytes, retries: int = 8) -> object:
        found = super().read(key, retries)
        if isinstance(found, Outcome):
            return found
        self.page[L.P_HITS] -= 1
        self.page[L.P_MISSES] += 1
        self.page[L.P_OBSERVED] += 1
        return MISS

    def find(self, key: bytes, *, count: bool = True) -> Outcome:
        found = super().find(key, count=False)
        if count and found is not DETACHED:
            self.page[L.P_MISSES] += 1
            self.page[L.P_OBSERVED] += found is not MISS
        return found if isinstance(found, Outcome) else MISS


class SilentReader(StoreReader):
    """Serves and counts nothing; it tells while the daemon that said so, `mode = off`, is there."""

    asks = 0

    def read(self, key: bytes, retries: int = 8) -> Outcome:
        self.now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return MISS if self.now < self.deadline else DETACHED

    def find(self, key: bytes, *, count: bool = True) -> Outcome:
        return self.read(key)


READERS = {"on": StoreReader, "observe": ObservingReader, "off": SilentReader}


class Link:
    """This process's side of the daemon; one for each socket that is used."""

    def __init__(self, path: str | None = None, *, name: str = "", mode: str | None = None) -> None:
        self._path = path
        self._name = name or os.path.basename(sys.argv[0] if sys.argv else "") or "python"  # noqa: PTH119 (text, no path)
        given = mode or os.environ.get("BI_PERFORMANCE_MODE") or ""
        if given and given not in MODES:
            log.warning(
                "BI_PERFORMANCE_MODE is %r; it may be on, observe or off, and is on now", given
            )
            given = "on"
        self._mode = given
        """The caller's own; empty for what the daemon says, which may change with the daemon."""
        self.reader: StoreReader | Absent = Absent()
        self.mode = given or "on"
        self.default_ttl: float | None = None
        self.compression = True
        self.max_payload: int | None = None
        """The largest encoded entry in bytes that the daemon takes, once attached."""
        self.renew: Callable[[bytes], None] | None = None
        """Called with the key of an entry that a read is to renew."""
        self.unavailable = 0
        """Calls that were answered without the daemon."""
        self._start()
        after_fork(self._after_fork)

    def _start(self) -> None:
        # Not a plain lock: a signal handler or a finalizer may read while its thread attaches.
        self._lock = threading.RLock()
        self._attaching = False
        self._idle: list[Connection] = []
        self.turns = Turns()
        self._attached: Connection | None = None
        self._pending: tuple[Connection, int, list[int]] | None = None
        self._instance = os.urandom(16)
        self._attach_at = 0.0
        self._not_before = 0.0
        self._look_at = 0.0
        self._left_sockets: list[tuple[int, int] | None] = []
        self._left_at = float("-inf")
        self._left_beat = 0
        self._pause = FIRST_PAUSE
        self._patient = True
        self._warned_at = float("-inf")
        self._unsaid = 0
        self._reason = ""
        self._refused_at = float("-inf")
        self._refused = 0
        self._crowded_at = float("-inf")
        self._crowded = 0

    def _after_fork(self) -> None:
        """In a forked child: close what is the parent's, and attach anew when needed.

        Only the child's own copies are closed; the daemon sees nothing of it.
        """
        for connection in (*self._idle, self._attached, self._pending and self._pending[0]):
            if connection is not None:
                connection.close()
        for fd in self._pending[2] if self._pending else ():
            os.close(fd)
        self.reader = Absent()
        self._start()

    # ── the store

    def attach(self) -> bool:
        """Make `reader` a live one if that can be done now; whether it is. A call that it is not
        is counted as answered without the daemon."""
        if self._mode == "off":
            return False
        attached = self._attach()
        self.unavailable += not attached
        return attached

    def _attach(self) -> bool:
        if time.monotonic() < self._attach_at or not self._may_try():
            return False
        with self._lock:
            attached = self._attach_locked()
        if not attached:
            # Not under the lock: whoever handles the log may be waiting for it.
            self._warn()
        return attached

    def _attach_locked(self) -> bool:
        reader = self.reader
        if isinstance(reader, StoreReader) and reader.alive():
            # Another thread was faster.
            return True
        if self._attaching:
            # Called from within itself, by a signal handler: a miss, and no second attachment.
            return False
        self._attaching = True
        began = time.monotonic()
        try:
            return self._try_attach()
        except BlockingIOError:
            # Its queue is full, of others or of this process's own: no outage.
            self._attach_at = time.monotonic() + LOOK_AGAIN
            return False
        except (OSError, WireError, Unavailable, ValueError) as error:
            self._drop_pending()
            self._leave(_reason(error), began)
            return False
        except (KeyError, TypeError, OverflowError):
            self._drop_pending()
            self._leave("it answers in a form that this version does not know", began)
            return False
        finally:
            self._attaching = False

    def _try_attach(self) -> bool:
        """Begin or go on with an attachment; False while the daemon has not answered."""
        if self._pending is None:
            connection = Connection(self._find_socket())
            serial, message = connection.request(
                "attach",
                {"instance": self._instance, "pid": os.getpid(), "name": self._name[:100]},
            )
            try:
                drive(connection.send(message), ATTACH_WAIT)
            except BaseException:
                connection.close()
                raise
            self._pending = connection, serial, []
        deadline = time.monotonic() + (ATTACH_WAIT if self._patient else 0)
        connection, serial, fds = self._pending
        while True:
            try:
                data, received, _, _ = socket.recv_fds(
                    connection.socket, 1 << 16, 8, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                poll = select.poll()
                poll.register(connection.socket, select.POLLIN)
                left = deadline - time.monotonic()
                if left > 0 and poll.poll(left * 1000):
                    continue
                self._patient = False
                self._not_before = time.monotonic() + LOOK_AGAIN
                self._reason = "it does not answer"
                return False
            fds += received
            connection.take(data)
            reply = connection.answer(serial)
            if reply is not None:
                break
        self._adopt(connection, reply, fds)
        return True

    def _adopt(self, connection: Connection, reply: dict[str, Any], fds: list[int]) -> None:
        """Map what was handed over. The old reader is dropped, not closed: threads may use it."""
        if len(fds) != 3:
            raise Unavailable(f"the daemon sent {len(fds)} descriptors instead of 3")
        # Before anything is taken over: a daemon of another version may answer otherwise.
        epoch, default_ttl = int(reply["epoch"]), float(reply["default_ttl"])
        compression, max_payload = bool(reply["compression"]), int(reply["max_payload"])
        mode = self._mode or str(reply["mode"])
        if mode not in READERS:
            raise Unavailable(f"the daemon's mode is {mode!r:.40}, which is none")
        self.mode = mode
        made = READERS[self.mode]
        handed, fds[:] = list(fds), []
        # From here on the descriptors are the reader's, which closes them whatever happens.
        reader = made(handed[0], handed[1], handed[2], epoch)
        reader.renew = self.renew if self.mode == "on" else None
        self._pending = None
        if self._attached is not None:
            self._attached.close()
        self._attached = connection
        self.default_ttl = default_ttl
        self.compression = compression
        self.max_payload = max_payload
        self.reader = reader
        self._come_back()

    def _drop_pending(self) -> None:
        if self._pending is not None:
            connection, _, fds = self._pending
            self._pending = None
            connection.close()
            for fd in fds:
                os.close(fd)

    @property
    def reason(self) -> str:
        """Why the daemon could not be used at the last attempt; empty when it could."""
        return self._reason

    @property
    def resting(self) -> bool:
        """Whether the daemon was away a moment ago, and is left alone for a while."""
        return time.monotonic() < self._not_before

    def keep_up(self) -> None:
        """Attach again if what the daemon told at the last time is no longer what it goes by."""
        reader = self.reader
        if isinstance(reader, StoreReader) and not reader.alive():
            self._attach()

    # ── requests

    def request(
        self,
        method: str,
        args: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        repeatable: bool = True,
    ) -> Steps[Any]:
        """Ask the daemon, as a generator for a driver; with a list of arguments as many times.

        Raises Unavailable, or WireError with the daemon's answer. A request that may be made
        twice is made again when a connection that was kept turns out to be dead.
        """
        while True:
            connection, kept = self._checkout(look=not repeatable)
            began = time.monotonic()
            try:
                if isinstance(args, list):
                    result: Any = yield from connection.exchange_many(method, args)
                else:
                    result = yield from connection.exchange(method, args)
            except WireError:
                self._checkin(connection)
                raise
            except (OSError, Unavailable) as error:
                connection.close()
                if kept and repeatable:
                    continue
                self._leave(_reason(error), began)
                self._warn()
                raise Unavailable(_reason(error)) from None
            except BaseException:
                connection.close()
                raise
            self._checkin(connection)
            self._come_back()
            reader = self.reader
            if isinstance(reader, StoreReader):
                # Hits do it too; a process that stores much may have few.
                reader.tell()
            return result

    def _is_off(self) -> bool:
        """Whether nothing is to be asked. What a daemon said holds while that daemon is there."""
        if self.mode == "off" and self._mode != "off":
            reader = self.reader
            if isinstance(reader, Absent) or not reader.alive():
                self._attach()
        return self.mode == "off"

    def _checkout(self, *, look: bool) -> tuple[Connection, bool]:
        """A connection, and whether it was kept from an earlier request.

        With `look` a kept one is looked at first: for a request that cannot be made twice.
        """
        if self._is_off():
            raise Unavailable("mode is off")
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if not look or connection.is_idle():
                return connection, True
            connection.close()
        return self._connect(), False

    def _connect(self) -> Connection:
        if not self._may_try():
            self._unsaid += 1
            raise Unavailable("it was away a moment ago")
        began = time.monotonic()
        try:
            return Connection(self._find_socket())
        except BlockingIOError:
            raise QueueFull("it has not come to accept new connections") from None
        except OSError as error:
            self._leave(_reason(error), began)
            self._warn()
            raise Unavailable(_reason(error)) from None

    def lease_connection(self) -> Connection:
        """A connection that the caller owns; it may keep its thread for a quarter of a second.

        Raises Unavailable.
        """
        if self._is_off():
            raise Unavailable("mode is off")
        began = time.monotonic()
        attempt = 0
        while True:
            try:
                return self._connect()
            except QueueFull as full:
                time.sleep(self.pause(full, attempt, began))
            attempt += 1

    def lose(self, error: Exception, began: float) -> None:
        """A connection of the caller's, made at `began` (monotonic), came to an end by itself."""
        self._leave(_reason(error), began)
        self._warn()

    def _checkin(self, connection: Connection) -> None:
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()

    def give(self, turns: LoopTurns | ThreadTurns) -> None:
        """Give a turn back, and close what is kept for nobody: the daemon counts connections."""
        if len(self._idle) > IDLE_CONNECTIONS and not turns.wanted:
            with suppress(IndexError):
                # The one that was used longest ago; another thread may be faster.
                self._idle.pop(0).close()
        turns.give()

    def pause(self, full: QueueFull, attempt: int, began: float) -> float:
        """Seconds to wait before connecting again; raises what was given when it is hopeless."""
        if attempt == QUEUE_TRIES:
            self._leave(str(full), began)
            self._warn()
            raise full
        return QUEUE_PAUSE * (1 << attempt) * random.uniform(0.5, 1.5)

    def _find_socket(self) -> str:
        found = candidates(self._path, os.environ, os.getuid())
        for candidate in found:
            if candidate.refused is None:
                return candidate.path
        said = "; ".join(f"{each.path} {each.refused}" for each in found)
        raise OSError(0, f"no control socket: {said}")

    # ── away and back

    def excuse(self, error: Exception, began: float) -> None:
        """Count and say why a request that began at `began` (monotonic) has no result.

        Raises ValueError for what only the daemon can tell to be a mistake of the caller's.
        """
        if isinstance(error, WireError):
            self.note(error)
        elif isinstance(error, TimedOut):
            # The others have been said where they were found.
            self._leave(str(error), began)
            self._warn()
        elif isinstance(error, Crowded):
            self._say_crowded(str(error))
        self.unavailable += 1

    def _may_try(self) -> bool:
        """Whether the pause is over, or a new socket shows that a daemon was started meanwhile."""
        now = time.monotonic()
        if now >= self._not_before:
            return True
        if self._beat() > self._left_beat > 0:
            # It runs, and was only slow or stopped: that is tried once, lest it is slow always.
            self._left_beat = 0
            return True
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_AGAIN * random.uniform(1, 4)
        found = self._sockets()
        if found == self._left_sockets:
            return False
        self._left_sockets = found
        return any(found)

    def _sockets(self) -> list[tuple[int, int] | None]:
        """What lies at each path where a control socket may be: inode and time of its change."""
        found: list[tuple[int, int] | None] = []
        for path in paths(self._path, os.environ, os.getuid()):
            try:
                there = os.stat(path)  # noqa: PTH116 (called often)
            except (OSError, ValueError):
                found.append(None)
            else:
                found.append((there.st_ino, there.st_ctime_ns))
        return found

    def _beat(self) -> int:
        """The attached daemon's deadline, which rises while it runs; 0 when none is attached."""
        reader = self.reader
        return reader.deadline if isinstance(reader, StoreReader) else 0

    def _leave(self, reason: str, began: float) -> None:
        """Begin a pause, unless what failed had begun before the last one: that is one outage."""
        self._reason = reason
        if began <= self._left_at:
            return
        self._left_at = time.monotonic()
        self._left_sockets = self._sockets()
        if self._pause == FIRST_PAUSE:
            self._left_beat = self._beat()
        pause = self._pause * random.uniform(0.5, 1.5)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        self._not_before = self._left_at + pause

    def _warn(self) -> None:
        """Say, at a limited rate, that and why the daemon is away. Called without the lock."""
        if not self._reason:
            return
        now = time.monotonic()
        self._unsaid += 1
        if now - self._warned_at >= WARN_EVERY:
            self._warned_at = now
            count, self._unsaid = self._unsaid, 0
            log.warning(
                "the performance daemon is away (%s): reads are misses and writes are dropped"
                " until it is back [%d times]",
                self._reason,
                count,
            )

    def _say_crowded(self, reason: str) -> None:
        """Say, at a limited rate, that this process asks more than is answered in time."""
        now = time.monotonic()
        self._crowded += 1
        if now - self._crowded_at >= WARN_EVERY:
            self._crowded_at = now
            count, self._crowded = self._crowded, 0
            log.warning(
                "a request to the performance daemon was given up (%s): write fewer at a time, or"
                " several in one set_many [%d times]",
                reason,
                count,
            )

    def _come_back(self) -> None:
        self._pause = FIRST_PAUSE
        self._not_before = 0.0
        self._patient = True
        self._reason = ""

    def note(self, error: WireError) -> None:
        """The daemon refused a request: said at a limited rate, never raised.

        What only the daemon can tell to be a mistake of the caller's is raised, as ValueError.
        """
        if error.code in (INVALID_ARGUMENT, NOT_FOUND) and error.field in MISTAKES:
            hint = f" ({error.hint})" if error.hint else ""
            raise ValueError(f"{error.message}{hint}")
        now = time.monotonic()
        self._refused += 1
        if now - self._refused_at >= WARN_EVERY:
            self._refused_at = now
            count, self._refused = self._refused, 0
            log.warning(
                "the performance daemon refused a request (%s: %s)%s [%d times]",
                error.code,
                error.message,
                f"; {error.hint}" if error.hint else "",
                count,
            )

    def close(self) -> None:
        """Detach and close every connection; the next use attaches again."""
        with self._lock:
            self._drop_pending()
            self.reader = Absent()
            if self._attached is not None:
                self._attached.close()
                self._attached = None
            while self._idle:
                self._idle.pop().close()
