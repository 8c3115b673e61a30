"""Which keys are alike: by what they begin with.

A key belongs to the longest of the configured prefixes (`cache.prefixes`) that it begins with, else
to its own beginning: of an address the scheme and host with the slash behind it, of any other key
what stands before its first `:`, `|` or `/` and that sign, within 64 bytes. A key without any of
them belongs to none, shown as `(none)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bi_performanced.cache.departures import LONGEST_PREFIX, prefix_of

NONE: Final = b""

Rule = Callable[[bytes], bytes]


def rule_of(configured: Sequence[bytes] = ()) -> Rule:
    """What gives a key's prefix."""
    # Longest first; a prefix of 64 bytes or less is found even in the beginning of a key alone.
    known = tuple(sorted(configured, key=len, reverse=True))

    def rule(key: bytes) -> bytes:
        for prefix in known:
            if key.startswith(prefix):
                return prefix
        return _beginning(key)

    return rule


def _beginning(key: bytes) -> bytes:
    prefix = prefix_of(key)
    if len(prefix) == len(key) or len(prefix) == LONGEST_PREFIX:
        last = prefix[-1:]
        if last not in b":|/" and b"://" not in prefix:
            return NONE
    return prefix
