"""A recorded history of writes and reads over several hosts, and the check against a register.

Processes of one machine share a clock, so intervals of different processes can be compared.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from bi_performance.optimizer import PerformanceOptimizer


class Operation(NamedTuple):
    """`value` None: a deletion that was made, or a miss that was read. Times in seconds."""

    host: int
    actor: str
    key: str
    value: str | None
    begin: float
    end: float
    done: bool
    """Of a write: whether it was acknowledged."""


class Away(NamedTuple):
    """A time in which a host (None: every one) may not have reached the others."""

    host: int | None
    start: float
    end: float

    def concerns(self, write: Operation) -> bool:
        if self.host not in (None, write.host):
            return False
        return self.start <= write.end and write.begin <= self.end


@dataclass
class Histories:
    writes: list[Operation]
    reads: list[Operation]


def work(
    host: int, sockets: str, writers: int, readers: int, keys: int, pipe: Connection, seed: int
) -> None:
    """Write and read at one daemon until the pipe says stop; then send what was done."""
    optimizer = PerformanceOptimizer(sockets)
    cache = optimizer.sync.cache
    stop = threading.Event()
    found = Histories([], [])

    def write(number: int) -> None:
        rng = random.Random(f"{seed}-{host}-{number}")
        # One key that no other host writes: only news can make the others drop it. And some that
        # all write.
        mine = [f"key-{host}", *(f"key-{n}" for n in range(keys // 2, keys))]
        actor = f"writer-{host}-{number}"
        count = 0
        while not stop.is_set():
            key = rng.choice(mine)
            count += 1
            value = None if rng.random() < 0.2 else f"{actor}-{count}"
            begin = time.monotonic()
            done = cache.delete(key) if value is None else cache.set(key, value, ttl=600)
            end = time.monotonic()
            found.writes.append(Operation(host, actor, key, value, begin, end, bool(done)))
            time.sleep(rng.random() * 0.01)

    def read(number: int) -> None:
        rng = random.Random(f"{seed}-{host}-reader-{number}")
        actor = f"reader-{host}-{number}"
        while not stop.is_set():
            key = f"key-{rng.randrange(keys)}"
            begin = time.monotonic()
            value = cache.get(key)
            end = time.monotonic()
            found.reads.append(Operation(host, actor, key, value, begin, end, True))
            time.sleep(rng.random() * 0.01)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
    threads += [threading.Thread(target=read, args=(n,)) for n in range(readers)]
    for thread in threads:
        thread.start()
    pipe.recv()
    stop.set()
    for thread in threads:
        thread.join()
    optimizer.close()
    pipe.send(found)


def violations(
    writes: Sequence[Operation],
    reads: Sequence[Operation],
    bound: float,
    behind: float = 0.0,
    away: Sequence[Away] = (),
) -> list[Any]:
    """Reads that a register which is at most `bound` seconds late could not have given.

    A value must have been written, and not have been overwritten or deleted by a write that was
    acknowledged more than `bound` before the read began. A write takes its place among the others
    up to `behind` seconds after it was acknowledged. What a host wrote while it was away from the
    others is its own: they need not see it, and it need not see theirs in its place before the end.
    """

    def alone(write: Operation) -> Away | None:
        return next((each for each in away if each.concerns(write)), None)

    of_key: dict[str, list[Operation]] = defaultdict(list)
    made: dict[str, Operation] = {}
    for each in writes:
        of_key[each.key].append(each)
        if each.value is not None:
            made[each.value] = each
    wrong: list[Any] = []
    for read in reads:
        if read.value is None:
            continue
        origin = made.get(read.value)
        if origin is None or origin.key != read.key or origin.begin > read.end:
            wrong.append(("nobody wrote it", read))
            continue
        span = alone(origin)
        if span is not None and read.host == origin.host and read.begin < span.end + bound:
            continue
        for later in of_key[read.key]:
            if (
                later.done
                and later.begin > origin.end + behind
                and later.end + bound < read.begin
                and (later.host == read.host or alone(later) is None)
            ):
                wrong.append(("it was superseded", read, origin, later))
                break
    return wrong


def turned_back(
    writes: Sequence[Operation], reads: Sequence[Operation], behind: float = 0.0
) -> list[Any]:
    """Reads of a host that went back to a value older than one which was read there before."""
    made = {each.value: each for each in writes if each.value is not None}
    seen: dict[tuple[int, str], list[Operation]] = defaultdict(list)
    for read in reads:
        if read.value is not None:
            seen[read.host, read.key].append(read)
    wrong: list[Any] = []
    for group in seen.values():
        group.sort(key=lambda each: each.begin)
        ended = sorted(group, key=lambda each: each.end)
        at = 0
        newest: Operation | None = None
        for read in group:
            while at < len(ended) and ended[at].end < read.begin:
                origin = made[str(ended[at].value)]
                if newest is None or origin.begin > newest.begin:
                    newest = origin
                at += 1
            mine = made[str(read.value)]
            if newest is not None and mine.end + behind < newest.begin:
                wrong.append(("back to an older value", read, mine, newest))
    return wrong
