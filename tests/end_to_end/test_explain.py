"""`cache explain`: why a key is a hit or a miss, on every level, and when and why it went."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance_wire.commands import BY_NAME
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until
from support.hosts import Host, make_hosts
from support.patient import be_patient
from support.redis import RedisServer

CONFIG = """
[performance.cache]
max_size = 60
max_bytes = "8MiB"
[performance.leases]
ttl = 30
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("explain")
    (folder / "config.toml").write_text(CONFIG)
    with DaemonProcess(folder, "--config", str(folder / "config.toml"), http="off") as running:
        yield running


@pytest.fixture(scope="module")
def optimizer(daemon: DaemonProcess) -> Iterator[PerformanceOptimizer]:
    made = PerformanceOptimizer(str(daemon.socket))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_patient(monkeypatch)


class Told:
    """What one daemon tells of its keys."""

    def __init__(self, daemon: DaemonProcess, optimizer: PerformanceOptimizer) -> None:
        self.cache = optimizer.sync.cache
        self.daemon = daemon

    def of(self, key: str | bytes) -> dict[str, Any]:
        found = self.cache.explain(key)
        assert found is not None
        assert found["outcome"] in ("hit", "stale", "miss") and found["why"]
        return found

    def reason(self, key: str) -> str:
        return str(self.of(key)["reason"])


@pytest.fixture
def told(daemon: DaemonProcess, optimizer: PerformanceOptimizer) -> Told:
    return Told(daemon, optimizer)


def test_a_hit_is_told_with_where_it_is_and_what_it_carries(told: Told) -> None:
    value = "word " * 4000
    assert told.cache.set("shown", value, ttl=600, tags=["shop", "eu"], grace=60, sliding=True)
    found = told.of("shown")
    assert (found["outcome"], found["level"], found["reason"]) == ("hit", "local", "fresh")
    here = found["local"]
    assert 0 <= here["age_seconds"] < 300 and 300 < here["ttl_seconds"] <= 600
    assert (here["grace_seconds"], here["sliding_seconds"]) == (60, 600)
    assert sorted(here["tags"]) == ["eu", "shop"]
    assert here["compressed"] and here["raw_bytes"] > 20_000 > 1000 > here["value_bytes"]
    assert here["value_bytes"] < here["stored_bytes"]
    assert not here["shared"] and here["policy"] == "lru" and 0 <= here["order"] <= 1
    assert found["redis"] is None and found["lease"] is None and found["past"] is None


def test_being_explained_is_no_use_of_an_entry(told: Told) -> None:
    told.cache.set("left alone", 1)
    told.cache.get("left alone")
    before = told.cache.stats()
    here = [told.of("left alone")["local"]["reads_noted"] for _ in range(5)]
    told.of("left alone, and not there")
    after = told.cache.stats()
    assert before is not None and after is not None
    assert (after["hits"], after["misses"]) == (before["hits"], before["misses"])
    assert len(set(here)) == 1


def test_an_entry_beyond_its_time_is_stale_in_its_grace_and_expired_after_it(told: Told) -> None:
    told.cache.set("graced", 1, ttl=0.05, grace=600)
    told.cache.set("short", 1, ttl=0.05)
    wait_until(lambda: told.reason("graced") == "in_grace")
    found = told.of("graced")
    assert found["outcome"] == "stale" and found["local"]["ttl_seconds"] == 0
    assert 500 < found["local"]["served_stale_for_seconds"] <= 600
    wait_until(lambda: told.reason("short") == "expired")
    assert told.of("short")["outcome"] == "miss"
    # The sweep has passed it: what is told now is remembered.
    wait_until(lambda: told.of("short")["local"] is None)
    found = told.of("short")
    assert (found["reason"], found["past"]["why"]) == ("expired", "expired")


def test_a_deletion_is_remembered_also_of_a_key_that_was_not_there(told: Told) -> None:
    told.cache.set("deleted", 1)
    told.cache.delete("deleted")
    found = told.of("deleted")
    assert (found["outcome"], found["reason"]) == ("miss", "deleted")
    assert found["past"]["stored_bytes"] and found["past"]["ago_seconds"] >= 0
    told.cache.delete("deleted before it came")
    assert "no entry" in told.of("deleted before it came")["why"]


def test_a_clear_is_named_by_its_pattern_or_tag(told: Told) -> None:
    told.cache.set("cleared:1", 1)
    told.cache.clear("cleared:*")
    found = told.of("cleared:1")
    assert found["reason"] == "cleared" and "'cleared:*'" in found["why"]
    assert found["past"]["cleared"]["pattern"] == "cleared:*"
    told.cache.set("tagged", 1, tags=["blue", "red"])
    told.cache.clear(tags=["red"])
    found = told.of("tagged")
    assert found["reason"] == "cleared" and "the tag red" in found["why"]


