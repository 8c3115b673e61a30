"""Key patterns: Redis's glob, or text that the key contains; never slow, never a traceback."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_performance_wire.errors import WireError
from bi_performanced.cache.patterns import matcher


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        (None, b"anything", True),
        ("analytics", b"user:analytics:5", True),
        ("analytics", b"user", False),
        ("user:*", b"user:5", True),
        ("user:*", b"a user:5", False),
        ("*", b"", True),
        ("*:5", b"user:5", True),
        ("a*b*c", b"aXbYc", True),
        ("a*b*c", b"aXcYb", False),
        ("a?c", b"abc", True),
        ("a?c", b"ac", False),
        ("[abc]", b"b", True),
        ("[a-c]x", b"bx", True),
        ("[^a]", b"b", True),
        ("[^a]", b"a", False),
        (r"\*", b"*", True),
        (r"a\*b*", b"a*bc", True),
        (r"a\*b*", b"aXbc", False),
        ("*", b"\xff\x00\n", True),
        ("a?b", b"a\nb", True),
        (".+*", b".+x", True),
        (".+*", b"abx", False),
        ("(", b"f(x)", True),
        ("é*", "été"[:1].encode() + b"x", True),
    ],
)
def test_patterns_match_as_in_redis(pattern: str | None, key: bytes, expected: bool) -> None:
    assert matcher(pattern)(key) is expected


@pytest.mark.parametrize("pattern", ["[a", "a[", "*" * 40])
def test_a_pattern_that_cannot_be_read_is_named(pattern: str) -> None:
    with pytest.raises(WireError) as caught:
        matcher(pattern)
    assert caught.value.field == "pattern"


ALPHABET = st.sampled_from("ab*?")


@given(st.text(ALPHABET, min_size=1, max_size=8), st.text("ab", max_size=8))
def test_stars_and_question_marks_are_fnmatch_s(pattern: str, key: str) -> None:
    found = matcher(pattern)(key.encode())
    if any(char in pattern for char in "*?"):
        assert found == fnmatch.fnmatchcase(key, pattern)
    else:
        assert found == (pattern in key)


@given(st.text(min_size=1, max_size=60), st.binary(max_size=100))
def test_any_text_is_a_pattern_or_an_error(pattern: str, key: bytes) -> None:
    try:
        matches = matcher(pattern)
    except WireError as error:
        assert error.field == "pattern"
        return
    assert matches(key) in (True, False)


def test_a_pattern_made_to_backtrack_does_not() -> None:
    assert not matcher("a*" * 20 + "b")(b"a" * 8000)
