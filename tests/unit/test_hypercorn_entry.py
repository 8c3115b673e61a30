"""The one inner part of Hypercorn that is used: a change of it must be noticed here first."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version

from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext


def test_the_server_of_one_connection_takes_what_it_is_given() -> None:
    assert version("hypercorn").startswith("0.18.")
    parameters = list(inspect.signature(TCPServer.__init__).parameters)
    assert parameters == ["self", "app", "config", "context", "state", "stream"]
    assert inspect.iscoroutinefunction(TCPServer.run)
    assert list(inspect.signature(WorkerContext.__init__).parameters) == ["self", "max_requests"]


def test_it_uses_of_its_stream_what_ours_has() -> None:
    used = set(re.findall(r"self\.stream\.(\w+)", inspect.getsource(TCPServer)))
    of_tls = {"do_handshake", "selected_alpn_protocol", "transport_stream"}
    assert used - of_tls == {"aclose", "receive_some", "send_all", "send_eof", "socket"}
