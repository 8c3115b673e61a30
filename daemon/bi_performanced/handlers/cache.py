"""The cache's commands."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import msgspec
import trio

from bi_performance_wire import types
from bi_performance_wire.batch import unpack
from bi_performance_wire.errors import INVALID_ARGUMENT, TOO_LARGE, WireError
from bi_performance_wire.extra import MAX_TAG_BYTES
from bi_performance_wire.framing import Limits, count_objects
from bi_performance_wire.value import (
    COMPRESS_FROM,
    PLAIN,
    ValueFormatError,
    decompress,
    raw_size,
)
from bi_performanced.cache.clients import Attachment
from bi_performanced.cache.component import Cache
from bi_performanced.cache.leases import Refused
from bi_performanced.cache.room import Growing
from bi_performanced.cache.terms import Terms, check_key, check_ttl
from bi_performanced.dispatch import Caller, Handler

VALUE_LIMITS = Limits(frame_bytes=64 << 10, shape_bytes=64 << 10, objects=4096, depth=64)
MAX_ANSWER = 32 << 20
THREAD_FROM = 1 << 18
"""Decompressed bytes from which decompressing for a foreign client happens in a thread."""

WHOLE: Final = 100
"""Entries of a batch that are stored in one go."""
SLICE: Final = 250
"""Of a larger one so many at the most, before others have their turn, or SLICE_BYTES of them."""
SLICE_SECONDS: Final = 0.004
"""And as many steps of STEP entries as begin within this time: in the worst case an entry has 32
others moved out of its way."""
STEP: Final = 25
SLICE_BYTES: Final = 1 << 20

_threads = trio.CapacityLimiter(2)
_gathering = trio.CapacityLimiter(1)
"""Requests that hold megabytes before they are answered; further ones wait with nothing."""


def handlers(cache: Cache) -> dict[str, Handler]:
    """A handler for each `cache.…` command and `attach`."""
    return {
        "attach": lambda args, caller: attach(cache, args, caller),
        "cache.get": lambda args, caller: get(cache, args),
        "cache.get_many": lambda args, caller: get_many(cache, args),
        "cache.set": lambda args, caller: put(cache, args),
        "cache.set_many": lambda args, caller: put_many(cache, args),
        "cache.add": lambda args, caller: add(cache, args),
        "cache.fetch": lambda args, caller: fetch(cache, args),
        "cache.delete": lambda args, caller: _settled(
            cache, types.Deleted(deleted=cache.delete(key_bytes(args.key)))
        ),
        "cache.expire": lambda args, caller: _settled(
            cache, types.Expired(expired=cache.expire(key_bytes(args.key)))
        ),
        "cache.touch": lambda args, caller: _settled(
            cache, types.Touched(touched=cache.touch(key_bytes(args.key), args.ttl))
        ),
        "cache.keys": lambda args, caller: keys(cache, args),
        "cache.clear": lambda args, caller: clear(cache, args),
        "cache.stats": lambda args, caller: cache.stats(),
        "cache.curve": lambda args, caller: cache.curve(),
    }


def key_bytes(key: object) -> bytes:
    """The key's bytes; raises WireError for what is neither text nor bytes."""
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, bytes):
        return key
    raise WireError(
        INVALID_ARGUMENT, f"a key is text or bytes, not {type(key).__name__}", field="key"
    )


def attach(cache: Cache, args: types.Attach, caller: Caller) -> Attachment:
    if caller.uid is None:
        raise WireError(INVALID_ARGUMENT, "attach needs the control socket")
    return cache.attach(
        uid=caller.uid,
        instance=args.instance,
        pid=args.pid,
        peer_pid=caller.pid or 0,
        name=args.name,
    )


def get(cache: Cache, args: types.CacheGet) -> Any:
    name = key_bytes(args.key)
    payload = cache.peek(name)
    if payload is None and cache.asks:
        return _get_fetched(cache, name, args)
    return _got(cache, name, payload, args)


async def _get_fetched(cache: Cache, name: bytes, args: types.CacheGet) -> Any:
    """As `get`, of a key that was asked for in Redis."""
    (payload,) = await cache.fetch([name])
    if payload is not None:
        cache.hit_elsewhere(1)
    found = _got(cache, name, payload, args)
    return await found if isinstance(found, Coroutine) else found


