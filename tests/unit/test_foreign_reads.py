"""What the daemon decompresses for clients of other languages, and where."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import msgpack
import pytest
import trio
import zstandard

from bi_performance_wire.errors import WireError
from bi_performance_wire.types import CacheGet, CacheGetMany
from bi_performance_wire.value import decompress
from bi_performanced.handlers import cache as handlers


def compressed(count: int) -> bytes:
    """An entry of so many zeros: a few bytes for each 64 KiB of them."""
    raw: bytes = msgpack.packb(bytes(count))
    return b"\x01" + len(raw).to_bytes(4, "little") + zstandard.compress(raw)


class Entries:
    """Stands for the cache."""

    def __init__(self, **entries: bytes) -> None:
        self.entries = {key.encode(): entry for key, entry in entries.items()}
        self.asks = False

    def peek(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def count(self, payloads: list[bytes | None]) -> None:
        pass


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each entry that was decompressed, whether that was in the loop's own thread."""
    found: list[bool] = []

    def spy(payload: bytes) -> bytes:
        found.append(threading.current_thread() is threading.main_thread())
        return decompress(payload)

    monkeypatch.setattr(handlers, "decompress", spy)
    return found


def answer(cache: Any, args: CacheGet | CacheGetMany) -> Any:
    async def main() -> Any:
        if isinstance(args, CacheGet):
            found = handlers.get(cache, args)
        else:
            found = handlers.get_many(cache, args)
        return await found if inspect.isawaitable(found) else found

    return trio.run(main)


def test_a_small_entry_that_says_to_be_large_is_decompressed_in_a_thread(
    threads: list[bool],
) -> None:
    entry = compressed(1 << 20)
    assert len(entry) < 1000
    found = answer(Entries(key=entry), CacheGet(key="key"))
    assert msgpack.unpackb(bytes(found)) == bytes(1 << 20)
    assert threads == [False]


def test_a_small_one_is_decompressed_at_once(threads: list[bool]) -> None:
    found = answer(Entries(key=compressed(5000)), CacheGet(key="key"))
    assert msgpack.unpackb(bytes(found)) == bytes(5000)
    assert threads == [True]


@pytest.mark.parametrize(
    "args", [CacheGet(key="large"), CacheGetMany(keys=["half", "other"])], ids=["one", "several"]
)
def test_what_no_answer_holds_is_refused_before_it_is_decompressed(
    threads: list[bool], args: CacheGet | CacheGetMany
) -> None:
    half = compressed(20 << 20)
    with pytest.raises(WireError, match="bytes") as caught:
        answer(Entries(large=compressed(40 << 20), half=half, other=half), args)
    assert caught.value.code == "too_large"
    assert len(threads) == (0 if isinstance(args, CacheGet) else 1)
