"""`benchmark`: what the cache costs on this host, through the public API, beside a plain dict and,
where there is one, Redis."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bi_performance_ctl.console import UNREACHABLE, USAGE, Console, Exit
from bi_performance_ctl.render.units import latency

BATCH = 100
VALUE_BYTES = 1024
MOST = 10_000_000


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--iterations", metavar="N", default="1000", help="operations of each kind (1000)"
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        default=os.environ.get("REDIS_URL") or None,
        help="measure redis-py with this server beside it (default: REDIS_URL, if set)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    given = args.iterations
    if not (given.isascii() and given.isdigit() and len(given) < 20 and 0 < int(given) <= MOST):
        raise Exit(
            USAGE, f"--iterations must be a whole number from 1 to {MOST}, not {args.iterations!r}"
        )
    rows = measure(int(args.iterations), console, args.redis)
    if console.json:
        console.document({"iterations": int(args.iterations), "results": rows})
    else:
        _table(rows, console)
    return 0


Kind = tuple[str, int, int, Callable[[int], object]]
"""Name, how many times, keys each time, and what to do the nth time."""


def measure(iterations: int, console: Console, redis: str | None = None) -> list[dict[str, Any]]:
    """Run every kind of operation; durations in nanoseconds.

    Raises Exit without a daemon, or when the Redis that was named cannot be used.
    """
    from bi_performance.optimizer import PerformanceOptimizer

    path = console.find_socket()
    console.ask("ping")
    optimizer = PerformanceOptimizer(path, mode="on")
    cache = optimizer.sync.cache
    prefix = f"bi-performance benchmark {os.getpid()}:"
    count = min(iterations, 1000)
    keys = [f"{prefix}{n}" for n in range(count)]
    # Text that does not compress to nothing, as pages are.
    value = os.urandom(VALUE_BYTES // 2).hex()
    plain: dict[str, str] = dict.fromkeys(keys, value)

    def hit(n: int) -> None:
        if cache.get(keys[n % count]) is None:
            raise Exit(UNREACHABLE, "an entry was not read back: is the daemon restarting?")

    def store(n: int) -> None:
        if not cache.set(keys[n % count], value, ttl=600, local=True):
            raise Exit(UNREACHABLE, "an entry was not stored: bi-performance doctor looks closer")

    batches = max(1, iterations // BATCH)
    pairs: dict[str | bytes, Any] = dict.fromkeys(keys[:BATCH], value)
    kinds: list[Kind] = [
        ("set", iterations, 1, store),
        ("get, hit in place", iterations, 1, hit),
        ("get, miss in place", iterations, 1, lambda n: cache.get(prefix)),
        ("round trip (stats)", min(iterations, 20_000), 1, lambda n: cache.stats()),
        (
            f"set_many of {len(pairs)}",
            batches,
            len(pairs),
            lambda n: cache.set_many(pairs, 600, local=True),
        ),
        (f"get_many of {len(pairs)}", batches, len(pairs), lambda n: cache.get_many(pairs)),
        ("plain dict, get", iterations, 1, lambda n: plain.get(keys[n % count])),
    ]
    peer = None if redis is None else _Redis(redis)
    if peer is not None:
        kinds += peer.kinds(keys, value, iterations)
    try:
        with _progress(sum(kind[1] for kind in kinds), console) as advance:
            return [_time(name, times, size, act, advance) for name, times, size, act in kinds]
    finally:
        cache.clear(prefix)
        optimizer.close()
        if peer is not None:
            peer.close(keys)


class _Redis:
    """redis-py, as a scraper would use it without the sidecar; its keys are gone afterwards."""

    def __init__(self, url: str) -> None:
        """Connect. Raises Exit, naming the remedy and no password."""
        try:
            from redis import Redis
            from redis.exceptions import RedisError
        except ImportError:
            raise Exit(
                USAGE, "--redis needs redis-py: pip install 'bi-performance[performance]'"
            ) from None
        try:
            self._client = Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
            self._client.ping()
        except ValueError:
            raise Exit(USAGE, "--redis: not a URL such as redis://localhost:6379/0") from None
        except (RedisError, OSError) as error:
            kind = type(error).__name__
            raise Exit(
                USAGE,
                f"the Redis of --redis or REDIS_URL does not answer ({kind}): start it, name"
                " another, or unset REDIS_URL",
            ) from None

    def kinds(self, keys: list[str], value: str, iterations: int) -> list[Kind]:
        client, count = self._client, len(keys)
        some = dict.fromkeys(keys[:BATCH], value)

        def store_many(n: int) -> None:
            with client.pipeline(transaction=False) as pipe:
                for key, each in some.items():
                    pipe.set(key, each, ex=600)
                pipe.execute()

        few = min(iterations, 20_000)
        batches = max(1, few // BATCH)
        return [
            ("redis-py, SET", few, 1, lambda n: client.set(keys[n % count], value, ex=600)),
            ("redis-py, GET", few, 1, lambda n: client.get(keys[n % count])),
            (f"redis-py, {len(some)} SETs in a pipeline", batches, len(some), store_many),
            (
                f"redis-py, MGET of {len(some)}",
                batches,
                len(some),
                lambda n: client.mget(list(some)),
            ),
        ]

    def close(self, keys: list[str]) -> None:
        from redis.exceptions import RedisError

        with suppress(RedisError):
            self._client.unlink(*keys)
        self._client.close()


def _time(
    name: str, times: int, size: int, act: Callable[[int], object], advance: Callable[[int], None]
) -> dict[str, Any]:
    clock = time.perf_counter_ns
    durations = []
    told = 0
    for n in range(times):
        began = clock()
        act(n)
        durations.append(clock() - began)
        if n - told >= 5000:
            advance(n - told)
            told = n
    advance(times - told)
    durations.sort()
    return {
        "operation": name,
        "times": times,
        "keys_each": size,
        "p50_ns": durations[times // 2],
        "p95_ns": durations[min(times - 1, times * 95 // 100)],
        "p99_ns": durations[min(times - 1, times * 99 // 100)],
        "keys_per_second": round(times * size / (sum(durations) / 1e9)),
    }


class _progress:
    """A progress bar on a terminal, and nothing elsewhere."""

    def __init__(self, total: int, console: Console) -> None:
        self._total = total
        self._bar: Any = None
        if not console.json:
            from rich.progress import Progress

            from bi_performance_ctl.render.paper import terminal

            out = terminal(console)
            if out.is_terminal:
                self._bar = Progress(console=out, transient=True)

    def __enter__(self) -> Callable[[int], None]:
        if self._bar is None:
            return lambda count: None
        self._bar.start()
        task = self._bar.add_task("measuring", total=self._total)
        return lambda count: self._bar.advance(task, count)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _table(rows: list[dict[str, Any]], console: Console) -> None:
    from bi_performance_ctl.render.paper import plain_table, terminal
    from bi_performance_ctl.render.prose import fold_parts

    numbers = ("times", "p50", "p95", "p99", "keys/s")
    table = plain_table("operation", *numbers, right=numbers)
    for row in rows:
        table.add_row(
            row["operation"],
            f"{row['times']:,}",
            latency(row["p50_ns"]),
            latency(row["p95_ns"]),
            latency(row["p99_ns"]),
            f"{row['keys_per_second']:,}",
        )
    out = terminal(console)
    columns = console.columns
    wide = out.measure(table, options=out.options.update(max_width=1000)).maximum
    if columns is None or wide <= columns:
        out.print(table)
    else:
        for row in rows:
            figures = [f"{name} {latency(row[f'{name}_ns'])}" for name in ("p50", "p95", "p99")]
            figures += [f"{row['keys_per_second']:,} keys/s", f"{row['times']:,} times"]
            console.say(f"{row['operation']}\n  {fold_parts(figures, 2, columns)}")
    out.print(
        f"values of {VALUE_BYTES} bytes; the clock's own cost is in every figure; a dict is"
        " faster, and no other process sees it",
        style="dim",
    )