def _got(cache: Cache, name: bytes, payload: bytes | None, args: types.CacheGet) -> Any:
    if payload is not None and not args.payload and payload[0] != PLAIN:
        # What it says, not what it weighs: a kilobyte of zstd may hold megabytes of zeros.
        if THREAD_FROM <= raw_size(payload) <= MAX_ANSWER:
            return _one_decoded(cache, name)
        value = msgspec.Raw(_plain(payload))
        cache.count([payload])
        return value
    cache.count([payload])
    cache.watch.asked([name], [payload])
    if payload is None or args.payload:
        return payload
    return msgspec.Raw(memoryview(payload)[1:])


def get_many(cache: Cache, args: types.CacheGetMany) -> Any:
    """The values in the order of the keys, nil for each that is missing."""
    names = [key_bytes(key) for key in args.keys]
    found = _gather(cache, names)
    if cache.asks and None in found:
        return _get_many_fetched(cache, names, found, args)
    return _got_many(cache, names, found, args)


async def _get_many_fetched(
    cache: Cache, names: list[bytes], found: list[bytes | None], args: types.CacheGetMany
) -> Any:
    missing = [name for name, payload in zip(names, found, strict=True) if payload is None]
    for start in range(0, len(missing), types.MAX_FETCH):
        payloads = await cache.fetch(missing[start : start + types.MAX_FETCH])
        cache.hit_elsewhere(len(payloads) - payloads.count(None))
    got = _got_many(cache, names, _gather(cache, names), args)
    return await got if isinstance(got, Coroutine) else got


def _got_many(
    cache: Cache, names: list[bytes], found: list[bytes | None], args: types.CacheGetMany
) -> Any:
    if not args.payload and any(each is not None and each[0] != PLAIN for each in found):
        return _decoded(cache, names)
    cache.count(found)
    cache.watch.asked(names, found)
    if args.payload:
        return found
    return [None if each is None else msgspec.Raw(memoryview(each)[1:]) for each in found]


async def fetch(cache: Cache, args: types.CacheFetch) -> types.Fetched:
    payloads = await cache.fetch([key_bytes(key) for key in args.keys])
    if sum(len(payload) for payload in payloads if payload is not None) > MAX_ANSWER:
        raise _too_much()
    return types.Fetched(payloads=payloads)


def _settled(cache: Cache, result: Any) -> Any:
    """The result, or an awaitable of it when Redis is to have the change first."""
    return _once_settled(cache, result) if cache.waits else result


async def _once_settled(cache: Cache, result: Any) -> Any:
    found = await result if isinstance(result, Coroutine) else result
    await cache.settled()
    return found


def _gather(cache: Cache, names: list[bytes]) -> list[bytes | None]:
    found: list[bytes | None] = []
    size = 0
    for name in names:
        payload = cache.peek(name)
        size += 0 if payload is None else len(payload)
        if size > MAX_ANSWER:
            raise _too_much()
        found.append(payload)
    return found


def _too_much() -> WireError:
    return WireError(
        TOO_LARGE,
        f"the values have more than {MAX_ANSWER} bytes together",
        field="keys",
        hint="ask for fewer keys at once",
    )


async def _one_decoded(cache: Cache, name: bytes) -> Any:
    return (await _decoded(cache, [name]))[0]


async def _decoded(cache: Cache, names: list[bytes]) -> list[msgspec.Raw | None]:
    """The values of entries of which some have to be decompressed, in a thread."""

    def decode(payloads: list[bytes | None]) -> list[msgspec.Raw | None]:
        values: list[msgspec.Raw | None] = []
        size = 0
        for payload in payloads:
            size += 0 if payload is None else raw_size(payload)
            if size > MAX_ANSWER:
                raise _too_much()
            values.append(None if payload is None else msgspec.Raw(_plain(payload)))
        return values

    async with _gathering:
        found = _gather(cache, names)
        cache.count(found)
        return await trio.to_thread.run_sync(decode, found, limiter=_threads)


def _plain(payload: bytes) -> bytes:
    """The msgpack object of an entry that a client of ours compressed."""
    if (size := raw_size(payload)) > MAX_ANSWER:
        raise WireError(
            TOO_LARGE,
            f"the value has {size} bytes; an answer holds {MAX_ANSWER}",
            hint="read it with a client of this project",
        )
    try:
        return decompress(payload)
    except ValueFormatError as error:
        raise WireError(INVALID_ARGUMENT, f"the entry is not readable: {error}") from None


def _payload(value: msgspec.Raw | msgspec.UnsetType, payload: bytes | msgspec.UnsetType) -> bytes:
    """The entry to store, from whichever of the two the client sent."""
    if isinstance(payload, bytes):
        if value is not msgspec.UNSET:
            raise WireError(INVALID_ARGUMENT, "give value or payload, not both", field="payload")
        return _checked(payload)
    if isinstance(value, msgspec.UnsetType):
        raise WireError(INVALID_ARGUMENT, "value is missing", field="value")
    return _foreign(value)


