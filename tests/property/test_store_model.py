"""The store beside a dict with lifetimes: any sequence of operations, restarts and resizes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bi_performanced.cache.memory import Memory
from bi_performanced.cache.recovery import recover
from bi_performanced.cache.store import Store

KEYS = st.sampled_from([b"k%d" % n for n in range(12)])
VALUES = st.binary(min_size=1, max_size=400)


class StoreBesideDict(RuleBasedStateMachine):
    """Within its limits the store is a dict; beyond them it may forget, never misremember."""

    @initialize(capacity=st.sampled_from([4, 8, 100]))
    def make(self, capacity: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store"
        Memory.create(self.path, capacity, 1 << 20, epoch=1).close()
        self.store = Store(Memory.adopt(self.path))
        self.capacity = capacity
        self.now = 10**9
        self.model: dict[bytes, tuple[bytes, int]] = {}
        self.evicted = False

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    @rule(key=KEYS, value=VALUES, ttl=st.integers(1, 50))
    def put(self, key: bytes, value: bytes, ttl: int) -> None:
        expires = self.now + ttl * 10**9
        self.store.put(key, value, expires=expires, now=self.now)
        self.model[key] = value, expires
        found = self.store.get(key, self.now)
        assert found is not None and found[0] == value

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        found = self.store.get(key, self.now)
        wanted = self.model.get(key)
        if wanted is None or wanted[1] <= self.now:
            assert found is None
        elif found is not None:
            assert (found[0], found[1]) == wanted
        else:
            assert self.store.counters.evictions or self.evicted

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        readable = self.store.get(key, self.now) is not None
        assert self.store.delete(key, self.now) == readable
        self.model.pop(key, None)
        assert self.store.get(key, self.now) is None

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.model.clear()
        assert self.store.entries == 0

    @rule(seconds=st.integers(1, 30))
    def wait(self, seconds: int) -> None:
        self.now += seconds * 10**9

    @rule()
    def restart(self) -> None:
        """As after kill -9: what the new daemon finds is the file alone."""
        self.evicted |= self.store.counters.evictions > 0
        self.store.close()
        self.store = Store(Memory.adopt(self.path))
        recover(self.store, self.now)

    @invariant()
    def limits_hold(self) -> None:
        if hasattr(self, "store"):
            assert self.store.entries <= self.capacity
            assert self.store.live_bytes <= self.store.max_bytes
            found, at = self.store.sweep(0, 1 << 20)
            assert at == 0
            for entry in found:
                assert entry.expires == self.model[entry.key][1]


TestStoreBesideDict = StoreBesideDict.TestCase
TestStoreBesideDict.settings = settings(max_examples=60, stateful_step_count=40)
