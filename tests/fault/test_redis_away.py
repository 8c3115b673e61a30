"""Redis that is away, comes back, refuses or holds what is none of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.envelope import Codec
from bi_performanced.remote.leases import RemoteLease
from bi_performanced.remote.predicate import Predicate
from support.redis import RedisServer
from support.remotes import Host, entry, play, running, settings, until

QUICK = 0.3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """One that the test may kill."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


async def away(host: Host) -> None:
    await until(lambda: not host.ok, "the outage")


def test_what_one_host_sets_another_gets(redis: RedisServer, tmp_path: Path) -> None:
    async def story(one: Host, two: Host) -> None:
        await one.set(b"page:1", b"first", tags=(b"shop",))
        assert await two.get(b"page:1") == b"first"
        await two.set(b"page:1", b"second")
        await until(lambda: b"page:1" not in one.local, "the invalidation")
        assert await one.get(b"page:1") == b"second"
        await one.delete(b"page:1")
        await until(lambda: b"page:1" not in two.local, "the invalidation")
        assert await two.get(b"page:1") is None

    play(story, tmp_path, redis.url)


def test_many_keys_go_in_few_round_trips(redis: RedisServer, tmp_path: Path) -> None:
    async def story(one: Host, two: Host) -> None:
        for at in range(2000):
            one.remote.put(b"k%d" % at, entry(b"v%d" % at))
        await one.remote.settled()
        keys = [b"k%d" % at for at in range(-1, 2001)]
        found = await two.remote.fetch_many(keys)
        assert [each and each.payload for each in found] == [
            None,
            *(b"v%d" % at for at in range(2000)),
            None,
        ]
        assert one.remote.stats()["stores"] == 2000
        assert len(one.remote.shards[0].writes.latencies) < 50

    play(story, tmp_path, redis.url)


def test_an_entry_that_is_written_behind_is_read_before_it_is_sent(
    redis: RedisServer, tmp_path: Path
) -> None:
    async def story(one: Host) -> None:
        await one.set(b"k", b"old")
        one.remote.put(b"k", entry(b"new"))
        found = await one.remote.fetch(b"k")
        assert found is not None and found.payload == b"new"
        one.remote.delete(b"k")
        assert await one.remote.fetch(b"k") is None
        one.remote.put(b"k", entry(b"newer", tags=(b"t",)))
        one.remote.clear(Predicate(tags=(b"t",)))
        assert await one.remote.fetch(b"k") is None
        await one.remote.settled()
        assert await one.remote.fetch(b"k") is None

    play(story, tmp_path, redis.url, hosts=1)


def test_add_stores_once_over_all_hosts(redis: RedisServer, tmp_path: Path) -> None:
    async def story(*hosts: Host) -> None:
        won: list[bytes] = []

        async def add(host: Host, key: bytes) -> None:
            if await host.remote.add(key, entry(b"v")):
                won.append(key)

        async with trio.open_nursery() as nursery:
            for at in range(50):
                for host in hosts:
                    nursery.start_soon(add, host, b"k%d" % at)
        assert sorted(won) == sorted(b"k%d" % at for at in range(50))
        # What was cleared is no entry, nor is what is none of ours.
        hosts[0].remote.clear(Predicate())
        redis.client.delete("bi:perf:k1")
        redis.client.lpush("bi:perf:k1", "theirs")
        assert await hosts[0].remote.add(b"k0", entry(b"w"))
        assert await hosts[0].remote.add(b"k1", entry(b"w"))
        assert not await hosts[1].remote.add(b"k1", entry(b"x"))

    play(story, tmp_path, redis.url, hosts=3)


def test_redis_that_is_away_at_the_start_is_used_when_it_comes(
    server: RedisServer, tmp_path: Path
) -> None:
    server.kill()

    async def main() -> None:
        host = Host(settings(server.url), tmp_path / "host")
        async with running(host):
            await until(lambda: host.told, "the outage")
            assert host.told[0][0] is False
            assert "refuses connections" in host.reason
            with pytest.raises(RemoteAway):
                await host.remote.fetch(b"k")
            await host.set(b"k", b"value")
            server.start()
            await host.in_sync()
            await host.set(b"k", b"value")
            assert (await host.remote.fetch(b"k")) is not None
            assert [ok for ok, _ in host.told] == [False, True]

    trio.run(main)


