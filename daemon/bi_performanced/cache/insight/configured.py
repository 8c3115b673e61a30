"""Figures of the prefixes that `cache.prefixes` names: few, for they stand in the metrics too.

Hits, misses and evictions are sums of samples since the daemon began. Entries and bytes are of the
last sweep, of which a slice is made at each look: ten seconds for the usual store, minutes for one
of a million entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

from bi_performanced.cache.store import Store
from bi_performanced.cache.sweeping import SWEEP_SLOTS

SLICE: Final = 0.0005
"""Seconds."""


class Configured:
    """Counters of some prefixes."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self.names = tuple(
            dict.fromkeys(name.encode("utf-8", "surrogatepass") for name in prefixes)
        )
        self.hits = dict.fromkeys(self.names, 0.0)
        self.misses = dict.fromkeys(self.names, 0.0)
        self.unread = dict.fromkeys(self.names, 0.0)
        self._held: dict[bytes, list[int]] | None = None
        """Of the last whole sweep: entries and bytes."""
        self._sweeping: dict[bytes, list[int]] = {}
        self._store: Store | None = None
        self._at = 0

    def sweep(self, store: Store, now: int) -> None:
        """Go on with the sweep, for half a millisecond; at its end what it found is told."""
        if not self.names:
            return
        ends = perf_counter() + SLICE
        self._slice(store, now)
        while self._at and perf_counter() < ends:
            self._slice(store, now)

    def _slice(self, store: Store, now: int) -> None:
        if store is not self._store or not self._at:
            self._store, self._at = store, 0
            self._sweeping = {name: [0, 0] for name in self.names}
        entries, self._at = store.sweep(self._at, SWEEP_SLOTS)
        # Longest first, as the rule has it.
        names = sorted(self.names, key=len, reverse=True)
        for entry in entries:
            if entry.kept_until > now:
                for name in names:
                    if entry.key.startswith(name):
                        held = self._sweeping[name]
                        held[0] += 1
                        held[1] += store.size_and_creation(entry.place)[0]
                        break
        if not self._at:
            self._held = self._sweeping

    def figures(self) -> list[dict[str, Any]]:
        """For each, in the order in which they are configured; what no sweep has told is None."""
        return [
            {
                "prefix": name.decode("utf-8", "replace"),
                "hits": round(self.hits[name]),
                "misses": round(self.misses[name]),
                "evicted_unread": round(self.unread[name]),
                "entries": self._held[name][0] if self._held else None,
                "size_bytes": self._held[name][1] if self._held else None,
            }
            for name in self.names
        ]


def count(counts: dict[bytes, float], prefix: bytes, weight: float) -> None:
    """Add to a counter, if the prefix is one that is counted."""
    if prefix in counts:
        counts[prefix] += weight
