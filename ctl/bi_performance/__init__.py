"""The scraper's side of bi-performance.

    from bi_performance import cache, seen, get_performance_optimizer

    page = await cache.get(url)

Nothing is loaded before it is asked for: the control program uses this package's protocol alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bi_performance.checks import Key
    from bi_performance.client import CacheEntry, PerformanceCache
    from bi_performance.optimizer import PerformanceOptimizer, get_performance_optimizer

    cache: PerformanceCache

__all__ = [
    "CacheEntry",
    "PerformanceCache",
    "PerformanceOptimizer",
    "cache",
    "get_performance_optimizer",
    "seen",
]


async def seen(fingerprint: Key, ttl: float | None = None) -> bool:
    """Whether any process of the host saw this fingerprint within `ttl` seconds; see the cache."""
    from bi_performance.optimizer import get_performance_optimizer

    return await get_performance_optimizer().cache.seen(fingerprint, ttl)


def __getattr__(name: str) -> Any:
    if name == "cache":
        from bi_performance.optimizer import get_performance_optimizer

        found: Any = get_performance_optimizer().cache
    elif name in ("PerformanceOptimizer", "get_performance_optimizer"):
        from bi_performance import optimizer

        found = getattr(optimizer, name)
    elif name in ("CacheEntry", "PerformanceCache"):
        from bi_performance import client as module

        found = getattr(module, name)
    else:
        raise AttributeError(f"module 'bi_performance' has no attribute {name!r}")
    globals()[name] = found
    return found
