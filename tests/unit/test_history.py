"""The past of the figures: fixed memory, and a file that may be anything."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_performanced.monitor.figures import SERIES
from bi_performanced.monitor.history import MINUTES, SECONDS, History, Mean, Track

NAMES = ("a", "b")


def filled(points: int = 5) -> History:
    history = History(NAMES)
    for n in range(points):
        history.seconds.add(100.0 + n, {"a": float(n)})
        history.minutes.add(200.0 + n, {"a": 1.0, "b": float(n)})
    return history


def loaded(data: bytes, names: tuple[str, ...] = NAMES) -> History:
    history = History(names)
    history.load(data)
    return history


def test_the_newest_points_stay_oldest_first() -> None:
    track = Track(NAMES, 3)
    assert (track.times(), track.last("a", 9)) == ([], [])
    for n in range(5):
        track.add(float(n), {"a": None if n == 3 else float(n), "c": 1.0})
    assert track.times() == [2.0, 3.0, 4.0]
    assert track.series() == {"a": [2.0, None, 4.0], "b": [None, None, None]}
    assert track.last("a", 2) == [None, 4.0]
    assert track.last("a", 0) == []


def test_memory_is_fixed_however_long_it_runs() -> None:
    history = History(SERIES)

    def sizes() -> list[int]:
        tracks = (history.seconds, history.minutes)
        return [
            len(column) for track in tracks for column in (track._times, *track._values.values())
        ]

    before = sizes()
    assert set(before) == {SECONDS, MINUTES} == {600, 1440}
    for n in range(3 * SECONDS):
        history.seconds.add(float(n), dict.fromkeys(SERIES, 1.0))
        history.minutes.add(float(n), dict.fromkeys(SERIES, 1.0))
    assert sizes() == before
    assert 8 * sum(before) < 1 << 20, "less than a megabyte in all"
    assert len(history.dump()) < 1 << 20


def test_a_wall_clock_that_jumps_keeps_the_order_of_arrival() -> None:
    track = Track(NAMES, 4)
    for at in (100.0, 5000.0, 50.0, 51.0, 52.0):
        track.add(at, {"a": at})
    assert track.times() == [5000.0, 50.0, 51.0, 52.0]
    assert track.last("a", 2) == [51.0, 52.0]


def test_the_mean_is_of_what_was_known_since_the_last_one() -> None:
    mean = Mean(NAMES)
    assert mean.take() == {"a": None, "b": None}
    mean.add({"a": 1.0, "b": None})
    mean.add({"a": 3.0})
    assert mean.take() == {"a": 2.0, "b": None}
    assert mean.take() == {"a": None, "b": None}


@pytest.mark.parametrize("points", [0, 1, 599, 600, 2000])
def test_what_is_written_is_read_again(points: int) -> None:
    history = filled(points)
    again = loaded(history.dump())
    for one, other in ((history.seconds, again.seconds), (history.minutes, again.minutes)):
        assert (one.times(), one.series()) == (other.times(), other.series())


def test_series_that_came_and_went_are_matched_by_name() -> None:
    again = loaded(filled(3).dump(), ("new", "b"))
    assert again.minutes.series() == {"new": [None] * 3, "b": [0.0, 1.0, 2.0]}
    assert again.minutes.times() == [200.0, 201.0, 202.0]


def with_head(head: object) -> bytes:
    return b"BIHISTORY1\n" + json.dumps(head).encode() + b"\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not begin"),
        (b"BIHISTORY2\n{}\n", "another version"),
        (b"BIHISTORY1\n", "head is missing"),
        (b"BIHISTORY1\n" + b"[" * 60_000 + b"\n", "head cannot be read"),
        (b"BIHISTORY1\n" + b" " * 100_000 + b"\n", "head is missing"),
        (with_head([]), "head cannot be read"),
        (with_head({"names": ["a"]}), "head cannot be read"),
        (with_head({"names": ["a"], "counts": [1]}), "head cannot be read"),
        (with_head({"names": ["a"], "counts": [float("inf"), 1]}), "head cannot be read"),
        (with_head({"names": ["a"], "counts": [-1, 0]}), "length"),
        (with_head({"names": ["a"], "counts": [10**9, 0]}), "length"),
        (with_head({"names": ["a"], "counts": [601, 0]}) + bytes(8 * 2 * 601), "length"),
        (with_head({"names": [], "counts": [1, 0]}) + b"\xff" * 8, "without a time"),
        (filled().dump()[:-1], "length"),
        (filled().dump() + b"x", "length"),
    ],
)
def test_what_is_no_history_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        loaded(data)


@given(data=st.binary(max_size=400), cut=st.integers(0, 400))
def test_random_bytes_are_refused_and_nothing_else_happens(data: bytes, cut: int) -> None:
    for candidate in (data, filled(2).dump()[:cut] + data, with_head({"names": []}) + data):
        try:
            loaded(candidate)
        except ValueError:
            continue
        assert candidate.startswith(b"BIHISTORY1\n")


def test_infinity_in_a_file_is_unknown() -> None:
    history = filled(1)
    history.seconds.add(1.0, {"a": float("inf"), "b": float("-inf")})
    again = loaded(history.dump())
    assert (again.seconds.last("a", 1), again.seconds.last("b", 1)) == ([None], [None])


def test_the_file_is_replaced_whole_and_is_the_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = filled()
    history.save(path, b"first")
    history.save(path, b"second")
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["history"]  # noqa: PTH208 (names)


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        filled().save(path, b"data")
    assert os.listdir(tmp_path) == ["history"]  # noqa: PTH208 (names)
