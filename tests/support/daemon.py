"""A real daemon in a process of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bi_performanced.cache.trace import Trace
from support.nursery import Forked, nursery

READY_WITHIN = 30.0
PLAIN = ("-m", "bi_performanced.main")
"""The program as it is, in an interpreter of its own."""
QUICK = (
    "-c",
    "import sys; from bi_performanced import health, main\n"
    "from bi_performanced.monitor import component, host\n"
    "from bi_performanced.fronts import http\n"
    "component.EVERY = health.EVERY = 0.2; host.SLOW_EVERY = 1; host.LIMITS_EVERY = 5\n"
    "http.RETRY_PORT = 0.5\n"
    "sys.exit(main.main())",
)
"""The program with a monitor that looks five times a second, and that tries for its port twice a
second: for tests that wait for its looks."""


def wait_until(condition: Any, *, within: float = 15.0, what: str = "the condition") -> Any:
    """Poll until the condition's result is true, and return it; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {within:g} s")
        time.sleep(0.005)


class DaemonProcess:
    """`bi-performanced` with directories of its own under `folder`; HTTP on a free port.

    A context manager: started and ready inside, gone outside. Forked by the nursery unless a
    program, an interpreter or something of Popen's is asked for.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        http: str = "127.0.0.1:0",
        python: str = sys.executable,
        program: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o750, parents=True, exist_ok=True)
        self.socket = self.runtime / "control.sock"
        self.state = folder / "state"
        if not self.state.exists():
            # As after a daemon that stopped: without it the first start waits a second.
            self.state.mkdir(mode=0o700)
            Trace(self.state, self.runtime).write(running=False)
        self.log = folder / "performance.log"
        self._arguments = [
            *("--state-dir", str(self.state), "--log-file", str(self.log), "--http", http),
            *options,
        ]
        self._command = [python, *(program or PLAIN), *self._arguments]
        self._forked = program in ((), QUICK) and python == sys.executable
        self._code = QUICK[1] if program == QUICK else ""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BI_", "REDIS", "PERF"))}
        self._env = {**kept, "RUNTIME_DIRECTORY": str(self.runtime), **(env or {})}
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self._notify: socket.socket | None = None
        self.notifications: list[dict[str, str]] = []

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            # What stays open would fail whichever test comes next.
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill9()
        if self._notify is not None:
            self._notify.close()

    def start(self, **popen: Any) -> Self:
        """Start and wait for READY=1, which the daemon sends when everything is bound."""
        address = str(self.folder / "notify.sock")
        if self._notify is None:
            self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._notify.bind(address)
        env = {**self._env, "NOTIFY_SOCKET": address}
        if self._forked and not popen:
            self.process = nursery().fork(self._arguments, env, self.folder, self._code)
        else:
            self.process = subprocess.Popen(
                self._command,
                env=env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                **popen,
            )
        wait_until(self._is_ready, within=READY_WITHIN, what="READY=1")
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            assert self.process.stdout is not None
            text = self.process.stdout.read().decode()
            raise AssertionError(f"the daemon ended with {self.process.returncode}: {text}")
        return any("READY" in found for found in self.take_notifications())

    def take_notifications(self) -> list[dict[str, str]]:
        """What the daemon told the service manager since the last call."""
        assert self._notify is not None
        found = []
        while select.select([self._notify], [], [], 0)[0]:
            text = self._notify.recv(4096).decode()
            found.append(dict(line.split("=", 1) for line in text.splitlines()))
        self.notifications += found
        return found

    @property
    def http_url(self) -> str:
        url: str = next(
            event["http"]
            for event in reversed(self.log_events())
            if event["event"] == "daemon.ready"
        )
        return url

    def log_events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill9(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        self._reap()

    def stop(self, within: float = 12.0) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        self.process.wait(within)
        return self._reap()

    def _reap(self) -> int:
        assert self.process is not None
        status = self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def restart(self) -> None:
        """Kill -9 and start again on the same directories."""
        self.kill9()
        self.start()
