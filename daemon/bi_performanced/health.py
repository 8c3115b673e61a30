"""Says when a component becomes degraded, and when it has recovered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog
import trio

from bi_performanced.events import Broker

log = structlog.get_logger("performance")

EVERY = 1.0
"""Seconds between two looks."""


async def watch_health(
    components: Callable[[], Mapping[str, Mapping[str, Any]]],
    broker: Broker,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Look at every component's state until cancelled."""
    task_status.started()
    degraded: dict[str, str] = {}
    while True:
        found = {
            name: str(each.get("reason", "degraded"))
            for name, each in components().items()
            if each["status"] == "degraded"
        }
        for name, reason in found.items():
            if degraded.get(name) != reason:
                log.warning("health.degraded", component=name, reason=reason)
                broker.publish("health", "health.degraded", component=name, reason=reason)
        for name in degraded.keys() - found.keys():
            log.info("health.recovered", component=name)
            broker.publish("health", "health.recovered", component=name)
        degraded = found
        await trio.sleep(EVERY)
