"""The cache as the commands know it: entries, patterns, figures, readers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from bi_performance_wire import layout as L
from bi_performance_wire.errors import INVALID_ARGUMENT, UNAVAILABLE, WireError
from bi_performance_wire.extra import MAX_EXTRA_BYTES
from bi_performance_wire.types import MAX_KEY_BYTES, Attached, CacheLevels, CacheStats
from bi_performanced.cache.clients import Attachment, boot_clock
from bi_performanced.cache.departures import Departures
from bi_performanced.cache.home import Home
from bi_performanced.cache.leasing import Leasing
from bi_performanced.cache.local import Local
from bi_performanced.cache.opening import Opened, open_store
from bi_performanced.cache.store import Held
from bi_performanced.cache.terms import Compression, Terms
from bi_performanced.config import CacheSettings, LeaseSettings

LOOKED_AT = 2000
"""Slots of the index that are looked at to tell whether keys of a prefix are read."""


class Cache:
    """The shared cache of this host.

    The synchronous calls run on the loop and take a few microseconds; `keys`, `clear` and
    growth work in slices. `run` must be running for readers to trust the store.
    """

    def __init__(
        self, settings: CacheSettings, opened: Opened, mode: str, leases: LeaseSettings
    ) -> None:
        self._home = Home(settings, opened)
        self.leasing = Leasing(leases)
        self._local = Local(self._home, self.leasing)
        self._mode = mode if settings.enabled else "off"
        self._hits = self._misses = 0
        self.compression = Compression()
        self.on_clear: Callable[[], None] = lambda: None
        """Called after a clear, with or without a pattern."""
        self.recovered = opened.store.entries
        """Entries that were kept from an earlier daemon."""

    @classmethod
    def open(
        cls,
        settings: CacheSettings,
        *,
        runtime_dir: Path,
        state_dir: Path,
        mode: str,
        leases: LeaseSettings | None = None,
    ) -> Cache:
        """Take up the store that is there, or make one. Raises WireError as `open_store`."""
        opened = open_store(settings, runtime_dir, state_dir)
        return cls(settings, opened, mode, leases or LeaseSettings())

    def note_compression(self, payload: bytes) -> None:
        """Count what came of compressing an entry of a client of ours."""
        self.compression.note(payload, asked=self._home.settings.compression)

    # ── entries

    def get(self, key: bytes) -> bytes | None:
        """The encoded entry, or None. Raises WireError for a key out of bounds."""
        payload = self.peek(key)
        self.count([payload])
        return payload

    def peek(self, key: bytes) -> bytes | None:
        """As `get`, counting neither a hit nor a miss."""
        found = self._local.held(key)
        return None if found is None else found.payload

    def held(self, key: bytes, *, stale: bool = False) -> Held | None:
        """A readable entry with all that is known of it, with `stale` also one in its grace.

        Counted neither as a hit nor as a miss. Raises WireError for a key out of bounds.
        """
        return self._local.held(key, stale=stale)

    def count(self, found: Sequence[bytes | None]) -> None:
        """Count what `peek` found for a request that is now answered."""
        misses = found.count(None)
        self._misses += misses
        self._hits += len(found) - misses

    def set(self, key: bytes, payload: bytes, terms: Terms, token: bytes | None = None) -> None:
        """Store an encoded entry. Readable by every process when this returns.

        With the token of a lease only if that is current, and the key was neither deleted nor
        cleared since it was given. Raises WireError, Refused.
        """
        if token is not None:
            self.leasing.admit(token, key, terms.tags)
        self._local.put(key, payload, terms)

    def set_some(
        self, entries: Sequence[tuple[bytes, bytes]], start: int, terms: Terms
    ) -> tuple[int, WireError | None]:
        """Store entries whose keys were checked, from `start` on; how many, and why not more."""
        return self._local.put_some(entries, start, terms)

    def add(self, key: bytes, payload: bytes, terms: Terms) -> bool:
        """Store an entry only if no readable one has the key; whether it was stored."""
        if self._local.held(key) is not None:
            return False
        self._local.put(key, payload, terms)
        return True

    def delete(self, key: bytes) -> bool:
        """Remove an entry; whether one was readable. Raises WireError for a key out of bounds."""
        return self._local.delete(key)

    def expire(self, key: bytes) -> bool:
        """Make an entry stale; whether it was fresh. Raises WireError for a key out of bounds."""
        return self._local.expire(key)

    def touch(self, key: bytes, ttl: float | None) -> bool:
        """Renew an entry for `ttl` seconds (None: as its `sliding` says); whether there was one."""
        return self._local.touch(key, ttl) is not None

    def seconds(self, terms: Terms) -> float:
        """How long an entry with these terms lives. Raises WireError."""
        return self._local.seconds(terms)

    async def keys(self, pattern: str | None, limit: int) -> tuple[list[bytes], bool]:
        """Up to `limit` readable keys that match, and whether there are more."""
        return await self._local.keys(pattern, limit)

    async def clear(
        self,
        pattern: str | None,
        *,
        tags: Sequence[bytes] = (),
        stale: bool = False,
        dry_run: bool = False,
    ) -> int:
        """Remove, make stale or count what matches; see Local.clear."""
        cleared = await self._local.clear(pattern, tags=tags, stale=stale, dry_run=dry_run)
        if not dry_run:
            self.on_clear()
        return cleared

    # ── figures

    def stats(self) -> CacheStats:
        """The cache's figures since the daemon started, hits in place included."""
        store = self._home.store
        counters = self._home.counters
        seen = self._home.clients.figures(boot_clock())
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
            max_bytes=self._home.settings.max_bytes,
            ring_bytes=ring_bytes,
            live_ratio=store.live_bytes / ring_bytes,
            write_amplification=(
                counters.bytes_appended / counters.bytes_stored if counters.bytes_stored else None
            ),
            clients=len(self._home.clients.attached),
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
                    "default_ttl_sets": self._local.default_ttl_sets,
                    "store_bytes": store.memory.size,
                    "entries": store.entries,
                    "size_bytes": store.live_bytes,
                    "leases": self.leasing.figures(),
                },
                redis=None,
            ),
        )

    def status(self) -> dict[str, Any]:
        """`ok`, `degraded` with the reason, or `off`; and the figures a person asks for first."""
        store = self._home.store
        seen = self._home.clients.figures(boot_clock())
        hits, misses = self._hits + seen.hits, self._misses + seen.misses
        found: dict[str, Any] = {
            "status": "ok" if self._home.settings.enabled else "off",
            "mode": self._mode,
            "hits": hits,
            "misses": misses,
            "hit_rate": hits / (hits + misses) if hits + misses else 0.0,
            "entries": store.entries,
            "size_bytes": store.live_bytes,
            "max_entries": store.max_entries,
            "max_bytes": self._home.settings.max_bytes,
            "clients": len(self._home.clients.attached),
            "epoch": self.epoch,
            "recovered_entries": self.recovered,
        }
        untrusted = sum(not one.plausible for one in self._home.clients.attached.values())
        if untrusted:
            found["untrusted_clients"] = untrusted
        if self._home.failed:
            found["status"] = "degraded"
            found["reason"] = self._home.failed
        return found

    # ── readers

    def attachments(self) -> Mapping[int, Attachment]:
        """Every attached process by a number that is never given to another."""
        return self._home.clients.attached

    def attach(
        self, *, uid: int, instance: bytes, pid: int, peer_pid: int, name: str
    ) -> Attachment:
        """Hand the store to a process. The caller closes the attachment with its connection."""
        if len(instance) != 16:
            raise WireError(INVALID_ARGUMENT, "instance must have 16 bytes", field="instance")
        reply = Attached(
            epoch=self.epoch,
            mode=self._mode,
            default_ttl=self._home.settings.default_ttl,
            compression=self._home.settings.compression,
            max_payload=(
                self._home.largest_record() - L.RECORD_OVERHEAD - MAX_KEY_BYTES - MAX_EXTRA_BYTES
            ),
        )
        try:
            return self._home.clients.attach(
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

    @property
    def settings(self) -> CacheSettings:
        """What the cache goes by, with the entry limit that its store really has."""
        return dataclasses.replace(self._home.settings, max_size=self._home.store.max_entries)

    @property
    def departures(self) -> Departures:
        """What is remembered of entries that left."""
        return self._home.store.departures

    def used(self, prefix: bytes) -> tuple[int, int]:
        """Of a sample of the entries whose key begins so: how many, and how many were read."""
        return self._home.store.used(prefix, LOOKED_AT)

    @property
    def epoch(self) -> int:
        return self._home.epoch

    @property
    def store_path(self) -> Path:
        return self._home.path

    @property
    def allocated(self) -> tuple[int, int]:
        """Bytes: the store in service can hold, and its file takes."""
        return self._home.allocated

    def room(self) -> int:
        """Bytes that `cache.max_bytes` can be raised to on this host."""
        return self._home.room()

    async def wait_grown(self) -> None:
        """After Growing: wait for the growth that was asked for, some seconds at the longest."""
        await self._home.wait_grown()

    async def reconfigure(self, settings: CacheSettings) -> None:
        """Go by other settings, the store moved to its new limits when this returns.

        Stored entries keep their time to live. Raises OSError when the store cannot be moved;
        the settings are the old ones then.
        """
        await self._home.reconfigure(settings)

    async def resize(self, max_entries: int, max_bytes: int) -> None:
        """Move to a store of other limits. Raises OSError; the old one serves on then."""
        await self._home.resize(max_entries, max_bytes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the readers' deadline, drop what expired, and grow, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.leasing.run)
            await self._home.run(task_status=task_status)
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Tell readers that nobody keeps this store, and let go of it; the file stays."""
        self._home.close()