def _checked(payload: bytes) -> bytes:
    if payload[:1] not in (b"\x00", b"\x01") or len(payload) < 2:
        raise WireError(
            INVALID_ARGUMENT,
            "payload is not an encoded entry",
            field="payload",
            hint="send value, any MessagePack value, instead",
        )
    return payload


def _foreign(value: msgspec.Raw) -> bytes:
    data = bytes(value)
    try:
        count_objects(data, VALUE_LIMITS)
    except WireError as error:
        raise WireError(
            error.code,
            error.message.replace("the message", "the value"),
            field="value",
            hint="clients of this project send encoded entries, which may be larger",
        ) from None
    return b"\x00" + data


def _entry(cache: Cache, args: types.CacheSet) -> bytes:
    entry = _payload(args.value, args.payload)
    if args.payload is not msgspec.UNSET:
        cache.note_compression(entry)
    return entry


def put(cache: Cache, args: types.CacheSet) -> Any:
    name, entry, terms = key_bytes(args.key), _entry(cache, args), _terms(args)
    if args.token is not None and cache.asks:
        return _publish(cache, name, entry, terms, args.token)
    return _settled(cache, _when_grown(cache, lambda: _put(cache, name, entry, terms, args.token)))


def _put(
    cache: Cache, name: bytes, entry: bytes, terms: Terms, token: bytes | None
) -> types.Stored:
    try:
        cache.set(name, entry, terms, token)
    except Refused as refused:
        cache.note_refused(name, len(entry))
        return types.Stored(stored=0, refused=str(refused))
    return types.Stored(stored=1)


async def _publish(
    cache: Cache, name: bytes, entry: bytes, terms: Terms, token: bytes
) -> types.Stored:
    try:
        await cache.publish(name, entry, terms, token)
    except Growing:
        await cache.wait_grown()
        await cache.publish(name, entry, terms, token)
    except Refused as refused:
        cache.note_refused(name, len(entry))
        return types.Stored(stored=0, refused=str(refused))
    return types.Stored(stored=1)


def _terms(args: types.CacheSet | types.CacheSetMany) -> Terms:
    """What the entries are stored with. Raises WireError naming the field."""
    if args.redis_ttl is not None:
        check_ttl(args.redis_ttl, "redis_ttl")
    if not (args.grace or args.sliding or args.tags or args.meta):
        return Terms(args.ttl, local=args.local, redis_ttl=args.redis_ttl)
    if not 0 <= args.grace <= types.MAX_TTL:
        raise WireError(
            INVALID_ARGUMENT,
            f"grace must be 0 to {types.MAX_TTL:.0f} seconds, not {args.grace!r}",
            field="grace",
        )
    return Terms(
        args.ttl,
        args.grace,
        args.sliding,
        tag_bytes(args.tags),
        args.meta,
        args.local,
        args.redis_ttl,
    )


def tag_bytes(tags: list[str]) -> tuple[bytes, ...]:
    """The tags as they are stored. Raises WireError for one that is too long."""
    found = tuple(dict.fromkeys(tag.encode() for tag in tags))
    for tag in found:
        if len(tag) > MAX_TAG_BYTES:
            raise WireError(
                INVALID_ARGUMENT,
                f"a tag has 1 to {MAX_TAG_BYTES} bytes, this one {len(tag)}",
                field="tags",
            )
    return found


def add(cache: Cache, args: types.CacheSet) -> Any:
    if args.token is not None:
        raise WireError(INVALID_ARGUMENT, "only cache.set stores under a lease", field="token")
    name, entry, terms = key_bytes(args.key), _entry(cache, args), _terms(args)
    if cache.asks:
        return _add_everywhere(cache, name, entry, terms)
    return _when_grown(cache, lambda: types.Stored(stored=int(cache.add(name, entry, terms))))


async def _add_everywhere(cache: Cache, name: bytes, entry: bytes, terms: Terms) -> types.Stored:
    return types.Stored(stored=int(await cache.add_everywhere(name, entry, terms)))


def _when_grown(cache: Cache, act: Callable[[], types.Stored]) -> Any:
    """The result of `act`, or an awaitable of it when the store has to grow for its entry."""
    try:
        return act()
    except Growing:
        return _after_growth(cache, act)


async def _after_growth(cache: Cache, act: Callable[[], types.Stored]) -> types.Stored:
    await cache.wait_grown()
    return act()


