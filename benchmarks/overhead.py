"""What the daemon costs the host that it serves, at rest and while scrapers work.

python benchmarks/overhead.py [--json FILE] [--rounds N]

At rest: processor time and memory of an idle daemon with monitoring on, and of Debian's
prometheus-node-exporter in the same seconds, both scraped every five seconds.

At work: two processes parse the documentation of the standard library, page after page, and keep
each page's record in the cache. Rounds take turns: without the sidecar (a dict in each process, no
daemon running), attached to a daemon that measures nothing, and attached to one that measures all.
With the processors busy what the daemon takes is the scrapers' loss.
"""

from __future__ import annotations

import importlib
import json
import os
import pydoc
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

from measure import Spread, arguments, daemon, ratio, save, say

PROCESSES = os.cpu_count() or 1
SCRAPE_EVERY = 5.0
REST_SECONDS = 20.0
PROMETHEUS = {"Accept": "text/plain;version=0.0.4"}
MODULES = (
    "argparse", "ast", "asyncio", "bz2", "calendar", "codecs", "collections", "configparser",
    "copy", "csv", "ctypes", "datetime", "decimal", "difflib", "dis", "email.message", "enum",
    "fileinput", "fractions", "ftplib", "functools", "gettext", "heapq", "http.client", "inspect",
    "io", "ipaddress", "json", "locale", "logging", "mailbox", "math", "mimetypes", "optparse",
    "os", "pathlib", "pickle", "platform", "plistlib", "queue", "random", "re", "sched", "shelve",
    "shlex", "smtplib", "socket", "sqlite3", "ssl", "statistics", "string", "struct",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize",
    "traceback", "types", "typing", "unittest", "urllib.request", "uuid", "wave", "weakref",
    "zipfile",
)  # fmt: skip


