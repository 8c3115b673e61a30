"""Going over the store in slices."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from bi_performanced.cache import sweeping
from bi_performanced.cache.component import Cache
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.store import Store
from bi_performanced.cache.terms import Terms
from bi_performanced.config import CacheSettings


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


@pytest.mark.parametrize("how", ["touch", "expire"])
def test_what_is_renewed_in_the_course_of_a_sweep_is_cleared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A renewal stores the entry anew, and is no newer entry for that."""
    monkeypatch.setattr(sweeping, "SLICE", 0.0)
    keys = [b"key-%d" % n for n in range(400)]

    async def main() -> None:
        settings = CacheSettings(max_bytes=4 << 20, max_size=50_000)
        cache = Cache.open(settings, runtime_dir=tmp_path, state_dir=tmp_path, mode="on")
        for key in keys:
            cache.set(key, b"\0\xc0", Terms(3600, grace=60))
        async with trio.open_nursery() as nursery:
            ended = trio.Event()

            async def clear() -> None:
                await cache.clear("key-*")
                ended.set()

            nursery.start_soon(clear)
            await trio.lowlevel.checkpoint()
            while not ended.is_set():
                for key in keys:
                    if how == "expire":
                        cache.expire(key)
                    else:
                        cache.touch(key, 600)
                # Some that come in its course stay.
                cache.set(b"key-new", b"\0\xc0", Terms(3600))
                await trio.lowlevel.checkpoint()
        assert [key for key in keys if cache.held(key, stale=True)] == []
        assert cache.peek(b"key-new")
        cache.close()

    trio.run(main)
