"""The leases of this process: one connection and one thread for all of them.

The thread asks for leases, hands out the answers, and renews what is held, so that the daemon knows
the process to be alive whatever its event loops are doing. It starts with the first lease, and ends
when there has been none for a while. A process that is stopped does not renew.
"""

from __future__ import annotations

import itertools
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

import msgpack

from bi_performance.forks import after_fork
from bi_performance.link import Link
from bi_performance.protocol import Connection, Unavailable
from bi_performance_wire.errors import WireError

FIRST_BEAT: Final = 0.5
"""Seconds between two heartbeats, until the daemon says how long a lease lasts without one."""
BEATS: Final = 4
"""Heartbeats in the time that a lease lasts without one."""
ANSWER_WITHIN: Final = 1.0
"""Seconds for a heartbeat to be answered: later, the daemon hangs."""
LINGER: Final = 10.0
"""Seconds without a lease after which the thread ends."""
THREAD: Final = "bi-performance-leases"
_RECEIVE: Final = 1 << 18

LEADER: Final = "leader"
HIT: Final = "hit"
HELD: Final = "held"


class Asked:
    """A request for a lease. `state` None means that it is unanswered, "" that there is no daemon
    to answer it."""

    __slots__ = (
        "_generation",
        "alive",
        "args",
        "gone",
        "keeper",
        "payload",
        "state",
        "token",
        "wake",
    )

    def __init__(
        self,
        keeper: Keeper,
        args: dict[str, Any],
        wake: Callable[[], object],
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        self.keeper = keeper
        self.args = args
        self._generation = keeper.generation
        self.wake = wake
        self.alive = alive
        """Whether who asked can go on: its event loop may have been closed over it."""
        self.state: str | None = None
        self.token: bytes | None = None
        self.payload: bytes | None = None
        self.gone = False
        """Given up, or used."""

    def answered(self, state: str) -> Asked:
        """This, with an answer that was not asked for of anybody."""
        self.state = state
        return self

    def finish(self, *, failed: bool = False, stored: bool = False) -> None:
        """Give up the wait or the lease, in whichever state; with `stored` it has ended already."""
        if not self.gone and self.own:
            self.keeper.put((self, failed, stored))
        self.gone = True

    @property
    def own(self) -> bool:
        """False in a forked child: the lease is its parent's."""
        return self._generation == self.keeper.generation


Order = Asked | tuple[Asked, bool, bool] | bytes | None
"""Ask; finish (failed, stored); touch a key; end when there is nothing to do."""


class Keeper:
    """Used by any thread; `put` may be called in a signal handler."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.generation = 0
        """Of this process and those it was forked from."""
        self._start()
        after_fork(self._after_fork)

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._wake_fd = -1
        self._tickets = itertools.count()
        self._running = False
        self._connection: Connection | None = None

    def _after_fork(self) -> None:
        """In a forked child: close its copies of what is the parent's thread's."""
        self.generation += 1
        if self._connection is not None:
            self._connection.close()
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
        self._start()

    def ask(
        self,
        key: bytes,
        wake: Callable[[], object],
        *,
        wait: float,
        refresh: bool = False,
        alive: Callable[[], bool] = lambda: True,
    ) -> Asked:
        """Ask for the lease of a key; `wake` is called in the keeper's thread once it is answered.
        A lease is given up when `alive`, called there too, says that nobody can use it.

        `finish` must follow in any case.
        """
        args = {"key": key, "wait": wait, "payload": True, "ticket": next(self._tickets)}
        if refresh:
            args["refresh"] = True
        asked = Asked(self, args, wake, alive)
        self.put(asked)
        return asked

    def put(self, order: Order) -> None:
        with self._lock:
            if not self._running and not isinstance(order, Asked | bytes):
                # Its connection has ended, and with it what it is about.
                return
            self._orders.put(order)
            if not self._running:
                self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                work = Work(self, self._link, self._orders, self._wake_fd)
                thread = threading.Thread(target=work.run, name=THREAD, daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    # The interpreter is ending, or there are too many threads.
                    self._refuse()
                    return
                self._running = True
            with suppress(BlockingIOError):
                os.eventfd_write(self._wake_fd, 1)

    def _refuse(self) -> None:
        """Answer all that has been asked: there is nobody to ask the daemon."""
        os.close(self._wake_fd)
        self._wake_fd = -1
        with suppress(Empty):
            while True:
                order = self._orders.get_nowait()
                if isinstance(order, Asked):
                    _answer(order, "")

    def touch(self, key: bytes) -> None:
        """Have an entry renewed that reads renew; nobody waits for it."""
        self.put(key)

    def close(self) -> None:
        """Let the thread end as soon as there is nothing to do."""
        self.put(None)

    def may_end(self) -> bool:
        """Of the thread: whether it may end, there being nothing to do. It must end then."""
        with self._lock:
            if not self._orders.empty():
                return False
            self._running = False
            os.close(self._wake_fd)
            self._wake_fd = -1
            self._connection = None
            return True

    def note_connection(self, connection: Connection | None) -> None:
        """Of the thread: what a forked child is to close."""
        self._connection = connection


class Work:
    """What the thread does."""

    def __init__(
        self,
        keeper: Keeper,
        link: Link,
        orders: SimpleQueue[Order],
        wake_fd: int,
    ) -> None:
        self._keeper = keeper
        self._link = link
        self._orders = orders
        self._wake_fd = wake_fd
        self._connection: Connection | None = None
        self._waiting: dict[int, Asked] = {}
        """By message id: what is unanswered."""
        self._held: set[Asked] = set()
        self._out = bytearray()
        self._beat_id: int | None = None
        """Of the heartbeat that is unanswered."""
        self._beat_at = 0.0
        self._every = FIRST_BEAT
        self._began = 0.0
        self._idle_since = time.monotonic()
        self._linger = LINGER

    def run(self) -> None:
        """Work until there is nothing to do for a while."""
        while True:
            self._take_orders()
            now = time.monotonic()
            if self._waiting or self._held:
                self._idle_since = now
                self._beat(now)
            elif now - self._idle_since >= self._linger:
                if self._keeper.may_end():
                    self._close()
                    return
                continue
            self._send()
            self._pause()
            self._receive()

    def _take_orders(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        while True:
            try:
                order = self._orders.get_nowait()
            except Empty:
                return
            try:
                if order is None:
                    self._linger = 0.0
                elif isinstance(order, bytes):
                    self._touch(order)
                elif isinstance(order, Asked):
                    self._ask(order)
                else:
                    self._finish(*order)
            except (OSError, Unavailable) as error:
                self._fail(error)

    def _touch(self, key: bytes) -> None:
        self._idle_since = time.monotonic()
        if self._connection is None:
            self._connect()
        self._out += msgpack.packb((2, "cache.touch", [{"key": key}]))

    def _ask(self, asked: Asked) -> None:
        if asked.gone:
            return
        if self._connection is None:
            try:
                self._connect()
            except (OSError, Unavailable):
                # Said and counted where it was found.
                _answer(asked, "")
                return
        if not self._waiting and not self._held:
            # Its answer tells that the daemon does not hang, only lets this one wait.
            self._beat_at = 0.0
        serial = self._request("cache.lease", asked.args)
        self._waiting[serial] = asked

    def _finish(self, asked: Asked, failed: bool, stored: bool) -> None:
        self._held.discard(asked)
        known = asked.state == LEADER or asked.state is None
        if self._connection is None or not known or stored:
            return
        args: dict[str, Any] = {"failed": failed}
        if asked.token is not None:
            args["token"] = asked.token
        else:
            args["ticket"] = asked.args["ticket"]
        # A notification: nobody waits for its answer.
        self._out += msgpack.packb((2, "cache.release", [args]))

    def _connect(self) -> None:
        self._began = time.monotonic()
        self._connection = self._link.lease_connection()
        self._keeper.note_connection(self._connection)
        self._every = FIRST_BEAT
        self._beat_id, self._beat_at = None, 0.0
        self._out.clear()

    def _request(self, method: str, args: dict[str, Any]) -> int:
        assert self._connection is not None
        serial, message = self._connection.request(method, args)
        self._out += message
        return serial

    def _beat(self, now: float) -> None:
        if self._connection is None:
            return
        if self._beat_id is None:
            if now >= self._beat_at + self._every:
                for asked in [each for each in self._held if not each.alive()]:
                    asked.gone = True
                    self._finish(asked, False, False)
                self._beat_id = self._request("cache.renew", {})
                self._beat_at = now
        elif now - self._beat_at > ANSWER_WITHIN:
            # It may have been this thread that stood still, and the answer lies there.
            self._receive()
            if self._beat_id is None or self._connection is None:
                return
            self._fail(Unavailable(f"no heartbeat was answered within {ANSWER_WITHIN:g} s"))

    def _send(self) -> None:
        if self._connection is None or not self._out:
            return
        try:
            sent = self._connection.socket.send(self._out)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        del self._out[:sent]

    def _pause(self) -> None:
        """Wait until there is something to do."""
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        now = time.monotonic()
        if self._connection is not None:
            wanted = select.POLLIN | (select.POLLOUT if self._out else 0)
            poll.register(self._connection.socket, wanted)
        if self._waiting or self._held:
            waits = self._every if self._beat_id is None else ANSWER_WITHIN + 0.01
            until = self._beat_at + waits
        else:
            until = self._idle_since + self._linger
        poll.poll(max(0.0, until - now) * 1000 + 1)

    def _receive(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            while True:
                connection.take(connection.socket.recv(_RECEIVE))
                for number, error, result in connection.answers():
                    self._answered(number, error, result)
        except BlockingIOError:
            return
        except (OSError, Unavailable, WireError) as error:
            self._fail(error)

    def _answered(self, number: int, error: object, result: Any) -> None:
        if number == self._beat_id:
            self._beat_id = None
            if error is not None:
                raise Unavailable(f"a heartbeat was refused: {error!r:.100}")
            return
        asked = self._waiting.pop(number, None)
        if asked is None:
            raise Unavailable("the peer answered another request")
        if error is not None:
            # A limit, say: to be loaded without a lease.
            self._link.note(WireError.from_map(error))
            _answer(asked, "")
            return
        try:
            state = result["state"]
            token, payload = result.get("token"), result.get("payload")
            if state == LEADER:
                self._every = max(0.02, float(result["ttl"]) / BEATS)
                known = isinstance(token, bytes)
            else:
                known = state in (HIT, HELD)
        except (TypeError, KeyError, ValueError, AttributeError):
            known = False
        if not known:
            raise Unavailable(f"a lease in an unknown form: {result!r:.100}")
        asked.token, asked.payload = token, payload
        if state == LEADER and not asked.gone:
            self._held.add(asked)
        _answer(asked, state)

    def _fail(self, error: Exception) -> None:
        """The daemon is away: whoever waits is told, and what is held is lost."""
        self._close()
        waiting, self._waiting = self._waiting, {}
        if waiting or self._held:
            self._link.lose(error, self._began)
        self._held.clear()
        for asked in waiting.values():
            _answer(asked, "")

    def _close(self) -> None:
        if self._connection is not None:
            self._keeper.note_connection(None)
            self._connection.close()
            self._connection = None
        self._out.clear()
        self._beat_id = None


def _answer(asked: Asked, state: str) -> None:
    asked.state = state
    asked.wake()
