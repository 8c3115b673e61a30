"""After kill -9: the entries, what is left of their time, and the hit rate."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from bi_performance.client import SyncCache
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance_wire import layout as L
from bi_performanced.cache.memory import boot_id
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until
from support.traffic import shifting, zipf

ENTRIES = 600
REQUESTS = 12_000
FORMAT_1 = (
    "c-rmSy-LGS7=YnZP207D7vLri#q{R_ilE{m+D)Al#YM0>xC>nc1;I&huy-IzFQSVsUWJ>BAXs|Rp%78T!Qpv^^O5i-"
    "fn-X^;_CWRdpQ&e;S0BM^d1KvXQ$7b+vEL}I9_J5?b*rwA<bqdo8>rK<9u!MGJ^mB008i}?ndi%_En-#{ONJ+(Yla)*"
    "UgXCe&S98008hG?4EZwhVQDqQkeJypjDX*p|f+aUrj^r=y0!^b|1>GF`UW|YcZ@{^xsxuIGrEXV^}}Fd^#D1TcwcXhm"
    "9CE-fyn%;~9(jVKatJj}rg@00000000000000000000000000000000000fM5Cqe9Scy"
)
"""The file of a store of four entries that a daemon of format 1 made, without the boot's id."""


def replay(cache: SyncCache, requests: list[int]) -> int:
    """Ask for each key and store what is missing; how many were there."""
    hits = 0
    for key in requests:
        if cache.get(f"page:{key}") is None:
            assert cache.set(f"page:{key}", key)
        else:
            hits += 1
    return hits


@pytest.mark.parametrize("made", [zipf, shifting], ids=["steady", "the popular keys change"])
def test_the_hit_rate_after_a_kill_is_within_a_point_of_a_daemon_that_went_on(
    tmp_path: Path, made: Callable[..., list[int]]
) -> None:
    requests = made(REQUESTS, keys=4000, seed=8)
    middle = REQUESTS // 2
    rates = {}
    for kind in ("killed", "went on"):
        (tmp_path / kind).mkdir()
        env = {"PERFORMANCE_CACHE_MAX_SIZE": str(ENTRIES)}
        with DaemonProcess(tmp_path / kind, env=env) as daemon:
            optimizer = PerformanceOptimizer(str(daemon.socket))
            cache = optimizer.sync.cache
            before = replay(cache, requests[:middle])
            if kind == "killed":
                last = f"page:{requests[middle - 1]}"
                daemon.restart()
                wait_until(lambda: cache.get(last) is not None, what="the entries")  # noqa: B023
            rates[kind] = 100 * replay(cache, requests[middle:]) / (REQUESTS - middle)
            optimizer.close()
    assert before > middle / 4, "there is something to lose"
    assert rates["killed"] > rates["went on"] - 1.0, rates


def test_a_kill_keeps_every_entry_with_what_is_left_of_its_time(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        cache = optimizer.sync.cache
        times = {f"page:{n}": 1000.0 + n for n in range(300)}
        for key, ttl in times.items():
            assert cache.set(key, [key], ttl)
        assert cache.set("soon", 1, 0.8) and cache.get("soon") == 1
        began = time.monotonic()
        daemon.restart()
        wait_until(lambda: cache.get("page:0") is not None, what="the entries")
        for key, ttl in times.items():
            entry = cache.get_entry(key)
            assert entry is not None and entry.value == [key] and entry.ttl is not None
            assert 0 <= ttl - entry.ttl < time.monotonic() - began + 60
        wait_until(lambda: cache.get("soon") is None, what="the end of the one that had little")
        optimizer.close()


def test_a_store_of_an_older_format_is_set_aside_and_said(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path)
    image = bytearray(zlib.decompress(base64.b85decode(FORMAT_1)))
    image[8 * L.W_BOOT_ID : 8 * L.W_BOOT_ID + 16] = boot_id()
    (daemon.runtime / "store").write_bytes(image)
    with daemon:
        (said,) = (each for each in daemon.log_events() if each["event"] == "cache.set_aside")
        newer = L.MAGIC.to_bytes(8, "little")[7]
        assert said["reason"] == f"a store of format 1; this version has format {newer}"
        with RawClient(daemon.socket) as client:
            assert client.result("cache.get", key="page-1") is None
            assert client.result("cache.set", key="page-1", value="new") == {"stored": 1}
            assert client.result("status")["status"] == "ok"
