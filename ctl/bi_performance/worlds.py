"""What differs between threads, asyncio and trio while a value is loaded.

The loading itself is written once, as coroutines. Under a loop they are awaited; without one
`run_now` runs them, and nothing in them ever waits for a loop: a world of threads blocks instead.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from bi_performance.asking import TIMEOUT, Answer, ask, ask_now
from bi_performance.drivers import in_trio, loop_runs
from bi_performance.link import Link
from bi_performance.workers import WORKERS

T = TypeVar("T")
Make = Callable[[], Coroutine[Any, Any, None]]
"""Makes what is to run in the background; it raises nothing but a cancellation."""


Args = dict[str, Any] | list[dict[str, Any]]


class Signal(Protocol):
    """Set once, from any thread, and waited for where it was made."""

    def set(self) -> None: ...

    async def wait(self, seconds: float | None) -> bool:
        """Whether it was set within so many seconds (None: however long it takes)."""

    def alive(self) -> bool:
        """Whether who waits for it, or made it, can ever go on. Called in any thread."""


class World(Protocol):
    """One of the three."""

    @property
    def blocks_a_loop(self) -> bool:
        """Whether waiting holds up the event loop of this thread, and all that its tasks do."""

    def cancelled(self) -> type[BaseException] | tuple[()]:
        """What is raised in a task that is cancelled."""

    def signal(self) -> Signal: ...

    async def call(self, factory: Callable[[], Any], *, is_async: bool) -> Any:
        """What a factory returns. One that is not async is run in a thread under a loop, see
        workers.py."""

    async def within(self, seconds: float, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `make()` returns, if it does so in time. Raises Late.

        Under a loop it is cancelled then; in a thread it cannot be, and goes on to its end.
        """

    async def ask(self, link: Link, method: str, args: Args) -> Answer: ...

    def spawn(self, make: Make, ended: Callable[[], None]) -> Callable[[], None] | None:
        """Run in the background, and call `ended` after that in any case; what cancels it, or
        None where it cannot be. Raises RuntimeError when it cannot be started."""


async def _call(world: World, factory: Callable[[], Any], *, is_async: bool) -> Any:
    """What a factory returns, under a loop.

    A cancellation does not wait for a thread, which cannot be stopped.
    """
    if is_async:
        found = factory()
    else:
        signal = world.signal()
        job = WORKERS.submit(factory, signal.set)
        try:
            await signal.wait(None)
        except BaseException:
            WORKERS.give_up(job)
            raise
        found = job.result()
    return await found if inspect.isawaitable(found) else found


class Late(Exception):
    """Something was not done within its time."""


