"""Made traffic: which keys are asked for, seeded."""

from __future__ import annotations

import bisect
import random
from itertools import accumulate


def zipf(count: int, *, keys: int, seed: int, exponent: float = 0.9) -> list[int]:
    """Requests whose n-th most popular key is asked for n ** exponent times less than the first."""
    rng = random.Random(seed)
    weights = list(accumulate(rank**-exponent for rank in range(1, keys + 1)))
    return [bisect.bisect(weights, rng.random() * weights[-1]) for _ in range(count)]


def shifting(count: int, *, keys: int, seed: int, every: int = 40) -> list[int]:
    """The same, but each `every` requests the most popular key is gone and all others move up."""
    asked = zipf(count, keys=keys, seed=seed, exponent=1.0)
    return [key + at // every for at, key in enumerate(asked)]
