"""Waiting for a socket under asyncio and under trio."""

from __future__ import annotations

import asyncio
import sys
from typing import TypeVar

import sniffio

from bi_performance.protocol import READ, Steps, TimedOut, Wait

T = TypeVar("T")


async def drive_async(steps: Steps[T], seconds: float) -> T:
    """Run an exchange in the running event loop. Raises TimedOut after `seconds`.

    A cancellation passes through; the exchange is closed then, and its connection with it.
    """
    try:
        wait = next(steps)
        if sniffio.current_async_library() == "trio":
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
    # A loop that is not trio's is asyncio's: without trio imported nothing need be asked.
    if "trio" in sys.modules and sniffio.current_async_library() == "trio":
        import trio

        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)
