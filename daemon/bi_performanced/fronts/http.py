"""The HTTP listener: our own accept loop, one contained Hypercorn server a connection.

Hypercorn's `serve()` can be ended by one hostile connection, with every other request, and may
not return while a client does not read. So each accepted connection runs its `TCPServer` in a
nursery and behind a stream of its own; what goes wrong there ends that connection alone.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from starlette.types import ASGIApp

from bi_performance_wire.errors import BUSY
from bi_performanced.config import HttpSettings
from bi_performanced.config.parse import listen
from bi_performanced.dispatch import Dispatcher
from bi_performanced.events import Broker
from bi_performanced.fronts.accept import next_peer
from bi_performanced.fronts.ports import port_holder
from bi_performanced.fronts.problem import raw_response
from bi_performanced.fronts.routes import make_app
from bi_performanced.fronts.stream import GuardedStream
from bi_performanced.telemetry.logs import Limited

T = TypeVar("T")

log = structlog.get_logger("performance")

RETRY_PORT = 5.0
PATIENCE = 2.0
"""Seconds that the daemon's start waits for a name server, or for the search of a port's holder."""
BACKLOG = 128
LINGER = 1.0
"""Seconds for a client that is turned away to read why."""
MOST_TURNED_AWAY = 64
"""Connections that are told so at once; further ones are closed without a word."""


class HttpFront:
    """Serves the routes on `http.listen`, or on a socket that was inherited."""

    def __init__(
        self,
        settings: HttpSettings,
        dispatcher: Dispatcher,
        ready: Callable[[], list[str]],
        broker: Broker,
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._ready = ready
        self._broker = broker
        self.state: dict[str, Any] = {"status": "off"}
        """`status` (ok, degraded, off), the URL, and the reason when degraded."""
        self.url: str | None = None
        self._streams: set[GuardedStream] = set()
        self._turned_away = 0
        self._limited = Limited(10.0)
        self._accepting = trio.CancelScope()
        # Nobody else waits for a name server that does not answer.
        self._threads = trio.CapacityLimiter(2)
        self._context = WorkerContext(None)
        self._app: ASGIApp
        self._config = _hypercorn_config(settings)

    async def run(
        self,
        inherited: socket.socket | None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until `stop`; `started` once bound, or once it is known that it is degraded.

        A port that is taken is tried again every five seconds, after `started`, as is a name that
        is not found; `started` waits no longer than PATIENCE for either.
        """
        address = listen(self._settings.listen)
        if inherited is None and address is None:
            task_status.started()
            return
        async with trio.open_nursery() as nursery:
            with self._accepting:
                known = trio.Event()
                nursery.start_soon(self._say_started, known, address, task_status)
                while True:
                    try:
                        listener = inherited or await self._bind(address)
                        break
                    except OSError as error:
                        self._degrade(await self._reason(address, error))
                        known.set()
                        await trio.sleep(RETRY_PORT)
                self._serving(listener)
                known.set()
                with trio.socket.from_stdlib_socket(listener) as accepting:
                    await self._accept(accepting, nursery)
            self.state = {"status": "off"}
            await self._context.terminated.set()

    async def _say_started(
        self,
        known: trio.Event,
        address: tuple[str, int] | None,
        task_status: trio.TaskStatus[None],
    ) -> None:
        with trio.move_on_after(PATIENCE):
            await known.wait()
        if not known.is_set() and address is not None:
            self._degrade(f"it is not known yet whether {address[0]}:{address[1]} can be bound")
        task_status.started()

    async def _bind(self, address: tuple[str, int] | None) -> socket.socket:
        """A listener; cancelled, it leaves a name server that does not answer to its thread."""
        assert address is not None
        host, port = address
        try:
            found = await self._in_thread(
                lambda: socket.getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
            )
        except UnicodeError:
            raise OSError(0, "this is no host's name") from None
        return _listener(found[0])

    async def _reason(self, address: tuple[str, int] | None, error: OSError) -> str:
        assert address is not None
        host, port = address
        if error.errno == errno.EADDRINUSE:
            # The search looks at every descriptor of every process.
            return f"port {port} is taken by {await self._in_thread(lambda: port_holder(port))}"
        return f"{host}:{port} cannot be bound: {error.strerror}"

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)

    def stop(self) -> None:
        """Accept nothing more; connections end with the request they are at."""
        self._accepting.cancel()
        for stream in list(self._streams):
            stream.stop()

    def abort(self) -> None:
        """End every connection now, whatever it is at."""
        for stream in list(self._streams):
            stream.abort()

    def _serving(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{port}"
        self.state = {"status": "ok", "url": f"{self.url}/performance/status"}
        self._app = make_app(
            self._settings, self._dispatcher, (host, port), self._ready, self._broker
        )

    def _degrade(self, reason: str) -> None:
        if self.state.get("reason") != reason:
            log.warning("http.not_bound", reason=reason)
        self.state = {"status": "degraded", "reason": reason}

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            peer = await next_peer(listener, self._limited, "http.accept_paused")
            if len(self._streams) >= self._settings.max_connections:
                self._limited.warning(
                    "http.connection_refused", limit=self._settings.max_connections
                )
                if self._turned_away < MOST_TURNED_AWAY:
                    nursery.start_soon(self._turn_away, peer)
                else:
                    peer.close()
                continue
            try:
                stream = GuardedStream(trio.SocketStream(peer), self._settings)
            except OSError:
                # The client reset the connection before it was looked at.
                peer.close()
                continue
            self._streams.add(stream)
            nursery.start_soon(self._serve, stream)

    async def _turn_away(self, peer: trio.socket.SocketType) -> None:
        """Say that there are too many connections, and wait for a moment that it is heard."""
        self._turned_away += 1
        try:
            with peer, trio.move_on_after(LINGER):
                limit = self._settings.max_connections
                answer = raw_response(
                    503,
                    f"{limit} connections are open, the limit",
                    code=BUSY,
                    field="http.max_connections",
                    hint="close some, or raise http.max_connections",
                )
                await peer.send(answer)
                peer.shutdown(socket.SHUT_WR)
                # Closed with its request unread, the connection would be reset with the answer.
                while await peer.recv(4096):
                    pass
        except OSError:
            # The peer has gone.
            return
        finally:
            self._turned_away -= 1

    async def _serve(self, stream: GuardedStream) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                await self._app(scope, receive, send)
            finally:
                stream.answered()

        server = TCPServer(
            ASGIWrapper(app),
            self._config,
            self._context,
            {},
            stream,  # type: ignore[arg-type]  # it uses five methods of a stream, which this has
        )
        try:
            with stream.scope:
                await server.run()
        except Exception as error:
            # Whatever a peer can make the server raise ends this connection and no other.
            self._limited.warning("http.connection_failed", error=repr(error)[:500])
        finally:
            self._streams.discard(stream)
            with trio.CancelScope(shield=True):
                stream.abort()
                await stream.aclose()


def _listener(found: tuple[Any, ...]) -> socket.socket:
    """A socket that listens at what getaddrinfo found."""
    family, kind, protocol, _, where = found
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _hypercorn_config(settings: HttpSettings) -> Config:
    config = Config()
    config.keep_alive_timeout = settings.idle_timeout
    config.h11_max_incomplete_size = settings.max_header
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    return config
