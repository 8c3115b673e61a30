"""What the daemon tells of the cache and its keys, with await and without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

from bi_performance.checks import Key, key_bytes

EXPLAIN_TIMEOUT: Final = 60.0
"""Seconds for what may go through the whole store, or ask Redis."""
RANKS: Final = ("hits", "misses", "size", "age", "cold")
MOST_RANKED: Final = 1000


def top_args(by: str, limit: int) -> dict[str, Any]:
    """The arguments of `cache.top`. Raises ValueError."""
    if by not in RANKS:
        raise ValueError(f"by must be one of {', '.join(RANKS)}, not {by!r}")
    if not 1 <= limit <= MOST_RANKED:
        raise ValueError(f"limit must be 1 to {MOST_RANKED}, not {limit!r}")
    return {"by": by, "limit": limit}


def breakdown_args(by: str, limit: int) -> dict[str, Any]:
    """The arguments of `cache.breakdown`. Raises ValueError."""
    if by not in ("prefix", "process"):
        raise ValueError(f"by must be prefix or process, not {by!r}")
    if not 1 <= limit <= MOST_RANKED:
        raise ValueError(f"limit must be 1 to {MOST_RANKED}, not {limit!r}")
    return {"by": by, "limit": limit}


class AsyncInsight(ABC):
    """Of PerformanceCache."""

    @abstractmethod
    async def _ask(
        self,
        method: str,
        args: dict[str, Any] | None,
        *,
        seconds: float = EXPLAIN_TIMEOUT,
        repeatable: bool = True,
    ) -> Any:
        """The daemon's answer, or None when it is away."""

    async def stats(self) -> dict[str, Any] | None:
        """The cache's figures for the whole host, or None when the daemon is away."""
        answer: dict[str, Any] | None = await self._ask("cache.stats", None)
        return answer

    async def explain(self, key: Key) -> dict[str, Any] | None:
        """Why a key is a hit or a miss now, on every level, or when and why it went.

        `outcome` ("hit", "stale", "miss"), `reason` (a word), `why` (a sentence), `more`, `local`,
        `redis`, `lease`, `past`, and in `unknown` what could not be found out and why; None when
        the daemon is away. Counts as no use of the entry.
        """
        args = {"key": key_bytes(key)}
        answer: dict[str, Any] | None = await self._ask(
            "cache.explain", args, seconds=EXPLAIN_TIMEOUT
        )
        return answer

    async def top(self, by: str = "hits", limit: int = 20) -> dict[str, Any] | None:
        """The first `limit` keys by `by`: "hits" (the hottest), "misses" (most asked for and not
        there), "size", "age", or "cold" (never read since they were stored).

        `keys`, each with what is known of it. Counts are estimates from a sample, with `at_least`
        and `at_most`. None when the daemon is away. Raises ValueError.
        """
        args = top_args(by, limit)
        answer: dict[str, Any] | None = await self._ask("cache.top", args, seconds=EXPLAIN_TIMEOUT)
        return answer

    async def breakdown(self, by: str, limit: int = 20) -> dict[str, Any] | None:
        """The cache's figures by "prefix" (what keys begin with) or by "process" (who reads).

        `prefixes` with `other`, of which entries and bytes are exact and hits, misses and
        `evicted_unread` are estimates; or `processes` with `left`, as they counted themselves.
        None when the daemon is away. Raises ValueError.
        """
        args = breakdown_args(by, limit)
        answer: dict[str, Any] | None = await self._ask(
            "cache.breakdown", args, seconds=EXPLAIN_TIMEOUT
        )
        return answer


class SyncInsight(ABC):
    """Of SyncCache. See AsyncInsight."""

    @abstractmethod
    def _ask(
        self,
        method: str,
        args: dict[str, Any] | None,
        *,
        seconds: float = EXPLAIN_TIMEOUT,
        repeatable: bool = True,
    ) -> Any:
        """The daemon's answer, or None when it is away."""

    def stats(self) -> dict[str, Any] | None:
        """The cache's figures for the whole host, or None when the daemon is away."""
        answer: dict[str, Any] | None = self._ask("cache.stats", None)
        return answer

    def explain(self, key: Key) -> dict[str, Any] | None:
        """Why a key is a hit or a miss now, or when and why it went. See AsyncInsight."""
        args = {"key": key_bytes(key)}
        answer: dict[str, Any] | None = self._ask("cache.explain", args, seconds=EXPLAIN_TIMEOUT)
        return answer

    def top(self, by: str = "hits", limit: int = 20) -> dict[str, Any] | None:
        """The first `limit` keys by hits, misses, size, age or cold. See AsyncInsight."""
        args = top_args(by, limit)
        answer: dict[str, Any] | None = self._ask("cache.top", args, seconds=EXPLAIN_TIMEOUT)
        return answer

    def breakdown(self, by: str, limit: int = 20) -> dict[str, Any] | None:
        """The cache's figures by "prefix" or by "process". See AsyncInsight."""
        args = breakdown_args(by, limit)
        answer: dict[str, Any] | None = self._ask("cache.breakdown", args, seconds=EXPLAIN_TIMEOUT)
        return answer
