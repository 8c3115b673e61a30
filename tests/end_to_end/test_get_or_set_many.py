"""One call of a bulk factory for what is missing, and no key loaded twice."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from bi_performance.drivers import sleep
from bi_performance.optimizer import PerformanceOptimizer
from support.callers import here, running, there
from support.daemon import wait_until

__all__ = ["here", "running", "there"]
TTL = 30.0
"""Of the leases: that no key is loaded twice must not depend on how busy the machine is."""


@pytest.fixture
def two(here: PerformanceOptimizer, there: PerformanceOptimizer) -> list[PerformanceOptimizer]:
    return [here, there]


def doubled(keys: list[Any]) -> dict[Any, Any]:
    return {key: key * 2 for key in keys}


def test_only_what_is_missing_is_asked_for(two: list[PerformanceOptimizer]) -> None:
    cache = two[0].sync.cache
    cache.set("a", "there")
    asked: list[list[Any]] = []

    def load(keys: list[Any]) -> dict[Any, Any]:
        asked.append(keys)
        return doubled(keys)

    wanted = {"a": "there", "b": "bb", b"c": b"cc"}
    assert cache.get_or_set_many(["a", "b", b"c", "b"], load, ttl=60) == wanted
    assert cache.get_or_set_many(["a", "b", b"c"], load) == wanted
    assert asked == [["b", b"c"]]
    ttl = cache.get_entry("b").ttl
    assert ttl is not None and 58 < ttl <= 60
    assert cache.get_or_set_many([], load) == {}


@pytest.mark.parametrize("run", [asyncio.run, trio.run])
def test_many_callers_with_overlapping_keys_load_each_key_once(
    two: list[PerformanceOptimizer], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one loop and in two processes, in whichever order they name them."""
    monkeypatch.setattr("bi_performance.keeper.ANSWER_WITHIN", 30.0)
    asked: list[Any] = []
    keys = [f"k{number}" for number in range(300)]

    async def load(missing: list[Any]) -> dict[Any, Any]:
        asked.extend(missing)
        await sleep(0.05)
        return doubled(missing)

    async def call(number: int) -> None:
        mine = keys[number * 20 :: 1 if number % 2 else -1] or keys
        found = await two[number % 2].cache.get_or_set_many(mine, load, ttl=60)
        assert found == doubled(mine)

    async def in_asyncio() -> None:
        await asyncio.gather(*(call(number) for number in range(8)))

    async def in_trio() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(call, number)

    # One takes a coroutine, the other a function.
    trio.run(in_trio) if run is trio.run else asyncio.run(in_asyncio())
    assert sorted(asked) == sorted(set(asked))
    assert two[0].sync.cache.get_many(keys) == {key: key * 2 for key in asked}


def test_a_key_that_is_loaded_alone_is_waited_for(two: list[PerformanceOptimizer]) -> None:
    began, go = threading.Event(), threading.Event()

    def slow() -> str:
        began.set()
        go.wait(10)
        return "alone"

    first = threading.Thread(target=two[0].sync.cache.get_or_set, args=("a", slow))
    first.start()
    assert began.wait(10)
    found: list[Any] = []
    others = [
        threading.Thread(
            target=lambda one=one: found.append(one.sync.cache.get_or_set_many(["a", "b"], doubled))
        )
        for one in two
    ]
    for other in others:
        other.start()
    wait_until(lambda: two[1].sync.cache.get("b") == "bb", what="the load of the other key")
    go.set()
    for thread in (first, *others):
        thread.join(10)
    assert found == [{"a": "alone", "b": "bb"}] * 2


