"""Arguments that come as text, from a URL's query or a shell, where a list is one word."""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec


@cache
def listed(kind: type[msgspec.Struct]) -> frozenset[str]:
    """The fields of an argument struct that are lists of text."""
    return frozenset(name for name, hint in get_type_hints(kind).items() if _is_list(hint))


def _is_list(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(_is_list(part) for part in get_args(hint))
    return get_origin(hint) is list and get_args(hint)[0] is str


def split_list(text: str) -> list[str]:
    """`one,two` as a list; blanks around a comma are not part of a name."""
    return [part.strip() for part in text.split(",") if part.strip()]
