"""One scraper process of the demo: takes tasks as JSON lines on standard input, crawls, answers.

It is a plain scraper: look into the cache, fetch on a miss, extract the facts, store them. Only
which cache it has changes from arm to arm.
"""

from __future__ import annotations

import http.client
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bi_performance_ctl.local.demo.site import LINK

TTL = 3600
RESTART_WITHIN = 15.0
"""Seconds for the site's server to be there again after it has ended by itself."""
TELL_EVERY = 0.1
"""Seconds between two reports of progress."""


class Store(NamedTuple):
    """The two calls that a scraper makes of whatever cache it has."""

    get: Callable[[str], Any]
    set: Callable[[str, Any], object]
    close: Callable[[], object]


def open_store(arm: str, place: str) -> Store:
    """The cache of an arm: `none`, `dict`, `diskcache` (a folder), `sidecar` (a socket)."""
    if arm == "none":
        return Store(lambda key: None, lambda key, value: None, lambda: None)
    if arm == "dict":
        kept: dict[str, Any] = {}
        return Store(kept.get, kept.__setitem__, lambda: None)
    if arm == "diskcache":
        import diskcache

        disk = diskcache.Cache(place)
        return Store(disk.get, lambda key, value: disk.set(key, value, expire=TTL), disk.close)
    from bi_performance.optimizer import PerformanceOptimizer

    optimizer = PerformanceOptimizer(place, mode="on")
    cache = optimizer.sync.cache
    return Store(cache.get, lambda key, value: cache.set(key, value, ttl=TTL), optimizer.close)


_TAG = re.compile(r"<[^>]+>")
_NAME = re.compile(r'<a name="(-?[\w.-]+)">')
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL | re.IGNORECASE)


def extract(url: str, body: str) -> dict[str, Any]:
    """The facts of a page of documentation."""
    title = _TITLE.search(body)
    return {
        "url": url,
        "title": title[1].strip() if title else "",
        "names": _NAME.findall(body),
        "links": sorted(set(LINK.findall(body))),
        "words": len(_TAG.sub(" ", body).split()),
        "body": body,
    }


def fetch(host: str, port: int, path: str) -> bytes:
    """A page of the site; while the server is being started again, once that is done."""
    until = time.monotonic() + RESTART_WITHIN
    while True:
        # The server ends a connection after each page.
        connection = http.client.HTTPConnection(host, port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except ConnectionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        finally:
            connection.close()


def crawl(
    task: dict[str, Any], store: Store, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Visit the pages of a task; what it came to."""
    base: str = task["url"]
    site = urlsplit(base)
    hits = fetched = received = facts = told = 0
    errors: list[str] = []
    next_report = time.monotonic() + TELL_EVERY
    visits: list[str] = task["visits"]
    for number, name in enumerate(visits, 1):
        url = f"{base}{name}.html"
        try:
            page = store.get(url)
            if page is None:
                body = fetch(site.hostname or "", site.port or 0, f"/{name}.html")
                fetched += 1
                received += len(body)
                page = extract(url, body.decode("utf-8", "replace"))
                store.set(url, page)
            else:
                hits += 1
            if page["url"] != url:
                errors.append(f"{url}: the page of {page['url']}")
            facts += len(page["names"]) + len(page["links"])
        except Exception as error:
            # Whatever goes wrong is the demo's finding, and is shown.
            errors.append(f"{url}: {type(error).__name__}: {error}")
        if (now := time.monotonic()) >= next_report:
            tell({"visited": number - told})
            told, next_report = number, now + TELL_EVERY
    return {
        "visited": len(visits) - told,
        "done": {
            "hits": hits,
            "fetched": fetched,
            "bytes": received,
            "facts": facts,
            "errors": errors,
        },
    }


def main() -> None:
    """Answer each task until standard input ends."""

    def tell(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    tell({"ready": True})
    # A cache lives as long as its process: an arm's visits come in several tasks.
    stores: dict[tuple[str, str], Store] = {}
    for line in sys.stdin:
        task = json.loads(line)
        key = task["arm"], task["place"]
        if key not in stores:
            stores[key] = open_store(*key)
        tell(crawl(task, stores[key], tell))
    for store in stores.values():
        store.close()


if __name__ == "__main__":
    main()
