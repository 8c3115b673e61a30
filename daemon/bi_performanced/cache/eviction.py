"""Which entries of the shared store leave, and how its rings' tails move.

By S3-FIFO new keys enter the small ring; at its tail those used at least twice move to the main
ring and the others leave, remembered by the ghost; a key that the ghost remembers enters the main
ring, whose tail gives used entries another round. By LRU all enter the main ring, and what was used
longest ago leaves from wherever it lies. `policy.py` says which of the two it is.

Two things here are not in the paper on S3-FIFO, because the queues are logs: an entry that is
overwritten is appended anew to its own ring, and where a ring's bytes run out before a limit is
reached, a live entry at the tail is moved to the main ring's head instead of being evicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bi_performance_wire import layout as L
from bi_performanced.cache.entries import Entries
from bi_performanced.cache.index import NONE
from bi_performanced.cache.past import Use, Why
from bi_performanced.cache.ring import Damaged, Ring
from bi_performanced.cache.shadows import FIRST_SHARE

AT_ONCE: Final = 64
"""Entries that leave, or that a tail passes, between two looks at the clock."""
MOST_CARRIED: Final = 64
"""Used entries that one eviction passes: then the one of them that was used least leaves."""
MOST_TIDIED: Final = 64
"""Live entries that a record that comes moves out of the way of those to come."""
MOST_DEAD: Final = 4
"""And stretches of dead ones that it has the tail pass."""
TIDIED: Final = 32
"""And their bytes, as a multiple of the record's own."""
MANY: Final = 10_000
"""Entries from which on going over all of them is too long for one step."""
MOST_EVICTED: Final = 500
"""Entries that may have to leave at once for a single one."""


