"""The site that is crawled: the documentation server of the installed Python."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
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
        # -I: the site is the same wherever the demo was started from.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-W", "ignore", "-m", "pydoc", "-n", "127.0.0.1", "-p", "0"],
            cwd=folder,
            env={"BROWSER": "/bin/true", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := _READY.search(line):
                self.url = found[0].decode()
                return
        self.close()
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
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
