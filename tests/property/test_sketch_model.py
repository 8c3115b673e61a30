"""The sketch of the most frequent keys keeps its bounds, whatever comes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bi_performanced.cache.insight.sketch import Sketch, Spans

STREAMS = st.lists(
    st.tuples(st.integers(0, 30).map(lambda n: b"%d" % n), st.integers(1, 50)), max_size=300
)


@given(STREAMS, st.integers(1, 12))
def test_no_count_is_too_low_or_too_high_by_more_than_is_said(
    stream: list[tuple[bytes, int]], capacity: int
) -> None:
    sketch, exact = Sketch(capacity), Counter[bytes]()
    for key, weight in stream:
        sketch.add(key, weight, sampled=False)
        exact[key] += weight
    found = sketch.estimates()
    assert sketch.total == sum(exact.values()) and len(found) <= capacity
    for key, each in found.items():
        assert each.times - each.over <= exact[key] <= each.times
        assert each.over <= sketch.total / capacity and each.sampling == 0
    for key, times in exact.items():
        assert key in found or times <= sketch.floor <= sketch.total / capacity


@given(st.lists(STREAMS, min_size=1, max_size=3), st.integers(1, 12))
def test_two_spans_count_together_and_the_one_before_them_not_at_all(
    streams: list[list[tuple[bytes, int]]], capacity: int
) -> None:
    spans, exact = Spans(capacity), Counter[bytes]()
    for number, stream in enumerate(streams):
        if number:
            spans.rotate()
        for key, weight in stream:
            spans.now.add(key, weight)
            if number >= len(streams) - 2:
                exact[key] += weight
    assert spans.total == sum(exact.values())
    found = spans.top(1000)
    assert found == sorted(found, key=lambda each: (each.over - each.times, each.key))
    for each in found:
        assert each.times - each.over <= exact[each.key] <= each.times
        assert exact[each.key] == 0 or each.sampling > 0
