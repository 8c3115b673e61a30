"""`get_or_set` when callers are cancelled, block, fork or end, and when the daemon goes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from bi_performance.drivers import let_others_run, sleep
from bi_performance.optimizer import PerformanceOptimizer
from support.callers import (
    LOOPS,
    WORLDS,
    Caller,
    Calls,
    ask,
    attached,
    here,
    leases,
    running,
    there,
    under_asyncio,
    under_trio,
    until_joined,
    until_waiting,
)
from support.daemon import DaemonProcess, wait_until

__all__ = ["here", "running", "there"]


@LOOPS
def test_when_the_caller_that_loads_is_cancelled_another_one_loads(
    here: PerformanceOptimizer, there: PerformanceOptimizer, run: Any
) -> None:
    """At once, in this process and in others, and a cancelled waiter disturbs nobody."""
    begun: list[int] = []
    started = threading.Event()

    async def load() -> int:
        begun.append(1)
        if len(begun) == 1:
            started.set()
            await sleep(1000)
        return len(begun)

    async def call() -> int:
        found: int = await here.cache.get_or_set("k", load, 60)
        return found

    async def in_asyncio() -> list[int]:
        first = asyncio.create_task(call())
        await asyncio.to_thread(started.wait, 10)
        others = [asyncio.create_task(call()) for _ in range(3)]
        await asyncio.to_thread(until_joined, here, "k", 3)
        others.pop(0).cancel()
        first.cancel()
        return await asyncio.gather(*others)

    async def in_trio() -> list[int]:
        found: list[int] = []

        async def keep() -> None:
            found.append(await call())

        async def until_cancelled(scope: trio.CancelScope) -> None:
            with scope:
                await call()

        first, waiter = trio.CancelScope(), trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_cancelled, first)
            await trio.to_thread.run_sync(started.wait, 10)
            nursery.start_soon(until_cancelled, waiter)
            nursery.start_soon(keep)
            nursery.start_soon(keep)
            await trio.to_thread.run_sync(until_joined, here, "k", 3)
            waiter.cancel()
            first.cancel()
        return found

    assert run(in_asyncio if run is under_asyncio else in_trio) == [2, 2]
    assert here.sync.cache.get("k") == 2 and len(begun) == 2
    assert wait_until(lambda: not leases(here)["held"], what="the end of all leases")

    begun.clear()
    started.clear()
    here.sync.cache.delete("k")
    others_of_another: list[Caller] = []

    def join() -> None:
        assert started.wait(10)
        others_of_another.append(Caller(lambda: ask(there, None, lambda: "other")))
        until_waiting(here)

    async def with_another_process() -> None:
        if run is under_trio:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await trio.to_thread.run_sync(join)
                nursery.cancel_scope.cancel()
        else:
            task = asyncio.create_task(call())
            await asyncio.to_thread(join)
            task.cancel()
            await asyncio.wait([task])

    run(with_another_process)
    assert others_of_another[0].result() == "other", "the lease is given up with the cancellation"


@LOOPS
def test_a_cancelled_caller_does_not_wait_for_its_thread(
    here: PerformanceOptimizer, run: Any
) -> None:
    calls = Calls(1)

    async def call() -> None:
        if run is under_trio:
            with trio.move_on_after(0.05) as scope:
                await here.cache.get_or_set("k", calls)
            assert scope.cancelled_caught
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(here.cache.get_or_set("k", calls), 0.05)
        assert await here.cache.get_or_set("k", lambda: 2) == 2
        calls.go.release()

    run(call)


@LOOPS
def test_a_blocking_call_within_a_loop_does_not_wait_for_a_task_of_that_loop(
    here: PerformanceOptimizer, run: Any
) -> None:
    async def load() -> int:
        await let_others_run()
        assert here.sync.cache.get_or_set("k", lambda: 3) == 3, "of its own key"
        assert here.sync.cache.get_or_set("other", lambda: 4) == 4
        return 1

    async def lead() -> None:
        assert await here.cache.get_or_set("k", load) == 1

    async def block() -> None:
        await let_others_run()
        assert here.sync.cache.get_or_set("k", lambda: 2) in (1, 2)

    async def in_trio() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lead)
            nursery.start_soon(block)

    async def in_asyncio() -> None:
        await asyncio.gather(lead(), block())

    run(in_trio if run is under_trio else in_asyncio)
    assert here.sync.cache.get("k") == 1


def test_a_signal_handler_does_not_wait_for_what_it_interrupted(
    here: PerformanceOptimizer, there: PerformanceOptimizer
) -> None:
    calls = Calls("there")
    other = Caller(lambda: ask(there, None, calls))
    assert calls.began.acquire(timeout=10)
    found: list[Any] = []

    def handle(number: int, frame: object) -> None:
        found.append(here.sync.cache.get_or_set("k", lambda: "handler"))
        calls.go.release()

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert here.sync.cache.get_or_set("k", lambda: "here") == "there"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert found == ["handler"] and other.result() == "there"


AT_EXIT = """
import atexit, logging, sys
from bi_performance.optimizer import PerformanceOptimizer
# That the daemon is away, when it had no turn in time, is no matter of this.
logging.getLogger("performance").addHandler(logging.NullHandler())
cache = PerformanceOptimizer(sys.argv[1]).sync.cache
atexit.register(lambda: print(cache.get_or_set("at exit", lambda: 5)))
"""


def test_it_works_while_the_interpreter_ends(running: DaemonProcess) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(running.socket)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("5\n", "")


@WORLDS
def test_without_a_daemon_the_factory_is_called_once_at_a_time_and_nothing_raises(
    tmp_path: Path, run: Any
) -> None:
    alone = PerformanceOptimizer(str(tmp_path / "none.sock"))
    calls = Calls(1, OSError("its own"))
    first = Caller(lambda: ask(alone, run, calls))
    assert calls.began.acquire(timeout=10)
    second = Caller(lambda: ask(alone, run, calls))
    until_joined(alone, "k")
    calls.go.release()
    assert first.result() == second.result() == 1 and calls.count == 1
    calls.go.release()
    with pytest.raises(OSError, match="its own"):
        ask(alone, run, calls)
    assert alone.cache.loads()["unshared"] == 2
    alone.close()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_daemon_that_goes_while_it_is_loaded_costs_the_value_nothing(
    tmp_path: Path, how: str
) -> None:
    with DaemonProcess(tmp_path, http="off") as daemon:
        here, there = (attached(daemon) for _ in range(2))
        calls = Calls(1, 2, 3)
        first = Caller(lambda: ask(here, None, calls))
        assert calls.began.acquire(timeout=10)
        second = Caller(lambda: ask(there, None, calls))
        until_waiting(here)
        if how == "kill":
            daemon.restart()
        else:
            daemon.signal(signal.SIGSTOP)
        for _ in range(2):
            calls.go.release()
        assert {first.result(), second.result()} <= {1, 2}, "each has a value"
        if how == "stop":
            daemon.signal(signal.SIGCONT)
        calls.go.release()
        wait_until(
            lambda: (
                here.sync.cache.get_or_set("next", lambda: 4) == 4
                and here.sync.cache.get("next") == 4
            ),
            what="the return to the daemon",
        )
        assert here.sync.cache.get("k") in (None, 1, 2)
        here.close()
        there.close()


def test_a_forked_child_has_leases_of_its_own(here: PerformanceOptimizer) -> None:
    calls = Calls(1)
    first = Caller(lambda: ask(here, None, calls))
    assert calls.began.acquire(timeout=10)
    child = os.fork()
    if child == 0:
        found = here.sync.cache.get_or_set("other", lambda: 5)
        kept = here.sync.cache.get("other")
        os._exit(0 if (found, kept) == (5, 5) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    calls.go.release()
    assert first.result() == 1
    assert here.sync.cache.get("k") == 1, "the parent's lease was not touched"


def test_the_keepers_thread_ends_when_it_has_nothing_to_do(
    here: PerformanceOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bi_performance.keeper.LINGER", 0.05)

    def keepers() -> int:
        return sum(each.name == "bi-performance-leases" for each in threading.enumerate())

    before = keepers()
    for number in range(2):
        assert ask(here, None, lambda number=number: number, f"k{number}") == number
        wait_until(lambda: keepers() <= before, what="the end of the thread")


@pytest.mark.parametrize("world", ["threads", "asyncio", "trio"])
def test_a_factory_that_raises_stop_iteration_keeps_nobody_waiting(
    here: PerformanceOptimizer, world: str
) -> None:
    """A future of a thread cannot carry it."""

    def exhausted() -> object:
        return next(iter(()))

    def load() -> object:
        if world == "threads":
            return here.sync.cache.get_or_set("exhausted", exhausted, 60)
        if world == "asyncio":
            return asyncio.run(here.cache.get_or_set("exhausted", exhausted, 60))
        return trio.run(here.cache.get_or_set, "exhausted", exhausted, 60)

    with pytest.raises((RuntimeError, StopIteration)):
        load()
    assert here.sync.cache.get_or_set("exhausted", lambda: 1, 60) == 1
    here.sync.cache.delete("exhausted")


@LOOPS
def test_a_task_that_outlives_the_load_it_was_started_in_is_no_part_of_it(
    here: PerformanceOptimizer, run: Any
) -> None:
    calls: list[str] = []

    async def load(name: str) -> str:
        calls.append(name)
        return name

    async def later() -> None:
        await here.cache.delete("k")
        for _ in range(3):
            assert await here.cache.get_or_set("k", lambda: load("later"), 60) == "later"
            found = await here.cache.get_or_set_many(["m"], lambda keys: dict.fromkeys(keys, 1), 60)
            assert found == {"m": 1}
        assert await here.cache.get("k") == "later", "it was stored"

    async def in_asyncio() -> None:
        tasks: list[asyncio.Task[None]] = []
        go = asyncio.Event()

        async def first() -> str:
            async def worker() -> None:
                await go.wait()
                await later()

            tasks.append(asyncio.create_task(worker()))
            return await load("first")

        assert await here.cache.get_or_set("k", first, 60) == "first"
        go.set()
        await tasks[0]

    async def in_trio() -> None:
        go = trio.Event()
        async with trio.open_nursery() as nursery:

            async def first() -> str:
                async def worker() -> None:
                    await go.wait()
                    await later()

                nursery.start_soon(worker)
                return await load("first")

            assert await here.cache.get_or_set("k", first, 60) == "first"
            go.set()

    run(in_trio if run is under_trio else in_asyncio)
    assert calls == ["first", "later"]


@pytest.mark.parametrize("with_daemon", [True, False])
def test_a_loop_that_was_closed_over_a_load_holds_up_nobody(
    here: PerformanceOptimizer, there: PerformanceOptimizer, tmp_path: Path, with_daemon: bool
) -> None:
    if not with_daemon:
        here = there = PerformanceOptimizer(str(tmp_path / "none.sock"))
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    task = loop.create_task(here.cache.get_or_set("k", hang, 60))
    loop.run_until_complete(begun.wait())
    waiters = [
        Caller(lambda: ask(here, None, lambda: "new")),
        Caller(lambda: ask(here, under_asyncio, lambda: "new")),
    ]
    until_joined(here, "k", 2)
    if with_daemon:
        waiters.append(Caller(lambda: ask(there, None, lambda: "new")))
        until_waiting(here)
    assert not any(each.outcome for each in waiters), "a loop that does not run may go on"
    loop.close()
    assert [each.result() for each in waiters] == ["new"] * len(waiters)
    assert ask(here, under_asyncio, lambda: "new", "k") == "new"
    assert not task.done()
    if not with_daemon:
        here.close()


def test_a_loop_that_was_closed_over_a_load_in_the_background_does_not_keep_a_value_stale(
    here: PerformanceOptimizer,
) -> None:
    cache = here.sync.cache
    assert cache.set("k", "old", 60, grace=60) and cache.expire("k")
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def begin() -> Any:
        found = await here.cache.get_or_set("k", hang, 60, grace=60)
        await begun.wait()
        return found

    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(begin()) == "old"
    loop.close()
    wait_until(
        lambda: cache.get_or_set("k", lambda: "new", 60, grace=60) == "new",
        what="a load that another one begins",
    )
