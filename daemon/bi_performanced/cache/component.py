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
from bi_performance_wire.types import MAX_KEY_BYTES, Attached, CacheCurve, CacheLevels, CacheStats
from bi_performanced.cache import figures as told
from bi_performanced.cache.clients import Attachment, Figures, boot_clock
from bi_performanced.cache.curve import BEAT, Curve, Totals
from bi_performanced.cache.departures import Departures
from bi_performanced.cache.home import Home
from bi_performanced.cache.insight.breakdown import Breaking
from bi_performanced.cache.insight.explaining import Explainer
from bi_performanced.cache.insight.ranking import Ranking
from bi_performanced.cache.insight.watching import Watch
from bi_performanced.cache.leases import LEADER, Holder, Outcome, Refused
from bi_performanced.cache.leasing import Leasing
from bi_performanced.cache.local import Local
from bi_performanced.cache.opening import Opened, open_store
from bi_performanced.cache.past import Why
from bi_performanced.cache.patterns import matcher
from bi_performanced.cache.second import SecondLevel
from bi_performanced.cache.store import Held
from bi_performanced.cache.terms import Compression, Terms, check_key
from bi_performanced.config import CacheSettings, LeaseSettings
from bi_performanced.host.signs import Signs
from bi_performanced.remote.breaker import RemoteAway

LOOKED_AT = 2000
"""Slots of the index that are looked at to tell whether keys of a prefix are read."""


