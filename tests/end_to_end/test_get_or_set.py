"""`get_or_set` from threads, asyncio and trio: who loads, who waits, and what is stored."""

from __future__ import annotations

import os
from typing import Any

import pytest

from bi_performance.drivers import let_others_run
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.options import LoadTimeout, Options
from support.callers import (
    LOOPS,
    TTL,
    WORLDS,
    Caller,
    Calls,
    ask,
    here,
    running,
    there,
    until_joined,
    until_waiting,
)
from support.daemon import DaemonProcess, wait_until

__all__ = ["here", "running", "there"]


@WORLDS
def test_what_is_missing_is_loaded_once_and_kept(here: PerformanceOptimizer, run: Any) -> None:
    value = {"a": (1, 2)}
    assert ask(here, run, lambda: value) is value
    assert ask(here, run, lambda: 0) == value
    assert here.sync.cache.get("k") == value
    entry = here.sync.cache.get_entry("k")
    assert entry.ttl is not None and 58 < entry.ttl <= 60


@LOOPS
def test_factories_may_be_async_in_any_way(here: PerformanceOptimizer, run: Any) -> None:
    async def load(value: int = 1) -> int:
        await let_others_run()
        return value

    class Loads:
        async def __call__(self) -> int:
            return await load(2)

    assert ask(here, run, load, "function") == 1
    assert ask(here, run, Loads(), "object") == 2
    assert ask(here, run, lambda: load(3), "lambda") == 3


def test_an_async_factory_without_a_loop_is_a_mistake(here: PerformanceOptimizer) -> None:
    async def load() -> int:
        return 1

    for factory in (load, lambda: load()):
        with pytest.raises(TypeError, match="with await"):
            here.sync.cache.get_or_set("k", factory)


@WORLDS
def test_waiters_in_this_and_another_process_get_the_value(
    here: PerformanceOptimizer, there: PerformanceOptimizer, run: Any
) -> None:
    calls = Calls([1, 2])
    first = Caller(lambda: ask(here, None, calls))
    assert calls.began.acquire(timeout=10)
    second = Caller(lambda: ask(here, run, calls))
    other = Caller(lambda: ask(there, run, calls))
    until_waiting(here)
    until_joined(here, "k")
    calls.go.release()
    assert first.result() == second.result() == other.result() == [1, 2]
    assert first.result() is not second.result(), "each has a copy of its own"
    assert calls.count == 1


def test_a_factory_may_take_longer_than_a_lease_without_heartbeats(
    here: PerformanceOptimizer, there: PerformanceOptimizer
) -> None:
    calls = Calls(1)
    first = Caller(lambda: ask(here, None, calls))
    other = Caller(lambda: ask(there, None, calls))
    assert calls.began.acquire(timeout=10)
    assert not calls.began.acquire(timeout=2.5 * TTL), "the lease is kept by its heartbeat"
    calls.go.release()
    assert first.result() == other.result() == 1


@WORLDS
def test_a_factory_that_fails_is_its_own_callers_affair(
    here: PerformanceOptimizer, there: PerformanceOptimizer, run: Any
) -> None:
    calls = Calls(OSError("no route"), OSError("again"), "value")
    callers = [Caller(lambda: ask(here, run, calls))]
    assert calls.began.acquire(timeout=10)
    callers.append(Caller(lambda: ask(here, run, calls)))
    until_joined(here, "k")
    callers.append(Caller(lambda: ask(there, run, calls)))
    until_waiting(here)
    for _ in range(3):
        calls.go.release()
    outcomes = [caller.result() for caller in callers]
    assert sorted(str(each) for each in outcomes) == ["again", "no route", "value"]
    assert str(outcomes[0]) == "no route" and calls.count == 3
    assert here.sync.cache.get("k") == "value"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_deletion_while_it_is_loaded_wins(
    here: PerformanceOptimizer, there: PerformanceOptimizer, elsewhere: bool
) -> None:
    calls = Calls("old", "new")
    first = Caller(lambda: ask(here, None, calls))
    assert calls.began.acquire(timeout=10)
    (there if elsewhere else here).sync.cache.delete("k")
    later = Caller(lambda: ask(here, None, calls))
    another = Caller(lambda: ask(there, None, calls))
    until_waiting(here, 1 if elsewhere else 2)
    calls.go.release()
    assert first.result() == "old"
    assert calls.began.acquire(timeout=10)
    assert here.sync.cache.get("k") is None
    calls.go.release()
    assert later.result() == another.result() == "new"
    assert here.sync.cache.get("k") == "new" and calls.count == 2


