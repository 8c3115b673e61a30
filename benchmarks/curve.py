"""How far the curve's predictions are from what happens, and what they cost.

    python benchmarks/curve.py FOLDER [--entries N ...] [--sizes X ...] [--first N] [--json FILE]
    python benchmarks/curve.py --cost [--seconds N]

FOLDER holds traces: gzip text, one integer key a line, in request order (*.gz). Each goes through
the real store at each number of entries (without --entries: 1 % and 10 % of a trace's unique keys,
and 10,000) with the curve that a daemon has, unlimited in time, and then through real stores of the
other sizes from the start: the error is the predicted hit rate less that one, in points. A dash:
the curve did not say, because it had not seen enough.

With --cost clients read and store through a real daemon as fast as they can; the processor time
that the models took is told as a share of the daemon's, and without what they may take ahead.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import time
from array import array
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from measure import daemon, say
from policy import DEFAULT_ENTRIES, load, ours

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.protocol import ask
from bi_performance_wire.types import CacheCurve
from bi_performanced.cache.curve import AHEAD, FACTORS, Allowance, Curve, Totals
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.store import Store

SHARES = (0.01, 0.1)
LEAST_ENTRIES = 10
"""In smaller ones it is chance what leaves."""
_NEVER = 1 << 62


class Unlimited(Allowance):
    def look(self) -> bool:
        return False


def predicted(trace: array[int], entries: int) -> tuple[CacheCurve, float]:
    """The curve after the whole trace, and the microseconds a request that the models took."""
    store = Store(Memory.create(None, entries, max(1 << 20, entries * 256), epoch=1))
    hits = misses = 0
    allowance = Unlimited()
    curve = Curve(lambda: Totals(hits, misses, store.counters.inserts), allowance)
    store.policy.listen(curve, store.fullness)
    get, put = store.get, store.put
    for key in trace:
        name = b"%d" % key
        if get(name, 1) is not None:
            hits += 1
        else:
            misses += 1
            put(name, b"\0\xc0", expires=_NEVER, now=1)
    found = curve.curve()
    store.close()
    return found, allowance.spent / len(trace) * 1e6


def rows_of(name: str, trace: array[int], entries: int, sizes: Sequence[float]) -> list[Any]:
    """A row for each size: what was predicted and what happened."""
    found, micros = predicted(trace, entries)
    rows = []
    for point in found.points:
        if point.size not in sizes or point.max_size is None or point.max_size < LEAST_ENTRIES:
            continue
        really = ours(trace, point.max_size) / len(trace)
        rows.append(
            {
                "trace": name,
                "entries": entries,
                "size": point.size,
                "max_size": point.max_size,
                "predicted": point.hit_rate,
                "margin": point.margin,
                "really": round(really, 6),
                "error_points": (
                    None if point.hit_rate is None else round(100 * (point.hit_rate - really), 3)
                ),
                "microseconds_a_request": round(micros, 3),
            }
        )
    return rows


def table(rows: list[dict[str, Any]], sizes: Sequence[float]) -> None:
    for name, entries in dict.fromkeys((row["trace"], row["entries"]) for row in rows):
        line = f"  {name:8}{entries:9,}"
        for size in sizes:
            error = next(
                (
                    row["error_points"]
                    for row in rows
                    if (row["trace"], row["entries"], row["size"]) == (name, entries, size)
                ),
                None,
            )
            line += f"{error:+8.2f}" if error is not None else "       –"
        say(line)
    for what, of in (("mean", lambda all: sum(all) / len(all)), ("worst", max)):
        line = f"  {what:17}"
        for size in sizes:
            errors = [
                abs(row["error_points"])
                for row in rows
                if row["size"] == size and row["error_points"] is not None
            ]
            line += f"{of(errors):8.2f}" if errors else "       –"
        say(line)


def cost(seconds: float, entries: int, clients: int, batch: int) -> dict[str, Any]:
    """The share of the daemon's processor time that the models take under a steady load."""
    os.environ["PERFORMANCE_CACHE_MAX_SIZE"] = str(entries)
    with daemon() as path, multiprocessing.get_context("fork").Pool(clients) as pool:
        jobs = [(path, at, seconds, entries, batch) for at in range(clients)]
        requests = sum(pool.starmap(_client, jobs))
        found = ask(path, "cache.curve", seconds=30)
        used = ask(path, "metrics", seconds=30)["daemon"]["cpu_seconds"]
    spent = found["cpu_seconds"]
    return {
        "entries": entries,
        "batch": batch,
        "requests": requests,
        "hit_rate": found["hit_rate"],
        "heard": found["heard"],
        "daemon_cpu_seconds": used,
        "curve_cpu_seconds": spent,
        "share": spent / used,
        "share_without_the_advance": max(0.0, spent - AHEAD) / used,
        "known": sum(point["hit_rate"] is not None for point in found["points"]),
    }


