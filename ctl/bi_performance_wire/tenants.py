"""How keys and tags of a namespace are told from others: by what they begin with.

A key of the namespace `shop` begins with MARK, `shop`, MARK. No text that people type begins with
that character, so that keys of a namespace and others do not meet by accident; it is no fence
against who means to.
"""

from __future__ import annotations

import re
from typing import Final

MARK: Final = b"\x1f"
"""The ASCII unit separator."""
MAX_NAME: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


def check_tenant(name: str) -> str:
    """The name of a namespace; raises ValueError for what is none."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a namespace has 1 to {MAX_NAME} letters, digits, dots, dashes and underscores, and"
            f" begins with a letter or digit; not {name!r:.80}"
        )
    return name


def prefix_of(name: str) -> bytes:
    """What the keys of a namespace begin with. Raises ValueError."""
    return MARK + check_tenant(name).encode() + MARK


def tenant_of(key: bytes) -> bytes:
    """The namespace of a key; empty for one that is in none."""
    if key[:1] != MARK:
        return b""
    end = key.find(MARK, 1, MAX_NAME + 2)
    return key[1:end] if end > 1 else b""


def own_part(key: bytes) -> bytes:
    """A key as its namespace has it; whole where it is in none."""
    name = tenant_of(key)
    return key[len(name) + 2 :] if name else key


def pattern_of(name: str, pattern: str | None) -> str:
    """The pattern that matches, of the keys of a namespace, those that a pattern would match."""
    prefix = prefix_of(name).decode()
    if pattern is None:
        return prefix + "*"
    if any(each in pattern for each in "*?["):
        return prefix + pattern
    # One without matches the keys that contain it, and takes a backslash for what it is.
    escaped = pattern.replace("\\", "\\\\")
    return f"{prefix}*{escaped}*"


def tag_of(name: str, tag: str) -> str:
    """How a tag of a namespace is stored."""
    return f"{check_tenant(name)}\x1f{tag}"
