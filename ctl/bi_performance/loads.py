"""`get_or_set` and what belongs to it, with await and without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, Unpack

from bi_performance.checks import Key, check_factory, check_keys, key_bytes
from bi_performance.decorators import Cached, cached
from bi_performance.drivers import TURN_NS, let_others_run
from bi_performance.entries import CacheEntry
from bi_performance.loading import Loader, Work
from bi_performance.many import Bulk
from bi_performance.options import Changes, Options, options_of
from bi_performance.reader import Outcome
from bi_performance.stale import Server
from bi_performance.worlds import THREADS, run_now, running_world

P = ParamSpec("P")
R = TypeVar("R")


class AsyncLoads:
    """Of PerformanceCache."""

    _server: Server
    _loader: Loader
    _turn_at = 0

    async def get_or_set(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Any:
        """The value of a key; when it is not there, what `factory()` returns, stored for `ttl`
        seconds.

        Of all who ask at once, in all processes of the host, one calls its factory, and the others
        get its value. The factory is a function or a coroutine function; one that is not async
        runs in a thread. What it raises is raised here, and the next who waits tries. Without a
        daemon the factory is called, once at a time in this process, and its value is not stored.
        `options`, or single ones by name, are described at `Options`. Raises beside what the
        factory does: TypeError for a value that is none, LoadTimeout.
        """
        check_factory(factory)
        chosen = options_of("get_or_set", options, ttl, changes) if options or changes else None
        if chosen is not None and not chosen.plain:
            served = await self._server.serve(running_world(), key_bytes(key), factory, chosen)
            return served.value
        name = key_bytes(key)
        value = self._loader.read(name)
        if value.__class__ is not Outcome:
            if (now := self._loader.link.reader.now) > self._turn_at:
                # Hits alone would never let the loop run.
                await let_others_run()
                self._turn_at = now + TURN_NS
            return value
        work = Work(name, factory, chosen or options_of("get_or_set", None, ttl, changes))
        return await self._loader.load(running_world(), work)

    async def get_or_set_entry(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> CacheEntry:
        """As `get_or_set`, telling whether the value is stale, its age, and where it came from."""
        check_factory(factory)
        chosen = options_of("get_or_set_entry", options, ttl, changes)
        return await self._server.serve(running_world(), key_bytes(key), factory, chosen)

    async def refresh(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Any:
        """As `get_or_set`, but the factory is called also when there is a value, which is served
        to others meanwhile."""
        check_factory(factory)
        chosen = options_of("refresh", options, ttl, changes)
        return await self._server.refresh(running_world(), key_bytes(key), factory, chosen)

    async def get_or_set_many(
        self,
        keys: Iterable[Key],
        factory: Callable[[list[Key]], Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> dict[Key, Any]:
        """The values of several keys; `factory(missing)` is asked once for those that are not
        there and that nobody else loads, and returns a mapping.

        Keys that it leaves out are left out here; with `negative_ttl` they are kept as None. Of
        the options those about stale values and early loads are not regarded.
        """
        chosen = options_of("get_or_set_many", options, ttl, changes)
        return await self.many_within(b"", keys, factory, chosen)

    async def many_within(
        self, prefix: bytes, keys: Iterable[Key], factory: Callable[..., Any], options: Options
    ) -> dict[Key, Any]:
        """As `get_or_set_many`, of keys that the store knows by a prefix and factory and caller
        without it."""
        check_factory(factory)
        await let_others_run()
        work = Bulk(self._loader, running_world(), check_keys(keys), factory, options, prefix)
        return await work.run()

    def cached(
        self,
        ttl: float | None = None,
        *,
        key: str | Callable[..., Key] | None = None,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Callable[[Callable[P, R]], Cached[P, R]]:
        """Decorate a function, async or not: its results are kept by its arguments.

        See `decorators.py` for the keys that are made, and for `key`.
        """
        if callable(ttl):
            raise TypeError("write @cached() with brackets: its first argument is the ttl")
        return cached(self._server, options_of("cached", options, ttl, changes), key)


class SyncLoads:
    """Of SyncCache."""

    _server: Server
    _loader: Loader

    def get_or_set(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Any:
        """See PerformanceCache. The factory is not async, and runs in this thread; with a
        `hard_timeout`, or in the background (`grace`, `early`), in one of its own."""
        check_factory(factory)
        chosen = options_of("get_or_set", options, ttl, changes) if options or changes else None
        if chosen is not None and not chosen.plain:
            return run_now(self._server.serve(THREADS, key_bytes(key), factory, chosen)).value
        name = key_bytes(key)
        value = self._loader.read(name)
        if value.__class__ is not Outcome:
            return value
        work = Work(name, factory, chosen or options_of("get_or_set", None, ttl, changes))
        return run_now(self._loader.load(THREADS, work))

    def get_or_set_entry(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> CacheEntry:
        """See PerformanceCache."""
        check_factory(factory)
        chosen = options_of("get_or_set_entry", options, ttl, changes)
        return run_now(self._server.serve(THREADS, key_bytes(key), factory, chosen))

    def refresh(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Any:
        """See PerformanceCache."""
        check_factory(factory)
        chosen = options_of("refresh", options, ttl, changes)
        return run_now(self._server.refresh(THREADS, key_bytes(key), factory, chosen))

    def get_or_set_many(
        self,
        keys: Iterable[Key],
        factory: Callable[[list[Key]], Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> dict[Key, Any]:
        """See PerformanceCache."""
        chosen = options_of("get_or_set_many", options, ttl, changes)
        return self.many_within(b"", keys, factory, chosen)

    def many_within(
        self, prefix: bytes, keys: Iterable[Key], factory: Callable[..., Any], options: Options
    ) -> dict[Key, Any]:
        """See PerformanceCache."""
        check_factory(factory)
        work = Bulk(self._loader, THREADS, check_keys(keys), factory, options, prefix)
        return run_now(work.run())

    def cached(
        self,
        ttl: float | None = None,
        *,
        key: str | Callable[..., Key] | None = None,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Callable[[Callable[P, R]], Cached[P, R]]:
        """See PerformanceCache: the same decorator."""
        if callable(ttl):
            raise TypeError("write @cached() with brackets: its first argument is the ttl")
        return cached(self._server, options_of("cached", options, ttl, changes), key)
