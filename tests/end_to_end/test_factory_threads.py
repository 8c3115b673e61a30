"""Factories that are not async, under asyncio and trio: threads of their own, and how many."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest
import trio

from bi_performance import LoadTimeout
from bi_performance.drivers import in_trio, let_others_run, sleep
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.workers import WORKERS, Workers
from support.callers import LOOPS, Caller, Calls, ask, here, running, there, under_asyncio
from support.daemon import DaemonProcess, wait_until

__all__ = ["here", "running", "there"]


async def three() -> int:
    await let_others_run()
    return 3


@pytest.fixture
def slow() -> Iterator[Calls]:
    """A factory that takes until the end of the test, at the latest."""
    calls = Calls("slow")
    yield calls
    for _ in range(1000):
        calls.go.release()
    wait_until(lambda: not WORKERS.given_up, what="the end of all that was given up")


def hold_up(optimizer: PerformanceOptimizer, run: Any, calls: Calls, *keys: str) -> list[Caller]:
    """So many callers, each in a loop of its own, whose factories have begun."""
    callers = [Caller(partial(ask, optimizer, run, calls, key)) for key in keys]
    for _ in keys:
        assert calls.began.acquire(timeout=10)
    return callers


async def cancel_when(
    ready: Callable[[], bool], load: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    async def begun() -> None:
        while not ready():
            await sleep(0.001)

    if in_trio():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            await begun()
            nursery.cancel_scope.cancel()
        return
    task = asyncio.create_task(load())
    await begun()
    task.cancel()
    await asyncio.wait([task])


@LOOPS
def test_slow_factories_do_not_hold_up_one_that_only_returns_a_coroutine(
    here: PerformanceOptimizer, run: Any, slow: Calls
) -> None:
    """Nor do other users of the loop's own threads."""
    release = threading.Event()

    async def work() -> int:
        cache = here.cache
        if run is under_asyncio:
            others: Any = [asyncio.to_thread(release.wait, 10) for _ in range(40)]
            loads: Any = [cache.get_or_set(f"slow {n}", slow, 60) for n in range(50)]
            tasks = [asyncio.ensure_future(each) for each in (*others, *loads)]
            found: int = await cache.get_or_set("x", lambda: three(), 60, hard_timeout=9)
            for task in tasks:
                task.cancel()
            release.set()
            await asyncio.wait(tasks)
            return found
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(cache.get_or_set, f"slow {number}", slow, 60)
            while slow.count < 40:
                await trio.lowlevel.checkpoint()
            found = await cache.get_or_set("x", lambda: three(), 60, hard_timeout=9)
            nursery.cancel_scope.cancel()
        return found

    assert run(work) == 3


