"""Redis behind the store, as the processes of two hosts see it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until
from support.hosts import Host, empty, heard, make_hosts
from support.redis import RedisServer


def everywhere(hosts: tuple[Host, Host], key: str, value: object) -> bool:
    return all(host.cache.get(key) == value for host in hosts)


def test_what_one_host_stores_the_other_finds_by_a_miss(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    before = other.redis_figures()["hits"]
    assert one.cache.set("https://example.com/", {"title": "Example"}, ttl=60)
    wait_until(lambda: other.cache.get("https://example.com/") == {"title": "Example"})
    figures = other.redis_figures()
    assert figures["hits"] == before + 1, "the second read was in place"
    entry = other.cache.get_entry("https://example.com/")
    assert entry.level == "local" and entry.ttl is not None and 50 < entry.ttl <= 60
    names = list(redis.client.keys("bi:perf:*"))
    assert names == [b"bi:perf:https://example.com/"]
    assert 0 < redis.client.pttl(names[0]) <= 60_000


def test_a_change_on_one_host_takes_effect_on_the_other(hosts: tuple[Host, Host]) -> None:
    one, other = hosts
    one.cache.set_many({"a": 1, "b": 2, "c": 3}, ttl=60)
    wait_until(lambda: other.cache.get_many(["a", "b", "c"]) == {"a": 1, "b": 2, "c": 3})
    other.cache.set("a", 11)
    one.cache.delete("b")
    wait_until(lambda: everywhere(hosts, "a", 11) and everywhere(hosts, "b", None))
    assert everywhere(hosts, "c", 3)


def test_clears_reach_the_other_host(hosts: tuple[Host, Host], redis: RedisServer) -> None:
    one, other = hosts
    redis.client.set("foreign", "stays")
    one.cache.set_many({"shop:1": 1, "shop:2": 2}, tags=["shop"])
    one.cache.set("news:1", 1, tags=["news"])
    one.cache.set("graced", 1, grace=600)
    keys = ["shop:1", "shop:2", "news:1", "graced"]
    wait_until(lambda: len(other.cache.get_many(keys)) == 4, what="all on the other host")
    other.cache.clear(tags=["news"])
    wait_until(lambda: everywhere(hosts, "news:1", None), what="no tagged entry")
    other.cache.clear("shop:*")
    wait_until(
        lambda: all(host.cache.get_many(["shop:1", "shop:2"]) == {} for host in hosts),
        what="no entry that matches",
    )
    other.cache.clear(stale=True)
    wait_until(lambda: one.cache.get("graced") is None, what="a stale entry")
    assert one.cache.get_entry("graced").stale
    one.cache.clear()
    wait_until(lambda: not other.cache.get_entry("graced").found, what="nothing")
    wait_until(lambda: not redis.client.keys("bi:perf:*"), what="no key of ours")
    assert redis.client.get("foreign") == b"stays"


def test_what_is_for_this_host_alone_stays_there(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    one.cache.set("mine", 1, local=True)
    one.cache.set("ours", 1, ttl=600, redis_ttl=30)
    wait_until(lambda: other.cache.get("ours") == 1)
    assert redis.client.exists("bi:perf:mine") == 0 and other.cache.get("mine") is None
    assert one.cache.get("mine") == 1
    assert 0 < redis.client.pttl("bi:perf:ours") <= 30_000


def test_a_key_is_new_for_one_of_all_hosts(hosts: tuple[Host, Host]) -> None:
    one, other = hosts
    for n in range(50):
        first, second = (one, other) if n % 2 else (other, one)
        assert first.cache.seen(f"page-{n}") is False
        assert second.cache.seen(f"page-{n}") is True


def test_a_stale_entry_is_stale_on_both(hosts: tuple[Host, Host]) -> None:
    one, other = hosts
    one.cache.set("key", "value", grace=600)
    wait_until(lambda: other.cache.get("key") == "value")
    assert other.cache.expire("key")
    wait_until(lambda: one.cache.get("key") is None, what="a stale entry")


def test_without_redis_it_is_a_cache_of_this_host_and_it_returns_by_itself(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    one.cache.set("before", 1)
    wait_until(lambda: other.cache.get("before") == 1)
    redis.stop()
    wait_until(lambda: not one.is_well() and not other.is_well(), what="degraded")
    assert "Redis is away" in one.status()["reason"]
    assert one.cache.set("during", 1) and one.cache.get("during") == 1
    assert other.cache.get("during") is None
    assert one.cache.delete("before") and one.cache.get("before") is None
    redis.resume()
    for host in hosts:
        host.wait_well()
    assert one.cache.get("during") == 1
    assert other.cache.get("during") is None, "what was stored without Redis is this host's"
    assert everywhere(hosts, "before", None)
    one.cache.set("during", 2)
    wait_until(lambda: everywhere(hosts, "during", 2))


def test_a_redis_that_comes_back_empty_takes_with_it_what_it_had_said(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    one.cache.set("shared", 1)
    one.cache.set("mine", 1, local=True)
    wait_until(lambda: other.cache.get("shared") == 1)
    redis.restart()
    wait_until(lambda: everywhere(hosts, "shared", None), what="no shared entry")
    for host in hosts:
        host.wait_well()
    assert one.cache.get("mine") == 1, "what is for this host alone has nothing to do with it"

    def stored() -> bool:
        # A connection that notices the restart only now may cost what is written just then.
        one.cache.set("shared", 2)
        return everywhere(hosts, "shared", 2)

    wait_until(stored, what="the new value on both hosts")


def test_a_daemon_starts_without_redis_and_never_tells_the_password(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("alone")
    url = "redis://someone:hunter2@127.0.0.1:1/0"
    with DaemonProcess(folder, env={"REDIS_URL": url}) as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        cache = optimizer.sync.cache
        assert cache.set("key", 1) and cache.get("key") == 1
        import httpx

        shown = wait_until(
            lambda: [
                text
                for text in [
                    httpx.get(f"{daemon.http_url}/performance/status", trust_env=False).text
                ]
                if "degraded" in text
            ]
        )
        stats = str(cache.stats())
        optimizer.close()
        for text in (*shown, stats, daemon.log.read_text()):
            assert "hunter2" not in text and "someone" not in text


def test_write_through_answers_once_redis_has_it(
    redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("through")
        (host,) = make_hosts(folder, redis, stack, 1, 'write = "through"')
        for n in range(50):
            host.cache.set(f"through-{n}", n)
            assert redis.client.exists(f"bi:perf:through-{n}") == 1
            host.cache.delete(f"through-{n}")
            assert redis.client.exists(f"bi:perf:through-{n}") == 0


def test_it_is_told_how_redis_is(hosts: tuple[Host, Host], redis: RedisServer) -> None:
    import subprocess
    import sys

    import httpx

    one, other = hosts
    one.cache.set("told", 1)
    wait_until(lambda: other.cache.get("told") == 1)
    text = httpx.get(
        f"{other.daemon.http_url}/performance/metrics?format=prometheus", trust_env=False
    ).text
    assert "bi_performance_redis_up 1.0" in text
    assert "bi_performance_redis_hits_total" in text
    command = [sys.executable, "-m", "bi_performance_ctl.main", "--socket"]

    def say(*words: str) -> str:
        return subprocess.run(
            [*command, str(other.daemon.socket), *words], capture_output=True, text=True
        ).stdout

    assert "Redis ok" in say("status")
    assert "the other hosts are heard" in say("doctor")
    assert "redis-py, GET" in say("benchmark", "--iterations", "50", "--redis", redis.unix_url)
    assert redis.client.keys("bi-performance benchmark*") == []


def test_a_full_redis_is_read_on_and_told_of_until_it_has_room(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    other.cache.set("there", 1)
    wait_until(lambda: other.redis_figures()["queued"] == 0, what="the value in Redis")
    redis.client.config_set("maxmemory", 1)
    try:
        assert one.cache.set("refused", 1)
        wait_until(lambda: "out of memory" in one.status().get("reason", ""), what="the reason")
        assert "away" not in one.status()["reason"]
        assert one.cache.get("there") == 1, "it is read on"
        assert one.cache.get("refused") == 1 and other.cache.get("refused") is None
    finally:
        redis.client.config_set("maxmemory", 0)
    one.wait_well()


def test_a_renewal_brings_nothing_back_that_another_host_has_deleted_or_changed(
    hosts: tuple[Host, Host],
) -> None:
    """Right behind the change, before this host can have heard of it."""
    one, other = hosts
    keys = [f"key-{n}" for n in range(40)]
    for key in keys:
        one.cache.set(key, "old", ttl=60)
        wait_until(lambda: other.cache.get(key) == "old")  # noqa: B023 (done before the next)
    with RawClient(one.daemon.socket) as client:
        for n, key in enumerate(keys):
            if n % 2:
                other.cache.delete(key)
            else:
                other.cache.set(key, "new", ttl=60)
            client.result("cache.touch", key=key, ttl=600)
    for n, key in enumerate(keys):
        wanted = None if n % 2 else "new"
        wait_until(lambda: everywhere(hosts, key, wanted))  # noqa: B023 (done before the next)
    wait_until(lambda: one.redis_figures()["queued"] == 0)
    for n, key in enumerate(keys):
        assert everywhere(hosts, key, None if n % 2 else "new")


def test_a_renewal_is_for_all_hosts(hosts: tuple[Host, Host], redis: RedisServer) -> None:
    one, other = hosts
    one.cache.set("key", 1, ttl=30)
    wait_until(lambda: other.cache.get("key") == 1)
    with RawClient(one.daemon.socket) as client:
        assert client.result("cache.touch", key="key", ttl=600) == {"touched": True}
    wait_until(lambda: redis.client.pttl("bi:perf:key") > 500_000, what="the longer time in Redis")


def test_what_is_loaded_lives_shorter_in_redis_where_that_is_said(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, _ = hosts
    assert one.cache.get_or_set("loaded", lambda: 1, 600, redis_ttl=30) == 1
    wait_until(lambda: redis.client.exists("bi:perf:loaded"))
    assert 0 < redis.client.pttl("bi:perf:loaded") <= 30_000


def test_what_no_daemon_would_write_into_the_log_ends_no_daemon(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    one.cache.set("there", 1)
    wait_until(lambda: other.cache.get("there") == 1)
    odd: list[dict[Any, Any]] = [
        {"k": ""},
        {"o": "x", "k": ""},
        {"k": b"k" * 9000},
        {"p": b"\xc1"},
        {"": ""},
    ]
    for fields in odd:
        redis.client.xadd("bi:perf!log", fields)
    one.cache.set("later", 2)
    wait_until(lambda: other.cache.get("later") == 2)
    assert one.is_well() and other.is_well()


@pytest.mark.parametrize("where", ["here", "on the other host"])
def test_a_stale_value_is_served_and_loaded_anew(hosts: tuple[Host, Host], where: str) -> None:
    one, other = hosts
    one.cache.get_or_set("key", lambda: "old", 0.3, grace=600)
    reader = one if where == "here" else other
    wait_until(lambda: reader.cache.get("key") is None, what="a stale value")
    calls: list[int] = []

    def load() -> str:
        calls.append(1)
        return "new"

    wait_until(
        lambda: reader.cache.get_or_set("key", load, 60, grace=600) == "new",
        what="what was loaded anew",
    )
    assert len(calls) == 1
    wait_until(lambda: everywhere(hosts, "key", "new"))


def hears_all(host: Host, redis: RedisServer) -> None:
    """Wait until a host has dealt with all that tracking has told it of up to now."""
    host.cache.set("mark", 1)
    wait_until(lambda: redis.client.exists("bi:perf:mark"), what="the mark in Redis")
    redis.client.delete("bi:perf:mark")
    wait_until(lambda: host.cache.get("mark") is None, what="the news of the mark")


def test_a_renewal_on_one_host_leaves_what_another_loads_alone(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    one.cache.set("k", "old", ttl=60)
    wait_until(lambda: other.cache.get("k") == "old", what="the entry")
    before = other.redis_figures()["foreign"]

    def load() -> str:
        with RawClient(one.daemon.socket) as client:
            assert client.result("cache.touch", key="k", ttl=600.0)
        wait_until(lambda: redis.client.pttl("bi:perf:k") > 100_000, what="the renewal in Redis")
        hears_all(other, redis)
        return "new"

    assert other.cache.refresh("k", load, 60) == "new"
    assert other.cache.get("k") == "new"
    wait_until(lambda: one.cache.get("k") == "new", what="the new value")
    assert other.redis_figures()["foreign"] == before + 1, "the mark, and not the renewal"


def test_an_entry_whose_time_ends_in_redis_is_loaded_all_the_same(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    one.cache.set("k", "old", ttl=600)
    wait_until(lambda: other.cache.get("k") == "old", what="the entry")

    def load() -> str:
        redis.client.pexpire("bi:perf:k", 1)
        wait_until(lambda: not redis.client.exists("bi:perf:k"), what="its end")
        hears_all(other, redis)
        return "new"

    assert other.cache.refresh("k", load, 60) == "new"
    assert other.cache.get("k") == "new"


def test_what_is_stored_for_this_host_alone_takes_the_place_of_what_all_had(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    keys = ["held", "unheld", "many", "loaded"]
    for key in keys:
        other.cache.set(key, "old", ttl=600)
    wait_until(lambda: redis.client.exists(*(f"bi:perf:{key}" for key in keys)) == len(keys))
    assert one.cache.get("held") == "old" and one.cache.get("loaded") == "old"
    one.cache.set("held", "new", ttl=600, local=True)
    one.cache.set("unheld", "new", ttl=600, local=True)
    one.cache.set_many({"many": "new"}, ttl=600, local=True)
    assert one.cache.refresh("loaded", lambda: "new", 600, local=True) == "new"
    wait_until(
        lambda: not redis.client.exists(*(f"bi:perf:{key}" for key in keys)),
        what="nothing older in Redis",
    )
    wait_until(lambda: other.cache.get_many(keys) == {}, what="nothing older on the other host")
    assert one.cache.get_many(keys) == dict.fromkeys(keys, "new")


def test_an_entry_of_this_host_alone_is_none_of_another_hosts_business(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    one.cache.set("mine", 1, local=True)
    other.cache.set("mine", 2, local=True)
    heard(one, other)
    heard(other, one)
    assert one.cache.get("mine") == 1 and other.cache.get("mine") == 2


@pytest.mark.parametrize("kind", ["no time", "a list", "a year"])
def test_what_is_no_lease_under_the_name_of_one_keeps_nobody_out(
    hosts: tuple[Host, Host], redis: RedisServer, kind: str
) -> None:
    name = "bi:perf!l:k"
    if kind == "a list":
        redis.client.rpush(name, "junk")
        redis.client.pexpire(name, 50_000)
    else:
        redis.client.set(name, "junk", ex=86_400 * 365 if kind == "a year" else None)
    assert hosts[0].cache.get_or_set("k", lambda: "loaded", 60, hard_timeout=30) == "loaded"
    wait_until(lambda: hosts[1].cache.get("k") == "loaded", what="the value")


# ── what foreign programs do, while the daemon itself is at work on the key


@pytest.fixture(scope="module")
def _patient(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("patient")
        (host,) = make_hosts(folder, redis, stack, 1, "redis_timeout = 10.0")
        yield host


@pytest.fixture
def patient(_patient: Host, redis: RedisServer) -> Iterator[Host]:
    """A host that waits for a held answer and does not take Redis for away."""
    empty([_patient], redis)
    _patient.proxy.holding.clear()
    yield _patient
    _patient.proxy.let_go()
    # A clear leaves what is not ours.
    redis.client.delete("bi:perf:k")


def hold(host: Host, data: bytes) -> None:
    """Keep back the answers of Redis that have these bytes in them; once in a test."""
    host.proxy.hold = data


def test_a_foreign_deletion_is_not_missed_for_a_renewal_at_that_moment(
    patient: Host, redis: RedisServer
) -> None:
    one = patient
    one.cache.set("k", "v", ttl=60)
    wait_until(lambda: redis.client.exists("bi:perf:k"), what="the entry in Redis")
    hold(one, b"$0\r\n\r\n")
    redis.client.delete("bi:perf:k")
    assert one.proxy.holding.wait(20), "the look at Redis"
    with RawClient(one.daemon.socket) as client:
        assert client.result("cache.touch", key="k", ttl=600.0)["touched"]
    one.proxy.let_go()
    wait_until(lambda: one.cache.get("k") is None, what="the news")


@pytest.mark.parametrize("what", ["DEL", "SET"])
def test_a_foreign_change_before_the_answer_to_a_publication_is_not_missed(
    patient: Host, redis: RedisServer, what: str
) -> None:
    one = patient

    def load() -> str:
        wait_until(lambda: one.redis_figures()["queued"] == 0, what="no other write")
        hold(one, b"QUEUED")
        return "v"

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(one.cache.get_or_set, "k", load, 600)
        assert one.proxy.holding.wait(20), "the publication"
        if what == "DEL":
            assert redis.client.delete("bi:perf:k")
        else:
            redis.client.set("bi:perf:k", "of a foreign program", xx=True)
        one.proxy.let_go()
        assert loading.result() == "v"
    wait_until(lambda: one.cache.get("k") is None, what="the news")


def test_foreign_changes_are_heard_of_when_an_idle_connection_was_closed(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, _ = hosts
    one.cache.set("k", "v", ttl=60)
    wait_until(lambda: redis.client.exists("bi:perf:k"), what="the entry in Redis")
    gaps = one.redis_figures()["tracking"]["gaps"]
    # The connections whose changes are told to another one: those that write.
    writing = [each["id"] for each in redis.client.client_list() if "t" in each["flags"]]
    for each in writing:
        redis.client.client_kill_filter(_id=each)
    wait_until(
        lambda: (
            one.redis_figures()["tracking"]["gaps"] > gaps
            and sum("t" in each["flags"] for each in redis.client.client_list()) == len(writing)
        ),
        what="connections that are tracked again",
    )
    redis.client.delete("bi:perf:k")
    wait_until(lambda: one.cache.get("k") is None, what="the news")


def test_what_lives_shorter_in_redis_lives_on_where_it_was_stored(
    hosts: tuple[Host, Host], redis: RedisServer
) -> None:
    one, other = hosts
    one.cache.set("set", "v", ttl=600, redis_ttl=0.2)
    assert one.cache.get_or_set("loaded", lambda: "v", 600, redis_ttl=0.2) == "v"
    wait_until(lambda: not redis.client.exists("bi:perf:set", "bi:perf:loaded"), what="its end")
    hears_all(one, redis)
    assert one.cache.get_many(["set", "loaded"]) == {"set": "v", "loaded": "v"}
    assert other.cache.get_many(["set", "loaded"]) == {}


@pytest.mark.parametrize("how", ["appended to", "overwritten in part", "of another key", "older"])
def test_a_foreign_change_that_leaves_the_look_of_an_entry_is_one_all_the_same(
    hosts: tuple[Host, Host], redis: RedisServer, how: str
) -> None:
    one, _ = hosts
    name = "bi:perf:k"
    one.cache.set_many({"k": "old", "other": "other"}, ttl=60)
    wait_until(lambda: redis.client.exists(name, "bi:perf:other") == 2, what="both in Redis")
    before = redis.client.dump(name)
    one.cache.set("k", "new", ttl=60)
    wait_until(lambda: redis.client.dump(name) != before, what="the newer one in Redis")
    if how == "appended to":
        redis.client.append(name, "x")
    elif how == "overwritten in part":
        redis.client.setrange(name, 30, "x")
    elif how == "of another key":
        redis.client.copy("bi:perf:other", name, replace=True)
    else:
        assert isinstance(before, bytes)
        redis.client.restore(name, 60_000, before, replace=True)
    wait_until(lambda: one.cache.get("k") != "new", what="the news")
