"""The shared store: entries in two rings, written by the daemon alone, read in place by all.

Which entry leaves is `policy.py`'s to say: by S3-FIFO, or by LRU. With S3-FIFO new keys enter the
small ring; at its tail those used at least twice move to the main ring and the others leave,
remembered by the ghost; a key that the ghost remembers enters the main ring, whose tail gives used
entries another round. With LRU all enter the main ring, and what was used longest ago leaves from
wherever it lies.

Two things here are not in the paper on S3-FIFO, because the queues are logs: an entry that is
overwritten is appended anew to its own ring, and where a ring's bytes run out before a limit is
reached, a live entry at the tail is moved to the main ring's head instead of being evicted.

Nothing here awaits, locks or reads a clock: every call is a few microseconds on the loop, with
`now` on the boot clock in nanoseconds as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from bi_performance_wire import layout as L
from bi_performance_wire.extra import extra_size, unpack_extra
from bi_performanced.cache.departures import Departures
from bi_performanced.cache.ghost import Ghost, Returns
from bi_performanced.cache.index import NONE, Index
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.policy import Policy, Put
from bi_performanced.cache.ring import Damaged, Record, Ring
from bi_performanced.cache.shadows import FIRST_SHARE
from bi_performanced.cache.tags import TagTable

_EVICTED_AT_ONCE = 64
_MARKS = (
    L.W_EXPIRED_AT,
    L.W_EXPIRED,
    L.W_COHERENT_UNTIL,
    L.W_PARTITION,
    L.W_OUTAGE,
    L.W_REMOTE,
)
"""Words of the control page that go with the entries to another store."""


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


class Store:
    """Entries under two limits: `max_entries`, and `max_bytes` of whole records.

    Neither is exceeded once a call has returned. Takes over the memory; `close` releases it.
    """

    def __init__(self, memory: Memory, departures: Departures | None = None) -> None:
        self.memory = memory
        self.departures = departures or Departures()
        words = memory.words
        self.max_entries = words[L.W_MAX_ENTRIES]
        self.max_bytes = words[L.W_MAX_BYTES]
        self._data = memory.bytes
        self._view = memoryview(memory.bytes)
        self._seed = words[L.W_SEED]
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

    def get(self, key: bytes, now: int, *, stale: bool = False) -> Held | None:
        """A readable entry, with `stale` also one in its grace; else None."""
        digest = self.digest(key)
        slot = self.find(key, digest)
        if slot == NONE:
            return None
        at = self.address(self.index.cells[slot])
        size = L.HEADER.unpack_from(self._data, at)[1] & L.SIZE
        body = self._data[at + L.HEADER_BYTES : at + size]
        word, expires, created = L.BODY.unpack_from(body)
        end = value_at = L.KEY_IN_BODY + len(key)
        if word & L.FLAG_EXTRA:
            value_at += extra_size(body, end)
        extra = body[end:value_at]
        fresh_until, kept_until = self._times(word, expires, created, extra)
        if (kept_until if stale else fresh_until) <= now:
            return None
        if word & L.FLAG_SHARED and not self._known(word >> 16, now):
            return None
        if self.index.touch(slot) and not digest & self.policy.mask:
            self.policy.hits.append(digest)
        flags = word & L.FLAGS
        return Held(body[value_at:], fresh_until, kept_until, created, flags, extra, word >> 16)

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

    # ── changes

    def put(
        self,
        key: bytes,
        payload: bytes,
        *,
        expires: int,
        now: int,
        flags: int = 0,
        extra: bytes = b"",
        created: int | None = None,
    ) -> None:
        """Store an entry, superseding an older one of the key; readable when this returns.

        `extra` is a packed block or nothing, `created` (tenths of a second) is now when it is not
        given. Raises TooLarge, and nothing has changed then.
        """
        size = L.RECORD_OVERHEAD + len(key) + len(extra) + len(payload)
        if size > self.max_record:
            raise TooLarge(self.max_record - L.RECORD_OVERHEAD - len(key) - len(extra))
        digest: int = xxh3_64_intdigest(key, self._seed)
        slot = self.find(key, digest)
        if self._over(size, slot):
            self._fill_up()
            while self._over(size, slot):
                self._evict(now)
                if slot != NONE:
                    slot = self.find(key, digest)
        cells = self.index.cells
        counters = self.counters
        if slot == NONE:
            counters.inserts += 1
            counters.returns += self._returns.arrived(digest)
            departures = self.departures
            if departures.expired:
                departures.arrive(digest, now // L.CREATED_UNIT_NS)
            ring = self._ring_for_new(digest)
        else:
            cell = cells[slot]
            ring = self.main if cell & L.MAIN_BIT else self.small
            at = ring.at + (cell & L.POSITION) % ring.bytes
            if L.EXPIRY.unpack_from(self._data, at + L.EXPIRY_AT)[0] <= now:
                counters.inserts += 1
                _, _, created = L.BODY.unpack_from(self._data, at + L.HEADER_BYTES)
                self.departures.refill(now // L.CREATED_UNIT_NS - created)
        if size > self.small.bytes >> 3:
            ring = self.main
        if not ring.fits(size + ring.reserve):
            self._reclaim(ring, size, now)
            if slot != NONE:
                slot = self.find(key, digest)
        self._sequence = sequence = self._sequence + 1
        policy = self.policy
        if not sequence & policy.pace:
            self.index.tick = policy.turn(sequence, self.entries, self.max_entries, self.max_bytes)
        if not digest & policy.mask:
            policy.puts.append(Put(digest, size, expires, now, slot == NONE))
        if created is None:
            created = now // L.CREATED_UNIT_NS
            if created < (expired := self.memory.words[L.W_EXPIRED]):
                # Stored in the tenth of a second in which everything was made stale.
                created = expired
        word = len(key) | flags | sequence << 16
        if extra:
            word |= L.FLAG_EXTRA
            body = L.BODY.pack(word, expires, created) + key + extra + payload
        else:
            body = L.BODY.pack(word, expires, created) + key + payload
        place = ring.append(body, size)
        if slot != NONE:
            cell = cells[slot]
            cells[slot] = cell & ~L.PLACE | place
            self.index.touch(slot)
            self._forget(cell & L.PLACE)
        else:
            self._insert(digest, place, self.index.tick)
        if ring.bit:
            self.main_entries += 1
            self.main_bytes += size
        else:
            self.small_entries += 1
            self.small_bytes += size
        counters.sets += 1
        counters.bytes_stored += size
        counters.bytes_appended += size
        if self.journal is not None:
            self.journal.add(key)

    def delete(self, key: bytes, now: int) -> bool:
        """Remove a key; whether a readable entry was there. Unreadable when this returns."""
        digest = self.digest(key)
        slot = self.find(key, digest)
        if self.journal is not None:
            self.journal.add(key)
        if slot == NONE:
            return False
        self.policy.removed(digest)
        _, fresh_until, _, _, _ = self._body(self.index.cells[slot] & L.PLACE)
        self.remove(slot)
        self.counters.deletes += 1
        return fresh_until > now

    def expire(self, key: bytes, now: int) -> bool:
        """Make an entry stale: it may be served in its grace only. Whether it was fresh."""
        held = self.get(key, now)
        if held is None:
            return False
        if not held.extra:
            return self.delete(key, now)
        self.put(
            key,
            held.payload,
            expires=now,
            now=now,
            flags=held.flags & ~L.FLAG_EXTRA,
            extra=held.extra,
            created=held.created,
        )
        return True

    def expire_all(self, now: int) -> int:
        """Make every entry stale in one step; how many there are."""
        words = self.memory.words
        # Ahead of the last time's mark too: entries were stored in this tenth of a second since.
        mark = max(now // L.CREATED_UNIT_NS, words[L.W_EXPIRED]) + 1
        words[L.W_EXPIRED_AT] = now
        words[L.W_EXPIRED] = mark
        return self.entries

    def clear_tags(self, tags: Iterable[bytes]) -> None:
        """Every entry that has one of the tags is gone when this returns."""
        for tag in tags:
            self.tags.clear(tag, self._sequence)

    def remove(self, slot: int) -> None:
        """Take the entry of a slot out: marked dead first, so that a restart cannot revive it."""
        place = self.index.cells[slot] & L.PLACE
        self._forget(place)
        self.index.remove(slot)

    def clear(self) -> int:
        """Drop every entry; how many there were."""
        count = self.entries
        # First the word that recovery looks at, then what readers look at.
        self.memory.words[L.W_CLEARED] = self._sequence
        self.index.wipe()
        self.small.reset()
        self.main.reset()
        self.ghost.clear()
        self._returns.clear()
        self.policy.clear()
        self.small_entries = self.main_entries = 0
        self.small_bytes = self.main_bytes = 0
        self.counters.deletes += count
        return count

    def shrink(self, max_entries: int, max_bytes: int, now: int) -> Iterator[None]:
        """Let the least useful entries leave until these limits hold, yielding now and then.

        The store goes by them from now on.
        """
        self.max_entries = min(self.max_entries, max_entries)
        self.max_bytes = min(self.max_bytes, max_bytes)
        while self.live_bytes > self.max_bytes or self.entries > self.max_entries:
            self._fill_up()
            for _ in range(_EVICTED_AT_ONCE):
                if self.live_bytes > self.max_bytes or self.entries > self.max_entries:
                    self._evict(now)
            yield

    def punch(self) -> None:
        """Give the memory of what is not in use back; nothing may be put until it is refilled."""
        for ring in (self.small, self.main):
            for start, end in ring.free():
                self.memory.punch(start, end)

    # ── sweeps

    @property
    def sequence(self) -> int:
        """The sequence of the entry stored last."""
        return self._sequence

    def sweep(self, slot: int, budget: int) -> tuple[list[Found], int]:
        """The entries from a slot on, about `budget` slots' worth, and where to go on.

        A sweep begins at slot 0 and is over when the second result is 0. It stops only at an
        empty slot: entries behind one never move before it, so a sweep in slices misses no entry
        that was there when it began, whatever changes in between.
        """
        data = self._data
        cells = self.index.cells
        expired = self.memory.words[L.W_EXPIRED]
        found: list[Found] = []
        slots = len(cells)
        enough = slot + budget
        while slot < slots:
            cell = cells[slot]
            if cell:
                place = cell & L.PLACE
                at = self.address(place) + L.HEADER_BYTES
                word, expires, created = L.BODY.unpack_from(data, at)
                at += L.KEY_IN_BODY
                end = at + (word & L.KEY_LENGTH)
                extra = b""
                fresh = kept = expires
                if word & L.FLAG_EXTRA:
                    extra = data[end : end + L.WORD.unpack_from(data, end)[0]]
                if extra or created < expired:
                    fresh, kept = self._times(word, expires, created, extra)
                found.append(
                    Found(
                        slot,
                        place,
                        word >> 16,
                        expires,
                        fresh,
                        kept,
                        data[at:end],
                        extra,
                        bool(word & L.FLAG_SHARED),
                    )
                )
            elif slot >= enough:
                return found, slot
            slot += 1
        return found, 0

    def drop_found(self, found: Found) -> bool:
        """Remove an entry that a sweep saw, if it is still that one."""
        slot = self.index.find_place(self.digest(found.key), found.place)
        if slot == NONE:
            return False
        if self.journal is not None:
            self.journal.add(found.key)
        self.remove(slot)
        return True

    def drop_expired(self, found: Found) -> bool:
        """Remove an entry that a sweep saw and whose time is over, if it is still that one."""
        digest = self.digest(found.key)
        slot = self.index.find_place(digest, found.place)
        if slot == NONE:
            return False
        if self.journal is not None:
            self.journal.add(found.key)
        size = self._size(found.place)
        word, _, _, created, key = self._body(found.place)
        self.counters.expirations += 1
        self.departures.expire(digest, created)
        self._part(found.place, word, key, size, self.index.frequency(slot))
        self.remove(slot)
        return True

    def in_order(self, ring: Ring, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(position, size, state) of what lies between two positions of a ring."""
        position = max(start, ring.tail)
        while position < stop:
            size, state = ring.peek(position)
            yield position, size, state
            position += size

    def used(self, prefix: bytes, most: int) -> tuple[int, int]:
        """Of the entries whose key begins so: how many, and how many of them were read.

        Looks at `most` entries at the most, from a place in the index that the prefix decides.
        """
        start = self.digest(prefix) % self.index.slots
        found, _ = self.sweep(start, most)
        if len(found) < most:
            found += self.sweep(0, min(start, most))[0]
        count = read = 0
        for entry in found:
            if entry.key.startswith(prefix):
                count += 1
                # Entries come there unread before the store is full the first time, and by LRU.
                promoted = (
                    entry.place & L.MAIN_BIT
                    and self.policy.share is not None
                    and entry.sequence > max(self._full_from, self.policy.direct_until)
                )
                read += bool(promoted) or self.index.frequency(entry.slot) > 0
        return count, read

    # ── for recovery and copies

    def is_over(self, record: Record, now: int) -> bool:
        """Whether a record may not be served any more, not even stale."""
        word = record.flags | record.sequence << 16
        return self._times(word, record.expires, record.created, record.extra)[1] <= now

    def take_over_marks(self, source: Store) -> None:
        """Let what was cleared by tag, or made stale, where these entries come from, be so here."""
        source.tags.copy_to(self.tags)
        for word in _MARKS:
            self.memory.words[word] = source.memory.words[word]

    def follow(self, source: Store) -> None:
        """Go by what is known of the same entries where they come from."""
        self.index.tick = self.memory.words[L.W_TICK] = source.index.tick
        self.policy.follow(source.policy)

    def set_sequence(self, sequence: int, *, uses_known_from: int) -> None:
        """The next entry's sequence is the one after this; of those up to the other one it is
        not known whether they were read."""
        self._sequence = sequence
        self.uses_known_from = uses_known_from

    def sequence_at(self, slot: int) -> int:
        place = self.index.cells[slot]
        word, _, _ = L.BODY.unpack_from(self._data, self.address(place) + L.HEADER_BYTES)
        return int(word) >> 16

    def admit(self, digest: int, place: int, size: int, touched: int) -> None:
        """Take a record that already lies in a ring, of a key that has no slot, into the index."""
        self._insert(digest, place, touched)
        self._account(place, size, 1)

    def restore(self, record: Record, ring: Ring, touched: int, now: int) -> None:
        """Append a record of another store, superseding what is here of its key.

        An entry that is over the limits or too large here is left out.
        """
        digest = self.digest(record.key)
        slot = self.find(record.key, digest)
        if slot != NONE:
            self.remove(slot)
        if record.size > self.max_record:
            return
        while self._over(record.size, NONE):
            self._evict(now)
        if record.size > self.small.bytes >> 3:
            ring = self.main
        self._reclaim(ring, record.size, now)
        body = (
            L.BODY.pack(
                len(record.key) | record.flags | record.sequence << 16,
                record.expires,
                record.created,
            )
            + record.key
            + record.extra
            + record.payload
        )
        self._sequence = max(self._sequence, record.sequence)
        self.admit(digest, ring.append(body, record.size), record.size, touched)

    # ── what leaves

    def _over(self, size: int, slot: int) -> bool:
        """Whether the limits leave no room for a record, one at `slot` being superseded."""
        live = self.small_bytes + self.main_bytes + size
        if slot != NONE:
            # One that is superseded by one of its size changes nothing; most are.
            return (
                live > self.max_bytes and live - self._size(self.index.cells[slot]) > self.max_bytes
            )
        return live > self.max_bytes or self.small_entries + self.main_entries >= self.max_entries

    def _size(self, place: int) -> int:
        size: int = L.HEADER.unpack_from(self._data, self.address(place))[1] & L.SIZE
        return size

    def _ring_for_new(self, digest: int) -> Ring:
        if self.ghost.take(digest) or self.policy.share is None:
            return self.main
        if not self._full_once and self._small_is_over(FIRST_SHARE):
            # Nothing has been evicted yet, so nothing is known of what is worth keeping.
            return self.main
        return self.small

    def _small_is_over(self, share: float) -> bool:
        return (
            self.small_entries > self.max_entries * share
            or self.small_bytes > self.max_bytes * share
        )

    def _fill_up(self) -> None:
        """From now on entries have to leave for others."""
        if not self._full_once:
            self._full_once, self._full_from = True, self._sequence
            self.policy.filled(self.entries, self.max_entries, self.max_bytes)

    def _evict(self, now: int) -> None:
        """Make one entry leave."""
        share = self.policy.share
        if share is None:
            if not self._by_age:
                self._by_age = True
                self.index.begin_search()
            slot = self.index.oldest()
            if slot != NONE:
                self._evict_slot(slot, now)
                return
            share = 0.0
        else:
            self._by_age = False
        from_small = self.small_entries and (not self.main_entries or self._small_is_over(share))
        if from_small and self._evict_from(self.small, self.policy.promote_at, now):
            return
        if not self._evict_from(self.main, 1, now):
            raise Damaged("the rings hold fewer entries than were counted")

    def _evict_slot(self, slot: int, now: int) -> None:
        """Make the entry of a slot leave; its record is passed later, by its ring's tail."""
        place = self.index.cells[slot] & L.PLACE
        word, _, kept_until, created, key = self._body(place)
        size = self._size(place)
        count = self.index.frequency(slot)
        self.remove(slot)
        self._leave(place, word, kept_until, created, key, size, count, now)

    def _evict_from(self, ring: Ring, keep_at: int, now: int) -> bool:
        """Pass the ring's tail until an entry left; False when the ring ran empty.

        Ends: a used entry comes round with a lower count, or leaves for the main ring.
        """
        index = self.index
        while ring.tail < ring.head:
            position = ring.tail
            size, state = ring.peek(position)
            if state != L.LIVE:
                ring.advance(position + size)
                continue
            place = ring.bit | position
            word, _, kept_until, created, key = self._body(place)
            digest = self.digest(key)
            slot = index.find_place(digest, place)
            if slot == NONE:
                ring.advance(position + size)
                continue
            count = index.frequency(slot)
            if kept_until > now and count >= keep_at:
                slot = self._carry(ring, position, size, slot, digest, key, now)
                if ring is self.small:
                    self.counters.promotions += 1
                    index.set_frequency(slot, 0)
                else:
                    index.set_frequency(slot, count - 1)
                continue
            self._account(place, size, -1)
            index.remove(slot)
            ring.advance(position + size)
            self._leave(place, word, kept_until, created, key, size, count, now)
            return True
        return False

    def _leave(
        self,
        place: int,
        word: int,
        kept_until: int,
        created: int,
        key: bytes,
        size: int,
        count: int,
        now: int,
    ) -> None:
        """Note down that an entry left, or that its time was over."""
        digest = self.digest(key)
        if kept_until <= now:
            self.counters.expirations += 1
            self.departures.expire(digest, created)
        else:
            self.counters.evictions += 1
            self._returns.evicted(digest)
            if not place & L.MAIN_BIT:
                self.ghost.add(digest)
        self._part(place, word, key, size, count)

    # ── mechanics

    def _part(self, place: int, word: int, key: bytes, size: int, count: int) -> None:
        """Tell of an entry that leaves by eviction or expiry, where it is known if it was read."""
        # In the main ring of S3-FIFO a count of 0 may be what is left of many uses, and of entries
        # that an earlier daemon stored the uses are not known.
        sequence = word >> 16
        policy = self.policy
        if sequence > self.uses_known_from and (
            not place & L.MAIN_BIT
            or not self._full_once
            or (policy.share is None and sequence > policy.direct_until)
        ):
            self.departures.leave(key, size, count == 0)

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
        self._account(place, size, -1)
        self._data[at + L.STATE_AT] = L.DEAD

    def _insert(self, digest: int, place: int, touched: int) -> None:
        lost = self.index.insert(digest, place, touched)
        if lost is not None:
            self._forget(lost)
            self.counters.conflicts += 1
            self.counters.evictions += 1

    def _reclaim(self, ring: Ring, size: int, now: int) -> None:
        """Advance a ring's tail until a record fits, with some room for the next ones.

        What is asked for is more than the record: with the ring's reserve a live entry at the
        tail is copied to the head before the tail passes it, so that readers find it all the time.
        """
        wanted = size + ring.reserve + ring.ahead
        while not ring.fits(wanted) and ring.tail < ring.head:
            if not ring.pass_dead(wanted):
                self._pass_tail(ring, now)

    def _pass_tail(self, ring: Ring, now: int) -> None:
        position = ring.tail
        size, state = ring.peek(position)
        if state == L.LIVE:
            place = ring.bit | position
            word, _, kept_until, created, key = self._body(place)
            digest = self.digest(key)
            slot = self.index.find_place(digest, place)
            if slot != NONE:
                if kept_until > now:
                    self.counters.moves += 1
                    self._carry(ring, position, size, slot, digest, key, now)
                    return
                self.counters.expirations += 1
                self.departures.expire(digest, created)
                self._part(place, word, key, size, self.index.frequency(slot))
                self._account(place, size, -1)
                self.index.remove(slot)
        ring.advance(position + size)

    def _carry(
        self, ring: Ring, position: int, size: int, slot: int, digest: int, key: bytes, now: int
    ) -> int:
        """Move the live entry at a ring's tail to the main ring's head, keeping its sequence.

        Returns the entry's slot.
        """
        main = self.main
        at = ring.address(position)
        body = self._data[at + L.HEADER_BYTES : at + size]
        old = ring.bit | position
        if not main.fits(size):
            if ring is main:
                # Its own bytes are what is missing: for this moment it is a miss.
                main.advance(position + size)
            while not main.fits(size):
                self._pass_tail(main, now)
            slot = self.index.find_place(digest, old)
        place = main.append(body, size)
        cells = self.index.cells
        cells[slot] = cells[slot] & ~L.PLACE | place
        if ring.tail == position:
            ring.advance(position + size)
        self._account(old, size, -1)
        self._account(place, size, 1)
        self.counters.bytes_appended += size
        if self.journal is not None:
            self.journal.add(key)
        return slot

    def close(self) -> None:
        """Release the mapping; the file stays."""
        self.index.release()
        self.tags.release()
        self._view.release()
        self.memory.close()


__all__ = ["Counters", "Damaged", "Found", "Held", "Store", "TooLarge"]