def test_a_clear_of_everything_is_told_from_what_still_lies_in_the_rings(told: Told) -> None:
    told.cache.set("there before", [1, 2, 3])
    told.cache.set("deleted before", 1)
    told.cache.delete("deleted before")
    told.cache.clear()
    found = told.of("there before")
    assert found["reason"] == "cleared" and "with everything" in found["why"]
    assert told.reason("deleted before") == "deleted"
    found = told.of("never there")
    assert found["reason"] == "unknown" and "everything was cleared" in found["unknown"]["past"]


def test_an_evicted_key_says_whether_it_had_been_read(told: Told) -> None:
    told.cache.clear()
    told.cache.set("read once", 1)
    told.cache.set("never read", 1)
    assert told.cache.get("read once") == 1
    wait_until(
        lambda: (
            told.cache.set(f"filler:{random.random()}", 1)
            and told.reason("read once") == "evicted" == told.reason("never read")
        ),
        what="both evicted",
    )
    assert told.of("read once")["past"]["read"] is True
    assert told.of("never read")["past"]["read"] is False
    assert "without having been read" in told.of("never read")["why"]


def test_what_was_not_let_in_is_told_with_the_reason(told: Told) -> None:
    with RawClient(told.daemon.socket) as client:
        client.error("cache.set", key="large", payload=b"\0" + bytes(4 << 20))
        found = told.of("large")
        assert found["reason"] == "too_large" and f"{(4 << 20) + 1:,} bytes" in found["why"]
        lease = client.result("cache.lease", key="raced")
        told.cache.delete("raced")
        client.result("cache.set", key="raced", payload=b"\0\1", token=lease["token"])
        assert told.reason("raced") == "refused"


def test_who_loads_a_key_and_how_many_wait_is_told(told: Told) -> None:
    with RawClient(told.daemon.socket) as leader, RawClient(told.daemon.socket) as waiter:
        lease = leader.result("cache.lease", key="loading")
        waiter.send("cache.lease", key="loading", wait=30)
        wait_until(lambda: told.of("loading")["lease"]["waiting"] == 1)
        found = told.of("loading")["lease"]
        assert found["pid"] == os.getpid() and found["uid"] == os.getuid()
        assert found["held_seconds"] >= 0 and 0 < found["left_seconds"] <= 30
        assert not found["void"]
        told.cache.delete("loading")
        assert told.of("loading")["lease"]["void"]
        assert "will be refused" in " ".join(told.of("loading")["more"])
        leader.result("cache.release", token=lease["token"])


def test_a_key_that_nobody_ever_stored_is_said_to_be_that_and_no_more(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, http="off") as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        told = Told(daemon, optimizer)
        assert told.reason("never") == "never_seen"
        told.cache.set("kept", 1)
        daemon.restart()
        # An earlier daemon's memory of what left is gone, and with it the claim.
        found = wait_until(lambda: told.cache.explain("never"))
        assert found["reason"] == "never_seen" and "this daemon began" in found["why"]
        assert told.reason("kept") == "fresh"
        optimizer.close()


def test_a_namespace_with_a_quota_claims_no_more_than_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[performance.cache]\ntenants = ["shop=64 KiB/20"]\n')
    with DaemonProcess(tmp_path, "--config", str(tmp_path / "config.toml"), http="off") as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        shop = optimizer.sync.cache.namespace("shop")
        shop.set("page", 1)
        assert shop.get("page") == 1
        found = shop.explain("page")
        assert found is not None and found["key"] == "page" and found["outcome"] == "hit"
        here = found["local"]
        assert here["namespace"] == "shop" and here["order"] is None
        assert here["policy"].startswith("second-chance FIFO")
        shop.set_many({f"filler:{number}": 1 for number in range(60)})
        found = shop.explain("page")
        assert found is not None and found["reason"] == "evicted"
        assert found["past"]["read"] is None, "a second chance takes the uses away"
        with RawClient(daemon.socket) as client:
            client.error("cache.set", key="\x1fshop\x1flarge", payload=b"\0" + bytes(70_000))
        found = shop.explain("large")
        assert found is not None and found["reason"] == "too_large"
        optimizer.close()


def test_bytes_and_await_work_as_ever(told: Told, daemon: DaemonProcess) -> None:
    told.cache.set(b"\xff\xfe", 1)
    assert told.of(b"\xff\xfe")["key"] == b"\xff\xfe"

    async def ask() -> dict[str, Any] | None:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        try:
            return await optimizer.cache.explain(b"\xff\xfe")
        finally:
            await optimizer.aclose()

    found = asyncio.run(ask())
    assert found is not None and found["outcome"] == "hit"


def test_without_a_daemon_there_is_no_explanation_and_no_error(tmp_path: Path) -> None:
    optimizer = PerformanceOptimizer(str(tmp_path / "no.sock"))
    assert optimizer.sync.cache.explain("key") is None
    optimizer.close()


