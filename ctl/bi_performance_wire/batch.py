"""Many encoded entries as one binary: what `cache.set_many` takes as `payload`.

For each entry: u16 length of the key, u32 length of the encoded entry, both little endian, then
the key and the entry. One binary is framed and decoded as one object; as pairs each entry would be
three, and looking at those cost more than storing them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from bi_performance_wire.errors import INVALID_ARGUMENT, WireError

_HEAD: Final = struct.Struct("<HI")
MAX_BATCH: Final = 10_000


def pack(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """(key, encoded entry) pairs as one binary."""
    head = _HEAD.pack
    parts: list[bytes] = []
    for key, entry in entries:
        parts += (head(len(key), len(entry)), key, entry)
    return b"".join(parts)


def unpack(data: bytes) -> list[tuple[bytes, bytes]]:
    """The pairs of a binary; raises WireError when its lengths do not add up or are too many."""
    found: list[tuple[bytes, bytes]] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < _HEAD.size:
            break
        key_size, size = _HEAD.unpack_from(data, at)
        middle = at + _HEAD.size + key_size
        at = middle + size
        if at > end:
            break
        found.append((data[middle - key_size : middle], data[middle:at]))
    else:
        if len(found) <= MAX_BATCH:
            return found
        raise WireError(
            INVALID_ARGUMENT,
            f"payload has {len(found)} entries; the limit is {MAX_BATCH}",
            field="payload",
        )
    raise WireError(
        INVALID_ARGUMENT, f"payload ends within its entry {len(found)}", field="payload"
    )
