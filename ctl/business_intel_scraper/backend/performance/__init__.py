"""The Business Intelligence Scraper's performance system: what its processes import."""

from bi_performance.client import CacheEntry, PerformanceCache
from bi_performance.optimizer import PerformanceOptimizer, get_performance_optimizer

__all__ = ["CacheEntry", "PerformanceCache", "PerformanceOptimizer", "get_performance_optimizer"]
