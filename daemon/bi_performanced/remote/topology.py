"""Which server holds a shard, and connections to it. Everything here blocks: it runs in threads."""

from __future__ import annotations

from typing import Any, Protocol

from bi_performanced.remote.address import OLDEST, Address, NotUsable
from bi_performanced.remote.connection import Connection, exchange
from bi_performanced.remote.names import CLUSTER_TAGS, slot


class Topology(Protocol):
    """Finds the servers of one Redis."""

    tags: tuple[bytes, ...]
    """The hash tag of each shard."""

    def connect(self, shard: int, timeout: float) -> Connection:
        """A connection to the server that holds a shard. Raises what redis-py raises."""
        ...

    def forget(self, shard: int) -> None:
        """The server was not the right one, or is gone: look anew."""
        ...


class Single:
    """One server, named by its address."""

    tags: tuple[bytes, ...] = (b"",)

    def __init__(self, address: Address) -> None:
        self._address = address

    def connect(self, shard: int, timeout: float) -> Connection:
        connection = self._address.connection(timeout)
        connection.connect()
        return connection

    def forget(self, shard: int) -> None:
        return


class Sentinels:
    """One master at a time, whose address sentinels know."""

    tags: tuple[bytes, ...] = (b"",)

    def __init__(self, address: Address) -> None:
        self._address = address
        self._master: tuple[str, int] | None = None

    def connect(self, shard: int, timeout: float) -> Connection:
        master = self._master or self._ask(timeout)
        connection = self._address.connection(timeout, master)
        connection.connect()
        self._master = master
        return connection

    def forget(self, shard: int) -> None:
        self._master = None

    def _ask(self, timeout: float) -> tuple[str, int]:
        from redis.exceptions import RedisError

        failed: RedisError | None = None
        for node in self._address.nodes:
            connection = self._address.sentinel_connection(timeout, node)
            try:
                connection.connect()
                command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
                (reply,) = exchange(connection, [command])
            except RedisError as error:
                failed = error
                continue
            finally:
                connection.disconnect()
            if isinstance(reply, RedisError):
                failed = reply
            elif reply is not None:
                host, port = reply
                return host.decode(), int(port)
        if failed is not None:
            raise failed
        raise NotUsable(
            f"the sentinels know no master named {self._address.service!r}: name it behind the"
            " hosts, redis+sentinel://HOST:PORT/NAME"
        )


class Cluster:
    """A cluster, of which each shard takes one slot."""

    tags: tuple[bytes, ...] = CLUSTER_TAGS

    def __init__(self, address: Address) -> None:
        self._address = address
        self._known: tuple[tuple[str, int], ...] = address.nodes
        self._masters: list[tuple[str, int] | None] = [None] * len(CLUSTER_TAGS)

    def connect(self, shard: int, timeout: float) -> Connection:
        master = self._masters[shard]
        if master is None:
            self._ask(timeout)
            master = self._masters[shard]
        if master is None:
            raise NotUsable("the cluster has no node for some of its slots")
        connection = self._address.connection(timeout, master)
        connection.connect()
        return connection

    def forget(self, shard: int) -> None:
        self._masters[shard] = None

    def _ask(self, timeout: float) -> None:
        """Learn the masters of all shards from the first node that answers."""
        from redis.exceptions import RedisError

        failed: Exception | None = None
        for node in (*self._known, *self._address.nodes):
            connection = self._address.connection(timeout, node)
            try:
                connection.connect()
                (reply,) = exchange(connection, [("CLUSTER", "SLOTS")])
            except RedisError as error:
                failed = error
                continue
            finally:
                connection.disconnect()
            if isinstance(reply, Exception):
                failed = reply
                continue
            masters = _masters(reply, node[0])
            self._masters = masters
            self._known = tuple(dict.fromkeys(each for each in masters if each is not None))
            return
        assert failed is not None
        raise failed


def _masters(reply: Any, asked: str) -> list[tuple[str, int] | None]:
    """The master of each shard by CLUSTER SLOTS; one without a name is the node that was asked."""
    found: list[tuple[str, int] | None] = [None] * len(CLUSTER_TAGS)
    for first, last, master, *_ in reply:
        host = (master[0] or b"").decode() or asked
        for shard, tag in enumerate(CLUSTER_TAGS):
            if first <= slot(tag) <= last:
                found[shard] = host, int(master[1])
    return found


def find_topology(address: Address) -> Topology:
    """What an address stands for. Connects to nothing."""
    if address.kind == "cluster":
        return Cluster(address)
    return Sentinels(address) if address.kind == "sentinel" else Single(address)


def check_server(connection: Connection, *, clustered: bool) -> None:
    """Raises NotUsable for a server that cannot do what is needed, with the remedy."""
    server, cluster = exchange(connection, [("INFO", "server"), ("INFO", "cluster")])
    version = field(server, "redis_version")
    if version.partition(".")[0].isdigit() and int(version.partition(".")[0]) < OLDEST:
        raise NotUsable(f"Redis {OLDEST} or newer is needed, this is {version[:20]}")
    if field(cluster, "cluster_enabled") == "1" and not clustered:
        raise NotUsable("this Redis is a cluster: write redis+cluster:// in cache.redis_url")


def field(info: Any, name: str) -> str:
    """A field of a section of INFO, or empty where the server does not tell."""
    if isinstance(info, Exception):
        return ""
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else str(info)
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""
