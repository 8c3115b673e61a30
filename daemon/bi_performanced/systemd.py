"""The service manager's protocol: notifications, the watchdog, inherited sockets.

As sd_notify(3), sd_listen_fds(3) and sd_watchdog_enabled(3) describe it; without a service manager
every call does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

FIRST_FD = 3


class Notifier:
    """Sends state changes to the service manager. Never raises."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # An abstract name begins with a zero byte, which the environment cannot hold.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def send(self, **fields: str) -> None:
        """Send fields as one message, for example `send(READY="1", STATUS="serving")`."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(message.encode(), self._address)
        except OSError:
            # Whoever asked to be told is gone; the daemon's work does not depend on it.
            return

    def ready(self, status: str) -> None:
        self.send(READY="1", STATUS=status)

    def reloading(self) -> None:
        self.send(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))

    def stopping(self) -> None:
        self.send(STOPPING="1")

    def alive(self) -> None:
        self.send(WATCHDOG="1")


def watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    """Seconds between two signs of life (half of what the manager waits), or None."""
    text = environ.get("WATCHDOG_USEC", "")
    if not text.isdigit() or int(text) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(text) / 2_000_000


def inherited_sockets(environ: Mapping[str, str], pid: int) -> dict[str, socket.socket]:
    """The listening sockets that were passed on, as `control` and `http`.

    Told apart by their LISTEN_FDNAMES, else by their family. Others are closed.
    """
    if environ.get("LISTEN_PID", "") != str(pid):
        return {}
    count = environ.get("LISTEN_FDS", "0")
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, socket.socket] = {}
    for number in range(int(count) if count.isdigit() else 0):
        fd = FIRST_FD + number
        try:
            os.set_inheritable(fd, False)
            listener = socket.socket(fileno=fd)
        except OSError:
            continue
        name = names[number] if number < len(names) else ""
        if name not in ("control", "http"):
            name = "control" if listener.family == socket.AF_UNIX else "http"
        if name in found or listener.type != socket.SOCK_STREAM:
            listener.close()
            continue
        listener.setblocking(False)
        found[name] = listener
    return found
