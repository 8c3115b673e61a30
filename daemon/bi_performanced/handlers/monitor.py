"""The commands about figures."""

from __future__ import annotations

import time
from collections.abc import Coroutine

import trio

from bi_performance_wire import types
from bi_performanced.cache.component import Cache
from bi_performanced.dispatch import Handler
from bi_performanced.handlers.server import Facts
from bi_performanced.monitor.component import Monitor
from bi_performanced.monitor.figures import Reading

_threads = trio.CapacityLimiter(1)


def handlers(monitor: Monitor, cache: Cache, facts: Facts) -> dict[str, Handler]:
    """A handler for each command about figures."""
    return {"metrics": lambda args, caller: metrics(monitor, cache, facts, args)}


def metrics(
    monitor: Monitor, cache: Cache, facts: Facts, args: types.MetricsArgs
) -> types.Metrics | Coroutine[None, None, types.Exposition]:
    status = facts.status()
    past = None
    if args.history is not None:
        past = types.PastFigures(**monitor.history(args.history))
    found = types.Metrics(
        timestamp=time.time(),
        version=status.version,
        uptime_seconds=status.uptime_seconds,
        profile=status.profile,
        cache=cache.stats(),
        system=_told(monitor.host),
        daemon=_told(monitor.daemon),
        processes=monitor.process_figures(cache.attachments()),
        cache_curve=cache.curve(),
        history=past,
    )
    if args.format == "json":
        return found
    return _rendered(args.format, found)


async def _rendered(name: str, metrics: types.Metrics) -> types.Exposition:
    def render() -> types.Exposition:
        # Late: most daemons are never asked for it.
        from bi_performanced.monitor import exposition

        return exposition.render(name, metrics)

    # Of hundreds of processes it takes some 20 ms.
    return await trio.to_thread.run_sync(render, limiter=_threads)


def _told(reading: Reading) -> dict[str, object]:
    return {**reading.sample, "unknown": reading.reasons}
