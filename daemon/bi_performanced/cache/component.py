"""The cache as the commands know it: entries, patterns, figures, readers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import trio

from bi_performance_wire import layout as L
from bi_performance_wire.errors import (
    INTERNAL,
    INVALID_ARGUMENT,
    UNAVAILABLE,
    WireError,
)
from bi_performance_wire.extra import MAX_EXTRA_BYTES, Extra, pack_extra, unpack_extra
from bi_performance_wire.types import MAX_KEY_BYTES, MAX_TTL, Attached, CacheLevels, CacheStats
from bi_performance_wire.value import COMPRESS_FROM, PLAIN
from bi_performanced.cache.clients import Attachment, boot_clock
from bi_performanced.cache.departures import Departures
from bi_performanced.cache.home import Home
from bi_performanced.cache.opening import Opened, open_store
from bi_performanced.cache.patterns import matcher
from bi_performanced.cache.store import Damaged, Held, TooLarge
from bi_performanced.cache.sweeping import every_entry
from bi_performanced.config import CacheSettings

LOOKED_AT = 2000
"""Slots of the index that are looked at to tell whether keys of a prefix are read."""
LISTING_BYTES = 4 << 20


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


class Terms(NamedTuple):
    """What an entry is stored with; times in seconds."""

    ttl: float | None = None
    """None: `cache.default_ttl`."""
    grace: float = 0.0
    """How long after its expiry it may be served stale."""
    sliding: bool = False
    """Whether reads renew it for its ttl."""
    tags: tuple[bytes, ...] = ()
    meta: bytes = b""

    def extra(self, seconds: float) -> bytes:
        """The block of a record whose ttl comes to so many seconds."""
        if not (self.grace or self.sliding or self.tags or self.meta):
            return b""
        sliding = max(1, round(seconds * 10)) if self.sliding else 0
        return pack_extra(Extra(ceil(self.grace * 10), sliding, self.tags, self.meta))


class Cache:
    """The shared cache of this host.

    The synchronous calls run on the loop and take a few microseconds; `keys`, `clear` and
    growth work in slices. `run` must be running for readers to trust the store.
    """

    def __init__(self, settings: CacheSettings, opened: Opened, mode: str) -> None:
        self._home = Home(settings, opened)
        self._mode = mode if settings.enabled else "off"
        self._hits = self._misses = 0
        self.compression = Compression()
        self._default_ttl_sets = 0
        self.on_clear: Callable[[], None] = lambda: None
        """Called after a clear, with or without a pattern."""
        self.recovered = opened.store.entries
        """Entries that were kept from an earlier daemon."""

    @classmethod
    def open(
        cls, settings: CacheSettings, *, runtime_dir: Path, state_dir: Path, mode: str
    ) -> Cache:
        """Take up the store that is there, or make one. Raises WireError as `open_store`."""
        return cls(settings, open_store(settings, runtime_dir, state_dir), mode)

    def note_compression(self, payload: bytes) -> None:
        """Count what came of compressing an entry of a client of ours."""
        self.compression.note(payload, asked=self._home.settings.compression)

    # ── one entry

    def get(self, key: bytes) -> bytes | None:
        """The encoded entry, or None. Raises WireError for a key out of bounds."""
        payload = self.peek(key)
        self.count([payload])
        return payload

    def peek(self, key: bytes) -> bytes | None:
        """As `get`, counting neither a hit nor a miss."""
        check_key(key)
        found = self._home.store.get(key, boot_clock())
        return None if found is None else found.payload

    def held(self, key: bytes, *, stale: bool = False) -> Held | None:
        """A readable entry with all that is known of it, with `stale` also one in its grace.

        Counted neither as a hit nor as a miss. Raises WireError for a key out of bounds.
        """
        check_key(key)
        return self._home.store.get(key, boot_clock(), stale=stale)

    def count(self, found: Sequence[bytes | None]) -> None:
        """Count what `peek` found for a request that is now answered."""
        misses = found.count(None)
        self._misses += misses
        self._hits += len(found) - misses

    def set(self, key: bytes, payload: bytes, terms: Terms) -> None:
        """Store an encoded entry. Readable by every process when this returns. Raises WireError."""
        self._put(key, payload, terms)

    def add(self, key: bytes, payload: bytes, terms: Terms) -> bool:
        """Store an entry only if no readable one has the key; whether it was stored."""
        check_key(key)
        if self._home.store.get(key, boot_clock()) is not None:
            return False
        self._put(key, payload, terms)
        return True

    def expire(self, key: bytes) -> bool:
        """Make an entry stale: it is served in its grace only, by who asks for stale ones.

        Whether it was fresh. Raises WireError for a key out of bounds.
        """
        check_key(key)
        return self._home.store.expire(key, boot_clock())

    def touch(self, key: bytes, ttl: float | None) -> bool:
        """Have an entry live for `ttl` seconds from now on (None: as its `sliding` says).

        Its age goes on. Whether one was readable, and renewed. Raises WireError.
        """
        check_key(key)
        self._check_writable()
        now = boot_clock()
        held = self._home.store.get(key, now)
        if held is None:
            return False
        if ttl is None:
            seconds = (unpack_extra(held.extra).sliding if held.extra else 0) / 10
            if not seconds:
                return False
        else:
            seconds = self.check_ttl(ttl)
        self._home.store.put(
            key,
            held.payload,
            expires=now + int(seconds * 1e9),
            now=now,
            flags=held.flags & ~L.FLAG_EXTRA,
            extra=held.extra,
            created=held.created,
        )
        return True

    def delete(self, key: bytes) -> bool:
        """Remove an entry; whether one was readable. Raises WireError for a key out of bounds."""
        check_key(key)
        return self._home.store.delete(key, boot_clock())

    def check_ttl(self, ttl: float | None) -> float:
        """The seconds that an entry with this ttl lives. Raises WireError."""
        if ttl is None:
            return self._home.settings.default_ttl
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
        self, entries: Sequence[tuple[bytes, bytes]], start: int, terms: Terms
    ) -> tuple[int, WireError | None]:
        """Store entries whose keys were checked, from `start` on.

        Returns how many, and why not more.
        """
        self._check_writable()
        now = boot_clock()
        seconds = self.check_ttl(terms.ttl)
        expires = now + int(seconds * 1e9)
        extra = terms.extra(seconds)
        put = self._home.store.put
        at = start
        try:
            for at in range(start, len(entries)):
                key, payload = entries[at]
                put(key, payload, expires=expires, now=now, extra=extra)
        except TooLarge as error:
            try:
                self._home.refuse_large(key, payload, error, extra)
            except WireError as refused:
                return at - start, refused
        except Damaged as error:
            self._home.rebuild(error)
            return at - start, WireError(INTERNAL, "the store was damaged and has been emptied")
        if terms.ttl is None:
            self._default_ttl_sets += len(entries) - start
        self._home.grow_if_full()
        return len(entries) - start, None

    def _check_writable(self) -> None:
        self._home.check_room()
        if not self._home.settings.enabled:
            raise WireError(
                UNAVAILABLE,
                "the cache is switched off",
                field="cache.enabled",
                hint="set cache.enabled to true and restart the daemon",
            )

    def _put(self, key: bytes, payload: bytes, terms: Terms) -> None:
        check_key(key)
        self._check_writable()
        seconds = self.check_ttl(terms.ttl)
        extra = terms.extra(seconds)
        now = boot_clock()
        try:
            self._home.store.put(
                key, payload, expires=now + int(seconds * 1e9), now=now, extra=extra
            )
        except TooLarge as error:
            self._home.refuse_large(key, payload, error, extra)
        except Damaged as error:
            self._home.rebuild(error)
            raise WireError(INTERNAL, "the store was damaged and has been emptied") from error
        if terms.ttl is None:
            self._default_ttl_sets += 1
        self._home.grow_if_full()

    # ── many entries

    async def keys(self, pattern: str | None, limit: int) -> tuple[list[bytes], bool]:
        """Up to `limit` readable keys that match, and whether there are more.

        Together they have at most LISTING_BYTES.
        """
        matches = matcher(pattern)
        found: dict[bytes, None] = {}
        size = 0
        async with aclosing(every_entry(lambda: self._home.store, lambda: None)) as entries:
            async for _, entry, now in entries:
                if entry.fresh_until > now and entry.key not in found and matches(entry.key):
                    size += len(entry.key)
                    if len(found) == limit or size > LISTING_BYTES:
                        return list(found), True
                    found[entry.key] = None
        return list(found), False

    async def clear(
        self,
        pattern: str | None,
        *,
        tags: Sequence[bytes] = (),
        stale: bool = False,
        dry_run: bool = False,
    ) -> int:
        """Remove every entry that was there when this was called and matches; how many.

        With tags those that have one of them: they are gone at once, and counted by a sweep.
        With `stale` entries are not removed but made stale: served in their grace, by who asks for
        stale ones. With `dry_run` nothing changes. Everything is cleared, or made stale, in one
        step; entries that are stored while a sweep for a pattern goes on stay.
        """
        store = self._home.store
        if pattern is None and not tags and not dry_run:
            cleared = store.expire_all(boot_clock()) if stale else self._home.clear()
            self.on_clear()
            return cleared
        matches, wanted = matcher(pattern), frozenset(tags)
        newest = store.sequence
        if tags and pattern is None and not stale and not dry_run:
            store.clear_tags(tags)
        cleared = 0

        def begin_again() -> None:
            nonlocal cleared
            # What was removed so far is gone in the new store too.
            cleared = 0 if dry_run else cleared

        async with aclosing(every_entry(lambda: self._home.store, begin_again)) as entries:
            async for store, entry, now in entries:
                if entry.sequence > newest or not matches(entry.key):
                    continue
                if wanted and not (entry.extra and wanted & set(unpack_extra(entry.extra).tags)):
                    continue
                readable = (entry.fresh_until or entry.expires) > now
                if dry_run:
                    cleared += readable
                elif stale:
                    cleared += readable and store.expire(entry.key, now)
                elif store.drop_found(entry):
                    cleared += readable
        if not dry_run:
            if not stale:
                self._home.store.counters.deletes += cleared
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
        await self._home.run(task_status=task_status)

    def close(self) -> None:
        """Tell readers that nobody keeps this store, and let go of it; the file stays."""
        self._home.close()


def check_key(key: bytes) -> None:
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise WireError(
            INVALID_ARGUMENT,
            f"a key has 1 to {MAX_KEY_BYTES} bytes, this one {len(key)}",
            field="key",
            hint="use a digest of a longer key" if key else None,
        )
