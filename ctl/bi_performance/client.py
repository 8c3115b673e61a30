"""The cache as a scraper uses it: `PerformanceCache` with await, `SyncCache` without."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bi_performance.asking import TIMEOUT, ask, ask_now
from bi_performance.drivers import let_others_run
from bi_performance.link import Link
from bi_performance.protocol import MAX_REQUEST
from bi_performance.reader import DETACHED, MISS, Entry, Outcome
from bi_performance_wire import layout as L
from bi_performance_wire.batch import pack
from bi_performance_wire.errors import TOO_LARGE, WireError
from bi_performance_wire.extra import MAX_TAG_BYTES, MAX_TAGS
from bi_performance_wire.types import MAX_KEY_BYTES, MAX_KEYS, MAX_PATTERN_CHARS, MAX_TTL
from bi_performance_wire.value import ValueFormatError, encode

Key = str | bytes
Items = Mapping[str, Any] | Mapping[bytes, Any] | Mapping[Key, Any] | Iterable[tuple[Key, Any]]
"""What `set_many` takes: a mapping (its key type is invariant, hence three) or pairs."""

SWEEP_TIMEOUT: Final = 60.0
"""Seconds for a request that looks at every entry."""
TURN_NS: Final = 1_000_000
"""Nanoseconds of hits after which the event loop has a turn."""
SEEN_PREFIX: Final = b"seen:"
_BATCH_BYTES: Final = 8 << 20
_BATCH_KEYS: Final = 1000
_ENVELOPE: Final = 2 * MAX_KEY_BYTES
"""Bytes of a request beside an entry, at most."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What `get_entry` found.

    `age` is in seconds; `stale` tells an entry that is served beyond its time; `level` is
    "local" (the shared store of this host), or None when nothing was found.
    """

    found: bool
    value: Any = None
    age: float | None = None
    stale: bool = False
    level: str | None = None
    ttl: float | None = None
    """Seconds left, or None for an entry that does not expire."""


def key_bytes(key: Key, what: str = "a key", most: int = MAX_KEY_BYTES) -> bytes:
    """A key as bytes; raises TypeError or ValueError for what is none."""
    if isinstance(key, str):
        try:
            key = key.encode()
        except UnicodeEncodeError as error:
            raise _not_utf8(key, what) from error
    elif not isinstance(key, bytes):
        raise TypeError(f"{what} is str or bytes, not {type(key).__name__}")
    if not 0 < len(key) <= most:
        raise ValueError(f"{what} has 1 to {most} bytes, this one {len(key)}")
    return key


def _seen_key(fingerprint: Key) -> bytes:
    """The key that stands for a fingerprint; raises TypeError or ValueError for what is none."""
    name = key_bytes(fingerprint, "a fingerprint", MAX_KEY_BYTES - len(SEEN_PREFIX))
    return SEEN_PREFIX + name


def _not_utf8(key: Key, what: str = "a key") -> ValueError:
    return ValueError(
        f"{what} is text that UTF-8 can say; this one has lone surrogates: {key!r:.80}"
    )


def check_ttl(ttl: float | None) -> float | None:
    """A time to live in seconds; raises TypeError or ValueError for what is none."""
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise TypeError(f"ttl is a number of seconds, not {type(ttl).__name__}")
    try:
        seconds = float(ttl)
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"ttl must be more than 0 seconds and finite, not {ttl!r:.40}")
    if seconds > MAX_TTL:
        raise ValueError(f"ttl must be at most {MAX_TTL:.0f} seconds, not {ttl!r:.40}")
    return seconds


def check_grace(grace: float) -> float:
    """Seconds that a stale entry may be served; raises TypeError or ValueError for what is none."""
    if isinstance(grace, bool) or not isinstance(grace, int | float):
        raise TypeError(f"grace is a number of seconds, not {type(grace).__name__}")
    if not 0 <= grace <= MAX_TTL:
        raise ValueError(f"grace must be 0 to {MAX_TTL:.0f} seconds, not {grace!r:.40}")
    return float(grace)


def check_tags(tags: Iterable[str]) -> list[str]:
    """Tags as they are sent; raises TypeError or ValueError for what is none."""
    if isinstance(tags, str | bytes):
        raise TypeError("tags is a list of tags, not one tag")
    found = list(dict.fromkeys(tags))
    if len(found) > MAX_TAGS:
        raise ValueError(f"an entry has at most {MAX_TAGS} tags, not {len(found)}")
    for tag in found:
        if not isinstance(tag, str):
            raise TypeError(f"a tag is str, not {type(tag).__name__}")
        try:
            size = len(tag.encode())
        except UnicodeEncodeError as error:
            raise _not_utf8(tag, "a tag") from error
        if not 0 < size <= MAX_TAG_BYTES:
            raise ValueError(f"a tag has 1 to {MAX_TAG_BYTES} bytes, this one {size}")
    return found


def terms_of(
    ttl: float | None = None,
    *,
    tags: Iterable[str] = (),
    grace: float = 0.0,
    sliding: bool = False,
    meta: bytes = b"",
) -> dict[str, Any]:
    """The arguments that say what an entry is stored with; raises TypeError or ValueError."""
    terms: dict[str, Any] = {}
    if (seconds := check_ttl(ttl)) is not None:
        terms["ttl"] = seconds
    if found := check_tags(tags):
        terms["tags"] = found
    if given := check_grace(grace):
        terms["grace"] = given
    if sliding:
        terms["sliding"] = True
    if meta:
        terms["meta"] = meta
    return terms


def _clear_args(
    pattern: str | None, tags: Iterable[str], stale: bool, dry_run: bool
) -> dict[str, Any]:
    args = _pattern_args(pattern)
    if found := check_tags(tags):
        args["tags"] = found
    if stale:
        args["stale"] = True
    if dry_run:
        args["dry_run"] = True
    return args


def _check_limit(limit: int) -> int:
    """How many keys are asked for; raises TypeError or ValueError for what is no such number."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit is a whole number, not {type(limit).__name__}")
    if not 1 <= limit <= MAX_KEYS:
        raise ValueError(f"limit must be 1 to {MAX_KEYS}")
    return limit


