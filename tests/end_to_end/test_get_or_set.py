"""`get_or_set` from threads, asyncio and trio: who loads, who waits, and what goes wrong.

Two optimizers in one process have nothing in common: they stand for two processes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from bi_performance.drivers import let_others_run, sleep
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.options import LoadTimeout, Options
from support.daemon import DaemonProcess, wait_until

TTL = 0.5


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("get_or_set")
    (folder / "config.toml").write_text(f"[performance.leases]\nttl = {TTL}\n")
    with DaemonProcess(folder, "--config", str(folder / "config.toml"), http="off") as daemon:
        yield daemon


@pytest.fixture
def here(running: DaemonProcess) -> Iterator[PerformanceOptimizer]:
    made = PerformanceOptimizer(str(running.socket))
    made.sync.cache.clear()
    yield made
    made.close()


@pytest.fixture
def there(running: DaemonProcess) -> Iterator[PerformanceOptimizer]:
    made = PerformanceOptimizer(str(running.socket))
    yield made
    made.close()


def leases(optimizer: PerformanceOptimizer) -> Any:
    stats = optimizer.sync.cache.stats()
    assert stats is not None
    return stats["levels"]["local"]["leases"]


def until_waiting(optimizer: PerformanceOptimizer, count: int = 1) -> None:
    wait_until(lambda: leases(optimizer)["waiting"] == count, what=f"{count} waiters")


def until_joined(optimizer: PerformanceOptimizer, key: str, count: int = 1) -> None:
    flights = optimizer.cache._loader.flights

    def joined() -> bool:
        flight = flights._flights.get(key.encode())
        return flight is not None and len(flight.joiners) == count

    wait_until(joined, what=f"{count} that joined")


class Calls:
    """A factory in a thread that waits to be told what to do, and counts."""

    def __init__(self, *outcomes: Any) -> None:
        self.count = 0
        self.began = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self._outcomes = list(outcomes)

    def __call__(self) -> Any:
        self.count += 1
        outcome = self._outcomes[min(self.count, len(self._outcomes)) - 1]
        self.began.release()
        assert self.go.acquire(timeout=10)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Caller(threading.Thread):
    """A thread that calls, and keeps what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self._call = call
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._call()
        except Exception as error:
            self.outcome = error

    def result(self) -> Any:
        self.join(10)
        assert not self.is_alive()
        return self.outcome


def under_asyncio(call: Callable[[], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        return await call()

    return asyncio.run(run())


def under_trio(call: Callable[[], Awaitable[Any]]) -> Any:
    return trio.run(call)


LOOPS = pytest.mark.parametrize("run", [under_asyncio, under_trio])
WORLDS = pytest.mark.parametrize("run", [None, under_asyncio, under_trio])


def ask(optimizer: PerformanceOptimizer, run: Any, factory: Any, key: str = "k", **how: Any) -> Any:
    """The value of a key, asked for in one of the three worlds."""
    if run is None:
        return optimizer.sync.cache.get_or_set(key, factory, 60, **how)
    return run(lambda: optimizer.cache.get_or_set(key, factory, 60, **how))


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
    here.sync.cache.delete("k")

    async def cancelled() -> None:
        if run is under_trio:
            with trio.move_on_after(0.2):
                await call()
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call(), 0.2)

    other = None

    async def with_another_process() -> None:
        nonlocal other
        begun.clear()
        start = threading.Timer(
            0.1, lambda: calls.append(Caller(lambda: ask(there, None, lambda: "other")))
        )
        start.start()
        await cancelled()

    calls: list[Caller] = []
    run(with_another_process)
    assert calls[0].result() == "other", "the lease is given up with the cancellation"


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
import atexit, sys
from bi_performance.optimizer import PerformanceOptimizer
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
    alone.close()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_daemon_that_goes_while_it_is_loaded_costs_the_value_nothing(
    tmp_path: Path, how: str
) -> None:
    with DaemonProcess(tmp_path, http="off") as daemon:
        here, there = (PerformanceOptimizer(str(daemon.socket)) for _ in range(2))
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
