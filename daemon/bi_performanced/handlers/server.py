"""The commands about the daemon itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trio

from bi_performance_wire import __version__, types
from bi_performanced.cache.component import Cache
from bi_performanced.config import Settings
from bi_performanced.config.load import listing
from bi_performanced.dispatch import Handler


class HttpState(Protocol):
    """What is asked of the HTTP front."""

    state: dict[str, Any]
    url: str | None


@dataclass
class Facts:
    """What the composition root knows of the running daemon."""

    settings: Settings
    cache: Cache
    socket_path: Path
    state_dir: Path
    log_file: Path | None
    started_at: float = 0.0
    """trio's clock at the start."""
    http: HttpState | None = None
    """Set once the front is there; the front needs these handlers first."""

    def status(self) -> types.Status:
        components = {"cache": self.cache.status()}
        if self.http is not None:
            components["http"] = self.http.state
        degraded = any(each["status"] == "degraded" for each in components.values())
        return types.Status(
            status="degraded" if degraded else "ok",
            profile="balanced",
            uptime_seconds=round(trio.current_time() - self.started_at, 3),
            version=__version__,
            components=components,
        )

    def info(self) -> types.ServerInfo:
        limits = self.settings.socket
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


def handlers(facts: Facts) -> dict[str, Handler]:
    """A handler for each command about the daemon."""
    return {
        "ping": lambda args, caller: True,
        "server.info": lambda args, caller: facts.info(),
        "server.config": lambda args, caller: types.ConfigListing(
            settings=[types.Setting(**row._asdict()) for row in listing(facts.settings)],
            file=None if facts.settings.file is None else str(facts.settings.file),
        ),
        "status": lambda args, caller: facts.status(),
    }
