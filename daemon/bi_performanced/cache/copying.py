"""Work on a whole store in slices that let others run, and the copy of one store into another."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from bi_performanced.cache.clients import boot_clock
from bi_performanced.cache.recovery import copy_entries, settle
from bi_performanced.cache.store import Store
from bi_performanced.cache.sweeping import SLICE

LONG_SLICE = 0.005
"""Seconds that a slice of a copy takes, instead of SLICE, when writers are about to overtake it."""
HURRY_AT = 0.85
HURRY = 2000
LAST_ROUND = 100
"""Changed keys that are settled in one step, at the end of a copy."""
LAST_BYTES = 4 << 20
"""Bytes of their entries."""
MOST_ROUNDS = 20
"""Rounds for which these are waited for."""
ANY_ROUND = 500
"""The keys after that."""


class Copying:
    """Copies made while the store that is copied serves; at most one at a time."""

    def __init__(self) -> None:
        self.active = False
        self._cleared = False

    def note_clear(self) -> None:
        """The store was cleared: a copy that is being made begins anew."""
        self._cleared = self.active

    async def copy(self, old: Store, target: Store) -> None:
        """Copy in slices, then what changed meanwhile, in rounds until the last is short.

        From that one to the return nothing awaits, so that the target is what the old store was.
        """
        try:
            while True:
                journal: set[bytes] = set()
                old.journal = journal
                self.active, self._cleared = True, False
                await self.in_slices(old, copy_entries(old, target, boot_clock()))
                rounds = 0
                while not self._cleared and _is_long(old, old.journal, rounds):
                    rounds += 1
                    journal, old.journal = old.journal, set()
                    await self.in_slices(old, settle(old, target, journal, boot_clock()))
                if not self._cleared:
                    for _ in settle(old, target, old.journal, boot_clock()):
                        pass
                    return
                target.clear()
        finally:
            self.active = self._cleared = False

    async def in_slices(self, old: Store, work: Iterator[None], *, hurries: bool = True) -> None:
        """Run work for a while at a time, longer when the old store is about to be full and what
        is done `hurries`."""
        deadline = trio.current_time() + SLICE
        for _ in work:
            if self._cleared:
                return
            if trio.current_time() >= deadline:
                await trio.lowlevel.checkpoint()
                late = old.live_bytes > HURRY_AT * old.max_bytes or len(old.journal or ()) > HURRY
                deadline = trio.current_time() + (LONG_SLICE if late and hurries else SLICE)


def _is_long(store: Store, journal: set[bytes], rounds: int) -> bool:
    return len(journal) > ANY_ROUND or (
        rounds < MOST_ROUNDS and (len(journal) > LAST_ROUND or store.bytes_of(journal) > LAST_BYTES)
    )