def test_a_value_that_is_set_meanwhile_is_the_newer_one(
    here: PerformanceOptimizer, there: PerformanceOptimizer
) -> None:
    calls = Calls("loaded")
    first = Caller(lambda: ask(here, None, calls))
    assert calls.began.acquire(timeout=10)
    other = Caller(lambda: ask(there, None, calls))
    until_waiting(here)
    here.sync.cache.set("k", "set")
    assert other.result() == "set", "who waits need not wait any more"
    calls.go.release()
    assert first.result() == "loaded"
    assert here.sync.cache.get("k") == "set" and calls.count == 1


@WORLDS
def test_what_cannot_be_stored_is_returned_and_what_is_no_value_is_a_mistake(
    here: PerformanceOptimizer, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    large = os.urandom(20 << 20)
    assert ask(here, run, lambda: large, "large") is large
    assert here.sync.cache.get("large") is None
    assert "cannot be stored" in caplog.text
    with pytest.raises(TypeError, match="object cannot be stored"):
        ask(here, run, object, "object")
    assert ask(here, run, lambda: 1, "object") == 1, "nothing is held any more"
    with pytest.raises(ValueError, match="1 to 8192 bytes"):
        ask(here, run, lambda: 1, "")


@WORLDS
def test_a_factory_may_load_other_keys_and_even_its_own(
    here: PerformanceOptimizer, run: Any
) -> None:
    cache = here.sync.cache

    def load() -> int:
        inner: int = cache.get_or_set("inner", lambda: 20)
        own: int = cache.get_or_set("k", lambda: 3)
        return inner + own

    assert ask(here, run, load) == 23
    assert cache.get("k") == 23 and cache.get("inner") == 20


def test_in_observe_mode_the_factory_is_always_called(
    running: DaemonProcess, here: PerformanceOptimizer
) -> None:
    observing = PerformanceOptimizer(str(running.socket), mode="observe")
    for number in range(3):
        assert observing.sync.cache.get_or_set("k", lambda number=number: number) == number
    assert observing.cache.observed()["would_have_hit"] == 2
    assert here.sync.cache.get("k") == 2
    off = PerformanceOptimizer(str(running.socket), mode="off")
    assert off.sync.cache.get_or_set("k", lambda: 9) == 9
    assert here.sync.cache.get("k") == 2
    observing.close()
    off.close()


@WORLDS
def test_nobody_waits_longer_than_the_hard_timeout(here: PerformanceOptimizer, run: Any) -> None:
    calls = Calls(1)

    async def call() -> None:
        with pytest.raises(LoadTimeout, match=r"within 0\.05 s"):
            await here.cache.get_or_set("k", calls, hard_timeout=0.05)
        # A loop does not end before its threads.
        calls.go.release()

    if run is not None:
        run(call)
        return
    with pytest.raises(LoadTimeout, match=r"within 0\.05 s"):
        ask(here, run, calls, hard_timeout=0.05)
    calls.go.release()
    wait_until(lambda: here.sync.cache.get("k") == 1, what="the end of the load")


def test_a_refresh_loads_what_is_there_anew(
    here: PerformanceOptimizer, there: PerformanceOptimizer
) -> None:
    here.sync.cache.set("k", 1)
    assert here.sync.cache.refresh("k", lambda: 2) == 2
    assert here.sync.cache.get("k") == 2
    calls = Calls(3)
    first = Caller(lambda: ask(there, None, calls, "slow"))
    assert calls.began.acquire(timeout=10)
    second = Caller(lambda: here.sync.cache.refresh("slow", lambda: 4))
    until_waiting(here)
    calls.go.release()
    assert first.result() == 3
    assert second.result() == 4, "what began before the refresh is not its answer"
    assert here.sync.cache.get("slow") == 4


@pytest.mark.parametrize(
    ("named", "error", "words"),
    [
        ({"grace": -1}, ValueError, "grace"),
        ({"early": "much"}, TypeError, "early"),
        ({"jitter": 1}, ValueError, "jitter"),
        ({"hard_timeout": 0}, ValueError, "hard_timeout"),
        ({"soft_timeout": float("nan")}, ValueError, "soft_timeout"),
        ({"tags": "red"}, TypeError, "tags"),
        ({"colour": "red"}, TypeError, "colour"),
    ],
)
def test_an_option_that_is_none_is_named(
    here: PerformanceOptimizer, named: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Options(**named)
    with pytest.raises(error, match=words):
        here.sync.cache.get_or_set("k", lambda: 1, **named)
