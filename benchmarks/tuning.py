"""Leave one trace out: choose the policy's constants on the others, and try them on that one.

    python benchmarks/tuning.py FOLDER [--jobs N] [--first N] [--json FILE]

FOLDER holds traces as for policy.py. Every setting of a small grid around the constants of
bi_performanced/cache/policy.py runs on every trace at its sizes. For each trace the setting is
chosen that closes the most of the gap from LRU to OPT on the other traces, in the median, of those
that are never more than half a point below LRU there; what it does on the trace that was left out
is printed, beside the shipped constants. A choice that only fits the traces that it was made on
would fall behind there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
from array import array
from pathlib import Path
from typing import Any, NamedTuple

from measure import say
from policy import load, lru, opt, ours, sizes_of

from bi_performanced.cache import policy

GRID: dict[str, tuple[float, ...]] = {
    "HALF_LIFE": (15.0, 30.0, 60.0),
    "LEAD": (0.05, 0.1, 0.2),
    "LOSS": (0.03,),
}
MOST_BELOW = 0.005
Setting = tuple[float, ...]


class Cell(NamedTuple):
    """A trace at one size."""

    trace: str
    entries: int
    lru: float
    opt: float


def shipped() -> Setting:
    return tuple(getattr(policy, name) for name in GRID)


_traces: dict[str, array[int]] = {}


def bounds(work: tuple[str, int]) -> Cell:
    name, entries = work
    trace = _traces[name]
    return Cell(name, entries, lru(trace, entries) / len(trace), opt(trace, entries) / len(trace))


def hit_ratio(work: tuple[Cell, Setting]) -> float:
    cell, setting = work
    for name, value in zip(GRID, setting, strict=True):
        setattr(policy, name, value)
    trace = _traces[cell.trace]
    return ours(trace, cell.entries) / len(trace)


def closed(cell: Cell, found: float) -> float:
    """The share of the gap from LRU to OPT."""
    return (found - cell.lru) / (cell.opt - cell.lru) if cell.opt > cell.lru else 0.0


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--jobs", metavar="N", type=int, default=2)
    parser.add_argument("--first", metavar="N", type=int, help="only so many requests of a trace")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows here")
    asked = parser.parse_args()
    for file in sorted(asked.folder.glob("*.gz")):
        _traces[file.name.split(".")[0]] = load(file)[: asked.first]
    if len(_traces) < 2:
        parser.error(f"{asked.folder} holds fewer than two traces (*.gz)")
    # Forked: the traces are there, and each has constants of its own.
    with multiprocessing.get_context("fork").Pool(asked.jobs) as pool:
        uniques = {name: len(set(trace)) for name, trace in _traces.items()}
        wanted = [
            (name, entries)
            for name, unique in uniques.items()
            for entries in sizes_of(unique)
            if entries < unique
        ]
        cells = pool.map(bounds, wanted, chunksize=1)
        settings = list(itertools.product(*GRID.values()))
        if shipped() not in settings:
            settings.append(shipped())
        work = [(cell, setting) for setting in settings for cell in cells]
        found: dict[tuple[Cell, Setting], float] = {}
        for at, (key, ratio) in enumerate(
            zip(work, pool.imap(hit_ratio, work, chunksize=1), strict=True), 1
        ):
            found[key] = ratio
            if at % len(cells) == 0:
                say(f"setting {at // len(cells)} of {len(settings)}")

    def median(setting: Setting, of: list[Cell]) -> float:
        return statistics.median(closed(cell, found[cell, setting]) for cell in of)

    def worst(setting: Setting, of: list[Cell]) -> float:
        return min(found[cell, setting] - cell.lru for cell in of)

    rows: list[dict[str, Any]] = []
    say("\n| left out | chosen on the others | closed there | closed on it | shipped | to LRU |")
    say("| --- | --- | --: | --: | --: | --: |")
    for name in _traces:
        others = [cell for cell in cells if cell.trace != name]
        own = [cell for cell in cells if cell.trace == name]
        safe = [each for each in settings if worst(each, others) >= -MOST_BELOW] or settings
        chosen = max(safe, key=lambda each: median(each, others))
        constants = dict(zip(GRID, chosen, strict=True))
        row: dict[str, Any] = {
            "left_out": name,
            "chosen": constants,
            "closed_on_the_others": median(chosen, others),
            "closed": median(chosen, own),
            "closed_by_shipped": median(shipped(), own),
            "worst_points": 100 * worst(chosen, own),
        }
        rows.append(row)
        said = ", ".join(f"{key} {value:g}" for key, value in constants.items())
        say(
            f"| {name} | {said} | {row['closed_on_the_others']:.3f} | {row['closed']:.3f} "
            f"| {row['closed_by_shipped']:.3f} | {row['worst_points']:+.2f} |"
        )
    say(
        f"\nshipped constants on all: {median(shipped(), cells):.3f} closed in the median, "
        f"{100 * worst(shipped(), cells):+.2f} points to LRU at worst"
    )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
