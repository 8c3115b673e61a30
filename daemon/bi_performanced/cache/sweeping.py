"""Going over every entry of the store in service, in slices that let others run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

import trio

from bi_performanced.cache.clients import boot_clock
from bi_performanced.cache.store import Found, Store

SLICE = 0.002
"""Seconds that a sweep or a copy keeps the loop before others have their turn."""
SWEEP_SLOTS = 400


async def every_entry(
    current: Callable[[], Store], begins_again: Callable[[], None]
) -> AsyncGenerator[tuple[Store, Found, int], None]:
    """Each entry with its store and the boot clock, of those that are there from begin to end.

    When the entries move to another store meanwhile, the sweep begins again there, and says so.
    To be closed by who does not go to the end.
    """
    store, at = current(), 0
    ends = trio.current_time() + SLICE
    while True:
        entries, at = store.sweep(at, SWEEP_SLOTS)
        now = boot_clock()
        for entry in entries:
            if trio.current_time() >= ends:
                await trio.lowlevel.checkpoint()
                ends = trio.current_time() + SLICE
                if store is not current():
                    break
            yield store, entry, now
        if trio.current_time() >= ends:
            # There may be a great many slots without any entry.
            await trio.lowlevel.checkpoint()
            ends = trio.current_time() + SLICE
        if store is not current():
            store, at = current(), 0
            begins_again()
        elif not at:
            return
