"""The cache as a scraper uses it: `PerformanceCache` with await, `SyncCache` without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from bi_performance.asking import TIMEOUT, ask, ask_now
from bi_performance.checks import (
    Items,
    Key,
    check_keys,
    check_limit,
    clear_args,
    fetched,
    key_bytes,
    not_utf8,
    pairs,
    pattern_args,
    portions,
    seen_key,
    terms_of,
)
from bi_performance.drivers import TURN_NS, let_others_run
from bi_performance.entries import CacheEntry
from bi_performance.insight import AsyncInsight, SyncInsight
from bi_performance.link import Link
from bi_performance.loading import Loader
from bi_performance.loads import AsyncLoads, SyncLoads
from bi_performance.namespaces import AsyncNamespaces, SyncNamespaces
from bi_performance.protocol import MAX_REQUEST
from bi_performance.reader import DETACHED, MISS, Entry, Outcome
from bi_performance.stale import Server
from bi_performance_wire import layout as L
from bi_performance_wire.batch import pack
from bi_performance_wire.errors import TOO_LARGE, WireError
from bi_performance_wire.types import MAX_KEY_BYTES
from bi_performance_wire.value import ValueFormatError, encode

SWEEP_TIMEOUT: Final = 60.0
"""Seconds for a request that looks at every entry."""
_BATCH_BYTES: Final = 8 << 20
_BATCH_KEYS: Final = 1000
_ENVELOPE: Final = 2 * MAX_KEY_BYTES
"""Bytes of a request beside an entry, at most."""


class _Common:
    """What both forms of the cache share: reading in place, and making requests' arguments."""

    def __init__(self, link: Link, server: Server | None = None) -> None:
        self._link = link
        self._server = server or Server(Loader(link))
        self._loader = self._server.loader

    def _read_again(self, key: bytes) -> object:
        """After DETACHED: attach if that can be done now, and read once more."""
        if self._link.attach():
            try:
                return self._link.reader.read(key)
            except ValueError:
                return MISS
        return DETACHED

    def _read_many(self, keys: Iterable[Key]) -> tuple[dict[Key, Any], dict[bytes, Key]]:
        """The values of the keys that are here, and those that are to be asked for elsewhere."""
        found: dict[Key, Any] = {}
        elsewhere: dict[bytes, Key] = {}
        link = self._link
        for key in keys:
            name = key_bytes(key)
            try:
                value = link.reader.read(name)
            except ValueFormatError:
                continue
            if value is DETACHED:
                value = self._read_again(name)
            if value.__class__ is not Outcome:
                found[key] = value
            elif value is MISS and link.reader.asks:
                elsewhere[name] = key
        return found, elsewhere

    def _is_here(self, name: bytes) -> bool:
        """Whether the store of this host has a value of a key; no other level is asked."""
        found = self._server.find(name)
        return isinstance(found, Entry) and not found.stale

    def _entry(self, key: Key, *, count: bool = True) -> CacheEntry:
        found = self._server.find(key_bytes(key), count=count)
        if not isinstance(found, Entry):
            return CacheEntry(False)
        return CacheEntry(True, found.value, found.age, found.stale, "local", found.ttl)

    def _set_args(self, key: Key, value: Any, terms: dict[str, Any]) -> dict[str, Any] | None:
        """The arguments to store a value; None for one that is too large, which has been said."""
        self._link.keep_up()
        args: dict[str, Any] = {
            "key": key_bytes(key),
            "payload": encode(value, compress=self._link.compression),
            **terms,
        }
        return args if self._fits(args["payload"]) else None

    def _fits(self, payload: bytes) -> bool:
        """Whether the daemon would take an entry; it need not be sent to be refused."""
        link = self._link
        limit = link.max_payload or MAX_REQUEST - _ENVELOPE
        if len(payload) <= limit:
            return True
        text = f"the value has {len(payload)} bytes encoded; the limit is {limit}"
        link.note(WireError(TOO_LARGE, text, field="value"))
        return False

    def _batches(self, items: Items, terms: dict[str, Any]) -> list[dict[str, Any]]:
        """The arguments of as many `cache.set_many` as the items need, all checked before.

        Those that are too large are left out.
        """
        self._link.keep_up()
        compress = self._link.compression
        batches: list[dict[str, Any]] = []
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        for key, value in pairs(items):
            name = key_bytes(key)
            try:
                payload = encode(value, compress=compress)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"the value of {key!r:.100}: {error}") from error
            if not self._fits(payload):
                continue
            if batch and (len(batch) == _BATCH_KEYS or size + len(payload) > _BATCH_BYTES):
                batches.append({"payload": pack(batch), **terms})
                batch, size = [], 0
            batch.append((name, payload))
            size += len(payload)
        if batch:
            batches.append({"payload": pack(batch), **terms})
        return batches

    def observed(self) -> dict[str, int]:
        """What this process's reads came to: with `mode = observe`, what would have been served."""
        page = getattr(self._link.reader, "page", None)
        if page is None:
            return {"hits": 0, "misses": 0, "would_have_hit": 0}
        return {
            "hits": page[L.P_HITS],
            "misses": page[L.P_MISSES],
            "would_have_hit": page[L.P_OBSERVED],
        }

    def loads(self) -> dict[str, int]:
        """What `get_or_set` and its kin came to in this process."""
        return self._server.figures()

    def _stored(self, answer: Any) -> int:
        """How many entries of a batch were stored, having said why the others were not."""
        if not answer:
            return 0
        if reason := answer.get("refused"):
            self._link.note(WireError(TOO_LARGE, str(reason), field="items"))
        return int(answer["stored"])

    def _listed(self, answer: Any, limit: int) -> list[Key] | None:
        """The keys of a listing, having said when an answer's size cut it off."""
        if not answer:
            return None
        keys: list[Key] = answer["keys"]
        if answer.get("truncated") and len(keys) < limit:
            text = f"an answer has room for {len(keys)} of the keys that were asked for"
            self._link.note(WireError(TOO_LARGE, text, hint="ask with a pattern that fits fewer"))
        return keys

    def _known(self, answer: Any) -> bool:
        """Whether `cache.add` found its key there already, for those who may be told."""
        # While it is only observed, nothing may be skipped; the read has counted what was there.
        return answer is not None and not answer["stored"] and self._link.mode != "observe"

    @property
    def unavailable(self) -> int:
        """Calls of this process that were answered without the daemon."""
        return self._link.unavailable


