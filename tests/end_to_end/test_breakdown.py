"""`cache by`: the cache's figures by what keys begin with, and by the processes that read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance_wire.commands import BY_NAME
from support.daemon import DaemonProcess, wait_until
from support.patient import be_patient, hit


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("breakdown"), http="off") as running:
        yield running


@pytest.fixture
def optimizer(daemon: DaemonProcess) -> Iterator[PerformanceOptimizer]:
    made = PerformanceOptimizer(str(daemon.socket))
    made.sync.cache.clear()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_patient(monkeypatch)


def by_prefix(optimizer: PerformanceOptimizer, limit: int = 20) -> dict[str, Any]:
    found = optimizer.sync.cache.breakdown("prefix", limit)
    assert found is not None and found["by"] == "prefix"
    return {each["prefix"]: each for each in found["prefixes"]} | {"other": found["other"]}


def test_entries_and_bytes_of_each_prefix_are_exact(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    cache.set_many({f"https://shop.example/{n}": "x" * 100 for n in range(30)})
    cache.set_many({f"user:{n}": 1 for n in range(20)})
    cache.set("greeting", "hello")
    hit(cache, "user:1")
    found = by_prefix(optimizer)
    shop, user = found["https://shop.example/"], found["user:"]
    assert (shop["entries"], user["entries"], found[""]["entries"]) == (30, 20, 1)
    assert user["unread_entries"] == 19 and shop["size_bytes"] > 30 * 100
    stats = cache.stats()
    assert stats is not None
    assert sum(each["size_bytes"] for each in found.values() if each) == stats["size_bytes"]


def test_beyond_the_limit_prefixes_are_told_together(optimizer: PerformanceOptimizer) -> None:
    # More than a sweep tells apart.
    optimizer.sync.cache.set_many({f"p{n}:1": "x" * (200 if n < 3 else 1) for n in range(3000)})
    found = by_prefix(optimizer, 3)
    assert set(found) == {"p0:", "p1:", "p2:", "other"}
    assert found["other"]["prefix"] is None
    assert sum(each["entries"] for each in found.values()) == 3000


def test_the_hit_rate_of_a_prefix_comes_with_its_error(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    cache.set_many({f"well:{n}": 1 for n in range(10)})

    def asked() -> dict[str, Any] | None:
        for number in range(2000):
            cache.get(f"well:{number % 10}")
        for number in range(50):
            cache.get(f"badly:{number}")
        found = by_prefix(optimizer, 1000)
        enough = "badly:" in found and "well:" in found and found["well:"]["hits"] > 4000
        return found if enough else None

    found = wait_until(asked, what="enough of a sample")
    well, badly = found["well:"], found["badly:"]
    assert well["hit_rate"] > 0.9 and badly["hit_rate"] < 0.1
    assert well["hit_rate_error"] >= 0 and badly["hit_rate_error"] > 0
    assert badly["entries"] == 0 and badly["misses"] > 0


def test_what_was_evicted_unread_is_told_by_prefix(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[performance.cache]\nmax_size = 100\n")
    with DaemonProcess(tmp_path, "--config", str(tmp_path / "config.toml"), http="off") as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        optimizer.sync.cache.set_many({f"log:{n}": 1 for n in range(1100)})
        log = by_prefix(optimizer)["log:"]
        # As many as left: of those that the daemon remembers all were of this prefix.
        assert log["entries"] == 100 and log["evicted_unread"] == pytest.approx(1000)
        optimizer.close()


def test_metrics_tell_of_configured_prefixes_and_of_no_others(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[performance.cache]\nprefixes = ["shop:eu:", "shop:"]\n')
    with DaemonProcess(tmp_path, "--config", str(tmp_path / "config.toml")) as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        cache = optimizer.sync.cache
        cache.set_many({"shop:eu:1": 1, "shop:us:1": 1, "shop:us:2": 1, "private:1": 1})

        def told() -> str | None:
            for _ in range(300):
                cache.get("shop:us:1")
            cache.get("shop:eu:0")
            text = httpx.get(
                f"{daemon.http_url}/performance/metrics?format=prometheus", trust_env=False
            ).text
            swept = 'bi_performance_prefix_entries{prefix="shop:"} 2.0' in text
            return text if swept and _value(text, "hits_total", "shop:") > 0 else None

        text = wait_until(told, what="figures of a prefix")
        assert 'bi_performance_prefix_entries{prefix="shop:eu:"} 1.0' in text
        assert _value(text, "evicted_unread_total", "shop:") == 0
        assert "private" not in text
        wait_until(lambda: _value(told() or "", "misses_total", "shop:eu:") > 0, what="a miss")
        assert {"shop:", "shop:eu:", "private:"} <= set(by_prefix(optimizer))
        optimizer.close()


def _value(text: str, name: str, prefix: str) -> float:
    label = f'bi_performance_prefix_{name}{{prefix="{prefix}"}} '
    found = [line for line in text.splitlines() if line.startswith(label)]
    return float(found[0].removeprefix(label)) if found else 0.0


def test_without_configured_prefixes_metrics_tell_of_none(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        url = f"{daemon.http_url}/performance/metrics?format=prometheus"
        assert "prefix" not in httpx.get(url, trust_env=False).text


def test_each_process_is_told_with_what_it_counted_and_those_that_left_together(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer
) -> None:
    other = PerformanceOptimizer(str(daemon.socket))
    cache = optimizer.sync.cache
    cache.set("key", 1)
    assert hit(cache, "key") == 1
    before = cache.breakdown("process")

    def told() -> dict[str, Any]:
        found = cache.breakdown("process", 1)
        assert found is not None and len(found["processes"]) == 1
        return found

    for _ in range(70):
        hit(other.sync.cache, "key")

    def missed_30_times() -> bool:
        # While the daemon has no turn a read counts nothing.
        other.sync.cache.get("no key")
        return bool(told()["processes"][0]["misses"] == 30)

    wait_until(missed_30_times, what="30 misses")
    found = told()
    assert before is not None
    (most,) = found["processes"]
    assert (most["hits"], most["misses"], most["hit_rate"]) == (70, 30, 0.7)
    assert most["pid"] == os.getpid() and most["pid_is_known"] and most["plausible"]
    assert most["name"] and len(most["instance"]) == 32 and most["attached_seconds"] >= 0
    assert found["more"] >= 1
    other.close()

    def left() -> bool:
        now = cache.breakdown("process")
        assert now is not None
        return bool(now["left"]["hits"] == before["left"]["hits"] + 70)

    wait_until(left, what="the figures of a process that left")


@pytest.mark.parametrize(("by", "limit"), [("colour", 20), ("prefix", 0), ("process", 1001)])
def test_what_cannot_be_broken_down_is_an_error_that_names_it(
    optimizer: PerformanceOptimizer, by: str, limit: int
) -> None:
    with pytest.raises(ValueError, match="by must be" if by == "colour" else "limit must be"):
        optimizer.sync.cache.breakdown(by, limit)


def command(daemon: DaemonProcess, *words: str) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bi_performance_ctl.main"),
            *("--socket", str(daemon.socket), "cache", "by", *words),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_the_command_prints_a_table_or_a_document(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer
) -> None:
    optimizer.sync.cache.set_many({"a\x1b[1m:1": 1, "b:1": "x" * 500, "plain": 1})
    assert optimizer.sync.cache.get("plain") == 1
    text = command(daemon, "prefix", "--limit", "2")
    assert "\x1b" not in text
    head, first, second, *_ = text.splitlines()[1:]
    assert first[head.index("prefix") :] == "b:" and "size" in head
    assert len(second) > head.index("prefix")
    document = json.loads(command(daemon, "prefix", "--json-output"))
    assert {each["prefix"] for each in document["prefixes"]} >= {"b:", ""}
    text = command(daemon, "process")
    assert str(os.getpid()) in text and "hit rate" in text


def test_prefixes_are_told_over_the_socket_alone() -> None:
    assert BY_NAME["cache.breakdown"].http is None