def command(daemon: DaemonProcess, *words: str) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bi_performance_ctl.main"),
            *("--socket", str(daemon.socket), "cache", "explain", *words),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_the_command_prints_sentences_and_a_table_or_a_document(told: Told) -> None:
    told.cache.set("shop:\x1b[31m1", "x" * 9000, ttl=600, tags=["shop"])
    text = command(told.daemon, "shop:\x1b[31m1")
    assert "\x1b" not in text and "● hit" in text
    assert "A read hits: the entry is in the store of this host" in text
    rows = dict(line.strip().split("  ", 1) for line in text.splitlines() if line[:3] == "  s")
    assert rows["state"].strip() == "fresh"
    assert {line.index(value) for line, value in _values(text)} == {len("  in the store  ")}
    document = json.loads(command(told.daemon, "shop:\x1b[31m1", "--json-output"))
    assert document["outcome"] == "hit" and document["local"]["tags"] == ["shop"]


def _values(text: str) -> Iterator[tuple[str, str]]:
    """Some lines of the table, and what stands in their second column."""
    for label in ("  state ", "  tags ", "  value "):
        line = next(line for line in text.splitlines() if line.startswith(label))
        yield line, line.removeprefix(label).split()[0]


def test_keys_are_told_over_the_socket_alone() -> None:
    assert BY_NAME["cache.explain"].http is None


# ── with Redis and another host


def of(host: Host, key: str) -> dict[str, Any]:
    found = host.cache.explain(key)
    assert found is not None
    return found


def test_what_only_redis_has_is_a_hit_there_and_is_not_brought_here(
    hosts: tuple[Host, Host],
) -> None:
    one, other = hosts
    one.cache.set("there", "x" * 100, ttl=600, tags=["t"], grace=60)
    wait_until(lambda: of(other, "there")["redis"]["present"])
    figures = other.redis_figures()
    found = of(other, "there")
    assert (found["outcome"], found["level"], found["reason"]) == ("hit", "redis", "in_redis")
    there = found["redis"]
    assert there["state"] == "fresh" and 300 < there["ttl_seconds"] <= 600
    assert there["tags"] == ["t"] and there["value_bytes"] > 100 and "-" in there["version"]
    assert found["local"] is None
    assert other.redis_figures()["hits"] == figures["hits"], "it is counted nowhere"


def left(hosts: tuple[Host, Host], key: str, act: Callable[[str], object]) -> dict[str, Any]:
    """What one host tells of a key that it had from the other, which then did something."""
    one, other = hosts
    one.cache.set(key, 1, ttl=600)
    # The news of that may come after the value itself, which goes with it then, and comes again.
    wait_until(lambda: other.cache.get(key) == 1 and of(other, key)["local"] is not None)
    act(key)
    found: dict[str, Any] = wait_until(lambda: _told_gone(other, key), what="an entry that went")
    return found


def _told_gone(host: Host, key: str) -> dict[str, Any] | None:
    found = of(host, key)
    return found if found["local"] is None else None


def test_a_change_on_another_host_is_told_as_that(hosts: tuple[Host, Host]) -> None:
    one, other = hosts
    found = left(hosts, "changed", lambda key: one.cache.set(key, 2, ttl=600))
    assert found["past"]["why"] == "elsewhere" and "another host" in " ".join(
        [found["why"], *found["more"]]
    )
    wait_until(lambda: of(other, "changed")["reason"] == "in_redis")


def test_a_clear_on_another_host_is_told_as_that(hosts: tuple[Host, Host]) -> None:
    one, _ = hosts

    def cleared(name: str) -> dict[str, Any] | None:
        # With a key of its own each time: see `left`.
        found = left(hosts, name, lambda key: one.cache.clear("swept:*"))
        return found if found["past"]["why"] == "cleared" else None

    names = (f"swept:{number}" for number in count())
    found = wait_until(lambda: cleared(next(names)))
    assert found["past"]["cleared"] == {"pattern": "swept:*", "tags": [], "another_host": True}
    assert "another host" in found["why"]


def test_what_is_no_entry_of_ours_in_redis_is_said_to_be_unreadable(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, _ = hosts
    redis.client.set("bi:perf:garbage", b"not an entry of ours")
    redis.client.rpush("bi:perf:list", b"x")
    for key in ("garbage", "list"):
        found = of(one, key)
        assert found["outcome"] == "miss" and found["redis"]["state"] == "unreadable"
        assert found["redis"]["reason"] in " ".join(found["more"])


def test_while_redis_is_away_what_it_has_is_unknown_and_deletions_wait(
    redis: RedisServer, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        (host,) = make_hosts(tmp_path, redis, stack, 1)
        host.cache.set("away", 1, ttl=600)
        host.proxy.flow.clear()
        host.proxy.drop()
        wait_until(lambda: not host.is_well(), what="Redis away")
        host.cache.delete("away")
        found = of(host, "away")
        assert (found["outcome"], found["reason"]) == ("miss", "deleted")
        assert found["redis"]["present"] is None and found["unknown"]["redis"]
        assert found["redis"]["waiting"] == "outbox"
