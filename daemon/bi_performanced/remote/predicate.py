"""A clear, as it is written into the log: everything, keys that match a pattern, or tags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgpack

Matcher = Callable[[bytes], bool]
FORMAT: Final = 1


@dataclass(frozen=True)
class Predicate:
    """What is cleared: keys that match `pattern`, entries with one of `tags`, or all if neither.

    `soft`: the entries become stale instead of going.
    """

    pattern: str | None = None
    tags: tuple[bytes, ...] = ()
    soft: bool = False

    @property
    def everything(self) -> bool:
        return self.pattern is None and not self.tags

    def pack(self) -> bytes:
        body = [FORMAT, self.pattern, list(self.tags), self.soft]
        packed: bytes = msgpack.packb(body, use_bin_type=True, unicode_errors="surrogatepass")
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> Predicate | None:
        """The predicate, or None for one that this version cannot read."""
        try:
            format_, pattern, tags, soft = msgpack.unpackb(
                data, raw=False, unicode_errors="surrogatepass"
            )
        except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
            return None
        if (
            format_ != FORMAT
            or not (pattern is None or isinstance(pattern, str))
            or not isinstance(tags, list)
            or not all(isinstance(tag, bytes) for tag in tags)
            or not isinstance(soft, bool)
        ):
            return None
        return cls(pattern, tuple(tags), soft)

    def hits(self, key: bytes, tags: tuple[bytes, ...], matcher: Callable[[str], Matcher]) -> bool:
        """Whether an entry is among what is cleared."""
        if self.pattern is not None:
            return matcher(self.pattern)(key)
        return not self.tags or not set(self.tags).isdisjoint(tags)
