"""Redis behind the store: what is written here goes there, and what others write there goes here.

An entry that Redis has too is *shared*: readers serve it while this host hears what the others
change, and for `cache.on_partition` beyond that. What is stored while Redis is away is shared as
well, but served all the same: on this host it is the newest there is, and when Redis is back, its
key is taken out there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from bi_performance_wire import layout as L
from bi_performance_wire.errors import WireError
from bi_performance_wire.extra import unpack_extra
from bi_performance_wire.types import MAX_KEY_BYTES
from bi_performanced.cache.clients import boot_clock
from bi_performanced.cache.home import Home
from bi_performanced.cache.leasing import Leasing
from bi_performanced.cache.local import Local
from bi_performanced.cache.past import Why
from bi_performanced.cache.patterns import matcher
from bi_performanced.cache.shared_leases import Contest
from bi_performanced.cache.store import Held
from bi_performanced.cache.sweeping import every_entry
from bi_performanced.cache.terms import Terms
from bi_performanced.config import CacheSettings
from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.component import Remote
from bi_performanced.remote.envelope import Envelope
from bi_performanced.remote.leases import RemoteLease
from bi_performanced.remote.predicate import Predicate

MOST_RENEWALS: Final = 10_000
"""Renewals that wait to be sent; those beyond leave Redis's entry to its time. As many keys of
entries of this host alone; those beyond are deleted in Redis without a look."""
MOST_SHORTER: Final = 20_000
_MS: Final = 1_000_000
"""Nanoseconds."""
_EARLY: Final = 1_000_000_000
"""Nanoseconds that the end of an entry's time in Redis may come before it is expected."""


def partition_ns(text: str) -> int:
    """`cache.on_partition` as nanoseconds beyond what is known for which entries are served."""
    found = re.fullmatch(r"stale\((.*)\)", text)
    return int(float(found[1]) * 1e9) if found else 0


