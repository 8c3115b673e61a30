"""The store beside a dict with lifetimes: any sequence of operations, restarts and resizes.

A reader in place looks at the same file by the same clock, and must see what the daemon sees.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bi_performance import reader as reading
from bi_performance.reader import MISS, Entry, StoreReader
from bi_performance_wire import layout as L
from bi_performance_wire.extra import Extra, pack_extra
from bi_performance_wire.value import encode
from bi_performanced.cache.clients import sealed_memory
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.policy import RULES
from bi_performanced.cache.recovery import copy_entries, recover, settle
from bi_performanced.cache.store import Store

SECOND = 10**9
KEYS = st.sampled_from([b"k%d" % n for n in range(12)])
VALUES = st.binary(min_size=1, max_size=400)
TAGS = st.sets(st.sampled_from([b"red", b"green", b"blue"]))


@dataclass
class Wanted:
    value: bytes
    said: int
    grace: int
    """Tenths of a second."""
    tags: set[bytes]
    made_stale: int = L.NEVER

    @property
    def expires(self) -> int:
        # One that is made stale again begins its grace anew, within what was said.
        return min(self.said, self.made_stale)

    @property
    def kept_until(self) -> int:
        return self.expires + self.grace * SECOND // 10


class StoreBesideDict(RuleBasedStateMachine):
    """Within its limits the store is a dict; beyond them it may forget, never misremember."""

    @initialize(capacity=st.sampled_from([4, 8, 100]), rule=st.integers(0, len(RULES) - 1))
    def make(self, capacity: int, rule: int) -> None:
        self.now = 10 * SECOND
        self.clock = mock.patch.object(reading, "_clock", lambda _: self.now)
        self.clock.start()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store"
        memory = Memory.create(self.path, capacity, 1 << 20, epoch=1)
        memory.words[L.W_POLICY] = rule
        memory.close()
        self.capacity = capacity
        self.model: dict[bytes, Wanted] = {}
        self.evicted = False
        self.reader: StoreReader | None = None
        self.open(Store(Memory.adopt(self.path)))

    def open(self, store: Store) -> None:
        self.store = store
        words = store.memory.words
        words[L.W_ALIVE + words[L.W_EPOCH] % L.ALIVE_WORDS] = L.NEVER
        if self.reader is not None:
            self.reader.close()
        page = sealed_memory("page", L.PAGE)
        touches = sealed_memory("touches", store.index.slots + L.GUARD_SLOTS)
        self.reader = StoreReader(os.open(self.path, os.O_RDONLY), page, touches, words[L.W_EPOCH])

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert self.reader is not None
            self.reader.close()
            self.store.close()
            self.folder.cleanup()
            self.clock.stop()

    @rule(key=KEYS, value=VALUES, ttl=st.integers(1, 50), grace=st.integers(0, 200), tags=TAGS)
    def put(self, key: bytes, value: bytes, ttl: int, grace: int, tags: set[bytes]) -> None:
        wanted = self.model[key] = Wanted(encode(value), self.now + ttl * SECOND, grace, tags)
        extra = pack_extra(Extra(grace, 0, tuple(tags), b"\x80" if grace > 100 else b""))
        self.store.put(key, wanted.value, expires=wanted.expires, now=self.now, extra=extra)
        found = self.store.get(key, self.now)
        assert found is not None and (found.payload, found.extra) == (wanted.value, extra)

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        assert self.reader is not None
        held, seen = self.store.get(key, self.now, stale=True), self.reader.find(key)
        fresh, value = self.store.get(key, self.now), self.reader.read(key)
        wanted = self.model.get(key)
        if wanted is None or wanted.kept_until <= self.now:
            assert held is fresh is None and seen is value is MISS
            return
        if held is None:
            assert self.store.counters.evictions or self.evicted
            assert fresh is None and seen is value is MISS
            return
        assert held.payload == wanted.value
        assert (held.fresh_until, held.kept_until) == (wanted.expires, wanted.kept_until)
        assert isinstance(seen, Entry) and encode(seen.value) == wanted.value
        stale = wanted.expires <= self.now
        assert seen.stale == stale == (fresh is None) == (value is MISS)
        assert set(seen.extra.tags if seen.extra else ()) == wanted.tags

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        readable = self.store.get(key, self.now) is not None
        assert self.store.delete(key, self.now) == readable
        self.model.pop(key, None)
        assert self.store.get(key, self.now, stale=True) is None

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.model.clear()
        assert self.store.entries == 0

    @rule(tags=TAGS)
    def clear_tags(self, tags: set[bytes]) -> None:
        self.store.clear_tags(tags)
        self.model = {key: each for key, each in self.model.items() if not each.tags & tags}

    @rule()
    def expire_all(self) -> None:
        self.store.expire_all(self.now)
        for each in self.model.values():
            each.made_stale = self.now

    @rule(key=KEYS)
    def expire(self, key: bytes) -> None:
        held = self.store.get(key, self.now)
        assert self.store.expire(key, self.now) == (held is not None)
        if held is not None:
            self.model[key].said = self.now
            if not held.extra:
                del self.model[key]

    @rule(seconds=st.integers(1, 300))
    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND // 10

    @rule()
    def restart(self) -> None:
        """As after kill -9: what the new daemon finds is the file alone."""
        self.evicted |= self.store.counters.evictions > 0
        self.store.close()
        store = Store(Memory.adopt(self.path))
        recover(store, self.now)
        self.open(store)

    @rule(change=st.sampled_from(["nothing", "red", "all", "k1"]))
    def move(self, change: str) -> None:
        """To another file, as when the store is resized, with a change in the middle of it."""
        old = self.store
        self.evicted |= old.counters.evictions > 0
        self.path.unlink()
        target = Store(Memory.create(self.path, self.capacity, 1 << 20, epoch=1))
        old.journal = set()
        for _ in copy_entries(old, target, self.now):
            pass
        if change == "red":
            self.clear_tags({b"red"})
        elif change == "all":
            self.expire_all()
        elif change == "k1":
            self.delete(b"k1")
        for _ in settle(old, target, old.journal, self.now):
            pass
        old.close()
        self.open(target)

    @invariant()
    def limits_hold(self) -> None:
        if hasattr(self, "store"):
            assert self.store.entries <= self.capacity
            assert self.store.live_bytes <= self.store.max_bytes
            found, at = self.store.sweep(0, 1 << 20)
            assert at == 0
            for entry in found:
                if entry.fresh_until:
                    assert entry.fresh_until == self.model[entry.key].expires
                    assert entry.kept_until == self.model[entry.key].kept_until


TestStoreBesideDict = StoreBesideDict.TestCase
TestStoreBesideDict.settings = settings(max_examples=100, stateful_step_count=40)
