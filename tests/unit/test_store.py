"""The store keeps its promises about limits, places and policy."""

from __future__ import annotations

import errno
import random
import subprocess
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

import pytest

from bi_performance_wire import layout as L
from bi_performance_wire.errors import WireError
from bi_performanced.cache import memory
from bi_performanced.cache.memory import Geometry, Memory
from bi_performanced.cache.recovery import copy_entries, recover, settle
from bi_performanced.cache.store import Store, TooLarge

NOW = 1_000_000_000
LATER = 1 << 62


def new_store(max_entries: int = 100, max_bytes: int = 1 << 20, path: Path | None = None) -> Store:
    return Store(Memory.create(path, max_entries, max_bytes, epoch=1))


def put(store: Store, key: bytes, payload: bytes = b"value", *, expires: int = LATER) -> None:
    store.put(key, payload, expires=expires, now=NOW)


def test_a_value_is_read_until_it_expires() -> None:
    store = new_store()
    put(store, b"key", b"value", expires=NOW + 10)
    held = store.get(b"key", NOW)
    assert held is not None and (held.payload, held.fresh_until) == (b"value", NOW + 10)
    assert held.created == NOW // L.CREATED_UNIT_NS
    assert store.get(b"key", NOW + 9) is not None
    assert store.get(b"key", NOW + 10) is None


def test_the_largest_payload_is_stored_and_one_byte_more_is_refused_with_the_limit() -> None:
    store = new_store()
    limit = store.max_record - L.RECORD_OVERHEAD - len(b"key")
    put(store, b"key", b"-" * (limit - 1))
    put(store, b"key", b"+" * limit)
    with pytest.raises(TooLarge) as caught:
        put(store, b"key", b"!" * (limit + 1))
    assert caught.value.limit == limit
    found = store.get(b"key", NOW)
    assert found is not None and found[0] == b"+" * limit, "the refused value changed nothing"


@pytest.mark.parametrize("size", [1, 40, 3000, 60_000])
def test_neither_limit_is_exceeded_whatever_the_sizes(size: int) -> None:
    store = new_store(max_entries=50, max_bytes=1 << 20)
    rng = random.Random(size)
    for n in range(2000):
        put(store, b"%d" % rng.randrange(400), rng.randbytes(rng.randint(1, size)))
        assert store.entries <= 50
        assert store.live_bytes <= 1 << 20
        if n % 7 == 0:
            store.get(b"%d" % rng.randrange(400), NOW)
    assert store.counters.evictions


def test_a_live_entry_is_never_evicted_while_both_limits_leave_room() -> None:
    """Half the writes go to few keys; the many others are read back, all of them."""
    store = new_store(max_entries=4000, max_bytes=4 << 20)
    rng = random.Random(1)
    for n in range(3000):
        put(store, b"cold-%d" % n, b"c" * 1000)
    for n in range(60_000):
        put(store, b"hot-%d" % rng.randrange(100), b"%d" % n * 150)
    assert store.counters.evictions == 0
    assert store.counters.moves > 0, "the rings came round"
    assert all(store.get(b"cold-%d" % n, NOW) for n in range(3000))


def test_write_churn_costs_less_than_a_point_of_hit_ratio_beside_a_dict() -> None:
    """DESIGN's gate: half the traffic rewrites 100 of 16,100 keys; entries bound, then bytes."""
    ratios = []
    policies: tuple[_StoreCache | _DictS3Fifo, ...]
    policies = (_StoreCache(10_000, 10_000 * 1070, rule=1), _DictS3Fifo(10_000))
    for policy in policies:
        rng = random.Random(7)
        hits = reads = 0
        for _ in range(250_000):
            if rng.random() < 0.5:
                policy.put(b"rewritten-%d" % rng.randrange(100))
            else:
                key = b"read-%d" % min(15_999, int(rng.paretovariate(0.6)))
                reads += 1
                if policy.get(key):
                    hits += 1
                else:
                    policy.put(key)
        ratios.append(hits / reads)
    assert ratios[0] >= ratios[1] - 0.01, ratios


