"""Redis as the cache calls it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
import trio
import xxhash

from bi_performanced.remote import scripts
from bi_performanced.remote.address import REMEDY, Address, NotUsable, parse, reason_of
from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.connection import Connection, exchange
from bi_performanced.remote.cursor import CursorFile
from bi_performanced.remote.envelope import Codec, Envelope
from bi_performanced.remote.fetching import Fetch
from bi_performanced.remote.figures import Figures
from bi_performanced.remote.leases import RemoteLeases
from bi_performanced.remote.looking import look
from bi_performanced.remote.names import Names
from bi_performanced.remote.predicate import Matcher, Predicate
from bi_performanced.remote.reader import LogReader
from bi_performanced.remote.shard import Shard
from bi_performanced.remote.sink import Sink
from bi_performanced.remote.sweeper import Sweeper
from bi_performanced.remote.topology import Topology, check_server, find_topology
from bi_performanced.remote.tracking import Tracking

log = structlog.get_logger("performance")

FLUSH: Final = 2.0
"""Seconds in which what is queued is sent when the daemon stops."""
THREADS: Final = 8
"""For each shard: its connections, and what is left of those that were given up."""


Remaining = Callable[[bytes], int | None]
"""How many milliseconds the entry of a key lives on."""


class RemoteSettings(Protocol):
    """What of the cache's settings counts here."""

    @property
    def redis_url(self) -> str | None: ...
    @property
    def redis_prefix(self) -> str: ...
    @property
    def redis_timeout(self) -> float: ...
    @property
    def secret(self) -> str | None: ...


