"""Namespaces with quotas: whose entries leave, and for whom."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_performance_wire.tenants import check_tenant, pattern_of, prefix_of, tenant_of
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.patterns import matcher
from bi_performanced.cache.recovery import copy_entries, recover, settle
from bi_performanced.cache.store import Store
from bi_performanced.cache.tenants import CHANCES, Hashes, OverQuota, TenantStore, make_store
from bi_performanced.config.tenants import Quota, quotas_of

NOW = 1_000_000_000
LATER = 1 << 62
KIB = 1 << 10
QUOTAS = {b"shop": Quota(200 * KIB), b"news": Quota(100 * KIB, 50)}


def new_store(entries: int = 2_000, size: int = 1 << 20, path: Path | None = None) -> TenantStore:
    return TenantStore(Memory.create(path, entries, size, epoch=1), QUOTAS)


def key(tenant: str, n: int) -> bytes:
    return (prefix_of(tenant) if tenant else b"") + b"key-%d" % n


def put(store: Store, tenant: str, n: int, size: int = 900) -> None:
    store.put(key(tenant, n), bytes(size), expires=LATER, now=NOW)


def there(store: Store, tenant: str, count: int) -> int:
    return sum(store.get(key(tenant, n), NOW) is not None for n in range(count))


def check_books(store: TenantStore) -> None:
    """What the accounts say is what is in the store."""
    entries: Counter[bytes] = Counter()
    size: Counter[bytes] = Counter()
    found, at = store.sweep(0, 1 << 30)
    assert at == 0
    for each in found:
        entries[tenant_of(each.key)] += 1
        size[tenant_of(each.key)] += store._size(each.place)
    for name, account in store.accounts.items():
        assert (account.entries, account.bytes) == (entries[name], size[name])
        assert len(account.queue) <= 2 * account.entries + 2 * CHANCES + 2
    assert sum(entries.values()) == store.entries


def test_one_at_its_quota_lets_its_own_entries_leave() -> None:
    store = new_store()
    for n in range(50):
        put(store, "news", n)
        put(store, "", n)
    before = there(store, "news", 50)
    for n in range(1_000):
        put(store, "shop", n)
    assert 190 * KIB < store.accounts[b"shop"].bytes <= 200 * KIB
    assert there(store, "news", 50) == before == 50
    assert there(store, "", 50) == 50
    assert store.accounts[b"shop"].evictions == 1_000 - store.accounts[b"shop"].entries
    check_books(store)


def test_a_quota_of_entries_holds_too() -> None:
    store = new_store()
    for n in range(300):
        put(store, "news", n, 10)
    assert store.accounts[b"news"].entries == 50
    # The one that is asked for stays.
    for n in range(300, 400):
        put(store, "news", n, 10)
        store.get(key("news", 300), NOW)
    assert store.get(key("news", 300), NOW) is not None
    check_books(store)


def test_who_is_within_its_quota_makes_way_for_nobody() -> None:
    store = new_store()
    for n in range(40):
        put(store, "news", n)
    for n in range(200):
        put(store, "shop", n)
    for n in range(5_000):
        put(store, "", n)
        put(store, "guest", n)
    assert there(store, "news", 40) == 40
    assert there(store, "shop", 200) == 200
    assert store.entries > 800, "the others have what is left"
    check_books(store)


def test_a_value_larger_than_its_quota_is_refused_and_nobody_leaves() -> None:
    store = new_store(size=16 << 20)
    put(store, "news", 1)
    with pytest.raises(OverQuota) as caught:
        put(store, "news", 2, 200 * KIB)
    limit = caught.value.limit
    assert store.entries == 1
    put(store, "news", 2, limit)
    with pytest.raises(OverQuota):
        put(store, "news", 2, limit + 1)
    check_books(store)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32))
def test_the_books_are_right_whatever_is_done(seed: int) -> None:
    rng = random.Random(seed)
    store = new_store(600, 600 * KIB)
    tenants = ("", "shop", "news", "guest")
    for step in range(1_500):
        tenant, n = rng.choice(tenants), rng.randrange(400)
        chance = rng.random()
        if chance < 0.7:
            put(store, tenant, n, rng.choice((10, 300, 900, 3_000)))
        elif chance < 0.8:
            store.delete(key(tenant, n), NOW)
        elif chance < 0.98:
            store.get(key(tenant, n), NOW)
        elif chance < 0.99 and step % 7 == 0:
            store.clear()
        for name, quota in QUOTAS.items():
            account = store.accounts[name]
            assert account.bytes <= quota.max_bytes
            assert account.entries <= (quota.max_entries or 600)
    check_books(store)
    store.close()


def test_the_books_are_kept_over_a_restart_and_a_move(tmp_path: Path) -> None:
    store = new_store(path=tmp_path / "store")
    for n in range(300):
        put(store, "shop", n)
        put(store, "", n)
    books = {name: (each.entries, each.bytes) for name, each in store.accounts.items()}
    store.close()
    again = TenantStore(Memory.adopt(tmp_path / "store"), QUOTAS)
    recover(again, NOW)
    assert {name: (each.entries, each.bytes) for name, each in again.accounts.items()} == books
    check_books(again)
    target = new_store(4_000, 2 << 20)
    again.journal = set()
    for _ in copy_entries(again, target, NOW):
        pass
    put(again, "news", 1)
    for _ in settle(again, target, again.journal, NOW):
        pass
    check_books(target)
    assert target.accounts[b"shop"].bytes == again.accounts[b"shop"].bytes
    # From here on the quota holds as before.
    for n in range(300, 600):
        put(target, "shop", n)
    assert target.accounts[b"shop"].bytes <= 200 * KIB
    check_books(target)


def test_without_quotas_a_store_knows_of_no_namespaces() -> None:
    assert type(make_store(Memory.create(None, 10, 1 << 20, epoch=1), {})) is Store
    assert type(make_store(Memory.create(None, 10, 1 << 20, epoch=1), QUOTAS)) is TenantStore


def test_names_that_clients_make_up_are_bounded() -> None:
    store = new_store(5_000, 4 << 20)
    for n in range(1_000):
        put(store, f"made-up-{n}", 1, 10)
    assert len(store.accounts) < 300
    assert store.entries == 1_000


def test_a_queue_of_hashes_gives_them_back_in_their_order() -> None:
    queue = Hashes()
    expected = []
    rng = random.Random(1)
    taken = 0
    for n in range(20_000):
        queue.append(n)
        if rng.random() < 0.8:
            expected.append(queue.pop())
            taken += 1
    assert expected == list(range(taken))
    assert len(queue) == 20_000 - taken


def test_quotas_are_read_as_they_are_written() -> None:
    found = quotas_of(["shop=64 MiB", "news = 1048576/5000", "a.b-c_1=128KiB / 7"])
    assert found == {
        b"shop": Quota(64 << 20),
        b"news": Quota(1 << 20, 5_000),
        b"a.b-c_1": Quota(128 * KIB, 7),
    }
    for wrong in (
        "shop",
        "shop=",
        "shop=1 MB",
        "=64MiB",
        "sh op=64MiB",
        "shop=1KiB",
        "shop=1MiB/0",
    ):
        with pytest.raises(ValueError):
            quotas_of([wrong])
    with pytest.raises(ValueError, match="shop has two"):
        quotas_of(["shop=1MiB", "shop=2MiB"])


def test_a_pattern_of_a_namespace_matches_what_it_would_without() -> None:
    names = [b"page:1", b"page:22", b"a\\b", b"x[1]", b"price", b"page:1:price"]
    for pattern in (None, "page", "page:?", "*price", "a\\b", "x\\[1\\]*", "[p]*", "p"):
        plain, within = matcher(pattern), matcher(pattern_of("shop", pattern))
        for name in names:
            assert within(prefix_of("shop") + name) is plain(name), (pattern, name)
            assert not within(name)
            assert not within(prefix_of("shop2") + name)
            assert not within(prefix_of("news") + prefix_of("shop") + name)


def test_the_namespace_of_a_key_is_told_from_how_it_begins() -> None:
    assert tenant_of(prefix_of("shop") + b"key") == b"shop"
    assert (
        tenant_of(b"key") == tenant_of(b"") == tenant_of(b"\x1f") == tenant_of(b"\x1f\x1fa") == b""
    )
    assert tenant_of(b"\x1f" + b"a" * 40 + b"\x1f") == b""
    for wrong in ("", "a b", "ä", "a" * 33, "-a", "a\x1f"):
        with pytest.raises(ValueError, match="a namespace has"):
            check_tenant(wrong)
