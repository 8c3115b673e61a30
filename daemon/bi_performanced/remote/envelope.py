"""What lies in Redis for an entry: the client's bytes in an envelope that says whose they are.

    magic 2 · format 1 · flags 1 · state 1 · 3 free · version 16 · created 8 · soft 8 · hard 8
    key length 2 · tags length 2 · extra length 4 · key · tags · extra · payload · check

Numbers are big-endian. **The first 24 bytes are the same in every format**, because scripts of one
version go over the entries of another: the version is written there by Redis itself (the id of the
log's entry, milliseconds and number), and the state byte, 1 for what a soft clear has made stale.
Neither is signed. The check is HMAC-SHA256 over prefix, key and all the rest when there is a
secret, else eight bytes of xxh3, so that what was cut or mixed up is a miss as well.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import xxhash

MAGIC: Final = b"\xb1\x50"
FORMAT: Final = 1
SIGNED: Final = 1
STATE_AT: Final = 4
VERSION_AT: Final = 8
HEAD: Final = 24
"""Bytes whose meaning no format changes."""

_HEADER: Final = struct.Struct(">2sBBB3xQQQQQHHI")
_SUM: Final = 8
_MAC: Final = 32
_SKEW: Final = 300_000
"""Milliseconds that the clocks of two hosts may differ by where a signed entry's age matters."""
MAX_TAGS_BYTES: Final = 0xFFFF


class Version(NamedTuple):
    """A place in the log of a shard: later changes have greater ones."""

    ms: int
    number: int

    @classmethod
    def parse(cls, text: bytes) -> Version:
        """From the text of a stream's id. Raises ValueError."""
        ms, _, number = text.partition(b"-")
        return cls(int(ms), int(number or 0))

    def text(self) -> bytes:
        return b"%d-%d" % self


NEVER: Final = Version(0, 0)


@dataclass(frozen=True)
class Envelope:
    """An entry on its way to or from Redis.

    `payload` is the client's, `extra` a block of the caller's; both opaque. `created` is in Unix
    milliseconds of the host that made it and only shown, never compared. `soft` and `hard` are
    milliseconds from then until it is stale and until it goes.
    """

    payload: bytes
    created: int
    soft: int
    hard: int
    extra: bytes = b""
    tags: tuple[bytes, ...] = ()
    remaining: int = 0
    """Of an entry that was fetched: milliseconds until it goes, by Redis's clock."""
    stale: bool = False
    """Of an entry that was fetched: a soft clear has made it stale."""
    version: Version = NEVER

    @property
    def fresh(self) -> int:
        """Milliseconds that a fetched entry is still fresh for; 0 when it is stale."""
        return 0 if self.stale else max(0, self.remaining - (self.hard - self.soft))

    def size(self) -> int:
        """About how many bytes it takes."""
        return len(self.payload) + len(self.extra) + 128


class Unreadable(Exception):
    """Why an entry counts as a miss: `garbage`, `unknown_format` or `signature`."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Codec:
    """Packs and unpacks the entries of one prefix."""

    def __init__(self, prefix: bytes, secret: str | None) -> None:
        self._prefix = prefix
        self._secret = secret.encode("utf-8", "surrogatepass") if secret else None
        self._check = _MAC if self._secret else _SUM

    def pack(self, key: bytes, envelope: Envelope) -> bytes:
        """The bytes for Redis, with the place of the version empty."""
        tags = b"".join(bytes([len(tag)]) + tag for tag in envelope.tags)
        if len(tags) > MAX_TAGS_BYTES:
            raise ValueError("the tags of an entry have at most 65,535 bytes together")
        header = _HEADER.pack(
            MAGIC,
            FORMAT,
            SIGNED if self._secret else 0,
            0,
            0,
            0,
            envelope.created,
            envelope.soft,
            envelope.hard,
            len(key),
            len(tags),
            len(envelope.extra),
        )
        body = b"".join((key, tags, envelope.extra, envelope.payload))
        return header + body + self._sum(header, body)

    def unpack(self, key: bytes, data: bytes, pttl: int, now: int) -> Envelope:
        """The entry in `data`, whose time to live is `pttl` by Redis. `now`: Unix milliseconds.

        Raises Unreadable.
        """
        if len(data) < HEAD or data[:2] != MAGIC:
            raise Unreadable("garbage")
        if data[2] != FORMAT:
            raise Unreadable("unknown_format")
        if bool(data[3] & SIGNED) is not bool(self._secret):
            raise Unreadable("signature")
        if len(data) < _HEADER.size + self._check:
            raise Unreadable("garbage")
        (_, _, _, state, ms, number, created, soft, hard, key_size, tags_size, extra_size) = (
            _HEADER.unpack_from(data)
        )
        end = len(data) - self._check
        header, body = data[: _HEADER.size], data[_HEADER.size : end]
        if not hmac.compare_digest(self._sum(header, body), data[end:]):
            raise Unreadable("signature" if self._secret else "garbage")
        extra_at = key_size + tags_size
        if body[:key_size] != key or extra_at + extra_size > len(body):
            raise Unreadable("garbage")
        if pttl < 0:
            # Somebody has taken its time to live away: what its maker said holds.
            pttl = created + hard - now
        if self._secret and now > created + hard + _SKEW:
            # Put back after its time by somebody who had kept a copy.
            raise Unreadable("signature")
        return Envelope(
            payload=body[extra_at + extra_size :],
            created=created,
            soft=soft,
            hard=hard,
            extra=body[extra_at : extra_at + extra_size],
            tags=_tags(body[key_size:extra_at]),
            remaining=max(0, min(pttl, hard)),
            stale=bool(state & 1),
            version=Version(ms, number),
        )

    def _sum(self, header: bytes, body: bytes) -> bytes:
        # Neither the state nor the version, which Redis writes.
        fixed = header[:STATE_AT] + header[HEAD:]
        if self._secret is None:
            return xxhash.xxh3_64_digest(fixed + body)
        prefix = len(self._prefix).to_bytes(4, "big") + self._prefix
        return hmac.digest(self._secret, prefix + fixed + body, "sha256")


def _tags(data: bytes) -> tuple[bytes, ...]:
    found = []
    at = 0
    while at < len(data):
        end = at + 1 + data[at]
        if end > len(data):
            raise Unreadable("garbage")
        found.append(data[at + 1 : end])
        at = end
    return tuple(found)


def aged(envelope: Envelope, now: int) -> Envelope:
    """An entry that this host has just made, as if it had been fetched at `now` (Unix ms)."""
    left = envelope.hard - max(0, now - envelope.created)
    return replace(envelope, remaining=max(0, left))
