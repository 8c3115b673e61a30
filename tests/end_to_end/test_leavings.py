"""What an optimizer leaves behind when it was closed: nothing."""

from __future__ import annotations

import gc
import os
import warnings
import weakref

from bi_performance.forks import _hooks
from bi_performance.optimizer import PerformanceOptimizer
from support.callers import here, running, there
from support.daemon import DaemonProcess, wait_until

__all__ = ["here", "running", "there"]


def test_a_closed_optimizer_leaves_nothing_behind(running: DaemonProcess) -> None:
    left: list[weakref.ref[object]] = []
    for number in range(200):
        made = PerformanceOptimizer(str(running.socket) if number % 20 == 0 else "/nowhere.sock")
        if number % 20 == 0:
            assert made.sync.cache.get_or_set(f"k{number}", lambda: 1, 60) == 1
        left += [
            weakref.ref(made._link),
            weakref.ref(made._server),
            weakref.ref(made._server.background),
            weakref.ref(made._server.loader.keeper),
            weakref.ref(made._server.loader.flights),
        ]
        made.close()
    del made

    def all_gone() -> bool:
        gc.collect()
        return not any(each() for each in left)

    wait_until(all_gone, what="the end of all of them")
    assert len(_hooks) < 400, "what a fork calls does not grow with those that have gone"


def test_a_fork_still_reaches_those_that_are_there(
    here: PerformanceOptimizer, there: PerformanceOptimizer
) -> None:
    assert here.sync.cache.set("k", 1) and there.sync.cache.get("k") == 1
    generation = here._server.loader.keeper.generation
    child = os.fork()
    if child == 0:
        fresh = here._server.loader.keeper.generation == generation + 1
        attached = here.sync.cache.get("k") == there.sync.cache.get("k") == 1
        os._exit(0 if fresh and attached else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_optimizer_that_was_never_closed_is_collected_without_a_complaint(
    running: DaemonProcess,
) -> None:
    made = PerformanceOptimizer(str(running.socket))
    assert made.sync.cache.set("k", 1) and made.sync.cache.get_many(["k"]) == {"k": 1}
    left = weakref.ref(made._link)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        del made
        gc.collect()
        assert left() is None and not said
