"""What the shared store holds: records in two rings, found by the index, and the books of them.

Which of them leaves is `eviction.py`'s, and what users of the store call is `store.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from bi_performance_wire import layout as L
from bi_performance_wire.extra import unpack_extra
from bi_performanced.cache.departures import Departures
from bi_performanced.cache.ghost import Ghost, Returns
from bi_performanced.cache.index import NONE, Index
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.past import Why
from bi_performanced.cache.policy import Fullness, Policy
from bi_performanced.cache.ring import Record, Ring
from bi_performanced.cache.tags import TagTable


class TooLarge(ValueError):
    """The record would not fit: `limit` is the largest payload in bytes for this key."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"larger than {limit} bytes")
        self.limit = limit


@dataclass
class Counters:
    """What happened to the store since it was opened."""

    sets: int = 0
    deletes: int = 0
    evictions: int = 0
    expirations: int = 0
    promotions: int = 0
    moves: int = 0
    """Live entries copied because their ring's bytes ran out."""
    inserts: int = 0
    """Sets of keys that had no readable entry."""
    returns: int = 0
    """Inserts of keys that were evicted lately: a larger store would have had them."""
    conflicts: int = 0
    """Entries that left because their neighbourhood of the index was full."""
    bytes_stored: int = 0
    bytes_appended: int = 0


class Found(NamedTuple):
    """An entry as a sweep sees it; times on the boot clock in ns."""

    slot: int
    place: int
    sequence: int
    expires: int
    """What was said when it was stored."""
    fresh_until: int
    """0 for one whose tag was cleared."""
    kept_until: int
    """As `fresh_until`, and beyond it as long as the entry may be served stale."""
    key: bytes
    extra: bytes
    shared: bool


class Held(NamedTuple):
    """An entry that may be served; times on the boot clock, in ns, but creation in tenths of a
    second."""

    payload: bytes
    fresh_until: int
    kept_until: int
    created: int
    flags: int
    extra: bytes
    sequence: int


