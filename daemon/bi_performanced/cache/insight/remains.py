"""Older records of a key that still lie in the rings: what it was, after it has gone.

A ring overwrites a record only when its head comes round again, so of a key that was cleared, or
deleted, or evicted, the record is often still there. It is believed like any record: by a checksum
that is seeded with its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from bi_performance_wire import layout as L
from bi_performanced.cache.ring import Damaged, Record, Ring
from bi_performanced.cache.store import Store
from bi_performanced.cache.sweeping import SLICE

_CHUNK: Final = 1 << 20
_BETWEEN: Final = 64
"""Places between two looks at the clock."""
MOST_PLACES: Final = 5000
"""Places that are looked at where the key's bytes are: of a key of one letter there are many."""


async def remains(current: Callable[[], Store], key: bytes) -> tuple[Record | None, bool]:
    """The latest record of a key that lies in the store, readable or not, and whether all were
    looked at: not when too much is like the key, or the entries moved to another store meanwhile.

    Goes over all rings in slices that let others run: some 0.1 ms for each MiB.
    """
    store, latest = current(), None
    looked = 0
    ends = trio.current_time() + SLICE
    for ring in (store.small, store.main):
        end = ring.at + ring.bytes
        for start in range(ring.at, end, _CHUNK):
            # With what a key that begins at the chunk's end has beyond it.
            chunk = store.memory.bytes[start : min(end, start + _CHUNK + len(key) - 1)]
            at = chunk.find(key)
            while at >= 0:
                looked += 1
                if looked > MOST_PLACES:
                    return None, False
                record = _record(ring, start + at - L.KEY_AT - ring.at, key)
                if record is not None and (latest is None or _newer(record, latest)):
                    latest = record
                at = chunk.find(key, at + 1)
                if not looked % _BETWEEN and trio.current_time() >= ends:
                    await trio.lowlevel.checkpoint()
                    ends = trio.current_time() + SLICE
                    if store is not current():
                        return None, False
            if trio.current_time() >= ends:
                await trio.lowlevel.checkpoint()
                ends = trio.current_time() + SLICE
                if store is not current():
                    return None, False
    return latest, True


def _newer(one: Record, other: Record) -> bool:
    """Of two copies of the same entry, of which one was carried on, that tells of its end."""
    dead = one.state == L.DEAD, other.state == L.DEAD
    return (one.sequence, dead[0]) > (other.sequence, dead[1])


def _record(ring: Ring, offset: int, key: bytes) -> Record | None:
    """The record at an offset of the ring, if one of this key lies there."""
    if not 0 <= offset <= ring.bytes - L.HEADER_BYTES:
        return None
    position = ring.head // ring.bytes * ring.bytes + offset
    if position >= ring.head:
        position -= ring.bytes
    if position < 0:
        return None
    try:
        size, state = ring.peek(position)
        if state not in (L.LIVE, L.DEAD):
            return None
        record = ring.load(position, size, state, verify=True)
    except Damaged:
        return None
    return record if record.sound and record.key == key else None
