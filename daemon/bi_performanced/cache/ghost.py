"""S3-FIFO's ghost queue: which keys left the small ring lately, without keeping their keys."""

from __future__ import annotations

from mmap import mmap
from typing import Final

_STAMP: Final = (1 << 16) - 1
_UNITS: Final = 1024
"""Into how many the span that is remembered is divided, at the least, in a large store."""
REACH = 4
"""How many times the store's entries the keys that are counted as returning may be ago."""
MOST_SAMPLED = 16_384
_SAMPLE_SHIFT = 20
"""Bits of the hash that decide neither the slot of a small table nor the mark of a ghost."""


class Ghost:
    """The last `capacity` hashes that were added, in 8 bytes each.

    A table of buckets of two words, each a 16-bit part of the hash and in 16 bits the count of
    insertions at which it came (as CacheLib keeps its ghosts): an entry is a member while fewer
    than `capacity` insertions followed it. A full bucket forgets its older word, so a few ghosts
    go early; a wrong member needs 16 equal bits in one bucket, and 64 times the capacity must pass
    before an old word could seem new. Of a large store insertions are counted by the thousandth of
    the capacity. The table takes memory only where something was added: under LRU none.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = max(1, capacity)
        self._buckets = self.capacity
        self._shift = max(0, (self.capacity // _UNITS).bit_length() - 1)
        self._span = self.capacity >> self._shift
        self._count = self.capacity + 1  # so that the zeroed words are too old
        self._words = self._zeros()

    def hold(self, entries: int) -> None:
        """Let the last so many be members, where that is less than the capacity.

        As many as the store holds, when its bytes are the limit: what left long before says
        nothing any more.
        """
        self._span = max(1, min(self.capacity, entries) >> self._shift)

    @property
    def held(self) -> int:
        """How many of the last are members, to a thousandth of the capacity."""
        return self._span << self._shift

    def _zeros(self) -> memoryview[int]:
        return memoryview(mmap(-1, 8 * self._buckets)).cast("I")

    def add(self, digest: int) -> None:
        self._count = count = self._count + 1
        stamp = count >> self._shift
        at = digest % self._buckets * 2
        words = self._words
        mark = digest >> 48
        first, second = words[at], words[at + 1]
        if first >> 16 == mark:
            pass
        elif second >> 16 == mark or (stamp - first & _STAMP) < (stamp - second & _STAMP):
            at += 1
        words[at] = mark << 16 | stamp & _STAMP

    def take(self, digest: int) -> bool:
        """Whether the hash is a member; it is forgotten then."""
        at = digest % self._buckets * 2
        mark = digest >> 48
        words = self._words
        for here in (at, at + 1):
            word = words[here]
            if word >> 16 == mark and word:
                words[here] = 0
                return ((self._count >> self._shift) - word & _STAMP) < self._span
        return False

    def clear(self) -> None:
        """Forget all."""
        self._words = self._zeros()


class Returns:
    """Tells how many of the new keys would be there in a store of four times the entries.

    The keys that were evicted lately, of those that fall into a sample by their hash, so that a
    large store's takes no more memory than a small one's.
    """

    def __init__(self, max_entries: int) -> None:
        rate = 1
        while REACH * max_entries > rate * MOST_SAMPLED:
            rate *= 2
        self._mask = (rate - 1) << _SAMPLE_SHIFT
        self._rate = rate
        self._ghost = Ghost(REACH * max_entries // rate)

    def evicted(self, digest: int) -> None:
        if not digest & self._mask:
            self._ghost.add(digest)

    def arrived(self, digest: int) -> int:
        """For how many arrivals of keys that were evicted this one stands."""
        if digest & self._mask or not self._ghost.take(digest):
            return 0
        return self._rate

    def clear(self) -> None:
        self._ghost.clear()
