"""What the daemon tells of the cache and its keys, with await and without."""

from __future__ import annotations

from typing import Any, Final

from bi_performance.checks import Key, key_bytes

EXPLAIN_TIMEOUT: Final = 30.0
"""Seconds for what may go through the whole store, or ask Redis."""


class AsyncInsight:
    """Of PerformanceCache."""

    async def _ask(
        self,
        method: str,
        args: dict[str, Any] | None,
        *,
        seconds: float = EXPLAIN_TIMEOUT,
        repeatable: bool = True,
    ) -> Any:
        raise NotImplementedError

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


class SyncInsight:
    """Of SyncCache. See AsyncInsight."""

    def _ask(
        self,
        method: str,
        args: dict[str, Any] | None,
        *,
        seconds: float = EXPLAIN_TIMEOUT,
        repeatable: bool = True,
    ) -> Any:
        raise NotImplementedError

    def stats(self) -> dict[str, Any] | None:
        """The cache's figures for the whole host, or None when the daemon is away."""
        answer: dict[str, Any] | None = self._ask("cache.stats", None)
        return answer

    def explain(self, key: Key) -> dict[str, Any] | None:
        """Why a key is a hit or a miss now, or when and why it went. See AsyncInsight."""
        args = {"key": key_bytes(key)}
        answer: dict[str, Any] | None = self._ask("cache.explain", args, seconds=EXPLAIN_TIMEOUT)
        return answer
