"""What the Redis level calls when other hosts have changed something."""

from __future__ import annotations

from typing import Protocol

from bi_performanced.remote.predicate import Predicate


class Sink(Protocol):
    """What the cache does with news from other hosts. Synchronous; called on the loop."""

    def invalidate(self, key: bytes) -> None:
        """Another host or program has changed this key: what is here is older, and what is being
        loaded."""

    def overtaken(self, key: bytes) -> None:
        """Another host has changed this key before what is here was fetched; what is being loaded
        may be older."""

    def holds(self, key: bytes) -> int | None:
        """The number of the entry here that Redis has too, or None; a later one is greater."""

    def payload(self, key: bytes) -> bytes | None:
        """The client's part of that entry."""

    def let_go(self, key: bytes) -> bool:
        """Redis has no entry of the key any more. What is being loaded is not older for that.
        Whether the one that was here went."""

    def apply(self, predicate: Predicate) -> None:
        """Another host has cleared something."""

    def drop_shared(self, shard: int | None) -> None:
        """All that is shared (of the keys of a shard, by Remote.shard_of) must go: news were
        missed. Each call names one reason in the log."""

    def coherent(self, until: int) -> None:
        """Shared entries may be trusted until then (nanoseconds of CLOCK_BOOTTIME)."""

    def health(self, ok: bool, reason: str | None) -> None:
        """Whether Redis can be asked: told once for each change."""