@LOOPS
def test_a_factory_that_was_given_up_makes_room_until_too_many_hang(
    here: PerformanceOptimizer, run: Any, slow: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bi_performance.workers.LIVE", 2)
    monkeypatch.setattr("bi_performance.workers.GIVEN_UP", 5)

    async def work() -> None:
        for number in range(5):
            load = partial(here.cache.get_or_set, f"k{number}", slow, 60)
            await cancel_when(partial(slow.began.acquire, blocking=False), load)
            assert here.cache.loads()["given_up"] == number + 1
            if number < 4:
                assert await here.cache.get_or_set(f"x{number}", lambda: three(), 60) == 3
        with pytest.raises(RuntimeError, match="5 factories that nobody waits for any more"):
            await here.cache.get_or_set("y", lambda: 1, 60)
        assert await here.cache.get_or_set("y", three, 60) == 3, "an async one needs no thread"

    run(work)
    for _ in range(5):
        slow.go.release()
    wait_until(lambda: not here.cache.loads()["given_up"], what="their end")
    assert ask(here, run, lambda: 4, "z") == 4


@LOOPS
def test_beyond_so_many_at_once_a_factory_waits_for_its_turn(
    here: PerformanceOptimizer, run: Any, slow: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bi_performance.workers.LIVE", 2)
    first = hold_up(here, run, slow, "a", "b")
    assert here.cache.loads()["queued"] == 0
    last = Caller(lambda: ask(here, run, slow, "c"))
    wait_until(lambda: here.cache.loads()["queued"] == 1, what="one that waits")
    assert slow.count == 2
    slow.go.release()
    assert slow.began.acquire(timeout=10), "the end of one is the turn of another"
    for _ in range(2):
        slow.go.release()
    assert [each.result() for each in (*first, last)] == ["slow"] * 3
    assert here.cache.loads()["queued"] == 0, "it is how many wait, not how many ever did"


@LOOPS
def test_who_waits_for_a_thread_is_told_when_too_many_hang(
    here: PerformanceOptimizer, run: Any, slow: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bi_performance.workers.LIVE", 1)
    monkeypatch.setattr("bi_performance.workers.GIVEN_UP", 1)
    load = partial(here.cache.get_or_set, "a", slow, 60)

    def waits() -> bool:
        return here.cache.loads()["queued"] == 1

    first = Caller(lambda: run(lambda: cancel_when(waits, load)))
    assert slow.began.acquire(timeout=10)
    last = Caller(lambda: ask(here, run, slow, "b"))
    assert isinstance(last.result(), RuntimeError) and slow.count == 1
    assert "1 factories that nobody waits for any more" in str(last.result())
    assert first.result() is None and here.cache.loads()["queued"] == 0


def test_threads_are_bounded_however_many_are_given_up_one_after_another(
    slow: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bi_performance.workers.LIVE", 2)
    monkeypatch.setattr("bi_performance.workers.GIVEN_UP", 3)
    workers = Workers()
    woken: list[int] = []
    jobs = [workers.submit(slow, partial(woken.append, number)) for number in range(12)]
    for job in jobs:
        workers.give_up(job)
    assert workers.given_up == 4, "those that hang, and one that ran when they were too many"
    assert woken == list(range(4, 12)) and workers.queued == 0
    for job in jobs[4:]:
        with pytest.raises(RuntimeError, match="3 factories that nobody waits for any more"):
            job.result()
    for _ in range(4):
        assert slow.began.acquire(timeout=10)
        slow.go.release()
    wait_until(lambda: not workers.given_up, what="their end")
    assert slow.count == 4
    last = workers.submit(lambda: 5, partial(woken.append, 12))
    wait_until(lambda: woken[-1] == 12, what="its end")
    assert last.result() == 5


@LOOPS
def test_who_gives_up_while_it_waits_for_a_thread_is_not_called(
    here: PerformanceOptimizer, run: Any, slow: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bi_performance.workers.LIVE", 1)
    first = hold_up(here, run, slow, "a")
    called: list[int] = []
    error = Caller(lambda: ask(here, run, lambda: called.append(1), "b", hard_timeout=0.05))
    assert isinstance(error.result(), LoadTimeout)
    slow.go.release()
    assert first[0].result() == "slow"
    assert ask(here, run, lambda: 1, "c") == 1 and not called


EXIT = """
import asyncio, logging, sys, time
from bi_performance.optimizer import PerformanceOptimizer
# That the daemon is away, when it had no turn in time, is no matter of this.
logging.getLogger("performance").addHandler(logging.NullHandler())
cache = PerformanceOptimizer(sys.argv[1]).cache
async def work():
    try:
        await cache.get_or_set("k", lambda: time.sleep(1000), 60, hard_timeout=0.05)
    except TimeoutError:
        print("late")
asyncio.run(work())
"""


def test_a_factory_that_hangs_does_not_hold_up_the_end_of_the_interpreter(
    running: DaemonProcess,
) -> None:
    command = [sys.executable, "-c", EXIT, str(running.socket)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "late\n", "")


def test_a_factory_that_looks_for_the_loop_is_told_to_be_async(here: PerformanceOptimizer) -> None:
    made: list[Coroutine[Any, Any, int]] = []

    def new() -> Coroutine[Any, Any, int]:
        made.append(three())
        return made[-1]

    factories: list[Callable[[], Any]] = [
        lambda: asyncio.create_task(new()),
        lambda: asyncio.gather(new(), new()),
        lambda: asyncio.get_running_loop(),
    ]
    for factory in factories:
        with pytest.raises(RuntimeError, match="a factory that is not async runs in a thread"):
            ask(here, under_asyncio, factory)
    for each in made:
        each.close()

    async def both() -> list[int]:
        return list(await asyncio.gather(three(), three()))

    assert ask(here, under_asyncio, both) == [3, 3]


def test_a_factory_in_a_thread_comes_back_to_its_loop_by_token_or_loop(
    here: PerformanceOptimizer,
) -> None:
    async def under_trio() -> list[int]:
        token = trio.lowlevel.current_trio_token()
        load = here.cache.get_or_set
        with pytest.raises(RuntimeError, match="trio_token"):
            await load("none", lambda: trio.from_thread.run(three), 60)
        return [
            await load("a", lambda: trio.from_thread.run(three, trio_token=token), 60),
            await load("b", lambda: trio.from_thread.run_sync(lambda: 4, trio_token=token), 60),
        ]

    assert trio.run(under_trio) == [3, 4]

    async def in_asyncio() -> int:
        loop = asyncio.get_running_loop()

        def factory() -> int:
            return asyncio.run_coroutine_threadsafe(three(), loop).result()

        found: int = await here.cache.get_or_set("c", factory, 60)
        return found

    assert under_asyncio(in_asyncio) == 3


def test_a_forked_child_has_threads_of_its_own(here: PerformanceOptimizer, slow: Calls) -> None:
    (first,) = hold_up(here, under_asyncio, slow, "k")
    child = os.fork()
    if child == 0:
        found = ask(here, under_asyncio, lambda: 5, "other")
        os._exit(0 if found == 5 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    slow.go.release()
    assert first.result() == "slow"
