"""The commands about leases: who loads a missing key, and who waits for it."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import trio

from bi_performance_wire import types
from bi_performance_wire.errors import INVALID_ARGUMENT, WireError
from bi_performanced.cache.component import Cache
from bi_performanced.cache.leases import LEADER, Holder, Outcome, Waiter
from bi_performanced.cache.leasing import PUSHED
from bi_performanced.cache.terms import check_key
from bi_performanced.dispatch import Caller, Handler, Line
from bi_performanced.handlers.cache import key_bytes


def handlers(cache: Cache) -> dict[str, Handler]:
    """A handler for each command about leases."""
    desk = Desk(cache)
    return {
        "cache.lease": desk.lease,
        "cache.renew": desk.renew,
        "cache.release": desk.release,
    }


class Desk:
    """Knows the holder that stands for each connection."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._holders: WeakKeyDictionary[Line, Holder] = WeakKeyDictionary()

    def lease(self, args: types.CacheLease, caller: Caller) -> Any:
        key = key_bytes(args.key)
        check_key(key)
        holder = self._holder(caller)
        if not args.refresh and (payload := self._cache.peek(key)) is not None:
            self._cache.leasing.renew(holder)
            sent = payload if args.payload and len(payload) <= PUSHED else None
            return types.Leased(state="hit", payload=sent)
        found = self._cache.leasing.ask(key, holder, ticket=args.ticket, wait=args.wait)
        if isinstance(found, Waiter):
            return self._wait(found, holder, args)
        if found.state == LEADER and self._cache.asks:
            return self._lead(key, found, holder, args, args.wait)
        return self._told(found, args)

    async def _wait(self, waiter: Waiter, holder: Holder, args: types.CacheLease) -> types.Leased:
        began = trio.current_time()
        outcome = await self._cache.leasing.outcome(waiter, args.wait)
        if outcome.state == LEADER and self._cache.asks:
            left = max(0.0, args.wait - (trio.current_time() - began))
            return await self._lead(waiter.key, outcome, holder, args, left)
        return self._told(outcome, args)

    async def _lead(
        self, key: bytes, outcome: Outcome, holder: Holder, args: types.CacheLease, wait: float
    ) -> types.Leased:
        """The lease of this host is there: the other hosts are asked before it is said."""
        found = await self._cache.lead(key, outcome.token, holder, refresh=args.refresh, wait=wait)
        return self._told(found, args)

    def _told(self, outcome: Outcome, args: types.CacheLease) -> types.Leased:
        if outcome.state == LEADER:
            ttl = self._cache.leasing.leases.settings.ttl
            return types.Leased(state="leader", token=outcome.token, ttl=ttl)
        return types.Leased(
            state="hit" if outcome.state == "hit" else "held",
            payload=outcome.payload if args.payload else None,
        )

    def renew(self, args: types.CacheRenew, caller: Caller) -> types.Renewed:
        holder = self._holder(caller)
        self._cache.leasing.renew(holder)
        current = None if args.token is None else self._cache.leasing.leases.current(args.token)
        return types.Renewed(renewed=len(holder.leases), current=current)

    def release(self, args: types.CacheRelease, caller: Caller) -> types.Released:
        leasing = self._cache.leasing
        if (args.token is None) == (args.ticket is None):
            raise WireError(INVALID_ARGUMENT, "give token or ticket, one of them", field="token")
        if args.token is not None:
            return types.Released(released=leasing.release(args.token, failed=args.failed))
        holder = self._holder(caller)
        ticket = args.ticket or 0
        return types.Released(released=leasing.withdraw(holder, ticket, failed=args.failed))

    def _holder(self, caller: Caller) -> Holder:
        line = caller.line
        if line is None:
            raise WireError(INVALID_ARGUMENT, "leases need the control socket")
        holder = self._holders.get(line)
        if holder is None:
            holder = self._holders[line] = Holder(caller.uid or 0, caller.pid or 0)
            line.at_end(lambda: self._cache.leasing.gone(holder))
            line.at_death(lambda: self._cache.leasing.gone(holder))
        return holder
