"""Accepting connections: which failures concern one peer, which pass, and which are faults."""

from __future__ import annotations

import errno
from typing import Final

import trio

from bi_performanced.telemetry.logs import Limited

ABSORBED: Final = frozenset(
    {errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.EINTR, errno.EAGAIN, errno.ECONNRESET}
)
"""accept(2) failures that concern one connection only."""
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""accept(2) failures that pass when something is closed: wait, and try again."""
PAUSE: Final = 0.1


async def next_peer(
    listener: trio.socket.SocketType, limited: Limited, paused_event: str
) -> trio.socket.SocketType:
    """The next accepted connection. Raises OSError for what is a fault of the listener itself."""
    while True:
        try:
            peer, _ = await listener.accept()
        except OSError as error:
            if error.errno in EXHAUSTED:
                limited.warning(paused_event, reason=error.strerror)
                await trio.sleep(PAUSE)
            elif error.errno not in ABSORBED:
                raise
        else:
            return peer
