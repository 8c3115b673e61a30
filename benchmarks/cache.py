"""Reads and writes of the shared cache beside the caches that a scraper would use otherwise.

    python benchmarks/cache.py [--json FILE] [--plot FILE] [--quick]

Every figure is through a peer's public API, from a process of its own, with real servers on Unix
sockets. In each round all peers take turns; ratios are made round by round.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
from measure import (
    FIRST,
    SECOND,
    Spread,
    arguments,
    bars,
    daemon,
    memcached_server,
    pin,
    ratio,
    redis_server,
    rounds,
    save,
    say,
)

from bi_performance.optimizer import PerformanceOptimizer

OURS = "bi-performance"
KEYS = 200
BATCH = 100
WRITER_RATE = 1000
SIZES = {"1 KB": 1_000, "25 KB": 25_000, "64 KB": 64_000}

Row = dict[str, Any]


class Peer:
    """A cache with the three calls that are measured."""

    def __init__(
        self,
        get: Callable[[str], Any],
        put: Callable[[str, Any], Any],
        put_many: Callable[[dict[str, Any]], Any],
    ) -> None:
        self.get, self.put, self.put_many = get, put, put_many


def one_by_one(put: Callable[[str, Any], Any]) -> Callable[[dict[str, Any]], Any]:
    def put_many(items: dict[str, Any]) -> None:
        for key, value in items.items():
            put(key, value)

    return put_many


def open_ours(path: str) -> Peer:
    cache = PerformanceOptimizer(path, mode="on").sync.cache
    return Peer(cache.get, cache.set, cache.set_many)


def open_redis(path: str) -> Peer:
    import redis

    client = redis.Redis(unix_socket_path=path)

    def put_many(items: dict[str, Any]) -> None:
        pipeline = client.pipeline(transaction=False)
        for key, value in items.items():
            pipeline.set(key, value, ex=3600)
        pipeline.execute()

    return Peer(client.get, lambda key, value: client.set(key, value, ex=3600), put_many)


def open_memcached(path: str) -> Peer:
    from pymemcache.client.base import Client

    client = Client(f"unix:{path}", no_delay=True)
    return Peer(
        client.get,
        lambda key, value: client.set(key, value, 3600, noreply=False),
        lambda items: client.set_many(items, 3600, noreply=False),
    )


def open_diskcache(path: str) -> Peer:
    import diskcache

    cache = diskcache.Cache(path)

    def put_many(items: dict[str, Any]) -> None:
        with cache.transact():
            for key, value in items.items():
                cache.set(key, value, 3600)

    return Peer(cache.get, lambda key, value: cache.set(key, value, 3600), put_many)


def open_lmdb(path: str) -> Peer:
    import lmdb

    environment = lmdb.open(path, map_size=1 << 30, sync=False)

    def get(key: str) -> Any:
        with environment.begin(buffers=False) as reading:
            return reading.get(key.encode())

    def put_many(items: dict[str, Any]) -> None:
        with environment.begin(write=True) as writing:
            for key, value in items.items():
                writing.put(key.encode(), value)

    return Peer(get, lambda key, value: put_many({key: value}), put_many)


def open_cachetools(_: str) -> Peer:
    from cachetools import TTLCache

    cache: Any = TTLCache(10_000, 3600)
    return Peer(cache.get, cache.__setitem__, cache.update)


def open_dict(_: str) -> Peer:
    kept: dict[str, Any] = {}
    return Peer(kept.get, kept.__setitem__, kept.update)


OPEN = {
    OURS: open_ours,
    "redis-py": open_redis,
    "pymemcache": open_memcached,
    "diskcache": open_diskcache,
    "lmdb, bare": open_lmdb,
    "cachetools, one process": open_cachetools,
    "dict, one process": open_dict,
}
ONE_PROCESS = ("cachetools, one process", "dict, one process")


def write_steadily(name: str, place: str, size: int, cpu: int) -> None:
    """What the writer's process does: 1,000 sets a second of keys of its own, evenly spaced."""
    import time

    pin(cpu)
    peer = OPEN[name](place)
    value = os.urandom(size)
    began, count = time.monotonic(), 0
    while True:
        peer.put(f"written-{count % 1000}", value)
        count += 1
        ahead = began + count / WRITER_RATE - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)


