"""Waiting for a socket, or for a turn, under asyncio and under trio."""

from __future__ import annotations

import asyncio
import sys
from typing import Final, TypeVar

import sniffio

from bi_performance.protocol import READ, Steps, TimedOut, Wait
from bi_performance.turns import LoopTurns, Turns

T = TypeVar("T")
TURN_NS: Final = 1_000_000
"""Nanoseconds of hits after which the event loop has a turn."""


def in_trio() -> bool:
    # A loop that is not trio's is asyncio's: without trio imported nothing need be asked.
    return "trio" in sys.modules and sniffio.current_async_library() == "trio"


def loop_runs() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return False
    return True


async def take_turn(turns: Turns, seconds: float) -> LoopTurns:
    """Wait until it is the caller's turn in the running loop, and return whose to give it back to.

    Raises Crowded. A cancellation passes through, and so does a turn that had just come.
    """
    if in_trio():
        import trio

        mine = turns.of(trio.lowlevel.current_trio_token())
        if not mine.take():
            await _turn_trio(mine, seconds)
    else:
        mine = turns.of(asyncio.get_running_loop())
        if not mine.take():
            await _turn_asyncio(mine, seconds)
    return mine


async def _turn_asyncio(turns: LoopTurns, seconds: float) -> None:
    ready = asyncio.get_running_loop().create_future()
    place = turns.join(lambda: ready.set_result(None))
    try:
        while not place.granted:
            await asyncio.wait((ready,), timeout=turns.patience(place, seconds))
    except BaseException:
        turns.leave(place)
        raise


async def _turn_trio(turns: LoopTurns, seconds: float) -> None:
    import trio

    ready = trio.Event()
    place = turns.join(ready.set)
    try:
        while not place.granted:
            with trio.move_on_after(turns.patience(place, seconds)):
                await ready.wait()
    except BaseException:
        turns.leave(place)
        raise


async def sleep(seconds: float) -> None:
    """Wait in the running loop."""
    if in_trio():
        import trio

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def drive_async(steps: Steps[T], seconds: float) -> T:
    """Run an exchange in the running event loop. Raises TimedOut after `seconds`.

    A cancellation passes through; the exchange is closed then, and its connection with it.
    """
    try:
        wait = next(steps)
        if in_trio():
            return await _drive_trio(steps, wait, seconds)
        async with asyncio.timeout(seconds):
            while True:
                await _wait_asyncio(wait)
                wait = next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    except TimeoutError:
        raise TimedOut(f"no answer within {seconds:g} s") from None
    finally:
        steps.close()


async def _wait_asyncio(wait: Wait) -> None:
    waiting, event = wait
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    fd = waiting.fileno()
    add, remove = (
        (loop.add_reader, loop.remove_reader)
        if event == READ
        else (loop.add_writer, loop.remove_writer)
    )
    add(fd, wake)
    try:
        await ready
    finally:
        remove(fd)


async def _drive_trio(steps: Steps[T], wait: Wait, seconds: float) -> T:
    import trio

    with trio.move_on_after(seconds):
        try:
            while True:
                waiting, event = wait
                if event == READ:
                    await trio.lowlevel.wait_readable(waiting)
                else:
                    await trio.lowlevel.wait_writable(waiting)
                wait = next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
    raise TimeoutError


async def let_others_run() -> None:
    """Give the event loop a turn."""
    if in_trio():
        import trio

        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)
