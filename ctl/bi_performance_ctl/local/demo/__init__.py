"""`demo`: the main job on a real site, without a cache, with two usual ones, with the sidecar."""

from __future__ import annotations

import argparse
import importlib.util
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bi_performance_ctl.console import FAILED, USAGE, Console, Exit
from bi_performance_ctl.local.demo.processes import NOTHING
from bi_performance_ctl.render.units import size

if TYPE_CHECKING:
    from bi_performance_ctl.local.demo.processes import Daemon, Outcome, Scrapers
    from bi_performance_ctl.local.demo.screen import Screen
    from bi_performance_ctl.local.demo.site import Surveyed

OVERLAPS = (0, 20, 80)
"""Per cent of the visits that go to a page which another visit fetches too."""
ARMS = (
    ("none", "no cache"),
    ("dict", "a dict in each process"),
    ("diskcache", "diskcache, shared"),
    ("sidecar", "the sidecar, shared"),
)
MOST_PAGES = 420
TURNS = 4
"""Parts of a crawl that the arms make in turns, so that all of them see the same machine."""
BUDGET_SECONDS = 55.0
"""For all crawls together, by the measured time of one page; a slow host makes fewer visits."""
FEWEST_VISITS = 60
_CRAWLS = 11.0
"""How many crawls of every page the whole demo comes to, roughly."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes", metavar="N", type=int, default=4, help="scraper processes (4)"
    )
    parser.add_argument(
        "--pages", metavar="N", type=int, help="visits of each crawl (every page of the site)"
    )
    parser.add_argument(
        "--keep-running", action="store_true", help="leave the daemon up at the end"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Run it all; nothing is left behind, whatever ends it."""
    if not 1 <= args.processes <= 64:
        raise Exit(USAGE, f"--processes must be 1 to 64, not {args.processes}")
    if args.pages is not None and not 10 <= args.pages <= 100_000:
        raise Exit(USAGE, f"--pages must be 10 to 100000, not {args.pages}")
    if importlib.util.find_spec("bi_performanced") is None:
        raise Exit(FAILED, "bi_performanced is not installed here, so there is nothing to show")

    def end(number: int, frame: object) -> None:
        raise Exit(128 + number, "stopped")

    previous = signal.signal(signal.SIGTERM, end)
    try:
        return _run(args, console)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(args: argparse.Namespace, console: Console) -> int:
    from bi_performance_ctl.local.demo.processes import Daemon, Scrapers
    from bi_performance_ctl.local.demo.screen import Screen
    from bi_performance_ctl.local.demo.site import LEFT_OUT, Site

    folder = Path(tempfile.mkdtemp(prefix="bi-performance-demo-"))
    with ExitStack() as stack:
        kept = False

        def sweep() -> None:
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)

        stack.callback(sweep)
        screen = stack.enter_context(Screen(console))
        screen.head("A real site", "the documentation server of this Python, python -m pydoc")
        with screen.progress("following the links") as bar:
            site = stack.enter_context(closing(Site(folder / "site")))
            found = site.survey(bar.to, args.pages or MOST_PAGES)
        _say_site(screen, found, LEFT_OUT)
        daemon = Daemon(folder)
        stack.callback(lambda: None if kept else daemon.stop())
        daemon.start()
        scrapers = stack.enter_context(closing(Scrapers(args.processes, folder)))
        count = _visits(args.pages, found)
        demo = _Demo(screen, scrapers, daemon, site.url, found.pages, folder, count)
        overlaps = [demo.compare(overlap) for overlap in OVERLAPS]
        outage, recrawl = demo.outage()
        info, status = daemon.ask("server.info"), daemon.ask("status")
        screen.status(status)
        kept = bool(args.keep_running)
        _next_steps(screen, info, kept, folder, daemon.pid)
        if console.json:
            console.document(
                {
                    "site": {"pages": len(found.pages), "size_bytes": found.size_bytes},
                    "processes": args.processes,
                    "visits": count,
                    "overlaps": overlaps,
                    "outage": outage,
                    "recrawl": recrawl,
                    "errors": demo.errors,
                    "status": status,
                    "socket": str(daemon.socket) if kept else None,
                    "pid": daemon.pid if kept else None,
                }
            )
        if demo.errors:
            raise Exit(FAILED, f"{len(demo.errors)} errors, the first: {demo.errors[0]}")
    return 0


def _visits(wanted: int | None, found: Surveyed) -> int:
    affordable = int(BUDGET_SECONDS / _CRAWLS / max(found.page_seconds, 1e-4))
    return wanted or max(FEWEST_VISITS, min(len(found.pages), affordable))


def plan(pages: list[str], visits: int, overlap: int, seed: int) -> list[str]:
    """Visits of which `overlap` per cent repeat a page, in an order that is the same every time."""
    rng = random.Random(seed)
    distinct = max(1, min(len(pages), round(visits * (100 - overlap) / 100)))
    chosen = rng.sample(pages, distinct)
    planned = chosen + [chosen[n % distinct] for n in range(visits - distinct)]
    rng.shuffle(planned)
    return planned