def test_a_bulk_factory_that_fails_or_gives_no_mapping_holds_nothing(
    two: list[PerformanceOptimizer],
) -> None:
    cache = two[0].sync.cache

    def fail(keys: list[Any]) -> Any:
        raise OSError("no route")

    with pytest.raises(OSError, match="no route"):
        cache.get_or_set_many(["a", "b"], fail)
    with pytest.raises(TypeError, match="returns a mapping"):
        cache.get_or_set_many(["a", "b"], lambda keys: keys)
    with pytest.raises(TypeError, match="object cannot be stored"):
        cache.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, object()))
    with pytest.raises(TypeError, match="not one key"):
        cache.get_or_set_many("ab", doubled)
    assert two[1].sync.cache.get_or_set_many(["a", "b"], doubled) == {"a": "aa", "b": "bb"}


def test_keys_without_a_value_are_left_out_or_kept_as_none(two: list[PerformanceOptimizer]) -> None:
    cache = two[0].sync.cache
    asked: list[Any] = []

    def load(keys: list[Any]) -> dict[Any, Any]:
        asked.append(list(keys))
        return {"a": 1, "unasked": 2}

    assert cache.get_or_set_many(["a", "b"], load) == {"a": 1}
    assert cache.get_or_set_many(["a", "b"], load, negative_ttl=60) == {"a": 1, "b": None}
    assert cache.get_or_set_many(["a", "b"], load) == {"a": 1, "b": None}
    assert asked == [["a", "b"], ["b"]]
    assert cache.get("unasked") is None


def test_without_a_daemon_all_are_loaded(tmp_path: Path) -> None:
    alone = PerformanceOptimizer(str(tmp_path / "none.sock"))
    assert alone.sync.cache.get_or_set_many(["a", "b"], doubled) == {"a": "aa", "b": "bb"}
    alone.close()


def test_a_factory_may_load_many_and_they_are_kept(two: list[PerformanceOptimizer]) -> None:
    cache = two[0].sync.cache
    found = cache.get_or_set("sum", lambda: cache.get_or_set_many(["a", "sum"], doubled))
    assert found == {"a": "aa", "sum": "sumsum"}
    assert cache.get("a") == "aa" and cache.get("sum") == found


def test_what_is_deleted_while_it_is_loaded_is_not_stored(two: list[PerformanceOptimizer]) -> None:
    def load(keys: list[Any]) -> dict[Any, Any]:
        two[1].sync.cache.delete("a")
        return doubled(keys)

    assert two[0].sync.cache.get_or_set_many(["a", "b"], load) == {"a": "aa", "b": "bb"}
    assert two[0].sync.cache.get_many(["a", "b"]) == {"b": "bb"}


def test_who_waits_for_a_key_beside_loads_of_its_own_holds_up_nobody(
    two: list[PerformanceOptimizer],
) -> None:
    """When the one that loads it is cancelled, another caller does, whoever joined before."""
    cache = two[0].cache
    asked: list[list[Any]] = []

    async def work() -> None:
        begun, go = asyncio.Event(), asyncio.Event()

        async def hang() -> None:
            begun.set()
            await sleep(1000)

        async def bulk(keys: list[Any]) -> dict[Any, Any]:
            asked.append(keys)
            await go.wait()
            return doubled(keys)

        async def quick() -> str:
            return "quick"

        async def until(condition: Any) -> None:
            await asyncio.to_thread(wait_until, condition)

        def joined(count: int) -> bool:
            flight = two[0].cache._loader.flights._flights.get(b"a")
            return flight is not None and len(flight.joiners) == count

        first = asyncio.create_task(cache.get_or_set("a", hang, 60))
        await begun.wait()
        many = asyncio.create_task(cache.get_or_set_many(["a", "b"], bulk, 60))
        await until(lambda: joined(1) and asked)
        other = asyncio.create_task(cache.get_or_set("a", quick, 60))
        await until(lambda: joined(2))
        first.cancel()
        assert await other == "quick", "though the bulk factory has not ended"
        go.set()
        assert await many == {"a": "quick", "b": "bb"}

    asyncio.run(asyncio.wait_for(work(), 20))
    assert asked == [["b"]]
