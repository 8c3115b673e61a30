"""The store's hash index: Robin Hood open addressing over 64-bit slots in shared memory.

Readers probe it without a lock while the daemon changes it. Each slot is stored whole; while a
run is shifted an entry is in two places rather than in none, except that a removal may hide one
entry from a reader that is between two slots of its run: a miss, never a wrong value.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from bi_performance_wire import layout as L

NONE: Final = -1
_ZEROS: Final = bytes(1 << 16)
MOST_LOOKS: Final = 64
"""Entries that one search for the oldest looks at: the bound of what an eviction may take."""
_FIRST_CHUNK: Final = 256
_CHUNK: Final = 8192
_SWEEPS: Final = 2
_LARGE: Final = 1 << 15
"""Slots from which on a sweep over all takes long."""
_GROUPS: Final = 64


class Index:
    """Slots, frequency bytes and the touch maps that clients write.

    A frequency byte belongs to the daemon, the touch maps (one a uid, a byte a slot) to clients;
    all three move together. A byte tells when an entry was used last and in how many ticks; any
    byte that a client may write there says something.
    """

    def __init__(self, data: memoryview, geometry_slots: int, index_at: int, freq_at: int) -> None:
        self.slots = geometry_slots
        room = geometry_slots + L.GUARD_SLOTS
        self.cells: memoryview[int] = data[index_at : index_at + 8 * room].cast("Q")
        self._frequency = data[freq_at : freq_at + room]
        self.touch_maps: list[memoryview] = []
        self.tick = L.TICK_ONE
        """What is used now is marked with it."""
        self._counts = [0] * (L.TICKS + 1)
        """How many entries are marked with each tick in `_frequency`, by tick / TICK_ONE."""
        self.begin_search()

    def copy(self) -> Index:
        """What is in it now, in memory of its own, without the touch maps."""
        cells, frequency = self.cells.cast("B"), self._frequency
        data = bytearray(len(cells) + len(frequency))
        data[: len(cells)] = cells
        data[len(cells) :] = frequency
        return Index(memoryview(data), self.slots, 0, len(cells))

    def release(self) -> None:
        self.cells.release()
        self._frequency.release()

    def wipe(self) -> None:
        """Empty every slot: all entries are unreadable at once."""
        # From one block of zeros: as many of them as there are slots would have to be made first.
        for view in (self.cells.cast("B"), self._frequency, *self.touch_maps):
            for start in range(0, len(view), len(_ZEROS)):
                end = min(len(view), start + len(_ZEROS))
                view[start:end] = _ZEROS[: end - start]
        self._counts = [0] * (L.TICKS + 1)

    # ── touches: when an entry was used last, in ticks, and how often

    def frequency(self, slot: int) -> int:
        """In how many ticks the entry was used since it was last looked at, 0 to 3."""
        count = self._frequency[slot] & L.TOUCH_COUNT
        for touches in self.touch_maps:
            count += touches[slot] & L.TOUCH_COUNT
        return count if count < L.TOUCH_COUNT else L.TOUCH_COUNT

    def last_used(self, slot: int) -> int:
        """The tick in which the entry was used or stored last."""
        last = self._frequency[slot] & L.TICK_BITS
        for touches in self.touch_maps:
            other = touches[slot] & L.TICK_BITS
            if other and self.age(other) < self.age(last):
                last = other
        return last

    def age(self, tick: int) -> int:
        """How many ticks ago a tick was; those of more than a round ago seem younger."""
        return (self.tick - tick) // L.TICK_ONE % L.TICKS

    def tick_before(self, ticks: int) -> int:
        """The tick so many ticks ago, at most a round."""
        return (self.tick // L.TICK_ONE - 1 - ticks) % L.TICKS * L.TICK_ONE + L.TICK_ONE

    def touched(self, slot: int) -> int:
        """When and how often the entry was used, as one byte."""
        return self.last_used(slot) | self.frequency(slot)

    def set_frequency(self, slot: int, count: int) -> None:
        """Have the entry used so often; when it was used last stays as it was."""
        self._retouch(slot, self.last_used(slot) | count)

    def _retouch(self, slot: int, touched: int) -> None:
        """Note down when and how often the entry of a slot was used."""
        self._counts[self._frequency[slot] // L.TICK_ONE] -= 1
        self._counts[touched // L.TICK_ONE] += 1
        self._set_touched(slot, touched)

    def _set_touched(self, slot: int, touched: int) -> None:
        self._frequency[slot] = touched
        for touches in self.touch_maps:
            touches[slot] = 0

    def touch(self, slot: int) -> bool:
        """The daemon itself has used an entry; whether that was the first time in this tick."""
        touched = self._frequency[slot]
        count = touched & L.TOUCH_COUNT
        if count and not (touched ^ self.tick) & L.TICK_BITS:
            return False
        tick = self.tick
        if touched ^ tick > L.TOUCH_COUNT:
            counts = self._counts
            counts[touched >> 2] -= 1
            counts[tick >> 2] += 1
        self._frequency[slot] = tick | (count + (count < L.TOUCH_COUNT))
        return True

    def begin_search(self) -> None:
        """Have the search for the oldest begin anew."""
        self._hand = 0
        self._group: tuple[int, ...] = ()
        self._marks = bytes(256)
        self._enough = 1

    def oldest(self) -> int:
        """The slot of the entry that was used longest ago, as far as ticks tell; or NONE.

        Goes through the entries tick by tick, each entry where it was last known to have been
        used: one that was used later is only noted there. So an entry is looked at once for each
        time it was used, and none is sorted.
        """
        best, best_age = NONE, -1
        for _ in range(MOST_LOOKS):
            slot = self._next_of_group()
            if slot == NONE or not self.touch_maps:
                return slot
            last = self.last_used(slot)
            if self._marks[last]:
                return slot
            self._retouch(slot, last | self.frequency(slot))
            if (age := self.age(last)) > best_age:
                best, best_age = slot, age
        return best

    def _next_of_group(self) -> int:
        """A slot that was last known to have been used in one of the oldest ticks; or NONE.

        The search goes on where the last one ended.
        """
        count = self._counts
        left = 0
        for tick in self._group:
            left += count[tick]
        if left < self._enough:
            self._choose_group()
            if not self._group:
                return NONE
        frequency, marks = self._frequency, self._marks
        room = len(frequency)
        chunk = _FIRST_CHUNK
        # Entries may have moved to where the search has been already; beyond one more sweep there
        # are none, whatever was counted.
        for _ in range(_SWEEPS):
            while (hand := self._hand) < room:
                found = frequency[hand : hand + chunk].tobytes().translate(marks).find(1)
                if found >= 0:
                    self._hand = hand + found + 1
                    return hand + found
                self._hand = hand + chunk
                chunk = _CHUNK
            self._hand = 0
        self._recount()
        return NONE

    def _choose_group(self) -> None:
        """The oldest tick of which there are any; in a large index as many ticks as have a
        sixty-fourth of the entries, or a search might go over all slots for each that it finds."""
        count = self._counts
        wanted = sum(count) // _GROUPS if self.slots >= _LARGE else 1
        group, found = [], 0
        for age in range(L.TICKS - 1, -1, -1):
            tick = self.tick_before(age) // L.TICK_ONE
            if count[tick] > 0:
                group.append(tick)
                found += count[tick]
                if found >= wanted:
                    break
        self._group = tuple(group)
        self._enough = max(1, found // 8 if self.slots >= _LARGE else 1)
        self._marks = bytes(touched // L.TICK_ONE in group for touched in range(256))

    def _recount(self) -> None:
        """Count the entries of each tick anew."""
        self._counts = [0] * (L.TICKS + 1)
        for touched, count in Counter(self._frequency.tobytes()).items():
            if touched:
                self._counts[touched // L.TICK_ONE] += count

    # ── slots

    def find_place(self, digest: int, place: int) -> int:
        """The slot that points at `place` (ring bit and position) for a key of this hash."""
        cells = self.cells
        slot = digest % self.slots
        want = digest >> L.FINGERPRINT_SHIFT | L.TAG_DISTANCE_ONE
        while True:
            cell = cells[slot]
            tag = cell >> L.TAG_SHIFT
            if tag == want:
                if cell & L.PLACE == place:
                    return slot
            elif tag < want & L.TAG_DISTANCE:
                return NONE
            want += L.TAG_DISTANCE_ONE
            slot += 1
            if want > L.TAG_MAX:
                return NONE

    def insert(self, digest: int, place: int, touched: int) -> int | None:
        """Add a slot for a key that is not there; return the place that had to go, or None.

        A place goes only when a run is longer than the distance field can count; the caller
        treats that entry as evicted.
        """
        cells = self.cells
        slot = digest % self.slots
        fresh = (digest >> L.FINGERPRINT_SHIFT | L.TAG_DISTANCE_ONE) << L.TAG_SHIFT | place
        while cells[slot] >> 58 >= fresh >> 58:
            slot += 1
            if fresh >> 58 == L.MAX_DISTANCE:
                # The whole neighbourhood is as far from home as can be told: take over the
                # last cell of it.
                slot -= 1
                victim = cells[slot]
                cells[slot] = fresh
                self._counts[self._frequency[slot] // L.TICK_ONE] -= 1
                self._counts[touched // L.TICK_ONE] += 1
                self._set_touched(slot, touched)
                return victim & L.PLACE
            fresh += L.DISTANCE_ONE
        lost = None
        if cells[slot]:
            # Everything up to the next empty cell moves one further from home; a cell that
            # cannot be told any further is overwritten instead, and the shift ends there.
            end = slot
            while (cell := cells[end]) and cell >> 58 != L.MAX_DISTANCE:
                end += 1
            if cell:
                lost = cell & L.PLACE
                self._counts[self._frequency[end] // L.TICK_ONE] -= 1
            for at in range(end, slot, -1):
                cells[at] = cells[at - 1] + L.DISTANCE_ONE
                self._move_frequency(at - 1, at)
        cells[slot] = fresh
        self._counts[touched // L.TICK_ONE] += 1
        self._set_touched(slot, touched)
        return lost

    def remove(self, slot: int) -> None:
        """Empty a slot and close the gap."""
        cells = self.cells
        self._counts[self._frequency[slot] // L.TICK_ONE] -= 1
        following = slot + 1
        while (moved := cells[following]) >> 58 > 1:
            cells[slot] = moved - L.DISTANCE_ONE
            self._move_frequency(following, slot)
            slot = following
            following += 1
        cells[slot] = 0
        self._set_touched(slot, 0)

    def _move_frequency(self, source: int, target: int) -> None:
        self._frequency[target] = self._frequency[source]
        for touches in self.touch_maps:
            touches[target] = touches[source]
