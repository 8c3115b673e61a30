"""Going over the store in slices."""

from __future__ import annotations

import pytest
import trio

from bi_performanced.cache import sweeping
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.store import Store


def test_slots_without_entries_give_others_their_turn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of millions of slots is mostly empty for a long time."""
    monkeypatch.setattr(sweeping, "SLICE", 0.0)
    store = Store(Memory.create(None, 50_000, 4 << 20, epoch=1))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            async for _ in sweeping.every_entry(lambda: store, lambda: None):
                raise AssertionError("there is none")
            nursery.cancel_scope.cancel()

    trio.run(main)
    store.close()
    assert turns >= 50_000 / sweeping.SWEEP_SLOTS
