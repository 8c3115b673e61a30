"""Small models of policies, fed with the traffic of a sample of the keys.

A model of a sample, with a capacity as much smaller as the sample is smaller than the traffic,
hits about as often as the whole would: miniature simulation (Waldspurger, Saemundsson, Ahmad, Park:
"Cache modeling and optimization using miniature simulations", ATC 2017). Two models over the same
sample can be compared far more closely than either tells of the whole.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
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

    def play(self, keys: Sequence[int], weigh: Callable[[int], int] | None) -> list[int]:
        """As `access` for each of the keys in turn; those that were not there. `weigh` tells the
        weight of what comes in; without it, it is 1."""
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
        self._insert(key, weight)
        return False

    def play(self, keys: Sequence[int], weigh: Callable[[int], int] | None) -> list[int]:
        weights, missed = self._weights, []
        renew = weights.move_to_end
        for key in keys:
            if key in weights:
                renew(key)
            else:
                missed.append(key)
                self._insert(key, weigh(key) if weigh else 1)
        return missed

    def _insert(self, key: int, weight: int) -> None:
        weights = self._weights
        self._total += weight
        while self._total > self._capacity and weights:
            self._total -= weights.popitem(last=False)[1]
        weights[key] = weight


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
        self._insert(key, weight)
        return False

    def play(self, keys: Sequence[int], weigh: Callable[[int], int] | None) -> list[int]:
        kept, missed = self._kept, []
        find = kept.get
        for key in keys:
            found = find(key)
            if found is None:
                missed.append(key)
                self._insert(key, weigh(key) if weigh else 1)
            elif found & _COUNT < _COUNT:
                kept[key] = found + 1
        return missed

    def _insert(self, key: int, weight: int) -> None:
        kept = self._kept
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


class SwitchingShadow:
    """A cache that goes over from one rule to another, with what it holds, as the store does."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._first_most = capacity * FIRST_SHARE
        self._share: float | None = None
        self._small_most = 0.0
        self._promote_at = _COUNT
        self._kept: OrderedDict[int, list[int]] = OrderedDict()
        """What was used longest ago first: uses, weight, whether it is in the main queue, and what
        its place in a queue is told by."""
        self._queues: tuple[deque[tuple[int, int]], ...] = (deque(), deque())
        """The small and the main one: places and keys. An entry may have left since."""
        self._weights = [0, 0]
        self._ghost: dict[int, None] = {}
        self._places = 0
        self._full = False

    def go_by(self, share: float | None, promote_at: int) -> None:
        """Let entries leave by S3-FIFO with a small queue of this share; by LRU with None."""
        self._share = share
        self._small_most = self._capacity * (share or 0.0)
        self._promote_at = promote_at

    def access(self, key: int, weight: int) -> bool:
        entry = self._kept.get(key)
        if entry is None:
            self._insert(key, weight)
            return False
        self._kept.move_to_end(key)
        if entry[0] < _COUNT:
            entry[0] += 1
        return True

    def play(self, keys: Sequence[int], weigh: Callable[[int], int] | None) -> list[int]:
        kept, missed = self._kept, []
        find, renew = kept.get, kept.move_to_end
        for key in keys:
            entry = find(key)
            if entry is None:
                missed.append(key)
                self._insert(key, weigh(key) if weigh else 1)
            else:
                renew(key)
                if entry[0] < _COUNT:
                    entry[0] += 1
        return missed

    def _insert(self, key: int, weight: int) -> None:
        kept, weights = self._kept, self._weights
        while kept and weights[0] + weights[1] + weight > self._capacity:
            self._full = True
            self._evict()
        remembered = key in self._ghost
        if remembered:
            del self._ghost[key]
        early = not self._full and weights[0] > self._first_most
        main = int(remembered or early or self._share is None)
        kept[key] = [0, weight, main, 0]
        weights[main] += weight
        self._queue(key, main)

    def _queue(self, key: int, main: int) -> None:
        self._places += 1
        entry = self._kept[key]
        entry[2:] = main, self._places
        queue = self._queues[main]
        queue.append((self._places, key))
        if len(queue) > 2 * len(self._kept) + 64:
            # By LRU entries leave from anywhere.
            there = [each for each in queue if self._is_at(*each)]
            queue.clear()
            queue.extend(there)

    def _is_at(self, place: int, key: int) -> bool:
        entry = self._kept.get(key)
        return entry is not None and entry[3] == place

    def _evict(self) -> None:
        if self._share is None:
            self._leave(next(iter(self._kept)))
            return
        weights = self._weights
        from_small = weights[0] and (not weights[1] or weights[0] > self._small_most)
        if from_small and self._evict_from(0):
            return
        if not self._evict_from(1):
            self._leave(next(iter(self._kept)))

    def _evict_from(self, main: int) -> bool:
        """Whether an entry left; what has been used goes round, or over to the main queue."""
        queue = self._queues[main]
        keep_at = 1 if main else self._promote_at
        while queue:
            place, key = queue.popleft()
            if not self._is_at(place, key):
                continue
            entry = self._kept[key]
            if entry[0] < keep_at:
                self._leave(key)
                return True
            entry[0] = entry[0] - 1 if main else 0
            self._weights[main] -= entry[1]
            self._weights[1] += entry[1]
            self._queue(key, 1)
        return False

    def _leave(self, key: int) -> None:
        _, weight, main, _ = self._kept.pop(key)
        self._weights[main] -= weight
        if not main:
            ghost = self._ghost
            ghost[key] = None
            if len(ghost) > len(self._kept) + 1:
                del ghost[next(iter(ghost))]
