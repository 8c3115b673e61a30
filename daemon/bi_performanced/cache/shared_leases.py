"""A lease of this host, contended for with the other hosts before it is answered.

Whoever has the lease of a key here looks whether Redis has the value by now, and asks for the lease
that is over all hosts. While another host has that, it waits here, in nobody's way: those of this
host wait behind it. The lease over all hosts lasts as long as the one here, and ends with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from bi_performanced.cache.leases import HELD, HIT, LEADER, Holder, Outcome
from bi_performanced.cache.leasing import PUSHED, Leasing
from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.component import Remote
from bi_performanced.remote.leases import RemoteLease

Fetch = Callable[[Sequence[bytes]], Awaitable[list[bytes | None]]]
BETWEEN: Final = 0.5
"""Seconds at most between two signs of life of who waits here for another host."""


class Contest:
    """Leases over all hosts for the leases of this one, by their tokens."""

    def __init__(self, leasing: Leasing, remote: Remote, fetch: Fetch) -> None:
        self._leasing = leasing
        self._remote = remote
        self._fetch = fetch
        self._leases: dict[bytes, tuple[RemoteLease, trio.CancelScope]] = {}
        self._asking: set[bytes] = set()
        """Tokens of those that are not told yet whether they lead."""
        self._nursery: trio.Nursery | None = None
        leasing.leases.on_end = self._ended

    def of(self, token: bytes) -> RemoteLease | None:
        """The lease over all hosts that belongs to one of this host."""
        found = self._leases.get(token)
        return None if found is None else found[0]

    def guards(self, key: bytes) -> bool:
        """Whether Redis refuses what is loaded of a key if that is older than what it has."""
        token = self._leasing.leases.token(key)
        return token in self._leases or token in self._asking

    async def lead(
        self, key: bytes, token: bytes, holder: Holder, *, refresh: bool, wait: float
    ) -> Outcome:
        """What the leader of this host is told: the value, that it leads, or that another does.

        `wait` in seconds. With Redis away it leads on this host.
        """
        self._asking.add(token)
        try:
            return await self._lead(key, token, holder, refresh=refresh, wait=wait)
        finally:
            self._asking.discard(token)

    async def _lead(
        self, key: bytes, token: bytes, holder: Holder, *, refresh: bool, wait: float
    ) -> Outcome:
        deadline = trio.current_time() + wait
        while self._leasing.leases.current(token):
            if len(holder.leases) == 1:
                # It cannot beat for a lease that it has not been told of. With others it does, and
                # those must end when it stops.
                self._leasing.renew(holder)
            try:
                outcome = await self._try(key, token, refresh=refresh, deadline=deadline)
            except RemoteAway:
                return Outcome(LEADER, token)
            except BaseException:
                self._leasing.release(token, failed=False)
                raise
            if outcome is not None:
                return outcome
        # Ended meanwhile: a value came, or nobody is there any more.
        return Outcome(HELD)

    async def _try(
        self, key: bytes, token: bytes, *, refresh: bool, deadline: float
    ) -> Outcome | None:
        if not refresh and (found := await self._look(key)):
            return found
        leases = self._remote.leases(key)
        got = await leases.acquire(key)
        if isinstance(got, RemoteLease):
            if not self._keep(token, got):
                await leases.release(got)
                return None
            # Between the look and the lease it may have been published.
            look = got.found and not refresh
            return (await self._look(key) if look else None) or Outcome(LEADER, token)
        left = deadline - trio.current_time()
        if left <= 0:
            self._leasing.release(token, failed=False)
            return Outcome(HELD)
        with trio.move_on_after(min(left, BETWEEN)):
            await leases.wait(got)
        return None

    async def _look(self, key: bytes) -> Outcome | None:
        """What Redis has; it is here then, and the lease has ended."""
        (payload,) = await self._fetch([key])
        if payload is None:
            return None
        return Outcome(HIT, payload=payload if len(payload) <= PUSHED else None)

    # ── as long as the lease here

    def _keep(self, token: bytes, lease: RemoteLease) -> bool:
        """Extend the lease over all hosts while the one here lasts; whether that still does."""
        if self._nursery is None or not self._leasing.leases.current(token):
            return False
        scope = trio.CancelScope()
        self._leases[token] = lease, scope
        self._nursery.start_soon(self._hold, lease, scope)
        return True

    async def _hold(self, lease: RemoteLease, scope: trio.CancelScope) -> None:
        leases = self._remote.leases(lease.key)
        with scope:
            await leases.keep(lease)
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            try:
                # One whose value was published has ended already.
                await leases.release(lease)
            except RemoteAway:
                return

    def _ended(self, token: bytes) -> None:
        found = self._leases.pop(token, None)
        if found is not None:
            found[1].cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep leases until cancelled; those that are held then are given up."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
