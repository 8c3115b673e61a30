"""Record which keys a crawl and its recrawls ask the cache for, as a trace for policy.py.

    python benchmarks/crawl.py FOLDER OUT.txt.gz [--spiders N] [--pages N] [--crawls N] [--seed N]

FOLDER holds linked HTML pages (a documentation tree, say): they are served by a local HTTP server,
and crawled over it. Each spider begins at a page of its own and follows links breadth first, as
many spiders at once as were asked for. For every page it visits it asks the cache for the page and
for everything that the page embeds, styles and scripts and images, as a scraper that renders pages
does; each spider remembers only its own pages, as the processes of a scraper do. Then all crawl
again, from the same pages, until each has seen half as many pages. What is missing is fetched from
the server and stored with bi-performance, in a daemon of its own; the keys are written in the order
in which they were asked for.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import random
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

from measure import daemon, say

from bi_performance.client import SyncCache
from bi_performance.optimizer import PerformanceOptimizer

LINK = re.compile(rb"""<a\s[^>]*?href\s*=\s*["']?([^"'>\s]+)""", re.I)
EMBEDDED = re.compile(rb"""<(?:link|script|img)\s[^>]*?(?:href|src)\s*=\s*["']?([^"'>\s]+)""", re.I)
LARGEST = 1 << 20


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address at which a folder is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Recorder:
    """The keys in the order in which they were asked for."""

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.hits = 0
        self._numbers: dict[str, int] = {}
        self._lock = threading.Lock()

    def asked(self, url: str, found: bool) -> None:
        with self._lock:
            self.keys.append(self._numbers.setdefault(url, len(self._numbers)))
            self.hits += found

    @property
    def unique(self) -> int:
        return len(self._numbers)


class Spider(threading.Thread):
    """Crawls from one page on."""

    def __init__(self, base: str, start: str, pages: int, cache: SyncCache, to: Recorder) -> None:
        super().__init__()
        self._base = base
        self._left = pages
        self._frontier = deque([start])
        self._seen = {start}
        self._cache = cache
        self._to = to
        self._http = http.client.HTTPConnection(urlsplit(base).netloc, timeout=30)

    def run(self) -> None:
        while self._frontier and self._left:
            url = self._frontier.popleft()
            page = self._get(url)
            if not page:
                continue
            self._left -= 1
            for each in self._urls(EMBEDDED, url, page):
                self._get(each)
            for each in self._urls(LINK, url, page):
                if each not in self._seen and urlsplit(each).path.endswith((".html", "/")):
                    self._seen.add(each)
                    self._frontier.append(each)
        self._http.close()

    def _get(self, url: str) -> bytes:
        found = self._cache.get(url)
        self._to.asked(url, found is not None)
        if isinstance(found, bytes):
            return found
        self._http.request("GET", urlsplit(url).path)
        answer = self._http.getresponse()
        body = answer.read()
        page = body[:LARGEST] if answer.status == 200 else b""
        self._cache.set(url, page)
        return page

    def _urls(self, pattern: re.Pattern[bytes], url: str, page: bytes) -> list[str]:
        found: dict[str, None] = {}
        for match in pattern.finditer(page):
            address = urldefrag(urljoin(url, match[1].decode("utf-8", "replace")))[0]
            if address.startswith(self._base):
                found[urlsplit(address)._replace(query="").geturl()] = None
        return list(found)


def crawl(folder: Path, spiders: int, pages: int, crawls: int, seed: int) -> Recorder:
    chosen = random.Random(seed)
    starts = [each for each in folder.rglob("index.html") if each.stat().st_size]
    chosen.shuffle(starts)
    recorder = Recorder()
    with daemon() as socket, serving(folder) as base:
        cache = PerformanceOptimizer(str(socket)).sync.cache
        for number in range(crawls):
            crew = [
                Spider(
                    base,
                    urljoin(base, str(start.relative_to(folder))),
                    pages if number == 0 else pages // 2,
                    cache,
                    recorder,
                )
                for start in starts[:spiders]
            ]
            for spider in crew:
                spider.start()
            for spider in crew:
                spider.join()
            say(
                f"crawl {number + 1} of {crawls}: {len(recorder.keys):,} requests of "
                f"{recorder.unique:,} keys up to here"
            )
    return recorder


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--spiders", type=int, default=8)
    parser.add_argument("--pages", type=int, default=1500, help="for each spider")
    parser.add_argument("--crawls", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    recorder = crawl(asked.folder, asked.spiders, asked.pages, asked.crawls, asked.seed)
    with gzip.open(asked.out, "wt", encoding="ascii") as file:
        file.writelines(f"{key}\n" for key in recorder.keys)
    say(f"{asked.out}: {len(recorder.keys):,} requests, {recorder.unique:,} unique keys")


if __name__ == "__main__":
    main()
