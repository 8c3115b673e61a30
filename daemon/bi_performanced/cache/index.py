"""The store's hash index: Robin Hood open addressing over 64-bit slots in shared memory.

Readers probe it without a lock while the daemon changes it. Each slot is stored whole; while a
run is shifted an entry is in two places rather than in none, except that a removal may hide one
entry from a reader that is between two slots of its run: a miss, never a wrong value.
"""

from __future__ import annotations

from typing import Final

from bi_performance_wire import layout as L

NONE: Final = -1
_ZEROS: Final = bytes(1 << 16)


class Index:
    """Slots, frequency bytes and the touch maps that clients write.

    A frequency byte belongs to the daemon, the touch maps (one a uid, a byte a slot) to clients;
    what a client writes there is clamped when it is read. All three move together.
    """

    def __init__(self, data: memoryview, geometry_slots: int, index_at: int, freq_at: int) -> None:
        self.slots = geometry_slots
        room = geometry_slots + L.GUARD_SLOTS
        self.cells: memoryview[int] = data[index_at : index_at + 8 * room].cast("Q")
        self._frequency = data[freq_at : freq_at + room]
        self.touch_maps: list[memoryview] = []

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

    def frequency(self, slot: int) -> int:
        """How often the entry was used since it was last looked at, 0 to 3."""
        count = self._frequency[slot]
        for touches in self.touch_maps:
            count += touches[slot]
        return count if count < L.TOUCH_MAX else L.TOUCH_MAX

    def set_frequency(self, slot: int, count: int) -> None:
        self._frequency[slot] = count
        for touches in self.touch_maps:
            touches[slot] = 0

    def touch(self, slot: int) -> None:
        count = self._frequency[slot]
        if count < L.TOUCH_MAX:
            self._frequency[slot] = count + 1

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

    def insert(self, digest: int, place: int, frequency: int) -> int | None:
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
                self.set_frequency(slot, frequency)
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
            for at in range(end, slot, -1):
                cells[at] = cells[at - 1] + L.DISTANCE_ONE
                self._move_frequency(at - 1, at)
        cells[slot] = fresh
        self.set_frequency(slot, frequency)
        return lost

    def remove(self, slot: int) -> None:
        """Empty a slot and close the gap."""
        cells = self.cells
        following = slot + 1
        while (moved := cells[following]) >> 58 > 1:
            cells[slot] = moved - L.DISTANCE_ONE
            self._move_frequency(following, slot)
            slot = following
            following += 1
        cells[slot] = 0
        self.set_frequency(slot, 0)

    def _move_frequency(self, source: int, target: int) -> None:
        self._frequency[target] = self._frequency[source]
        for touches in self.touch_maps:
            touches[target] = touches[source]