# ── at rest


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def node_exporter(port: int) -> Iterator[int | None]:
    """The process id of Debian's node_exporter with its own defaults, or None."""
    program = shutil.which("prometheus-node-exporter")
    if program is None:
        yield None
        return
    process = subprocess.Popen(
        [program, f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def process_of(path: Path) -> int:
    """Who listens on a control socket."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        pid: int = int.from_bytes(
            peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder
        )
        return pid


def seconds_of(pid: int) -> float:
    """Processor time of a process's threads, in nanoseconds as the scheduler counts it."""
    return (
        sum(
            int((task / "schedstat").read_text().split()[0])
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
        / 1e9
    )


def resident(pid: int) -> float:
    """Resident memory in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def at_rest(count: int) -> list[dict[str, Any]]:
    ours, theirs = free_port(), free_port()
    with (
        daemon(None, "--http", f"127.0.0.1:{ours}") as path,
        node_exporter(theirs) as exporter,
    ):
        targets = {
            "bi-performanced": (process_of(path), f"http://127.0.0.1:{ours}/performance/metrics")
        }
        if exporter is not None:
            targets["node_exporter"] = (exporter, f"http://127.0.0.1:{theirs}/metrics")
        opener = build_opener(ProxyHandler({}))
        opener.addheaders = list(PROMETHEUS.items())

        def scrape() -> None:
            for _, url in targets.values():
                with opener.open(url, timeout=10) as answer:
                    answer.read()

        # Until the first scrape has loaded what it needs, and the start is over.
        time.sleep(3)
        scrape()
        shares: dict[str, list[float]] = {name: [] for name in targets}
        for _ in range(count):
            before = {name: seconds_of(pid) for name, (pid, _) in targets.items()}
            began = time.monotonic()
            while (now := time.monotonic()) < began + REST_SECONDS:
                scrape()
                time.sleep(SCRAPE_EVERY - (time.monotonic() - now))
            took = time.monotonic() - began
            for name, (pid, _) in targets.items():
                shares[name].append(100 * (seconds_of(pid) - before[name]) / took)
        rows = []
        say(f"at rest, scraped every {SCRAPE_EVERY:g} s, {count} rounds of {REST_SECONDS:g} s")
        for name, (pid, _) in targets.items():
            share, size = Spread.of(shares[name]), resident(pid)
            say(f"  {name:18} {share} % of a processor, {size:.1f} MB resident")
            rows.append(
                {"measure": "rest", "who": name, "cpu_percent": share._asdict(), "rss_mb": size}
            )
        if exporter is not None:
            times = ratio(shares["node_exporter"], shares["bi-performanced"])
            say(f"  {times}× node_exporter's processor time")
            rows.append({"measure": "rest", "times_of_node_exporter": times._asdict()})
        return rows


# ── at work


class Page(HTMLParser):
    """What a scraper takes from a page: its title, its links, how often each word is used."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.words: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]

    def handle_data(self, data: str) -> None:
        for word in data.split():
            self.words[word] = self.words.get(word, 0) + 1

    def record(self, name: str) -> dict[str, Any]:
        common = sorted(self.words.items(), key=lambda item: (-item[1], item[0]))[:20]
        return {"name": name, "links": self.links[:50], "words": dict(common)}


def write_pages(folder: Path) -> int:
    """The documentation pages of standard modules, as `python -m pydoc -p` serves them."""
    for name in MODULES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
            text = pydoc.html.page(name, pydoc.html.document(module, name))
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return len(MODULES)


class Plain:
    """A process's own cache."""

    def __init__(self) -> None:
        self._entries: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self._entries.get(key)

    def set(self, key: str, value: Any) -> None:
        self._entries[key] = value


def work(folder: Path, paths: list[str]) -> None:
    """Parse and cache every page once for each line read, and say how long it took.

    The line is the number of the cache that is used: of a daemon's path, or a dict of this process
    where the path is empty.
    """
    from bi_performance.optimizer import PerformanceOptimizer

    caches = [PerformanceOptimizer(path).sync.cache if path else Plain() for path in paths]
    pages = [(each.stem, each.read_text(encoding="utf-8")) for each in sorted(folder.iterdir())]

    def lap(cache: Any) -> None:
        for name, text in pages:
            page = Page()
            page.feed(text)
            record = page.record(name)
            if cache.get(name) != record:
                cache.set(name, record)

    for cache in caches:
        lap(cache)
    for line in sys.stdin:
        cache = caches[int(line)]
        # A daemon that was stopped needs a moment until it may be believed again.
        while cache.get(pages[0][0]) is None:
            time.sleep(0.01)
        began, used = time.monotonic(), time.process_time()
        lap(cache)
        took, used = time.monotonic() - began, time.process_time() - used
        say(json.dumps({"pages": len(pages), "seconds": took, "cpu_seconds": used}))


class Workers:
    """Processes that do the same at once; a context manager."""

    def __init__(self, folder: Path, paths: list[str]) -> None:
        command = [sys.executable, __file__, "--work", str(folder), *paths]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(PROCESSES)
        ]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._processes:
            each.kill()
            each.communicate()

    def lap(self, number: int, pid: int | None) -> tuple[float, float]:
        """Pages a second of all, and pages for a second of their and the daemon's time."""
        before = seconds_of(pid) if pid else 0.0
        for each in self._processes:
            assert each.stdin is not None
            each.stdin.write(f"{number}\n")
            each.stdin.flush()
        found = []
        for each in self._processes:
            assert each.stdout is not None
            found.append(json.loads(each.stdout.readline()))
        used = sum(each["cpu_seconds"] for each in found)
        used += seconds_of(pid) - before if pid else 0.0
        pages = sum(each["pages"] for each in found)
        return sum(each["pages"] / each["seconds"] for each in found), pages / used


WITHOUT, UNMEASURED, MEASURED = "without the sidecar", "attached, not measured", "attached"


def at_work(count: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pages = write_pages(folder)
        off = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".toml"))
        off.write("[performance.monitoring]\nenabled = false\n")
        off.flush()
        measured = stack.enter_context(daemon())
        unmeasured = stack.enter_context(daemon(None, "--config", off.name))
        places = {WITHOUT: None, UNMEASURED: unmeasured, MEASURED: measured}
        pids = {name: process_of(path) for name, path in places.items() if path is not None}
        rates: dict[str, list[float]] = {name: [] for name in places}
        costs: dict[str, list[float]] = {name: [] for name in places}
        # The same processes do all, for two of the same program differ by some percent.
        paths = ["" if path is None else str(path) for path in places.values()]
        workers = stack.enter_context(Workers(folder, paths))
        order = list(enumerate(places))
        workers.lap(0, None)
        for _ in range(count):
            for number, name in order:
                # Only the daemon of this round may run.
                for other, pid in pids.items():
                    os.kill(pid, signal.SIGCONT if other == name else signal.SIGSTOP)
                speed, thrift = workers.lap(number, pids.get(name))
                rates[name].append(speed)
                costs[name].append(thrift)
            order = [*order[1:], order[0]]
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
    rows = []
    say(f"\nat work: {PROCESSES} processes, {pages} pages, {count} rounds")
    for name in places:
        wall = ratio(rates[WITHOUT], rates[name])
        cost = ratio(costs[WITHOUT], costs[name])
        rate = Spread.of(rates[name])
        say(
            f"  {name:24} {rate.median:7.1f} pages/s   of without: {three(wall)} by the clock,"
            f" {three(cost)} by processor time"
        )
        rows.append(
            {
                "measure": "work",
                "who": name,
                "pages_per_second": rate._asdict(),
                "of_without": wall._asdict(),
                "of_without_by_processor_time": cost._asdict(),
            }
        )
    return rows


def three(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", metavar="N", type=int, default=9, help="rounds of each part")
    args = parser.parse_args()
    rows = at_rest(args.rounds) + at_work(4 * args.rounds + 1)
    save(args.json, rows)


if __name__ == "__main__":
    main()
