"""Parts of what the cache tells of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bi_performanced.cache.clients import Figures
from bi_performanced.cache.home import Home
from bi_performanced.cache.tenants import TenantStore
from bi_performanced.cache.terms import Compression


def reads(hits: int, misses: int) -> dict[str, Any]:
    """Both, and their rate: 0.0 before the first read."""
    misses = max(0, misses)
    rate = hits / (hits + misses) if hits + misses else 0.0
    return {"hits": hits, "misses": misses, "hit_rate": rate}


def local_figures(home: Home, seen: Figures) -> dict[str, Any]:
    """Of the store in service and of the reads in place that were `seen`."""
    store, counters = home.store, home.counters
    return {
        "hits_in_place": seen.hits,
        "misses_in_place": seen.misses,
        "observed_hits": seen.observed,
        "torn_reads": seen.torn,
        "expired_reads": seen.expired,
        "inserts": counters.inserts,
        "returns": counters.returns,
        "store_bytes": store.memory.size,
        "budget_bytes": home.budget.bytes,
        "budget_reason": home.budget.reason,
        "entries": store.entries,
        "size_bytes": store.live_bytes,
        "namespaces": store.figures() if isinstance(store, TenantStore) else {},
    }


def compression_figures(compression: Compression) -> dict[str, Any]:
    return {
        "compression": dataclasses.asdict(compression),
        "compression_ratio": compression.ratio,
    }


def degraded(found: dict[str, Any], reasons: list[str]) -> dict[str, Any]:
    """A status, degraded for these reasons, if there are any."""
    if reasons:
        found |= {"status": "degraded", "reason": "; ".join(reasons)}
    return found


def budget_status(home: Home) -> dict[str, Any]:
    """What the store may have while memory is short; nothing while it is not."""
    budget = home.budget
    if budget.bytes == budget.most:
        return {}
    return {"budget_bytes": budget.bytes, "budget_reason": budget.reason}


def redis_reasons(status: Mapping[str, Any], *, healthy: bool) -> list[str]:
    """Why the cache is degraded on Redis's account."""
    if not healthy:
        return [f"Redis is away: {status.get('reason', 'it is being looked for')}; local only"]
    return [] if status["status"] == "ok" else [f"Redis: {status['reason']}"]
