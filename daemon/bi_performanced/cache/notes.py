"""What a process notes of single reads in its page: a sample of its hits, and of its misses.

It is the process's own and untrusted: a note stands for no more reads than the process's counters,
which are checked, have grown by, and a key that it names is only ever shown.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from bi_performance_wire import layout as L
from bi_performance_wire.types import MAX_KEY_BYTES


class Missed(NamedTuple):
    """A key that was asked for and not there; of a long one the beginning."""

    digest: int
    length: int
    beginning: bytes


class Noted(NamedTuple):
    """Hits by the hash of their key, and misses; each stands for so many."""

    hits: list[int]
    hit_weight: float
    misses: list[Missed]
    miss_weight: float


NOTHING: Final = Noted([], 0.0, [], 0.0)


class Notes:
    """How far one page has been read."""

    def __init__(self) -> None:
        self._hot = self._missed = 0
        self._misses_before = 0

    def news(self, words: memoryview[int]) -> bool:
        """Whether something was noted since the last call of `since`."""
        return words[L.P_HOT_HEAD] != self._hot or words[L.P_MISSED_HEAD] != self._missed

    def since(self, words: memoryview[int], hits: int, misses: int) -> Noted:
        """What was noted since the last call, in which there were so many hits and misses."""
        head = words[L.P_HOT_HEAD]
        new, self._hot = head - self._hot, head
        sampled: list[int] = []
        weight = 0.0
        if new > 0 and hits > 0:
            read = min(new, L.HOT_WORDS)
            sampled = [words[L.P_HOT + at % L.HOT_WORDS] for at in range(head - read, head)]
            # A gap before the first of them may have been longer than this call's share of it.
            weight = min(new * L.SAMPLE_EVERY, hits + 2 * L.SAMPLE_EVERY) / read
        head = words[L.P_MISSED_HEAD]
        new, self._missed = head - self._missed, head
        self._misses_before += max(0, misses)
        told: list[Missed] = []
        if new > 0:
            read = min(new, L.MISSED_SLOTS)
            found = (_missed(words, at % L.MISSED_SLOTS) for at in range(head - read, head))
            told = [each for each in found if each is not None]
        if not told:
            # They stand with the next one that is noted.
            return Noted(sampled, weight, [], 0.0)
        each, self._misses_before = self._misses_before / len(told), 0
        return Noted(sampled, weight, told, each)


def _missed(words: memoryview[int], slot: int) -> Missed | None:
    """A note, unless it was being written, or is none."""
    at = L.P_MISSED + slot * L.MISSED_WORDS
    data = words[at : at + L.MISSED_WORDS].tobytes()
    if xxh3_64_intdigest(data[8:]) != words[at]:
        return None
    digest, length = words[at + 1], words[at + 2]
    if not 0 < length <= MAX_KEY_BYTES:
        return None
    return Missed(digest, length, data[24 : 24 + min(length, L.MISSED_BYTES)])