class Cache:
    """The shared cache of this host.

    The synchronous calls run on the loop and take a few microseconds; `keys`, `clear` and
    growth work in slices. `run` must be running for readers to trust the store.
    """

    def __init__(
        self,
        settings: CacheSettings,
        opened: Opened,
        mode: str,
        leases: LeaseSettings,
        *,
        state_dir: Path | None = None,
    ) -> None:
        self._home = Home(settings, opened)
        self.leasing = Leasing(leases)
        self._local = Local(self._home, self.leasing)
        self._second: SecondLevel | None = None
        if settings.redis_url and settings.enabled and state_dir is not None:
            self._second = SecondLevel(self._home, self._local, self.leasing, settings, state_dir)
        if self._second is None:
            # A store that is taken up may be of a daemon that had one.
            self._home.set_word(L.W_REMOTE, 0)
        self._mode = mode if settings.enabled else "off"
        self.explainer = Explainer(self._home, self.leasing, self._second, self._mode)
        self.watch = Watch(self._home)
        self.ranking = Ranking(self._home, self.watch)
        self.breaking = Breaking(self._home, self.watch)
        self._hits = self._misses = 0
        self.compression = Compression()
        self.on_clear: Callable[[], None] = lambda: None
        """Called after a clear, with or without a pattern."""
        self._curve = Curve(self._totals)
        self._home.listen(self._curve)
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
        return cls(settings, opened, mode, leases or LeaseSettings(), state_dir=state_dir)

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
        cleared since it was given. With Redis `settled` must follow when `waits` says so. Raises
        WireError, Refused.
        """
        if token is not None:
            self.leasing.admit(token, key, terms.tags)
        second = self._second
        if second is None:
            self._local.put(key, payload, terms)
        else:
            if terms.local:
                second.supersede(key)
            self._local.put(key, payload, terms, second.flags(terms))
            second.put(key, payload, terms, self._local.seconds(terms))

    async def publish(self, key: bytes, payload: bytes, terms: Terms, token: bytes) -> None:
        """As `set` under a lease that is over all hosts, where Redis says whether it still is.

        Raises WireError, Refused.
        """
        second = self._second
        lease = None if second is None or terms.local else second.contest.of(token)
        if second is None or lease is None:
            self.set(key, payload, terms, token)
            return
        self.leasing.admit(token, key, terms.tags)
        try:
            changed = await second.publish(lease, payload, terms, self._local.seconds(terms))
        except RemoteAway:
            self.set(key, payload, terms, token)
            return
        if changed is False:
            raise Refused("another host has stored, deleted or cleared the key meanwhile")
        self.leasing.admit(token, key, terms.tags)
        if changed:
            # Those who wait asked before that was so.
            self.leasing.stored(key, payload)
        else:
            self._local.put(key, payload, terms, second.flags(terms))
            second.stored(key, terms, self._local.seconds(terms))

    def note_refused(self, key: bytes, size: int) -> None:
        """Remember that a value of so many bytes was Refused."""
        self._home.note_refused(key, Why.REFUSED, size)

    async def lead(
        self, key: bytes, token: bytes, holder: Holder, *, refresh: bool, wait: float
    ) -> Outcome:
        """What one is told who has the lease of a key on this host; see Contest.lead."""
        if self._second is None or not self._second.healthy:
            return Outcome(LEADER, token)
        return await self._second.contest.lead(key, token, holder, refresh=refresh, wait=wait)

    def set_some(
        self, entries: Sequence[tuple[bytes, bytes]], start: int, terms: Terms
    ) -> tuple[int, WireError | None]:
        """Store entries whose keys were checked, from `start` on; how many, and why not more."""
        second = self._second
        if second is None:
            return self._local.put_some(entries, start, terms)
        if terms.local:
            for key, _ in entries[start:]:
                second.supersede(key)
        count, error = self._local.put_some(entries, start, terms, second.flags(terms))
        seconds = self._local.seconds(terms)
        for key, payload in entries[start : start + count]:
            second.put(key, payload, terms, seconds)
        return count, error

    def add(self, key: bytes, payload: bytes, terms: Terms) -> bool:
        """Store an entry only if no readable one of this host has the key; whether it was stored.

        Exact over hosts with `add_everywhere`.
        """
        if self._local.held(key) is not None:
            return False
        self._local.put(key, payload, terms, self._second.flags(terms) if self._second else 0)
        return True

    async def add_everywhere(self, key: bytes, payload: bytes, terms: Terms) -> bool:
        """As `add`, asking Redis; while that is away, exact on this host."""
        second = self._second
        if second is None or self._local.held(key) is not None:
            return self.add(key, payload, terms)
        added = await second.add(key, payload, terms, self._local.seconds(terms))
        if added is None:
            if not self.add(key, payload, terms):
                return False
            second.put(key, payload, terms, self._local.seconds(terms))
            return True
        # It is not put here: news of a later change may have come before this.
        if not added:
            await second.fetch([key])
        return added

    def delete(self, key: bytes) -> bool:
        """Remove an entry; whether one was readable. Raises WireError for a key out of bounds."""
        deleted = self._local.delete(key)
        if self._second is not None:
            self._second.delete(key)
        return deleted

    def expire(self, key: bytes) -> bool:
        """Make an entry stale; whether it was fresh. Raises WireError for a key out of bounds."""
        expired = self._local.expire(key)
        if self._second is not None:
            # The others have no use for a stale value of this host, and theirs may be newer.
            self._second.delete(key)
        return expired

    def touch(self, key: bytes, ttl: float | None) -> bool:
        """Renew an entry for `ttl` seconds (None: as its `sliding` says); whether there was one."""
        held = self._local.touch(key, ttl)
        if held is not None and self._second is not None:
            self._second.renewed(key, held)
        return held is not None

    def hit_elsewhere(self, count: int) -> None:
        """So many of what `fetch` found are about to be counted as hits here, once more."""
        self._hits -= count
        self._misses += count

    @property
    def asks(self) -> bool:
        """Whether what is not here may be in Redis."""
        return self._second is not None and self._second.healthy

    async def fetch(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What Redis has of keys that are not here; it is here from now on."""
        for key in keys:
            check_key(key)
        if self._second is None:
            return [None] * len(keys)
        return await self._second.fetch(keys)

    @property
    def waits(self) -> bool:
        """Whether a change is to be answered only after `settled`."""
        return self._second is not None and self._second.waits

    async def settled(self) -> None:
        """Until Redis has what was changed before this call, or it is kept for its return."""
        if self._second is not None:
            await self._second.settled()

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
        """Remove, make stale or count what matches, on every host; how many here.

        See Local.clear.
        """
        matcher(pattern)
        if self._second is not None and not dry_run:
            self._second.clear(pattern, tags, stale)
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
        ring_bytes = store.small.bytes + store.main.bytes
        return CacheStats(
            **self._reads(seen),
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
                    "hits": self._hits + seen.hits,
                    "misses": self._misses + seen.misses,
                    **told.local_figures(self._home, seen),
                    **told.compression_figures(self.compression),
                    "default_ttl_sets": self._local.default_ttl_sets,
                    "leases": self.leasing.figures(),
                    "prefixes": self.watch.configured.figures(),
                },
                redis=None if self._second is None else self._second.stats(),
            ),
        )

    def status(self) -> dict[str, Any]:
        """`ok`, `degraded` with the reason, or `off`; and the figures a person asks for first."""
        store = self._home.store
        seen = self._home.clients.figures(boot_clock())
        found: dict[str, Any] = {
            "status": "ok" if self._home.settings.enabled else "off",
            "mode": self._mode,
            **self._reads(seen),
            "entries": store.entries,
            "size_bytes": store.live_bytes,
            "max_entries": store.max_entries,
            "max_bytes": self._home.settings.max_bytes,
            "clients": len(self._home.clients.attached),
            "epoch": self.epoch,
            "recovered_entries": self.recovered,
            **told.budget_status(self._home),
        }
        untrusted = sum(not one.plausible for one in self._home.clients.attached.values())
        if untrusted:
            found["untrusted_clients"] = untrusted
        reasons = [self._home.failed] if self._home.failed else []
        if self._second is not None:
            found["redis"] = self._second.status()
            reasons += told.redis_reasons(found["redis"], healthy=self._second.healthy)
        return told.degraded(found, reasons)

    def curve(self) -> CacheCurve:
        """What the store would hit at other sizes, by the traffic lately."""
        return self._curve.curve()

    def restart_curve(self) -> None:
        """Forget what the curve has counted: it rests on other settings."""
        self._curve.restart()

    def _totals(self) -> Totals:
        """What this host's store was asked for: what Redis had is a miss here."""
        seen = self._home.clients.figures(boot_clock())
        return Totals(
            self._hits + seen.hits, self._misses + seen.misses, self._home.counters.inserts
        )

    async def _keep_curve(self) -> None:
        while True:
            await trio.sleep(BEAT)
            self._curve.beat()

    def _reads(self, seen: Figures) -> dict[str, Any]:
        """`hits`, `misses` and `hit_rate` of all levels: what Redis had was a miss here first."""
        further = 0 if self._second is None else self._second.hits
        return told.reads(self._hits + seen.hits + further, self._misses + seen.misses - further)

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

    async def mind(self, signs: Signs, now: float) -> None:
        """Go by how short memory is at `now`, in seconds on any clock that only grows."""
        await self._home.mind(signs, now)

    async def give_back(self) -> None:
        """Let the store have `cache.max_bytes` again."""
        await self._home.give_back()

    async def resize(self, max_entries: int, max_bytes: int) -> None:
        """Move to a store of other limits. Raises OSError; the old one serves on then."""
        await self._home.resize(max_entries, max_bytes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the readers' deadline, drop what expired, and grow, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.leasing.run)
            nursery.start_soon(self.watch.run)
            nursery.start_soon(self._keep_curve)
            if self._second is None:
                await self._home.run(task_status=task_status)
            else:
                await nursery.start(self._home.run)
                await nursery.start(self._second.run)
                task_status.started()

    def close(self) -> None:
        """Tell readers that nobody keeps this store, and let go of it; the file stays."""
        self._home.close()
