"""The cache as the commands know it: one store in service, its readers, its growth."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import structlog
import trio

from bi_performance_wire import layout as L
from bi_performance_wire.errors import (
    BUSY,
    INTERNAL,
    INVALID_ARGUMENT,
    TOO_LARGE,
    UNAVAILABLE,
    WireError,
)
from bi_performance_wire.types import MAX_KEY_BYTES, MAX_TTL, Attached, CacheLevels, CacheStats
from bi_performance_wire.value import COMPRESS_FROM, PLAIN
from bi_performanced.cache.clients import Attachment, Clients, boot_clock
from bi_performanced.cache.departures import Departures
from bi_performanced.cache.memory import Geometry, Memory
from bi_performanced.cache.opening import ALIVE_NS, Opened, open_store
from bi_performanced.cache.patterns import matcher
from bi_performanced.cache.recovery import copy_entries, settle
from bi_performanced.cache.store import Counters, Damaged, Store, TooLarge
from bi_performanced.cache.sweeping import SLICE, SWEEP_SLOTS, every_entry
from bi_performanced.config import CacheSettings
from bi_performanced.config.limits import headroom, room

log = structlog.get_logger("performance")

HEARTBEAT = 0.25
"""Seconds between two renewals of the readers' deadline, by the loop itself."""
GROW_AT = 0.75
LONG_SLICE = 0.01
"""The same for a copy that writers are about to overtake."""
HURRY_AT = 0.85
HURRY = 2000
LAST_ROUND = 500
"""Changed keys that are settled in one step, at the end of a copy."""
SOON = 20.0
"""Seconds within which a store that fills up is followed by one of four times its size."""
LOOKED_AT = 2000
"""Slots of the index that are looked at to tell whether keys of a prefix are read."""
LISTING_BYTES = 4 << 20
RELEASE_AFTER = 30.0
"""Seconds until the pages of a store that was left are taken from readers who stayed on it."""
RELEASE_SOON = 1.0
"""The same when all have moved, or when the store was made smaller: who reads there still finds
zeros, which are a miss."""
MARGIN = 8 << 20
"""Bytes of memory that are left to others when the store moves."""
RETRY_GROWTH = 60.0
GROWTH_WAIT = 5.0
"""Seconds that a request waits for the store to grow."""


@dataclass
class Compression:
    """What came of the clients' attempts to compress the values of 4 KiB and more."""

    tried: int = 0
    kept: int = 0
    """Those that took less room compressed, and are stored so."""
    tried_bytes: int = 0
    """Encoded bytes of those that were stored as they were: all that was compressed in vain."""

    def note(self, payload: bytes, *, asked: bool) -> None:
        """Count an encoded entry of a client of ours; `asked`: whether they are to compress."""
        if payload[0] != PLAIN:
            self.tried += 1
            self.kept += 1
        elif asked and len(payload) > COMPRESS_FROM:
            self.tried += 1
            self.tried_bytes += len(payload)


class Left(NamedTuple):
    """A store that was resized away, and when its memory is given back to the system."""

    store: Store
    epoch: int
    """Its last; who attached later does not read there."""
    at_first: float
    at_last: float

    def is_due(self, now: float, oldest: int) -> bool:
        """`oldest`: the epoch at which the attached process came that has not moved longest."""
        return now >= self.at_last or (now >= self.at_first and oldest > self.epoch)


class Growing(WireError):
    """An entry that the store will hold once it has grown, which has been asked for."""


