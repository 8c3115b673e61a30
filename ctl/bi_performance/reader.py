"""Reading the shared store in place: no lock, no message, no system call.

What a read may rest on, and why it is never a wrong value, is argued in docs/architecture.md
("The store"); the layout is `bi_performance_wire.layout`.
"""

from __future__ import annotations

import mmap
import os
import time
from enum import Enum
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from bi_performance.own import OwnFigures
from bi_performance_wire import layout as L
from bi_performance_wire.value import decode_from


class Outcome(Enum):
    """Answers of a read that are not a value."""

    MISS = "miss"
    """The key is not there, expired, or was being replaced while it was read."""
    DETACHED = "detached"
    """The daemon is gone or serves another store by now: attach again."""


MISS: Final = Outcome.MISS
DETACHED: Final = Outcome.DETACHED

# What the hot path uses, as globals of this module: an attribute of another costs on every hit.
_clock = time.clock_gettime_ns
_xxh3 = xxh3_64_intdigest
_header = L.HEADER.unpack_from
_body = L.READ_BODY.unpack_from
_BOOT_CLOCK: Final = L.BOOT_CLOCK
_FINGERPRINT_SHIFT: Final = L.FINGERPRINT_SHIFT
_TAG_SHIFT: Final = L.TAG_SHIFT
_TAG_DISTANCE_ONE: Final = L.TAG_DISTANCE_ONE
_TAG_DISTANCE: Final = L.TAG_DISTANCE
_TAG_MAX: Final = L.TAG_MAX
_PLACE: Final = L.PLACE
_POSITION: Final = L.POSITION
_MAIN_BIT: Final = L.MAIN_BIT
_SMALL_TAIL: Final = L.W_SMALL_TAIL
_MAIN_TAIL: Final = L.W_MAIN_TAIL
_LIVE_HIGH: Final = L.LIVE_HIGH
_CHECKSUM: Final = L.CHECKSUM
_KEY_IN_BODY: Final = L.KEY_IN_BODY
_TOUCH_MAX: Final = L.TOUCH_MAX
_HITS: Final = L.P_HITS
_MISSES: Final = L.P_MISSES
_EXPIRED: Final = L.P_EXPIRED
_TORN: Final = L.P_TORN
_SAMPLE_MASK: Final = L.SAMPLE_EVERY - 1


class Entry(NamedTuple):
    """A value with what is known of it; `age` and `ttl` in seconds (`ttl` None: never expires)."""

    value: object
    age: float
    ttl: float | None


