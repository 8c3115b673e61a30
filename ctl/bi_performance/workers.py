"""Threads for factories that are not async, under an event loop.

Not the loop's own: asyncio's are a handful for all that the process does, so that a few slow
factories would hold up every load, and the end of the interpreter waits for one that hangs; trio
counts one whose caller has gone as long as it runs. Here one that was given up makes room for
another at once, and nothing waits for it. Both kinds are bounded.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable
from enum import Enum
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal

from sniffio import current_async_library_cvar

from bi_performance.forks import after_fork
from bi_performance.limited import Limited

log = logging.getLogger("performance")

LIVE: Final = 100
"""Factories that run in threads at once and are waited for; more wait for their turn."""
GIVEN_UP: Final = 400
"""Those that still run though nobody waits; as long as there are so many, no other is begun. Those
that are waited for meanwhile may be given up too: the threads are at most LIVE + GIVEN_UP, beside
the IDLE ones."""
IDLE: Final = 16
"""Threads that are kept for the next factory."""
LINGER: Final = 10.0
"""Seconds for which they are."""
THREAD: Final = "bi-performance-factory"


class State(Enum):
    WAITS = "waits"
    RUNS = "runs"
    OVER = "over"
    GIVEN_UP = "given up"


class Job:
    """One call of a factory, in whichever thread."""

    __slots__ = ("_call", "_context", "_error", "_found", "_wake", "state")

    def __init__(self, call: Callable[[], Any], wake: Callable[[], object]) -> None:
        self._call = call
        self._wake = wake
        self._context = contextvars.copy_context()
        # Whatever loop runs here, none does there.
        self._context.run(current_async_library_cvar.set, None)
        self._found: Any = None
        self._error: BaseException | None = None
        self.state = State.WAITS

    def run(self) -> None:
        try:
            self._found = self._context.run(self._call)
        except StopIteration as error:
            # It cannot be raised in a coroutine.
            self._error = RuntimeError("the factory raised StopIteration")
            self._error.__cause__ = error
        except BaseException as error:
            self._error = _explained(error)

    def end(self) -> None:
        """After `run`: tell who waits, or drop what nobody takes."""
        if self.state is not State.GIVEN_UP:
            self._wake()
        elif inspect.iscoroutine(self._found):
            # Or Python complains that it was never awaited.
            self._found.close()

    def refuse(self, error: Exception) -> None:
        """Instead of `run`."""
        self.state = State.OVER
        self._error = error

    def result(self) -> Any:
        """What the factory returned; raises what it raised."""
        error, self._error = self._error, None
        if error is None:
            return self._found
        try:
            raise error
        finally:
            del error


class Workers:
    """All such threads of a process. Any thread may call."""

    def __init__(self) -> None:
        self._crowd = Limited(
            log, f"factories wait for a thread: {LIVE} of them run in threads, %s wait"
        )
        self.reset()

    def reset(self) -> None:
        """In a forked child: the threads are its parent's."""
        # A finalizer may come in between.
        self._lock = threading.RLock()
        self._waiting: deque[Job] = deque()
        self._idle: list[SimpleQueue[Job]] = []
        self._live = 0
        self.given_up = 0
        """Factories that run though nobody waits for them."""

    @property
    def queued(self) -> int:
        """Factories that wait for a thread now."""
        return len(self._waiting)

    def submit(self, call: Callable[[], Any], wake: Callable[[], object]) -> Job:
        """Run `call` in a thread, `wake` there when its `result` can be taken.

        Raises RuntimeError when too many hang that were given up, or no thread can be started.
        """
        job = Job(call, wake)
        with self._lock:
            if self.given_up >= GIVEN_UP:
                raise self._too_many()
            self._waiting.append(job)
            full = self._live >= LIVE
        if full:
            self._crowd.say(self.queued)
        self._begin(job)
        return job

    def give_up(self, job: Job) -> None:
        """Nobody waits for it any more: another one may have its place, unless too many hang; then
        those that wait for one are told, as who comes after them is."""
        refused: list[Job] = []
        with self._lock:
            if job.state is State.WAITS:
                job.state = State.GIVEN_UP
                self._waiting.remove(job)
                return
            if job.state is not State.RUNS:
                return
            job.state = State.GIVEN_UP
            self._live -= 1
            self.given_up += 1
            if self.given_up >= GIVEN_UP:
                refused += self._waiting
                self._waiting.clear()
            for each in refused:
                each.refuse(self._too_many())
        for each in refused:
            each.end()
        self._begin(None)

    def _too_many(self) -> RuntimeError:
        return RuntimeError(
            f"{self.given_up} factories that nobody waits for any more still run in threads, and no"
            " other is begun until one of them ends: give what they wait for a timeout of its own"
        )

    def _begin(self, asked: Job | None) -> None:
        """Have the one that has waited longest run, if there is room. Raises RuntimeError when
        there is no thread to run what is asked for, now or later."""
        with self._lock:
            job = self._take()
            if job is None:
                return
            if self._idle:
                self._idle.pop().put(job)
                return
        try:
            threading.Thread(target=self._work, args=(job,), name=THREAD, daemon=True).start()
        except RuntimeError:
            # The interpreter is ending, or there are too many threads.
            with self._lock:
                self._live -= 1
                job.state = State.WAITS
                self._waiting.appendleft(job)
                if self._live or asked is None:
                    # One of those that run will take it.
                    return
                self._waiting.remove(asked)
            raise

    def _take(self) -> Job | None:
        """The next to run, if there is room; with the lock."""
        if not self._waiting or self._live >= LIVE or self.given_up >= GIVEN_UP:
            return None
        job = self._waiting.popleft()
        job.state = State.RUNS
        self._live += 1
        return job

    def _work(self, job: Job | None) -> None:
        """What a thread does."""
        mine: SimpleQueue[Job] = SimpleQueue()
        while job is not None:
            job.run()
            following = self._next(job, mine)
            job.end()
            # Not kept while there is nothing to do: it holds a value.
            job = following or (self._wait(mine) if following is False else None)

    def _next(self, job: Job, mine: SimpleQueue[Job]) -> Job | Literal[False] | None:
        """Count a job as over. What is to be done next: another one, or wait (False), or end."""
        with self._lock:
            if job.state is State.GIVEN_UP:
                self.given_up -= 1
            else:
                job.state = State.OVER
                self._live -= 1
            following = self._take()
            if following is not None or len(self._idle) >= IDLE:
                return following
            # Before its caller is woken, who may have another one for it.
            self._idle.append(mine)
            return False

    def _wait(self, mine: SimpleQueue[Job]) -> Job | None:
        while True:
            try:
                return mine.get(timeout=LINGER)
            except Empty:
                with self._lock:
                    if mine in self._idle:
                        self._idle.remove(mine)
                        return None
                # It has just been given one.


def _explained(error: BaseException) -> BaseException:
    """The same error, or one that says more where a factory looked for the loop of its caller."""
    text = str(error)
    if type(error) is not RuntimeError or not (
        "event loop" in text or text == "must be called from async context"
    ):
        return error
    found = RuntimeError(
        f"a factory that is not async runs in a thread, where there is no event loop ({text}):"
        " write `async def` for what makes tasks, as create_task and gather do"
    )
    found.__cause__ = error
    return found


WORKERS: Final = Workers()
after_fork(WORKERS.reset)
