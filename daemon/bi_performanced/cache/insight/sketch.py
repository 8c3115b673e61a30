"""The most frequent keys of a stream, in memory of a fixed size."""

from __future__ import annotations

from heapq import heappush, heapreplace
from itertools import count
from typing import Final, NamedTuple

_CERTAIN: Final = 1.96
"""Standard errors within which 95 % of all estimates lie."""


class Estimate(NamedTuple):
    """How often something came: not more than `times`, `over` of which may be others', and both
    within `sampling` either way (95 %) where the stream itself was a sample."""

    key: bytes
    times: float
    over: float
    sampling: float


class Sketch:
    """Space-Saving: Metwally, Agrawal, El Abbadi, "Efficient computation of frequent and top-k
    elements in data streams", ICDT 2005; with weights.

    Of all that came, `total`, no count is too high by more than `total / capacity`, and whatever
    came more often than that is in it. A counter that gives way is the least: found in a heap
    whose entries may lag behind, which costs log(capacity) steps of each newcomer.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.total = 0.0
        self.heaviest = 0.0
        """The largest weight of what came in a sample."""
        self._counts: dict[bytes, list[float]] = {}
        """Key to count, what of it may be others', and the sum of the squared weights."""
        self._least: list[tuple[float, int, bytes]] = []
        self._serial = count()

    def add(self, key: bytes, weight: float, *, sampled: bool = True) -> None:
        """Something came once in a sample, and stands for `weight` times."""
        self.total += weight
        square = 0.0
        if sampled:
            square = weight * weight
            self.heaviest = max(self.heaviest, weight)
        found = self._counts.get(key)
        if found is not None:
            found[0] += weight
            found[2] += square
        elif len(self._counts) < self.capacity:
            self._counts[key] = [weight, 0.0, square]
            heappush(self._least, (weight, next(self._serial), key))
        else:
            least = self._take_least()
            counted, _, squares = self._counts.pop(least)
            self._counts[key] = [counted + weight, counted, squares + square]
            heapreplace(self._least, (counted + weight, next(self._serial), key))

    def _take_least(self) -> bytes:
        """The key of the least counter, which is then the first of the heap."""
        heap, counts = self._least, self._counts
        while True:
            noted, _, key = heap[0]
            now = counts[key][0]
            if now == noted:
                return key
            heapreplace(heap, (now, next(self._serial), key))

    @property
    def floor(self) -> float:
        """How often whatever is not in it may have come."""
        if len(self._counts) < self.capacity:
            return 0.0
        return min(counted for counted, _, _ in self._counts.values())

    def estimates(self) -> dict[bytes, Estimate]:
        return {
            key: Estimate(key, counted, over, _CERTAIN * squares**0.5)
            for key, (counted, over, squares) in self._counts.items()
        }


class Spans:
    """A sketch of the span of time that goes on and one of the span before it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.now, self.before = Sketch(capacity), Sketch(capacity)

    def rotate(self) -> None:
        """Begin another span, and forget the one before the last."""
        self.now, self.before = Sketch(self._capacity), self.now

    @property
    def total(self) -> float:
        return self.now.total + self.before.total

    @property
    def unseen(self) -> float:
        """How often what is in no sample may have come all the same (95 %: the rule of three)."""
        return 3 * max(self.now.heaviest, self.before.heaviest)

    def top(self, limit: int) -> list[Estimate]:
        """The most frequent of both spans, the first one first."""
        one, other = self.now.estimates(), self.before.estimates()
        floors = self.now.floor, self.before.floor
        both = []
        for key in one.keys() | other.keys():
            parts = []
            for estimates, floor in ((one, floors[0]), (other, floors[1])):
                # Of what a full sketch does not have, it may have seen as many as its least.
                parts.append(estimates.get(key) or Estimate(key, floor, floor, 0.0))
            both.append(
                Estimate(
                    key,
                    sum(part.times for part in parts),
                    sum(part.over for part in parts),
                    sum(part.sampling**2 for part in parts) ** 0.5,
                )
            )
        both.sort(key=lambda each: (each.over - each.times, each.key))
        return both[:limit]
