"""The commands about the daemon itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trio

from bi_performance_wire import __version__, types
from bi_performance_wire.errors import INVALID_ARGUMENT, WireError
from bi_performanced.advice.component import Advisor
from bi_performanced.advice.tuner import Tuner
from bi_performanced.cache.component import Cache
from bi_performanced.config.load import listing
from bi_performanced.dispatch import Caller, Handler
from bi_performanced.events import Broker, Subscription
from bi_performanced.monitor.component import Monitor


class HttpState(Protocol):
    """What is asked of the HTTP front."""

    state: dict[str, Any]
    url: str | None


@dataclass
class Facts:
    """What the composition root knows of the running daemon."""

    tuner: Tuner
    cache: Cache
    socket_path: Path
    state_dir: Path
    log_file: Path | None
    monitor: Monitor
    advisor: Advisor
    started_at: float = 0.0
    """trio's clock at the start."""
    http: HttpState | None = None
    """Set once the front is there; the front needs these handlers first."""

    def status(self) -> types.Status:
        components = {
            "cache": self.cache.status(),
            "monitor": self.monitor.status(),
            "optimizer": {**self.tuner.status(), "recommendations": self.advisor.count},
        }
        if self.http is not None:
            components["http"] = self.http.state
        degraded = any(each["status"] == "degraded" for each in components.values())
        return types.Status(
            status="degraded" if degraded else "ok",
            profile=self.tuner.profile,
            uptime_seconds=round(trio.current_time() - self.started_at, 3),
            version=__version__,
            components=components,
        )

    def info(self) -> types.ServerInfo:
        limits = self.tuner.settings.socket
        return types.ServerInfo(
            version=__version__,
            pid=os.getpid(),
            uid=os.getuid(),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
            epoch=self.cache.epoch,
            socket=str(self.socket_path),
            http=self.http.url if self.http is not None else None,
            state_dir=str(self.state_dir),
            log_file=None if self.log_file is None else str(self.log_file),
            store=str(self.cache.store_path),
            limits={
                "frame_bytes": limits.max_frame_bytes,
                "shape_bytes": limits.max_shape_bytes,
                "objects": limits.max_objects,
                "depth": limits.max_depth,
                "in_flight": limits.max_in_flight,
                "connections": limits.max_connections,
                "buffered_bytes": limits.max_buffered_bytes,
            },
        )


def handlers(facts: Facts, broker: Broker) -> dict[str, Handler]:
    """A handler for each command about the daemon."""
    return {
        "ping": lambda args, caller: True,
        "server.info": lambda args, caller: facts.info(),
        "server.config": lambda args, caller: types.ConfigListing(
            settings=[types.Setting(**row._asdict()) for row in listing(facts.tuner.settings)],
            file=None if facts.tuner.settings.file is None else str(facts.tuner.settings.file),
        ),
        "status": lambda args, caller: facts.status(),
        "subscribe": lambda args, caller: subscribe(broker, args, caller),
    }


def subscribe(broker: Broker, args: types.Subscribe, caller: Caller) -> Subscription:
    if caller.transport == "http":
        raise WireError(
            INVALID_ARGUMENT, "subscribe needs the control socket; see /performance/events"
        )
    return broker.subscribe(args.topics)
