"""The curve is drawn for any figures, within the width of a terminal."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bi_performance_ctl.console import Console
from bi_performance_ctl.render.curve import curve
from bi_performanced.cache.curve import FACTORS

PLAIN = Console(None, json=False, seconds=1.0, color=False)
RATES = st.lists(st.none() | st.floats(0, 1), min_size=len(FACTORS), max_size=len(FACTORS))


def result(
    rates: list[float | None], size: int = 10_000, unit: str = "entries", **other: Any
) -> dict[str, Any]:
    in_bytes = unit == "bytes"
    points = [
        {
            "size": factor,
            "max_size": None if in_bytes else max(1, round(factor * size)),
            "max_bytes": max(1, round(factor * size)) if in_bytes else None,
            "hit_rate": rate,
            "margin": None if rate is None else 0.01,
            "rule": "s3-fifo, 10% small",
            "accesses": 100,
            "wanted": 400,
            "sample_rate": 0.1,
        }
        for factor, rate in zip(FACTORS, rates, strict=True)
    ]
    found = {
        "limit": unit,
        "hit_rate": 0.5,
        "reads": 1000,
        "window_seconds": 90.0,
        "heard": 1.0,
        "points": points,
    }
    return found | other


@given(RATES, st.integers(1, 10**12), st.sampled_from(["entries", "bytes"]))
def test_any_figures_are_drawn_in_80_columns(
    rates: list[float | None], limit: int, unit: str
) -> None:
    lines = curve(result(rates, limit, unit), PLAIN).splitlines()
    drawn = [line for line in lines if "│" in line]
    assert len(drawn) == (10 if sum(rate is not None for rate in rates) >= 2 else 0)
    assert all(len(line) <= 80 for line in drawn)
    assert sum("now" in line for line in lines) >= 1
    for rate in rates:
        assert rate is None or any(f"{rate:.1%}" in line for line in lines)


def test_a_higher_rate_is_a_higher_area() -> None:
    rates: list[float | None] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    chart = [line for line in curve(result(rates), PLAIN).splitlines() if "│" in line]
    lengths = [len(line.split("│")[1].replace(" ", "")) for line in chart]
    assert lengths == sorted(lengths), "each row of the area is at least as wide as the one above"
    assert chart[2].strip().startswith("80%")


def test_what_is_unknown_is_a_dash_and_says_how_much_is_wanted() -> None:
    text = curve(result([None] * len(FACTORS), hit_rate=None, reads=0), PLAIN)
    assert "100 of 400 accesses" in text
    assert "0.0%" not in text and "│" not in text


def test_it_says_when_the_models_rested() -> None:
    rates: list[float | None] = [0.5] * len(FACTORS)
    assert "heard 12.0% of the traffic" in curve(result(rates, heard=0.12), PLAIN)
