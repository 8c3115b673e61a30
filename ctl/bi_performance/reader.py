"""Reading the shared store in place: no lock, no message, no system call.

What a read may rest on, and why it is never a wrong value, is argued in docs/architecture.md
("The store"); the layout is `bi_performance_wire.layout`.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from bi_performance.own import OwnFigures
from bi_performance_wire import layout as L
from bi_performance_wire.extra import (
    TAG_WORDS,
    Extra,
    any_cleared,
    unpack_extra,
)
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
_W_EXPIRED: Final = L.W_EXPIRED
_TOUCH_COUNT: Final = L.TOUCH_COUNT
_TICK: Final = L.W_TICK
_TICK_BITS: Final = L.TICK_BITS
_W_SAMPLE: Final = L.W_SAMPLE
_LOG_HEAD: Final = L.P_LOG_HEAD
_LOG: Final = L.P_LOG
_LOG_WORDS: Final = L.LOG_WORDS
_HITS: Final = L.P_HITS
_MISSES: Final = L.P_MISSES
_EXPIRED: Final = L.P_EXPIRED
_TORN: Final = L.P_TORN
_GAPS: Final = 2 * L.SAMPLE_EVERY - 1


class Entry(NamedTuple):
    """A value with what is known of it; `age` and `ttl` in seconds (`ttl` None: never expires)."""

    value: object
    age: float
    ttl: float | None
    """Seconds left; 0 of an entry that is stale."""
    stale: bool
    """Served beyond its time: in its grace, or while other hosts cannot be heard."""
    extra: Extra | None
    sequence: int
    """Grows with every stored version, so that two reads can be told apart."""


class _Place(NamedTuple):
    """A record that was read whole and verified."""

    slot: int
    record: bytes
    value_at: int
    sequence: int
    fresh_until: int
    """The boot clock in ns; in the past for a record that was made stale."""
    created: int
    shared: bool
    extra: Extra | None


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
        tags_at = control[L.W_TAGS_AT]
        self._tags: memoryview[int] = self._view[tags_at : tags_at + 8 * TAG_WORDS].cast("Q")
        self._alive = L.W_ALIVE + epoch % L.ALIVE_WORDS
        self.epoch = epoch
        self.renew: Callable[[bytes], None] | None = None
        """Called with the key of an entry that reads renew, when half of its time is over."""
        self._own = OwnFigures()
        self._sample_at = 1 + _clock(_BOOT_CLOCK) % _GAPS
        """The count of hits at which the next one is sampled."""
        self._miss_at = self._miss_gap = 1
        """The count of misses at which the next one is noted, and how many lie between two."""
        self._missed = 0
        """The boot clock in ns of the last that was."""
        self.tell()
        self.now = 0
        """The boot clock in ns at the last read, so that callers need not ask again."""

    def read(self, key: bytes, retries: int = 8) -> object:
        """The value of a key, or MISS, or DETACHED.

        Raises ValueError when the entry is not a value (its writer was no client of ours).

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
                    return self._again(key, retries)
                record = store[at + 8 : at + size]
                if _xxh3(record, place) & _CHECKSUM != checksum or (
                    place & _POSITION < control[_MAIN_TAIL if place & _MAIN_BIT else _SMALL_TAIL]
                ):
                    return self._again(key, retries)
                length, expires, created = _body(record)
                end = _KEY_IN_BODY + len(key)
                if record[_KEY_IN_BODY:end] == key and (
                    length == len(key) or (end := self._flagged(record, length ^ len(key), end))
                ):
                    page = self.page
                    if expires <= now or created < control[_W_EXPIRED]:
                        page[_EXPIRED] += 1
                        break
                    page[_HITS] = hits = page[_HITS] + 1
                    if self._touches[slot] ^ control[_TICK] > _TOUCH_COUNT:
                        self._touch(slot, digest)
                    if hits >= self._sample_at:
                        self._sample(now, size, digest, hits)
                    return decode_from(record, end)
            elif tag < want & _TAG_DISTANCE:
                break
            want += _TAG_DISTANCE_ONE
            slot += 1
            if want > _TAG_MAX:
                break
        page = self.page
        page[_MISSES] = misses = page[_MISSES] + 1
        if misses >= self._miss_at:
            self._note_miss(key, digest, now, misses)
        return MISS

    def _touch(self, slot: int, digest: int) -> None:
        """Mark a slot as used, for the first time in this tick."""
        control = self._control
        touches = self._touches
        count = touches[slot] & _TOUCH_COUNT
        touches[slot] = control[_TICK] & _TICK_BITS | (count + (count < _TOUCH_COUNT))
        if not digest & control[_W_SAMPLE]:
            page = self.page
            head = page[_LOG_HEAD]
            page[_LOG + head % _LOG_WORDS] = digest
            page[_LOG_HEAD] = head + 1

    def _again(self, key: bytes, retries: int) -> object:
        """The record was not what its slot promised: it went or moved while it was read."""
        self.page[_TORN] += 1
        if retries:
            return self.read(key, retries - 1)
        self.page[_MISSES] += 1
        return MISS

    def _flagged(self, record: bytes, flags: int, end: int) -> int:
        """Where the value of a record with flags begins; 0 when it is not to be served.

        A shared one is served while the hosts agree, and a while longer if that is allowed; one
        whose tag was cleared is gone.
        """
        if flags & ~L.FLAGS:
            # Not flags alone: the record's key is longer than the one that was asked for.
            return 0
        sequence = L.BODY.unpack_from(record)[0] >> 16
        if flags & L.FLAG_EXTRA:
            extra = unpack_extra(record, end)
            if extra.tags and any_cleared(extra.tags, sequence, self._tags):
                return 0
            if extra.sliding:
                self._slide(record[_KEY_IN_BODY:end], _body(record)[1], extra.sliding)
            end += int.from_bytes(record[end : end + 2], "little")
        if flags & L.FLAG_SHARED:
            known = self._control[L.W_COHERENT_UNTIL]
            if self.now >= known and sequence <= self._control[L.W_OUTAGE]:
                if self.now >= known + self._control[L.W_PARTITION]:
                    return 0
                self.page[L.P_STALE] += 1
        return end

    def _slide(self, key: bytes, expires: int, sliding: int) -> None:
        """Have an entry renewed that was read in the second half of its time."""
        left = expires - self.now
        if self.renew is not None and 0 < left < sliding * L.CREATED_UNIT_NS // 2:
            self.renew(key)

    def find(self, key: bytes, *, count: bool = True) -> Entry | Outcome:
        """An entry with what is known of it, a stale one in its grace too; or MISS, or DETACHED.

        `count`: whether it counts as a hit or a miss. Slower than `read`; raises as it does.
        """
        self.now = now = _clock(_BOOT_CLOCK)
        control = self._control
        if now >= control[self._alive]:
            return DETACHED
        page = self.page
        for _ in range(9):
            place = self._locate(key)
            if isinstance(place, _Place) and (entry := self._entry(place, now)) is not None:
                page[_HITS] = hits = page[_HITS] + count
                page[L.P_STALE] += count and entry.stale
                if hits >= self._sample_at:
                    self._sample_at = hits + 1 + (now >> 3) % _GAPS
                    self._note_hit(_xxh3(key, self._seed))
                if entry.extra is not None and entry.extra.sliding:
                    self._slide(key, place.fresh_until, entry.extra.sliding)
                if self._touches[place.slot] ^ control[_TICK] > _TOUCH_COUNT:
                    self._touch(place.slot, _xxh3(key, self._seed))
                return entry
            if place is not None:
                break
            page[_TORN] += 1
        page[_MISSES] = misses = page[_MISSES] + count
        if count and misses >= self._miss_at:
            self._note_miss(key, _xxh3(key, self._seed), now, misses)
        return MISS

    def _entry(self, place: _Place, now: int) -> Entry | None:
        """What may be served of a record, or None."""
        extra = place.extra
        fresh = place.fresh_until > now
        if (
            not fresh
            and place.fresh_until + L.CREATED_UNIT_NS * (extra.grace if extra else 0) <= now
        ):
            return None
        stale = not fresh
        known = self._control[L.W_COHERENT_UNTIL]
        if place.shared and now >= known and place.sequence <= self._control[L.W_OUTAGE]:
            if now >= known + self._control[L.W_PARTITION]:
                return None
            stale = True
        return Entry(
            decode_from(place.record, place.value_at),
            max(0.0, (now - place.created * L.CREATED_UNIT_NS) / 1e9),
            None if place.fresh_until == L.NEVER else max(0.0, (place.fresh_until - now) / 1e9),
            stale,
            extra,
            place.sequence,
        )

    def _locate(self, key: bytes) -> _Place | Outcome | None:
        """The record of a key, MISS, or None when it went or moved while it was read."""
        control, cells = self._control, self._cells
        digest = _xxh3(key, self._seed)
        slot = digest % self._slots
        want = digest >> _FINGERPRINT_SHIFT | _TAG_DISTANCE_ONE
        while want <= _TAG_MAX:
            cell = cells[slot]
            tag = cell >> _TAG_SHIFT
            if tag == want:
                place = cell & _PLACE
                if place & _MAIN_BIT:
                    at = self._main_at + (place ^ _MAIN_BIT) % self._main_bytes
                else:
                    at = self._small_at + place % self._small_bytes
                checksum, size = _header(self._store, at)
                size ^= _LIVE_HIGH
                if size > self._max_record:
                    return None
                record = self._store[at + 8 : at + size]
                if _xxh3(record, place) & _CHECKSUM != checksum or (
                    place & _POSITION < control[_MAIN_TAIL if place & _MAIN_BIT else _SMALL_TAIL]
                ):
                    return None
                end = _KEY_IN_BODY + len(key)
                word, expires, created = L.BODY.unpack_from(record)
                if record[_KEY_IN_BODY:end] == key and word & L.KEY_LENGTH == len(key):
                    return self._found(slot, record, word, expires, created, end)
            elif tag < want & _TAG_DISTANCE:
                break
            want += _TAG_DISTANCE_ONE
            slot += 1
        return MISS

    def _found(
        self, slot: int, record: bytes, word: int, expires: int, created: int, end: int
    ) -> _Place | Outcome:
        extra = None
        if word & L.FLAG_EXTRA:
            extra = unpack_extra(record, end)
            end += int.from_bytes(record[end : end + 2], "little")
            if extra.tags and any_cleared(extra.tags, word >> 16, self._tags):
                return MISS
        if created < self._control[L.W_EXPIRED]:
            expires = min(expires, self._control[L.W_EXPIRED_AT])
        shared = bool(word & L.FLAG_SHARED)
        return _Place(slot, record, end, word >> 16, expires, created, shared, extra)

    def _sample(self, began: int, size: int, digest: int, hits: int) -> None:
        """Record one hit's duration and key in the page, for all the hits that are not sampled."""
        page = self.page
        took = _clock(_BOOT_CLOCK) - began
        # The last digits of a clock in nanoseconds are chance enough.
        self._sample_at = hits + 1 + (began >> 3) % _GAPS
        self._note_hit(digest)
        page[L.P_LATENCY + min(took.bit_length(), L.LATENCY_BUCKETS - 1)] += 1
        page[L.P_SAMPLES] += 1
        page[L.P_HIT_BYTES] += size * L.SAMPLE_EVERY
        if began >= self._own.due:
            self._own.write(page, began)

    def _note_hit(self, digest: int) -> None:
        page = self.page
        head = page[L.P_HOT_HEAD]
        page[L.P_HOT + head % L.HOT_WORDS] = digest
        page[L.P_HOT_HEAD] = head + 1

    def _note_miss(self, key: bytes, digest: int, now: int, misses: int) -> None:
        """Tell the daemon of one miss what was asked for; of others it learns the number alone."""
        # By number and not by time: else the first miss after a pause would always be the one.
        often = now - self._missed < L.MISSED_EVERY_NS
        gap = min(2 * self._miss_gap, L.MOST_MISSED) if often else max(1, self._miss_gap // 2)
        self._miss_gap, self._missed = gap, now
        self._miss_at = misses + 1 + (now >> 3) % (2 * gap - 1)
        page = self.page
        head = page[L.P_MISSED_HEAD]
        at = 8 * (L.P_MISSED + head % L.MISSED_SLOTS * L.MISSED_WORDS)
        told = digest.to_bytes(8, "little") + len(key).to_bytes(8, "little")
        told += key[: L.MISSED_BYTES].ljust(L.MISSED_BYTES, b"\0")
        self._page_view[at : at + 8 * L.MISSED_WORDS] = _xxh3(told).to_bytes(8, "little") + told
        page[L.P_MISSED_HEAD] = head + 1

    def tell(self) -> None:
        """Write down in the page what the daemon may not see of this process, if it is time."""
        now = _clock(_BOOT_CLOCK)
        if now >= self._own.due:
            self._own.write(self.page, now)

    @property
    def asks(self) -> int:
        """Whether the daemon has a second level, in which what is not here may be."""
        return self._control[L.W_REMOTE]

    def alive(self) -> bool:
        """Whether the daemon's deadline is in the future."""
        return _clock(_BOOT_CLOCK) < self.deadline

    @property
    def deadline(self) -> int:
        """The boot clock in ns until which the daemon vouches for its store."""
        return self._control[self._alive]

    def close(self) -> None:
        """Unmap everything; no read may follow."""
        for view in (
            self._cells,
            self._tags,
            self._control,
            self.page,
            self._view,
            self._page_view,
        ):
            view.release()
        self._store.close()
        self._page_map.close()
        self._touches.close()
