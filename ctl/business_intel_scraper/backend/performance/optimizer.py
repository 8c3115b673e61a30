"""`get_performance_optimizer` where the scraper's documentation has it."""

from bi_performance.optimizer import PerformanceOptimizer, get_performance_optimizer

__all__ = ["PerformanceOptimizer", "get_performance_optimizer"]
