"""Entries of the log, as they come from Redis.

An entry is a list of fields: `o` the daemon that wrote it, `k` a key that was stored or deleted,
`p` a predicate, `l` a lease that has ended, `w` a clear whose entries are all removed. A later
version may write other fields: a reader that meets one does not know what it means and lets all go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bi_performanced.remote.envelope import Version
from bi_performanced.remote.predicate import Predicate


@dataclass
class Record:
    """One entry."""

    id: Version
    origin: bytes = b""
    keys: list[bytes] = field(default_factory=list)
    predicates: list[Predicate] = field(default_factory=list)
    released: list[bytes] = field(default_factory=list)
    swept: list[Version] = field(default_factory=list)
    understood: bool = True


def read_record(entry: Any) -> Record:
    """An entry of a stream. Raises ValueError for what is none."""
    id_, fields = entry
    record = Record(Version.parse(id_))
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        if name == b"k":
            record.keys.append(value)
        elif name == b"o":
            record.origin = value
        elif name == b"l":
            record.released.append(value)
        elif name == b"w":
            record.swept.append(Version.parse(value))
        elif name == b"p" and (predicate := Predicate.unpack(value)) is not None:
            record.predicates.append(predicate)
        else:
            record.understood = False
    return record


def read_reply(reply: Any, stream: bytes) -> list[Record]:
    """The records of an XREAD of one stream; nil is none. Raises ValueError or TypeError."""
    if reply is None:
        return []
    entries = reply[stream] if isinstance(reply, Mapping) else dict(reply)[stream]
    return [read_record(entry) for entry in entries]


def pairs(reply: Any) -> dict[bytes, Any]:
    """A map as RESP3 or RESP2 gives it."""
    if isinstance(reply, Mapping):
        return dict(reply)
    if isinstance(reply, Sequence):
        return dict(zip(reply[::2], reply[1::2], strict=True))
    raise TypeError("not a map")
