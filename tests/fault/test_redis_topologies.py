"""TLS, Unix sockets, sentinels with a fail-over, and a cluster of three masters."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bi_performanced.remote.connection import Command
from bi_performanced.remote.leases import RemoteLease
from bi_performanced.remote.names import CLUSTER_TAGS, slot
from bi_performanced.remote.predicate import Predicate
from support.daemon import wait_until
from support.redis import RedisServer, Sentinel, free_port
from support.redis_cluster import RedisCluster, clustered
from support.remotes import Host, entry, play, running, settings, until


async def exchange_values(one: Host, two: Host) -> None:
    await one.set(b"k", b"v")
    assert await two.get(b"k") == b"v"
    await two.set(b"k", b"newer")
    await until(lambda: b"k" not in one.local, "the invalidation")
    assert await one.get(b"k") == b"newer"


def test_a_unix_socket_with_a_database_of_its_own(redis: RedisServer, tmp_path: Path) -> None:
    play(exchange_values, tmp_path, f"unix://{redis.path}?db=3")
    assert redis.client.dbsize() == 0
    assert redis.section("keyspace")["db3"]["keys"] >= 2


# ── TLS


@contextmanager
def tls_before(server: RedisServer, folder: Path) -> Iterator[tuple[int, Path]]:
    """A port that speaks TLS for a server, and the authority that vouches for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "ca.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    started: list[int] = []
    ready = threading.Event()
    stop = trio.Event()
    token: list[trio.lowlevel.TrioToken] = []

    async def forward(plain: trio.SocketStream) -> None:
        tls = trio.SSLStream(plain, context, server_side=True)
        try:
            behind = await trio.open_tcp_stream("127.0.0.1", server.port)
            async with behind, tls, trio.open_nursery() as nursery:
                nursery.start_soon(copy, behind, tls, nursery.cancel_scope)
                await copy(tls, behind, nursery.cancel_scope)
        except (trio.BrokenResourceError, ExceptionGroup):
            # A peer that does not trust the certificate hangs up.
            return

    async def copy(
        source: trio.abc.ReceiveStream, target: trio.abc.SendStream, scope: trio.CancelScope
    ) -> None:
        async for data in source:
            await target.send_all(data)
        scope.cancel()

    async def main() -> None:
        token.append(trio.lowlevel.current_trio_token())
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, forward, 0)
            started.append(listeners[0].socket.getsockname()[1])
            ready.set()
            await stop.wait()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    ready.wait()
    try:
        yield started[0], certificate
    finally:
        token[0].run_sync_soon(stop.set)
        thread.join()


def test_tls_is_spoken_and_a_certificate_that_nobody_vouches_for_is_refused(
    redis: RedisServer, tmp_path: Path
) -> None:
    with tls_before(redis, tmp_path) as (port, authority):
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={authority}"
        play(exchange_values, tmp_path, url)

        async def refused() -> None:
            host = Host(settings(f"rediss://127.0.0.1:{port}/0"), tmp_path / "host")
            async with running(host):
                await until(lambda: "ertificate" in host.reason, "the reason")

        trio.run(refused)


# ── sentinels


def test_after_a_fail_over_the_new_master_is_used_and_what_was_shared_is_gone(
    tmp_path: Path,
) -> None:
    with RedisServer(tmp_path / "a") as master, RedisServer(tmp_path / "b") as replica:
        replica.client.replicaof("127.0.0.1", master.port)
        wait_until(lambda: replica.section("replication")["master_link_status"] == "up")
        with Sentinel(tmp_path / "s", master) as sentinel:
            wait_until(lambda: _replicas(sentinel) == 1, what="the replica's discovery")
            # The first of these does not answer.
            url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/mymaster/0"

            async def story(one: Host, two: Host) -> None:
                await exchange_values(one, two)
                master.kill()
                await until(lambda: not one.ok, "the outage")
                await one.delete(b"k")
                await one.in_sync()
                await two.in_sync()
                assert replica.section("replication")["role"] == "master"
                assert not one.local and not two.local
                assert await two.get(b"k") is None
                await exchange_values(one, two)

            play(story, tmp_path, url, redis_timeout=1.0)


def _replicas(sentinel: RedisServer) -> int:
    found: Any = sentinel.client.sentinel_master("mymaster")
    return int(found["num-slaves"])


def test_a_master_that_no_sentinel_knows_is_said(tmp_path: Path, redis: RedisServer) -> None:
    with Sentinel(tmp_path / "s", redis) as sentinel:
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/another"

        async def main() -> None:
            host = Host(settings(url), tmp_path / "host")
            async with running(host):
                await until(lambda: "no master named 'another'" in host.reason, "the reason")

        trio.run(main)


# ── a cluster