class Cache:
    """The shared cache of this host.

    The synchronous calls run on the loop and take a few microseconds; `keys`, `clear` and
    growth work in slices. `run` must be running for readers to trust the store.
    """

    def __init__(self, settings: CacheSettings, opened: Opened, mode: str) -> None:
        store, store_path = opened.store, opened.path
        self._settings = settings
        self._mode = mode if settings.enabled else "off"
        self._store = store
        self._in_service_since = boot_clock()
        self._lock_fd = opened.lock_fd
        self._trace = opened.trace
        self._ready_at = opened.ready_at
        self._clients = Clients(store, _read_only(store_path))
        self._hits = self._misses = 0
        self._expired = 0
        self._earlier = Counters()
        self._threads = trio.CapacityLimiter(1)
        self._wake = trio.Event()
        self._grown = trio.Event()
        self._wanted_record = 0
        self._growth_failed: str | None = None
        self._growth_retry = 0.0
        self._copying = False
        self._cleared_while_copying = False
        self._resizing = trio.Lock()
        self._hollow = False
        """The free parts of the store's file have no memory behind them: nothing can be put."""
        self.compression = Compression()
        self._default_ttl_sets = 0
        self.on_clear: Callable[[], None] = lambda: None
        """Called after a clear, with or without a pattern."""
        self._sweep_at = 0
        self._left: list[Left] = []
        self.store_path = store_path
        self.recovered = store.entries
        """Entries that were kept from an earlier daemon."""
        if self._wanted_limits(settings) is not None:
            self._wake.set()

    @classmethod
    def open(
        cls, settings: CacheSettings, *, runtime_dir: Path, state_dir: Path, mode: str
    ) -> Cache:
        """Take up the store that is there, or make one. Raises WireError as `open_store`."""
        return cls(settings, open_store(settings, runtime_dir, state_dir), mode)

    def note_compression(self, payload: bytes) -> None:
        """Count what came of compressing an entry of a client of ours."""
        self.compression.note(payload, asked=self._settings.compression)

    # ── one entry

    @property
    def epoch(self) -> int:
        return int(self._store.memory.words[L.W_EPOCH])

    def get(self, key: bytes) -> bytes | None:
        """The encoded entry, or None. Raises WireError for a key out of bounds."""
        payload = self.peek(key)
        self.count([payload])
        return payload

    def peek(self, key: bytes) -> bytes | None:
        """As `get`, counting neither a hit nor a miss."""
        check_key(key)
        found = self._store.get(key, boot_clock())
        return None if found is None else found[0]

    def count(self, found: Sequence[bytes | None]) -> None:
        """Count what `peek` found for a request that is now answered."""
        misses = found.count(None)
        self._misses += misses
        self._hits += len(found) - misses

    def set(self, key: bytes, payload: bytes, ttl: float | None) -> None:
        """Store an encoded entry for `ttl` seconds (None: `cache.default_ttl`).

        Readable by every process when this returns. Raises WireError.
        """
        self._put(key, payload, ttl)

    async def wait_grown(self) -> None:
        """Wait, after Growing, for the growth that was asked for; a second try tells how it went.

        Returns after GROWTH_WAIT seconds at the latest.
        """
        with trio.move_on_after(GROWTH_WAIT):
            await self._grown.wait()

    def add(self, key: bytes, payload: bytes, ttl: float | None) -> bool:
        """Store an entry only if no readable one has the key; whether it was stored."""
        check_key(key)
        if self._store.get(key, boot_clock()) is not None:
            return False
        self._put(key, payload, ttl)
        return True

    def delete(self, key: bytes) -> bool:
        """Remove an entry; whether one was readable. Raises WireError for a key out of bounds."""
        check_key(key)
        return self._store.delete(key, boot_clock())

    def check_ttl(self, ttl: float | None) -> float:
        """The seconds that an entry with this ttl lives. Raises WireError."""
        if ttl is None:
            return self._settings.default_ttl
        seconds = ttl
        if not 0 < seconds <= MAX_TTL:
            raise WireError(
                INVALID_ARGUMENT,
                f"ttl must be more than 0 and at most {MAX_TTL:.0f} seconds, not {seconds!r}",
                field="ttl",
                hint="leave ttl out for the configured default; use delete to remove an entry",
            )
        return seconds

    def set_some(
        self, entries: Sequence[tuple[bytes, bytes]], start: int, ttl: float | None
    ) -> tuple[int, WireError | None]:
        """Store entries whose keys were checked, from `start` on.

        Returns how many, and why not more.
        """
        self._check_writable()
        now = boot_clock()
        expires = now + int(self.check_ttl(ttl) * 1e9)
        put = self._store.put
        at = start
        try:
            for at in range(start, len(entries)):
                key, payload = entries[at]
                put(key, payload, expires=expires, now=now)
        except TooLarge as error:
            try:
                self._refuse_large(key, payload, error)
            except WireError as refused:
                return at - start, refused
        except Damaged as error:
            self._rebuild(error)
            return at - start, WireError(INTERNAL, "the store was damaged and has been emptied")
        if ttl is None:
            self._default_ttl_sets += len(entries) - start
        self._grow_if_full()
        return len(entries) - start, None

    def _check_writable(self) -> None:
        if self._hollow:
            raise Growing(
                BUSY, "the store is giving memory back", field="value", hint="try again in a second"
            )
        if not self._settings.enabled:
            raise WireError(
                UNAVAILABLE,
                "the cache is switched off",
                field="cache.enabled",
                hint="set cache.enabled to true and restart the daemon",
            )

    def _put(self, key: bytes, payload: bytes, ttl: float | None) -> None:
        check_key(key)
        self._check_writable()
        seconds = self.check_ttl(ttl)
        now = boot_clock()
        try:
            self._store.put(key, payload, expires=now + int(seconds * 1e9), now=now)
        except TooLarge as error:
            self._refuse_large(key, payload, error)
        except Damaged as error:
            self._rebuild(error)
            raise WireError(INTERNAL, "the store was damaged and has been emptied") from error
        if ttl is None:
            self._default_ttl_sets += 1
        self._grow_if_full()

    def _grow_if_full(self) -> None:
        store = self._store
        if store.live_bytes > GROW_AT * store.max_bytes < self._settings.max_bytes:
            self._wake.set()

    def _refuse_large(self, key: bytes, payload: bytes, error: TooLarge) -> NoReturn:
        size = L.RECORD_OVERHEAD + len(key) + len(payload)
        if size <= self._largest_record() and trio.current_time() < self._growth_retry:
            raise WireError(
                TOO_LARGE,
                f"the entry has {len(payload)} bytes encoded; {self._growth_failed}",
                field="value",
                hint="make room there, or name another cache.store_dir",
            ) from error
        if size <= self._largest_record():
            self._wanted_record = max(self._wanted_record, size)
            self._wake.set()
            raise Growing(
                BUSY,
                f"the store is growing to hold an entry of {len(payload)} bytes",
                field="value",
                hint="try again in a second",
            ) from error
        limit = self._largest_record() - L.RECORD_OVERHEAD - len(key)
        raise WireError(
            TOO_LARGE,
            f"the entry has {len(payload)} bytes encoded; the limit is {limit}",
            field="value",
            hint="raise cache.max_bytes: an entry may take a sixteenth of the main ring",
        ) from error

    def _largest_record(self) -> int:
        return Geometry.for_limits(1, self._settings.max_bytes).max_record

    # ── many entries

    async def keys(self, pattern: str | None, limit: int) -> tuple[list[bytes], bool]:
        """Up to `limit` readable keys that match, and whether there are more.

        Together they have at most LISTING_BYTES.
        """
        matches = matcher(pattern)
        found: dict[bytes, None] = {}
        size = 0
        async with aclosing(every_entry(lambda: self._store, lambda: None)) as entries:
            async for _, entry, now in entries:
                if entry.expires > now and entry.key not in found and matches(entry.key):
                    size += len(entry.key)
                    if len(found) == limit or size > LISTING_BYTES:
                        return list(found), True
                    found[entry.key] = None
        return list(found), False

    async def clear(self, pattern: str | None, *, dry_run: bool) -> int:
        """Remove every entry that was there when this was called and matches; how many.

        With `dry_run` nothing is removed. Without a pattern it is one step; with one, entries
        that are stored while the sweep goes on stay.
        """
        matches = matcher(pattern)
        if pattern is None and not dry_run:
            self._cleared_while_copying = self._copying
            cleared = self._store.clear()
            self.on_clear()
            return cleared
        newest = self._store.sequence
        cleared = 0

        def begin_again() -> None:
            nonlocal cleared
            # What was removed so far is gone in the new store too.
            cleared = 0 if dry_run else cleared

        async with aclosing(every_entry(lambda: self._store, begin_again)) as entries:
            async for store, entry, now in entries:
                if entry.sequence <= newest and matches(entry.key):
                    readable = entry.expires > now
                    if dry_run or store.drop_found(entry):
                        cleared += readable
        if not dry_run:
            self._store.counters.deletes += cleared
            self.on_clear()
        return cleared

    # ── figures

    def stats(self) -> CacheStats:
        """The cache's figures since the daemon started, hits in place included."""
        store = self._store
        counters = self.counters
        seen = self._clients.figures(boot_clock())
        hits, misses = self._hits + seen.hits, self._misses + seen.misses
        ring_bytes = store.small.bytes + store.main.bytes
        return CacheStats(
            hits=hits,
            misses=misses,
            hit_rate=hits / (hits + misses) if hits + misses else 0.0,
            entries=store.entries,
            size_bytes=store.live_bytes,
            evictions=counters.evictions,
            expirations=counters.expirations,
            sets=counters.sets,
            deletes=counters.deletes,
            max_entries=store.max_entries,
            max_bytes=self._settings.max_bytes,
            ring_bytes=ring_bytes,
            live_ratio=store.live_bytes / ring_bytes,
            write_amplification=(
                counters.bytes_appended / counters.bytes_stored if counters.bytes_stored else None
            ),
            clients=len(self._clients.attached),
            levels=CacheLevels(
                local={
                    "hits": hits,
                    "misses": misses,
                    "hits_in_place": seen.hits,
                    "misses_in_place": seen.misses,
                    "observed_hits": seen.observed,
                    "torn_reads": seen.torn,
                    "expired_reads": seen.expired,
                    "inserts": counters.inserts,
                    "returns": counters.returns,
                    "compression": dataclasses.asdict(self.compression),
                    "default_ttl_sets": self._default_ttl_sets,
                    "store_bytes": store.memory.size,
                    "entries": store.entries,
                    "size_bytes": store.live_bytes,
                },
                redis=None,
            ),
        )

    def status(self) -> dict[str, Any]:
        """`ok`, `degraded` with the reason, or `off`; and the figures a person asks for first."""
        store = self._store
        seen = self._clients.figures(boot_clock())
        hits, misses = self._hits + seen.hits, self._misses + seen.misses
        found: dict[str, Any] = {
            "status": "ok" if self._settings.enabled else "off",
            "mode": self._mode,
            "hits": hits,
            "misses": misses,
            "hit_rate": hits / (hits + misses) if hits + misses else 0.0,
            "entries": store.entries,
            "size_bytes": store.live_bytes,
            "max_entries": store.max_entries,
            "max_bytes": self._settings.max_bytes,
            "clients": len(self._clients.attached),
            "epoch": self.epoch,
            "recovered_entries": self.recovered,
        }
        untrusted = sum(not one.plausible for one in self._clients.attached.values())
        if untrusted:
            found["untrusted_clients"] = untrusted
        if self._growth_failed:
            found["status"] = "degraded"
            found["reason"] = self._growth_failed
        return found

    # ── readers

    def attachments(self) -> Mapping[int, Attachment]:
        """Every attached process by a number that is never given to another."""
        return self._clients.attached

    def attach(
        self, *, uid: int, instance: bytes, pid: int, peer_pid: int, name: str
    ) -> Attachment:
        """Hand the store to a process. The caller closes the attachment with its connection."""
        if len(instance) != 16:
            raise WireError(INVALID_ARGUMENT, "instance must have 16 bytes", field="instance")
        reply = Attached(
            epoch=self.epoch,
            mode=self._mode,
            default_ttl=self._settings.default_ttl,
            compression=self._settings.compression,
            max_payload=self._largest_record() - L.RECORD_OVERHEAD - MAX_KEY_BYTES,
        )
        try:
            return self._clients.attach(
                reply,
                uid=uid,
                pid=pid,
                peer_pid=peer_pid,
                name=name,
                instance=instance,
                now=boot_clock(),
            )
        except OSError as error:
            raise WireError(
                UNAVAILABLE, f"no page could be made for this process: {error.strerror}"
            ) from error

    # ── the component's life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the readers' deadline, drop what expired, and grow, until cancelled."""
        while (left := self._ready_at - boot_clock()) > 0:
            # Readers of a store that has vanished may be trusting it: until they cannot, nothing
            # that this daemon would acknowledge is true for them.
            log.info("cache.waits_for_readers", seconds=round(left / 1e9, 3))
            await trio.sleep(left / 1e9)
        async with trio.open_nursery() as nursery:
            self._beat()
            nursery.start_soon(self._grow_when_full)
            task_status.started()
            while True:
                await trio.sleep(HEARTBEAT)
                self._beat()
                self._reap()
                if self._hollow and not self._resizing.locked():
                    await self._refill()
                await self._release_left(trio.current_time())

    def _beat(self) -> None:
        self._store.memory.words[_alive_word(self.epoch)] = boot_clock() + ALIVE_NS

    def _reap(self) -> None:
        """Take out what expired, a few hundred slots at a time."""
        store = self._store
        if not store.entries:
            return
        now = boot_clock()
        entries, self._sweep_at = store.sweep(self._sweep_at, SWEEP_SLOTS)
        for entry in entries:
            if entry.expires <= now:
                store.drop_expired(entry)

    async def _release_left(self, now: float) -> None:
        """Free the stores that were left and whose time is over."""
        epochs = [each.reply.epoch for each in self._clients.attached.values()]
        oldest = min(epochs, default=self.epoch)
        for left in [each for each in self._left if each.is_due(now, oldest)]:
            if left not in self._left:
                # Another task was faster.
                continue
            self._left.remove(left)
            # Some 10 ms for each 100 MiB: not on the loop. What was begun is not left undone.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._release, left.store, limiter=self._threads)

    @staticmethod
    def _release(store: Store) -> None:
        """Free a store that was left: on a tmpfs its pages are memory."""
        store.memory.release_pages()
        store.close()

    async def _grow_when_full(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            async with self._resizing:
                wanted = self._wanted_limits(self._settings)
                if wanted is not None and trio.current_time() >= self._growth_retry:
                    await self._try_to_grow(*wanted)
            self._grown.set()
            self._grown = trio.Event()

    async def _try_to_grow(self, max_entries: int, max_bytes: int) -> None:
        try:
            await self.resize(max_entries, max_bytes)
            self._growth_failed, self._growth_retry = None, 0.0
        except OSError as error:
            self._growth_failed = (
                f"the store stays at {self._store.max_bytes} bytes: "
                f"{error.strerror} in {self.store_path.parent}"
            )
            self._growth_retry = trio.current_time() + RETRY_GROWTH
            log.warning("cache.growth_failed", reason=self._growth_failed)

    def _wanted_limits(self, settings: CacheSettings) -> tuple[int, int] | None:
        """The limits (entries, bytes) that the store should have, when it has others."""
        store = self._store
        size = store.max_bytes
        if store.live_bytes > GROW_AT * size:
            size *= 4 if boot_clock() - self._in_service_since < SOON * 1e9 else 2
        while Geometry.for_limits(1, size).max_record < self._wanted_record:
            size *= 2
        wanted = settings.max_size, min(size, settings.max_bytes)
        return wanted if wanted != (store.max_entries, store.max_bytes) else None

    async def reconfigure(self, settings: CacheSettings) -> None:
        """Go by other settings, the store moved to its new limits when this returns.

        Stored entries keep their time to live. Raises OSError when the store cannot be moved;
        the settings are the old ones then.
        """
        async with self._resizing:
            wanted = self._wanted_limits(settings)
            if wanted is not None:
                await self.resize(*wanted)
            before, self._settings = self._settings, settings
            self._growth_failed, self._growth_retry = None, 0.0
            told = (before.default_ttl, before.compression, before.max_bytes)
            if told != (settings.default_ttl, settings.compression, settings.max_bytes):
                self._renew_epoch()

    def _renew_epoch(self) -> None:
        """Have every process attach again, so that it is told what it goes by."""
        words, epoch = self._store.memory.words, self.epoch
        words[L.W_EPOCH] = epoch + 1
        self._beat()
        words[_alive_word(epoch)] = 0

    @property
    def settings(self) -> CacheSettings:
        """What the cache goes by, with the entry limit that its store really has."""
        return dataclasses.replace(self._settings, max_size=self._store.max_entries)

    @property
    def departures(self) -> Departures:
        """What is remembered of entries that left."""
        return self._store.departures

    def used(self, prefix: bytes) -> tuple[int, int]:
        """Of a sample of the entries whose key begins so: how many, and how many were read."""
        return self._store.used(prefix, LOOKED_AT)

    @property
    def counters(self) -> Counters:
        """What happened to the stores since the daemon started."""
        return _sum(self._earlier, self._store.counters)

    @property
    def allocated(self) -> tuple[int, int]:
        """Bytes: the store in service can hold, and its file takes."""
        return self._store.max_bytes, self._store.memory.size

    def room(self) -> int:
        """Bytes that `cache.max_bytes` can be raised to on this host."""
        return room(self.store_path.parent, already=self._store.memory.size)

    async def resize(self, max_entries: int, max_bytes: int) -> None:
        """Move to a store of other limits, as `_move`, making room for it where that is short.

        What has to leave for smaller limits leaves first. Where memory is short, that of the
        entries that left is given back before the new store takes its own; puts wait meanwhile.
        Raises OSError; the store is in service with its entries then.
        """
        store = self._store
        if max_entries >= store.max_entries and max_bytes >= store.max_bytes:
            await self._move(max_entries, max_bytes)
            return
        limits = store.max_entries, store.max_bytes
        await self._in_slices(store, store.shrink(max_entries, max_bytes, boot_clock()))
        needed = Geometry.for_limits(max_entries, max_bytes).file_bytes + MARGIN
        folder = self.store_path.parent
        try:
            if headroom(folder) < needed:
                await self._release_left(math.inf)
            if headroom(folder) >= needed:
                await self._move(max_entries, max_bytes)
            else:
                self._hollow = True
                await trio.to_thread.run_sync(store.punch, limiter=self._threads)
                await self._move(max_entries, max_bytes)
                self._filled()
            # Who gives memory back wants it now.
            self._left[-1] = self._left[-1]._replace(at_last=trio.current_time() + RELEASE_SOON)
        finally:
            if self._store is store:
                store.max_entries, store.max_bytes = limits
                with trio.CancelScope(shield=True):
                    await self._refill()

    async def _refill(self) -> None:
        """Allocate again what was given back. Until that can be done puts are refused."""
        if not self._hollow:
            return
        try:
            await trio.to_thread.run_sync(Memory.refill, self.store_path, limiter=self._threads)
        except OSError as error:
            self._growth_failed = (
                f"the store cannot take entries: {error.strerror} in {self.store_path.parent}"
            )
        else:
            self._growth_failed = None
            self._filled()

    def _filled(self) -> None:
        self._hollow = False
        self._grown.set()
        self._grown = trio.Event()

    async def _move(self, max_entries: int, max_bytes: int) -> None:
        """Move to a store of other limits, entries, order and remaining lifetimes kept.

        Readers use the old store until the new one is complete, then attach again. Raises
        OSError when the file system cannot hold both for the moment; nothing has changed then.
        """
        new_path = self.store_path.with_name("store.new")
        epoch = self.epoch + 1

        def create() -> Store:
            new_path.unlink(missing_ok=True)
            memory = Memory.create(new_path, max_entries, max_bytes, epoch=epoch)
            return Store(memory, self._store.departures)

        target = await trio.to_thread.run_sync(create, limiter=self._threads)
        old = self._store
        try:
            await self._copy(old, target)
            store_fd = _read_only(new_path)
        except BaseException:
            old.journal = None
            self._copying = False
            target.close()
            new_path.unlink(missing_ok=True)
            raise
        # From here to the end nothing awaits. The rename is the moment at which a restart would
        # find the new store.
        new_path.rename(self.store_path)
        self._store = target
        self._in_service_since = boot_clock()
        self._clients.move_to(target, store_fd)
        self._beat()
        old.memory.words[_alive_word(epoch - 1)] = 0
        self._earlier = _sum(self._earlier, old.counters)
        target.counters = Counters()
        self._sweep_at = 0
        self._wanted_record = 0
        log.info(
            "cache.resized", max_bytes=max_bytes, max_entries=max_entries, entries=target.entries
        )
        now = trio.current_time()
        self._left.append(Left(old, epoch - 1, now + RELEASE_SOON, now + RELEASE_AFTER))

    async def _copy(self, old: Store, target: Store) -> None:
        """Copy in slices, then what changed meanwhile, in rounds until the last is short."""
        while True:
            journal: set[bytes] = set()
            old.journal = journal
            self._copying, self._cleared_while_copying = True, False
            await self._in_slices(old, copy_entries(old, target, boot_clock()))
            while not self._cleared_while_copying and len(old.journal) > LAST_ROUND:
                journal, old.journal = old.journal, set()
                await self._in_slices(old, settle(old, target, journal, boot_clock()))
            self._copying = False
            if not self._cleared_while_copying:
                # Nothing awaits from here until the new store is in service.
                for _ in settle(old, target, old.journal, boot_clock()):
                    pass
                return
            target.clear()

    async def _in_slices(self, old: Store, work: Iterator[None]) -> None:
        """Run work for a while at a time, longer when the old store is about to be full."""
        deadline = trio.current_time() + SLICE
        for _ in work:
            if self._cleared_while_copying:
                return
            if trio.current_time() >= deadline:
                await trio.lowlevel.checkpoint()
                hurry = old.live_bytes > HURRY_AT * old.max_bytes or len(old.journal or ()) > HURRY
                deadline = trio.current_time() + (LONG_SLICE if hurry else SLICE)

    def _rebuild(self, error: Damaged) -> None:
        log.error("cache.damaged", reason=str(error), entries_lost=self._store.entries)
        self._store.clear()

    def close(self) -> None:
        """Tell readers that nobody keeps this store, and let go of it; the file stays."""
        words = self._store.memory.words
        words[_alive_word(self.epoch)] = 0
        # Where it cannot be said the next daemon waits a second if the store is gone by then.
        with suppress(OSError):
            self._trace.write(running=False)
        self._clients.close()
        for left in self._left:
            self._release(left.store)
        self._store.close()
        os.close(self._lock_fd)


def _alive_word(epoch: int) -> int:
    return L.W_ALIVE + epoch % L.ALIVE_WORDS


def _read_only(path: Path) -> int:
    """A descriptor that can be handed to any process: it cannot be reopened for writing there."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def check_key(key: bytes) -> None:
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise WireError(
            INVALID_ARGUMENT,
            f"a key has 1 to {MAX_KEY_BYTES} bytes, this one {len(key)}",
            field="key",
            hint="use a digest of a longer key",
        )


def _sum(first: Counters, second: Counters) -> Counters:
    return Counters(**{name: value + getattr(second, name) for name, value in vars(first).items()})
