"""The demo's own processes: the scrapers, and a daemon on embedded defaults."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bi_performance.protocol import Unavailable, ask
from bi_performance_ctl.console import FAILED, Exit
from bi_performance_wire.errors import WireError

START_SECONDS = 20.0


class Outcome(NamedTuple):
    """A crawl by all scrapers together."""

    seconds: float
    visits: int
    fetched: int
    hits: int
    bytes: int
    facts: int
    errors: list[str]

    def plus(self, other: Outcome) -> Outcome:
        """Both crawls as one."""
        return Outcome(
            self.seconds + other.seconds,
            self.visits + other.visits,
            self.fetched + other.fetched,
            self.hits + other.hits,
            self.bytes + other.bytes,
            self.facts + other.facts,
            self.errors + other.errors,
        )


NOTHING = Outcome(0.0, 0, 0, 0, 0, 0, [])


class Scrapers:
    """Several scraper processes that crawl at once; a context manager."""

    def __init__(self, count: int, folder: Path) -> None:
        log = folder / "scrapers.log"
        # Appended to by every scraper, read here from where the last call ended.
        out = log.open("ab")
        self._said = log.open("rb")
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "bi_performance_ctl.local.demo.crawl"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                bufsize=0,
                start_new_session=True,
            )
            for _ in range(count)
        ]
        out.close()
        self._unread = {process.pid: b"" for process in self._processes}
        for process in self._processes:
            self._messages(process)

    def crawl(
        self,
        url: str,
        visits: list[str],
        arm: str,
        place: str,
        advance: Callable[[int], None],
    ) -> Outcome:
        """Share the visits out among the processes and wait for all; `advance(visits)` meanwhile.

        Raises Exit when a scraper ends by itself.
        """
        count = len(self._processes)
        began = time.perf_counter()
        with selectors.DefaultSelector() as selector:
            for n, process in enumerate(self._processes):
                task = {"url": url, "visits": visits[n::count], "arm": arm, "place": place}
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(json.dumps(task).encode() + b"\n")
                selector.register(process.stdout, selectors.EVENT_READ, process)
            parts: list[dict[str, Any]] = []
            while len(parts) < count:
                for key, _ in selector.select():
                    for message in self._messages(key.data):
                        advance(message["visited"])
                        if "done" in message:
                            parts.append(message["done"])
                            selector.unregister(key.fileobj)
        seconds = time.perf_counter() - began
        total = {
            name: sum(part[name] for part in parts)
            for name in ("fetched", "hits", "bytes", "facts")
        }
        errors = [text for part in parts for text in part["errors"]]
        return Outcome(seconds, len(visits), errors=errors, **total)

    def _messages(self, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        """What a scraper said since the last call; waits when that is nothing."""
        assert process.stdout is not None
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            raise Exit(FAILED, f"a scraper process ended by itself, with {process.wait()}")
        *lines, self._unread[process.pid] = (self._unread[process.pid] + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def take_warnings(self) -> list[str]:
        """The lines on the scrapers' standard error since the last call."""
        return [line.decode("utf-8", "replace").rstrip() for line in self._said]

    def close(self) -> None:
        self._said.close()
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


class Daemon:
    """`bi-performanced` on embedded defaults, in directories of the demo."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "control.sock"
        self._environ = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("BI_PERFORMANCE", "PERFORMANCE_", "REDIS_", "DB_"))
                and name not in ("DATABASE_URL", "NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS")
            },
            "RUNTIME_DIRECTORY": str(folder),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers. Raises Exit with what it said."""
        said = self.folder / "daemon.out"
        with said.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *("-m", "bi_performanced.main"),
                    *("--socket", str(self.socket)),
                    *("--state-dir", str(self.folder / "state")),
                    *("--log-file", str(self.folder / "performance.log")),
                    *("--http", "127.0.0.1:0"),
                ],
                cwd=self.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                ask(self.socket, "ping", seconds=1)
            except (OSError, Unavailable, WireError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    text = said.read_text(errors="replace").strip()
                    raise Exit(
                        FAILED, f"the daemon did not start: {text or 'it said nothing'}"
                    ) from None
                time.sleep(0.02)
            else:
                return

    def ask(self, method: str) -> Any:
        return ask(self.socket, method, seconds=10)

    def kill(self) -> None:
        """Kill -9, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, then kill."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(12)
        except subprocess.TimeoutExpired:
            self.kill()
