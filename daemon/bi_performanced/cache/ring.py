"""An append-only log over a ring of bytes in the shared store."""

from __future__ import annotations

from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from bi_performance_wire import layout as L
from bi_performance_wire.extra import ExtraFormatError, extra_size, unpack_extra
from bi_performanced.cache.memory import Memory


class Record(NamedTuple):
    """A record at a ring's tail, or one that a scan came by.

    `place` is ring bit and logical position; `key` and `payload` are copies.
    """

    place: int
    size: int
    state: int
    sound: bool
    """Whether the checksum is right; not computed for what is dead."""
    sequence: int
    flags: int
    expires: int
    created: int
    key: bytes
    extra: bytes
    """The block between key and payload; empty when there is none."""
    payload: bytes


class Damaged(Exception):
    """A ring that cannot be walked: a length that no daemon wrote."""


class Ring:
    """One of the two rings. Positions are logical and only grow.

    Order of stores, on which readers and recovery rest: the tail is moved before the bytes
    behind it are overwritten, and a record's bytes are there before the head moves past them.
    """

    def __init__(self, memory: Memory, *, main: bool) -> None:
        self._data = memory.bytes
        self._words = memory.words
        self._tail_word = L.W_MAIN_TAIL if main else L.W_SMALL_TAIL
        self._head_word = L.W_MAIN_HEAD if main else L.W_SMALL_HEAD
        self.bit = L.MAIN_BIT if main else 0
        self.at = self._words[L.W_MAIN_AT if main else L.W_SMALL_AT]
        self.bytes = self._words[L.W_MAIN_BYTES if main else L.W_SMALL_BYTES]
        self.tail = self._words[self._tail_word]
        self.head = self._words[self._head_word]
        self.reserve = min(self.bytes >> 4, 1 << 18)
        """Bytes kept free beyond a record that is appended."""
        self.ahead = min(self.bytes >> 5, 1 << 16)
        """Bytes freed beyond what is wanted, so that not every record has to free its own."""
        self.low = self.reserve + (self.bytes >> 5 if main else 0)
        """With fewer bytes free than this the tail is moved on a little with each record."""

    def address(self, place: int) -> int:
        """Where in the file a record of this ring lies."""
        return self.at + (place & L.POSITION) % self.bytes

    def room(self) -> int:
        """Bytes that can be appended now as one record, the skip at the ring's end considered."""
        free = self.bytes - (self.head - self.tail)
        to_end = self.bytes - self.head % self.bytes
        if to_end >= free:
            return free
        return max(to_end, free - to_end)

    def fits(self, size: int) -> bool:
        free = self.bytes - (self.head - self.tail)
        to_end = self.bytes - self.head % self.bytes
        return size <= free if size <= to_end else to_end + size <= free

    def free(self) -> list[tuple[int, int]]:
        """Where in the file nothing lies that is still needed: offsets of begin and end."""
        head, tail = self.head % self.bytes, self.tail % self.bytes
        if self.head == self.tail:
            return [(self.at, self.at + self.bytes)]
        if head < tail:
            return [(self.at + head, self.at + tail)]
        return [(self.at + head, self.at + self.bytes), (self.at, self.at + tail)]

    def append(self, body: bytes, size: int) -> int:
        """Write one record; the caller has made sure that it `fits`. Returns its place.

        `body` is everything from the key length on; `size` includes the header.
        """
        data = self._data
        head = self.head
        offset = head % self.bytes
        left = self.bytes - offset
        if size > left:
            if left >= L.HEADER_BYTES:
                at = self.at + offset
                data[at : at + 8] = L.HEADER.pack(0, left | L.PAD << 24)
            head += left
            offset = 0
        place = self.bit | head
        at = self.at + offset
        checksum = xxh3_64_intdigest(body, place) & L.CHECKSUM
        data[at : at + size] = L.HEADER.pack(checksum, size | L.LIVE_HIGH) + body
        self.head = head = head + size
        self._words[self._head_word] = head
        return place

    def mark_dead(self, place: int) -> None:
        """Store the state byte of a record: no reader and no recovery takes it from now on."""
        self._data[self.at + (place & L.POSITION) % self.bytes + L.STATE_AT] = L.DEAD

    def advance(self, tail: int) -> None:
        self.tail = tail
        self._words[self._tail_word] = tail

    def pass_dead(self, wanted: int) -> bool:
        """Advance the tail over what is dead until `wanted` bytes fit; whether it moved."""
        data, length = self._data, self.bytes
        start = tail = self.tail
        # Within one lap, so that the place need not be computed anew for each record.
        offset = tail % length
        enough = min(self.head, tail + wanted)
        while tail < enough and length - offset >= L.HEADER_BYTES:
            _, size_and_state = L.HEADER.unpack_from(data, self.at + offset)
            size = size_and_state & L.SIZE
            if size_and_state >> 24 != L.DEAD or not L.RECORD_OVERHEAD < size <= length - offset:
                break
            tail += size
            offset += size
        if tail == start:
            return False
        self.advance(tail)
        return True

    def peek(self, position: int) -> tuple[int, int]:
        """(size, state) of what lies at a position; the skip at the ring's end is a PAD."""
        offset = position % self.bytes
        left = self.bytes - offset
        if left < L.HEADER_BYTES:
            return left, L.PAD
        _, size_and_state = L.HEADER.unpack_from(self._data, self.at + offset)
        size = size_and_state & L.SIZE
        state = size_and_state >> 24
        if not 0 < size <= left or (state != L.PAD and size <= L.RECORD_OVERHEAD):
            raise Damaged(f"a record of {size} bytes where {left} are left")
        return size, state

    def load(self, position: int, size: int, state: int, *, verify: bool) -> Record:
        """Copy the record at a position out of the ring."""
        at = self.at + position % self.bytes
        place = self.bit | position
        checksum, _ = L.HEADER.unpack_from(self._data, at)
        body = self._data[at + L.HEADER_BYTES : at + size]
        sound = not verify or xxh3_64_intdigest(body, place) & L.CHECKSUM == checksum
        word, expires, created = L.BODY.unpack_from(body)
        end = value_at = L.KEY_IN_BODY + (word & L.KEY_LENGTH)
        if word & L.FLAG_EXTRA:
            try:
                value_at += extra_size(body, end)
                unpack_extra(body, end)
            except ExtraFormatError:
                sound = False
        return Record(
            place,
            size,
            state,
            sound and value_at <= len(body),
            word >> 16,
            word & L.FLAGS,
            expires,
            created,
            body[L.KEY_IN_BODY : end],
            body[end:value_at],
            body[value_at:],
        )

    def reset(self) -> None:
        """Drop everything: the ring is empty at its present head."""
        self.advance(self.head)