@pytest.mark.parametrize("capacity", [100, 1000])
def test_the_hit_ratio_is_that_of_s3_fifo_over_a_dict(capacity: int) -> None:
    rng = random.Random(capacity)
    both: tuple[_StoreCache | _DictS3Fifo, ...]
    both = (_StoreCache(capacity, 64 << 20, rule=1), _DictS3Fifo(capacity))
    hits = [0, 0]
    requests = 60_000
    for n in range(requests):
        # Popular keys, and scans between them.
        key = b"%d" % (int(rng.paretovariate(0.7)) if n % 5000 < 4000 else 1_000_000 + n)
        for which in (0, 1):
            if both[which].get(key):
                hits[which] += 1
            else:
                both[which].put(key)
    assert hits[1] > requests // 10
    assert abs(hits[0] - hits[1]) / requests < 0.01, hits


def test_a_full_index_neighbourhood_costs_an_entry_and_nothing_else() -> None:
    store = new_store(max_entries=1000)
    index = store.index
    # More keys of one home slot than the distance field can tell apart.
    digests = [
        base - base % index.slots + 5
        for base in (n << L.FINGERPRINT_SHIFT | 1 << 30 for n in range(80))
    ]
    lost = [index.insert(digest, n + 1, 0) for n, digest in enumerate(digests)]
    gone = {place for place in lost if place is not None}
    assert len(gone) == 80 - L.MAX_DISTANCE
    found = [index.find_place(digest, n + 1) for n, digest in enumerate(digests)]
    assert {n + 1 for n, slot in enumerate(found) if slot < 0} == gone
    for n, digest in enumerate(digests):
        if n + 1 not in gone:
            index.remove(index.find_place(digest, n + 1))
    assert not any(index.cells), "every slot is empty again"


def test_a_copy_under_changes_ends_with_the_source_s_entries_and_order() -> None:
    rng = random.Random(3)
    source = new_store(300, 1 << 20)
    target = new_store(600, 2 << 20)
    for _ in range(500):
        put(source, b"%d" % rng.randrange(400), rng.randbytes(rng.randint(1, 500)))
    source.journal = set()
    for n, _ in enumerate(copy_entries(source, target, NOW)):
        for _ in range(50):
            key = b"%d" % rng.randrange(400)
            if rng.random() < 0.3:
                source.delete(key, NOW)
            else:
                put(source, key, b"new-%d" % n)
    list(settle(source, target, source.journal or (), NOW))
    for n in range(400):
        assert source.get(b"%d" % n, NOW) == target.get(b"%d" % n, NOW)
    assert source.entries == target.entries
    assert source.live_bytes == target.live_bytes


def test_a_restart_keeps_entries_lifetimes_and_sequence(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = new_store(path=path)
    for n in range(50):
        put(store, b"%d" % n, b"v%d" % n, expires=NOW + 1000 * n)
    sequence = store.sequence
    store.close()
    again = Store(Memory.adopt(path))
    assert recover(again, NOW + 10_000) == 39, "those that expired meanwhile are gone"
    found = again.get(b"40", NOW + 10_000)
    assert found is not None and found[:2] == (b"v40", NOW + 40_000)
    assert again.sequence == sequence
    again.close()


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (0, b"\0" * 8, "format"),
        (8 * L.W_BOOT_ID, b"\1" * 16, "boot"),
        (8 * L.W_SLOTS, b"\xff" * 8, "overlap"),
        (8 * L.W_MAIN_HEAD, b"\xff" * 8, "pointers"),
        (8 * L.W_MAX_RECORD, b"\0" * 8, "largest"),
        (8 * L.W_MAX_BYTES, b"\0" * 8, "limits"),
    ],
)
def test_a_store_that_cannot_be_ours_is_refused_with_the_reason(
    tmp_path: Path, offset: int, data: bytes, reason: str
) -> None:
    path = tmp_path / "store"
    new_store(path=path).close()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    with pytest.raises(L.LayoutError, match=reason):
        Memory.adopt(path)


def test_a_truncated_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    new_store(path=path).close()
    size = path.stat().st_size
    for keep in (size - 1, L.PAGE, 100, 0):
        with path.open("r+b") as file:
            file.truncate(keep)
        with pytest.raises(L.LayoutError, match="shorter"):
            Memory.adopt(path)


