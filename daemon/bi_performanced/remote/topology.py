"""Which server holds a shard, and connections to it. Everything here blocks: it runs in threads."""

from __future__ import annotations

from typing import Any, Protocol

from bi_performanced.remote.address import OLDEST, Address, NotUsable
from bi_performanced.remote.connection import Connection, exchange


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