class Threads:
    """Blocks the thread that it is used in."""

    class Signal:
        def __init__(self) -> None:
            self._event = threading.Event()
            self.set = self._event.set

        async def wait(self, seconds: float | None) -> bool:
            return self._event.wait(seconds)

        def alive(self) -> bool:
            return True

    @property
    def blocks_a_loop(self) -> bool:
        return loop_runs()

    def cancelled(self) -> tuple[()]:
        return ()

    def signal(self) -> Signal:
        return Threads.Signal()

    async def call(self, factory: Callable[[], Any], *, is_async: bool) -> Any:
        found = None if is_async else factory()
        if is_async or inspect.isawaitable(found):
            if inspect.iscoroutine(found):
                found.close()
            raise TypeError("an async factory needs the cache with await, not the one without")
        return found

    async def within(self, seconds: float, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        found: list[T] = []
        failed: list[BaseException] = []
        done = threading.Event()

        async def run() -> None:
            try:
                found.append(await make())
            except BaseException as error:
                failed.append(error)

        self.spawn(run, done.set)
        if not done.wait(seconds):
            raise Late
        if failed:
            raise failed[0]
        return found[0]

    async def ask(self, link: Link, method: str, args: Args) -> Answer:
        return ask_now(link, method, args, seconds=TIMEOUT)

    def spawn(self, make: Make, ended: Callable[[], None]) -> None:
        context = contextvars.copy_context()

        def run() -> None:
            try:
                context.run(lambda: run_now(make()))
            finally:
                ended()

        threading.Thread(target=run, name="bi-performance-load", daemon=True).start()


class Asyncio:
    """The running asyncio loop."""

    class Signal:
        def __init__(self) -> None:
            self._loop = asyncio.get_running_loop()
            self._future = self._loop.create_future()

        def set(self) -> None:
            # The loop may have been closed over who waits.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._set)

        def _set(self) -> None:
            if not self._future.done():
                self._future.set_result(None)

        async def wait(self, seconds: float | None) -> bool:
            await asyncio.wait((self._future,), timeout=seconds)
            return self._future.done()

        def alive(self) -> bool:
            # One that only does not run may be run again.
            return not self._loop.is_closed()

    blocks_a_loop = False

    def cancelled(self) -> type[BaseException]:
        return asyncio.CancelledError

    def signal(self) -> Signal:
        return Asyncio.Signal()

    async def call(self, factory: Callable[[], Any], *, is_async: bool) -> Any:
        return await _call(self, factory, is_async=is_async)

    async def within(self, seconds: float, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        # Made before the timeout begins: a coroutine that is never awaited is warned of.
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                return await make()
        except TimeoutError:
            if scope.expired():
                raise Late from None
            raise

    async def ask(self, link: Link, method: str, args: Args) -> Answer:
        return await ask(link, method, args)

    def spawn(self, make: Make, ended: Callable[[], None]) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        task = loop.create_task(make())
        # The loop itself refers to it weakly.
        _tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            # Also of one that was cancelled before it began.
            _tasks.discard(task)
            ended()

        task.add_done_callback(done)

        def cancel() -> None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)

        return cancel


_tasks: Final[set[asyncio.Task[None]]] = set()


class Trio:
    """The running trio loop."""

    class Signal:
        def __init__(self) -> None:
            import trio

            self._token = trio.lowlevel.current_trio_token()
            self._event = trio.Event()
            self._over = trio.RunFinishedError

        def set(self) -> None:
            with suppress(self._over):
                self._token.run_sync_soon(self._event.set)

        async def wait(self, seconds: float | None) -> bool:
            import trio

            with trio.move_on_after(trio_seconds(seconds)):
                await self._event.wait()
            return self._event.is_set()

        def alive(self) -> bool:
            # A run does not end before its tasks.
            return True

    blocks_a_loop = False

    def cancelled(self) -> type[BaseException]:
        import trio

        return trio.Cancelled

    def signal(self) -> Signal:
        return Trio.Signal()

    async def call(self, factory: Callable[[], Any], *, is_async: bool) -> Any:
        return await _call(self, factory, is_async=is_async)

    async def within(self, seconds: float, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        import trio

        with trio.move_on_after(seconds):
            return await make()
        raise Late

    async def ask(self, link: Link, method: str, args: Args) -> Answer:
        return await ask(link, method, args)

    def spawn(self, make: Make, ended: Callable[[], None]) -> Callable[[], None]:
        import trio

        token = trio.lowlevel.current_trio_token()
        scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    await make()
            finally:
                ended()

        # Of the run's own nursery: it ends with the run, and nobody needs to hold one open.
        trio.lowlevel.spawn_system_task(run, context=contextvars.copy_context())

        def cancel() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)

        return cancel


def without(
    cancelled: type[BaseException] | tuple[()], error: BaseException
) -> tuple[BaseException | None, BaseException | None]:
    """The cancellations in an error, and the rest of it; of a nursery both may come together."""
    if isinstance(error, cancelled):
        return error, None
    if cancelled and isinstance(error, BaseExceptionGroup):
        return error.split(cancelled)
    return None, error


def trio_seconds(seconds: float | None) -> float:
    return float("inf") if seconds is None else max(0.0, seconds)


THREADS: Final[World] = Threads()
_ASYNCIO: Final[World] = Asyncio()
_TRIO: Final[World] = Trio()


def running_world() -> World:
    """That of the running loop."""
    return _TRIO if in_trio() else _ASYNCIO


def run_now(work: Coroutine[Any, Any, T]) -> T:
    """Run what never waits for a loop, because its world is that of threads."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("an async call was made where there is no event loop")


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 (an object whose call is async)
    )