def _pattern_args(pattern: str | None) -> dict[str, Any]:
    """The argument for a pattern; raises TypeError or ValueError for what is none."""
    if pattern is None:
        return {}
    if not isinstance(pattern, str):
        raise TypeError(f"a pattern is str, not {type(pattern).__name__}")
    if not 0 < len(pattern) <= MAX_PATTERN_CHARS:
        size = len(pattern)
        raise ValueError(f"a pattern has 1 to {MAX_PATTERN_CHARS} characters, this one {size}")
    try:
        pattern.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a pattern is text that UTF-8 can say; this one has lone surrogates: {pattern!r:.80}"
        ) from error
    return {"pattern": pattern}


def _check_keys(keys: Iterable[Key]) -> Iterable[Key]:
    if isinstance(keys, str | bytes):
        raise TypeError("keys is a list of keys, not one key")
    return keys


def _pairs(items: Items) -> Iterable[tuple[Key, Any]]:
    """Keys and values; raises TypeError naming the place of what is no such pair."""
    if isinstance(items, Mapping):
        yield from items.items()
        return
    for at, pair in enumerate(items):
        try:
            key, value = pair
        except (TypeError, ValueError):
            raise TypeError(f"items[{at}] is no pair of key and value: {pair!r:.80}") from None
        yield key, value