class Remote:
    """All shards of one Redis. The synchronous calls run on the loop and never block.

    Built and run without Redis or redis-py: then it is degraded, and says why. Every call may be
    made before `run` and while Redis is away.
    """

    def __init__(
        self,
        settings: RemoteSettings,
        state_dir: Path,
        sink: Sink,
        matcher: Callable[[str], Matcher],
    ) -> None:
        """`matcher` makes a predicate over keys of a pattern, as clears of this host use it."""
        assert settings.redis_url is not None
        self._settings = settings
        self._state = state_dir
        self._sink = sink
        self._matcher = matcher
        self._told: bool | None = None
        self._told_reachable: bool | None = None
        self._unusable: str | None = None
        self._until: dict[int, int] = {}
        self.figures = Figures()
        self.address: Address | None = None
        self._topology: Topology | None = None
        try:
            import redis  # noqa: F401

            self.address = parse(settings.redis_url)
            self._topology = find_topology(self.address)
        except ImportError:
            self._unusable = f"redis-py is not installed: {REMEDY}"
        except NotUsable as error:
            self._unusable = str(error)
        tags = self._topology.tags if self._topology else (b"",)
        self._limiter = trio.CapacityLimiter(THREADS * len(tags))
        prefix = settings.redis_prefix.encode("utf-8", "surrogatepass")
        codec = self._codec = Codec(prefix, settings.secret)
        origin = os.urandom(8)
        self.shards = [
            self._shard(at, Names(prefix, tag), origin, codec) for at, tag in enumerate(tags)
        ]
        self._leases = [RemoteLeases(shard, codec) for shard in self.shards]
        self._tracking = [Tracking(shard, codec) for shard in self.shards]
        self._sweepers = [Sweeper(shard) for shard in self.shards]
        identity = self.address.identity if self.address else ""
        self._readers = [
            LogReader(
                shard,
                CursorFile(state_dir / f"redis-log-{shard.index}.json"),
                identity,
                partial(self._coherent, shard.index),
                self._leases[shard.index],
            )
            for shard in self.shards
        ]

    def _shard(self, index: int, names: Names, origin: bytes, codec: Codec) -> Shard:
        def connect(timeout: float) -> Connection:
            assert self._topology is not None
            return self._topology.connect(index, timeout)

        return Shard(
            index=index,
            names=names,
            origin=origin,
            codec=codec,
            matcher=self._matcher,
            sink=self._sink,
            outbox=self._state / f"redis-outbox-{index}",
            limiter=self._limiter,
            timeout=self._settings.redis_timeout,
            connect=connect,
            explain=self._explain,
            changed=self._tell,
            figures=self.figures,
        )

    # ── entries

    def shard_of(self, key: bytes) -> int:
        """The shard that a key belongs to."""
        if len(self.shards) == 1:
            return 0
        return xxhash.xxh3_64_intdigest(key) % len(self.shards)

    async def fetch(self, key: bytes) -> Envelope | None:
        """What the other hosts have for a key, or None.

        When this returns nothing has happened to the key since: install the entry before waiting
        for anything. Raises RemoteAway, at once while Redis is known to be away, else within
        `cache.redis_timeout`.
        """
        return (await self.shards[self.shard_of(key)].fetch([key]))[0]

    async def fetch_many(self, keys: Sequence[bytes]) -> list[Envelope | None]:
        """As `fetch`, in one round trip a shard.

        Keys of a shard that is away are None; RemoteAway is raised when all are.
        """
        by_shard = self._by_shard(keys)
        if len(by_shard) == 1:
            return await self.shards[next(iter(by_shard))].fetch(keys)
        away: list[RemoteAway] = []

        async def run(fetch: Fetch) -> None:
            try:
                await fetch.run()
            except RemoteAway as error:
                away.append(error)

        found: dict[bytes, Envelope | None] = {}
        # All stay open until the slowest has its answer, and hear of what happens meanwhile.
        with ExitStack() as stack:
            fetches = [
                stack.enter_context(self.shards[shard].reading.fetch(some))
                for shard, some in by_shard.items()
            ]
            async with trio.open_nursery() as nursery:
                for fetch in fetches:
                    nursery.start_soon(run, fetch)
            for fetch in fetches:
                found.update(fetch.result())
        if away and not found:
            raise away[0]
        return [found.get(key) for key in keys]

    def installed(self, key: bytes, envelope: Envelope) -> None:
        """What was fetched of a key has become the entry here."""
        shard = self.shards[self.shard_of(key)]
        shard.ahead.note(key, envelope.version, shard.read_to)

    def put(self, key: bytes, envelope: Envelope) -> bool:
        """Queue a value for Redis.

        False: the queue is full, and the key will be deleted in Redis instead; wait for `settled`
        before the next. While Redis is away the key's deletion is noted in the outbox, for what
        lies there is older.
        """
        return self.shards[self.shard_of(key)].put(key, envelope)

    def delete(self, key: bytes) -> None:
        """Queue a deletion; when Redis is away it waits on disk."""
        self.shards[self.shard_of(key)].delete(key)

    def clear(self, predicate: Predicate) -> None:
        """Queue a clear; when Redis is away it waits on disk."""
        for shard in self.shards:
            shard.clear(predicate)

    async def add(self, key: bytes, envelope: Envelope) -> bool:
        """Store a value only if no host has one; exact. Raises RemoteAway: not known then."""
        return await self.shards[self.shard_of(key)].add(key, envelope)

    async def extend(self, wanted: Sequence[bytes], remaining: Remaining) -> None:
        """Have the entries of keys live at least so many milliseconds from now on, where there
        are any that are not newer than those here. Raises RemoteAway.

        `remaining` is asked when all that was changed before is known here: for how long the entry
        of a key is to live, or None when it is not here any more.
        """
        for shard, keys in self._by_shard(wanted).items():
            if await self.shards[shard].catch_up():
                some = [(key, ms) for key in keys if (ms := remaining(key)) is not None]
                await self.shards[shard].extend(some)

    async def drop_if_there(self, keys: Sequence[bytes]) -> None:
        """Delete the entries of keys that have one; nothing is said of the others. Raises
        RemoteAway."""
        for shard, some in self._by_shard(keys).items():
            await self.shards[shard].drop_if_there(some)

    def _by_shard(self, keys: Sequence[bytes]) -> dict[int, list[bytes]]:
        found: dict[int, list[bytes]] = {}
        for key in keys:
            found.setdefault(self.shard_of(key), []).append(key)
        return found

    async def settled(self) -> None:
        """Until all that was queued before this call is in Redis, or in the outbox on disk."""
        for shard in self.shards:
            await shard.settled()

    async def look(self, key: bytes) -> dict[str, Any]:
        """What stands there under a key, for people: see looking.look."""
        if self._unusable:
            return {"present": None, "reason": self._unusable}
        return await look(self.shards[self.shard_of(key)], self._codec, key)

    # ── leases

    def leases(self, key: bytes) -> RemoteLeases:
        """The leases over all hosts of the shard that a key belongs to."""
        return self._leases[self.shard_of(key)]

    # ── figures

    def status(self) -> dict[str, Any]:
        """`ok`, or `degraded` with the reason."""
        reason = self._trouble()
        if reason is None:
            return {"status": "ok", "url": self._shown}
        return {"status": "degraded", "reason": reason, "url": self._shown}

    @property
    def reachable(self) -> bool:
        """Whether every shard answers. It may be degraded all the same: full, say."""
        return self._unusable is None and not any(shard.breaker.open for shard in self.shards)

    @property
    def _shown(self) -> str | None:
        return self.address.shown if self.address else None

    def stats(self) -> dict[str, Any]:
        """Counters and gauges."""
        shards = self.shards
        lines = [line for shard in shards for line in (shard.reads, shard.writes)]
        latencies = sorted(each for line in lines for each in line.latencies)
        counted = dict(vars(self.figures))
        counted["errors"] += sum(line.errors for line in lines)
        return {
            **self.status(),
            **counted,
            "timeouts": sum(line.timeouts for line in lines),
            "queued": sum(len(shard.queue) for shard in shards),
            "outbox": sum(len(shard.outbox) for shard in shards),
            "breaker": "open" if any(shard.breaker.open for shard in shards) else "closed",
            "breaker_opened": sum(shard.breaker.opened for shard in shards),
            "latency_seconds": {
                "p50": statistics.median(latencies) if latencies else None,
                "p99": latencies[int(len(latencies) * 0.99)] if latencies else None,
            },
            "shards": len(shards),
            "tracking": {
                "active": all(each.active for each in self._tracking),
                "gaps": sum(each.gaps for each in self._tracking),
                "refused": next((each.refused for each in self._tracking if each.refused), None),
            },
        }

    def _trouble(self) -> str | None:
        if self._unusable:
            return self._unusable
        for shard in self.shards:
            for reason in (shard.breaker.reason, shard.full, shard.outbox.failed):
                if reason:
                    return reason
        return None

    def _tell(self) -> None:
        for shard, leases in zip(self.shards, self._leases, strict=True):
            if shard.breaker.open:
                leases.wake_all()
        if not self._unusable and not all(shard.breaker.tried for shard in self.shards):
            return
        reason = self._trouble()
        if self._told != (reason is None):
            self._told = reason is None
            if reason is None:
                log.info("redis.connected", url=self._shown)
            else:
                log.warning("redis.away", reason=reason)
        if self._told_reachable != self.reachable:
            self._told_reachable = self.reachable
            self._sink.health(self.reachable, reason)

    def _explain(self, error: BaseException) -> str:
        if isinstance(error, NotUsable):
            return str(error)
        return reason_of(error, self._shown or "Redis")

    def _coherent(self, shard: int, until: int) -> None:
        self._until[shard] = until
        if len(self._until) == len(self.shards):
            self._sink.coherent(min(self._until.values()))

    # ── life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, write, listen and come back, until cancelled; then send what is queued.

        Started at once, whether Redis is there or not.
        """
        task_status.started()
        if self._unusable:
            self._tell()
        keep = trio.CancelScope(shield=True)
        async with trio.open_nursery() as lines:
            lines.start_soon(self._keep_lines, keep)
            try:
                async with trio.open_nursery() as nursery:
                    for shard, reader in zip(self.shards, self._readers, strict=True):
                        nursery.start_soon(shard.save)
                        if not self._unusable:
                            nursery.start_soon(shard.supervise, self._begin(shard))
                            nursery.start_soon(shard.write)
                            nursery.start_soon(reader.run)
                            nursery.start_soon(self._sweepers[shard.index].run)
                            nursery.start_soon(self._tracking[shard.index].run)
            finally:
                with trio.CancelScope(shield=True):
                    await self._finish()
                keep.cancel()

    async def _keep_lines(self, keep: trio.CancelScope) -> None:
        """The connections, which outlive what uses them by the last flush."""
        with keep:
            async with trio.open_nursery() as nursery:
                for shard, reader in zip(self.shards, self._readers, strict=True):
                    for line in (shard.reads, shard.writes, reader.line):
                        nursery.start_soon(line.run)

    async def _finish(self) -> None:
        with trio.move_on_after(FLUSH):
            async with trio.open_nursery() as nursery:
                for shard in self.shards:
                    nursery.start_soon(shard.flush)
        for shard, reader in zip(self.shards, self._readers, strict=True):
            await shard.put_away()
            await reader.save()

    def _begin(self, shard: Shard) -> Callable[[], None]:
        def begin() -> None:
            assert self._topology is not None
            self._topology.forget(shard.index)
            connection = self._topology.connect(shard.index, self._settings.redis_timeout)
            try:
                check_server(connection, clustered=len(self.shards) > 1)
                _check_names(connection, shard.names)
                command = scripts.begin(shard.names, os.urandom(12).hex().encode())
                (reply,) = exchange(connection, [command])
                if isinstance(reply, Exception):
                    raise reply
            finally:
                connection.disconnect()

        return begin


def _check_names(connection: Connection, names: Names) -> None:
    """Raises NotUsable when something that is not ours lies under one of our names. Blocks."""
    kinds = names.kinds()
    found = exchange(connection, [("TYPE", name) for name in kinds])
    for (name, wanted), kind in zip(kinds.items(), found, strict=True):
        if isinstance(kind, Exception):
            raise kind
        if kind not in (b"none", wanted):
            shown = name.decode("utf-8", "backslashreplace")
            raise NotUsable(
                f"{shown} in Redis is a {kind.decode()}, and the cache needs a {wanted.decode()} "
                "there: delete it, or set cache.redis_prefix to a prefix of your own"
            )
