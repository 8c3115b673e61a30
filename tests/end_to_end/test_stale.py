"""Never a cliff: stale values while a load goes on or fails, and what a factory may say."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import trio

from bi_performance import LoadTimeout, Options
from bi_performance.drivers import sleep
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.options import is_early, read_meta
from bi_performance.reader import Entry
from bi_performance_wire.extra import Extra
from support.callers import (
    GRACE,
    LOOPS,
    WORLDS,
    here,
    make_stale,
    running,
    there,
    use,
)
from support.daemon import wait_until

__all__ = ["here", "running", "there"]


@WORLDS
def test_a_stale_value_is_served_at_once_while_a_fresh_one_is_loaded(
    here: PerformanceOptimizer, run: Any
) -> None:
    make_stale(here)
    found = use(here, run, lambda: "new")
    assert found.value == "old" and found.stale and found.level == "local"
    assert here.sync.cache.get("k") == "new"
    found = use(here, run, lambda: "newest")
    assert found.value == "new" and not found.stale
    here.sync.cache.delete("k")
    found = use(here, run, lambda: "newest")
    assert found.value == "newest" and found.level == "loaded", "deleted is gone at once"


@WORLDS
def test_a_load_that_fails_is_bridged_by_the_stale_value(
    here: PerformanceOptimizer, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    make_stale(here)

    def fail() -> None:
        raise OSError("no route")

    for soft in (0.0, 5.0, None):
        found = use(here, run, fail, soft_timeout=soft)
        assert found.value == "old" and found.stale
    figures = here.cache.loads()
    assert figures["failed"] == figures["stale_served"] == 3 and not figures["in_background"]
    assert "stale values are served instead (OSError: no route)" in caplog.text
    here.sync.cache.delete("k")
    with pytest.raises(OSError, match="no route"):
        use(here, run, fail)


@WORLDS
def test_the_soft_timeout_is_what_a_caller_waits_for_a_fresh_one(
    here: PerformanceOptimizer, run: Any
) -> None:
    make_stale(here)
    assert use(here, run, lambda: "quick", soft_timeout=10).value == "quick"
    make_stale(here)

    go = threading.Event()

    async def slow() -> str:
        while not go.is_set():
            await sleep(0.001)
        return "slow"

    def slow_in_a_thread() -> str:
        go.wait(10)
        return "slow"

    async def call() -> Any:
        found = await here.cache.get_or_set_entry("k", slow, options=GRACE, soft_timeout=0.02)
        go.set()
        while here._server.background.count:
            await sleep(0.001)
        return found

    if run is None:
        cache = here.sync.cache
        found = cache.get_or_set_entry("k", slow_in_a_thread, options=GRACE, soft_timeout=0.02)
        go.set()
    else:
        found = run(call)
    assert found.value == "old" and found.stale
    wait_until(lambda: here.sync.cache.get("k") == "slow", what="the load in the background")


@WORLDS
def test_after_the_hard_timeout_there_is_a_stale_value_or_a_clear_error(
    here: PerformanceOptimizer, run: Any
) -> None:
    make_stale(here)
    done = threading.Event()

    def hang() -> str:
        done.wait(10)
        return "late"

    async def call() -> None:
        how: Any = {"options": GRACE, "soft_timeout": None, "hard_timeout": 0.05}
        found = await here.cache.get_or_set_entry("k", hang, **how)
        assert found.value == "old" and found.stale
        with pytest.raises(LoadTimeout, match="no value of 'other' within"):
            await here.cache.get_or_set("other", hang, **how)
        done.set()

    if run is not None:
        run(call)
        return
    found = use(here, run, hang, soft_timeout=None, hard_timeout=0.05)
    assert found.value == "old" and found.stale
    done.set()


def test_of_all_who_are_served_stale_one_loads(
    here: PerformanceOptimizer, there: PerformanceOptimizer
) -> None:
    make_stale(here)
    calls: list[int] = []
    go = threading.Event()

    async def call(optimizer: PerformanceOptimizer) -> None:
        def load() -> str:
            calls.append(1)
            go.wait(10)
            return "new"

        entries = await asyncio.gather(
            *(optimizer.cache.get_or_set_entry("k", load, options=GRACE) for _ in range(100))
        )
        assert {(each.value, each.stale) for each in entries} == {("old", True)}

    async def both() -> None:
        await asyncio.gather(call(here), call(there))
        await asyncio.to_thread(wait_until, lambda: calls)
        go.set()
        await asyncio.to_thread(wait_until, lambda: here.sync.cache.get("k") == "new")

    asyncio.run(both())
    assert calls == [1]


def test_after_a_failure_it_is_not_tried_again_for_a_while(here: PerformanceOptimizer) -> None:
    make_stale(here)
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise OSError

    for _ in range(5):
        assert use(here, None, fail, retry_after=60, soft_timeout=None).value == "old"
    assert calls == [1]


def test_without_grace_nothing_stale_is_served(here: PerformanceOptimizer) -> None:
    make_stale(here)
    assert here.sync.cache.get_or_set("k", lambda: "new") == "new"
    make_stale(here)
    assert here.sync.cache.get_or_set("k", lambda: "new", early=1) == "new"


@LOOPS
def test_a_load_in_the_background_ends_with_its_loop_or_its_optimizer(
    here: PerformanceOptimizer, run: Any
) -> None:
    started, ended = threading.Event(), threading.Event()

    async def load() -> None:
        started.set()
        try:
            await sleep(1000)
        finally:
            ended.set()

    async def begin() -> None:
        make_stale(here)
        assert await here.cache.get_or_set("k", load, options=GRACE) == "old"
        while not started.is_set():
            await sleep(0.001)

    run(begin)
    assert ended.is_set() and not here._server.background.count

    async def close() -> None:
        started.clear()
        ended.clear()
        await begin()
        await here.aclose()
        assert ended.is_set()

    run(close)
    assert here.sync.cache.get_or_set("k", lambda: 1, options=GRACE) == "old"


def test_a_value_is_loaded_before_it_expires(here: PerformanceOptimizer) -> None:
    """At the latest when its last load took longer than what is left."""
    calls: list[int] = []

    def load() -> int:
        calls.append(1)
        time.sleep(0.02)
        return len(calls)

    options = Options(ttl=60, early=1e9)
    assert use(here, None, load, options=options).value == 1
    found = use(here, None, load, options=options)
    assert found.value == 1 and not found.stale
    assert here.sync.cache.get("k") == 2, "it was loaded anew in the background"
    assert use(here, None, load, options=Options(ttl=60, early=1)).value == 2
    assert len(calls) == 2, "far from its expiry it is not"


def test_the_chance_of_an_early_load_is_that_of_xfetch() -> None:
    """With a tenth of a second to load, e^-x of the readers load at x tenths before the end."""
    extra = Extra(meta=b"\x81\xa4took\xcb\x3f\xb9\x99\x99\x99\x99\x99\x9a")

    def share(left: float, early: float = 1.0) -> float:
        entry = Entry(None, 0.0, left, False, extra, 1)
        return sum(is_early(entry, Options(early=early)) for _ in range(10_000)) / 10_000

    assert read_meta(Entry(None, 0.0, 1.0, False, extra, 1)).took == 0.1
    assert share(0.1) == pytest.approx(0.368, abs=0.03)
    assert share(0.2) == pytest.approx(0.135, abs=0.03)
    assert share(0.2, early=2.0) == pytest.approx(0.368, abs=0.03)
    assert share(10.0) == 0.0
    for meta in (b"", b"\xc1", b"\x93\x01\x02\x03", b"\x81\xa4took\xa1x"):
        assert not is_early(Entry(None, 0.0, 0.1, False, Extra(meta=meta), 1), Options(early=1))


def test_jitter_shortens_the_ttl_at_random(here: PerformanceOptimizer) -> None:
    for number in range(20):
        here.sync.cache.get_or_set(f"k{number}", lambda: 1, 1000, jitter=0.5)
    ttls = [here.sync.cache.get_entry(f"k{number}").ttl for number in range(20)]
    assert all(ttl is not None and 490 < ttl <= 1000 for ttl in ttls)
    assert len({round(ttl or 0) for ttl in ttls}) > 5


def test_none_is_kept_as_long_as_its_own_ttl_says(here: PerformanceOptimizer) -> None:
    cache = here.sync.cache
    calls: list[int] = []

    def nothing() -> None:
        calls.append(1)

    assert cache.get_or_set("short", nothing, 1000, negative_ttl=5) is None
    ttl = cache.get_entry("short").ttl
    assert ttl is not None and 3 < ttl <= 5
    assert cache.get_or_set("short", nothing, 1000, negative_ttl=5) is None and len(calls) == 1
    for _ in range(2):
        assert cache.get_or_set("never", nothing, 1000, negative_ttl=0) is None
    assert len(calls) == 3 and not cache.get_entry("never").found
    assert cache.get_or_set("any", nothing, 1000) is None
    ttl = cache.get_entry("any").ttl
    assert ttl is not None and ttl > 900


@pytest.mark.parametrize("read", ["get", "get_entry", "get_or_set"])
def test_reads_renew_what_was_stored_with_sliding(here: PerformanceOptimizer, read: str) -> None:
    cache = here.sync.cache
    assert cache.get_or_set("k", lambda: 1, 1.0, sliding=True) == 1
    assert cache.set("still", 1, 1.0)
    began = time.monotonic()
    reads: Any = {
        "get": lambda: cache.get("k"),
        "get_entry": lambda: cache.get_entry("k").value,
        "get_or_set": lambda: cache.get_or_set("k", lambda: 2),
    }

    def is_over() -> bool:
        assert reads[read]() == 1
        return cache.get("still") is None and time.monotonic() > began + 1.1

    wait_until(is_over, what="the end of the other entry")
    entry = cache.get_entry("k")
    assert entry.age is not None and entry.age > 1.0


def test_a_decorated_function_has_the_same_options(here: PerformanceOptimizer) -> None:
    values = iter(range(10))

    @here.cache.cached(options=GRACE, soft_timeout=None)
    def next_value() -> int:
        found = next(values)
        if found == 1:
            raise OSError("no route")
        return found

    assert next_value() == 0
    here.sync.cache.expire(next_value.key())
    assert next_value() == 0, "the load failed, and there is a stale value"
    assert next_value() == 2
    assert next_value() == 2


@WORLDS
@pytest.mark.parametrize("how", ["sync", "async"])
def test_whatever_a_load_in_the_background_raises_its_loop_goes_on(
    here: PerformanceOptimizer, run: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a cancellation of the load itself passes."""
    errors: list[BaseException] = [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        BaseExceptionGroup("several", [KeyboardInterrupt(), OSError()]),
    ]
    make_stale(here)
    for error in errors:

        def fail(error: BaseException = error) -> None:
            raise error

        async def fail_later(error: BaseException = error) -> None:
            await sleep(0)
            raise error

        found = use(here, run, fail if how == "sync" or run is None else fail_later)
        assert found.value == "old" and found.stale
    assert here.cache.loads()["failed"] == len(errors)
    assert "stale values are served instead (SystemExit: 3)" in caplog.text


def test_a_nursery_that_is_cancelled_with_a_failure_in_it_is_both(
    here: PerformanceOptimizer,
) -> None:
    begun = trio.Event()

    async def load() -> None:
        async def fail() -> None:
            try:
                begun.set()
                await trio.sleep_forever()
            finally:
                raise OSError("while it ended")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)

    async def begin() -> None:
        make_stale(here)
        assert await here.cache.get_or_set("k", load, options=GRACE) == "old"
        await begun.wait()
        await here.aclose()

    trio.run(begin)
    assert here.cache.loads()["failed"] == 1
