"""Tables and lines of any keys, within the width of any terminal; whole where there is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from bi_performance_ctl.console import Console
from bi_performance_ctl.render.cells import broken, shortened
from bi_performance_ctl.render.insight import breakdown, explained, key_text, top
from bi_performance_ctl.render.prose import fold
from bi_performance_wire.streams import visible


class OnTerminal(Console):
    """A console of a terminal of so many columns, or of none."""

    width: int | None

    @property
    def columns(self) -> int | None:
        return self.width


def console(columns: int | None) -> Console:
    made = OnTerminal(None, json=False, seconds=1.0, color=False)
    made.width = columns
    return made


KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    [
        "https://example.com/" + "long/" * 30,
        "\u65e5\u672c\u8a9e" * 40,
        "e\u0301" * 90,
        "\u2764\ufe0f" * 50,
    ]
)
COLUMNS = st.integers(40, 160)


def of_prefix(prefix: str | None, many: int) -> dict[str, Any]:
    return {
        "prefix": prefix,
        "entries": many,
        "size_bytes": many * 1000,
        "unread_entries": many // 2,
        "hits": many * 3.0,
        "misses": many / 3,
        "hit_rate": 0.9,
        "hit_rate_error": 0.123,
        "evicted_unread": many / 4,
    }


def by_prefix(prefixes: list[str], many: int) -> dict[str, Any]:
    rows = [of_prefix(each, many) for each in prefixes]
    return {"by": "prefix", "prefixes": rows, "other": of_prefix(None, many), "seconds": 60.0}


def by_hits(keys: list[str], many: int) -> dict[str, Any]:
    return {
        "by": "hits",
        "keys": [
            {
                "key": each,
                "cut": False,
                "count": many * 1.0,
                "at_least": many * 0.9,
                "at_most": many * 1.1,
                "here": True,
                "stored_bytes": many,
                "age_seconds": many * 1.0,
                "ttl_seconds": None,
            }
            for each in keys
        ],
        "counted": many * 2.0,
        "seconds": 60.0,
        "unnamed": 0.0,
    }


def explaining(key: str) -> dict[str, Any]:
    return {
        "key": key,
        "outcome": "miss",
        "why": "It was never stored, as far as it is remembered.",
        "more": [],
        "local": None,
        "redis": None,
        "lease": None,
        "past": None,
        "unknown": {"redis": key},
    }


@given(st.lists(KEYS, min_size=1, max_size=4), COLUMNS, st.integers(0, 10**8))
def test_no_line_of_a_table_is_wider_than_the_terminal(
    keys: list[str], columns: int, many: int
) -> None:
    where = console(columns)
    for text in (breakdown(by_prefix(keys, many), where), top(by_hits(keys, many), where)):
        assert max(map(cell_len, text.split("\n"))) <= columns, text


@given(KEYS, COLUMNS)
def test_an_explanation_is_not_wider_than_the_terminal(key: str, columns: int) -> None:
    first, *others = explained(explaining(key), console(columns)).split("\n")
    assert cell_len(first) <= columns
    # Words of ASCII stay whole, so that they can be copied.
    assert all(cell_len(line) <= columns for line in others if not line.isascii())


@given(st.lists(KEYS, min_size=1, max_size=4))
def test_without_a_terminal_nothing_is_cut_and_each_key_has_one_line(keys: list[str]) -> None:
    where = console(None)
    lines = breakdown(by_prefix(keys, 5), where).split("\n")
    assert [key_text(each) or "(none)" for each in keys] == [
        line[lines[1].index("prefix") :] for line in lines[2 : 2 + len(keys)]
    ]
    found = top(by_hits(keys, 5), where).split("\n")
    assert [line[found[1].index("key") :] for line in found[2 : 2 + len(keys)]] == [
        key_text(each) for each in keys
    ]
    assert explained(explaining(keys[0]), where).startswith(f"\u25cf miss  {key_text(keys[0])}\n")


@given(KEYS, st.integers(1, 80))
def test_a_shortened_name_keeps_its_begin_and_its_end(key: str, columns: int) -> None:
    text = key_text(key)
    found = shortened(text, columns)
    assert cell_len(found) <= columns
    if cell_len(text) <= columns:
        assert found == text
    elif columns > 1:
        begin, end = found.split("\u2026", 1) if text.count("\u2026") == 0 else ("", "")
        assert text.startswith(begin) and text.endswith(end)


@given(KEYS, st.integers(2, 80))
def test_a_broken_word_is_whole(key: str, columns: int) -> None:
    text = key_text(key)
    assert "".join(broken(text, columns)) == text


def test_a_line_of_a_language_without_blanks_is_folded() -> None:
    text = "one two " + "\u65e5\u672c" * 30
    lines = fold(text, "  ", console(40))
    assert max(map(cell_len, lines)) <= 40
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "sign", ["\u202e", "\u202a", "\u2066", "\u2069", "\u200e", "\u200f", "\u061c", "\u2028"]
)
def test_what_turns_the_direction_of_the_writing_is_shown_as_an_escape(
    sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    escaped = f"\\u{ord(sign):04x}"
    assert visible(f"a{sign}b") == visible(f"a{sign}b", lines=True) == f"a{escaped}b"
    assert sign not in top(by_hits([f"a{sign}b"], 1), console(None))
    console(None).document({"key": f"a{sign}b"})
    out = capsys.readouterr().out
    assert escaped in out and sign not in out
