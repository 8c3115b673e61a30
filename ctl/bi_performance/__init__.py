"""The scraper's side of bi-performance.

    from bi_performance import cache, seen, get_performance_optimizer

    page = await cache.get(url)

Nothing is loaded before it is asked for: the control program uses this package's protocol alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bi_performance.checks import Key
    from bi_performance.client import PerformanceCache
    from bi_performance.entries import CacheEntry
    from bi_performance.optimizer import PerformanceOptimizer, get_performance_optimizer
    from bi_performance.options import LoadContext, LoadTimeout, Options

    cache: PerformanceCache

__all__ = [
    "CacheEntry",
    "LoadContext",
    "LoadTimeout",
    "Options",
    "PerformanceCache",
    "PerformanceOptimizer",
    "cache",
    "get_performance_optimizer",
    "seen",
]


_PLACES = {
    "CacheEntry": "entries",
    "LoadContext": "options",
    "LoadTimeout": "options",
    "Options": "options",
    "PerformanceCache": "client",
    "PerformanceOptimizer": "optimizer",
    "get_performance_optimizer": "optimizer",
}


async def seen(fingerprint: Key, ttl: float | None = None) -> bool:
    """Whether any process of the host saw this fingerprint within `ttl` seconds; see the cache."""
    from bi_performance.optimizer import get_performance_optimizer

    return await get_performance_optimizer().cache.seen(fingerprint, ttl)


def __getattr__(name: str) -> Any:
    if name == "cache":
        from bi_performance.optimizer import get_performance_optimizer

        found: Any = get_performance_optimizer().cache
    elif name in _PLACES:
        found = getattr(importlib.import_module(f"bi_performance.{_PLACES[name]}"), name)
    else:
        raise AttributeError(f"module 'bi_performance' has no attribute {name!r}")
    globals()[name] = found
    return found
