"""`get_or_set` and what belongs to it, with await and without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, Unpack

from bi_performance.checks import Key, check_keys, key_bytes
from bi_performance.decorators import Cached, cached
from bi_performance.drivers import let_others_run
from bi_performance.loading import Loader, Work
from bi_performance.many import Bulk
from bi_performance.options import Changes, Options, options_of
from bi_performance.reader import MISS
from bi_performance.worlds import THREADS, run_now, running_world

P = ParamSpec("P")
R = TypeVar("R")


class AsyncLoads:
    """Of PerformanceCache."""

    _loader: Loader

    async def get(self, key: Key, default: Any = None) -> Any:
        raise NotImplementedError

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
        value = await self.get(key, MISS)
        if value is not MISS:
            return value
        work = Work(key_bytes(key), factory, options_of(options, ttl, changes))
        return await self._loader.load(running_world(), work)

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
        chosen = options_of(options, ttl, changes)
        name = key_bytes(key)
        work = Work(name, factory, chosen, refresh=True)
        return await self._loader.load(running_world(), work)

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
        chosen = options_of(options, ttl, changes)
        await let_others_run()
        work = Bulk(self._loader, running_world(), check_keys(keys), factory, chosen)
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
        return cached(self._loader, options_of(options, ttl, changes), key)


class SyncLoads:
    """Of SyncCache."""

    _loader: Loader

    def get(self, key: Key, default: Any = None) -> Any:
        raise NotImplementedError

    def get_or_set(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Any:
        """See PerformanceCache. The factory is not async, and runs in this thread."""
        value = self.get(key, MISS)
        if value is not MISS:
            return value
        work = Work(key_bytes(key), factory, options_of(options, ttl, changes))
        return run_now(self._loader.load(THREADS, work))

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
        chosen = options_of(options, ttl, changes)
        work = Work(key_bytes(key), factory, chosen, refresh=True)
        return run_now(self._loader.load(THREADS, work))

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
        chosen = options_of(options, ttl, changes)
        return run_now(Bulk(self._loader, THREADS, check_keys(keys), factory, chosen).run())

    def cached(
        self,
        ttl: float | None = None,
        *,
        key: str | Callable[..., Key] | None = None,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Callable[[Callable[P, R]], Cached[P, R]]:
        """See PerformanceCache: the same decorator."""
        return cached(self._loader, options_of(options, ttl, changes), key)
