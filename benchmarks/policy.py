"""Hit ratios of the store's own policy on traces, beside other policies and libraries.

    python benchmarks/policy.py FOLDER [--entries N ...] [--json FILE] [--plot FILE] [--live]

FOLDER holds traces: gzip text, one integer key a line, in request order (*.gz). Every object has
size 1; a miss stores. Without --entries: 0.1 %, 1 % and 10 % of a trace's unique keys, and 10,000.
OPT is Belady's with bypass; LRU, S3-FIFO (Yang et al., SOSP 2023), SIEVE (Zhang et al., NSDI 2024)
and ARC (Megiddo and Modha, FAST 2003) are plain models over dicts. At the end: which share of the
gap from LRU to OPT each closes (sizes at or above a trace's unique keys left out), and how far
below LRU it ever is.

With --live the requests of each trace also go through a real daemon, dealt out to --clients
processes that read in place and together make --rate requests a second, as fast as they can.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import multiprocessing
import os
import statistics
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from measure import daemon, say

from bi_performance.optimizer import PerformanceOptimizer
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.store import Store

OURS = "bi-performance"
LIVE = f"{OURS}, live"
DEFAULT_SHARES = (0.001, 0.01, 0.1)
DEFAULT_ENTRIES = 10_000
_NEVER = 1 << 62


def load(path: Path) -> array[int]:
    """A trace's keys in request order."""
    with gzip.open(path, "rt", encoding="ascii") as file:
        return array("q", map(int, file))


def sizes_of(unique: int) -> list[int]:
    """The default sizes for a trace, smallest first."""
    return sorted({max(1, round(unique * share)) for share in DEFAULT_SHARES} | {DEFAULT_ENTRIES})


def ours(trace: array[int], entries: int) -> int:
    """Hits of the real store: the code that the daemon runs, entries the only limit."""
    # An entry of these takes 44 bytes at most; the byte limit must not be what binds.
    store = Store(Memory.create(None, entries, max(1 << 20, entries * 256), epoch=1))
    hits = 0
    get, put = store.get, store.put
    for key in trace:
        name = b"%d" % key
        if get(name, 1) is not None:
            hits += 1
        else:
            put(name, b"\0\xc0", expires=_NEVER, now=1)
    store.close()
    return hits


def lru(trace: array[int], entries: int) -> int:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in kept:
            hits += 1
            kept.move_to_end(key)
        else:
            if len(kept) >= entries:
                kept.popitem(last=False)
            kept[key] = None
    return hits


