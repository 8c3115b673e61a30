"""The scraper's handle on the daemon."""

from __future__ import annotations

import threading
from typing import Any

from bi_performance.asking import Answer, ask, ask_now
from bi_performance.client import PerformanceCache, SyncCache
from bi_performance.link import Link
from bi_performance.loading import Loader
from bi_performance.stale import Server
from bi_performance.worlds import running_world

CHANGE_TIMEOUT = 60.0
"""Seconds for a change that may move the whole store."""


def _analysis(answer: Answer) -> dict[str, Any]:
    """The daemon's analysis, or one that says why there is none."""
    if answer.result is not None:
        return {"status": "ok", **answer.result}
    return {
        "status": "unavailable",
        "reason": answer.reason,
        # Of no reads, as before the first one, so that a report can be printed as ever.
        "cache_performance": {"hit_rate": 0.0, "hits": 0, "misses": 0},
        "system_resources": {},
        "recommendations": [],
    }


def _applied(answer: Answer) -> dict[str, Any]:
    if answer.result is not None:
        return {"status": "ok", **answer.result}
    return {
        "status": "unavailable",
        "reason": answer.reason,
        "profile_applied": None,
        "previous_profile": None,
        "changes": [],
    }


def _profile_args(profile: str) -> dict[str, Any]:
    if not isinstance(profile, str):
        raise TypeError(f"a profile is named by str, not {type(profile).__name__}")
    return {"profile": profile}


class SyncOptimizer:
    """The optimizer's API without await."""

    def __init__(self, link: Link, server: Server) -> None:
        self._link = link
        self.cache = SyncCache(link, server)

    def run_performance_analysis(self) -> dict[str, Any]:
        """See PerformanceOptimizer."""
        return _analysis(ask_now(self._link, "analysis", None))

    def apply_optimizations(self, profile: str) -> dict[str, Any]:
        """See PerformanceOptimizer."""
        args = _profile_args(profile)
        return _applied(ask_now(self._link, "optimize", args, seconds=CHANGE_TIMEOUT))


class PerformanceOptimizer:
    """One process's use of the sidecar: `cache` under asyncio or trio, `sync.cache` without.

    Attaches at the first use and again after fork; `close` detaches.
    """

    def __init__(self, socket_path: str | None = None, *, mode: str | None = None) -> None:
        """`socket_path` None: as BI_PERFORMANCE_SOCKET says, else where the daemon is looked for.

        `mode` None: as BI_PERFORMANCE_MODE says, else as the daemon is configured.
        """
        self._link = Link(socket_path, mode=mode)
        self._server = Server(Loader(self._link))
        self.cache = PerformanceCache(self._link, self._server)
        self.sync = SyncOptimizer(self._link, self._server)

    @property
    def mode(self) -> str:
        """`on`, `observe` or `off`; the daemon's own is known once attached."""
        return self._link.mode

    async def run_performance_analysis(self) -> dict[str, Any]:
        """What the measured figures come to, of the whole host.

        `cache_performance` (`hit_rate` 0 to 1, counts since the daemon's start, and `window`, the
        last minutes), `system_resources` (null with the reason in `unknown`), `recommendations`
        (each with evidence, command and expected effect). While the daemon is away `status` is
        "unavailable", with the reason; nothing raises.
        """
        return _analysis(await ask(self._link, "analysis", None))

    async def apply_optimizations(self, profile: str) -> dict[str, Any]:
        """Apply a profile for the whole host: "balanced", "memory_focused", "performance_focused".

        Returns `profile_applied`, `previous_profile` and `changes` (setting, before, after). While
        the daemon is away, or when it could not be applied, `profile_applied` is None, with the
        reason. Raises ValueError for an unknown profile, naming the known ones.
        """
        args = _profile_args(profile)
        return _applied(await ask(self._link, "optimize", args, seconds=CHANGE_TIMEOUT))

    def close(self) -> None:
        """End loads in the background, and give back connections and mappings; a later use
        attaches again. Loads in threads are waited for, five seconds at most."""
        self._server.background.close()
        self._server.loader.keeper.close()
        self._link.close()

    async def aclose(self) -> None:
        """The same under asyncio or trio, where loads in the background are waited for too."""
        await self._server.background.aclose(running_world())
        self._server.loader.keeper.close()
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