class Evicting(Entries):
    """Entries that are kept within the limits by letting some of them leave."""

    def _over(self, size: int, slot: int) -> bool:
        """Whether the limits leave no room for a record, one at `slot` being superseded."""
        live = self.small_bytes + self.main_bytes + size
        if slot != NONE:
            # One that is superseded by one of its size changes nothing; most are.
            return (
                live > self.max_bytes and live - self._size(self.index.cells[slot]) > self.max_bytes
            )
        return live > self.max_bytes or self.small_entries + self.main_entries >= self.max_entries

    def shrink(self, max_entries: int, max_bytes: int, now: int) -> Iterator[None]:
        """Let the least useful entries leave until these limits hold, yielding now and then.

        The store goes by them from now on.
        """
        self.max_entries = min(self.max_entries, max_entries)
        self.max_bytes = min(self.max_bytes, max_bytes)
        while self.live_bytes > self.max_bytes or self.entries > self.max_entries:
            self._fill_up()
            for _ in range(AT_ONCE):
                if self.live_bytes > self.max_bytes or self.entries > self.max_entries:
                    self._evict(now)
            yield

    def tight(self) -> bool:
        """Whether the main ring's tail should be moved on, with nobody waiting for it."""
        main = self.main
        return main.bytes - main.head + main.tail < main.low and self.entries >= MANY

    def cramped(self, size: int) -> bool:
        """Whether so much has to leave or to move for a record that `make_room` should do it."""
        entries = self.small_entries + self.main_entries
        if entries < MANY:
            return False
        live = self.small_bytes + self.main_bytes
        return live + size - self.max_bytes > MOST_EVICTED * live // entries or self._lacks(
            self.main, size
        )

    def _lacks(self, ring: Ring, size: int) -> bool:
        """Whether the ring's tail has to move for a record, by whatever it takes.

        Beyond the record only bytes are looked at, not whether those would fit at the ring's end.
        """
        free = ring.bytes - ring.head + ring.tail
        return not ring.fits(size) or free < size + ring.reserve // 2

    def make_room(self, size: int, now: int) -> Iterator[None]:
        """Let entries leave, and the main ring's tail move, until a record fits with room to
        spare, yielding now and then."""
        while self._over(size, NONE) and self.entries:
            self._fill_up()
            for _ in range(AT_ONCE):
                if self.entries and self._over(size, NONE):
                    self._evict(now)
            yield
        main = self.main
        wanted, once_round = size + main.low, main.tail + main.bytes
        while not main.fits(wanted) and main.tail < min(main.head, once_round):
            for _ in range(AT_ONCE):
                if main.tail == main.head or main.pass_dead(main.ahead):
                    # Hundreds of records.
                    break
                self._pass_tail(main, now)
            yield

    def punch(self) -> None:
        """Give the memory of what is not in use back; nothing may be put until it is refilled."""
        for ring in (self.small, self.main):
            for start, end in ring.free():
                self.memory.punch(start, end)

    # ── what leaves

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
            self.policy.filled(self.fullness)

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

        Ends: a used entry comes round with a lower count, or leaves for the main ring, and of
        MOST_CARRIED in a row the one that was used least leaves.
        """
        index = self.index
        carried = 0
        least = L.TOUCH_COUNT + 1
        least_used = 0, 0
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
                if carried == MOST_CARRIED:
                    slot = index.find_place(*least_used)
                    if slot != NONE:
                        self._evict_slot(slot, now)
                        return True
                carried += 1
                slot = self._carry(ring, position, size, slot, digest, key, now)
                if count < least:
                    least = count
                    least_used = digest, index.cells[slot] & L.PLACE
                if ring is self.small:
                    self.counters.promotions += 1
                    index.set_frequency(slot, 0)
                else:
                    index.set_frequency(slot, count - 1)
                continue
            self._gone(place, size)
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
            why = Why.EXPIRED if kept_until else Why.TAG
        else:
            self.counters.evictions += 1
            self._returns.evicted(digest)
            if not place & L.MAIN_BIT:
                self.ghost.add(digest)
            why = Why.EVICTED
        use = self._part(place, word, key, size, count, why is Why.EVICTED)
        self.departures.past.note(digest, why, now // L.CREATED_UNIT_NS, created, size, use)

    def _part(
        self, place: int, word: int, key: bytes, size: int, count: int, evicted: bool = False
    ) -> Use:
        """Tell of an entry that leaves by eviction or expiry, where it is known if it was read."""
        # In the main ring of S3-FIFO a count of 0 may be what is left of many uses, and of entries
        # that an earlier daemon stored the uses are not known.
        sequence = word >> 16
        policy = self.policy
        known = sequence > self.uses_known_from and not self.uses_fade
        if known and (
            not place & L.MAIN_BIT
            or not self._full_once
            or (policy.share is None and sequence > policy.direct_until)
        ):
            self.departures.leave(key, size, count == 0, evicted)
            return Use.READ if count else Use.UNREAD
        return Use.UNKNOWN

    # ── how tails move

    def _reclaim(self, ring: Ring, size: int, now: int) -> None:
        """Advance a ring's tail until a record fits, with some room for the next ones.

        What is asked for is more than the record: with the ring's reserve a live entry at the
        tail is copied to the head before the tail passes it, so that readers find it all the time.
        """
        if ring.bit:
            self._tidy(size, now)
            if not self._lacks(ring, size):
                return
        wanted = size + ring.reserve + ring.ahead
        passed = 0
        while not ring.fits(wanted) and ring.tail < ring.head:
            if not ring.pass_dead(wanted):
                if passed >= MOST_TIDIED and ring.fits(size):
                    # The next one that comes goes on.
                    break
                passed += 1
                self._pass_tail(ring, now)
        if not ring.bit:
            self._tidy(size, now)

    def _tidy(self, size: int, now: int) -> None:
        """Move the main ring's tail on a little, for the records to come.

        All that lives may lie between it and what is dead: passing that takes seconds for a
        million entries, so each record of `size` bytes moves TIDIED times its own, from the moment
        on at which a TIDIED-th of the ring is left.
        """
        main = self.main
        left, dead = TIDIED * size, 0
        for _ in range(MOST_TIDIED):
            if left <= 0 or main.tail == main.head or main.fits(size + main.low):
                return
            before = main.tail
            if not main.pass_dead(main.ahead):
                self._pass_tail(main, now)
                left -= main.tail - before
            elif (dead := dead + 1) == MOST_DEAD:
                return

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
                use = self._part(place, word, key, size, self.index.frequency(slot))
                why = Why.EXPIRED if kept_until else Why.TAG
                self.departures.past.note(digest, why, now // L.CREATED_UNIT_NS, created, size, use)
                self._gone(place, size)
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
