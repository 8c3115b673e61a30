"""The leases at work: who is woken, and when deadlines are looked at."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any, Final

import trio

from bi_performance_wire import layout as L
from bi_performanced.cache.leases import HELD, Holder, Leases, Outcome, Waiter
from bi_performanced.config import LeaseSettings

LOOK_EVERY: Final = 0.05
"""Seconds between two looks at the holders' deadlines, while there are leases."""
STOOD_STILL: Final = 0.2
"""Seconds by which such a look is late when the daemon itself was held up."""
PUSHED: Final = 64 << 10
"""Bytes of an entry that waiters are sent; a larger one they read in place."""


def _number() -> int:
    # Rises over restarts of the daemon, within one boot of the host; no lease outlives that.
    return time.clock_gettime_ns(L.BOOT_CLOCK)


class Leasing:
    """Wraps the state machine: wakes whom it names, and tells it what time it is."""

    def __init__(self, settings: LeaseSettings) -> None:
        self.leases = Leases(settings, _number, lambda: os.urandom(8))
        self._events: dict[Waiter, trio.Event] = {}
        self._some = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End the leases of holders that were not heard of, until cancelled."""
        task_status.started()
        while True:
            if not self.leases.held:
                self._some = trio.Event()
                await self._some.wait()
            due = trio.current_time() + LOOK_EVERY
            await trio.sleep_until(due)
            if (late := trio.current_time() - due) > STOOD_STILL:
                # Heartbeats of that time wait in the sockets.
                self.leases.postpone(late)
            self._wake(self.leases.overdue(trio.current_time()))

    def ask(
        self, key: bytes, holder: Holder, *, ticket: int | None, wait: float
    ) -> Outcome | Waiter:
        """See `Leases.ask`; `wait` in seconds. Raises WireError (busy)."""
        now = trio.current_time()
        found = self.leases.ask(key, holder, now, ticket=ticket, wait=wait > 0)
        self._some.set()
        return found

    async def outcome(self, waiter: Waiter, seconds: float) -> Outcome:
        """What a waiter is told, after at most so many seconds."""
        event = self._events[waiter] = trio.Event()
        try:
            if waiter.outcome is None:
                with trio.move_on_after(min(seconds, self.leases.settings.max_wait)):
                    await event.wait()
        finally:
            del self._events[waiter]
            self.leases.leave(waiter)
        return waiter.outcome or Outcome(HELD)

    def renew(self, holder: Holder) -> None:
        self.leases.renew(holder, trio.current_time())

    def release(self, token: bytes, *, failed: bool) -> bool:
        """Give a lease up; whether it was current."""
        current = self.leases.current(token)
        self._wake(self.leases.release(token, trio.current_time(), failed=failed))
        return current

    def withdraw(self, holder: Holder, ticket: int, *, failed: bool) -> bool:
        """Give up what was asked under a ticket; whether there was something."""
        there = ticket in holder.tickets
        self._wake(self.leases.withdraw(holder, ticket, trio.current_time(), failed=failed))
        return there

    def gone(self, holder: Holder) -> None:
        """The holder's connection or process has ended."""
        self._wake(self.leases.gone(holder, trio.current_time()))

    # ── what happens to entries

    def admit(self, token: bytes, key: bytes, tags: Iterable[bytes]) -> None:
        """Raises Refused for a value that may not be stored."""
        self.leases.admit(token, key, tags)

    def stored(self, key: bytes, payload: bytes) -> None:
        """A value of the key is readable from now on."""
        if self.leases.held:
            pushed = payload if len(payload) <= PUSHED else None
            self._wake(self.leases.stored(key, pushed))

    def figures(self) -> dict[str, Any]:
        return {
            "held": self.leases.held,
            "waiting": self.leases.waiting,
            **vars(self.leases.counts),
        }

    def stop(self) -> None:
        """Let nobody wait any more: the daemon stops."""
        self._wake(self.leases.stop())

    def _wake(self, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            if (event := self._events.get(waiter)) is not None:
                event.set()
