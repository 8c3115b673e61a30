"""How a value is loaded and kept: `Options`, and what a factory may say of it, `LoadContext`."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypedDict

import msgpack

from bi_performance.checks import (
    check_flag,
    check_grace,
    check_tags,
    check_ttl,
    key_text,
    not_utf8,
    terms_of,
)
from bi_performance.reader import Entry
from bi_performance_wire.near import nearest
from bi_performance_wire.tenants import own_part, tag_of, tenant_of
from bi_performance_wire.types import MAX_TTL

MAX_ETAG_BYTES: Final = 800
MAX_DATE_BYTES: Final = 100
"""Of `last_modified`. Both, and the rest of what is kept beside a value, fit MAX_META_BYTES."""


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number, not {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be 0 or more and finite, not {value!r:.40}")


class Changes(TypedDict, total=False):
    """Single options, as keywords of a call."""

    grace: float
    soft_timeout: float | None
    hard_timeout: float | None
    early: float
    jitter: float
    negative_ttl: float | None
    sliding: bool
    tags: tuple[str, ...] | list[str]
    retry_after: float
    local: bool
    redis_ttl: float | None


@dataclass(frozen=True, slots=True)
class Options:
    """How a value is loaded and kept; times in seconds.

    Raises TypeError or ValueError naming the option that is none.
    """

    ttl: float | None = None
    """None: the configured `cache.default_ttl`."""
    grace: float = 0.0
    """How long after its ttl a value may be served stale, while it is loaded anew or cannot be."""
    soft_timeout: float | None = 0.0
    """How long a caller that has a stale value waits for a fresh one, which is loaded in the
    background then. 0: not at all; None: until it is there or the load has failed."""
    hard_timeout: float | None = None
    """How long any caller waits; then it gets a stale value, or LoadTimeout. None: no bound.
    Without an event loop the factory runs in a thread of its own then: what belongs to its
    caller's thread, a connection of sqlite3 or a threading.local, is not there."""
    early: float = 0.0
    """More than 0: a value is loaded anew in the background before it expires, the more likely the
    nearer that is and the longer the last load took. 1 is right in most cases, more is earlier."""
    jitter: float = 0.0
    """The ttl is shortened by up to this part of it, at random: 0.1 is by up to a tenth."""
    negative_ttl: float | None = None
    """The ttl of None; 0 does not store it. None: as that of any value."""
    sliding: bool = False
    """Whether reads renew the value for its ttl."""
    tags: tuple[str, ...] = ()
    """Names under which the value can be cleared."""
    retry_after: float = 1.0
    """How long after a load that failed stale values are served without trying again."""

    local: bool = False
    """Keep the value on this host: it is not put into Redis."""
    redis_ttl: float | None = None
    """The ttl in Redis, when that is to be shorter."""

    def __post_init__(self) -> None:
        check_ttl(self.ttl)
        check_ttl(self.redis_ttl, "redis_ttl")
        check_grace(self.grace)
        object.__setattr__(self, "tags", tuple(check_tags(self.tags)))
        check_flag("sliding", self.sliding)
        check_flag("local", self.local)
        for name in ("soft_timeout", "hard_timeout", "negative_ttl"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name))
        for name in ("early", "jitter", "retry_after"):
            _check_number(name, getattr(self, name))
        if self.hard_timeout == 0:
            raise ValueError("hard_timeout must be more than 0 seconds, or None")
        if self.jitter >= 1:
            raise ValueError(f"jitter must be less than 1, not {self.jitter!r}")

    @property
    def plain(self) -> bool:
        """Whether nothing need be known of an entry but its value."""
        return not (self.grace or self.early)


_PLAIN: Final = Options()
_NAMES: Final = tuple(field.name for field in dataclasses.fields(Options))