class PerformanceCache(_Common, AsyncLoads, AsyncInsight, AsyncNamespaces):
    """The shared cache, under asyncio or trio.

    No method raises because of the daemon: while it is away a read is a miss and a write returns
    False. TypeError and ValueError mean a mistake in the call: a key, a value or a ttl that
    cannot be stored. A request that is cancelled may or may not have been carried out.
    """

    _turn_at = 0

    async def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or `default`. Read in place: no message, about 2 microseconds."""
        reader = self._link.reader
        try:
            name = key.encode() if key.__class__ is str else key_bytes(key)
            value = reader.read(name)
        except UnicodeEncodeError as error:
            raise not_utf8(key) from error
        except ValueFormatError:
            # What a foreign client stored under another client's marker is no value.
            return default
        if reader.now > self._turn_at:
            # Hits alone would never let the loop run: they do not wait for anything.
            await let_others_run()
            self._turn_at = reader.now + TURN_NS
        if value.__class__ is Outcome:
            if value is DETACHED:
                value = self._read_again(key_bytes(key))
                if value.__class__ is not Outcome:
                    return value
            elif not name or len(name) > MAX_KEY_BYTES:
                key_bytes(key)
            if self._link.reader.asks:
                return (await self._fetch([name])).get(name, default)
            return default
        return value

    async def get_entry(self, key: Key) -> CacheEntry:
        """The value of a key with its age, remaining lifetime and level."""
        await let_others_run()
        entry = self._entry(key)
        if not entry.found and self._link.reader.asks and await self._fetch([key_bytes(key)]):
            return replace(self._entry(key, count=False), level="redis")
        return entry

    async def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """The values of those keys that are there."""
        found: dict[Key, Any] = {}
        elsewhere: dict[bytes, Key] = {}
        for some in portions(check_keys(keys)):
            here, missing = self._read_many(some)
            found |= here
            elsewhere |= missing
            await let_others_run()
        for names in portions(elsewhere):
            there = await self._fetch(names)
            found.update((elsewhere[name], value) for name, value in there.items())
        return found

    async def _fetch(self, names: list[bytes]) -> dict[bytes, Any]:
        """The values of keys that are not here, as far as the second level has them."""
        return fetched(names, await self._ask("cache.fetch", {"keys": names}))

    async def set(
        self,
        key: Key,
        value: Any,
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        grace: float = 0.0,
        sliding: bool = False,
        local: bool = False,
        redis_ttl: float | None = None,
    ) -> bool:
        """Store a value for `ttl` seconds (None: the configured default).

        `tags` are names under which it can be cleared; for `grace` seconds after its ttl it may be
        served stale to those who ask for that; with `sliding` reads renew it; `local` keeps it
        out of Redis, and `redis_ttl` makes it live shorter there. True when every
        process of the host reads it from now on; False when the daemon is away or refused it (too
        large, say), which is logged at a limited rate.
        """
        terms = terms_of(
            ttl, tags=tags, grace=grace, sliding=sliding, local=local, redis_ttl=redis_ttl
        )
        args = self._set_args(key, value, terms)
        return args is not None and await self._ask("cache.set", args) is not None

    async def set_many(
        self,
        items: Items,
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        grace: float = 0.0,
        sliding: bool = False,
        local: bool = False,
        redis_ttl: float | None = None,
    ) -> int:
        """Store several values in few messages; how many were stored. See `set`."""
        stored = 0
        terms = terms_of(
            ttl, tags=tags, grace=grace, sliding=sliding, local=local, redis_ttl=redis_ttl
        )
        for args in self._batches(items, terms):
            stored += self._stored(await self._ask("cache.set_many", args))
        return stored

    async def delete(self, key: Key) -> bool:
        """Remove a key. True when no process reads it any more; False when the daemon is away."""
        return await self._ask("cache.delete", {"key": key_bytes(key)}) is not None

    async def expire(self, key: Key) -> bool:
        """Make a key stale: from now on it is served in its grace only, by who asks for that.

        True when that is so for every process; False when the daemon is away.
        """
        return await self._ask("cache.expire", {"key": key_bytes(key)}) is not None

    async def clear(
        self,
        pattern: str | None = None,
        *,
        tags: Iterable[str] | None = None,
        stale: bool = False,
        dry_run: bool = False,
    ) -> int | None:
        """Remove every entry, or those that a pattern matches or that have one of the tags.

        With `stale` they are not removed but made stale, with `dry_run` only counted. Returns how
        many, or None when the daemon is away. An empty list of tags is a ValueError.
        """
        args = clear_args(pattern, tags, stale, dry_run)
        answer = await self._ask("cache.clear", args, seconds=SWEEP_TIMEOUT)
        return answer["cleared"] if answer else None

    async def keys(self, pattern: str | None = None, limit: int = 1000) -> list[Key] | None:
        """Keys that are there, or None when the daemon is away.

        At most `limit`, and at most 4 MiB of them: fewer for that reason is logged, at a limited
        rate.
        """
        args = {"limit": check_limit(limit)} | pattern_args(pattern)
        answer = await self._ask("cache.keys", args, seconds=SWEEP_TIMEOUT)
        return self._listed(answer, limit)

    async def seen(self, fingerprint: Key, ttl: float | None = None) -> bool:
        """Whether any process of the host called this with the fingerprint within `ttl` seconds.

        Exact over all processes: of those that call at once with a new fingerprint one gets
        False. While the daemon is away it is False, and counted in `unavailable`; in `observe` it
        is False too, and counted as a read that would have found something.
        """
        return await self.seen_as(seen_key(fingerprint), ttl)

    async def seen_as(self, key: bytes, ttl: float | None) -> bool:
        """As `seen`, of a key that stands for a fingerprint."""
        await let_others_run()
        if self._is_here(key):
            return True
        args = self._set_args(key, 1, terms_of(ttl))
        answer = None if args is None else await self._ask("cache.add", args, repeatable=False)
        return self._known(answer)

    async def _ask(
        self,
        method: str,
        args: dict[str, Any] | None,
        *,
        seconds: float = TIMEOUT,
        repeatable: bool = True,
    ) -> Any:
        answer = await ask(self._link, method, args, seconds=seconds, repeatable=repeatable)
        self._loader.part(method, args)
        return answer.result


class SyncCache(_Common, SyncLoads, SyncInsight, SyncNamespaces):
    """The same cache without await, for any number of threads. See PerformanceCache."""

    def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        try:
            name = key.encode() if key.__class__ is str else key_bytes(key)
            value = self._link.reader.read(name)
            if value is DETACHED:
                value = self._read_again(key_bytes(key))
        except UnicodeEncodeError as error:
            raise not_utf8(key) from error
        except ValueFormatError:
            return default
        if value.__class__ is Outcome:
            if not name or len(name) > MAX_KEY_BYTES:
                key_bytes(key)
            if self._link.reader.asks:
                return self._fetch([name]).get(name, default)
            return default
        return value

    def get_entry(self, key: Key) -> CacheEntry:
        """The value of a key with its age, remaining lifetime and level."""
        entry = self._entry(key)
        if not entry.found and self._link.reader.asks and self._fetch([key_bytes(key)]):
            return replace(self._entry(key, count=False), level="redis")
        return entry

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """The values of those keys that are there."""
        found, elsewhere = self._read_many(check_keys(keys))
        for names in portions(elsewhere):
            there = self._fetch(names)
            found.update((elsewhere[name], value) for name, value in there.items())
        return found

    def _fetch(self, names: list[bytes]) -> dict[bytes, Any]:
        """The values of keys that are not here, as far as the second level has them."""
        return fetched(names, self._ask("cache.fetch", {"keys": names}))

    def set(
        self,
        key: Key,
        value: Any,
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        grace: float = 0.0,
        sliding: bool = False,
        local: bool = False,
        redis_ttl: float | None = None,
    ) -> bool:
        """Store a value; True when every process of the host reads it from now on."""
        terms = terms_of(
            ttl, tags=tags, grace=grace, sliding=sliding, local=local, redis_ttl=redis_ttl
        )
        args = self._set_args(key, value, terms)
        return args is not None and self._ask("cache.set", args) is not None

    def set_many(
        self,
        items: Items,
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        grace: float = 0.0,
        sliding: bool = False,
        local: bool = False,
        redis_ttl: float | None = None,
    ) -> int:
        """Store several values in few messages; how many were stored."""
        batches = self._batches(
            items,
            terms_of(
                ttl, tags=tags, grace=grace, sliding=sliding, local=local, redis_ttl=redis_ttl
            ),
        )
        return sum(self._stored(self._ask("cache.set_many", args)) for args in batches)

    def delete(self, key: Key) -> bool:
        """Remove a key. True when no process reads it any more."""
        return self._ask("cache.delete", {"key": key_bytes(key)}) is not None

    def expire(self, key: Key) -> bool:
        """Make a key stale. See PerformanceCache."""
        return self._ask("cache.expire", {"key": key_bytes(key)}) is not None

    def clear(
        self,
        pattern: str | None = None,
        *,
        tags: Iterable[str] | None = None,
        stale: bool = False,
        dry_run: bool = False,
    ) -> int | None:
        """Remove, make stale or count every entry, or some. See PerformanceCache."""
        args = clear_args(pattern, tags, stale, dry_run)
        answer = self._ask("cache.clear", args, seconds=SWEEP_TIMEOUT)
        return answer["cleared"] if answer else None

    def keys(self, pattern: str | None = None, limit: int = 1000) -> list[Key] | None:
        """Keys that are there, or None when the daemon is away."""
        args = {"limit": check_limit(limit)} | pattern_args(pattern)
        answer = self._ask("cache.keys", args, seconds=SWEEP_TIMEOUT)
        return self._listed(answer, limit)

    def seen(self, fingerprint: Key, ttl: float | None = None) -> bool:
        """Whether any process of the host called this with the fingerprint within `ttl` seconds."""
        return self.seen_as(seen_key(fingerprint), ttl)

    def seen_as(self, key: bytes, ttl: float | None) -> bool:
        """As `seen`, of a key that stands for a fingerprint."""
        if self._is_here(key):
            return True
        args = self._set_args(key, 1, terms_of(ttl))
        answer = None if args is None else self._ask("cache.add", args, repeatable=False)
        return self._known(answer)

    def _ask(
        self,
        method: str,
        args: dict[str, Any] | None,
        *,
        seconds: float = TIMEOUT,
        repeatable: bool = True,
    ) -> Any:
        answer = ask_now(self._link, method, args, seconds=seconds, repeatable=repeatable)
        self._loader.part(method, args)
        return answer.result
