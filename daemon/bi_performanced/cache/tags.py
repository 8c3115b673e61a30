"""The store's table of cleared tags: see `bi_performance_wire.extra`."""

from __future__ import annotations

from collections.abc import Iterable

from bi_performance_wire import layout as L
from bi_performance_wire.extra import TAG_WORDS, any_cleared, tag_words
from bi_performanced.cache.memory import Memory


class TagTable:
    """For each tag the sequence up to which its entries are gone, in a store's shared words."""

    def __init__(self, memory: Memory) -> None:
        at = memory.words[L.W_TAGS_AT] // 8
        self._words = memory.words[at : at + TAG_WORDS]

    def clear(self, tag: bytes, sequence: int) -> None:
        """Every entry with the tag and this sequence or a lower one is gone when this returns."""
        words = self._words
        for at in tag_words(tag):
            words[at] = max(words[at], sequence)

    def cleared(self, tags: Iterable[bytes], sequence: int) -> bool:
        """Whether an entry with these tags and this sequence is gone."""
        return any_cleared(tags, sequence, self._words)

    def highest(self) -> int:
        """The highest sequence at which a tag was cleared."""
        return max(self._words)

    def copy_to(self, other: TagTable) -> None:
        """Have another store's table say the same."""
        other._words[:] = self._words

    def release(self) -> None:
        self._words.release()
