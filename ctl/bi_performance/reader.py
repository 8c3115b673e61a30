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

from bi_performance_wire.value import decode_from
from xxhash import xxh3_64_intdigest

from bi_performance_wire import layout as L


class Outcome(Enum):
    """Answers of a read that are not a value."""

    MISS = "miss"
    """The key is not there, expired, or was being replaced while it was read."""
    DETACHED = "detached"
    """The daemon is gone or serves another store by now: attach again."""


MISS: Final = Outcome.MISS
DETACHED: Final = Outcome.DETACHED

_RETRIES: Final = 8
"""Probes begun anew because the slot changed under the read; then it is a miss."""


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
        self.now = 0
        """The boot clock in ns at the last read, so that callers need not ask again."""

    def read(self, key: bytes) -> object:
        """The value of a key, or MISS, or DETACHED.

        Raises ValueError when the entry is not a value (its writer was no client of ours).
        """
        found = self._find(key)
        if found.__class__ is not tuple:
            return found
        record, _, _ = found  # type: ignore[misc]  # a tuple, as was just seen
        return decode_from(record, L.KEY_IN_BODY + len(key))

    def entry(self, key: bytes) -> Entry | Outcome:
        """As `read`, with age and remaining time to live."""
        found = self._find(key)
        if isinstance(found, Outcome):
            return found
        record, expires, created = found
        value = decode_from(record, L.KEY_IN_BODY + len(key))
        return Entry(
            value,
            max(0.0, (self.now - created * L.CREATED_UNIT_NS) / 1e9),
            None if expires == L.NEVER else (expires - self.now) / 1e9,
        )

    def _find(self, key: bytes) -> tuple[bytes, int, int] | Outcome:
        """(record from the key length on, expiry, creation) of a readable entry.

        One function without helpers: every call here is paid on every hit.
        """
        control = self._control
        self.now = now = time.clock_gettime_ns(L.BOOT_CLOCK)
        if now >= control[self._alive]:
            return DETACHED
        digest = xxh3_64_intdigest(key, self._seed)
        home = slot = digest % self._slots
        tag_at_home = want = digest >> L.FINGERPRINT_SHIFT | L.TAG_DISTANCE_ONE
        cells = self._cells
        retries = 0
        while True:
            cell = cells[slot]
            tag = cell >> 48
            if tag == want:
                if cell & L.MAIN_BIT:
                    position = cell & L.POSITION
                    at = self._main_at + position % self._main_bytes
                    tail = L.W_MAIN_TAIL
                else:
                    position = cell & L.POSITION
                    at = self._small_at + position % self._small_bytes
                    tail = L.W_SMALL_TAIL
                checksum, size = L.HEADER.unpack_from(self._store, at)
                size ^= L.LIVE_HIGH
                if L.RECORD_OVERHEAD < size <= self._max_record:
                    record = self._store[at + 8 : at + size]
                    if (
                        position >= control[tail]
                        and xxh3_64_intdigest(record, cell & L.PLACE) & L.CHECKSUM == checksum
                    ):
                        length, expires, created = L.READ_BODY.unpack_from(record)
                        if length != len(key):
                            # Another key of this fingerprint, or an entry with a flag.
                            if (
                                length & L.FLAG_SHARED
                                and length & L.KEY_LENGTH == len(key)
                                and record.startswith(key, L.KEY_IN_BODY)
                                and now >= control[L.W_COHERENT_UNTIL]
                            ):
                                self.page[L.P_MISSES] += 1
                                return MISS
                            length &= L.KEY_LENGTH
                        if length == len(key) and record.startswith(key, L.KEY_IN_BODY):
                            page = self.page
                            if expires <= now:
                                page[L.P_EXPIRED] += 1
                                page[L.P_MISSES] += 1
                                return MISS
                            hits = page[L.P_HITS] + 1
                            page[L.P_HITS] = hits
                            touches = self._touches
                            count = touches[slot]
                            if count < L.TOUCH_MAX:
                                touches[slot] = count + 1
                            if not hits % L.SAMPLE_EVERY:
                                self._sample(now, len(record))
                            return record, expires, created
                        want += L.TAG_DISTANCE_ONE
                        slot += 1
                        if want > L.TAG_MAX:
                            break
                        continue
                # Not what the slot promised: the entry went or moved while it was read.
                self.page[L.P_TORN] += 1
                if retries == _RETRIES:
                    break
                retries += 1
                slot = home
                want = tag_at_home
                continue
            if tag < want & L.TAG_DISTANCE:
                break
            want += L.TAG_DISTANCE_ONE
            slot += 1
            if want > L.TAG_MAX:
                break
        self.page[L.P_MISSES] += 1
        return MISS

    def _sample(self, began: int, size: int) -> None:
        """Record one hit's duration in the page, for all the hits that are not measured."""
        page = self.page
        took = time.clock_gettime_ns(L.BOOT_CLOCK) - began
        page[L.P_LATENCY + min(took.bit_length(), L.LATENCY_BUCKETS - 1)] += 1
        page[L.P_SAMPLES] += 1
        page[L.P_HIT_BYTES] += size * L.SAMPLE_EVERY

    def alive(self) -> bool:
        """Whether the daemon's deadline is in the future."""
        now: int = time.clock_gettime_ns(L.BOOT_CLOCK)
        return now < self._control[self._alive]

    def close(self) -> None:
        """Unmap everything; no read may follow."""
        for view in (self._cells, self._control, self.page, self._view, self._page_view):
            view.release()
        self._store.close()
        self._page_map.close()
        self._touches.close()
