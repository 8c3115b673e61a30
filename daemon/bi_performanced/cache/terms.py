"""What an entry is stored with, and the bounds of keys and lifetimes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from bi_performance_wire.errors import INVALID_ARGUMENT, WireError
from bi_performance_wire.extra import Extra, pack_extra
from bi_performance_wire.types import MAX_KEY_BYTES, MAX_TTL
from bi_performance_wire.value import COMPRESS_FROM, PLAIN, raw_size


class Terms(NamedTuple):
    """What an entry is stored with; times in seconds."""

    ttl: float | None = None
    """None: `cache.default_ttl`."""
    grace: float = 0.0
    """How long after its expiry it may be served stale."""
    sliding: bool = False
    """Whether reads renew it for its ttl."""
    tags: tuple[bytes, ...] = ()
    meta: bytes = b""
    local: bool = False
    """For this host alone: not put into Redis."""
    redis_ttl: float | None = None
    """How long Redis has it, when that is not so long."""

    def extra(self, seconds: float) -> bytes:
        """The block of a record whose ttl comes to so many seconds."""
        if not (self.grace or self.sliding or self.tags or self.meta):
            return b""
        sliding = max(1, round(seconds * 10)) if self.sliding else 0
        return pack_extra(Extra(ceil(self.grace * 10), sliding, self.tags, self.meta))


@dataclass
class Compression:
    """What came of the clients' attempts to compress the values of 4 KiB and more."""

    tried: int = 0
    kept: int = 0
    """Those that took less room compressed, and are stored so."""
    tried_bytes: int = 0
    """Encoded bytes of those that were stored as they were: all that was compressed in vain."""
    kept_raw_bytes: int = 0
    """Encoded bytes, before compression, of those that are stored compressed, as each declares."""
    saved_bytes: int = 0
    """How many fewer these took."""

    @property
    def ratio(self) -> float | None:
        """How many times smaller these became."""
        stored = self.kept_raw_bytes - self.saved_bytes
        return self.kept_raw_bytes / stored if stored else None

    def note(self, payload: bytes, *, asked: bool) -> None:
        """Count an encoded entry of a client of ours; `asked`: whether they are to compress."""
        if payload[0] != PLAIN:
            self.tried += 1
            self.kept += 1
            raw = raw_size(payload)
            self.kept_raw_bytes += raw
            self.saved_bytes += raw - len(payload)
        elif asked and len(payload) > COMPRESS_FROM:
            self.tried += 1
            self.tried_bytes += len(payload)


def check_key(key: bytes) -> None:
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise WireError(
            INVALID_ARGUMENT,
            f"a key has 1 to {MAX_KEY_BYTES} bytes, this one {len(key)}",
            field="key",
            hint="use a digest of a longer key" if key else None,
        )


def check_ttl(ttl: float, field: str = "ttl") -> float:
    """A time to live in seconds. Raises WireError for one out of bounds."""
    if not 0 < ttl <= MAX_TTL:
        raise WireError(
            INVALID_ARGUMENT,
            f"{field} must be more than 0 and at most {MAX_TTL:.0f} seconds, not {ttl!r}",
            field=field,
            hint="leave ttl out for the configured default; use delete to remove an entry",
        )
    return ttl
