"""What other hosts change takes effect here: in health, after outages and restarts, in races."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from bi_performanced.remote import scripts
from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.envelope import NEVER, Version
from bi_performanced.remote.predicate import Predicate
from bi_performanced.remote.reader import TRUSTED_FOR
from support.proxy import CuttingProxy
from support.redis import RedisServer
from support.remotes import Host, entry, play, running, settings, until

QUICK = 1.0


@pytest.fixture(scope="module")
def _untracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that does not allow its users CLIENT TRACKING: what arrives, arrives by the log."""
    with RedisServer(tmp_path_factory.mktemp("untracked")) as server:
        server.client.acl_setuser(
            "daemon",
            enabled=True,
            nopass=True,
            keys=["*"],
            categories=["+@all"],
            commands=["-client|tracking"],
        )
        yield server


@pytest.fixture
def untracked(_untracked: RedisServer) -> RedisServer:
    _untracked.clean()
    _untracked.user = "daemon"
    return _untracked


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """One that the test may kill."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@contextmanager
def proxied(server: RedisServer, folder: Path) -> Iterator[tuple[CuttingProxy, str]]:
    """A proxy before the server, and the URL of a host behind it."""
    path = folder / "proxy.sock"
    user = f"{server.user}:x@" if server.user else ""
    with CuttingProxy(path, server.path) as proxy:
        yield proxy, f"unix://{user}{path}"


@contextmanager
def partition(proxy: CuttingProxy) -> Iterator[None]:
    """While this is open nothing comes through."""
    proxy.cut, proxy.cut_after = "answers", 0
    proxy.drop()
    yield
    proxy.cut = None


async def filled(one: Host, two: Host, count: int = 10) -> None:
    """Both hosts hold these keys locally."""
    for at in range(count):
        await one.set(b"k%d" % at, b"v", tags=(b"even" if at % 2 == 0 else b"odd",))
    await two.in_sync()
    for at in range(count):
        assert await two.get(b"k%d" % at) == b"v"


@pytest.mark.parametrize(
    ("predicate", "left"),
    [
        (Predicate(), []),
        (Predicate(pattern="k[0-3]"), [4, 5, 6, 7, 8, 9]),
        (Predicate(tags=(b"odd",)), [0, 2, 4, 6, 8]),
    ],
)
def test_a_clear_takes_effect_on_every_host_at_once_and_in_redis(
    untracked: RedisServer, tmp_path: Path, predicate: Predicate, left: list[int]
) -> None:
    keys = [b"k%d" % at for at in range(10)]
    wanted = [b"v" if at in left else None for at in range(10)]

    async def story(one: Host, two: Host, three: Host) -> None:
        await filled(one, two)
        await one.clear(predicate)
        # A pattern is known to a host once it has read of it; tags and everything without that.
        heard = (two, three) if predicate.pattern is not None else (two,)
        for host in heard:
            await until(lambda: host.applied == [predicate], "the clear")  # noqa: B023 (done here)
        for host in (one, two, three):
            assert [await host.get(key) for key in keys] == wanted
        # What is stored after it stays.
        await two.set(b"k1", b"new", tags=(b"odd",))
        await three.in_sync()
        assert await three.get(b"k1") == b"new"

    play(story, tmp_path, untracked.url, hosts=3)


@pytest.mark.parametrize(
    "predicate",
    [
        Predicate(soft=True),
        Predicate(pattern="k*", soft=True),
        Predicate(tags=(b"odd", b"even"), soft=True),
    ],
)
def test_a_soft_clear_leaves_entries_that_are_stale(
    untracked: RedisServer, tmp_path: Path, predicate: Predicate
) -> None:
    async def story(one: Host, two: Host) -> None:
        for at in range(4):
            await one.set(b"k%d" % at, b"v", tags=(b"odd",), grace=60)
        await two.clear(predicate)
        await one.set(b"k3", b"newer", grace=60)
        await two.in_sync()
        for _ in range(2):
            found = await two.remote.fetch_many([b"k%d" % at for at in range(4)])
            assert [each and (each.stale, each.fresh > 0) for each in found] == [
                *[(True, False)] * 3,
                (False, True),
            ]
            if predicate.pattern:
                # And the same when Redis has been gone through.
                await until(lambda: not untracked.client.exists("bi:perf!sweeps"), "the sweep")
        late = Host(two.settings, tmp_path / "late")
        async with running(late):
            await late.in_sync()
            found = await late.remote.fetch_many([b"k0", b"k3"])
            assert [each and each.stale for each in found] == [True, False]

    play(story, tmp_path, untracked.url)


def test_a_clear_is_known_to_a_host_that_comes_later(
    untracked: RedisServer, tmp_path: Path
) -> None:
    async def story(one: Host, two: Host) -> None:
        await filled(one, two)
        await one.clear(Predicate(tags=(b"odd",)))
        late = Host(one.settings, tmp_path / "late")
        async with running(late):
            await late.in_sync()
            assert await late.remote.fetch(b"k1") is None
            assert await late.remote.fetch(b"k2") is not None

    play(story, tmp_path, untracked.url)


def test_after_an_outage_only_what_was_changed_goes(server: RedisServer, tmp_path: Path) -> None:
    with proxied(server, tmp_path) as (proxy, url):

        async def story(one: Host) -> None:
            two = Host(settings(url, redis_timeout=QUICK), tmp_path / "two")
            async with running(two):
                await two.in_sync()
                await filled(one, two)
                drops = two.drops
                with partition(proxy):
                    await until(lambda: not two.ok, "the outage")
                    await one.set(b"k1", b"newer")
                    await one.delete(b"k2")
                    await one.clear(Predicate(pattern="k[34]"))
                    await two.delete(b"k5")
                await two.in_sync()
                assert two.drops == drops
                assert sorted(two.local) == [b"k0", b"k6", b"k7", b"k8", b"k9"]
                assert two.remote.stats()["replayed"] >= 3
                assert [await two.get(b"k%d" % at) for at in range(7)] == [
                    *(b"v", b"newer", None, None, None, None, b"v")
                ]
                await until(lambda: b"k5" not in one.local, "the deletion")

        play(story, tmp_path, server.url, hosts=1)


def test_after_a_restart_only_what_was_changed_goes(untracked: RedisServer, tmp_path: Path) -> None:
    async def story(one: Host) -> None:
        two = Host(one.settings, tmp_path / "two")
        async with running(two):
            await two.in_sync()
            await filled(one, two)
        await one.set(b"k1", b"newer")
        again = Host(one.settings, tmp_path / "two")
        again.local = dict(two.local)
        async with running(again):
            await again.in_sync()
            assert again.drops == 0
            assert sorted(again.local) == [b"k%d" % at for at in range(10) if at != 1]

    play(story, tmp_path, untracked.url, hosts=1)


@pytest.mark.parametrize("what", ["trimmed", "gone back", "another", "epoch", "replication", "url"])
def test_what_cannot_be_replayed_empties_what_was_shared(
    server: RedisServer, tmp_path: Path, what: str
) -> None:
    async def story(one: Host) -> None:
        two = Host(one.settings, tmp_path / "two")
        async with running(two):
            await two.in_sync()
            await filled(one, two)
        client, url = server.client, server.url
        if what == "trimmed":
            await one.set(b"k1", b"newer")
            client.xtrim("bi:perf!log", maxlen=0, approximate=False)
            await one.set(b"k2", b"newer")
        elif what == "gone back":
            client.delete("bi:perf!log")
            client.xadd("bi:perf!log", {"o": "x", "k": "k1"}, id="5-1")
        elif what == "another":
            client.delete("bi:perf!log")
            client.xadd("bi:perf!log", {"o": "x", "k": "a"}, id="5-1")
            client.xadd("bi:perf!log", {"o": "x", "k": "k1"})
            client.xdel("bi:perf!log", "5-1")
            client.xtrim("bi:perf!log", maxlen=0, approximate=False)
            client.xadd("bi:perf!log", {"o": "x", "k": "k1"})
        elif what == "epoch":
            client.hset("bi:perf!state", "e", "of another Redis")
        elif what == "replication":
            server.command("DEBUG", "CHANGE-REPL-ID")
        else:
            url = f"redis://localhost:{server.port}/0"
        again = Host(settings(url), tmp_path / "two")
        again.local = dict(two.local)
        async with running(again):
            await again.in_sync()
            assert again.drops == 1
            assert not again.local
            stats = again.remote.stats()
            assert (stats["dropped"], stats["replayed"]) == (1, 0)

    play(story, tmp_path, server.url, hosts=1)


def test_a_log_that_goes_back_while_it_is_read_is_noticed(
    server: RedisServer, tmp_path: Path
) -> None:
    async def story(one: Host, two: Host) -> None:
        await filled(one, two)
        drops = two.drops
        server.client.delete("bi:perf!log")
        await until(lambda: two.drops > drops, "the drop")
        await one.in_sync()
        await one.set(b"k1", b"newer")
        await two.in_sync()
        assert await two.get(b"k1") == b"newer"

    play(story, tmp_path, server.url)


@pytest.mark.parametrize("how", ["FLUSHALL", "FLUSHDB"])
def test_an_emptied_redis_empties_what_was_shared(
    server: RedisServer, tmp_path: Path, how: str
) -> None:
    async def story(one: Host, two: Host) -> None:
        await filled(one, two)
        server.client.flushall() if how == "FLUSHALL" else server.client.flushdb()
        await until(lambda: not one.local and not two.local, "the drop")
        await one.in_sync()
        await one.set(b"k1", b"again")
        assert await two.get(b"k1") == b"again"

    play(story, tmp_path, server.url)


def test_what_a_newer_version_writes_into_the_log_empties_what_was_shared(
    redis: RedisServer, tmp_path: Path
) -> None:
    async def story(one: Host, two: Host) -> None:
        await filled(one, two)
        redis.client.xadd("bi:perf!log", {"o": "newer", "z": "what?"})
        await until(lambda: not one.local and not two.local, "the drop")
        await one.in_sync()
        assert await two.get(b"k1") == b"v"

    play(story, tmp_path, redis.url)


def test_foreign_writes_are_heard_of_and_own_ones_do_not_come_back(
    redis: RedisServer, tmp_path: Path
) -> None:
    async def story(one: Host, two: Host) -> None:
        await until(lambda: one.remote.stats()["tracking"]["active"], "tracking")
        await until(lambda: two.remote.stats()["tracking"]["active"], "tracking")
        await filled(one, two)
        assert await one.remote.add(b"added", entry(b"v"))
        await one.delete(b"k9")
        redis.client.set("bi:perf:k1", "of a foreign program")
        redis.client.delete("bi:perf:k2")
        await until(lambda: {b"k1", b"k2"} <= set(one.invalidated), "the news")
        await one.in_sync()
        assert set(one.invalidated) == {b"k1", b"k2"}
        assert await one.get(b"k1") is None
        # When the connection that hears is lost another takes its place.
        redis.client.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: one.remote.stats()["tracking"]["gaps"], "the gap")
        await until(lambda: one.remote.stats()["tracking"]["active"], "tracking")
        await one.in_sync()
        one.invalidated.clear()

        def written() -> bool:
            redis.client.set("bi:perf:k3", "of a foreign program")
            return b"k3" in one.invalidated

        await until(written, "the news")
        one.invalidated.clear()
        await one.set(b"k4", b"own")
        await one.in_sync()
        assert b"k4" not in one.invalidated

    play(story, tmp_path, redis.url)


def test_a_foreign_deletion_is_heard_of_before_the_answer_to_the_write_is(
    redis: RedisServer, tmp_path: Path
) -> None:
    with proxied(redis, tmp_path) as (proxy, url):

        async def story() -> None:
            async with running(Host(settings(url), tmp_path / "host")) as host:
                await host.in_sync()
                await until(lambda: host.remote.stats()["tracking"]["active"], "tracking")
                await host.set(b"earlier", b"v")
                async with trio.open_nursery() as nursery:
                    proxy.hold = b"QUEUED"
                    nursery.start_soon(host.set, b"k", b"v")
                    await trio.to_thread.run_sync(proxy.holding.wait)
                    redis.client.delete("bi:perf:k")
                    redis.client.delete("bi:perf:earlier")
                    await until(lambda: host.invalidated == [b"earlier"], "the news")
                    proxy.let_go()
                await until(lambda: host.invalidated == [b"earlier", b"k"], "the news")

        trio.run(story, strict_exception_groups=True)


def test_a_renewal_prolongs_no_entry_that_another_host_has_stored_since(
    untracked: RedisServer, tmp_path: Path
) -> None:
    name = "bi:perf:k"

    async def story(one: Host, two: Host) -> None:
        await one.set(b"k", b"old")
        await one.remote.extend([b"k"], lambda key: 600_000)
        assert untracked.client.pttl(name) > 500_000
        await two.set(b"k", b"new", ttl=60)
        # This host has not read of it yet, or has: it finds out before it renews.
        await one.remote.extend([b"k"], lambda key: 600_000 if key in one.local else None)
        assert untracked.client.pttl(name) <= 60_000
        # Nor when it has come between the look and the renewal.
        (shard,) = one.remote.shards
        known, shard.read_to = shard.read_to, NEVER
        await shard.extend([(b"k", 600_000)])
        assert untracked.client.pttl(name) <= 60_000
        shard.read_to = known
        await shard.extend([(b"k", 600_000)])
        assert untracked.client.pttl(name) > 500_000

    play(story, tmp_path, untracked.url)


def test_a_fill_that_raced_an_invalidation_is_made_anew(
    untracked: RedisServer, tmp_path: Path
) -> None:
    with proxied(untracked, tmp_path) as (proxy, url):

        async def story(one: Host) -> None:
            two = Host(settings(url), tmp_path / "two")
            async with running(two):
                await two.in_sync()
                await one.set(b"k", b"the old value")
                await two.in_sync()
                two.invalidated.clear()
                got: list[bytes | None] = []

                async def get() -> None:
                    got.append(await two.get(b"k"))

                async with trio.open_nursery() as nursery:
                    proxy.hold = b"the old value"
                    nursery.start_soon(get)
                    await trio.to_thread.run_sync(proxy.holding.wait)
                    await one.set(b"k", b"the new value")
                    await until(lambda: b"k" in two.invalidated, "the invalidation")
                    proxy.let_go()
                assert got == [b"the new value"]
                assert two.local[b"k"].payload == b"the new value"
                assert two.remote.stats()["raced"] == 1

        play(story, tmp_path, untracked.url, hosts=1)


def test_a_fill_that_was_cleared_by_a_pattern_does_not_outlive_the_end_of_its_sweep(
    untracked: RedisServer, tmp_path: Path
) -> None:
    with proxied(untracked, tmp_path) as (proxy, url):

        async def story(one: Host) -> None:
            two = Host(settings(url), tmp_path / "two")
            (shard,) = two.remote.shards
            names, client = shard.names, cast(Any, untracked.client)
            async with running(two):
                await two.in_sync()
                await one.set(b"k", b"the old value")
                # By a host that takes its time to remove what it has cleared.
                (command,) = scripts.clear(names, b"elsewhere", Predicate(pattern="k*"))
                id_ = client.execute_command(*command)
                await until(lambda: two.applied, "the clear")
                got: list[bytes | None] = []

                async def get() -> None:
                    got.append(await two.get(b"k"))

                async with trio.open_nursery() as nursery:
                    proxy.hold = b"the old value"
                    nursery.start_soon(get)
                    await trio.to_thread.run_sync(proxy.holding.wait)
                    client.unlink("bi:perf:k")
                    end = client.xadd(names.log, {b"o": b"elsewhere", b"w": id_})
                    await shard.read_up_to(Version.parse(end))
                    proxy.let_go()
                assert got == [None]

        play(story, tmp_path, untracked.url, hosts=1)


@pytest.mark.parametrize("what", ["set", "delete", "clear"])
def test_a_fill_that_raced_an_own_write_gives_way_to_it(
    server: RedisServer, tmp_path: Path, what: str
) -> None:
    with proxied(server, tmp_path) as (proxy, url):

        async def story(one: Host) -> None:
            two = Host(settings(url), tmp_path / "two")
            async with running(two):
                await two.in_sync()
                await one.set(b"k", b"the old value")
                await two.in_sync()
                got: list[bytes | None] = []

                async def fetch() -> None:
                    found = await two.remote.fetch(b"k")
                    got.append(None if found is None else found.payload)

                async with trio.open_nursery() as nursery:
                    proxy.hold = b"the old value"
                    nursery.start_soon(fetch)
                    await trio.to_thread.run_sync(proxy.holding.wait)
                    if what == "set":
                        two.remote.put(b"k", entry(b"own"))
                    elif what == "delete":
                        two.remote.delete(b"k")
                    else:
                        two.remote.clear(Predicate())
                    proxy.let_go()
                assert got == [b"own" if what == "set" else None]

        play(story, tmp_path, server.url, hosts=1)


def test_a_partitioned_host_is_trusted_no_longer_than_its_bound(
    server: RedisServer, tmp_path: Path
) -> None:
    with proxied(server, tmp_path) as (proxy, url):

        async def story(one: Host) -> None:
            two = Host(settings(url), tmp_path / "two")
            async with running(two):
                await two.in_sync()
                # Connections stay open and nothing comes: only the bound helps.
                proxy.hold = b""
                await trio.to_thread.run_sync(proxy.holding.wait)
                said = two.until
                assert said <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) + TRUSTED_FOR * 1e9
                await one.set(b"k", b"v")
                await until(lambda: not two.synced, "the end of the trust")
                assert two.until == said
                proxy.let_go()
                await two.in_sync()
                with partition(proxy), pytest.raises(RemoteAway):
                    await two.remote.fetch(b"k")

        play(story, tmp_path, server.url, hosts=1)


@pytest.mark.parametrize(
    "seconds", [2.0, pytest.param(60.0, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_hosts_that_write_and_read_at_random_see_no_value_that_is_too_old(
    untracked: RedisServer, tmp_path: Path, seconds: float
) -> None:
    """Eight writers and 24 readers on three hosts, against a register for each key: a read never
    gives a value that was overwritten more than the bound before it began, on a host that says that
    it knows what the others do."""
    keys = [b"k%d" % at for at in range(8)]
    ended: dict[bytes, list[tuple[float, bytes]]] = {key: [] for key in keys}
    began: dict[bytes, float] = {}
    dice = random.Random(4)

    async def story(*hosts: Host) -> None:
        end = trio.current_time() + seconds
        reads = 0

        async def write(host: Host, name: int) -> None:
            number = 0
            while trio.current_time() < end:
                key = dice.choice(keys)
                number += 1
                value = b"%s=%d.%d" % (key, name, number)
                began[value] = trio.current_time()
                if dice.random() < 0.1:
                    await host.delete(key)
                else:
                    await host.set(key, value)
                ended[key].append((trio.current_time(), value))
                await trio.sleep(dice.random() * 0.02)

        async def read(host: Host) -> None:
            nonlocal reads
            while trio.current_time() < end:
                key = dice.choice(keys)
                start = trio.current_time()
                value = await host.get(key)
                reads += host.synced
                if value is not None:
                    assert value in began and value.startswith(key + b"=")
                    newer = [
                        other
                        for at, other in ended[key]
                        if at < start - TRUSTED_FOR and began[other] > finished(key, value)
                    ]
                    # One that had no turn for a second goes by `cache.on_partition`.
                    assert not newer or not host.synced
                await trio.sleep(dice.random() * 0.005)

        def finished(key: bytes, value: bytes) -> float:
            return next((at for at, other in ended[key] if other == value), trio.current_time())

        async with trio.open_nursery() as nursery:
            for at in range(8):
                nursery.start_soon(write, hosts[at % 3], at)
            for at in range(24):
                nursery.start_soon(read, hosts[at % 3])
        for host in hosts:
            await host.in_sync()
        assert reads
        # In the end all have the same.
        for key in keys:
            assert len({await host.get(key) for host in hosts}) == 1

    play(story, tmp_path, untracked.url, hosts=3)
