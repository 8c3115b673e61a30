"""S3-FIFO's ghost queue: which keys left the small ring lately, without keeping their keys."""

from __future__ import annotations

from array import array

_STAMP = (1 << 32) - 1
REACH = 4
"""How many times the store's entries the keys that are counted as returning may be ago."""
MOST_SAMPLED = 16_384
_SAMPLE_SHIFT = 20
"""Bits of the hash that decide neither the slot of a small table nor the mark of a ghost."""


class Ghost:
    """The last `capacity` hashes that were added, in 16 bytes each.

    A table of buckets of two words, each a 32-bit part of the hash and the 32-bit count of
    insertions at which it came (as CacheLib keeps its ghosts): an entry is a member while fewer
    than `capacity` insertions followed it. A full bucket forgets its older word, so a few ghosts
    go early; a wrong member needs 32 equal bits in one bucket.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = max(1, capacity)
        self._buckets = self.capacity
        self._words = array("Q", bytes(8)) * (2 * self._buckets)
        self._count = self.capacity + 1  # so that the zeroed words are too old

    def add(self, digest: int) -> None:
        self._count = count = self._count + 1
        at = digest % self._buckets * 2
        words = self._words
        mark = digest >> 32
        first, second = words[at], words[at + 1]
        if first >> 32 == mark:
            pass
        elif second >> 32 == mark or (count - first & _STAMP) < (count - second & _STAMP):
            at += 1
        words[at] = mark << 32 | count & _STAMP

    def take(self, digest: int) -> bool:
        """Whether the hash is a member; it is forgotten then."""
        at = digest % self._buckets * 2
        mark = digest >> 32
        words = self._words
        for here in (at, at + 1):
            word = words[here]
            if word >> 32 == mark and word:
                words[here] = 0
                return (self._count - word & _STAMP) < self.capacity
        return False

    def clear(self) -> None:
        """Forget all: every count is too old from now on."""
        self._count += self.capacity


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
