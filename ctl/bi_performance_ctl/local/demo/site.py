"""The site that is crawled: the documentation server of the installed Python."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

LEFT_OUT = (
    "__main__",
    "antigravity",
    "idlelib",
    "lib2to3",
    "test",
    "tests",
    "this",
    "tkinter",
    "turtle",
    "turtledemo",
)
"""Parts of a module's name that keep it out: the server imports what it documents, and the import
of these acts (opens a window or a browser, prints, runs a program) or belongs to a test suite."""

LINK = re.compile(r'href="([A-Za-z_][\w.]*)\.html"')
_READY = re.compile(rb"http://\S+/")
_PAGE_SECONDS = 20.0
LOOK_EVERY = 1.0
"""Seconds between two looks whether the server is there."""


class Surveyed(NamedTuple):
    """What there is to crawl."""

    pages: list[str]
    """Module names, in the order in which links lead to them."""
    size_bytes: int
    """Of all pages together."""
    page_seconds: float
    """Time for one page once the server has imported the module."""
    left_out: int


class Site:
    """`python -m pydoc` as a server, in a folder of its own; a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._start(0)
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def _watch(self) -> None:
        """Start the server again when it has ended by itself.

        It imports anew what it shows at each request, its own modules among them, and now and then
        does not survive that.
        """
        where = urlsplit(self.url)
        while not self._closed.wait(LOOK_EVERY):
            with suppress(OSError):
                socket.create_connection((where.hostname or "", where.port or 0), 5).close()
                continue
            if not self._closed.is_set():
                self._end()
                with suppress(RuntimeError):
                    self._start(where.port or 0)

    def _start(self, port: int) -> None:
        # -I: the site is the same wherever the demo was started from.
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-W",
                "ignore",
                "-m",
                "pydoc",
                "-n",
                "127.0.0.1",
                "-p",
                str(port),
            ],
            cwd=self._folder,
            env={"BROWSER": "/bin/true", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := _READY.search(line):
                self.url = found[0].decode()
                return
        self._end()
        raise RuntimeError(f"{sys.executable} -m pydoc did not start")

    def survey(self, advance: Callable[[int, int], None], most: int | None = None) -> Surveyed:
        """Follow the links from the index, to `most` pages at most.

        `advance(pages, known)` is called after each page.
        """
        opener = build_opener(ProxyHandler({}))
        wanted = sys.stdlib_module_names
        pages: list[str] = []
        size = left_out = 0
        todo = [""]
        known = {""}
        for name in todo:
            if len(pages) == most:
                break
            try:
                with opener.open(self._page(name), timeout=_PAGE_SECONDS) as answer:
                    body = answer.read()
            except OSError:
                # A module that does not import here has no page.
                continue
            if name:
                pages.append(name)
                size += len(body)
            for link in LINK.findall(body.decode("utf-8", "replace")):
                if link in known or link.split(".")[0] not in wanted:
                    continue
                known.add(link)
                if any(part in LEFT_OUT for part in link.split(".")):
                    left_out += 1
                else:
                    todo.append(link)
            advance(len(pages), len(todo) - 1)
        began = time.perf_counter()
        sample = pages[:: max(1, len(pages) // 40)]
        for name in sample:
            with opener.open(self._page(name), timeout=_PAGE_SECONDS) as answer:
                answer.read()
        each = (time.perf_counter() - began) / max(1, len(sample))
        return Surveyed(pages, size, each, left_out)

    def _page(self, name: str) -> str:
        return f"{self.url}{name}.html" if name else self.url

    def close(self) -> None:
        self._closed.set()
        self._watching.join()
        self._end()

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
