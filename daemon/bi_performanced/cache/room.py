"""Room for records that come, made in slices before they would have to make it themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import trio

from bi_performance_wire.errors import BUSY, WireError
from bi_performanced.cache.clients import boot_clock
from bi_performanced.cache.copying import Copying
from bi_performanced.cache.store import Damaged, Store


class Growing(WireError):
    """An entry that the store will hold once it has grown, or made room, as it was asked to."""


class Host(Protocol):
    """Who has the store."""

    store: Store
    hollow: bool

    def rebuild(self, error: Damaged) -> None: ...
    def tell_those_who_wait(self) -> None: ...


class RoomMaker:
    """Lets entries leave, and moves the tail of the store's main ring; `run` must be running."""

    def __init__(self, host: Host, copying: Copying) -> None:
        self._host = host
        self._copying = copying
        self.wanted = 0
        """Bytes of the largest record that waits for its room."""
        self._asked = self._may_come_back = 0
        self._wake = trio.Event()

    def go_on(self) -> None:
        """Have the tail move: room is short, with nobody waiting for it yet."""
        self._wake.set()

    def check(self, size: int) -> None:
        """Raise Growing for a record of so many bytes whose room takes long to make; it is being
        made then. Who comes back has it, at whatever cost, if others have taken it by then."""
        if not self._host.store.cramped(size):
            return
        if self._may_come_back:
            self._may_come_back -= 1
            return
        self.wanted = max(self.wanted, size)
        self._asked += 1
        self._wake.set()
        raise Growing(
            BUSY,
            f"room is being made for {size} bytes",
            field="value",
            hint="try again in a second",
        )

    async def run(self) -> None:
        """Make room when it is wanted, until cancelled."""
        host = self._host
        while True:
            await self._wake.wait()
            size, asked = self.wanted, self._asked
            self._wake = trio.Event()
            try:
                steps = self._steps(host.store, size)
                await self._copying.in_slices(host.store, steps, hurries=False)
            except Damaged as error:
                host.rebuild(error)
            if size == self.wanted:
                self.wanted = 0
            else:
                self._wake.set()
            if size:
                self._asked -= asked
                self._may_come_back = asked
                host.tell_those_who_wait()
            await trio.lowlevel.checkpoint()

    def _steps(self, store: Store, size: int) -> Iterator[None]:
        steps, host = store.make_room(size, boot_clock()), self._host
        # Nothing may be moved to where there is no memory.
        while not host.hollow and store is host.store and next(steps, steps) is not steps:
            yield
