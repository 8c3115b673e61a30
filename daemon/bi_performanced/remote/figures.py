"""What the Redis level counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Figures:
    """Counters since the start."""

    hits: int = 0
    misses: int = 0
    garbage: int = 0
    unknown_format: int = 0
    bad_signatures: int = 0
    cleared: int = 0
    """Entries that were found and had been cleared by tag, pattern or everything."""
    raced: int = 0
    """Fetches that were made anew because the key was changed meanwhile."""
    errors: int = 0
    stores: int = 0
    deletes: int = 0
    clears: int = 0
    overflows: int = 0
    """Values that were turned into deletions because the queue was full."""
    refused: int = 0
    """Values that Redis had no memory for; the old ones were deleted."""
    lost_values: int = 0
    """Values that were waiting when Redis went away; the old ones are deleted on return."""
    flushed: int = 0
    """Deletions of the outbox that were sent."""
    replayed: int = 0
    """Entries of the log that were read after a gap."""
    invalidated: int = 0
    """Keys that other hosts have changed."""
    foreign: int = 0
    """Keys of entries here that something else than a daemon has changed, or that have gone."""
    dropped: int = 0
    """How often all that is shared had to go."""
    swept: int = 0