class Entries:
    """Records by key, and how many and how large they are. Takes over the memory."""

    def __init__(self, memory: Memory, departures: Departures | None = None) -> None:
        self.memory = memory
        self.departures = departures or Departures()
        words = memory.words
        self.max_entries = words[L.W_MAX_ENTRIES]
        self.max_bytes = words[L.W_MAX_BYTES]
        self._data = memory.bytes
        self._view = memoryview(memory.bytes)
        self._seed = words[L.W_SEED]
        self.departures.past.store(self._seed)
        self.max_record = words[L.W_MAX_RECORD]
        self.index = Index(
            self._view, words[L.W_SLOTS], words[L.W_INDEX_AT], words[L.W_FREQUENCY_AT]
        )
        self.small = Ring(memory, main=False)
        self.main = Ring(memory, main=True)
        self.tags = TagTable(memory)
        self.ghost = Ghost(self.max_entries)
        self._returns = Returns(self.max_entries)
        self.policy = Policy(words, self.max_entries)
        self.index.tick = words[L.W_TICK]
        self.counters = Counters()
        self.small_entries = self.main_entries = 0
        self.small_bytes = self.main_bytes = 0
        self._by_age = False
        """Whether the entry that left last was the oldest of all."""
        self.uses_fade = False
        """Whether an entry that was read may look like one that never was."""
        self._full_once = False
        self._full_from = 0
        """The sequence at which entries had to leave for the first time."""
        self._sequence = self.uses_known_from = words[L.W_CLEARED]
        self.journal: set[bytes] | None = None
        """Keys changed while the entries are being copied to another store."""

    # ── what is in it

    @property
    def entries(self) -> int:
        return self.small_entries + self.main_entries

    @property
    def live_bytes(self) -> int:
        return self.small_bytes + self.main_bytes

    @property
    def sequence(self) -> int:
        """The sequence of the entry stored last."""
        return self._sequence

    @property
    def fullness(self) -> Fullness:
        return Fullness(self.entries, self.max_entries, self.live_bytes, self.max_bytes)

    def digest(self, key: bytes) -> int:
        found: int = xxh3_64_intdigest(key, self._seed)
        return found

    def address(self, place: int) -> int:
        return (self.main if place & L.MAIN_BIT else self.small).address(place)

    def find(self, key: bytes, digest: int) -> int:
        """The slot of a key, or NONE."""
        data = self._data
        cells = self.index.cells
        slot = digest % self.index.slots
        want = digest >> L.FINGERPRINT_SHIFT | L.TAG_DISTANCE_ONE
        length = len(key)
        while want <= L.TAG_MAX:
            cell = cells[slot]
            tag = cell >> L.TAG_SHIFT
            if tag == want:
                ring = self.main if cell & L.MAIN_BIT else self.small
                at = ring.at + (cell & L.POSITION) % ring.bytes + L.KEY_AT
                # The length is within the key's own bounds: what follows the key is compared too.
                if (
                    data[at : at + length] == key
                    and L.WORD.unpack_from(data, at - L.KEY_IN_BODY)[0] & L.KEY_LENGTH == length
                ):
                    return slot
            elif tag < want & L.TAG_DISTANCE:
                return NONE
            want += L.TAG_DISTANCE_ONE
            slot += 1
        return NONE

    def key_of(self, digest: int) -> bytes | None:
        """The key with this hash, when it has an entry."""
        cells = self.index.cells
        slot = digest % self.index.slots
        want = digest >> L.FINGERPRINT_SHIFT | L.TAG_DISTANCE_ONE
        while want <= L.TAG_MAX:
            tag = cells[slot] >> L.TAG_SHIFT
            if tag == want:
                at = self.address(cells[slot] & L.PLACE) + L.KEY_AT
                length = L.WORD.unpack_from(self._data, at - L.KEY_IN_BODY)[0] & L.KEY_LENGTH
                key = self._data[at : at + length]
                if xxh3_64_intdigest(key, self._seed) == digest:
                    return key
            elif tag < want & L.TAG_DISTANCE:
                return None
            want += L.TAG_DISTANCE_ONE
            slot += 1
        return None

    def _known(self, sequence: int, now: int) -> bool:
        """Whether a shared entry may be served by what is known of the other hosts."""
        words = self.memory.words
        until = words[L.W_COHERENT_UNTIL] + words[L.W_PARTITION]
        return now < until or sequence > words[L.W_OUTAGE]

    def _times(self, word: int, expires: int, created: int, extra: bytes) -> tuple[int, int]:
        """Until when an entry is fresh, and until when it may be served at all."""
        words = self.memory.words
        if created < words[L.W_EXPIRED]:
            expires = min(expires, words[L.W_EXPIRED_AT])
        if not word & L.FLAG_EXTRA:
            return expires, expires
        said = unpack_extra(extra)
        if said.tags and self.tags.cleared(said.tags, word >> 16):
            return 0, 0
        return expires, expires + said.grace * L.CREATED_UNIT_NS

    def is_over(self, record: Record, now: int) -> bool:
        """Whether a record may not be served any more, not even stale."""
        word = record.flags | record.sequence << 16
        return self._times(word, record.expires, record.created, record.extra)[1] <= now

    def _size(self, place: int) -> int:
        size: int = L.HEADER.unpack_from(self._data, self.address(place))[1] & L.SIZE
        return size

    def _body(self, place: int) -> tuple[int, int, int, int, bytes]:
        """A record's first word (key length, flags, sequence), until when it is fresh and may be
        served at all, creation and key."""
        data = self._data
        at = self.address(place) + L.HEADER_BYTES
        word, expires, created = L.BODY.unpack_from(data, at)
        at += L.KEY_IN_BODY
        end = at + (word & L.KEY_LENGTH)
        kept = expires
        if word & L.FLAG_EXTRA or created < self.memory.words[L.W_EXPIRED]:
            extra = b""
            if word & L.FLAG_EXTRA:
                extra = data[end : end + L.WORD.unpack_from(data, end)[0]]
            expires, kept = self._times(word, expires, created, extra)
        return word, expires, kept, created, data[at:end]

    def times_at(self, slot: int, now: int) -> tuple[int, int, bool]:
        """Until when the entry of a slot is fresh, and until when it may be served at all; and
        whether what is known of the other hosts lets it be served."""
        word, fresh_until, kept_until, _, _ = self._body(self.index.cells[slot] & L.PLACE)
        return (
            fresh_until,
            kept_until,
            not word & L.FLAG_SHARED or self._known(word >> 16, now),
        )

    def is_at(self, found: Found) -> bool:
        """Whether an entry that a sweep saw is still where it was."""
        return self.index.cells[found.slot] & L.PLACE == found.place

    def size_and_creation(self, place: int) -> tuple[int, int]:
        """Bytes of the record at a place, and when it was stored, in tenths of a second."""
        at = self.address(place)
        size = L.HEADER.unpack_from(self._data, at)[1] & L.SIZE
        return size, L.BODY.unpack_from(self._data, at + L.HEADER_BYTES)[2]

    def sequence_at(self, slot: int) -> int:
        place = self.index.cells[slot]
        word, _, _ = L.BODY.unpack_from(self._data, self.address(place) + L.HEADER_BYTES)
        return int(word) >> 16

    def in_order(self, ring: Ring, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(position, size, state) of what lies between two positions of a ring."""
        position = max(start, ring.tail)
        while position < stop:
            size, state = ring.peek(position)
            yield position, size, state
            position += size

    # ── what changes it

    def remove(self, slot: int) -> None:
        """Take the entry of a slot out: marked dead first, so that a restart cannot revive it."""
        place = self.index.cells[slot] & L.PLACE
        self._forget(place)
        self.index.remove(slot)

    def admit(self, digest: int, place: int, size: int, touched: int) -> None:
        """Take a record that already lies in a ring, of a key that has no slot, into the index."""
        self._insert(digest, place, touched)
        self._came(place, size)

    def _came(self, place: int, size: int) -> None:
        """Put an entry on the books."""
        self._account(place, size, 1)

    def _gone(self, place: int, size: int) -> None:
        """Take an entry off the books; its record can still be read."""
        if place & L.MAIN_BIT:
            self.main_entries -= 1
            self.main_bytes -= size
        else:
            self.small_entries -= 1
            self.small_bytes -= size

    def _account(self, place: int, size: int, sign: int) -> None:
        if place & L.MAIN_BIT:
            self.main_entries += sign
            self.main_bytes += sign * size
        else:
            self.small_entries += sign
            self.small_bytes += sign * size

    def _forget(self, place: int) -> None:
        """Mark a record dead and take it off the books; its slot is the caller's."""
        ring = self.main if place & L.MAIN_BIT else self.small
        at = ring.at + (place & L.POSITION) % ring.bytes
        size = L.HEADER.unpack_from(self._data, at)[1] & L.SIZE
        self._gone(place, size)
        self._data[at + L.STATE_AT] = L.DEAD

    def _insert(self, digest: int, place: int, touched: int) -> None:
        lost = self.index.insert(digest, place, touched)
        if lost is not None:
            _, _, _, created, key = self._body(lost)
            # When that was is not known here.
            self.departures.past.note(self.digest(key), Why.CROWDED, 0, created, self._size(lost))
            self._forget(lost)
            self.counters.conflicts += 1
            self.counters.evictions += 1

    def close(self) -> None:
        """Release the mapping; the file stays."""
        self.index.release()
        self.tags.release()
        self._view.release()
        self.memory.close()
