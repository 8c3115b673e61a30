"""The curve through a real daemon: its words, its figures, and that they come true."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until
from support.terminal import on_a_terminal

ENTRIES = 250
"""So that twice as many are modelled in full: nothing depends on what is sampled."""
CONFIG = f"""\
[performance.advice]
interval = 0.1
[performance.cache]
max_size = {ENTRIES}
"""
PROGRAM = [sys.executable, "-m", "bi_performance_ctl.main"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    (tmp_path / "performance.toml").write_text(CONFIG)
    with DaemonProcess(tmp_path, "--config", str(tmp_path / "performance.toml")) as running:
        yield running


def trace(count: int = 6000) -> list[int]:
    """Requests of which the less lately made are the less likely: LRU is best for them."""
    rng = random.Random(11)
    stack: list[int] = []
    found = []
    for n in range(count):
        if stack and rng.random() < 0.8:
            key = stack.pop(-1 - min(len(stack) - 1, int(rng.expovariate(1 / 250))))
        else:
            key = n
        stack.append(key)
        found.append(key)
    return found


def play(daemon: DaemonProcess, keys: list[int]) -> float:
    """The share of the reads that hit; what is missing is stored."""
    hits = 0
    with RawClient(daemon.socket, timeout=60) as client:
        for key in keys:
            if client.result("cache.get", key=str(key)) is None:
                client.result("cache.set", key=str(key), value="a page")
            else:
                hits += 1
    return hits / len(keys)


def curve(daemon: DaemonProcess) -> dict[str, Any]:
    with RawClient(daemon.socket) as client:
        found: dict[str, Any] = client.result("cache.curve")
        return found


def at(found: dict[str, Any], size: float) -> dict[str, Any]:
    point: dict[str, Any] = next(each for each in found["points"] if each["size"] == size)
    return point


def run(daemon: DaemonProcess, *words: str) -> str:
    return subprocess.run(
        [*PROGRAM, "--socket", str(daemon.socket), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    ).stdout


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_what_the_curve_says_of_another_size_happens_when_it_is_set(
    daemon: DaemonProcess, size: float
) -> None:
    keys = trace()
    hit_rate = play(daemon, keys)
    told = curve(daemon)
    assert told["hit_rate"] == pytest.approx(hit_rate, abs=0.001)
    assert at(told, 1.0)["hit_rate"] == pytest.approx(hit_rate, abs=0.02)
    point = at(told, size)
    assert point["max_size"] == round(size * ENTRIES)
    with RawClient(daemon.socket) as client:
        client.result("server.adjust", setting="cache.max_size", value=point["max_size"])
        client.result("cache.clear")
    assert play(daemon, keys) == pytest.approx(point["hit_rate"], abs=0.02)


def test_it_is_drawn_in_a_terminal_and_told_as_json_and_over_http(daemon: DaemonProcess) -> None:
    before = run(daemon, "cache", "curve")
    assert "Not known yet: 0 of" in before
    play(daemon, trace(2500))
    text = run(daemon, "cache", "curve")
    assert f"cache.max_size is {ENTRIES} entries" in text
    assert "█" in text
    assert "± 0.0" in text
    drawn = on_a_terminal([*PROGRAM, "--socket", str(daemon.socket), "cache", "curve"], columns=80)
    plain = [line for line in drawn.replace("\r", "").splitlines() if "\x1b" not in line]
    assert max(len(line) for line in plain) <= 80
    told = json.loads(run(daemon, "cache", "curve", "--json-output"))
    assert told["points"][0]["size"] == 0.125
    assert told["limit"] == "entries"
    address = f"{daemon.http_url}/performance/cache/curve"
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert json.load(answer).keys() == told.keys()


def test_the_metrics_carry_it_where_it_is_known(daemon: DaemonProcess) -> None:
    def lines(name: str) -> list[str]:
        with RawClient(daemon.socket) as client:
            text: str = client.result("metrics", format="prometheus")["text"]
        start = f"bi_performance_cache_curve_{name}_ratio{{"
        return [line for line in text.splitlines() if line.startswith(start)]

    assert lines("hit") == []
    play(daemon, trace(2500))
    with RawClient(daemon.socket) as client:
        points = client.result("metrics")["cache_curve"]["points"]
    known = {f"{each['size']:g}": each["hit_rate"] for each in points if each["hit_rate"]}
    told = dict(re.findall(r'size="([\d.]+)"} ([\d.e-]+)', "\n".join(lines("hit"))))
    assert {size: float(rate) for size, rate in told.items()} == known
    assert "1" in known
    assert len(lines("margin")) == len(known)


def test_what_is_recommended_is_what_the_curve_predicts(daemon: DaemonProcess) -> None:
    play(daemon, trace())
    points = {point["max_size"]: point["hit_rate"] for point in curve(daemon)["points"]}
    with RawClient(daemon.socket) as client:

        def as_drawn() -> bool:
            found = client.result("recommendations")["recommendations"]
            said = next((each for each in found if "curve" in each["evidence"]), None)
            if said is None:
                return False
            assert said["id"] == "cache.too_small"
            *words, size = said["command"].split()
            assert words == ["bi-performance", "config", "set", "cache.max_size"]
            assert int(size) in (2 * ENTRIES, 4 * ENTRIES, 8 * ENTRIES)
            rate = points[int(size)]
            # It looks every tenth of a second, so the first may be of before the end.
            return f"to {rate:.1%}" in said["expected_effect"]

        wait_until(as_drawn, what="a recommendation by the curve")


def test_reads_in_place_are_heard(daemon: DaemonProcess) -> None:
    cache = PerformanceOptimizer(str(daemon.socket), mode="on").sync.cache
    wait_until(lambda: cache.set("one", 1), what="a set")
    stored = 0

    def heard() -> bool:
        nonlocal stored
        for _ in range(20):
            # Time passes by what is stored, as the policy counts it.
            stored += cache.set(f"other {stored}", 1)
        cache.get("one")
        return bool(at(curve(daemon), 1.0)["accesses"] > stored + 5)

    wait_until(heard, what="hits in place")


def test_it_begins_anew_with_nothing_said_after_a_restart(daemon: DaemonProcess) -> None:
    play(daemon, trace(2500))
    assert at(curve(daemon), 1.0)["hit_rate"] is not None
    daemon.kill9()
    daemon.start()
    found = curve(daemon)
    assert found["hit_rate"] is None
    assert all(point["hit_rate"] is None for point in found["points"])
