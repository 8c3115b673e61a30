"""Key patterns: Redis's glob over the whole key, or text that the key contains."""

from __future__ import annotations

import re
from collections.abc import Callable

from bi_performance_wire.errors import INVALID_ARGUMENT, WireError

MAX_STARS = 32


def matcher(pattern: str | None) -> Callable[[bytes], bool]:
    """A predicate over keys; None matches every key.

    A pattern with `*`, `?` or `[` is a glob over the whole key, byte by byte as in Redis: `[abc]`,
    `[a-z]`, `[^a]`, and a backslash before a character that means itself. Any other pattern
    matches the keys that contain it. The regular expression it becomes cannot backtrack over a
    star: each piece between stars is matched where it first fits and never tried again, so the
    time is linear in the key for each star. Raises WireError for a pattern that cannot be read.
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
    compiled = re.compile(_expression(text), re.DOTALL)
    return lambda key: compiled.fullmatch(key) is not None


def _expression(glob: bytes) -> bytes:
    """The glob as a regular expression over bytes."""
    pieces: list[list[bytes]] = [[]]
    at = 0
    while at < len(glob):
        character = glob[at : at + 1]
        at += 1
        if character == b"*":
            if pieces[-1] or len(pieces) == 1:
                pieces.append([])
            continue
        if character == b"?":
            pieces[-1].append(b".")
        elif character == b"[":
            members, at = _members(glob, at)
            pieces[-1].append(members)
        else:
            if character == b"\\" and at < len(glob):
                character = glob[at : at + 1]
                at += 1
            pieces[-1].append(re.escape(character))
    joined = [b"".join(piece) for piece in pieces]
    if len(joined) == 1:
        return joined[0]
    first, *middle, last = joined
    return first + b"".join(b"(?>.*?" + piece + b")" for piece in middle) + b".*" + last


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