def put_many(cache: Cache, args: types.CacheSetMany) -> Any:
    """Store all. A bad key or value stores none; an entry that is too large costs itself."""
    entries, terms = _entries(args), _terms(args)
    cache.seconds(terms)
    if args.payload is not msgspec.UNSET:
        note = cache.note_compression
        for _, entry in entries:
            if len(entry) > COMPRESS_FROM or entry[0] != PLAIN:
                note(entry)
    at = 0
    refused: list[WireError] = []

    def put_until(stop: int) -> types.Stored:
        nonlocal at
        while at < stop:
            count, error = cache.set_some(entries[:stop], at, terms)
            at += count
            if error is None:
                break
            stored = at - len(refused)
            where = _at(at, error, f"{stored} of {len(entries)} were stored")
            if isinstance(error, Growing):
                raise Growing(error.code, where.message, field="items", hint=error.hint)
            if error.code != TOO_LARGE:
                raise where
            refused.append(_at(at, error, "the others were stored"))
            at += 1
        reason = None
        if refused:
            more = f"; so were {len(refused) - 1} more" if len(refused) > 1 else ""
            reason = refused[0].message + more
        return types.Stored(stored=at - len(refused), refused=reason)

    async def put_in_slices(stops: list[int]) -> types.Stored:
        found = types.Stored(stored=0)
        for stop in stops:
            ends = trio.current_time() + SLICE_SECONDS
            while at < stop:
                stored = _when_grown(cache, partial(put_until, min(stop, at + STEP)))
                found = await stored if isinstance(stored, Coroutine) else stored
                if trio.current_time() >= ends:
                    await trio.lowlevel.checkpoint()
                    ends = trio.current_time() + SLICE_SECONDS
            await trio.lowlevel.checkpoint()
        return found

    stops = slices([len(entry) for _, entry in entries])
    if len(stops) > 1 or len(entries) > WHOLE:
        return _settled(cache, put_in_slices(stops))
    return _settled(cache, _when_grown(cache, partial(put_until, len(entries))))


def slices(sizes: list[int]) -> list[int]:
    """Where the slices of a batch of entries of so many bytes end; the last is the batch's end."""
    stops, first, left = [], 0, SLICE_BYTES
    if len(sizes) > SLICE or sum(sizes) > SLICE_BYTES:
        for at, size in enumerate(sizes):
            if at - first == SLICE or (at > first and size > left):
                stops.append(at)
                first, left = at, SLICE_BYTES
            left -= size
    return [*stops, len(sizes)]


def _entries(args: types.CacheSetMany) -> list[tuple[bytes, bytes]]:
    """The keys and encoded entries of a batch, all checked. Raises WireError naming the first."""
    if isinstance(args.payload, bytes):
        if args.items is not msgspec.UNSET:
            raise WireError(INVALID_ARGUMENT, "give items or payload, not both", field="payload")
        entries = unpack(args.payload)
    elif isinstance(args.items, msgspec.UnsetType):
        raise WireError(INVALID_ARGUMENT, "items is missing", field="items")
    else:
        entries = []
        for at, (key, raw) in enumerate(args.items):
            try:
                entries.append((key_bytes(key), _foreign(raw)))
            except WireError as error:
                raise _at(at, error, "none was stored") from None
    for at, (name, entry) in enumerate(entries):
        if not 0 < len(name) <= types.MAX_KEY_BYTES or len(entry) < 2 or entry[0] > 1:
            try:
                check_key(name)
                _checked(entry)
            except WireError as error:
                raise _at(at, error, "none was stored") from None
    return entries


def _at(at: int, error: WireError, done: str) -> WireError:
    return WireError(
        error.code, f"items[{at}]: {error.message} ({done})", field="items", hint=error.hint
    )


async def keys(cache: Cache, args: types.CacheKeys) -> types.Keys:
    async with _gathering:
        found, more = await cache.keys(args.pattern, args.limit)
    return types.Keys(keys=[_shown(key) for key in found], truncated=more)


def _shown(key: bytes) -> str | bytes:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


async def clear(cache: Cache, args: types.CacheClear) -> types.Cleared:
    if args.tags is not None and not args.tags:
        # Whoever lists the tags of a page that has none must not lose all there is.
        raise WireError(
            INVALID_ARGUMENT,
            "tags is empty: no entry has one of no tags",
            field="tags",
            hint="leave tags out to clear every entry, or those that the pattern matches",
        )
    count = await cache.clear(
        args.pattern, tags=tag_bytes(args.tags or []), stale=args.stale, dry_run=args.dry_run
    )
    if cache.waits:
        await cache.settled()
    return types.Cleared(cleared=count, dry_run=args.dry_run)
