"""The shared store: entries in two rings, written by the daemon alone, read in place by all.

`entries.py` has the records and the books of them, `eviction.py` what leaves for what comes.

Nothing here awaits, locks or reads a clock: every call is a few microseconds on the loop, with
`now` on the boot clock in nanoseconds as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_64_intdigest

from bi_performance_wire import layout as L
from bi_performance_wire.extra import extra_size
from bi_performanced.cache.entries import Counters, Found, Held, TooLarge
from bi_performanced.cache.eviction import Evicting
from bi_performanced.cache.index import NONE
from bi_performanced.cache.past import Why
from bi_performanced.cache.policy import Put
from bi_performanced.cache.ring import Damaged, Record, Ring

_MARKS = (
    L.W_EXPIRED_AT,
    L.W_EXPIRED,
    L.W_COHERENT_UNTIL,
    L.W_PARTITION,
    L.W_OUTAGE,
    L.W_REMOTE,
)
"""Words of the control page that go with the entries to another store."""


class Store(Evicting):
    """Entries under two limits: `max_entries`, and `max_bytes` of whole records.

    Neither is exceeded once a call has returned. Takes over the memory; `close` releases it.
    """

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

    def shared(self, key: bytes) -> int | None:
        """The sequence of a key's entry if that is shared, readable or not. Counts as no use."""
        slot = self.find(key, self.digest(key))
        if slot == NONE:
            return None
        at = self.address(self.index.cells[slot]) + L.HEADER_BYTES
        word: int = L.BODY.unpack_from(self._data, at)[0]
        return word >> 16 if word & L.FLAG_SHARED else None

    def payload(self, key: bytes) -> bytes | None:
        """A key's payload, readable or not. Counts as no use."""
        slot = self.find(key, self.digest(key))
        if slot == NONE:
            return None
        at = self.address(self.index.cells[slot])
        size = L.HEADER.unpack_from(self._data, at)[1] & L.SIZE
        body = self._data[at + L.HEADER_BYTES : at + size]
        end = L.KEY_IN_BODY + len(key)
        if L.BODY.unpack_from(body)[0] & L.FLAG_EXTRA:
            end += extra_size(body, end)
        return body[end:]

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
                _, _, before = L.BODY.unpack_from(self._data, at + L.HEADER_BYTES)
                self.departures.refill(now // L.CREATED_UNIT_NS - before)
        if size > self.small.bytes >> 3:
            ring = self.main
        if not ring.fits(size + ring.low):
            self._reclaim(ring, size, now)
            if slot != NONE:
                slot = self.find(key, digest)
        self._sequence = sequence = self._sequence + 1
        policy = self.policy
        if not sequence & policy.pace:
            self.index.tick = policy.turn(sequence, self.fullness)
            self.ghost.hold(self.entries)
        elif not sequence & policy.part:
            policy.gather()
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

    def delete(self, key: bytes, now: int, why: Why = Why.DELETED) -> bool:
        """Remove a key; whether a readable entry was there. Unreadable when this returns."""
        digest = self.digest(key)
        slot = self.find(key, digest)
        if self.journal is not None:
            self.journal.add(key)
        past, tenths = self.departures.past, now // L.CREATED_UNIT_NS
        if slot == NONE:
            if why is Why.DELETED:
                past.note(digest, why, tenths, 0, 0)
            return False
        self.policy.removed(digest)
        place = self.index.cells[slot] & L.PLACE
        _, fresh_until, _, created, _ = self._body(place)
        past.note(digest, why, tenths, created, self._size(place))
        self.remove(slot)
        self.counters.deletes += 1
        return fresh_until > now

    def expire(self, key: bytes, now: int) -> bool:
        """Make an entry stale: it may be served in its grace only. Whether it was fresh."""
        held = self.get(key, now)
        if held is None:
            return False
        if not held.extra:
            return self.delete(key, now, Why.STALE)
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

    # ── sweeps

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

    def drop_found(self, found: Found, now: int, clear: int = 0, why: Why = Why.CLEARED) -> bool:
        """Remove an entry that a sweep saw, if it is still that one.

        `clear` is the number under which `Past` knows what this is for.
        """
        digest = self.digest(found.key)
        slot = self.index.find_place(digest, found.place)
        if slot == NONE:
            return False
        if self.journal is not None:
            self.journal.add(found.key)
        created, size = self._body(found.place)[3], self._size(found.place)
        tenths = now // L.CREATED_UNIT_NS
        self.departures.past.note(digest, why, tenths, created, size, clear=clear)
        self.policy.removed(digest)
        self.remove(slot)
        return True

    def drop_expired(self, found: Found, now: int) -> bool:
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
        use = self._part(found.place, word, key, size, self.index.frequency(slot))
        why = Why.EXPIRED if found.kept_until else Why.TAG
        self.departures.past.note(digest, why, now // L.CREATED_UNIT_NS, created, size, use)
        self.remove(slot)
        return True

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

    def was_read(self, entry: Found) -> bool | None:
        """Whether an entry that a sweep saw was read since it was stored; None: not known."""
        if self.index.frequency(entry.slot):
            return True
        if entry.sequence <= self.uses_known_from or self.uses_fade:
            return None
        if not entry.place & L.MAIN_BIT or not self._full_once:
            return False
        # What was promoted had been read, and what has come round once may have been.
        direct = self.policy.share is None and entry.sequence > self.policy.direct_until
        return False if direct else None

    # ── for recovery and copies

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

    def bytes_of(self, keys: Iterable[bytes]) -> int:
        """Bytes of the records of some keys."""
        total = 0
        for key in keys:
            slot = self.find(key, self.digest(key))
            if slot != NONE:
                total += self._size(self.index.cells[slot])
        return total

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


__all__ = ["Counters", "Damaged", "Found", "Held", "Store", "TooLarge"]