class SecondLevel:
    """The store's side of Redis: it is told what changed there, and tells what changed here."""

    def __init__(
        self,
        home: Home,
        local: Local,
        leasing: Leasing,
        settings: CacheSettings,
        state_dir: Path,
    ) -> None:
        self._home = home
        self._local = local
        self._through = settings.write == "through"
        self.remote = Remote(settings, state_dir, self, matcher)
        self.contest = Contest(leasing, self.remote, self.fetch)
        self.healthy = False
        self._crowded = False
        """Whether Redis cannot keep up: changes wait for it."""
        self.hits = self.misses = 0
        """Of those who asked for a key that was not here."""
        self._renewals: dict[bytes, int] = {}
        """Keys that were renewed here, and the sequence of their entries."""
        self._alone: dict[bytes, None] = {}
        """Keys of entries of this host alone, of which Redis may have an older one."""
        self._changed = trio.Event()
        self._shorter: dict[bytes, tuple[int, int]] = {}
        """Entries of this host that Redis keeps shorter: their sequence, and when it ends there."""
        self._sweeps: list[Predicate | int | None] = []
        """Clears whose entries here are still to be found; a number: all shared ones of that shard
        of Redis, None: all shared ones."""
        self._wake = trio.Event()
        home.set_word(L.W_PARTITION, partition_ns(settings.on_partition))
        home.set_word(L.W_COHERENT_UNTIL, 0)
        home.set_word(L.W_REMOTE, 0)
        home.set_word(L.W_OUTAGE, home.store.sequence)

    # ── what changed here

    @staticmethod
    def flags(terms: Terms) -> int:
        """The flags of an entry with these terms."""
        return 0 if terms.local else L.FLAG_SHARED

    def put(self, key: bytes, payload: bytes, terms: Terms, seconds: float) -> None:
        """An entry was stored here."""
        if not terms.local:
            self._put(key, _new(payload, terms, seconds))
            self.stored(key, terms, seconds)

    def supersede(self, key: bytes) -> None:
        """An entry of this host alone is about to be stored: what Redis has of the key is older,
        and must not be read when that has gone."""
        if self.holds(key) is not None:
            self.remote.delete(key)
        elif self._local.held(key, stale=True) is None:
            # Redis may have it all the same. Most such keys it never has, and then no other host is
            # to hear of it, which may have an entry of its own.
            if len(self._alone) < MOST_RENEWALS:
                self._alone[key] = None
                self._changed.set()
            else:
                self.remote.delete(key)

    def renewed(self, key: bytes, held: Held) -> None:
        """An entry here lives on: if Redis has the same one, that does too.

        Only its time is changed there. The entry itself may be superseded or deleted by now on
        another host, and must not come back.
        """
        if held.flags & L.FLAG_SHARED and len(self._renewals) < MOST_RENEWALS:
            self._renewals[key] = held.sequence
            self._changed.set()

    async def _follow(self) -> None:
        """Carry out in Redis what follows from changes here, behind those changes."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            renewals, self._renewals = self._renewals, {}
            alone, self._alone = self._alone, {}
            await self.remote.settled()
            # One that was shared meanwhile is newer than what Redis had.
            keys = [key for key in alone if self.holds(key) is None]
            try:
                await self.remote.drop_if_there(keys)
            except RemoteAway:
                # They wait for its return.
                for key in keys:
                    self.remote.delete(key)
            with suppress(RemoteAway):
                await self.remote.extend(list(renewals), partial(self._remaining, renewals))

    def _remaining(self, renewals: Mapping[bytes, int], key: bytes) -> int | None:
        """How many milliseconds an entry that was renewed is still kept, if it is still here."""
        if self.holds(key) != renewals[key]:
            return None
        held = self._local.held(key)
        return None if held is None else (held.kept_until - boot_clock()) // _MS

    def _put(self, key: bytes, envelope: Envelope) -> None:
        if not self.remote.put(key, envelope):
            self._crowded = True

    def delete(self, key: bytes) -> None:
        self.remote.delete(key)

    def clear(self, pattern: str | None, tags: Sequence[bytes], stale: bool) -> None:
        self.remote.clear(Predicate(pattern, tuple(tags), stale))

    @property
    def waits(self) -> bool:
        """Whether a change is to be answered only once Redis has it."""
        return self._through or self._crowded

    async def settled(self) -> None:
        """Until Redis, or the outbox, has everything that was changed here before this call."""
        await self.remote.settled()
        self._crowded = False

    async def publish(
        self, lease: RemoteLease, payload: bytes, terms: Terms, seconds: float
    ) -> bool | None:
        """Store what was loaded under a lease over all hosts, and end that.

        None: it is in Redis, and nothing came after it. True: it is there, and has been changed
        since. False: it was refused, for the lease had ended or the key was deleted. Raises
        RemoteAway.
        """
        leases = self.remote.leases(lease.key)
        version = await leases.publish(lease, _new(payload, terms, seconds))
        if version is None:
            return False
        return leases.superseded(lease.key, version) or None

    async def add(self, key: bytes, payload: bytes, terms: Terms, seconds: float) -> bool | None:
        """Store an entry in Redis if there is none; None when Redis is away."""
        if terms.local:
            return None
        try:
            return await self.remote.add(key, _new(payload, terms, seconds))
        except RemoteAway:
            return None

    # ── what is there and not here

    async def fetch(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The fresh entries of keys that are not here, which they are from now on.

        A dead Redis costs its timeout once, and then nothing.
        """
        before = self._home.store.sequence
        try:
            found = await self.remote.fetch_many(keys)
        except RemoteAway:
            found = [None] * len(keys)
        payloads = [
            None if envelope is None else self._install(key, envelope, before)
            for key, envelope in zip(keys, found, strict=True)
        ]
        missing = payloads.count(None)
        self.misses += missing
        self.hits += len(payloads) - missing
        return payloads

    def _install(self, key: bytes, envelope: Envelope, before: int) -> bytes | None:
        here = self._local.held(key, stale=True)
        if here is not None and here.sequence > before:
            # Stored here meanwhile: the newer one.
            return here.payload if here.fresh_until > boot_clock() else None
        now = boot_clock()
        age = max(0, int(time.time() * 1000) - envelope.created)
        # Redis has said whether it is fresh; the clocks of two hosts are not to say it again.
        mark = self._home.store.memory.words[L.W_EXPIRED]
        # One that does not fit here is for who asked all the same.
        with suppress(WireError):
            self._local.install(
                key,
                envelope.payload,
                expires=now + envelope.fresh * _MS,
                created=max(mark, (now - age * _MS) // L.CREATED_UNIT_NS),
                extra=envelope.extra,
                flags=L.FLAG_SHARED,
            )
            self.remote.installed(key, envelope)
        return envelope.payload if envelope.fresh else None

    # ── what changed there (the remote level calls these, on the loop)

    def invalidate(self, key: bytes) -> None:
        """Another host, or a program, has changed a key. Raises nothing."""
        # What stands in Redis's log is from outside: a key that cannot be one is nobody's here.
        if 0 < len(key) <= MAX_KEY_BYTES:
            self._local.delete(key, Why.ELSEWHERE)

    def overtaken(self, key: bytes) -> None:
        """Another host has changed a key before what is here was fetched."""
        # What is loaded under a lease over all hosts Redis itself refuses, if it is older.
        if not self.contest.guards(key):
            self._local.void_one(key)

    def holds(self, key: bytes) -> int | None:
        """The sequence of the entry here that Redis has too, or had."""
        return self._home.store.shared(key) if 0 < len(key) <= MAX_KEY_BYTES else None

    def payload(self, key: bytes) -> bytes | None:
        """The client's part of that entry."""
        return self._home.store.payload(key)

    def let_go(self, key: bytes) -> bool:
        """Redis has no entry of the key any more; whether the one here went. What is being loaded
        stays."""
        sequence, ends = self._shorter.get(key, (None, 0))
        if sequence is not None and sequence == self.holds(key) and boot_clock() >= ends - _EARLY:
            # It was to live longer here than there.
            return False
        self._home.store.delete(key, boot_clock())
        return True

    def stored(self, key: bytes, terms: Terms, seconds: float) -> None:
        """An entry was stored here that Redis has too, or will."""
        if terms.redis_ttl is None or terms.local or terms.redis_ttl >= seconds:
            self._shorter.pop(key, None)
            return
        sequence = self.holds(key)
        if sequence is not None:
            ends = boot_clock() + int((terms.redis_ttl + terms.grace) * 1e9)
            self._shorter[key] = sequence, ends
            if len(self._shorter) > MOST_SHORTER:
                # The one of longest ago lives as long as in Redis, then.
                del self._shorter[next(iter(self._shorter))]

    def apply(self, predicate: Predicate) -> None:
        """Another host has cleared entries. Those here are found in slices; until then this host
        does not claim to know what the others do."""
        store = self._home.store
        self._local.void(predicate.pattern, predicate.tags)
        if predicate.everything:
            self._home.note_clear(None, (), stale=predicate.soft, elsewhere=True)
            if predicate.soft:
                store.expire_all(boot_clock())
            else:
                self._home.clear()
        elif predicate.pattern is None and not predicate.soft:
            self._home.note_clear(None, predicate.tags, elsewhere=True)
            store.clear_tags(predicate.tags)
        else:
            self._sweep(predicate)

    def drop_shared(self, shard: int | None = None) -> None:
        """What the others did is not known any more: nothing that is shared (of the keys of a
        shard) may be served."""
        self._home.set_word(L.W_COHERENT_UNTIL, 0)
        self._home.set_word(L.W_OUTAGE, L.NEVER)
        self._local.void(None, ())
        self._sweep(shard)

    def coherent(self, until: int) -> None:
        """All that the others have changed up to now is known, and will be until then."""
        if not self._sweeps:
            self._home.set_word(L.W_COHERENT_UNTIL, until)

    def health(self, ok: bool, reason: str | None) -> None:
        """Redis answers, or does not any more."""
        self.healthy = ok
        self._home.set_word(L.W_REMOTE, int(ok))
        if ok:
            self._home.set_word(L.W_OUTAGE, L.NEVER)
        elif self._home.store.memory.words[L.W_OUTAGE] == L.NEVER:
            self._home.set_word(L.W_OUTAGE, self._home.store.sequence)

    def _sweep(self, what: Predicate | int | None) -> None:
        self._sweeps.append(what)
        self._wake.set()

    async def _sweep_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._sweeps:
                what = self._sweeps[0]
                if isinstance(what, Predicate):
                    await self._local.clear(
                        what.pattern, tags=what.tags, stale=what.soft, elsewhere=True
                    )
                else:
                    await self._drop_shared(what)
                self._sweeps.pop(0)

    async def _drop_shared(self, shard: int | None) -> None:
        newest = self._home.store.sequence
        async with aclosing(every_entry(lambda: self._home.store, lambda: None)) as entries:
            async for store, entry, now in entries:
                if entry.sequence > newest or not entry.shared:
                    continue
                if shard is None or self.remote.shard_of(entry.key) == shard:
                    store.drop_found(entry, now, why=Why.NEWS_MISSED)

    # ── life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep in touch with Redis until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep_all)
            nursery.start_soon(self._follow)
            await nursery.start(self.contest.run)
            await nursery.start(self._run_remote)
            task_status.started()

    async def _run_remote(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self.remote.run(task_status=task_status)
        finally:
            # Nothing is heard of the others from here on.
            self._home.set_word(L.W_COHERENT_UNTIL, 0)
            self._home.set_word(L.W_REMOTE, 0)

    def status(self) -> dict[str, Any]:
        return self.remote.status()

    def stats(self) -> dict[str, Any]:
        return {"hits": self.hits, "misses": self.misses, **self.remote.stats()}


def _new(payload: bytes, terms: Terms, seconds: float) -> Envelope:
    """An entry that is stored now and lives for so many seconds here."""
    extra = terms.extra(seconds)
    kept = min(seconds, terms.redis_ttl) if terms.redis_ttl else seconds
    soft_ms = int(kept * 1000)
    return Envelope(
        payload,
        int(time.time() * 1000),
        soft_ms,
        soft_ms + int(terms.grace * 1000),
        extra,
        unpack_extra(extra).tags if extra else (),
    )
