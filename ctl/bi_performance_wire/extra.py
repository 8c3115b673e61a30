"""What a record may carry between its key and its payload, and how a tag is cleared.

    u16 size of the block; u8 number of tags; u8 0
    u32 grace: tenths of a second after its expiry for which the entry may be served stale
    u32 sliding: tenths of a second that a read renews the entry for; 0: reads renew nothing
    tags: u8 length and so many bytes, each
    meta: the rest, a msgpack map of the client's (`etag`, `last_modified`, `took`, …)

A tag is cleared in one step, whatever number of entries have it: the store keeps a table of
TAG_WORDS sequences, and an entry is gone when its sequence is not higher than the least of the two
words that its tag's hash picks (a count-min sketch: Cormode and Muthukrishnan, 2005, with maxima
instead of sums). Tags that share both words are cleared together: a miss too many, never a hit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

TAG_WORDS: Final = 8192
MAX_TAGS: Final = 16
MAX_TAG_BYTES: Final = 100
MAX_META_BYTES: Final = 1024
_HEAD: Final = struct.Struct("<HBxII")
MAX_EXTRA_BYTES: Final = _HEAD.size + MAX_TAGS * (1 + MAX_TAG_BYTES) + MAX_META_BYTES


class ExtraFormatError(ValueError):
    """A block that no daemon of this format wrote."""


class Extra(NamedTuple):
    """`grace` and `sliding` in tenths of a second."""

    grace: int = 0
    sliding: int = 0
    tags: tuple[bytes, ...] = ()
    meta: bytes = b""


def pack_extra(extra: Extra) -> bytes:
    """The block, or nothing when there is nothing to say. The parts are within their bounds."""
    if not any(extra):
        return b""
    tags = b"".join(bytes((len(tag),)) + tag for tag in extra.tags)
    size = _HEAD.size + len(tags) + len(extra.meta)
    return _HEAD.pack(size, len(extra.tags), extra.grace, extra.sliding) + tags + extra.meta


def extra_size(buffer: bytes, at: int = 0) -> int:
    """Bytes of the block that begins there. Raises ExtraFormatError when it cannot be one."""
    size = int.from_bytes(buffer[at : at + 2], "little")
    if not _HEAD.size <= size <= len(buffer) - at:
        raise ExtraFormatError("a record's block of extras has an impossible size")
    return size


def unpack_extra(buffer: bytes, at: int = 0) -> Extra:
    """The block that begins there. Raises ExtraFormatError."""
    end = at + extra_size(buffer, at)
    _, count, grace, sliding = _HEAD.unpack_from(buffer, at)
    at += _HEAD.size
    tags: list[bytes] = []
    for _ in range(count):
        if at >= end or at + 1 + buffer[at] > end:
            raise ExtraFormatError("a record's tags go beyond its block of extras")
        after = at + 1 + buffer[at]
        tags.append(buffer[at + 1 : after])
        at = after
    return Extra(grace, sliding, tuple(tags), buffer[at:end])


def tag_words(tag: bytes) -> tuple[int, int]:
    """The numbers of a tag's two words."""
    digest = xxh3_64_intdigest(tag)
    return digest % TAG_WORDS, (digest >> 32) % TAG_WORDS


def any_cleared(tags: Iterable[bytes], sequence: int, table: Sequence[int]) -> bool:
    """Whether one of the tags of an entry with this sequence was cleared since it was stored."""
    for tag in tags:
        one, other = tag_words(tag)
        if sequence <= table[one] and sequence <= table[other]:
            return True
    return False