def options_of(call: str, options: Options | None, ttl: float | None, changes: Changes) -> Options:
    """The options of a call of that name; what it says itself goes before `options`.

    Raises TypeError or ValueError naming what is none.
    """
    if options is None:
        options = _PLAIN
    elif not isinstance(options, Options):
        raise TypeError(f"options is Options, not {type(options).__name__}")
    if ttl is None and not changes:
        return options
    named: dict[str, Any] = {**changes}
    for name in named:
        if name not in _NAMES:
            near = nearest(name, _NAMES)
            known = f"did you mean {near}?" if near else f"there are {', '.join(_NAMES)}"
            raise TypeError(f"{call}() has no option {name!r}; {known}")
    if ttl is not None:
        named["ttl"] = ttl
    return dataclasses.replace(options, **named)


class LoadTimeout(TimeoutError):
    """No value within `hard_timeout`, and no stale one. Under an event loop the factory was
    cancelled; one that runs in a thread goes on, without a loop its value is even stored."""


class NotModified:
    """What `LoadContext.not_modified()` gives a factory to return."""

    __slots__ = ()


_NOT_MODIFIED: Final = NotModified()


class LoadContext:
    """What a factory knows and may say; it gets one when it takes one argument.

    `ttl`, `grace` and `tags` may be set, as may `etag` and `last_modified`, which are kept with the
    value and are here again when it is loaded the next time. What a factory set stays so when it
    returns `not_modified()` at a later load, unless it says otherwise.
    """

    __slots__ = (
        "_etag",
        "_known",
        "_last_modified",
        "_options",
        "_renews",
        "_said",
        "name",
    )

    def __init__(self, key: bytes, options: Options, known: Entry | None) -> None:
        self.name = key
        self._options = options
        self._known = known
        self._renews = False
        meta = read_meta(known)
        self._said: dict[str, Any] = {}
        """What the factory set of `ttl`, `grace` and `tags`."""
        self._etag = meta.etag
        self._last_modified = meta.last_modified

    @property
    def ttl(self) -> float | None:
        """Seconds for which the value is fresh. Raises TypeError or ValueError for what is none."""
        found: float | None = self._said.get("ttl", self._options.ttl)
        return found

    @ttl.setter
    def ttl(self, ttl: float | None) -> None:
        self._said["ttl"] = check_ttl(ttl)

    @property
    def grace(self) -> float:
        """Seconds after that for which it may be served stale. Raises as `ttl`."""
        found: float = self._said.get("grace", self._options.grace)
        return found

    @grace.setter
    def grace(self, grace: float) -> None:
        self._said["grace"] = check_grace(grace)

    @property
    def tags(self) -> Iterable[str]:
        """Names under which it can be cleared, as its namespace has them. Raises as `ttl`."""
        found: tuple[str, ...] = self._said.get("tags", self._options.tags)
        name = tenant_of(self.name).decode()
        return tuple(tag.removeprefix(tag_of(name, "")) for tag in found) if name else found

    @tags.setter
    def tags(self, tags: Iterable[str]) -> None:
        found = check_tags(tags)
        name = tenant_of(self.name).decode()
        self._said["tags"] = tuple(
            check_tags(tag_of(name, tag) for tag in found) if name else found
        )

    @property
    def etag(self) -> str | None:
        """What the source calls this version. Raises TypeError or ValueError for what is none."""
        return self._etag

    @etag.setter
    def etag(self, etag: str | None) -> None:
        self._etag = _check_text("etag", etag, MAX_ETAG_BYTES)

    @property
    def last_modified(self) -> str | None:
        """When the source changed, as it says it. Raises TypeError or ValueError for what is no
        text of that length."""
        return self._last_modified

    @last_modified.setter
    def last_modified(self, last_modified: str | None) -> None:
        self._last_modified = _check_text("last_modified", last_modified, MAX_DATE_BYTES)

    @property
    def key(self) -> str | bytes:
        """The key that is loaded, as its namespace has it: text, where it is text."""
        return key_text(own_part(self.name))

    @property
    def has_stale(self) -> bool:
        """Whether there is an older value, which `not_modified` would renew."""
        return self._known is not None

    @property
    def stale_value(self) -> Any:
        """The older value, or None. It must not be changed."""
        return None if self._known is None else self._known.value

    def not_modified(self) -> NotModified:
        """To be returned: the older value is still right. Raises ValueError without one."""
        if self._known is None:
            raise ValueError("there is no older value that could be renewed")
        return _NOT_MODIFIED

    def resolve(self, result: Any) -> Any:
        """The value that a factory's result stands for."""
        if result is not _NOT_MODIFIED:
            return result
        self._renews = True
        return self.stale_value

    def terms(self, value: Any, took: float, default_ttl: float | None) -> dict[str, Any] | None:
        """The arguments that say what the value is stored with; None when it is not to be.

        Raises TypeError or ValueError for what the factory set and is none.
        """
        options = self._options
        said: dict[str, Any] = {}
        if self._renews:
            before = read_meta(self._known)._asdict().items()
            said = {name: value for name, value in before if value is not None}
        said |= self._said
        ttl = said.get("ttl", options.ttl)
        if value is None and options.negative_ttl is not None:
            ttl = options.negative_ttl
            if not ttl:
                return None
        if options.jitter:
            whole = default_ttl if ttl is None else check_ttl(ttl)
            ttl = None if whole is None else whole * (1 - options.jitter * random.random())
        kept = {name: said[name] for name in ("ttl", "grace", "tags") if name in said}
        took_now = took if options.early else None
        return terms_of(
            ttl,
            tags=said.get("tags", options.tags),
            grace=said.get("grace", options.grace),
            sliding=options.sliding,
            meta=Meta(took_now, self._etag, self._last_modified, **kept).packed(),
            local=options.local,
            redis_ttl=options.redis_ttl,
        )