@contextmanager
def writer(name: str, place: str, size: int, cpu: int) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--writer", name, place, str(size), str(cpu)]
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def places(stack: ExitStack, cpu: int) -> dict[str, str]:
    """Where each peer that can run here keeps its entries, its server on one processor."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
    found: dict[str, str] = {OURS: str(stack.enter_context(daemon(cpu)))}
    for name, server in (("redis-py", redis_server), ("pymemcache", memcached_server)):
        path = stack.enter_context(server(cpu))
        if path is None:
            say(f"left out, its server is not installed: {name}")
        else:
            found[name] = str(path)
    for name in ("diskcache", "lmdb, bare"):
        (folder / name).mkdir()
        found[name] = str(folder / name)
    return found | dict.fromkeys(ONE_PROCESS, "")


def compare(
    acts: dict[str, Callable[[], object]], what: Row, rows: list[Row], n: int
) -> dict[str, Spread]:
    """Measure one operation of all peers; print a line each."""
    measured = rounds(acts, count=n, seconds=0.15)
    ours = measured[OURS]
    say("\n" + ", ".join(str(value) for value in what.values()))
    for name, found in measured.items():
        spread, against = Spread.of(found), ratio(ours, found)
        say(f"  {name:26} {spread.median / 1e3:9.2f} µs   {against}× ours")
        rows.append({**what, "peer": name, "ns": spread._asdict(), "ratio": against._asdict()})
    return {name: Spread.of([ns / 1e3 for ns in found]) for name, found in measured.items()}


def cycle(act: Callable[[str], object], prefix: str = "key") -> Callable[[], object]:
    keys = [f"{prefix}-{n}" for n in range(KEYS)]
    at = 0

    def once() -> object:
        nonlocal at
        at = at + 1 if at + 1 < KEYS else 0
        return act(keys[at])

    return once


def reading(peer: Peer, value: bytes) -> Callable[[], object]:
    for n in range(KEYS):
        peer.put(f"key-{n}", value)
    if peer.get("key-0") != value:
        raise RuntimeError("a peer did not keep its value")
    return cycle(peer.get)


def under_writes(
    found: dict[str, str], acts: dict[str, Callable[[], object]], cpu: int, count: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Reads of each shared peer while another process writes to it, and of ours right before.

    One writer at a time, so that each pair saw the same machine.
    """
    pairs: dict[str, tuple[list[float], list[float]]] = {
        name: ([], []) for name in found if name not in ONE_PROCESS
    }
    for _ in range(count):
        for name, pair in pairs.items():
            for measured, each in zip(pair, (OURS, name), strict=True):
                with writer(each, found[each], 1000, cpu):
                    measured += rounds({each: acts[each]}, count=1, seconds=0.25)[each]
    return pairs


def storing(peer: Peer, value: bytes) -> Callable[[], object]:
    return cycle(lambda key: peer.put(key, value))


def main() -> None:
    if sys.argv[1:2] == ["--writer"]:
        write_steadily(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    parser = arguments(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    args = parser.parse_args()
    count = 3 if args.quick else 9
    rows: list[Row] = []
    figures: dict[str, dict[str, Spread]] = {}
    pin(FIRST)
    for placement, cpu in (("same processor", FIRST), ("across processors", SECOND)):
        with ExitStack() as stack:
            found = places(stack, cpu)
            peers = {name: OPEN[name](place) for name, place in found.items()}
            for label, size in SIZES.items():
                value = os.urandom(size)
                acts = {name: reading(peer, value) for name, peer in peers.items()}
                what = {"operation": "get, hit", "size": label, "placement": placement}
                figures[f"get {label}\n{placement}"] = compare(
                    acts, {**what, "load": "idle"}, rows, count
                )
                pairs = under_writes(found, acts, cpu, count)
                say(f"\n{label}, {placement}, under {WRITER_RATE} sets/s of 1 KB")
                for name, (ours, other) in pairs.items():
                    against = ratio(ours, other)
                    median = Spread.of(other).median
                    say(f"  {name:26} {median / 1e3:9.2f} µs   {against}× ours")
                    rows.append(
                        {
                            **what,
                            "load": f"{WRITER_RATE} sets/s",
                            "peer": name,
                            "ns": Spread.of(other)._asdict(),
                            "ratio": against._asdict(),
                        }
                    )
                writing = {name: storing(peer, value) for name, peer in peers.items()}
                what = {"operation": "set", "size": label, "placement": placement}
                figures[f"set {label}\n{placement}"] = compare(writing, what, rows, count)
            batch = {f"key-{n}": os.urandom(1000) for n in range(BATCH)}
            many: dict[str, Callable[[], object]] = {
                name: partial(peer.put_many, batch) for name, peer in peers.items()
            }
            what = {"operation": f"set_many of {BATCH}", "size": "1 KB", "placement": placement}
            figures[f"set_many\n{placement}"] = compare(many, what, rows, count)
            record(peers[OURS], found[OURS], rows, count, placement)
    bars(args.plot, "one call", "µs", figures)
    save(args.json, rows)


def record(peer: Peer, place: str, rows: list[Row], count: int, placement: str) -> None:
    """A record of 30 fields beside its bare decode; sync, and awaited under asyncio."""
    value = {f"field_{n}": n if n % 3 else f"text of field {n}" for n in range(30)}
    packed = msgpack.packb(value)
    peer.put("record", value)
    cache = PerformanceOptimizer(place, mode="on").cache

    async def awaited() -> list[float]:
        import time

        await cache.get("record")
        found = []
        for _ in range(count):
            began = time.perf_counter_ns()
            for _ in range(20_000):
                await cache.get("record")
            found.append((time.perf_counter_ns() - began) / 20_000)
        return found

    measured = rounds(
        {
            "bare msgpack decode": lambda: msgpack.unpackb(packed),
            "get, sync": lambda: peer.get("record"),
        },
        count=count,
        seconds=0.1,
    )
    measured["get, awaited"] = asyncio.run(awaited())
    say(f"\na record of 30 fields, {len(packed)} bytes, {placement}")
    bare = measured["bare msgpack decode"]
    for name, found in measured.items():
        against = ratio(bare, found)
        say(f"  {name:26} {Spread.of(found).median / 1e3:9.2f} µs   {against}× the bare decode")
        rows.append(
            {
                "operation": "record of 30 fields",
                "placement": placement,
                "peer": name,
                "ns": Spread.of(found)._asdict(),
                "ratio": against._asdict(),
            }
        )


if __name__ == "__main__":
    main()