class StoreReader:
    """One process's view of one epoch of the store.

    Takes over the three descriptors, maps them and closes them, also when it raises. Raises
    ValueError for a store of another format, OSError when a descriptor cannot be mapped. Any
    number of threads may read; counts of threads that hit the same nanosecond may be lost, never
    values. Not to be used after fork in the child (the page is the parent's): attach again.
    """

    def __init__(self, store_fd: int, page_fd: int, touch_fd: int, epoch: int) -> None:
        L.require_little_endian()
        try:
            size = os.fstat(store_fd).st_size
            if size < L.PAGE:
                raise L.LayoutError("the store's file is shorter than its control page")
            self._store = mmap.mmap(store_fd, size, prot=mmap.PROT_READ)
            self._view = memoryview(self._store)
            control = self._control = self._view[: L.PAGE].cast("Q")
            L.check_geometry(control, size)
            slots = control[L.W_SLOTS]
            touch_bytes = slots + L.GUARD_SLOTS
            if os.fstat(page_fd).st_size < L.PAGE or os.fstat(touch_fd).st_size < touch_bytes:
                raise L.LayoutError("the client's page or touch map is too short")
            self._page_map = mmap.mmap(page_fd, L.PAGE)
            self._touches = mmap.mmap(touch_fd, touch_bytes)
        finally:
            for fd in (store_fd, page_fd, touch_fd):
                os.close(fd)
        self._page_view = memoryview(self._page_map)
        self.page: memoryview[int] = self._page_view.cast("Q")
        """The counters of this client, as the words `P_…` of the layout."""
        index_at = control[L.W_INDEX_AT]
        self._cells: memoryview[int] = self._view[
            index_at : index_at + 8 * (slots + L.GUARD_SLOTS)
        ].cast("Q")
        self._slots = slots
        self._seed = control[L.W_SEED]
        self._small_at = control[L.W_SMALL_AT]
        self._small_bytes = control[L.W_SMALL_BYTES]
        self._main_at = control[L.W_MAIN_AT]
        self._main_bytes = control[L.W_MAIN_BYTES]
        self._max_record = control[L.W_MAX_RECORD]
        self._alive = L.W_ALIVE + epoch % L.ALIVE_WORDS
        self.epoch = epoch
        self._own = OwnFigures()
        self.tell()
        self.now = 0
        """The boot clock in ns at the last read, so that callers need not ask again."""

    def read(self, key: bytes, whole: bool = False, retries: int = 8) -> object:
        """The value of a key, or MISS, or DETACHED.

        With `whole` an Entry instead of the value. Raises ValueError when the entry is not a
        value (its writer was no client of ours).

        One function without helpers, with its constants as globals of this module: every call
        and every attribute here is paid on every hit.
        """
        control = self._control
        self.now = now = _clock(_BOOT_CLOCK)
        if now >= control[self._alive]:
            return DETACHED
        digest = _xxh3(key, self._seed)
        slot = digest % self._slots
        want = digest >> _FINGERPRINT_SHIFT | _TAG_DISTANCE_ONE
        cells = self._cells
        while True:
            cell = cells[slot]
            tag = cell >> _TAG_SHIFT
            if tag == want:
                place = cell & _PLACE
                if place & _MAIN_BIT:
                    at = self._main_at + (place ^ _MAIN_BIT) % self._main_bytes
                else:
                    at = self._small_at + place % self._small_bytes
                store = self._store
                checksum, size = _header(store, at)
                size ^= _LIVE_HIGH
                if size > self._max_record:
                    return self._again(key, whole, retries)
                record = store[at + 8 : at + size]
                if _xxh3(record, place) & _CHECKSUM != checksum or (
                    place & _POSITION < control[_MAIN_TAIL if place & _MAIN_BIT else _SMALL_TAIL]
                ):
                    return self._again(key, whole, retries)
                length, expires, created = _body(record)
                end = _KEY_IN_BODY + len(key)
                if record[_KEY_IN_BODY:end] == key and (
                    length == len(key) or self._coherent(length ^ len(key))
                ):
                    page = self.page
                    if expires <= now:
                        page[_EXPIRED] += 1
                        break
                    page[_HITS] = hits = page[_HITS] + 1
                    touches = self._touches
                    if (count := touches[slot]) < _TOUCH_MAX:
                        touches[slot] = count + 1
                    if not hits & _SAMPLE_MASK:
                        self._sample(now, size)
                    if whole:
                        return self._entry(decode_from(record, end), expires, created)
                    return decode_from(record, end)
            elif tag < want & _TAG_DISTANCE:
                break
            want += _TAG_DISTANCE_ONE
            slot += 1
            if want > _TAG_MAX:
                break
        self.page[_MISSES] += 1
        return MISS

    def _again(self, key: bytes, whole: bool, retries: int) -> object:
        """The record was not what its slot promised: it went or moved while it was read."""
        self.page[_TORN] += 1
        if retries:
            return self.read(key, whole, retries - 1)
        self.page[_MISSES] += 1
        return MISS

    def _coherent(self, flags: int) -> bool:
        """Whether an entry with flags may be served: a shared one while the hosts agree."""
        return flags == L.FLAG_SHARED and self.now < self._control[L.W_COHERENT_UNTIL]

    def _entry(self, value: object, expires: int, created: int) -> Entry:
        return Entry(
            value,
            max(0.0, (self.now - created * L.CREATED_UNIT_NS) / 1e9),
            None if expires == L.NEVER else (expires - self.now) / 1e9,
        )

    def _sample(self, began: int, size: int) -> None:
        """Record one hit's duration in the page, for all the hits that are not measured."""
        page = self.page
        took = _clock(_BOOT_CLOCK) - began
        page[L.P_LATENCY + min(took.bit_length(), L.LATENCY_BUCKETS - 1)] += 1
        page[L.P_SAMPLES] += 1
        page[L.P_HIT_BYTES] += size * L.SAMPLE_EVERY
        if began >= self._own.due:
            self._own.write(page, began)

    def tell(self) -> None:
        """Write down in the page what the daemon may not see of this process, if it is time."""
        now = _clock(_BOOT_CLOCK)
        if now >= self._own.due:
            self._own.write(self.page, now)

    def alive(self) -> bool:
        """Whether the daemon's deadline is in the future."""
        return _clock(_BOOT_CLOCK) < self.deadline

    @property
    def deadline(self) -> int:
        """The boot clock in ns until which the daemon vouches for its store."""
        return self._control[self._alive]

    def close(self) -> None:
        """Unmap everything; no read may follow."""
        for view in (self._cells, self._control, self.page, self._view, self._page_view):
            view.release()
        self._store.close()
        self._page_map.close()
        self._touches.close()
