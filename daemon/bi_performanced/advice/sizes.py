"""What the curve says of another size of the cache: which one is worth it, what it would hit."""

from __future__ import annotations

from itertools import pairwise
from math import log2
from typing import Any, Final, NamedTuple

from bi_performance_wire.types import CacheCurve, CurvePoint

SURE: Final = 0.02
"""A hit rate whose margin is larger is not gone by."""
WORTH: Final = 0.02
"""By how much the hit rate must rise for a larger size, and MOST_OF_IT of the best there is."""
MOST_OF_IT: Final = 0.8
NOTHING: Final = 0.005
"""What may be lost of the hit rate by a smaller size: less than anybody would notice."""


class Size(NamedTuple):
    """Another size, and what it would hit."""

    point: CurvePoint
    limit: int
    """Entries or bytes."""
    hit_rate: float


def larger(curve: CacheCurve, most: float) -> Size | None:
    """The size that is worth growing to, at most so many times as large as it is."""
    here = _known(curve, 1.0)
    if here is None:
        return None
    known = [
        (point, rate)
        for point in curve.points
        if 1 < point.size <= most and (rate := _sure(point)) is not None
    ]
    # Half as much again is soon too little: only where there is no room for twice as much.
    known = [each for each in known if each[0].size >= 2] or known
    best = max((rate - here for _, rate in known), default=0.0)
    for point, rate in known:
        gain = rate - here
        if gain >= WORTH and gain > (point.margin or 0.0) and gain >= MOST_OF_IT * best:
            return _size(point, rate)
    return None


def smaller(curve: CacheCurve) -> Size | None:
    """The smallest size that would hit as much."""
    here = _known(curve, 1.0)
    for point in curve.points:
        rate = _sure(point)
        if here is not None and rate is not None and point.size <= 0.5 and here - rate <= NOTHING:
            return _size(point, rate)
    return None


def knows_larger(curve: CacheCurve) -> bool:
    """Whether what a larger size would hit is known, so that nothing else need be asked."""
    return None not in (_known(curve, 1.0), _known(curve, 2.0))


def rate_at(curve: CacheCurve, size: float) -> float | None:
    """The hit rate at any size within the curve: between two known ones on a line over their
    logarithms."""
    known = [(log2(point.size), rate) for point in curve.points if (rate := _sure(point))]
    place = log2(size) if size > 0 else float("-inf")
    for (left, before), (right, after) in pairwise(known):
        if left <= place <= right:
            return before + (after - before) * (place - left) / (right - left)
    return None


def evidence(curve: CacheCurve, to: Size) -> dict[str, Any]:
    """What a finding on this size rests on."""
    return {
        "hit_rate": round(curve.hit_rate or 0.0, 4),
        "predicted_hit_rate": round(to.hit_rate, 4),
        "predicted_within_points": round(100 * (to.point.margin or 0.0), 2),
        "sampled_accesses": to.point.accesses,
        "curve": {
            f"{point.size:g}": None if point.hit_rate is None else round(point.hit_rate, 4)
            for point in curve.points
        },
    }


def _size(point: CurvePoint, rate: float) -> Size:
    limit = point.max_bytes if point.max_size is None else point.max_size
    assert limit is not None
    return Size(point, limit, rate)


def _known(curve: CacheCurve, size: float) -> float | None:
    return next((_sure(point) for point in curve.points if point.size == size), None)


def _sure(point: CurvePoint) -> float | None:
    return point.hit_rate if (point.margin or 0.0) <= SURE else None
