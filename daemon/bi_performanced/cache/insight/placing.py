"""Where an entry lies in the store of this host, what it carries, and when it would leave."""

from __future__ import annotations

from math import sqrt
from typing import Any, Final

import msgpack

from bi_performance_wire import layout as L
from bi_performance_wire.extra import Extra, unpack_extra
from bi_performance_wire.tenants import tenant_of
from bi_performance_wire.value import PLAIN, raw_size
from bi_performanced.cache.index import NONE
from bi_performanced.cache.policy import name_of
from bi_performanced.cache.store import Store
from bi_performanced.cache.tenants import TenantStore

COMPARED: Final = 1000
"""Entries that an entry's place in the order of leaving is told from."""
LOOKED_AT: Final = 20_000
"""Slots of the index that are looked at for them: 2 ms."""
_CERTAIN: Final = 1.96
"""Standard errors within which 95 % of all estimates lie."""

CLOCK: Final = "second-chance FIFO, each namespace by itself"
"""How entries leave where namespaces have quotas."""
FRESH: Final = "fresh"
STALE: Final = "stale"
OVER: Final = "over"
CLEARED: Final = "cleared"
UNSURE: Final = "unsure"


def look(store: Store, key: bytes, now: int) -> dict[str, Any] | None:
    """What is stored under a key, readable or not; None when nothing is.

    Changes nothing: an entry that is looked at is not used by that.
    """
    digest = store.digest(key)
    slot = store.find(key, digest)
    if slot == NONE:
        return None
    place = store.index.cells[slot] & L.PLACE
    ring = store.main if place & L.MAIN_BIT else store.small
    position = place & L.POSITION
    size, state = ring.peek(position)
    record = ring.load(position, size, state, verify=False)
    fresh_until, kept_until, known = store.times_at(slot, now)
    extra = unpack_extra(record.extra) if record.extra else Extra()
    shared = bool(record.flags & L.FLAG_SHARED)
    created = record.created
    found: dict[str, Any] = {
        "state": _state(fresh_until, kept_until, known, now),
        "age_seconds": max(0.0, now / 1e9 - created / 10),
        "ttl_seconds": None if fresh_until >= L.NEVER else max(0.0, (fresh_until - now) / 1e9),
        "said_ttl_seconds": max(0.0, record.expires / 1e9 - created / 10),
        "grace_seconds": extra.grace / 10,
        "served_stale_for_seconds": max(0.0, (kept_until - max(now, fresh_until)) / 1e9),
        "sliding_seconds": extra.sliding / 10 or None,
        "tags": [tag.decode("utf-8", "replace") for tag in extra.tags],
        "about": _about(extra.meta),
        "stored_bytes": size,
        "value_bytes": len(record.payload),
        "raw_bytes": _raw(record.payload),
        "compressed": bool(record.payload) and record.payload[0] != PLAIN,
        "shared": shared,
        "sequence": record.sequence,
        "queue": "main" if ring.bit else "small",
        "policy": CLOCK if isinstance(store, TenantStore) else name_of(store.policy.rule),
        "namespace": tenant_of(key).decode("ascii", "replace") or None,
        "reads_noted": store.index.frequency(slot),
        **_order(store, key, slot, position),
    }
    if shared:
        until = store.memory.words[L.W_COHERENT_UNTIL]
        found["known_for_seconds"] = (until - now) / 1e9 if until else None
    return found


def _state(fresh_until: int, kept_until: int, known: bool, now: int) -> str:
    if not kept_until:
        return CLEARED
    if kept_until <= now:
        return OVER
    if not known:
        return UNSURE
    return FRESH if fresh_until > now else STALE


def _raw(payload: bytes) -> int:
    """Bytes of the value before it was compressed, as it says."""
    if not payload or payload[0] == PLAIN:
        return max(0, len(payload) - 1)
    try:
        return raw_size(payload)
    except ValueError:
        return 0


def _about(meta: bytes) -> dict[str, Any]:
    """What the client that stored it keeps with it: etag, last_modified, and how long it took."""
    if not meta:
        return {}
    try:
        said = msgpack.unpackb(meta)
    except (ValueError, msgpack.UnpackException):
        return {}
    if not isinstance(said, dict):
        return {}
    return {
        str(name): value
        for name, value in said.items()
        if isinstance(value, str | int | float | None)
    }


def _order(store: Store, key: bytes, slot: int, position: int) -> dict[str, Any]:
    """Where the entry stands in the order of leaving: 0 leaves next, 1 last.

    By S3-FIFO it is the place in its queue, by bytes. By LRU a sample of the others says how many
    were used before it, each to the tick; those of its own tick count half.
    """
    index = store.index
    if isinstance(store, TenantStore):
        # Each namespace has a queue of its own, of hashes alone.
        among = store.account(key).entries
        return {"order": None, "order_error": None, "order_among": among}
    if store.policy.share is not None:
        ring = store.main if store.index.cells[slot] & L.MAIN_BIT else store.small
        used = ring.head - ring.tail
        return {
            "order": (position - ring.tail) / used if used else 0.0,
            "order_error": None,
            "order_among": store.main_entries if ring.bit else store.small_entries,
        }
    mine = index.age(index.last_used(slot))
    before = count = 0.0
    for other in _some(store, slot):
        age = index.age(index.last_used(other))
        before += 1.0 if age > mine else 0.5 * (age == mine)
        count += 1
    if not count and store.entries > 1:
        return {"order": None, "order_error": None, "order_among": store.entries}
    share = before / count if count else 0.0
    error = None
    if count < store.entries - 1:
        error = _CERTAIN * sqrt(max(share * (1 - share), 0.25 / count) / count)
    return {
        "order": share,
        "order_error": error,
        "order_among": store.entries,
    }


def _some(store: Store, slot: int) -> list[int]:
    """Slots of other entries: those behind this one, which is a sample, for hashes are chance."""
    cells = store.index.cells
    room = len(cells)
    found = []
    for step in range(1, min(LOOKED_AT, room)):
        at = (slot + step) % room
        if cells[at]:
            found.append(at)
            if len(found) == COMPARED:
                break
    return found
