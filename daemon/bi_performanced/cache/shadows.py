"""Small models of policies, fed with the traffic of a sample of the keys.

A model of a sample, with a capacity as much smaller as the sample is smaller than the traffic,
hits about as often as the whole would: miniature simulation (Waldspurger, Saemundsson, Ahmad, Park:
"Cache modeling and optimization using miniature simulations", ATC 2017). Two models over the same
sample can be compared far more closely than either tells of the whole.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, Protocol

FIRST_SHARE: Final = 0.1
"""The small queue's share while a cache fills: nothing is known then of what is worth keeping."""
_COUNT: Final = 3
_ONE: Final = 4


class Shadow(Protocol):
    """A policy over keys alone. `weight` is in the unit of the capacity."""

    def access(self, key: int, weight: int) -> bool:
        """Whether the key was there; it is now."""
        ...


class LruShadow:
    """What was used longest ago leaves."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._weights: OrderedDict[int, int] = OrderedDict()
        self._total = 0

    def access(self, key: int, weight: int) -> bool:
        weights = self._weights
        if key in weights:
            weights.move_to_end(key)
            return True
        self._total += weight
        while self._total > self._capacity and weights:
            self._total -= weights.popitem(last=False)[1]
        weights[key] = weight
        return False


class S3FifoShadow:
    """S3-FIFO with a share of the capacity for the small queue."""

    def __init__(self, capacity: int, share: float, promote_at: int) -> None:
        self._capacity = capacity
        self._small_most = max(1.0, capacity * share)
        self._promote_at = promote_at
        self._first_most = capacity * FIRST_SHARE
        self._kept: dict[int, int] = {}
        """Key to its weight and, in the low two bits, its uses."""
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._small_weight = self._main_weight = 0
        self._ghost: dict[int, None] = {}
        self._full = False

    def access(self, key: int, weight: int) -> bool:
        kept = self._kept
        found = kept.get(key)
        if found is not None:
            if found & _COUNT < _COUNT:
                kept[key] = found + 1
            return True
        while self._small_weight + self._main_weight + weight > self._capacity and kept:
            self._full = True
            self._evict()
        kept[key] = weight * _ONE
        remembered = key in self._ghost
        if remembered:
            del self._ghost[key]
        if remembered or (not self._full and self._small_weight >= self._first_most):
            self._main.append(key)
            self._main_weight += weight
        else:
            self._small.append(key)
            self._small_weight += weight
        return False

    def _evict(self) -> None:
        kept, small, main = self._kept, self._small, self._main
        while small and (self._small_weight >= self._small_most or not main):
            key = small.popleft()
            found = kept[key]
            weight = found // _ONE
            self._small_weight -= weight
            if found & _COUNT >= self._promote_at:
                kept[key] = found & ~_COUNT
                main.append(key)
                self._main_weight += weight
                continue
            del kept[key]
            ghost = self._ghost
            ghost[key] = None
            if len(ghost) > len(kept) + 1:
                del ghost[next(iter(ghost))]
            return
        while main:
            key = main.popleft()
            found = kept[key]
            if found & _COUNT:
                kept[key] = found - 1
                main.append(key)
                continue
            del kept[key]
            self._main_weight -= found // _ONE
            return