def s3_fifo(trace: array[int], entries: int) -> int:
    small_most = max(1, entries // 10)
    small: deque[int] = deque()
    main: deque[int] = deque()
    ghost: OrderedDict[int, None] = OrderedDict()
    uses: dict[int, int] = {}
    hits = 0

    def evict() -> None:
        while True:
            if small and (len(small) >= small_most or not main):
                key = small.popleft()
                if uses[key] > 1:
                    uses[key] = 0
                    main.append(key)
                    continue
                del uses[key]
                ghost[key] = None
                if len(ghost) > entries:
                    ghost.popitem(last=False)
                return
            key = main.popleft()
            if uses[key]:
                uses[key] -= 1
                main.append(key)
                continue
            del uses[key]
            return

    for key in trace:
        if key in uses:
            hits += 1
            uses[key] = min(3, uses[key] + 1)
            continue
        if len(uses) >= entries:
            evict()
        uses[key] = 0
        if key in ghost:
            del ghost[key]
            main.append(key)
        else:
            small.append(key)
    return hits


def sieve(trace: array[int], entries: int) -> int:
    """The hand goes from the oldest to the newest; new ones come before the newest."""
    newer: dict[int, int | None] = {}
    older: dict[int, int | None] = {}
    seen: dict[int, bool] = {}
    head: int | None = None
    tail: int | None = None
    hand: int | None = None
    hits = 0
    for key in trace:
        if key in seen:
            hits += 1
            seen[key] = True
            continue
        if len(seen) >= entries:
            at = hand if hand is not None else tail
            assert at is not None
            while seen[at]:
                seen[at] = False
                following = newer[at]
                at = following if following is not None else tail
                assert at is not None
            hand = newer[at]
            before, after = older.pop(at), newer.pop(at)
            del seen[at]
            if before is None:
                tail = after
            else:
                newer[before] = after
            if after is None:
                head = before
            else:
                older[after] = before
        seen[key] = False
        older[key], newer[key] = head, None
        if head is not None:
            newer[head] = key
        head = key
        if tail is None:
            tail = key
    return hits


def arc(trace: array[int], entries: int) -> int:
    once: OrderedDict[int, None] = OrderedDict()
    often: OrderedDict[int, None] = OrderedDict()
    once_ghost: OrderedDict[int, None] = OrderedDict()
    often_ghost: OrderedDict[int, None] = OrderedDict()
    target = 0.0
    hits = 0

    def replace(in_often_ghost: bool) -> None:
        if once and (len(once) > target or (in_often_ghost and len(once) == target)):
            once_ghost[once.popitem(last=False)[0]] = None
        elif often:
            often_ghost[often.popitem(last=False)[0]] = None

    for key in trace:
        if key in once:
            hits += 1
            del once[key]
            often[key] = None
        elif key in often:
            hits += 1
            often.move_to_end(key)
        elif key in once_ghost:
            target = min(entries, target + max(1.0, len(often_ghost) / len(once_ghost)))
            replace(False)
            del once_ghost[key]
            often[key] = None
        elif key in often_ghost:
            target = max(0.0, target - max(1.0, len(once_ghost) / len(often_ghost)))
            replace(True)
            del often_ghost[key]
            often[key] = None
        else:
            if len(once) + len(once_ghost) == entries:
                if len(once) < entries:
                    once_ghost.popitem(last=False)
                    replace(False)
                else:
                    once.popitem(last=False)
            else:
                total = len(once) + len(often) + len(once_ghost) + len(often_ghost)
                if total >= entries:
                    if total >= 2 * entries:
                        often_ghost.popitem(last=False)
                    replace(False)
            once[key] = None
    return hits


def opt(trace: array[int], entries: int) -> int:
    """Belady's: keep what is used soonest; what is used later than all kept is not stored."""
    following = array("q", bytes(8 * len(trace)))
    last: dict[int, int] = {}
    for at in range(len(trace) - 1, -1, -1):
        following[at] = last.get(trace[at], _NEVER)
        last[trace[at]] = at
    kept: dict[int, int] = {}
    queue: list[tuple[int, int]] = []
    hits = 0
    for at, key in enumerate(trace):
        use = following[at]
        if key in kept:
            hits += 1
        elif use == _NEVER:
            continue
        kept[key] = use
        heapq.heappush(queue, (-use, key))
        while len(kept) > entries:
            when, victim = heapq.heappop(queue)
            if kept.get(victim) == -when:
                del kept[victim]
    return hits


def theine(trace: array[int], entries: int) -> int:
    from theine import Cache

    cache: Any = Cache(entries)
    hits = 0
    for key in trace:
        _, found = cache.get(key)
        if found:
            hits += 1
        else:
            cache.set(key, 1)
    cache.close()
    return hits


def cachetools_lfu(trace: array[int], entries: int) -> int:
    from cachetools import LFUCache

    cache: Any = LFUCache(entries)
    hits = 0
    for key in trace:
        if key in cache:
            hits += 1
            cache[key]
        else:
            cache[key] = 1
    return hits


POLICIES: dict[str, Callable[[array[int], int], int]] = {
    OURS: ours,
    "OPT": opt,
    "LRU": lru,
    "S3-FIFO": s3_fifo,
    "SIEVE": sieve,
    "ARC": arc,
    "theine": theine,
    "cachetools LFU": cachetools_lfu,
}


def available() -> list[str]:
    found = []
    for name in POLICIES:
        try:
            POLICIES[name](array("q", [1, 2, 1]), 10)
        except ImportError:
            say(f"left out, not installed: {name}")
        else:
            found.append(name)
    return found


class Run(NamedTuple):
    """What came of a trace through a daemon."""

    hits: int
    rate: float
    """Requests a second."""
    asked: list[tuple[float, int]]
    """When each key was really asked for: clients that wait fall behind the others."""
    storing: float
    """Seconds from a miss until the entry is stored, in the median."""


class Lru:
    """LRU with the two calls of a cache."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._kept: OrderedDict[int, None] = OrderedDict()

    def get(self, key: int) -> bool:
        if key not in self._kept:
            return False
        self._kept.move_to_end(key)
        return True

    def put(self, key: int) -> None:
        if key not in self._kept and len(self._kept) >= self._entries:
            self._kept.popitem(last=False)
        self._kept[key] = None


class Alone:
    """The store without daemon and clients."""

    def __init__(self, entries: int) -> None:
        self._store = Store(Memory.create(None, entries, max(1 << 20, entries * 256), epoch=1))

    def get(self, key: int) -> bool:
        return self._store.get(b"%d" % key, 1) is not None

    def put(self, key: int) -> None:
        self._store.put(b"%d" % key, b"\0\xc0", expires=_NEVER, now=1)


def again(run: Run, cache: Lru | Alone) -> int:
    """Hits of a cache that is asked at the same times, and takes as long to store."""
    storing: deque[tuple[float, int]] = deque()
    hits = 0
    for when, key in run.asked:
        while storing and storing[0][0] <= when:
            cache.put(storing.popleft()[1])
        if cache.get(key):
            hits += 1
        else:
            storing.append((when + run.storing, key))
    return hits


def live(trace: array[int], entries: int, clients: int, rate: float) -> Run:
    """The trace through `clients` processes on a daemon that keeps `entries`."""
    os.environ["PERFORMANCE_CACHE_MAX_SIZE"] = str(entries)
    with daemon() as path, multiprocessing.get_context("fork").Pool(clients) as pool:
        # Later than all have begun, so that they take turns.
        begin = time.monotonic() + 1
        shares = [
            (path, trace[at::clients], begin + at / rate, clients / rate) for at in range(clients)
        ]
        found = pool.starmap(_client, shares)
    asked = sorted(
        (when, key)
        for (_, times, _), (_, keys, _, _) in zip(found, shares, strict=True)
        for when, key in zip(times, keys, strict=True)
    )
    took = asked[-1][0] - asked[0][0]
    hits = sum(hits for hits, _, _ in found)
    storing = statistics.median(each for _, _, storing in found for each in storing)
    return Run(hits, len(trace) / took, asked, storing)


def _client(
    path: Path, keys: array[int], begin: float, every: float
) -> tuple[int, array[float], array[float]]:
    """Make requests in turn with the others, one `every` so many seconds.

    Hits, when each was made, and the seconds that the sets took.
    """
    cache = PerformanceOptimizer(str(path), mode="on").sync.cache
    get, put, clock = cache.get, cache.set, time.monotonic
    times, storing = array("d"), array("d")
    hits = 0
    for at, key in enumerate(keys):
        due = begin + every * at
        while (left := due - clock()) > 0:
            time.sleep(left)
        times.append(clock())
        if get(str(key)) is not None:
            hits += 1
        else:
            put(str(key), 1)
            storing.append(clock() - times[-1])
    return hits, times, storing


def summary(rows: list[dict[str, Any]], uniques: dict[str, int], policies: list[str]) -> None:
    """Which share of the gap from LRU to OPT each policy closes, and its worst loss on LRU."""
    found = {(row["trace"], row["entries"], row["policy"]): row["hit_ratio"] for row in rows}
    cells = [
        (trace, entries)
        for trace, entries in dict.fromkeys((row["trace"], row["entries"]) for row in rows)
        if entries < uniques[trace]
    ]
    say("\nthe gap from LRU to OPT that is closed")
    for policy in policies:
        if policy in ("OPT", "LRU"):
            continue
        shares, losses = [], []
        for cell in cells:
            ours_, low, high = (found[(*cell, name)] for name in (policy, "LRU", "OPT"))
            losses.append((ours_ - low, cell))
            if high > low:
                shares.append((ours_ - low) / (high - low))
        worst, (trace, entries) = min(losses)
        say(
            f"  {policy:16} median {statistics.median(shares):6.3f}"
            f"   at the worst {100 * worst:+.2f} points to LRU ({trace} at {entries:,})"
        )


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    traces = list(dict.fromkeys(row["trace"] for row in rows))
    figure, axes = pyplot.subplots(1, len(traces), figsize=(5 * len(traces), 4), squeeze=False)
    for place, trace in zip(axes[0], traces, strict=True):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            points = [
                (row["entries"], 100 * row["hit_ratio"])
                for row in rows
                if (row["trace"], row["policy"]) == (trace, policy)
            ]
            width = 2.5 if policy == OURS else 1
            place.plot(*zip(*points, strict=True), marker="o", label=policy, linewidth=width)
        place.set_xscale("log")
        place.set_title(trace)
        place.set_xlabel("entries")
        place.set_ylabel("hit ratio, %")
        place.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    say(f"plot: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--entries", metavar="N", type=int, nargs="+")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows here")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw them here (PNG or SVG)")
    parser.add_argument("--live", action="store_true", help="also through a daemon and clients")
    parser.add_argument("--clients", metavar="N", type=int, default=4)
    parser.add_argument("--rate", metavar="N", type=float, default=50_000, help="requests a second")
    parser.add_argument("--first", metavar="N", type=int, help="only so many requests of a trace")
    args = parser.parse_args()
    files = sorted(args.folder.glob("*.gz"))
    if not files:
        parser.error(f"{args.folder} holds no traces (*.gz)")
    if args.entries and min(args.entries) < 1:
        parser.error("--entries must be 1 or more")
    policies = available()
    rows: list[dict[str, Any]] = []
    uniques: dict[str, int] = {}
    for file in files:
        name = file.name.split(".")[0]
        trace = load(file)[: args.first]
        unique = uniques[name] = len(set(trace))
        say(f"\n{name}: {len(trace):,} requests, {unique:,} unique keys")
        say("  " + "entries".rjust(9) + "".join(policy.rjust(16) for policy in policies))
        for entries in args.entries or sizes_of(unique):
            began = time.monotonic()
            found = {policy: POLICIES[policy](trace, entries) / len(trace) for policy in policies}
            rows += [
                {"trace": name, "entries": entries, "policy": policy, "hit_ratio": round(hit, 6)}
                for policy, hit in found.items()
            ]
            line = "".join(f"{hit:16.2%}" for hit in found.values())
            say(f"  {entries:9,}{line}   {time.monotonic() - began:.0f} s")
            if args.live:
                run = live(trace, entries, args.clients, args.rate)
                row = {"trace": name, "entries": entries, "policy": LIVE}
                ratio = run.hits / len(trace)
                rows.append({**row, "hit_ratio": round(ratio, 6)})
                others = again(run, Alone(entries)), again(run, Lru(entries))
                more, than_lru = (100 * (ratio - hits / len(trace)) for hits in others)
                say(
                    f"            live {ratio:.2%} at {run.rate:,.0f} a second:"
                    f" {more:+.2f} to the store alone, {than_lru:+.2f} to LRU at the same times"
                )
    summary(rows, uniques, policies)
    if args.plot:
        draw(args.plot, rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
        say(f"rows: {args.json}")


if __name__ == "__main__":
    main()
