"""Hit ratios of the store's own policy on traces, beside other policies and libraries.

    python benchmarks/policy.py FOLDER [--entries N ...] [--json FILE] [--plot FILE]

FOLDER holds traces: gzip text, one integer key a line, in request order (*.gz). Every object has
size 1; a miss stores. Without --entries: 0.1 %, 1 % and 10 % of a trace's unique keys, and 10,000.
OPT is Belady's with bypass; LRU and S3-FIFO (Yang et al., SOSP 2023) are plain models over dicts.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import time
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import say

from bi_performanced.cache.memory import Memory
from bi_performanced.cache.store import Store

OURS = "bi-performance"
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
    args = parser.parse_args()
    files = sorted(args.folder.glob("*.gz"))
    if not files:
        parser.error(f"{args.folder} holds no traces (*.gz)")
    if args.entries and min(args.entries) < 1:
        parser.error("--entries must be 1 or more")
    policies = available()
    rows: list[dict[str, Any]] = []
    for file in files:
        name = file.name.split(".")[0]
        trace = load(file)
        unique = len(set(trace))
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
    if args.plot:
        draw(args.plot, rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
        say(f"rows: {args.json}")


if __name__ == "__main__":
    main()