class _Common:
    """What both forms of the cache share: reading in place, and making requests' arguments."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def _read_again(self, key: bytes) -> object:
        """After DETACHED: attach if that can be done now, and read once more."""
        if self._link.attach():
            try:
                return self._link.reader.read(key)
            except ValueError:
                return MISS
        return DETACHED

    def _find(self, name: bytes, *, count: bool = True) -> Entry | Outcome:
        """What is known of an entry, stale or not, attaching if that can be done now."""
        try:
            found = self._link.reader.find(name, count=count)
            if found is DETACHED and self._link.attach():
                found = self._link.reader.find(name, count=count)
        except ValueError:
            # What a foreign client stored under another client's marker is no value.
            return MISS
        return found

    def _entry(self, key: Key) -> CacheEntry:
        found = self._find(key_bytes(key))
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
        for key, value in _pairs(items):
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


class PerformanceCache(_Common):
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
            raise _not_utf8(key) from error
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
            return default
        return value

    async def get_entry(self, key: Key) -> CacheEntry:
        """The value of a key with its age, remaining lifetime and level."""
        await let_others_run()
        return self._entry(key)

    async def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """The values of those keys that are there."""
        found = {}
        missing = object()
        for key in _check_keys(keys):
            value = await self.get(key, missing)
            if value is not missing:
                found[key] = value
        return found

    async def set(
        self,
        key: Key,
        value: Any,
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        grace: float = 0.0,
        sliding: bool = False,
    ) -> bool:
        """Store a value for `ttl` seconds (None: the configured default).

        `tags` are names under which it can be cleared; for `grace` seconds after its ttl it may be
        served stale to those who ask for that; with `sliding` reads renew it. True when every
        process of the host reads it from now on; False when the daemon is away or refused it (too
        large, say), which is logged at a limited rate.
        """
        terms = terms_of(ttl, tags=tags, grace=grace, sliding=sliding)
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
    ) -> int:
        """Store several values in few messages; how many were stored. See `set`."""
        stored = 0
        terms = terms_of(ttl, tags=tags, grace=grace, sliding=sliding)
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
        tags: Iterable[str] = (),
        stale: bool = False,
        dry_run: bool = False,
    ) -> int | None:
        """Remove every entry, or those that a pattern matches or that have one of the tags.

        With `stale` they are not removed but made stale, with `dry_run` only counted. Returns how
        many, or None when the daemon is away.
        """
        args = _clear_args(pattern, tags, stale, dry_run)
        answer = await self._ask("cache.clear", args, seconds=SWEEP_TIMEOUT)
        return answer["cleared"] if answer else None

    async def keys(self, pattern: str | None = None, limit: int = 1000) -> list[Key] | None:
        """Keys that are there, or None when the daemon is away.

        At most `limit`, and at most 4 MiB of them: fewer for that reason is logged, at a limited
        rate.
        """
        args = {"limit": _check_limit(limit)} | _pattern_args(pattern)
        answer = await self._ask("cache.keys", args, seconds=SWEEP_TIMEOUT)
        return self._listed(answer, limit)

    async def stats(self) -> dict[str, Any] | None:
        """The cache's figures for the whole host, or None when the daemon is away."""
        answer: dict[str, Any] | None = await self._ask("cache.stats", None)
        return answer

    async def seen(self, fingerprint: Key, ttl: float | None = None) -> bool:
        """Whether any process of the host called this with the fingerprint within `ttl` seconds.

        Exact over all processes: of those that call at once with a new fingerprint one gets
        False. While the daemon is away it is False, and counted in `unavailable`; in `observe` it
        is False too, and counted as a read that would have found something.
        """
        key = _seen_key(fingerprint)
        if await self.get(key) is not None:
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
        return answer.result


class SyncCache(_Common):
    """The same cache without await, for any number of threads. See PerformanceCache."""

    def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or `default`."""
        try:
            name = key.encode() if key.__class__ is str else key_bytes(key)
            value = self._link.reader.read(name)
            if value is DETACHED:
                value = self._read_again(key_bytes(key))
        except UnicodeEncodeError as error:
            raise _not_utf8(key) from error
        except ValueFormatError:
            return default
        if value.__class__ is Outcome:
            if not name or len(name) > MAX_KEY_BYTES:
                key_bytes(key)
            return default
        return value

    def get_entry(self, key: Key) -> CacheEntry:
        """The value of a key with its age, remaining lifetime and level."""
        return self._entry(key)

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Any]:
        """The values of those keys that are there."""
        missing = object()
        found = ((key, self.get(key, missing)) for key in _check_keys(keys))
        return {key: value for key, value in found if value is not missing}

    def set(
        self,
        key: Key,
        value: Any,
        ttl: float | None = None,
        *,
        tags: Iterable[str] = (),
        grace: float = 0.0,
        sliding: bool = False,
    ) -> bool:
        """Store a value; True when every process of the host reads it from now on."""
        terms = terms_of(ttl, tags=tags, grace=grace, sliding=sliding)
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
    ) -> int:
        """Store several values in few messages; how many were stored."""
        batches = self._batches(items, terms_of(ttl, tags=tags, grace=grace, sliding=sliding))
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
        tags: Iterable[str] = (),
        stale: bool = False,
        dry_run: bool = False,
    ) -> int | None:
        """Remove, make stale or count every entry, or some. See PerformanceCache."""
        args = _clear_args(pattern, tags, stale, dry_run)
        answer = self._ask("cache.clear", args, seconds=SWEEP_TIMEOUT)
        return answer["cleared"] if answer else None

    def keys(self, pattern: str | None = None, limit: int = 1000) -> list[Key] | None:
        """Keys that are there, or None when the daemon is away."""
        args = {"limit": _check_limit(limit)} | _pattern_args(pattern)
        answer = self._ask("cache.keys", args, seconds=SWEEP_TIMEOUT)
        return self._listed(answer, limit)

    def stats(self) -> dict[str, Any] | None:
        """The cache's figures for the whole host, or None when the daemon is away."""
        answer: dict[str, Any] | None = self._ask("cache.stats", None)
        return answer

    def seen(self, fingerprint: Key, ttl: float | None = None) -> bool:
        """Whether any process of the host called this with the fingerprint within `ttl` seconds."""
        key = _seen_key(fingerprint)
        if self.get(key) is not None:
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
        return answer.result
