"""What a caller of the cache may give: checked before anything is asked, with the error that says
what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

from bi_performance_wire.extra import MAX_TAG_BYTES, MAX_TAGS
from bi_performance_wire.types import (
    MAX_FETCH,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_PATTERN_CHARS,
    MAX_TTL,
)
from bi_performance_wire.value import ValueFormatError, decode

T = TypeVar("T")
Key = str | bytes
Items = Mapping[str, Any] | Mapping[bytes, Any] | Mapping[Key, Any] | Iterable[tuple[Key, Any]]
"""What `set_many` takes: a mapping (its key type is invariant, hence three) or pairs."""

SEEN_PREFIX: Final = b"seen:"


def key_bytes(key: Key, what: str = "a key", most: int = MAX_KEY_BYTES) -> bytes:
    """A key as bytes; raises TypeError or ValueError for what is none."""
    if isinstance(key, str):
        try:
            key = key.encode()
        except UnicodeEncodeError as error:
            raise not_utf8(key, what) from error
    elif not isinstance(key, bytes):
        raise TypeError(f"{what} is str or bytes, not {type(key).__name__}")
    if not 0 < len(key) <= most:
        raise ValueError(f"{what} has 1 to {most} bytes, this one {len(key)}")
    return key


def key_text(name: bytes) -> Key:
    """A key as it is shown: text, where it is text."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name


def seen_key(fingerprint: Key) -> bytes:
    """The key that stands for a fingerprint; raises TypeError or ValueError for what is none."""
    name = key_bytes(fingerprint, "a fingerprint", MAX_KEY_BYTES - len(SEEN_PREFIX))
    return SEEN_PREFIX + name


def not_utf8(key: Key, what: str = "a key") -> ValueError:
    return ValueError(
        f"{what} is text that UTF-8 can say; this one has lone surrogates: {key!r:.80}"
    )


def check_ttl(ttl: float | None, what: str = "ttl") -> float | None:
    """A time to live in seconds; raises TypeError or ValueError for what is none."""
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise TypeError(f"{what} is a number of seconds, not {type(ttl).__name__}")
    try:
        seconds = float(ttl)
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{what} must be more than 0 seconds and finite, not {ttl!r:.40}")
    if seconds > MAX_TTL:
        raise ValueError(f"{what} must be at most {MAX_TTL:.0f} seconds, not {ttl!r:.40}")
    return seconds


def check_grace(grace: float) -> float:
    """Seconds that a stale entry may be served; raises TypeError or ValueError for what is none."""
    if isinstance(grace, bool) or not isinstance(grace, int | float):
        raise TypeError(f"grace is a number of seconds, not {type(grace).__name__}")
    if not 0 <= grace <= MAX_TTL:
        raise ValueError(f"grace must be 0 to {MAX_TTL:.0f} seconds, not {grace!r:.40}")
    return float(grace)


def check_flag(name: str, value: bool) -> bool:
    """An option that is on or off; raises TypeError for what is neither."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, not {type(value).__name__}")
    return value


def check_factory(factory: Callable[..., T]) -> Callable[..., T]:
    """What loads a value; raises TypeError for what cannot be called."""
    if not callable(factory):
        raise TypeError(f"factory is a function, not {type(factory).__name__}")
    return factory


def check_tags(tags: Iterable[str]) -> list[str]:
    """Tags as they are sent; raises TypeError or ValueError for what is none."""
    if isinstance(tags, str | bytes):
        raise TypeError("tags is a list of tags, not one tag")
    if not isinstance(tags, Iterable):
        raise TypeError(f"tags is a list of tags, not {type(tags).__name__}")
    found = list(dict.fromkeys(tags))
    if len(found) > MAX_TAGS:
        raise ValueError(f"an entry has at most {MAX_TAGS} tags, not {len(found)}")
    for tag in found:
        if not isinstance(tag, str):
            raise TypeError(f"a tag is str, not {type(tag).__name__}")
        try:
            size = len(tag.encode())
        except UnicodeEncodeError as error:
            raise not_utf8(tag, "a tag") from error
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
    local: bool = False,
    redis_ttl: float | None = None,
) -> dict[str, Any]:
    """The arguments that say what an entry is stored with; raises TypeError or ValueError."""
    terms: dict[str, Any] = {}
    if (seconds := check_ttl(ttl)) is not None:
        terms["ttl"] = seconds
    if found := check_tags(tags):
        terms["tags"] = found
    if given := check_grace(grace):
        terms["grace"] = given
    if check_flag("sliding", sliding):
        terms["sliding"] = True
    if meta:
        terms["meta"] = meta
    if check_flag("local", local):
        terms["local"] = True
    if (seconds := check_ttl(redis_ttl, "redis_ttl")) is not None:
        terms["redis_ttl"] = seconds
    return terms


def clear_args(
    pattern: str | None, tags: Iterable[str] | None, stale: bool, dry_run: bool
) -> dict[str, Any]:
    """The arguments of a clear; raises TypeError or ValueError for what is none."""
    args = pattern_args(pattern)
    if tags is not None:
        args["tags"] = check_tags(tags)
        if not args["tags"]:
            raise ValueError(
                "tags is empty: no entry has one of no tags; leave it out to clear every entry"
            )
    if check_flag("stale", stale):
        args["stale"] = True
    if check_flag("dry_run", dry_run):
        args["dry_run"] = True
    return args


def check_limit(limit: int) -> int:
    """How many keys are asked for; raises TypeError or ValueError for what is no such number."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit is a whole number, not {type(limit).__name__}")
    if not 1 <= limit <= MAX_KEYS:
        raise ValueError(f"limit must be 1 to {MAX_KEYS}")
    return limit


def pattern_args(pattern: str | None) -> dict[str, Any]:
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


def check_keys(keys: Iterable[Key]) -> Iterable[Key]:
    if isinstance(keys, str | bytes):
        raise TypeError("keys is a list of keys, not one key")
    if not isinstance(keys, Iterable):
        raise TypeError(f"keys is a list of keys, not {type(keys).__name__}")
    return keys


def pairs(items: Items) -> Iterable[tuple[Key, Any]]:
    """Keys and values; raises TypeError naming the place of what is no such pair."""
    if isinstance(items, Mapping):
        yield from items.items()
        return
    if not isinstance(items, Iterable):
        raise TypeError(f"items is a mapping or pairs, not {type(items).__name__}")
    for at, pair in enumerate(items):
        try:
            key, value = pair
        except (TypeError, ValueError):
            raise TypeError(f"items[{at}] is no pair of key and value: {pair!r:.80}") from None
        yield key, value


def portions(names: Iterable[T]) -> Iterator[list[T]]:
    """As many at a time as one request asks for."""
    rest = iter(names)
    while some := list(islice(rest, MAX_FETCH)):
        yield some


def fetched(names: list[bytes], answer: Any) -> dict[bytes, Any]:
    """The values of an answer to `cache.fetch`."""
    found: dict[bytes, Any] = {}
    for name, payload in zip(names, answer["payloads"] if answer else (), strict=False):
        if isinstance(payload, bytes):
            try:
                found[name] = decode(payload)
            except ValueFormatError:
                continue
    return found