def _client(path: Path, seed: int, seconds: float, entries: int, batch: int) -> int:
    """Read by Zipf's law, and store what is missing, so many at once; how many were read."""
    cache = PerformanceOptimizer(str(path), mode="on").sync.cache
    rng = random.Random(seed)
    shares = list(accumulate(1 / rank**0.9 for rank in range(1, 6 * entries + 1)))
    count, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        missing = []
        for key in rng.choices(range(6 * entries), cum_weights=shares, k=500):
            count += 1
            if cache.get(str(key)) is None:
                missing.append((str(key), "x" * 500))
                if len(missing) == batch:
                    cache.set_many(dict(missing))
                    missing = []
        if missing:
            cache.set_many(dict(missing))
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, nargs="?")
    parser.add_argument("--entries", metavar="N", type=int, nargs="+")
    parser.add_argument("--sizes", metavar="X", type=float, nargs="+", default=list(FACTORS))
    parser.add_argument("--first", metavar="N", type=int, help="only so many requests of a trace")
    parser.add_argument("--cost", action="store_true", help="what it costs, in a real daemon")
    parser.add_argument("--seconds", metavar="N", type=float, default=60, help="of each run (60)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows here")
    args = parser.parse_args()
    if (args.folder is None) is not args.cost:
        parser.error("give a FOLDER of traces, or --cost")
    if args.entries and min(args.entries) < 1:
        parser.error("--entries must be 1 or more")
    if not set(args.sizes) <= set(FACTORS):
        parser.error(f"--sizes are of {', '.join(f'{each:g}' for each in FACTORS)}")
    rows: list[dict[str, Any]] = []
    if args.cost:
        for entries in args.entries or (500, 10_000, 100_000):
            for batch in (1, 100):
                row = cost(args.seconds, entries, 2, batch)
                rows.append(row)
                say(
                    f"  {entries:9,} entries, stored by {batch:3}: {row['share']:.2%} of the"
                    f" daemon's {row['daemon_cpu_seconds']:.1f} s, without the advance"
                    f" {row['share_without_the_advance']:.2%}; {row['heard']:.0%} of"
                    f" {row['requests']:,} requests heard, {row['known']} of 9 sizes known"
                )
    else:
        files = sorted(args.folder.glob("*.gz"))
        if not files:
            parser.error(f"{args.folder} holds no traces (*.gz)")
        say("  error in points at so many times the entries")
        say("  trace     entries" + "".join(f"{size:8g}" for size in args.sizes))
        for file in files:
            name = file.name.split(".")[0]
            trace = load(file)[: args.first]
            unique = len(set(trace))
            default = sorted({round(unique * share) for share in SHARES} | {DEFAULT_ENTRIES})
            for entries in args.entries or default:
                rows += rows_of(name, trace, entries, args.sizes)
                say(f"  {name} at {entries:,} is played")
        table(rows, args.sizes)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
        say(f"rows: {args.json}")


if __name__ == "__main__":
    main()
