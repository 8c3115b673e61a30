"""How far the log has been read, and whether it can be gone on with from there.

`decide` is the whole of the question; it does no I/O. The place is kept in the state directory, so
that a restarted daemon replays what it has missed instead of emptying its store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from bi_performanced.remote.envelope import NEVER, Version

_MAX_BYTES: Final = 4096


class Cursor(NamedTuple):
    """The last entry that was read, and of which Redis."""

    target: str
    """Which address, by Address.identity."""
    epoch: str
    """What this Redis was given when it was first used; gone with all data."""
    replication: str
    """The server's replication id, or empty where it does not say."""
    last: Version


class Found(NamedTuple):
    """What the log looks like at a connection."""

    epoch: str
    replication: str
    first: Version
    """The oldest entry that is there."""
    last: Version
    """The newest id ever given."""
    untrimmed: bool
    """Every entry ever written is still there."""
    present: bool
    """Whether the entry of the cursor is there."""


def decide(cursor: Cursor | None, target: str, found: Found) -> str | None:
    """Why the log cannot be gone on with from the cursor, or None when it can."""
    if cursor is None:
        return "nothing is known of what was seen"
    if cursor.target != target:
        return "another Redis is configured"
    if not cursor.epoch or cursor.epoch != found.epoch:
        return "Redis has lost its data"
    if cursor.replication != found.replication:
        return "Redis was restarted or failed over"
    if found.last < cursor.last:
        return "the log has gone back"
    if cursor.last == found.last or found.untrimmed:
        return None
    if found.first > cursor.last:
        return "more was missed than the log keeps"
    if not found.present and cursor.last != NEVER:
        return "the log is another one"
    return None


class CursorFile:
    """Keeps a cursor for each shard. Replaced whole; not synced, for an older one replays more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Cursor | None:
        """The cursor, or None when there is none that can be read."""
        try:
            with self.path.open("rb") as file:
                found = json.loads(file.read(_MAX_BYTES))
            return _cursor(found)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, cursor: Cursor) -> None:
        """Blocks for a moment. Raises OSError."""
        beside = self.path.with_name(self.path.name + ".new")
        body = {**cursor._asdict(), "last": cursor.last.text().decode()}
        beside.write_text(json.dumps(body) + "\n", encoding="utf-8")
        beside.replace(self.path)

    def forget(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def _cursor(found: Mapping[str, Any]) -> Cursor:
    target, epoch, replication = found["target"], found["epoch"], found["replication"]
    if not all(isinstance(each, str) for each in (target, epoch, replication)):
        raise TypeError
    return Cursor(target, epoch, replication, Version.parse(found["last"].encode()))