def test_what_was_deleted_or_set_while_redis_was_away_is_deleted_there_after_a_restart(
    server: RedisServer, tmp_path: Path
) -> None:
    pages = [b"deleted", b"overwritten", b"tagged", b"kept"]

    async def main() -> None:
        host = Host(settings(server.url, redis_timeout=QUICK), tmp_path / "host")
        async with running(host):
            await host.in_sync()
            for key in pages:
                await host.set(key, b"old", tags=(key,))
            server.stop()
            with pytest.raises(RemoteAway):
                await host.remote.fetch(b"kept")
            await host.delete(b"deleted")
            await host.set(b"overwritten", b"new")
            await host.clear(Predicate(tags=(b"tagged",)))
            assert host.remote.stats()["outbox"] == 3
        # Another daemon, with only the files.
        server.resume()
        host = Host(settings(server.url), tmp_path / "host")
        assert host.remote.stats()["outbox"] == 3
        async with running(host):
            await host.in_sync()
            await until(lambda: not host.remote.stats()["outbox"], "the outbox")
            found = await host.remote.fetch_many(pages)
            assert [each and each.payload for each in found] == [None, None, None, b"old"]
            assert not list((tmp_path / "host").glob("redis-outbox*")) or await until(
                lambda: not list((tmp_path / "host").glob("redis-outbox*"))
            )

    trio.run(main)


def test_values_that_waited_when_redis_died_are_not_sent_later(
    server: RedisServer, tmp_path: Path
) -> None:
    async def main() -> None:
        one = Host(settings(server.url, redis_timeout=QUICK), tmp_path / "one")
        two = Host(settings(server.url), tmp_path / "two")
        async with running(one):
            await one.in_sync()
            await one.set(b"k", b"old")
            server.stop()
            one.remote.put(b"k", entry(b"waiting"))
            await one.remote.settled()
            assert not one.ok
            server.resume()
            async with running(two):
                await two.in_sync()
                await one.in_sync()
                await until(lambda: not one.remote.stats()["outbox"], "the outbox")
                assert await two.remote.fetch(b"k") is None

    trio.run(main)


