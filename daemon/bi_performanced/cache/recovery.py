"""From a store that a killed daemon left to one that can be served, and from one store to another.

Recovery trusts nothing but the rings between their tails and heads: the index is made anew from
the records whose checksum is right. Of two records of one key the higher sequence wins (of equal
ones, left by a move that was cut short, the main ring's), and the loser is marked dead, so that it
cannot return should the winner be deleted later. How often an entry was used is taken from the old
index, where that still names the place of the entry's record; a wrong number of uses harms nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from bi_performance_wire import layout as L
from bi_performanced.cache.index import NONE, Index
from bi_performanced.cache.ring import Damaged, Record, Ring
from bi_performanced.cache.store import Store

FUTURE = 3600
"""Seconds that a moment told by a store may be ahead: clears that come fast one upon the other."""
RECOVERED_TICKS = 40
"""Ticks over which the last uses of entries are spread of which they are not known, in their ring's
order."""
SLICE_RECORDS = 50
"""Records copied between two looks at the clock: well under a millisecond for small ones."""
SLICE_BYTES = 1 << 20
"""And their bytes: a record may have megabytes."""


def recover(store: Store, now: int) -> int:
    """Make a freshly mapped store's index from its rings; how many entries are readable.

    Raises Damaged when a ring cannot be walked, or the control page says what no daemon wrote:
    nothing of such a store is to be served.
    """
    _check_moments(store, now)
    before = store.index.copy()
    store.index.wipe()
    store.small_entries = store.main_entries = 0
    store.small_bytes = store.main_bytes = 0
    cleared = store.memory.words[L.W_CLEARED]
    # No entry may be stored with a sequence up to which a tag was cleared.
    highest = max(cleared, store.tags.highest())
    for ring in (store.small, store.main):
        for position, size, state in store.in_order(ring, ring.tail, ring.head):
            if position + size > ring.head:
                raise Damaged("a ring that ends within a record")
            if state == L.PAD:
                continue
            record = ring.load(position, size, state, verify=True)
            if not record.sound:
                if state == L.LIVE:
                    ring.mark_dead(record.place)
                continue
            highest = max(highest, record.sequence)
            if state != L.LIVE:
                continue
            if record.sequence <= cleared or store.is_over(record, now) or not record.key:
                ring.mark_dead(record.place)
                continue
            _adopt(store, ring, record, before)
    before.release()
    if highest >= L.MOST_SEQUENCE:
        raise Damaged("a sequence that no daemon came to")
    store.set_sequence(highest, uses_known_from=highest)
    return store.entries


def _check_moments(store: Store, now: int) -> None:
    """Raise Damaged for a clear that is to come: all that is stored from now on would be stale."""
    words = store.memory.words
    latest = now + FUTURE * 1_000_000_000
    if words[L.W_EXPIRED] > latest // L.CREATED_UNIT_NS or words[L.W_EXPIRED_AT] > latest:
        raise Damaged("a clear that no daemon made")
    if words[L.W_COHERENT_UNTIL] > latest:
        words[L.W_COHERENT_UNTIL] = 0


def _adopt(store: Store, ring: Ring, record: Record, before: Index) -> None:
    digest = store.digest(record.key)
    slot = store.find(record.key, digest)
    if slot != NONE:
        rival = store.sequence_at(slot)
        if rival > record.sequence:
            ring.mark_dead(record.place)
            return
        store.remove(slot)
    known = before.find_place(digest, record.place)
    if known != NONE:
        store.admit(digest, record.place, record.size, before.touched(known))
        return
    # When it was used is not known any more: as if that had been when it came to its place.
    behind = ring.head - (record.place & L.POSITION)
    age = RECOVERED_TICKS * behind // max(1, ring.head - ring.tail)
    store.admit(digest, record.place, record.size, store.index.tick_before(age))


def copy_entries(source: Store, target: Store, now: int) -> Iterator[None]:
    """Copy every live entry, in the queues' order, yielding after each slice.

    Between slices the source may change in any way; `source.journal` must be a set that collects
    the keys of those changes, and rounds of `settle` end the copying.
    """
    target.follow(source)
    for ring, into in ((source.small, target.small), (source.main, target.main)):
        position, stop = ring.tail, ring.head
        while (position := max(position, ring.tail)) < stop:
            left = SLICE_BYTES
            for at, size, state in islice(source.in_order(ring, position, stop), SLICE_RECORDS):
                if state == L.LIVE:
                    _copy(source, target, ring, into, at, size, now)
                    left -= size
                position = at + size
                if left <= 0:
                    break
            yield


def _copy(
    source: Store, target: Store, ring: Ring, into: Ring, position: int, size: int, now: int
) -> None:
    record = ring.load(position, size, L.LIVE, verify=False)
    if source.is_over(record, now):
        return
    slot = source.index.find_place(source.digest(record.key), record.place)
    if slot != NONE:
        target.restore(record, into, source.index.touched(slot), now)


def settle(source: Store, target: Store, journal: Iterable[bytes], now: int) -> Iterator[None]:
    """Bring the copy up to date for keys that a journal collected, yielding now and then.

    A key that changes between two slices is in the source's present journal, for a later round;
    the round after which nothing is left there must be run without a pause.
    """
    records, left = 0, SLICE_BYTES
    for key in journal:
        records += 1
        slot = source.find(key, source.digest(key))
        if slot == NONE:
            target.delete(key, now)
        else:
            place = source.index.cells[slot] & L.PLACE
            main = bool(place & L.MAIN_BIT)
            ring, into = (source.main, target.main) if main else (source.small, target.small)
            position = place & L.POSITION
            size, state = ring.peek(position)
            record = ring.load(position, size, state, verify=False)
            target.restore(record, into, source.index.touched(slot), now)
            left -= size
        if records == SLICE_RECORDS or left <= 0:
            yield
            records, left = 0, SLICE_BYTES
    target.take_over_marks(source)
    target.follow(source)
    target.set_sequence(
        max(source.sequence, target.sequence), uses_known_from=source.uses_known_from
    )


__all__ = ["Damaged", "copy_entries", "recover", "settle"]
