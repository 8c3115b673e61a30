"""Daemons by fork from a process that has imported them: half a second less for each start.

`python -m support.nursery FD` waits on a socket for orders and forks a daemon for each. A forked
daemon has gone through `main` like any other; what it has not gone through is the start of an
interpreter. Tests of that, or of memory that is not shared, name their `program`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

MOST = 1 << 18
"""Bytes of an order: arguments and environment."""


class Forked:
    """What tests use of a `subprocess.Popen`, for a daemon that another process forked."""

    def __init__(self, nursery: Nursery, pid: int, stdout: IO[bytes]) -> None:
        self._nursery = nursery
        self.pid = pid
        self.stdout: IO[bytes] | None = stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.ended(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        began = time.monotonic()
        while (status := self.poll()) is None:
            if timeout is not None and time.monotonic() - began > timeout:
                raise subprocess.TimeoutExpired("a daemon", timeout)
            time.sleep(0.002)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks daemons. Ends with this one."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._ended: dict[int, int] = {}
        folders = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.nursery", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
            cwd="/",
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        atexit.register(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()

    def fork(
        self, arguments: Sequence[str], env: Mapping[str, str], folder: Path, code: str = ""
    ) -> Forked:
        """`bi-performanced ARGUMENTS` with standard output and error in one pipe.

        With `code` as `python -c CODE ARGUMENTS`, which is to end by sys.exit.
        """
        order = json.dumps([list(arguments), dict(env), str(folder), code]).encode()
        ours, theirs = os.pipe()
        with self._lock:
            socket.send_fds(self._socket, [order], [theirs])
            os.close(theirs)
            while True:
                pid, status = json.loads(self._socket.recv(MOST))
                if status is None:
                    return Forked(self, pid, os.fdopen(ours, "rb"))
                self._ended[pid] = status

    def ended(self, pid: int) -> int | None:
        """The status of a daemon that has ended, as Popen has it."""
        with self._lock:
            while pid not in self._ended:
                try:
                    found, status = json.loads(self._socket.recv(MOST, socket.MSG_DONTWAIT))
                except BlockingIOError:
                    return None
                self._ended[found] = status
            self._socket.send(json.dumps(pid).encode())
            return self._ended.pop(pid)


_nursery: Nursery | None = None


def nursery() -> Nursery:
    """The one of this test run."""
    global _nursery
    if _nursery is None:
        _nursery = Nursery()
    return _nursery


def _serve(control: socket.socket) -> tuple[list[str], str] | None:
    """Fork what is ordered. Returns in a child its arguments and code, and None at the end."""
    waiting = selectors.DefaultSelector()
    waiting.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is not control:
                # Its number stays its own until the tests have seen its end, as a child's does.
                found = os.waitid(os.P_PID, key.data, os.WEXITED | os.WNOWAIT)
                assert found is not None
                exited = found.si_code == os.CLD_EXITED
                waiting.unregister(key.fd)
                os.close(key.fd)
                told = [key.data, found.si_status if exited else -found.si_status]
                with suppress(OSError):
                    control.send(json.dumps(told).encode())
                continue
            data, fds, _, _ = socket.recv_fds(control, MOST, 1)
            if not data:
                return None
            order = json.loads(data)
            if isinstance(order, int):
                os.waitpid(order, 0)
                continue
            arguments, env, folder, code = order
            pid = os.fork()
            if pid == 0:
                waiting.close()
                _become(env, folder, fds[0])
                return arguments, code
            os.close(fds[0])
            waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            control.send(json.dumps([pid, None]).encode())


def _become(env: dict[str, str], folder: str, output: int) -> None:
    """Leave nothing of the nursery in a child but what it has imported."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 4096)
    # Those of the start know whether what they write to can seek.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    random.seed()


def main() -> int:
    import bi_performanced.app
    import bi_performanced.main

    control = socket.socket(fileno=int(sys.argv[1]))
    gc.collect()
    gc.freeze()
    ordered = _serve(control)
    if ordered is None:
        return 0
    control.detach()
    gc.unfreeze()
    arguments, code = ordered
    sys.argv = ["bi-performanced", *arguments]
    if code:
        exec(code, {})  # noqa: S102 (a test's own)
    return bi_performanced.main.main()


if __name__ == "__main__":
    sys.exit(main())
