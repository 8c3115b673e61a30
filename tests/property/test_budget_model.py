"""The budget of a store while memory is short: it shrinks, grows back, and does not swing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bi_performanced.cache.budget import (
    CALM,
    EASY,
    FILE_FACTOR,
    FLOOR_PART,
    SETTLE,
    Budget,
    is_calm,
    why_short,
)
from bi_performanced.host.signs import Signs

MIB = 1 << 20
TOTAL = 16_384 * MIB

percent = st.one_of(st.none(), st.floats(0, 100))
signs = st.builds(
    lambda share, some, full: Signs(
        share, None if share is None else int(share * TOTAL), some, full
    ),
    st.one_of(st.none(), st.floats(0, 1)),
    percent,
    percent,
)
looks = st.lists(st.tuples(st.floats(0.1, 200), signs), max_size=60)


@settings(max_examples=150, deadline=None)
@given(looks, st.integers(1, 1 << 34))
def test_it_stays_within_its_bounds_and_moves_only_for_a_reason(
    steps: list[tuple[float, Signs]], most: int
) -> None:
    budget = Budget(most)
    now = 0.0
    changed_at = -SETTLE
    for seconds, seen in steps:
        now += seconds
        before = budget.bytes
        changed = budget.look(now, seen, budget.bytes)
        assert changed is (budget.bytes != before)
        assert max(1, most // FLOOR_PART) <= budget.bytes <= most
        assert (budget.reason is None) is (budget.bytes == most)
        if budget.bytes < before:
            assert why_short(seen) and not is_calm(seen)
        if budget.bytes > before:
            assert is_calm(seen) and not why_short(seen)
        if changed:
            assert now - changed_at >= SETTLE
            changed_at = now


@settings(max_examples=100, deadline=None)
@given(signs)
def test_nothing_is_both_short_and_calm_and_what_is_unknown_is_neither(seen: Signs) -> None:
    assert not (why_short(seen) and is_calm(seen))
    if seen.share is None:
        assert not why_short(seen) and not is_calm(seen)


def test_want_takes_it_to_the_floor_and_calm_gives_all_back() -> None:
    budget = Budget(256 * MIB)
    want = Signs(0.02, TOTAL // 50, None, None, "the control group")
    calm = Signs(0.6, TOTAL * 6 // 10, 0.0, 0.0)
    seen = []
    now = 0.0
    while now < 600:
        now += 2
        if budget.look(now, want if now < 100 else calm, budget.bytes):
            seen.append((budget.bytes // MIB, now))
    sizes = [size for size, _ in seen]
    assert sizes == [128, 64, 32, 64, 128, 256]
    times = [at for _, at in seen]
    assert times[0] == 6, "the third look"
    assert times[3] >= 100 + CALM
    assert budget.reason is None


def test_of_a_store_that_never_grew_so_large_half_of_what_it_has_is_left() -> None:
    budget = Budget(256 * MIB)
    want = Signs(0.02, TOTAL // 50, None, None)
    for now in (2.0, 4.0, 6.0):
        budget.look(now, want, 100 * MIB)
    assert budget.bytes == 50 * MIB


def test_waiting_alone_is_no_want_where_there_is_memory() -> None:
    assert why_short(Signs(0.5, TOTAL // 2, 90.0, 60.0)) is None
    assert "wait for memory 60 %" in str(why_short(Signs(0.2, TOTAL // 5, 90.0, 60.0)))
    assert not is_calm(Signs(0.5, TOTAL // 2, 90.0, 60.0))


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.999), st.integers(4, 2048))
def test_on_a_host_whose_other_use_does_not_change_it_comes_to_rest(base: float, most: int) -> None:
    """The store's own memory is part of what is short: giving it back must not begin a swing."""
    budget = Budget(most * MIB)
    changes = 0
    for step in range(4 * 3600 // 2):
        free = TOTAL - base * TOTAL - FILE_FACTOR * budget.bytes
        share = max(0.0, free / TOTAL)
        now = 2.0 * step
        changes += budget.look(now, Signs(share, int(share * TOTAL), None, None), budget.bytes)
    assert changes <= 6
    if share >= EASY + FILE_FACTOR * budget.most / TOTAL:
        assert budget.bytes == budget.most


def test_a_relapse_makes_the_next_growth_wait_longer() -> None:
    budget = Budget(256 * MIB)
    want = Signs(0.02, TOTAL // 50, None, None)
    calm = Signs(0.9, TOTAL * 9 // 10, 0.0, 0.0)
    now, waits, since = 0.0, [], 0.0
    for _ in range(4):
        while budget.bytes == budget.most:
            now += 2
            if budget.look(now, want, budget.bytes):
                since = now
        while budget.bytes < budget.most:
            now += 2
            budget.look(now, calm, budget.bytes)
        waits.append(now - since)
    assert waits == sorted(waits)
    assert waits[-1] >= 4 * waits[0]
