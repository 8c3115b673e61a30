"""A part of the cache for one tenant: keys, tags and clears of its own. See `wire/tenants.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from bi_performance.checks import (
    Items,
    Key,
    check_tags,
    key_bytes,
    key_text,
    pairs,
    pattern_args,
    seen_key,
)
from bi_performance.entries import CacheEntry
from bi_performance.options import Changes, Options, options_of
from bi_performance_wire.tenants import pattern_of, prefix_of, tag_of
from bi_performance_wire.types import MAX_KEY_BYTES

if TYPE_CHECKING:
    from bi_performance.client import PerformanceCache, SyncCache


class _Names:
    """Names within a namespace, and what they are in the store."""

    def __init__(self, name: str) -> None:
        """Raises TypeError or ValueError for what names no namespace."""
        if not isinstance(name, str):
            raise TypeError(f"a namespace is named by str, not {type(name).__name__}")
        self._prefix = prefix_of(name)
        self.name = name

    def _key(self, key: Key) -> bytes:
        return self._prefix + key_bytes(key, most=MAX_KEY_BYTES - len(self._prefix))

    def _inner(self, key: Key) -> Key:
        """A key as its owner knows it."""
        name = key.encode() if isinstance(key, str) else key
        return key_text(name[len(self._prefix) :])

    def _keys(self, keys: Iterable[Key]) -> dict[bytes, Key]:
        return {self._key(key): key for key in keys}

    def _items(self, items: Items) -> list[tuple[bytes, Any]]:
        return [(self._key(key), value) for key, value in pairs(items)]

    def _pattern(self, pattern: str | None) -> str:
        pattern_args(pattern)
        return pattern_of(self.name, pattern)

    def _tags(self, tags: Iterable[str]) -> list[str]:
        return [tag_of(self.name, tag) for tag in check_tags(tags)]

    def _options(self, options: Options | None, changes: Changes) -> tuple[Options | None, Changes]:
        if options is not None and options.tags:
            options = replace(options, tags=tuple(self._tags(options.tags)))
        if "tags" in changes:
            changes["tags"] = self._tags(changes["tags"])
        return options, changes


class Namespace(_Names):
    """As PerformanceCache, within a namespace: what it stores, sees and clears is its own."""

    def __init__(self, cache: PerformanceCache, name: str) -> None:
        super().__init__(name)
        self._cache = cache

    async def get(self, key: Key, default: Any = None) -> Any:
        return await self._cache.get(self._key(key), default)

    async def get_entry(self, key: Key) -> CacheEntry:
        return await self._cache.get_entry(self._key(key))

    async def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        names = self._keys(keys)
        found = await self._cache.get_many(names)
        return {names[name]: found[name] for name in names if name in found}

    async def set(
        self,
        key: Key,
        value: Any,
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        **terms: Any,
    ) -> bool:
        """See PerformanceCache.set, also for the other terms."""
        return await self._cache.set(self._key(key), value, ttl, tags=self._tags(tags), **terms)

    async def set_many(
        self, items: Items, ttl: float | None = None, *, tags: Iterable[str] = (), **terms: Any
    ) -> int:
        return await self._cache.set_many(self._items(items), ttl, tags=self._tags(tags), **terms)

    async def delete(self, key: Key) -> bool:
        return await self._cache.delete(self._key(key))

    async def expire(self, key: Key) -> bool:
        return await self._cache.expire(self._key(key))

    async def clear(
        self,
        pattern: str | None = None,
        *,
        tags: Iterable[str] | None = None,
        stale: bool = False,
        dry_run: bool = False,
    ) -> int | None:
        """Remove every entry of the namespace, or some of them. See PerformanceCache.clear."""
        if tags is not None and pattern is None:
            return await self._cache.clear(tags=self._tags(tags), stale=stale, dry_run=dry_run)
        return await self._cache.clear(
            self._pattern(pattern),
            tags=None if tags is None else self._tags(tags),
            stale=stale,
            dry_run=dry_run,
        )

    async def keys(self, pattern: str | None = None, limit: int = 1000) -> list[Key] | None:
        found = await self._cache.keys(self._pattern(pattern), limit)
        return None if found is None else [self._inner(key) for key in found]

    async def explain(self, key: Key) -> dict[str, Any] | None:
        found = await self._cache.explain(self._key(key))
        return None if found is None else found | {"key": self._inner(found["key"])}

    async def seen(self, fingerprint: Key, ttl: float | None = None) -> bool:
        return await self._cache.seen_as(self._key(seen_key(fingerprint)), ttl)

    async def get_or_set(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Any:
        chosen, named = self._options(options, changes)
        return await self._cache.get_or_set(self._key(key), factory, ttl, options=chosen, **named)

    async def refresh(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Any:
        chosen, named = self._options(options, changes)
        return await self._cache.refresh(self._key(key), factory, ttl, options=chosen, **named)

    async def get_or_set_many(
        self,
        keys: Iterable[Key],
        factory: Callable[[list[Key]], Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> dict[Key, Any]:
        own, named = self._options(options, changes)
        chosen = options_of("get_or_set_many", own, ttl, named)
        return await self._cache.many_within(self._prefix, keys, factory, chosen)


class SyncNamespace(_Names):
    """The same without await. See Namespace."""

    def __init__(self, cache: SyncCache, name: str) -> None:
        super().__init__(name)
        self._cache = cache

    def get(self, key: Key, default: Any = None) -> Any:
        return self._cache.get(self._key(key), default)

    def get_entry(self, key: Key) -> CacheEntry:
        return self._cache.get_entry(self._key(key))

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        names = self._keys(keys)
        found = self._cache.get_many(names)
        return {names[name]: found[name] for name in names if name in found}

    def set(
        self,
        key: Key,
        value: Any,
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        **terms: Any,
    ) -> bool:
        """See SyncCache.set, also for the other terms."""
        return self._cache.set(self._key(key), value, ttl, tags=self._tags(tags), **terms)

    def set_many(
        self, items: Items, ttl: float | None = None, *, tags: Iterable[str] = (), **terms: Any
    ) -> int:
        return self._cache.set_many(self._items(items), ttl, tags=self._tags(tags), **terms)

    def delete(self, key: Key) -> bool:
        return self._cache.delete(self._key(key))

    def expire(self, key: Key) -> bool:
        return self._cache.expire(self._key(key))

    def clear(
        self,
        pattern: str | None = None,
        *,
        tags: Iterable[str] | None = None,
        stale: bool = False,
        dry_run: bool = False,
    ) -> int | None:
        """Remove every entry of the namespace, or some of them. See SyncCache.clear."""
        if tags is not None and pattern is None:
            return self._cache.clear(tags=self._tags(tags), stale=stale, dry_run=dry_run)
        return self._cache.clear(
            self._pattern(pattern),
            tags=None if tags is None else self._tags(tags),
            stale=stale,
            dry_run=dry_run,
        )

    def keys(self, pattern: str | None = None, limit: int = 1000) -> list[Key] | None:
        found = self._cache.keys(self._pattern(pattern), limit)
        return None if found is None else [self._inner(key) for key in found]

    def explain(self, key: Key) -> dict[str, Any] | None:
        found = self._cache.explain(self._key(key))
        return None if found is None else found | {"key": self._inner(found["key"])}

    def seen(self, fingerprint: Key, ttl: float | None = None) -> bool:
        return self._cache.seen_as(self._key(seen_key(fingerprint)), ttl)

    def get_or_set(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Any:
        chosen, named = self._options(options, changes)
        return self._cache.get_or_set(self._key(key), factory, ttl, options=chosen, **named)

    def refresh(
        self,
        key: Key,
        factory: Callable[..., Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> Any:
        chosen, named = self._options(options, changes)
        return self._cache.refresh(self._key(key), factory, ttl, options=chosen, **named)

    def get_or_set_many(
        self,
        keys: Iterable[Key],
        factory: Callable[[list[Key]], Any],
        ttl: float | None = None,
        *,
        options: Options | None = None,
        **changes: Unpack[Changes],
    ) -> dict[Key, Any]:
        own, named = self._options(options, changes)
        chosen = options_of("get_or_set_many", own, ttl, named)
        return self._cache.many_within(self._prefix, keys, factory, chosen)


class AsyncNamespaces:
    """Of PerformanceCache."""

    def namespace(self, name: str) -> Namespace:
        """The part of the cache that is `name`'s: keys, tags and clears of its own, and a quota
        where `cache.tenants` sets one. Keys of other parts are not met in it by accident.

        Raises TypeError or ValueError for what names no namespace.
        """
        cache: Any = self
        return Namespace(cache, name)


class SyncNamespaces:
    """Of SyncCache."""

    def namespace(self, name: str) -> SyncNamespace:
        """See PerformanceCache."""
        cache: Any = self
        return SyncNamespace(cache, name)
