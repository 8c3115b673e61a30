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
        ("a*a", b"a", False),
        ("ab*ba", b"aba", False),
        ("a?*?a", b"a12a", True),
        ("a?*?a", b"a1a", False),
        ("*b?d*d", b"abxbcdd", True),
        ("*b[cx]d*d", b"abxbcd", False),
    ],
)
def test_patterns_match_as_in_redis(pattern: str | None, key: bytes, expected: bool) -> None:
    assert matcher(pattern)(key) is expected


@pytest.mark.parametrize("pattern", ["[a", "a[", "*" * 40, "*" + "a?" * 40 + "*"])
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


def naive(pattern: str, key: str) -> bool:
    """The glob by definition, one character at a time."""
    if not pattern:
        return not key
    if pattern[0] == "*":
        return any(naive(pattern[1:], key[at:]) for at in range(len(key) + 1))
    if pattern[0] == "[":
        members, rest = pattern[1:].split("]", 1)
        inverted = members[0] == "^"
        return bool(key) and (key[0] in members[inverted:]) != inverted and naive(rest, key[1:])
    return bool(key) and pattern[0] in ("?", key[0]) and naive(pattern[1:], key[1:])


PARTS = st.sampled_from(["a", "b", "ab", "*", "?", "[a]", "[^a]", "[bc]"])


@given(st.lists(PARTS, min_size=1, max_size=8).map("".join), st.text("abc", max_size=10))
def test_globs_match_as_defined(pattern: str, key: str) -> None:
    if any(char in pattern for char in "*?["):
        assert matcher(pattern)(key.encode()) == naive(pattern, key)


@pytest.mark.parametrize(
    "pattern", ["a*" * 20 + "b", "*" + "a?" * 31 + "b*c", "?" * 1000 + "*b", "*" + "a" * 900 + "b*"]
)
def test_a_pattern_made_to_be_slow_is_not(pattern: str) -> None:
    assert not matcher(pattern)(b"a" * 8000)
