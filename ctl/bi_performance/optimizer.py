"""The scraper's handle on the daemon."""

from __future__ import annotations

import threading

from bi_performance.client import PerformanceCache, SyncCache
from bi_performance.link import Link


class SyncOptimizer:
    """The optimizer's API without await."""

    def __init__(self, link: Link) -> None:
        self.cache = SyncCache(link)


class PerformanceOptimizer:
    """One process's use of the sidecar: `cache` under asyncio or trio, `sync.cache` without.

    Attaches at the first use and again after fork; `close` detaches.
    """

    def __init__(self, socket_path: str | None = None, *, mode: str | None = None) -> None:
        """`socket_path` None: as BI_PERFORMANCE_SOCKET says, else where the daemon is looked for.

        `mode` None: as BI_PERFORMANCE_MODE says, else as the daemon is configured.
        """
        self._link = Link(socket_path, mode=mode)
        self.cache = PerformanceCache(self._link)
        self.sync = SyncOptimizer(self._link)

    @property
    def mode(self) -> str:
        """`on`, `observe` or `off`; the daemon's own is known once attached."""
        return self._link.mode

    def close(self) -> None:
        """Give back connections and mappings; a later use attaches again."""
        self._link.close()


_lock = threading.Lock()
_shared: PerformanceOptimizer | None = None


def get_performance_optimizer() -> PerformanceOptimizer:
    """This process's optimizer; the same one at each call."""
    global _shared
    if _shared is None:
        with _lock:
            if _shared is None:
                _shared = PerformanceOptimizer()
    return _shared
