"""A Unix-socket proxy that cuts: forwards bytes and descriptors, and breaks off where told."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self


class CuttingProxy:
    """Stands before a daemon's socket at `path`.

    Each connection is broken off after `cut_after` bytes in the direction `cut` (`"answers"` or
    `"requests"`; None: never). `stall` keeps it open but forwards nothing more. While `flow` is
    cleared nothing is forwarded on any connection, and all stay open. While `hold` is set, answers
    with these bytes in them wait: `holding` tells that one does.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._target = target
        self.cut: str | None = None
        self.cut_after = 0
        self.stall = False
        self.hold: bytes | None = None
        self.holding = threading.Event()
        self._let_go = threading.Event()
        self.connections = 0
        self.flow = threading.Event()
        self.flow.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(50)
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flow.set()
        self.let_go()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self.drop()
        for thread in self._threads:
            thread.join()

    def let_go(self) -> None:
        """Forward what was held, and hold nothing more."""
        self.hold = None
        self._let_go.set()

    def drop(self) -> None:
        """Break off everything that is open now."""
        for each in list(self._open):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                # It ended by itself meanwhile.
                continue

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._target))
            except OSError:
                client.close()
                server.close()
                continue
            self._open |= {client, server}
            ended = threading.Semaphore(0)
            for source, target, name in (
                (client, server, "requests"),
                (server, client, "answers"),
            ):
                thread = threading.Thread(target=self._forward, args=(source, target, name, ended))
                thread.start()
                self._threads.append(thread)
            closer = threading.Thread(target=self._close_both, args=(client, server, ended))
            closer.start()
            self._threads.append(closer)

    def _close_both(
        self, client: socket.socket, server: socket.socket, ended: threading.Semaphore
    ) -> None:
        ended.acquire()
        ended.acquire()
        for each in (client, server):
            self._open.discard(each)
            each.close()

    def _forward(
        self, source: socket.socket, target: socket.socket, name: str, ended: threading.Semaphore
    ) -> None:
        left = self.cut_after if self.cut == name else None
        try:
            while True:
                data, fds, _, _ = socket.recv_fds(source, 65536, 8)
                self.flow.wait()
                if not data:
                    break
                if self.hold is not None and name == "answers" and self.hold in data:
                    self._let_go.clear()
                    self.holding.set()
                    self._let_go.wait()
                if left is not None:
                    data, left = data[:left], left - len(data[:left])
                if data:
                    if fds:
                        socket.send_fds(target, [data], fds)
                    else:
                        target.sendall(data)
                for fd in fds:
                    os.close(fd)
                if left == 0:
                    if self.stall:
                        # Until somebody gives up.
                        while source.recv(65536):
                            pass
                    break
        except OSError:
            # One of the two ends is gone: that is what this is for.
            pass
        finally:
            for each in (source, target):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
            ended.release()