def test_a_boot_id_that_is_hidden_is_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a systemd unit with ProcSubset=pid hides it."""
    path = tmp_path / "store"
    Memory.create(path, 100, 1 << 20, epoch=1).close()
    monkeypatch.setattr(memory, "BOOT_ID", tmp_path / "boot_id")
    acts: list[Callable[[], Memory]] = [
        lambda: Memory.adopt(path),
        lambda: Memory.create(tmp_path / "new", 100, 1 << 20, epoch=1),
    ]
    for act in acts:
        with pytest.raises(WireError, match=r"boot_id.*cannot be read: No such file") as caught:
            act()
        assert caught.value.field is None and "ProcSubset" in str(caught.value.hint)
    assert not (tmp_path / "new").exists()


@pytest.mark.root
def test_a_full_file_system_is_an_error_at_creation_and_leaves_nothing(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)],
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs root: {done.stderr.strip()}")
    try:
        with pytest.raises(OSError) as caught:
            Memory.create(mount / "store", 1000, 4 << 20, epoch=1)
        assert caught.value.errno == errno.ENOSPC
        assert not list(mount.iterdir())
        Memory.create(mount / "store", 1000, 1 << 20, epoch=1).close()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_the_geometry_holds_the_limits_with_room_to_spare() -> None:
    for max_bytes in (1 << 20, 32 << 20, 256 << 20):
        parts = Geometry.for_limits(10_000, max_bytes)
        assert parts.main_bytes >= max_bytes * 1.3
        assert parts.slots * 0.76 >= 9_999
        assert parts.max_record < 1 << 24


class _StoreCache:
    def __init__(self, max_entries: int, max_bytes: int, *, rule: int | None = None) -> None:
        """With a `rule` the store goes by that one whatever it finds."""
        self._store = new_store(max_entries, max_bytes)
        if rule is not None:
            policy = self._store.policy
            policy._go_by(rule, 0)
            policy._go_by = lambda at, sequence: None  # type: ignore[method-assign] # it stays

    def get(self, key: bytes) -> bool:
        return self._store.get(key, NOW) is not None

    def put(self, key: bytes) -> None:
        put(self._store, key, b"x" * 1000)


class _DictS3Fifo:
    """The paper's algorithm in the plainest form: what the store is held against."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._small: deque[bytes] = deque()
        self._main: deque[bytes] = deque()
        self._uses: dict[bytes, int] = {}
        self._ghost: OrderedDict[bytes, None] = OrderedDict()
        self._filling = True

    def get(self, key: bytes) -> bool:
        if key in self._uses:
            self._uses[key] = min(3, self._uses[key] + 1)
            return True
        return False

    def put(self, key: bytes) -> None:
        if self.get(key):
            return
        while len(self._uses) >= self._capacity:
            self._filling = False
            self._evict()
        crowded = self._filling and len(self._small) > self._capacity // 10
        if key in self._ghost or crowded:
            self._ghost.pop(key, None)
            self._main.append(key)
        else:
            self._small.append(key)
        self._uses[key] = 0

    def _evict(self) -> None:
        while len(self._small) > self._capacity // 10 or not self._main:
            key = self._small.popleft()
            if self._uses[key] >= 2:
                self._uses[key] = 0
                self._main.append(key)
                continue
            del self._uses[key]
            self._ghost[key] = None
            if len(self._ghost) > self._capacity:
                self._ghost.popitem(last=False)
            return
        while True:
            key = self._main.popleft()
            if not self._uses[key]:
                del self._uses[key]
                return
            self._uses[key] -= 1
            self._main.append(key)


def test_what_is_stored_over_an_expired_entry_is_as_old_as_itself() -> None:
    store = new_store()
    put(store, b"key", expires=NOW + 1)
    store.put(b"key", b"new", expires=LATER, now=NOW + 60 * 10**9)
    held = store.get(b"key", NOW + 60 * 10**9)
    assert held is not None
    assert held.created == (NOW + 60 * 10**9) // L.CREATED_UNIT_NS
