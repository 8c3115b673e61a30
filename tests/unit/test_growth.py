"""A store that moves to another size while it is written to: nothing is lost, revived or stale."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from bi_performanced.cache import copying
from bi_performanced.cache.component import Cache
from bi_performanced.cache.terms import Terms
from bi_performanced.config import CacheSettings

KEYS = 4000


@pytest.mark.parametrize("clears", [False, True])
def test_changes_during_a_move_are_in_the_new_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clears: bool
) -> None:
    monkeypatch.setattr(copying, "LAST_ROUND", 20)
    monkeypatch.setattr(copying, "ANY_ROUND", 20)
    settings = CacheSettings(max_bytes=4 << 20, max_size=50_000)
    rng = random.Random(5)
    model: dict[bytes, bytes] = {}
    rounds = 0
    cleared = False

    def change(cache: Cache) -> None:
        key = b"key-%d" % rng.randrange(KEYS)
        if rng.random() < 0.3:
            cache.delete(key)
            model.pop(key, None)
        else:
            model[key] = b"\0" + rng.randbytes(60)
            cache.set(key, model[key], Terms(3600))

    async def main() -> None:
        nonlocal rounds, cleared
        cache = Cache.open(settings, runtime_dir=tmp_path, state_dir=tmp_path, mode="on")
        async with trio.open_nursery() as nursery:
            await nursery.start(cache.run)
            for n in range(KEYS):
                model[b"key-%d" % n] = b"\0value-%d" % n
                cache.set(b"key-%d" % n, model[b"key-%d" % n], Terms(3600))
            epoch = cache.epoch
            nursery.start_soon(cache.resize, 60_000, 3 << 20)
            while cache.epoch == epoch:
                rounds += 1
                for _ in range(50):
                    change(cache)
                if clears and not cleared and cache._home.copying:
                    assert await cache.clear(None, dry_run=False) == len(model)
                    model.clear()
                    cleared = True
                # Not a bare checkpoint: the thread that makes the file needs its turn too.
                await trio.sleep(0.0005)
            assert cache.stats().max_entries == 60_000
            for n in range(KEYS):
                key = b"key-%d" % n
                assert cache.get(key) == model.get(key)
            assert cache.stats().entries == len(model)
            nursery.cancel_scope.cancel()
        cache.close()
        # What a restart finds is the new store with the same entries.
        again = Cache.open(settings, runtime_dir=tmp_path, state_dir=tmp_path, mode="on")
        assert {key: again.get(key) for key in model} == model
        assert again.recovered == len(model)
        again.close()

    trio.run(main)
    if clears:
        assert cleared, "in the middle of the copy"
    else:
        assert rounds > 5, "the move was made in slices"