class _Demo:
    """The crawls, with what they need."""

    def __init__(
        self,
        screen: Screen,
        scrapers: Scrapers,
        daemon: Daemon,
        url: str,
        pages: list[str],
        folder: Path,
        visits: int,
    ) -> None:
        self._screen = screen
        self._scrapers = scrapers
        self._daemon = daemon
        self._url = url
        self._pages = pages
        self._folder = folder
        self._visits = visits
        self.errors: list[str] = []

    def compare(self, overlap: int) -> dict[str, Any]:
        """The same visits in every arm."""
        visits = plan(self._pages, self._visits, overlap, seed=overlap)
        repeated = len(visits) - len(set(visits))
        self._screen.head(
            f"Overlap {overlap} %",
            f"{len(visits)} visits, {repeated} of them to a page that another visit fetches",
        )
        arms = dict(ARMS)
        if importlib.util.find_spec("diskcache") is None:
            self._screen.note("  diskcache is not installed: pip install bi-performance[demo]")
            del arms["diskcache"]
        totals = dict.fromkeys(arms, NOTHING)
        self._daemon.ask("cache.clear")
        cuts = [len(visits) * turn // TURNS for turn in range(TURNS + 1)]
        done = 0
        with self._screen.progress(f"{len(arms)} caches in turns") as bar:
            for start, stop in pairwise(cuts):
                for arm, total in totals.items():

                    def advance(count: int) -> None:
                        nonlocal done
                        done += count
                        bar.to(done, len(visits) * len(arms))

                    part = self._crawl(visits[start:stop], arm, f"{arm}-{overlap}", advance)
                    totals[arm] = total.plus(part)
        plain = totals["none"].seconds
        rows = [
            {
                "arm": arm,
                "label": arms[arm],
                **total._asdict(),
                "errors": len(total.errors),
                "repeated": repeated,
                "hit_rate": total.hits / total.visits,
                "times_faster": plain / total.seconds,
            }
            for arm, total in totals.items()
        ]
        self._screen.arms(rows)
        return {"overlap_percent": overlap, "arms": rows}

    def _crawl(
        self, visits: list[str], arm: str, name: str, advance: Callable[[int], None]
    ) -> Outcome:
        place = str(self._daemon.socket) if arm == "sidecar" else str(self._folder / name)
        outcome = self._scrapers.crawl(self._url, visits, arm, place, advance)
        self.errors += outcome.errors
        return outcome

    def _through_the_sidecar(
        self, visits: list[str], label: str, during: Callable[[int], None] = lambda visited: None
    ) -> Outcome:
        visited = 0
        with self._screen.progress(label) as bar:

            def advance(count: int) -> None:
                nonlocal visited
                visited += count
                bar.to(visited, len(visits))
                during(visited)

            return self._crawl(visits, "sidecar", "", advance)

    def outage(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Kill the daemon in the middle of a crawl, start it again, crawl once more."""
        visits = plan(self._pages, self._visits, 0, seed=1)
        self._screen.head(
            "The daemon is killed in the middle",
            "kill -9 after a third of the visits, started again after two thirds",
        )
        events = [
            (len(visits) // 3, "killed", self._daemon.kill),
            (len(visits) * 2 // 3, "started again", self._daemon.start),
        ]

        def during(visited: int) -> None:
            while events and visited >= events[0][0]:
                _, what, act = events.pop(0)
                act()
                self._screen.note(f"  after {visited} visits: the daemon is {what}")

        self._daemon.ask("cache.clear")
        crawl = self._through_the_sidecar(visits, "crawl through the outage", during)
        for _, _, act in events:
            act()
        entries = self._daemon.ask("cache.stats")["entries"]
        self._screen.note(
            f"  {crawl.visits} visits in {crawl.seconds:.1f} s, {len(crawl.errors)} errors;"
            f" {entries} pages were stored, before the kill and after the restart"
        )
        warnings = self._scrapers.take_warnings()
        if warnings:
            self._screen.note(f"  each scraper's log has a warning, the first: {warnings[0]}")
        again = self._through_the_sidecar(visits, "recrawl")
        self._screen.note(
            f"  recrawled in {again.seconds:.1f} s: {again.hits} of {again.visits} pages came"
            f" from the cache, {again.fetched} were fetched"
        )
        return (
            {**crawl._asdict(), "errors": len(crawl.errors), "entries_after": entries},
            {**again._asdict(), "errors": len(again.errors), "hit_rate": again.hits / again.visits},
        )


def _say_site(screen: Screen, found: Surveyed, left_out: tuple[str, ...]) -> None:
    pages = len(found.pages)
    screen.note(
        f"  {pages} pages of {size(found.size_bytes / max(1, pages))},"
        f" {found.page_seconds * 1e3:.0f} ms each"
    )
    screen.note(
        f"  {found.left_out} left out, because the server imports what it shows: those with a part"
        f" named {', '.join(left_out)}"
    )


def _next_steps(screen: Screen, info: dict[str, Any], kept: bool, folder: Path, pid: int) -> None:
    screen.head("What next", "")
    if kept:
        screen.note(f"  the daemon runs on:  export BI_PERFORMANCE_SOCKET={info['socket']}")
        screen.note("                       bi-performance status")
        screen.note(f"                       curl {info['http']}/performance/status")
        screen.note(f"  to end it:           kill {pid} && rm -r {folder}")
    else:
        screen.note("  keep it running:     scripts/demo --keep-running")
        screen.note("  on your host:        bi-performanced &   then   bi-performance status")
        screen.note("                       curl http://127.0.0.1:8000/performance/status")
    screen.note("  in your scraper:     from bi_performance import cache")
    screen.note("                       page = await cache.get(url)")
    screen.note("                       await cache.set(url, page, ttl=3600)")
    screen.note(
        "  without trusting it: BI_PERFORMANCE_MODE=observe counts what it would have saved"
    )
