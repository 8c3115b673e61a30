"""Values from one byte to the largest: what fits, what does not, and how much room they lose."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance_wire import layout as L
from bi_performanced.cache.memory import Geometry, Memory
from bi_performanced.cache.store import Store
from support.clients import RawClient
from support.daemon import DaemonProcess

MAX_BYTES = 4 << 20
LARGEST = Geometry.for_limits(1, MAX_BYTES).max_record
KEY = "key"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "config").mkdir()
    settings = f"[performance.cache]\nmax_bytes = {MAX_BYTES}\n"
    (folder / "config" / "performance.toml").write_text(settings)
    with DaemonProcess(folder) as running:
        yield running


def binary_of(size: int) -> bytes:
    """A payload of so many bytes that is a value."""
    return b"\0\xc6" + (size - 6).to_bytes(4, "big") + os.urandom(size - 6)


def test_a_value_of_the_limit_is_stored_and_one_byte_more_is_refused(daemon: DaemonProcess) -> None:
    limit = LARGEST - L.RECORD_OVERHEAD - len(KEY)
    with RawClient(daemon.socket) as client:
        for payload in (b"\0\x01", b"\0\xa1x", binary_of(limit - 1), binary_of(limit)):
            assert client.result("cache.set", key=KEY, payload=payload) == {"stored": 1}
            assert client.result("cache.get", key=KEY, payload=True) == payload
        error = client.error("cache.set", key=KEY, payload=binary_of(limit + 1))
        assert (error["code"], error["field"]) == ("too_large", "value")
        assert str(limit) in error["message"]
        kept = client.result("cache.get", key=KEY, payload=True)
        assert len(kept) == limit, "what was there is there"


@pytest.mark.parametrize("size", [1, 10, 100, 1000, 10_000, 100_000, LARGEST // 2, LARGEST])
def test_of_the_bytes_that_the_limit_allows_less_than_a_tenth_is_lost(size: int) -> None:
    """Lost is what cannot hold a record: remainders, and what a ring's end is too short for."""
    room = MAX_BYTES if size > 5000 else MAX_BYTES // 4
    value = bytes(min(size, LARGEST - L.RECORD_OVERHEAD - 10))
    count = 3 * room // (len(value) + L.RECORD_OVERHEAD + 10)
    store = Store(Memory.create(None, count, room, epoch=1))
    least = room
    for n in range(count):
        store.put(b"%010d" % n, value, expires=L.NEVER, now=1)
        if store.counters.evictions:
            least = min(least, store.live_bytes)
    assert store.counters.evictions and least > 0.9 * room
    store.close()


def test_what_compression_saves_is_in_the_statistics(daemon: DaemonProcess) -> None:
    optimizer = PerformanceOptimizer(str(daemon.socket))
    with RawClient(daemon.socket) as client:
        before = client.result("cache.stats")["levels"]["local"]
        assert before["compression_ratio"] is None and not before["compression"]["saved_bytes"]
        text = "a text that says the same again and again. " * 1000
        assert optimizer.sync.cache.set("text", text)
        stored = len(client.result("cache.get", key="text", payload=True))
        local = client.result("cache.stats")["levels"]["local"]
    raw = len(text) + 3
    assert local["compression"]["kept_raw_bytes"] == raw
    assert local["compression"]["saved_bytes"] == raw - stored > 0.9 * raw
    assert local["compression_ratio"] == pytest.approx(raw / stored)
    optimizer.close()