def test_a_stopped_redis_costs_its_timeout_once(server: RedisServer, tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        server.stop()

        async def fetch(key: bytes) -> None:
            with pytest.raises(RemoteAway):
                await host.remote.fetch(key)

        with trio.fail_after(10 * QUICK):
            async with trio.open_nursery() as nursery:
                for at in range(50):
                    nursery.start_soon(fetch, b"%d" % at)
        assert host.remote.stats()["breaker"] == "open"
        before = host.remote.stats()["timeouts"]
        for at in range(100):
            await fetch(b"%d" % at)
        # None of these waited for anything: no round trip was tried.
        assert host.remote.stats()["timeouts"] == before
        server.resume()
        await host.in_sync()
        assert await host.remote.fetch(b"k") is None

    play(story, tmp_path, server.url, hosts=1, redis_timeout=QUICK)


def test_an_empty_restart_empties_what_was_shared(server: RedisServer, tmp_path: Path) -> None:
    async def story(one: Host, two: Host) -> None:
        await one.set(b"k", b"v")
        assert await two.get(b"k") == b"v"
        drops = two.drops
        server.restart()
        await until(lambda: two.drops > drops and one.drops, "the drop")
        await one.in_sync()
        await two.in_sync()
        assert not two.local
        assert await two.get(b"k") is None
        await one.set(b"k", b"again")
        assert await two.get(b"k") == b"again"

    play(story, tmp_path, server.url)


def test_a_full_redis_serves_on_and_holds_no_old_values(
    server: RedisServer, tmp_path: Path
) -> None:
    async def story(one: Host, two: Host) -> None:
        await one.set(b"k", b"old")
        await one.set(b"other", b"value")
        assert await two.get(b"k") == b"old"
        server.client.config_set("maxmemory", 1)
        await one.set(b"k", b"new")
        assert one.told[-1][0], "it can be asked"
        assert "out of memory" in one.remote.status()["reason"]
        await until(lambda: b"k" not in two.local, "the invalidation")
        assert await two.get(b"k") is None
        assert await two.get(b"other") == b"value"
        await two.clear(Predicate(pattern="other"))
        await until(lambda: b"other" not in one.local, "the clear")
        assert await one.remote.fetch(b"other") is None
        server.client.config_set("maxmemory", 0)

        await one.set(b"k", b"again")
        while one.remote.status()["status"] != "ok" or await two.get(b"k") != b"again":
            # Values are not tried for a second after they were refused.
            await one.set(b"k", b"again")
        assert await two.get(b"k") == b"again"

    play(story, tmp_path, server.url)


def test_a_master_that_becomes_a_replica_is_left_until_it_is_master_again(
    server: RedisServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "master") as master:

        async def story(host: Host) -> None:
            server.client.replicaof("127.0.0.1", master.port)
            await away(host)
            await until(lambda: "replica" in host.reason or host.ok, "the reason")
            await host.delete(b"k")
            assert host.remote.stats()["outbox"] == 1
            server.client.replicaof("NO", "ONE")
            await host.in_sync()
            await host.set(b"k", b"v")
            assert await host.remote.fetch(b"k") is not None

        play(story, tmp_path, server.url, hosts=1)


def test_redis_that_is_loading_is_waited_for(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", "key-load-delay 4000") as server:
        with server.client.pipeline() as pipe:
            for at in range(2000):
                pipe.set(f"theirs:{at}", "x")
            pipe.execute()
        server.client.save()
        server.kill()

        async def main() -> None:
            host = Host(settings(server.url), tmp_path / "host")
            async with running(host):
                server.start("loading-process-events-interval-bytes 1024", wait=False)
                await until(lambda: "loading" in host.reason, "the reason")
                server.client.config_set("key-load-delay", 0)
                await host.in_sync()

        trio.run(main)


def test_a_wrong_password_is_said_without_it(server: RedisServer, tmp_path: Path) -> None:
    server.client.config_set("requirepass", "right")
    server.client.auth("right")
    url = f"redis://somebody:wrong-secret@127.0.0.1:{server.port}/0"

    async def main() -> None:
        host = Host(settings(url), tmp_path / "host")
        async with running(host):
            await until(lambda: "refuses the user" in host.reason, "the reason")
            said = f"{host.remote.status()} {host.remote.stats()} {host.told}"
            assert "wrong-secret" not in said and "somebody" not in said
            with pytest.raises(RemoteAway) as error:
                await host.remote.fetch(b"k")
            assert "wrong-secret" not in str(error.value)

    trio.run(main)
    good = settings(f"redis://:right@127.0.0.1:{server.port}/0")

    async def again() -> None:
        host = Host(good, tmp_path / "host")
        async with running(host):
            await host.in_sync()

    trio.run(again)


def test_garbage_is_a_counted_miss_and_stays_where_it_is(
    redis: RedisServer, tmp_path: Path
) -> None:
    newer = bytearray(Codec(b"bi:perf:", None).pack(b"newer", entry(b"v")))
    newer[2] = 99

    async def story(host: Host) -> None:
        redis.client.set("bi:perf:text", "hello")
        redis.client.lpush("bi:perf:list", "a", "b")
        redis.client.set("bi:perf:newer", bytes(newer))
        keys = [b"text", b"list", b"newer", b"absent"]
        assert await host.remote.fetch_many(keys) == [None] * 4
        stats = host.remote.stats()
        assert (stats["garbage"], stats["unknown_format"]) == (2, 1)
        assert stats["status"] == "ok"
        assert redis.client.get("bi:perf:newer") == bytes(newer)
        assert redis.client.llen("bi:perf:list") == 2
        # A write takes the place of anything.
        await host.set(b"list", b"ours")
        assert (await host.remote.fetch(b"list")) is not None

    play(story, tmp_path, redis.url, hosts=1)


@pytest.mark.parametrize("name", ["log", "state", "sweeps", "fence"])
def test_what_lies_under_a_name_of_ours_and_is_not_ours_is_named(
    redis: RedisServer, tmp_path: Path, name: str
) -> None:
    redis.client.delete(f"bi:perf!{name}")
    redis.client.lpush(f"bi:perf!{name}", "junk")

    async def main() -> None:
        async with running(Host(settings(redis.url), tmp_path / "host")) as host:
            await until(lambda: f"bi:perf!{name} in Redis is a list" in host.reason, "the reason")
            redis.client.delete(f"bi:perf!{name}")
            await host.in_sync()

    trio.run(main)


def test_what_lies_under_the_name_of_a_tag_clears_nothing_and_can_be_cleared_by(
    redis: RedisServer, tmp_path: Path
) -> None:
    redis.client.set("bi:perf!t:shop", "junk")

    async def story(one: Host, two: Host) -> None:
        await one.set(b"k", b"v", tags=(b"shop",))
        assert await two.get(b"k") == b"v"
        leases = two.remote.leases(b"l")
        lease = await leases.acquire(b"l")
        assert isinstance(lease, RemoteLease)
        assert await leases.publish(lease, entry(b"v", tags=(b"shop",)))
        await one.clear(Predicate(tags=(b"shop",)))
        await two.in_sync()
        assert await two.get(b"k") is None and await two.get(b"l") is None
        assert two.ok

    play(story, tmp_path, redis.url)


def test_values_that_others_plant_are_misses_when_there_is_a_secret(
    redis: RedisServer, tmp_path: Path
) -> None:
    async def story(one: Host, two: Host) -> None:
        await one.set(b"k", b"ours")
        assert await two.get(b"k") == b"ours"
        planted = Codec(b"bi:perf:", None).pack(b"k", entry(b"planted"))
        redis.client.set("bi:perf:k", planted)
        assert await one.remote.fetch(b"k") is None
        # Another key's signed bytes are no better.
        await one.set(b"a", b"of a")
        redis.client.copy("bi:perf:a", "bi:perf:b")
        assert await two.remote.fetch(b"b") is None
        assert one.remote.stats()["bad_signatures"] == 1

    play(story, tmp_path, redis.url, secret="a secret")


def test_foreign_keys_beside_ours_are_left_alone(redis: RedisServer, tmp_path: Path) -> None:
    redis.client.set("bi:perf", "theirs")
    redis.client.set("bi:perx:k", "theirs")
    redis.client.set("other", "theirs")

    async def story(one: Host, two: Host) -> None:
        for at in range(20):
            await one.set(b"k%d" % at, b"v")
        await two.clear(Predicate())
        await one.clear(Predicate(pattern="*"))
        await until(lambda: not redis.client.keys("bi:perf:*"), "the sweep")

    play(story, tmp_path, redis.url)
    left = {key for key in redis.client.keys("*") if b"!" not in key}
    assert left == {b"bi:perf", b"bi:perx:k", b"other"}


def test_a_daemon_that_stops_sends_what_waits(redis: RedisServer, tmp_path: Path) -> None:
    async def main() -> None:
        host = Host(settings(redis.url), tmp_path / "host")
        async with running(host):
            await host.in_sync()
            for at in range(3000):
                host.remote.put(b"k%d" % at, entry(b"v"))
        assert len(redis.client.keys("bi:perf:k*")) == 3000
        assert host.remote.stats()["outbox"] == 0

    trio.run(main)


def test_without_redis_py_the_cache_is_local_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "redis", None)

    async def main() -> None:
        host = Host(settings("redis://localhost"), tmp_path / "host")
        async with running(host):
            await until(lambda: host.told, "the word")
            assert "bi-performance[performance]" in host.reason
            with pytest.raises(RemoteAway):
                await host.remote.fetch(b"k")

    trio.run(main)


def test_a_queue_that_is_full_deletes_instead(redis: RedisServer, tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        queue = host.remote.shards[0].queue
        queue.max_writes = 10
        await host.set(b"k15", b"old")
        answers = [host.remote.put(b"k%d" % at, entry(b"new")) for at in range(20)]
        assert answers == [True] * 10 + [False] * 10
        await host.remote.settled()
        await until(lambda: not host.remote.stats()["outbox"], "the outbox")
        found = await host.remote.fetch_many([b"k%d" % at for at in range(20)])
        assert [each is not None for each in found] == [True] * 10 + [False] * 10

    play(story, tmp_path, redis.url, hosts=1)


def test_a_cancelled_fetch_gives_its_answer_to_nobody(redis: RedisServer, tmp_path: Path) -> None:
    async def story(host: Host) -> None:
        for at in range(20):
            await host.set(b"k%d" % at, b"v%d" % at)
        host.local.clear()
        for at in range(200):
            with trio.move_on_after(0.00001 * (at % 50)):
                await host.remote.fetch(b"k%d" % (at % 20))
            found = await host.remote.fetch(b"k%d" % ((at + 7) % 20))
            assert found is not None and found.payload == b"v%d" % ((at + 7) % 20)

    play(story, tmp_path, redis.url, hosts=1)
