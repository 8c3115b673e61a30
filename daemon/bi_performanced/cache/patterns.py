"""Key patterns: Redis's glob over the whole key, or text that the key contains."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from bi_performance_wire.errors import INVALID_ARGUMENT, WireError

MAX_STARS = 32
MAX_LOOSE = 64
"""Characters of a piece between two stars that has `?` or `[` in it: what is tried at each byte."""

Matcher = Callable[[bytes], bool]


def matcher(pattern: str | None) -> Matcher:
    """A predicate over keys; None matches every key.

    A pattern with `*`, `?` or `[` is a glob over the whole key, byte by byte as in Redis: `[abc]`,
    `[a-z]`, `[^a]`, and a backslash before a character that means itself. Any other pattern
    matches the keys that contain it. Nothing backtracks over a star: each piece between two is
    taken where it first fits, which is right because every character of it is one byte long. The
    time for a key is linear in its length, times MAX_LOOSE at worst. Raises WireError for a
    pattern that cannot be read or would cost more.
    """
    if pattern is None:
        return lambda key: True
    text = pattern.encode("utf-8", "surrogatepass")
    if not re.search(rb"[*?\[]", text):
        return lambda key: text in key
    if text.count(b"*") > MAX_STARS:
        raise WireError(
            INVALID_ARGUMENT,
            f"the pattern has more than {MAX_STARS} stars",
            field="pattern",
            hint="use fewer stars; adjoining ones mean the same as one",
        )
    first, *others = _pieces(text)
    if not others:
        return lambda key: len(key) == first.length and first.fits(key, 0)
    *middle, last = others
    if any(piece.loose is not None and piece.length > MAX_LOOSE for piece in middle):
        raise WireError(
            INVALID_ARGUMENT,
            f"the pattern has more than {MAX_LOOSE} characters, with ? or [ among them,"
            " between two stars",
            field="pattern",
            hint="put a star in their place, or leave out the stars around them",
        )

    def matches(key: bytes) -> bool:
        at, end = first.length, len(key) - last.length
        if at > end or not first.fits(key, 0) or not last.fits(key, end):
            return False
        for piece in middle:
            at = piece.find(key, at, end) + piece.length
            if at < piece.length:
                return False
        return True

    return matches


class Piece(NamedTuple):
    """What stands between two stars: `length` bytes, each of them given or loose."""

    length: int
    text: bytes
    loose: re.Pattern[bytes] | None
    """The piece as an expression, when a `?` or a class is in it; else `text` is the piece."""

    def fits(self, key: bytes, at: int) -> bool:
        """Whether the key has the piece at a place."""
        if self.loose is None:
            return key.startswith(self.text, at)
        return self.loose.match(key, at) is not None

    def find(self, key: bytes, start: int, end: int) -> int:
        """Where the key first has the piece within bounds, or -1."""
        if self.loose is None:
            return key.find(self.text, start, end)
        found = self.loose.search(key, start, end)
        return -1 if found is None else found.start()


def _pieces(glob: bytes) -> list[Piece]:
    """What stands before, between and behind the stars, of which adjoining ones are one."""
    pieces: list[Piece] = []
    parts: list[bytes] = []
    text = b""
    loose = False
    at = 0

    def end_piece() -> None:
        nonlocal parts, text, loose
        made = re.compile(b"".join(parts), re.DOTALL) if loose else None
        pieces.append(Piece(len(parts), text, made))
        parts, text, loose = [], b"", False

    while at < len(glob):
        character = glob[at : at + 1]
        at += 1
        if character == b"*":
            if parts or not pieces:
                end_piece()
            continue
        if character == b"?":
            parts.append(b".")
            loose = True
        elif character == b"[":
            members, at = _members(glob, at)
            parts.append(members)
            loose = True
        else:
            if character == b"\\" and at < len(glob):
                character = glob[at : at + 1]
                at += 1
            parts.append(re.escape(character))
            text += character
    end_piece()
    return pieces


def _members(glob: bytes, at: int) -> tuple[bytes, int]:
    """The class that begins behind a `[`, and where the glob goes on."""
    inverted = glob[at : at + 1] == b"^"
    at += inverted
    members: list[bytes] = []
    while at < len(glob) and glob[at : at + 1] != b"]":
        if glob[at : at + 1] == b"\\" and at + 1 < len(glob):
            at += 1
        low = glob[at : at + 1]
        at += 1
        if glob[at : at + 1] == b"-" and at + 1 < len(glob) and glob[at + 1 : at + 2] != b"]":
            high = glob[at + 1 : at + 2]
            at += 2
            low, high = min(low, high), max(low, high)
            members.append(re.escape(low) + b"-" + re.escape(high))
        else:
            members.append(re.escape(low))
    if at >= len(glob):
        raise WireError(
            INVALID_ARGUMENT,
            "the pattern opens a [ that nothing closes",
            field="pattern",
            hint="close it with ], or write \\[ for the character itself",
        )
    if not members:
        return (b"." if inverted else b"(?!)"), at + 1
    return b"[" + (b"^" if inverted else b"") + b"".join(members) + b"]", at + 1
