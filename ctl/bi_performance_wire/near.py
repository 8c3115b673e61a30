"""The known name that a mistyped one is nearest to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MOST: Final = 64
"""Characters of a name that is looked for: the search costs their square for each known name."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The nearest known name, or None when none is near, or the name is none a person types."""
    if len(name) > MOST:
        return None
    import difflib  # late: most runs mistype nothing

    found = difflib.get_close_matches(name, list(known), n=1)
    return found[0] if found else None
