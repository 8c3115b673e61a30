"""The Business Intelligence Scraper's performance system: what its processes import."""

from bi_performance.client import PerformanceCache
from bi_performance.entries import CacheEntry
from bi_performance.optimizer import PerformanceOptimizer, get_performance_optimizer
from bi_performance.options import LoadContext, LoadTimeout, Options

__all__ = [
    "CacheEntry",
    "LoadContext",
    "LoadTimeout",
    "Options",
    "PerformanceCache",
    "PerformanceOptimizer",
    "get_performance_optimizer",
]
