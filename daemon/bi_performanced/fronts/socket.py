"""The control socket: accepts connections over a Unix stream, and looks at their deadlines."""

from __future__ import annotations

import socket

import structlog
import trio

from bi_performance_wire.errors import BUSY, WireError
from bi_performance_wire.framing import Limits
from bi_performanced.config import SocketSettings
from bi_performanced.dispatch import Dispatcher, internal
from bi_performanced.fronts.accept import next_peer
from bi_performanced.fronts.buffers import Buffers
from bi_performanced.fronts.connection import NO_ID, Connection, encode
from bi_performanced.telemetry.logs import Limited

log = structlog.get_logger("performance")

LOOK_EVERY = 0.5
"""Seconds between two looks at the connections' deadlines."""


class SocketFront:
    """Accepts connections and answers their requests until cancelled."""

    def __init__(self, settings: SocketSettings, dispatcher: Dispatcher) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._limits = Limits(
            settings.max_frame_bytes,
            settings.max_shape_bytes,
            settings.max_objects,
            settings.max_depth,
        )
        self.connections: set[Connection] = set()
        self._buffers = Buffers(settings.max_buffered_bytes)
        self._limited = Limited(10.0)
        self._accepting = trio.CancelScope()

    async def run(
        self,
        listener: trio.socket.SocketType,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve a listening socket. Returns once `stop` was called and the last answer is out."""
        async with trio.open_nursery() as watching:
            await watching.start(self._watch_deadlines)
            async with trio.open_nursery() as nursery:
                task_status.started()
                with self._accepting:
                    await self._accept(listener, nursery)
                for connection in list(self.connections):
                    connection.finish()
            watching.cancel_scope.cancel()

    def stop(self) -> None:
        """Accept nothing more, and close each connection when it has no request in flight."""
        self._accepting.cancel()

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            peer = await next_peer(listener, self._limited, "socket.accept_paused")
            raw = socket.socket(fileno=peer.detach())
            raw.setblocking(False)
            if len(self.connections) >= self._settings.max_connections:
                self._refuse(raw)
                continue
            connection = Connection(
                raw, self._settings, self._limits, self._dispatcher, self._buffers
            )
            self.connections.add(connection)
            nursery.start_soon(self._serve, connection)

    def _refuse(self, peer: socket.socket) -> None:
        limit = self._settings.max_connections
        self._limited.warning("socket.connection_refused", limit=limit)
        error = WireError(
            BUSY,
            f"the daemon has {limit} connections, its limit",
            field="max_connections",
            hint="close some, or raise socket.max_connections",
        )
        with peer:
            try:
                peer.send(encode((1, NO_ID, error.to_map(), None)))
            except OSError:
                # The peer has gone already, or does not read: it is closed either way.
                return

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        except Exception as error:
            # One connection's fault, whatever it was, must not take the others with it.
            internal("connection", error)
        finally:
            self.connections.discard(connection)
            if connection.evicted:
                self._say_cut(connection, "max_buffered_bytes")

    def _say_cut(self, connection: Connection, reason: str) -> None:
        self._limited.warning("socket.connection_cut", reason=reason, pid=connection.caller.pid)

    async def _watch_deadlines(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """One look at all connections is cheaper than a deadline for each receive."""
        task_status.started()
        while True:
            await trio.sleep(LOOK_EVERY)
            now = trio.current_time()
            for connection in list(self.connections):
                reason = connection.overdue(now)
                if reason:
                    self._say_cut(connection, reason)
                    connection.scope.cancel()
