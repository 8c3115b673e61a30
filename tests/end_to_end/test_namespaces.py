"""Namespaces of one cache: their own keys, tags, clears and quotas, through a real daemon."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio

from bi_performance import LoadContext, LoadTimeout
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance_ctl.render import metrics
from support.callers import attached
from support.daemon import DaemonProcess, wait_until

CONFIG = """\
[performance.cache]
tenants = ["shop=256 KiB", "news=128 KiB/50"]
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "performance.toml").write_text(CONFIG)
    with DaemonProcess(folder, "--config", str(folder / "performance.toml")) as running:
        yield running


@pytest.fixture
def optimizer(daemon: DaemonProcess) -> Iterator[PerformanceOptimizer]:
    made = attached(daemon)
    wait_until(lambda: made.sync.cache.clear() is not None, what="an empty cache")
    yield made
    made.close()


def test_keys_of_one_namespace_are_not_met_in_another(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    shop, news = cache.namespace("shop"), cache.namespace("news")
    for where, value in ((cache, "plain"), (shop, "shop"), (news, "news")):
        assert where.set("page", value)
    assert (cache.get("page"), shop.get("page"), news.get("page")) == ("plain", "shop", "news")
    assert shop.set_many([("a", 1), (b"b", 2), ("\xe4", 3)]) == 3
    assert shop.get_many(["a", b"b", "\xe4", "c"]) == {"a": 1, b"b": 2, "\xe4": 3}
    assert sorted(map(str, shop.keys() or ())) == ["a", "b", "page", "\xe4"]
    assert news.keys() == ["page"]
    assert shop.keys("pa") == shop.keys("p*") == ["page"]
    assert news.get("a") is None and cache.get("a") is None
    assert shop.delete("page")
    assert (cache.get("page"), shop.get("page"), news.get("page")) == ("plain", None, "news")
    assert shop.seen("x") is False
    assert (shop.seen("x"), news.seen("x"), cache.seen("x")) == (True, False, False)
    entry = shop.get_entry("a")
    assert (entry.found, entry.value) == (True, 1)


def test_a_clear_is_of_its_namespace_alone(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    shop, news = cache.namespace("shop"), cache.namespace("news")
    items = {"page:1": 1, "page:2": 2, "price": 3}
    for store in (cache.set_many, shop.set_many, news.set_many):
        store(items, tags=["site"])
    assert shop.clear("page", dry_run=True) == 2
    assert shop.clear("page:?") == 2
    assert shop.keys() == ["price"]
    assert shop.clear(tags=["site"]) == 1
    assert shop.keys() == []
    assert cache.get_many(items) == news.get_many(items) == items
    assert news.clear() == 3
    assert len(cache.keys() or ()) == 3


def test_values_are_loaded_within_a_namespace(optimizer: PerformanceOptimizer) -> None:
    async def main() -> None:
        shop = optimizer.cache.namespace("shop")
        assert await shop.get_or_set("key", lambda: "shop", tags=["t"]) == "shop"
        assert await optimizer.cache.get_or_set("key", lambda: "plain") == "plain"
        assert await shop.get("key") == "shop"
        asked: list[object] = []

        async def load(missing: list[str | bytes]) -> dict[str | bytes, str]:
            asked.extend(missing)
            return {each: f"loaded {each!r}" for each in missing}

        assert await shop.get_or_set_many(["key", "other", b"raw"], load) == {
            "key": "shop",
            "other": "loaded 'other'",
            b"raw": "loaded b'raw'",
        }
        assert asked == ["other", b"raw"]
        assert await shop.refresh("key", lambda: "anew", tags=["t"]) == "anew"
        assert await shop.clear(tags=["t"]) == 1
        assert await shop.get("key") is None
        assert await optimizer.cache.get("key") == "plain"
        assert await shop.seen("x") is False and await shop.seen("x") is True
        await optimizer.aclose()

    trio.run(main)


def test_a_bulk_factory_of_a_namespace_is_one_of_the_cache(optimizer: PerformanceOptimizer) -> None:
    async def many(missing: list[str | bytes]) -> dict[str | bytes, int]:
        return {each: len(missing) for each in missing}

    async def main() -> None:
        for where in (optimizer.cache, optimizer.cache.namespace("shop")):
            factories = (
                many,
                lambda missing: many(missing),
                lambda missing: dict.fromkeys(missing, 2),
            )
            for number, factory in enumerate(factories):
                keys: list[str | bytes] = [f"{number} a", f"{number} b".encode()]
                assert await where.get_or_set_many(keys, factory, 60) == dict.fromkeys(keys, 2)
                assert await where.get_many(keys) == dict.fromkeys(keys, 2)
            with pytest.raises(TypeError, match="returns a mapping of keys and values, not list"):
                await where.get_or_set_many(["c"], lambda missing: [("c", 1)])
            with pytest.raises(TypeError, match="keys is a list of keys, not one key"):
                await where.get_or_set_many("c", many)

    trio.run(main)
    shop = optimizer.sync.cache.namespace("shop")
    with pytest.raises(TypeError, match="needs the cache with await"):
        shop.get_or_set_many(["d"], lambda missing: many(missing))
    assert shop.get_or_set_many(["0 a", "d"], lambda missing: {missing[0]: 5}) == {"0 a": 2, "d": 5}


def test_a_factory_knows_its_key_as_the_namespace_has_it(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    for where in (cache, cache.namespace("shop")):
        assert where.get_or_set("https://x/1", lambda ctx: ctx.key, 60) == "https://x/1"
        assert where.get_or_set(b"\xff", lambda ctx: ctx.key, 60) == b"\xff"
        assert where.refresh("https://x/1", lambda ctx: [ctx.key], 60) == ["https://x/1"]
        go = threading.Event()
        with pytest.raises(LoadTimeout, match="no value of 'late' within"):
            where.get_or_set("late", go.wait, 60, hard_timeout=0.05)
        go.set()


def test_one_namespace_cannot_push_out_another(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    shop, news = cache.namespace("shop"), cache.namespace("news")
    news.set_many({f"page:{n}": "x" * 900 for n in range(40)})
    cache.set_many({f"page:{n}": "x" * 900 for n in range(40)})
    assert shop.set_many({f"page:{n}": "x" * 900 for n in range(2_000)}) == 2_000
    assert len(news.keys() or ()) == 40
    assert len(shop.keys() or ()) < 300
    assert cache.get("page:1") is not None
    stats = cache.stats() or {}
    figures = stats["levels"]["local"]["namespaces"]
    assert figures["shop"]["max_bytes"] == 256 << 10
    assert figures["shop"]["bytes"] <= 256 << 10
    assert figures["shop"]["evictions"] == 2_000 - figures["shop"]["entries"]
    assert (figures["news"]["entries"], figures["news"]["max_entries"]) == (40, 50)
    assert figures[""]["entries"] == 40
    rows = dict(metrics.cache(stats))
    assert rows["namespace shop"].startswith(f"{figures['shop']['entries']} entries, 2")
    assert "of 256.0 KiB" in rows["namespace shop"] or "of 256 KiB" in rows["namespace shop"]


def test_a_value_that_its_quota_has_no_room_for_is_refused(
    optimizer: PerformanceOptimizer, caplog: pytest.LogCaptureFixture
) -> None:
    news = optimizer.sync.cache.namespace("news")
    assert news.set("large", "x" * (200 << 10)) is True, "compressed it is small"
    import os

    assert news.set("large", os.urandom(200 << 10)) is False
    assert "in its namespace the limit is" in caplog.text


def test_what_names_no_namespace_is_said(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    with pytest.raises(ValueError, match="a namespace has 1 to 32"):
        cache.namespace("a b")
    with pytest.raises(TypeError, match="not int"):
        cache.namespace(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a key has 1 to 8186 bytes"):
        cache.namespace("shop").get("k" * 8_190)


def test_tags_that_a_factory_says_are_of_its_namespace(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    shop = cache.namespace("shop")
    seen: list[list[str]] = []

    def load(context: LoadContext) -> str:
        seen.append(list(context.tags))
        context.tags = [*context.tags, "said"]
        seen.append(list(context.tags))
        return "v"

    assert shop.get_or_set("k", load, 60, tags=["given"]) == "v"
    assert seen == [["given"], ["given", "said"]]
    for where, tag, left in (
        (cache, "said", "v"),
        (cache.namespace("news"), "said", "v"),
        (shop, "said", None),
    ):
        where.clear(tags=[tag])
        assert shop.get("k") == left
    assert shop.get_or_set("k", load, 60, tags=["given"]) == "v"
    shop.clear(tags=["given"])
    assert shop.get("k") is None
