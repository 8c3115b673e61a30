"""Leases over hosts: one loads, the others wait for the log, and nobody publishes what is old."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.leases import Held, RemoteLease
from bi_performanced.remote.predicate import Predicate
from support.redis import RedisServer
from support.remotes import Host, entry, play, until

KEY = b"page:1"


async def taken(host: Host, key: bytes = KEY, ttl: float = 30.0) -> RemoteLease:
    lease = await host.remote.leases(key).acquire(key, ttl)
    assert isinstance(lease, RemoteLease)
    return lease


async def refused(host: Host, key: bytes = KEY) -> Held:
    held = await host.remote.leases(key).acquire(key)
    assert isinstance(held, Held)
    return held


async def publish(host: Host, lease: RemoteLease, payload: bytes) -> bool:
    envelope = entry(payload, tags=(b"shop",))
    return await host.remote.leases(lease.key).publish(lease, envelope) is not None


def test_one_host_has_the_lease_and_the_others_get_its_value(
    redis: RedisServer, tmp_path: Path
) -> None:
    async def story(one: Host, two: Host, three: Host) -> None:
        lease = await taken(one)
        got: list[bytes | None] = []

        async def wait(host: Host) -> None:
            await host.remote.leases(KEY).wait(await refused(host))
            got.append(await host.get(KEY))

        # Far below the lease's thirty seconds: the waiters are told.
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, two)
                nursery.start_soon(wait, three)
                await until(
                    lambda: all(len(each.remote.leases(KEY).waiting) == 1 for each in (two, three)),
                    "the waiters",
                )
                assert await publish(one, lease, b"loaded")
        assert got == [b"loaded", b"loaded"]
        # Its own value is not invalidated by its own write.
        await one.in_sync()
        assert KEY not in one.invalidated

    play(story, tmp_path, redis.url, hosts=3)


def test_a_release_hands_the_lease_to_a_waiter_with_a_higher_fence(
    redis: RedisServer, tmp_path: Path
) -> None:
    async def story(one: Host, two: Host) -> None:
        first = await taken(one)
        held = await refused(two)
        await one.remote.leases(KEY).release(first)
        with trio.fail_after(10):
            # Also when it has ended before the waiting begins.
            await two.in_sync()
            await two.remote.leases(KEY).wait(held)
        second = await taken(two)
        assert second.fence > first.fence
        assert not await publish(one, first, b"old")
        assert not await one.remote.leases(KEY).extend(first)
        await one.remote.leases(KEY).release(first)
        assert await publish(two, second, b"new")

    play(story, tmp_path, redis.url)


@pytest.mark.parametrize("what", ["delete", "set", "everything", "tag", "pattern", "expiry"])
def test_what_happens_to_the_key_ends_the_lease(
    redis: RedisServer, tmp_path: Path, what: str
) -> None:
    async def story(one: Host, two: Host) -> None:
        lease = await taken(one, ttl=0.05 if what == "expiry" else 30.0)
        if what == "delete":
            await two.delete(KEY)
        elif what == "set":
            await two.set(KEY, b"newer")
        elif what == "everything":
            await two.clear(Predicate())
        elif what == "tag":
            await two.clear(Predicate(tags=(b"shop",)))
        elif what == "pattern":
            await two.clear(Predicate(pattern="page:*"))
        else:
            await until(lambda: not redis.client.exists("bi:perf!l:page:1"), "the expiry")
        assert not await publish(one, lease, b"old")
        found = await two.remote.fetch(KEY)
        assert (found and found.payload) == (b"newer" if what == "set" else None)

    play(story, tmp_path, redis.url)


def test_what_does_not_concern_the_key_leaves_the_lease(redis: RedisServer, tmp_path: Path) -> None:
    async def story(one: Host, two: Host) -> None:
        lease = await taken(one)
        await two.clear(Predicate(pattern="other:*"))
        await two.clear(Predicate(tags=(b"other",)))
        await two.clear(Predicate(soft=True))
        await one.in_sync()
        assert await publish(one, lease, b"loaded")
        assert await two.get(KEY) == b"loaded"

    play(story, tmp_path, redis.url)


def test_a_lease_is_kept_as_long_as_its_leader_works(redis: RedisServer, tmp_path: Path) -> None:
    async def story(one: Host, two: Host) -> None:
        leases = one.remote.leases(KEY)
        lease = await taken(one, ttl=1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leases.keep, lease, 1.0)
            for _ in range(2):
                # As long as it could last alone: it is still there afterwards.
                await two.remote.leases(KEY).wait(await refused(two))
            assert await publish(one, lease, b"loaded")
            # It ends by itself when the lease has.
            with trio.fail_after(5):
                await until(lambda: not nursery.child_tasks, "the end")

    play(story, tmp_path, redis.url)


def test_a_dead_leaders_lease_runs_out(redis: RedisServer, tmp_path: Path) -> None:
    async def story(one: Host, two: Host) -> None:
        await taken(one, ttl=0.2)
        with trio.fail_after(5):
            held = await two.remote.leases(KEY).acquire(KEY)
            while isinstance(held, Held):
                await two.remote.leases(KEY).wait(held)
                held = await two.remote.leases(KEY).acquire(KEY)

    play(story, tmp_path, redis.url)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


def test_waiters_are_told_when_redis_goes(server: RedisServer, tmp_path: Path) -> None:
    async def story(one: Host, two: Host) -> None:
        lease = await taken(one)
        held = await refused(two)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(RemoteAway):
                    await two.remote.leases(KEY).wait(held)

            nursery.start_soon(wait)
            server.kill()
        with pytest.raises(RemoteAway):
            await publish(one, lease, b"v")

    play(story, tmp_path, server.url)


def test_a_full_redis_publishes_nothing_and_keeps_nobody_waiting(
    server: RedisServer, tmp_path: Path
) -> None:
    async def story(one: Host, two: Host) -> None:
        await one.set(KEY, b"old")
        lease = await taken(one)
        held = await refused(two)
        server.client.config_set("maxmemory", 1)
        assert not await publish(one, lease, b"new")
        await one.remote.settled()
        with trio.fail_after(10):
            await two.remote.leases(KEY).wait(held)
        assert await two.remote.fetch(KEY) is None

    play(story, tmp_path, server.url)
