"""Loading a missing value: once for all callers of the process, and once for all of the host.

Written once for threads, asyncio and trio; see worlds.py. The order of things: a flight (one load
of a key in this process), the lease (one on the host), the factory, the value stored under the
lease. Nothing but the factory's own exception, TypeError for what is no value, and LoadTimeout is
raised: without a daemon, or beyond its limits, the factory's value is returned and not stored, for
without a lease nobody knows whether the key was deleted meanwhile.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from bi_performance.checks import key_text, portions
from bi_performance.flights import Flight, Flights, Joiner, Landed, Turn
from bi_performance.forks import after_fork
from bi_performance.keeper import HELD, HIT, LEADER, Asked, Keeper
from bi_performance.limited import Limited
from bi_performance.link import Link
from bi_performance.options import LoadContext, LoadTimeout, Options
from bi_performance.protocol import MAX_REQUEST
from bi_performance.reader import DETACHED, Entry, Outcome
from bi_performance.worlds import THREADS, Late, World, is_async
from bi_performance_wire.tenants import own_part
from bi_performance_wire.types import MAX_KEY_BYTES
from bi_performance_wire.value import ValueFormatError, decode, encode

log = logging.getLogger("performance")

LEASE_WAIT: Final = 30.0
"""Seconds that a request for a lease is left unanswered, before it is made anew."""
NESTED_WAIT: Final = 10.0
"""Seconds that a factory waits for what another one loads: they may wait for each other."""
LOOK_EVERY: Final = 0.5
"""Seconds between two looks at whom one waits for: it may not go on."""
LOOKS_A_SECOND: Final = 500
"""Of all tasks that wait for one load."""
LOOKS: Final = 3
"""How often a value that is said to be there is looked for in vain before it is loaded anyway."""
TOUCH_EVERY: Final = 0.05
"""Seconds between two requests of this process to renew one entry."""
TOUCHES_KEPT: Final = 1000
ENVELOPE: Final = 2 * MAX_KEY_BYTES
"""Bytes of a request beside an entry, at most."""


class _Within:
    """A call of a factory, seen from the code that it calls, in tasks and threads of its own too.

    Those may live longer: a pool that is made at the first use, say.
    """

    __slots__ = ("keys", "over")

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self.keys = keys
        self.over = False


_loading: contextvars.ContextVar[tuple[_Within, ...]] = contextvars.ContextVar(
    "loading", default=()
)


@contextmanager
def within_load(keys: list[bytes]) -> Iterator[None]:
    """While the factory of these keys runs."""
    before = _loading.get()
    within = _Within(tuple(keys))
    _loading.set((*before, within))
    try:
        yield
    finally:
        within.over = True
        # Not by a token: what is collected unfinished ends in another context.
        _loading.set(before)


def loading() -> set[bytes]:
    """The keys whose factories have called the code that runs, and run still."""
    return {key for within in _loading.get() if not within.over for key in within.keys}


def nested() -> bool:
    """Whether a factory that still runs has called the code that runs."""
    return any(not within.over for within in _loading.get())


class Work(NamedTuple):
    """What is to be loaded, and how."""

    key: bytes
    factory: Callable[..., Any]
    options: Options
    known: Entry | None = None
    """An older value, or the present one when it is to be loaded anew."""
    refresh: bool = False
    """Load also when there is a fresh value."""
    wait: float | None = None
    """Seconds to wait while another process loads; None: as long as it takes."""


class NotLoaded(Exception):
    """Another process is loading it, and it was not to be waited for."""


class Loader:
    """Loads for all caches of one link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.flights = Flights()
        self.keeper = Keeper(link)
        self.unshared = 0
        """Factory calls of this process without a lease: the daemon was away, or at a limit."""
        self.too_large = Limited(
            log, "a loaded value cannot be stored (%s): it is returned, and loaded again"
        )
        self._touched: dict[bytes, float] = {}
        after_fork(self.flights.reset)

    async def load(self, world: World, work: Work) -> Any:
        """The value, loaded by this caller or another. See the module."""
        if work.key in loading():
            # The factory asks for what it is to load: waiting for it would never end.
            return await self._call(world, work, LoadContext(work.key, work.options, work.known))
        if self.link.mode != "on":
            return await self._alone(world, work)
        seconds = work.options.hard_timeout
        if seconds is None:
            return await self._join(world, work)
        try:
            return await world.within(seconds, lambda: self._join(world, work))
        except Late:
            name = key_text(own_part(work.key))
            raise LoadTimeout(f"no value of {name!r:.100} within {seconds:g} s") from None

    async def _alone(self, world: World, work: Work) -> Any:
        """With `observe` the factory is always called, and its value stored if no other is being
        loaded; with `off` it is only called."""
        if self.link.mode == "off":
            return await self._call(world, work, LoadContext(work.key, work.options, work.known))
        asked = await self._lease(world, work._replace(refresh=True, wait=0.0))
        value, _ = await self._run(world, work, asked if asked.state == LEADER else None)
        return value

    async def delete(self, world: World, key: bytes) -> bool:
        """Remove a key; whether no process reads it any more."""
        args = {"key": key}
        answer = await world.ask(self.link, "cache.delete", args)
        self.part("cache.delete", args)
        return answer.result is not None

    def touch(self, key: bytes) -> None:
        """Have an entry renewed for its ttl, that was stored with `sliding`, and was just read."""
        now = time.monotonic()
        if now - self._touched.get(key, 0.0) < TOUCH_EVERY:
            return
        if len(self._touched) >= TOUCHES_KEPT:
            self._touched.clear()
        self._touched[key] = now
        if not self.link.resting:
            self.keeper.touch(key)

    def part(self, method: str, args: Mapping[str, Any] | None) -> None:
        """After a request: what this process cleared, nobody who asks from now on may be given
        out of a load that began before."""
        if method in ("cache.delete", "cache.expire") and args is not None:
            self.flights.part(args["key"])
        elif method == "cache.clear":
            self.flights.part_all()

    # ── in this process

    async def _join(self, world: World, work: Work) -> Any:
        bounded = nested() or world.blocks_a_loop
        for _ in range(1000):
            found = self.flights.enter(work.key, world.signal)
            if isinstance(found, Flight):
                return await self._lead(world, work, found)
            outcome = await self.wait(world, found, bounded=bounded)
            if outcome is None:
                break
            if outcome is Turn.LEAD:
                return await self._lead(world, work, found.flight)
            if isinstance(outcome, Landed) and (not work.refresh or work.wait is not None):
                return decode(outcome.payload)
            if not work.refresh and (value := self.read(work.key)).__class__ is not Outcome:
                return value
        value, _ = await self._run(world, work, None)
        return value

    async def wait(self, world: World, joiner: Joiner, *, bounded: bool) -> Landed | Turn | None:
        """What a joiner is told; None when it waits no more.

        A thread does not wait for what can only go on in itself: a task of the loop that it holds
        up, or the call that a signal handler has interrupted.
        """
        until = time.monotonic() + NESTED_WAIT if bounded else float("inf")
        try:
            while joiner.outcome is None and time.monotonic() < until:
                self.flights.look(joiner)
                if world is not THREADS:
                    # The more there are, the less often each need look.
                    every = LOOK_EVERY + len(joiner.flight.joiners) / LOOKS_A_SECOND
                    await joiner.signal.wait(min(every, NESTED_WAIT) if bounded else every)
                elif joiner.flight.thread == threading.get_ident():
                    break
                else:
                    await joiner.signal.wait(LOOK_EVERY)
        except BaseException:
            self.flights.leave(joiner)
            raise
        outcome = joiner.outcome
        if outcome is None:
            self.flights.leave(joiner)
        return outcome

    async def _lead(self, world: World, work: Work, flight: Flight) -> Any:
        outcome: Landed | Turn | None = None
        try:
            value, outcome = await self._fetch(world, work)
            return value
        finally:
            # A failure or a cancellation is this caller's own: the next one tries.
            if outcome is None:
                self.flights.pass_on(flight)
            else:
                self.flights.land(flight, outcome)

    # ── on this host

    async def _fetch(self, world: World, work: Work) -> tuple[Any, Landed | Turn]:
        """The value, and what those are told who wait for it in this process."""
        looks = 0
        began = time.monotonic()
        while True:
            asked = await self._lease(world, work)
            if asked.state == LEADER:
                return await self._run(world, work, asked)
            if asked.state == HIT and (not work.refresh or looks == LOOKS):
                if asked.payload is not None:
                    with suppress(ValueFormatError):
                        return decode(asked.payload), Landed(asked.payload)
                value = self.read(work.key)
                if value.__class__ is not Outcome:
                    return value, Turn.AGAIN
            if asked.state == HELD:
                if work.wait is not None:
                    raise NotLoaded
                if nested() or world.blocks_a_loop:
                    # Perhaps it waits for this one.
                    looks = LOOKS
                if time.monotonic() - began >= LEASE_WAIT / 2:
                    # It takes its time.
                    looks, began = -1, time.monotonic()
                value = self.read(work.key)
                if value.__class__ is not Outcome and not work.refresh:
                    return value, Turn.AGAIN
            looks += 1
            if not asked.state or looks > LOOKS:
                return await self._run(world, work, None)

    async def fetch(self, world: World, keys: list[bytes]) -> dict[bytes, bytes]:
        """The encoded entries of keys that are not here, as far as the second level has them."""
        found: dict[bytes, bytes] = {}
        for names in portions(keys):
            answer = await world.ask(self.link, "cache.fetch", {"keys": names})
            payloads = answer.result["payloads"] if answer.result else ()
            for name, payload in zip(names, payloads, strict=False):
                with suppress(ValueFormatError):
                    if isinstance(payload, bytes):
                        decode(payload)
                        found[name] = payload
        return found

    async def _lease(self, world: World, work: Work) -> Asked:
        """The daemon's answer; `state` "" when there is none."""
        if self.link.resting:
            return self.unanswered(work.key)
        signal = world.signal()
        wait = LEASE_WAIT if work.wait is None else work.wait
        if nested() or world.blocks_a_loop:
            wait = min(wait, NESTED_WAIT)
        asked = self.keeper.ask(
            work.key, signal.set, wait=wait, refresh=work.refresh, alive=signal.alive
        )
        try:
            await signal.wait(None)
        except BaseException:
            asked.finish()
            raise
        return asked

    def unanswered(self, key: bytes) -> Asked:
        """What stands for a lease while the daemon is away."""
        return Asked(self.keeper, {"key": key}, _nothing).answered("")

    async def _run(
        self, world: World, work: Work, asked: Asked | None
    ) -> tuple[Any, Landed | Turn]:
        """Call the factory and store its value under a lease, if there is one."""
        if asked is None:
            self.unshared += 1
        context = LoadContext(work.key, work.options, work.known)
        failed = stored = False
        try:
            began = time.monotonic()
            try:
                value = context.resolve(await self._call(world, work, context))
                took = time.monotonic() - began
                payload, args = self.entry(asked, context, value, took)
            except Exception:
                failed = True
                raise
            if payload is None:
                return value, Turn.AGAIN
            if args is None:
                return value, Landed(payload)
            answer = await world.ask(self.link, "cache.set", args)
            stored = answer.result is not None
            if stored and not answer.result["stored"]:
                # Deleted meanwhile, or a newer value came: for others it is too old.
                stored = False
                return value, Turn.AGAIN
            return value, Landed(payload)
        finally:
            if asked is not None:
                asked.finish(failed=failed, stored=stored)

    async def _call(self, world: World, work: Work, context: LoadContext) -> Any:
        """What the factory returns; as it says, with a context or without."""
        factory = work.factory
        with within_load([work.key]):
            if takes_context(factory):
                return await world.call(lambda: factory(context), is_async=is_async(factory))
            return await world.call(factory, is_async=is_async(factory))

    def entry(
        self, asked: Asked | None, context: LoadContext, value: Any, took: float
    ) -> tuple[bytes | None, dict[str, Any] | None]:
        """A loaded value encoded, or None when no store takes it, and the arguments that store it
        under its lease, or None when it is not to be stored.

        Raises TypeError or ValueError for what is no value, and for what the factory set and is
        no option.
        """
        terms = context.terms(value, took, self.link.default_ttl)
        payload = self._encoded(value)
        if payload is None or terms is None or asked is None or not asked.own:
            return payload, None
        if not self._fits(payload):
            return payload, None
        return payload, {"key": context.name, "payload": payload, "token": asked.token, **terms}

    def _encoded(self, value: Any) -> bytes | None:
        """The entry; None for one that is too large for any store. Raises TypeError."""
        try:
            return encode(value, compress=self.link.compression)
        except ValueError as error:
            self.too_large.say(error)
            return None

    def _fits(self, payload: bytes) -> bool:
        limit = self.link.max_payload or MAX_REQUEST - ENVELOPE
        if len(payload) <= limit:
            return True
        self.too_large.say(f"it has {len(payload)} bytes encoded; the limit is {limit}")
        return False

    def read(self, key: bytes) -> Any:
        """The value in the store, or an Outcome; attaches if that can be done now."""
        try:
            value = self.link.reader.read(key)
            if value is DETACHED and self.link.attach():
                value = self.link.reader.read(key)
        except ValueFormatError:
            return DETACHED
        return value


def takes_context(factory: Callable[..., Any]) -> bool:
    """Whether a factory takes one argument: it is given a LoadContext then."""
    try:
        found = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        # A built-in that does not tell.
        return False
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in places and each.default is each.empty for each in found) == 1


def _nothing() -> None:
    """Nobody waits for what is answered at once."""
