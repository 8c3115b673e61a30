"""The rules: silent on what is well or too little, and right about what they say."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_performance_wire.types import CacheCurve, CurvePoint
from bi_performanced.advice.catalog import LIVE
from bi_performanced.advice.rules import MIN_READS, MIN_SETS, RULES, Finding, shrunk
from bi_performanced.advice.window import HOST, Evidence
from bi_performanced.cache.departures import KEPT, Departures, Tally, prefix_of
from bi_performanced.cache.patterns import matcher
from bi_performanced.config.overlay import ROWS
from bi_performanced.config.parse import convert

GROWN = (
    *("hits", "misses", "sets", "evictions", "expirations", "inserts", "returns"),
    *("default_ttl_sets", "refilled"),
    *("compression_tried", "compression_kept", "compression_tried_bytes"),
)
MIB = 1 << 20


def curve(
    rates: dict[float, float | None], margin: float = 0.01, *, limit: int = 10_000
) -> CacheCurve:
    """A curve in entries through these points."""
    points = [
        CurvePoint(
            size=size,
            max_size=round(limit * size),
            max_bytes=None,
            hit_rate=rate,
            margin=None if rate is None else margin,
            rule="lru",
            accesses=5000,
            wanted=600,
            sample_rate=0.1,
        )
        for size, rate in rates.items()
    ]
    return CacheCurve(
        limit="entries",
        hit_rate=rates[1],
        reads=10_000,
        window_seconds=600.0,
        heard=1.0,
        cpu_seconds=0.1,
        points=points,
    )


def evidence(
    grown: dict[str, int] | None = None,
    host: dict[str, list[float]] | None = None,
    used: tuple[int, int] = (0, 0),
    **other: Any,
) -> Evidence:
    """A healthy cache, but for what is given."""
    values: dict[str, Any] = {
        "seconds": 600.0,
        "whole": True,
        "grown": dict.fromkeys(GROWN, 0) | {"hits": 9500, "misses": 500} | (grown or {}),
        "peak_live_bytes": 20 * MIB,
        "entries": 1000,
        "max_entries": 10_000,
        "live_bytes": 20 * MIB,
        "max_bytes": 256 * MIB,
        "budget": 256 * MIB,
        "budget_reason": None,
        "store_limit": 32 * MIB,
        "store_bytes": 48 * MIB,
        "room": 512 * MIB,
        "default_ttl": 3600.0,
        "compression": True,
        "departures": Tally(),
        "used": lambda prefix: used,
        "profile": "balanced",
        "raised": frozenset(),
        "host": dict.fromkeys(HOST, [50.0] * 30)
        | {"pressure_memory_some_percent": [0.0] * 30}
        | {"cgroup_memory_bytes": [], "cgroup_memory_limit_bytes": []}
        | (host or {}),
    }
    return Evidence(**(values | other))


def found(seen: Evidence) -> dict[str, Finding]:
    return {each.id: each for rule in RULES if (each := rule(seen)) is not None}


def unread(prefix: str, count: int) -> Tally:
    keys = [(f"{prefix}{n}".encode(), 500, True) for n in range(min(count, KEPT))]
    return Tally(left=count, unread=count, keys=keys)


CASES: dict[str, Evidence] = {
    "cache.too_small": evidence(
        {"hits": 600, "misses": 600, "inserts": 600, "evictions": 300, "returns": 200},
        entries=10_000,
    ),
    "cache.expiry": evidence(
        {
            "hits": 600,
            "misses": 600,
            "inserts": 600,
            "sets": 600,
            "default_ttl_sets": 600,
            "refilled": 500,
        },
        departures=Tally(refill_ages=[0] * 15 + [500] + [0] * 24),
    ),
    "cache.never_read": evidence(departures=unread("log:", 400), used=(100, 2)),
    "cache.incompressible": evidence(
        {"compression_tried": 300, "compression_kept": 10, "compression_tried_bytes": 5 << 20}
    ),
    "cache.oversized": evidence(
        peak_live_bytes=10 * MIB, store_limit=256 * MIB, store_bytes=384 * MIB
    ),
    "cache.larger_than_needed": evidence(
        entries=10_000, curve=curve({0.25: 0.7, 0.5: 0.948, 1: 0.95, 2: 0.951})
    ),
    "memory.pressure": evidence(host={"memory_used_percent": [95.0] * 30}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_rule_speaks_on_its_own_evidence_alone(name: str) -> None:
    assert set(found(CASES[name])) == {name}
    finding = found(CASES[name])[name]
    assert finding.evidence["sample"] > 0 and finding.evidence["window_seconds"] >= 0
    assert finding.title and finding.action and finding.expected_effect


@pytest.mark.parametrize("name", CASES)
def test_a_command_that_sets_something_sets_what_can_be_set(name: str) -> None:
    words = shlex.split(found(CASES[name])[name].command)
    assert words[0] == "bi-performance"
    if words[1:3] == ["config", "set"]:
        key, value = words[3:]
        assert key in LIVE
        convert(ROWS[key], value, "the command")


def test_nothing_is_said_of_a_healthy_cache_nor_of_an_idle_one() -> None:
    assert found(evidence()) == {}
    assert found(evidence(dict.fromkeys(GROWN, 0), peak_live_bytes=0, store_limit=256 * MIB)) == {}


def few(seen: Evidence, **other: Any) -> Evidence:
    import dataclasses

    return dataclasses.replace(seen, **other)


def test_nothing_is_said_before_the_least_sample() -> None:
    small, short = CASES["cache.too_small"], CASES["cache.expiry"]
    for seen in (small, short):
        assert found(few(seen, grown=seen.grown | {"hits": 300, "misses": MIN_READS - 301})) == {}
        assert found(few(seen, grown=seen.grown | {"inserts": MIN_SETS - 1})) == {}
    tried = CASES["cache.incompressible"]
    assert found(few(tried, grown=tried.grown | {"compression_tried": MIN_SETS - 1})) == {}
    assert found(evidence(departures=unread("log:", MIN_SETS - 1), used=(100, 0))) == {}
    assert found(few(CASES["cache.oversized"], whole=False)) == {}
    assert found(evidence(host={"memory_used_percent": [95.0] * 9})) == {}


def test_a_peak_of_a_moment_is_no_pressure() -> None:
    assert found(evidence(host={"memory_used_percent": [99.0] * 29 + [60.0]})) == {}
    assert found(evidence(host={"pressure_memory_some_percent": [50.0] * 29 + [0.0]})) == {}


def test_pressure_that_was_told_of_is_over_only_well_below_the_limit() -> None:
    nearly = {"memory_used_percent": [88.0] * 30}
    assert found(evidence(host=nearly)) == {}
    assert set(found(evidence(host=nearly, raised=frozenset({"memory.pressure"})))) == {
        "memory.pressure"
    }
    calm = {"memory_used_percent": [84.0] * 30}
    assert found(evidence(host=calm, raised=frozenset({"memory.pressure"}))) == {}


def test_a_store_that_is_a_small_part_of_the_memory_is_not_given_up() -> None:
    host = {"memory_used_percent": [95.0] * 30, "memory_total_bytes": [24e9] * 30}
    assert found(evidence(host=host))["memory.pressure"].command == "bi-performance metrics"


def test_nobody_is_told_to_keep_more_while_memory_is_short() -> None:
    seen = few(CASES["cache.too_small"], host=CASES["memory.pressure"].host)
    assert set(found(seen)) == {"memory.pressure"}


def test_the_control_group_s_limit_counts_before_the_host_s() -> None:
    group = {"cgroup_memory_bytes": [95.0] * 12, "cgroup_memory_limit_bytes": [100.0] * 12}
    finding = found(evidence(host=group))["memory.pressure"]
    assert finding.evidence["cgroup_memory_used_percent"] == 95


def test_the_remedy_for_pressure_is_one_that_frees_something() -> None:
    host = {"memory_used_percent": [95.0] * 30}
    pressed = evidence(host=host, max_bytes=256 * MIB, store_limit=256 * MIB)
    command = found(pressed)["memory.pressure"].command
    assert command == "bi-performance optimize memory_focused"
    # Half of what is configured is still more than the store takes.
    command = found(evidence(host=host, store_limit=32 * MIB))["memory.pressure"].command
    assert command == f"bi-performance config set cache.max_bytes {16 * MIB}"
    focused = few(pressed, profile="memory_focused")
    assert "config set cache.max_bytes" in found(focused)["memory.pressure"].command
    least = evidence(host=host, store_limit=4 * MIB, max_bytes=4 * MIB)
    assert found(least)["memory.pressure"].command == "bi-performance metrics"


def test_the_curve_says_how_many_entries_are_worth_it_and_what_they_would_hit() -> None:
    small = few(CASES["cache.too_small"], max_bytes=512 * MIB)
    rates: dict[float, float | None] = {0.5: 0.4, 1: 0.5, 1.5: 0.53, 2: 0.56, 4: 0.7, 8: 0.72}
    finding = found(few(small, curve=curve(rates)))["cache.too_small"]
    assert finding.command == "bi-performance config set cache.max_size 40000"
    assert "from 50.0% to 70.0%" in finding.expected_effect
    assert finding.evidence["curve"]["2"] == 0.56
    assert finding.evidence["predicted_hit_rate"] == 0.7
    no_room_for_more = few(small, live_bytes=20 * MIB, max_bytes=40 * MIB, curve=curve(rates))
    assert found(no_room_for_more)["cache.too_small"].command.endswith("max_size 20000")


def test_where_the_curve_is_flat_unsure_or_unknown_it_proposes_no_size() -> None:
    small = CASES["cache.too_small"]
    flat = curve({0.5: 0.4, 1: 0.5, 2: 0.505, 4: 0.51})
    assert found(few(small, curve=flat)) == {}, "more is of no use, however much came back"
    for unknown in (curve({1: 0.5, 2: None}), curve({1: 0.5, 2: 0.7}, margin=0.03)):
        finding = found(few(small, curve=unknown))["cache.too_small"]
        assert "curve" not in finding.evidence
    unsure = curve({0.5: 0.95, 1: 0.95}, margin=0.03)
    assert found(few(CASES["cache.larger_than_needed"], curve=unsure)) == {}


def test_a_store_that_hits_as_much_with_half_is_told_only_where_that_spares_something() -> None:
    seen = CASES["cache.larger_than_needed"]
    finding = found(seen)["cache.larger_than_needed"]
    assert finding.command == "bi-performance config set cache.max_size 5000"
    assert "from 95.0% to 94.8%" in finding.expected_effect
    assert found(few(seen, live_bytes=2 * MIB)) == {}
    assert found(few(seen, entries=4000)) == {}, "it is not full"


def test_the_cost_of_giving_memory_back_is_told_where_the_curve_knows_it() -> None:
    host = {"memory_used_percent": [95.0] * 30}
    full = evidence(host=host, live_bytes=32 * MIB, curve=curve({0.25: 0.6, 0.5: 0.7, 1: 0.8}))
    said = found(full)["memory.pressure"].expected_effect
    assert said.endswith("the hit rate goes from 80.0% to 70.0%")


def test_a_store_that_is_short_of_bytes_gets_bytes_as_far_as_the_host_has_them() -> None:
    seen = few(CASES["cache.too_small"], entries=500)
    assert found(seen)["cache.too_small"].command.endswith(f"cache.max_bytes {512 * MIB}")
    tight = few(seen, room=300 * MIB)
    assert found(tight)["cache.too_small"].command.endswith(f"cache.max_bytes {300 * MIB}")
    assert found(few(seen, room=100 * MIB)) == {}


def test_explicit_times_to_live_are_not_ours_to_lengthen() -> None:
    seen = CASES["cache.expiry"]
    assert found(few(seen, grown=seen.grown | {"default_ttl_sets": 100})) == {}


def test_keys_of_which_some_are_read_are_left_alone() -> None:
    assert found(evidence(departures=unread("https://example.com/", 400), used=(100, 30))) == {}
    assert found(evidence(departures=unread("log:", 400), used=(3, 0))) == {}


def test_a_pattern_is_taken_literally() -> None:
    finding = found(evidence(departures=unread("a[*]?:", 400), used=(100, 0)))["cache.never_read"]
    assert shlex.split(finding.command)[-1] == "--pattern=a[[][*]][?]:*"
    assert finding.secret == "a[*]?:"


def test_a_command_that_is_pasted_matches_the_keys_it_is_about() -> None:
    for prefix in ("win\\path/", "-foo:", "a b:", "it's:", "$(x):", "ü:", "a[b:"):
        seen = evidence(departures=unread(prefix, 400), used=(100, 0))
        words = shlex.split(found(seen)["cache.never_read"].command)
        assert words[:2] == ["bi-performance", "clear-cache"] and len(words) == 3
        matches = matcher(words[2].removeprefix("--pattern="))
        assert matches(f"{prefix}1".encode())
        assert not matches(f"x{prefix}1".encode()) and not matches(b"other")
    odd = evidence(departures=unread("a\x1b[:", 400), used=(100, 0))
    assert found(odd) == {}, "what cannot be pasted as it is shown"


@given(st.dictionaries(st.sampled_from(GROWN), st.integers(0, 10**9)), st.integers(0, 10**9))
def test_no_counts_make_a_rule_stumble(grown: dict[str, int], size: int) -> None:
    for name, finding in found(evidence(grown, store_limit=size, store_bytes=size)).items():
        assert finding.id == name and finding.command.startswith("bi-performance ")


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        (b"https://example.com/a/b", b"https://example.com/"),
        (b"analytics:daily:7", b"analytics:"),
        (b"a/b:c", b"a/"),
        (b"plain", b"plain"),
        (b"x" * 200, b"x" * 64),
        (b"://", b":/"),
        (b":", b":"),
        (b"http://" + b"h" * 200, b"http://" + b"h" * 57),
    ],
)
def test_a_prefix_is_what_like_keys_share(key: bytes, prefix: bytes) -> None:
    assert prefix_of(key) == prefix


def test_departures_are_of_a_fixed_size_and_of_two_spans() -> None:
    departures = Departures()
    for number in range(3 * KEPT):
        departures.leave(b"log:%d" % number, 10, True)
    departures.leave(b"page", 10, False)
    tally = departures.tally()
    assert (tally.left, tally.unread) == (3 * KEPT + 1, 3 * KEPT)
    assert len(tally.keys) == KEPT and tally.prefixes() == {b"log:": (KEPT, 10 * KEPT)}
    departures.rotate()
    departures.leave(b"late", 10, True)
    assert departures.tally().left == 3 * KEPT + 2
    departures.rotate()
    assert departures.tally().left == 1
    departures.restart()
    assert departures.tally().left == 0


def test_what_expired_and_comes_again_tells_its_age() -> None:
    departures = Departures()
    for digest in range(10):
        departures.expire(digest, 100)
    for digest in range(10):
        departures.arrive(digest, 100 + 36_000)
    departures.arrive(99, 5)
    assert departures.refilled == 10
    age = departures.tally().age_of_refills(0.9)
    assert age is not None and 3600 <= age <= 7200
    for digest in range(100_000):
        departures.expire(digest, 0)
    assert len(departures.expired) <= 4096


def test_a_store_that_was_made_smaller_is_told_of_until_it_has_grown_back() -> None:
    assert shrunk(evidence()) is None
    found = shrunk(evidence(budget=64 * MIB, budget_reason="3% of the memory is left"))
    assert found is not None
    assert found.title == "memory is or was short: the store may have 64 MiB of 256 MiB"
    assert found.command == f"bi-performance config set cache.max_bytes {64 * MIB}"
    assert found.evidence["reason"] == "3% of the memory is left"
