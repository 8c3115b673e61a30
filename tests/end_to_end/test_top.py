"""`cache top`: the hottest keys, those missed most, the largest, the oldest, those never read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance_wire.commands import BY_NAME
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until
from support.patient import be_patient, hit

READS = 12_000
"""Some 47 samples: so many that a key of them is not taken for one of a few."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("top"), http="off") as running:
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


def top(optimizer: PerformanceOptimizer, by: str, limit: int = 20) -> dict[str, Any]:
    found = optimizer.sync.cache.top(by, limit)
    assert found is not None and found["by"] == by
    return found


def named(found: dict[str, Any], key: str | bytes) -> dict[str, Any] | None:
    return next((each for each in found["keys"] if each["key"] == key), None)


def test_the_hottest_key_comes_first_with_an_estimate_and_its_error(
    optimizer: PerformanceOptimizer,
) -> None:
    cache = optimizer.sync.cache
    cache.set_many({"hot": 1, "warm": 1, **{f"cool:{n}": 1 for n in range(50)}})
    for number in range(READS):
        cache.get("hot")
        if number % 4 == 0:
            cache.get("warm")
        cache.get(f"cool:{number % 50}") if number % 8 == 0 else None
    found = wait_until(
        lambda: (told := top(optimizer, "hits", 2))["keys"] and told, what="a sample of the hits"
    )
    first = found["keys"][0]
    assert first["key"] == "hot" and first["here"] and first["stored_bytes"] > 0
    assert first["at_least"] < first["count"] < first["at_most"]
    assert READS / 4 < first["count"] < 4 * READS
    assert found["counted"] >= first["count"] and found["seconds"] >= 0


def test_hits_of_a_process_that_has_left_and_of_foreign_clients_count(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer
) -> None:
    cache = optimizer.sync.cache
    cache.set_many({"read by one that left": 1, "read over the socket": 1})
    other = PerformanceOptimizer(str(daemon.socket))
    for _ in range(4000):
        other.sync.cache.get("read by one that left")
    other.close()
    with RawClient(daemon.socket) as client:
        for _ in range(20):
            client.result("cache.get_many", keys=["read over the socket"] * 100)
    wait_until(lambda: named(top(optimizer, "hits"), "read by one that left"))
    found = named(top(optimizer, "hits"), "read over the socket")
    assert found is not None and 500 < found["count"] < 8000


def test_what_is_asked_for_and_not_there_is_named_though_nobody_ever_stored_it(
    optimizer: PerformanceOptimizer,
) -> None:
    cache = optimizer.sync.cache
    numbers = count()

    def missed() -> dict[str, Any] | None:
        for _ in range(200):
            cache.get("absent")
        cache.get(f"absent but once:{next(numbers)}")
        found = top(optimizer, "misses", 1)["keys"]
        return found[0] if found and found[0]["key"] == "absent" else None

    found = wait_until(missed, what="the key that is missed most")
    stats = cache.stats()
    assert stats is not None
    assert found["here"] is False and not found["cut"]
    assert 0 < found["count"] <= stats["misses"]
    cache.set("absent", 1)
    first = top(optimizer, "misses", 1)["keys"][0]
    assert first["key"] == "absent" and first["here"] is True


def test_of_a_long_key_that_is_missed_the_beginning_is_shown_and_told_from_others(
    optimizer: PerformanceOptimizer,
) -> None:
    cache = optimizer.sync.cache
    beginning = "https://example.com/" + "long/" * 40

    def both() -> list[dict[str, Any]] | None:
        for end in "ab":
            cache.get(beginning + end)
        found = [each for each in top(optimizer, "misses", 200)["keys"] if each["cut"]]
        return found if len(found) == 2 else None

    for each in wait_until(both, what="two keys that begin alike"):
        assert beginning.startswith(each["key"]) and each["here"] is None


def test_the_largest_come_first_and_are_exact(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    cache.set_many({f"size:{n}": b"\xff" * 10 * n for n in range(1, 101)})
    found = top(optimizer, "size", 3)
    assert [each["key"] for each in found["keys"]] == ["size:100", "size:99", "size:98"]
    assert found["entries"] == 100 and found["keys"][0]["stored_bytes"] > 1000
    cache.delete("size:100")
    assert top(optimizer, "size", 1)["keys"][0]["key"] == "size:99"
    ages = [each["age_seconds"] for each in top(optimizer, "age", 1000)["keys"]]
    assert len(ages) == 99 and ages == sorted(ages, reverse=True)


def test_cold_keys_are_those_that_nobody_has_read(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    cache.set_many({f"cold:{n}": 1 for n in range(10)})
    for number in range(0, 10, 2):
        hit(cache, f"cold:{number}")
    found = top(optimizer, "cold")
    assert sorted(each["key"] for each in found["keys"]) == [f"cold:{n}" for n in range(1, 10, 2)]
    assert (found["entries"], found["unread"], found["unknown"]) == (10, 5, 0)
    assert found["unread_bytes"] == sum(each["stored_bytes"] for each in found["keys"])


def test_after_a_restart_it_is_not_known_who_was_read(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, http="off") as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        optimizer.sync.cache.set_many({f"key:{n}": 1 for n in range(5)})
        daemon.restart()
        found = wait_until(lambda: optimizer.sync.cache.top("cold"))
        assert (found["entries"], found["unread"], found["unknown"]) == (5, 0, 5)
        optimizer.close()


@pytest.mark.parametrize(("by", "limit"), [("heat", 20), ("hits", 0), ("size", 1001)])
def test_what_cannot_be_ranked_is_an_error_that_names_it(
    optimizer: PerformanceOptimizer, by: str, limit: int
) -> None:
    with pytest.raises(ValueError, match="by must be" if by == "heat" else "limit must be"):
        optimizer.sync.cache.top(by, limit)


def command(daemon: DaemonProcess, *words: str) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bi_performance_ctl.main"),
            *("--socket", str(daemon.socket), "cache", *words),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_the_command_prints_a_table_with_its_columns_below_each_other(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer
) -> None:
    optimizer.sync.cache.set_many({"a:\x1b[1m": os.urandom(3000), "b": 1, "c": "x" * 100})
    text = command(daemon, "top", "--by", "size", "--limit", "2")
    assert "\x1b" not in text and "Of 3 entries on this host." in text
    head, first, second = text.splitlines()[1:4]
    assert head.split() == ["size", "age", "time", "left", "key"]
    assert first[head.index("key") :].startswith("a:")
    assert second[head.index("key") :] == "c"
    document = json.loads(command(daemon, "top", "--by", "size", "--json-output"))
    assert document["entries"] == 3 and len(document["keys"]) == 3


def test_keys_are_ranked_over_the_socket_alone() -> None:
    assert BY_NAME["cache.top"].http is None