class Meta(NamedTuple):
    """What is kept with a value for its next load."""

    took: float | None = None
    """Seconds that the last load took."""
    etag: str | None = None
    last_modified: str | None = None
    ttl: float | None = None
    """What the factory said, and not the options; so too the two that follow."""
    grace: float | None = None
    tags: tuple[str, ...] | None = None
    """Kept as the tags of the entry; packed is that it was the factory that said them."""

    def packed(self) -> bytes:
        found = {name: value for name, value in self._asdict().items() if value is not None}
        if "tags" in found:
            found["tags"] = True
        packed: bytes = msgpack.packb(found) if found else b""
        return packed


def _check_text(name: str, text: str | None, most: int) -> str | None:
    if text is None:
        return None
    if not isinstance(text, str):
        raise TypeError(f"{name} is str, not {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise not_utf8(text, name) from error
    if size > most:
        raise ValueError(f"{name} has at most {most} bytes, this one {size}")
    return text


def read_meta(entry: Entry | None) -> Meta:
    """What was kept with an entry; of one that others stored, what of it is as it should be."""
    if entry is None or entry.extra is None or not entry.extra.meta:
        return Meta()
    try:
        found = msgpack.unpackb(entry.extra.meta)
        took, etag, modified, ttl, grace, tagged = (found.get(name) for name in Meta._fields)
        tags = tuple(tag.decode() for tag in entry.extra.tags) if tagged is True else None
    except Exception:
        # Whatever it is, it is not ours.
        return Meta()
    return Meta(
        _seconds(took),
        etag if isinstance(etag, str) and len(etag) <= MAX_ETAG_BYTES else None,
        modified if isinstance(modified, str) and len(modified) <= MAX_DATE_BYTES else None,
        _seconds(ttl) or None,
        _seconds(grace),
        tags,
    )


def _seconds(found: object) -> float | None:
    if isinstance(found, bool) or not isinstance(found, float | int):
        return None
    return float(found) if 0 <= found <= MAX_TTL else None


def is_early(entry: Entry, options: Options) -> bool:
    """Whether a fresh entry is to be loaded anew now.

    XFetch (Vattani, Chierichetti, Lowenstein: "Optimal Probabilistic Cache Stampede Prevention",
    VLDB 2015): each reader draws, and the sum over all of them is right without their speaking.
    """
    took = read_meta(entry).took
    if entry.ttl is None or not took or took < 0:
        return False
    return took * options.early * -math.log(1.0 - random.random()) >= entry.ttl