def test_a_cluster_is_shared_by_shard_and_a_lost_node_costs_only_its_own(tmp_path: Path) -> None:
    keys = [b"k%d" % at for at in range(200)]

    with RedisCluster(tmp_path / "cluster") as cluster:

        async def story(one: Host, two: Host) -> None:
            for key in keys:
                one.remote.put(key, one.local.setdefault(key, entry(b"v", tags=(b"even",))))
            await one.remote.settled()
            found = await two.remote.fetch_many(keys)
            assert all(each is not None and each.payload == b"v" for each in found)
            # On every master, each with a log of its own.
            assert all(node.client.dbsize() > 20 for node in cluster.masters)
            await exchange_values(one, two)
            lease = await one.remote.leases(b"l").acquire(b"l")
            assert isinstance(lease, RemoteLease)
            assert await one.remote.leases(b"l").publish(lease, entry(b"l"))
            assert not await two.remote.add(b"l", entry(b"x"))
            await one.clear(Predicate(tags=(b"even",)))
            assert await two.remote.fetch_many(keys) == [None] * len(keys)
            await one.clear(Predicate(pattern="*"))
            await until(lambda: not one.local and not two.local, "the clear")
            for key in keys:
                await one.set(key, b"again")
            assert len([each for each in await two.remote.fetch_many(keys) if each]) == 200
            two.local = {key: entry(b"again") for key in keys}
            # One node is lost: what lies on the others goes on.
            cluster.masters[2].stop()
            lost = {at for at in range(8) if slot(CLUSTER_TAGS[at]) >= 16384 * 2 // 3}
            await until(lambda: _away(two) == lost, "the outage")
            held = [key for key in keys if two.remote.shard_of(key) not in lost]
            assert all(await two.remote.fetch_many(held))
            cluster.masters[2].resume()
            await two.in_sync()
            assert all(await two.remote.fetch_many(keys))
            # And one that is emptied costs only what it held.
            drops = two.drops
            cluster.masters[2].client.flushall()
            await until(lambda: len(two.local) < 200, "the drop")
            await two.in_sync()
            assert len(two.local) >= len(held) and two.drops > drops

        play(story, tmp_path, cluster.url, redis_timeout=1.0)


def test_a_key_that_changes_while_another_shard_answers_is_not_installed(tmp_path: Path) -> None:
    keys = [b"k%d" % at for at in range(20)]

    with RedisCluster(tmp_path / "cluster") as cluster:

        async def story(one: Host, two: Host) -> None:
            for key in keys:
                await one.set(key, b"old")
            await two.in_sync()
            slow = two.remote.shards[two.remote.shard_of(keys[0])]
            others = [key for key in keys if two.remote.shard_of(key) != slow.index]
            changed = others[0]
            quick = two.remote.shards[two.remote.shard_of(changed)]
            call, call_quick = slow.reads.call, quick.reads.call
            answered = trio.Event()

            async def first(commands: Sequence[Command]) -> list[Any]:
                found = await call_quick(commands)
                answered.set()
                return found

            async def late(commands: Sequence[Command]) -> list[Any]:
                found = await call(commands)
                # Not before: what is changed earlier is rightly found as it is then.
                await answered.wait()
                two.invalidated.clear()
                await one.set(changed, b"new")
                await until(lambda: changed in two.invalidated, "the invalidation")
                return found

            slow.reads.call = late  # type: ignore[method-assign]
            quick.reads.call = first  # type: ignore[method-assign]
            found = dict(zip(keys, await two.remote.fetch_many(keys), strict=True))
            # Asked for once more, when that shard had not answered either.
            there = found[changed]
            assert there is None or there.payload == b"new"
            assert sum(each is not None for each in found.values()) > 10
            again = await two.remote.fetch(changed)
            assert again is not None and again.payload == b"new"

        play(story, tmp_path, cluster.url)


def _away(host: Host) -> set[int]:
    return {shard.index for shard in host.remote.shards if shard.breaker.open}


def test_a_cluster_that_was_named_as_a_single_redis_is_said(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", *clustered(free_port())) as server:

        async def main() -> None:
            host = Host(settings(server.url), tmp_path / "host")
            async with running(host):
                await until(lambda: "redis+cluster://" in host.reason, "the reason")

        trio.run(main)


def test_a_slot_that_has_moved_is_found_again(tmp_path: Path) -> None:
    with RedisCluster(tmp_path / "cluster") as cluster:

        async def story(one: Host, two: Host) -> None:
            source, target = cluster.masters[:2]
            await exchange_values(one, two)
            for tag in CLUSTER_TAGS[:2]:
                await trio.to_thread.run_sync(cluster.move, slot(tag), source, target)
            for at in range(50):
                await one.set(b"k%d" % at, b"v")
            await one.in_sync()
            await two.in_sync()
            for at in range(50):
                await one.set(b"k%d" % at, b"v")
                assert await two.get(b"k%d" % at) == b"v"

        play(story, tmp_path, cluster.url)
