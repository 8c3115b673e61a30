"""Where Redis is: what a URL says, and how a connection to it is made.

redis-py is imported here alone, and late: without it the cache is local and says what to install.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from bi_performanced.remote.connection import Connection

OLDEST: Final = 7
"""The oldest major version of Redis that has what the scripts need."""
REMEDY: Final = "install the extra: pip install 'bi-performance[performance]'"


class NotUsable(Exception):
    """Why this Redis cannot be used at all, with the remedy; without credentials."""


@dataclass(frozen=True)
class Address:
    """A URL taken apart. `shown` has neither user nor password."""

    kind: str
    """`single`, `sentinel` or `cluster`."""
    shown: str
    nodes: tuple[tuple[str, int], ...]
    """Of sentinels or a cluster: where to ask."""
    service: str = ""
    """The name that the sentinels know the master by."""
    identity: str = ""
    """Tells one Redis from another, without saying where it is."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What redis-py's connection takes."""
    tls: bool = False
    sentinel: Mapping[str, Any] = field(default_factory=dict)
    """What a connection to a sentinel takes in place of user, password and database."""

    def sentinel_connection(self, timeout: float, node: tuple[str, int]) -> Connection:
        """A connection to a sentinel that is not made yet."""
        theirs = {name: value for name, value in self.options.items() if name in _TEXT}
        return replace(self, options={**theirs, **self.sentinel}).connection(timeout, node)

    def connection(self, timeout: float, node: tuple[str, int] | None = None) -> Connection:
        """A connection that is not made yet, to a node or to the one address. Blocks nothing."""
        from redis import connection as kinds
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options: dict[str, Any] = {
            **self.options,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "protocol": 3,
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
            "client_name": "bi-performanced",
        }
        if node is not None:
            options |= {"host": node[0], "port": node[1]}
        if "path" in options:
            make: Any = kinds.UnixDomainSocketConnection
        else:
            options["socket_keepalive"] = True
            make = kinds.SSLConnection if self.tls else kinds.Connection
        made: Connection = make(**options)
        return made


def parse(url: str) -> Address:
    """Take `cache.redis_url` apart. Raises NotUsable, which never shows the URL."""
    try:
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        tls = scheme == "rediss"
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        options: dict[str, Any] = {}
        if parts.username:
            options["username"] = unquote(parts.username)
        if parts.password:
            options["password"] = unquote(parts.password)
        sentinel = {
            name: query.pop(f"sentinel_{name}")
            for name in ("username", "password")
            if kind == "sentinel" and f"sentinel_{name}" in query
        }
        _take_query(query, options)
        if scheme == "unix":
            options["path"] = unquote(parts.path)
            shown = f"unix://{parts.path}"
            return Address("single", shown, (), "", _identity(shown, options), options)
        if scheme not in ("redis", "rediss") or kind not in ("", "sentinel", "cluster"):
            raise ValueError
        default = 26379 if kind == "sentinel" else 6379
        nodes = tuple(_node(text, default) for text in _hosts(parts.netloc))
        path = [unquote(part) for part in parts.path.split("/") if part]
        service = ""
        if kind == "sentinel":
            service = path.pop(0) if path else "mymaster"
        if path:
            options["db"] = int(path[0])
    except ValueError:
        raise NotUsable(
            "cache.redis_url cannot be read: redis://HOST:PORT/DB, rediss://…, unix:///PATH,"
            " redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB or redis+cluster://HOST:PORT,…"
        ) from None
    shown = f"{parts.scheme}://" + ",".join(f"{host}:{port}" for host, port in nodes)
    shown += f"/{service}" if service else ""
    shown += f"/{options['db']}" if options.get("db") else ""
    if not kind:
        options |= {"host": nodes[0][0], "port": nodes[0][1]}
        nodes = ()
    if kind == "cluster" and options.get("db"):
        raise NotUsable("cache.redis_url: a cluster has no numbered databases; leave /DB out")
    identity = _identity(shown, options)
    return Address(kind or "single", shown, nodes, service, identity, options, tls, sentinel)


def _hosts(netloc: str) -> list[str]:
    return netloc.rpartition("@")[2].split(",")


def _node(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "localhost", parts.port or default


_TEXT = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")


def _take_query(query: Mapping[str, str], options: dict[str, Any]) -> None:
    for name, value in query.items():
        if name == "db":
            options["db"] = int(value)
        elif name in ("username", "password") or name in _TEXT:
            options[name] = value
        elif name == "ssl_check_hostname":
            options[name] = value.lower() not in ("false", "no", "0")
        else:
            raise NotUsable(
                f"cache.redis_url: the option {name[:40]!r} is not known; there are db, "
                + ", ".join((*_TEXT, "ssl_check_hostname"))
            )


def _identity(shown: str, options: Mapping[str, Any]) -> str:
    text = f"{shown}\0{options.get('db', 0)}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def reason_of(error: BaseException, shown: str) -> str:
    """What an exception says of a connection, in a sentence without credentials."""
    from redis import exceptions

    text = str(error)
    if isinstance(error, exceptions.AuthenticationError):
        return f"{shown} refuses the user or the password"
    if isinstance(error, exceptions.BusyLoadingError):
        return f"{shown} is still loading its data"
    if isinstance(error, exceptions.ReadOnlyError):
        return f"{shown} is a replica that cannot be written"
    if isinstance(error, exceptions.MasterDownError):
        return f"{shown} is a replica that has lost its master"
    if isinstance(error, exceptions.OutOfMemoryError):
        return f"{shown} is out of memory (maxmemory)"
    if isinstance(error, exceptions.NoPermissionError):
        return f"{shown} does not allow its user what the cache needs; see docs/redis.md"
    if isinstance(error, exceptions.MovedError | exceptions.AskError):
        return f"{shown} has moved this shard"
    if isinstance(error, exceptions.ClusterDownError):
        return f"{shown}: the cluster is down"
    if isinstance(error, exceptions.ResponseError):
        word = text.split(" ", 1)[0][:40]
        return f"{shown} answered with an error: {word}"
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return f"{shown} did not answer in time"
    if "refused" in text:
        return f"{shown} refuses connections"
    return f"{shown} cannot be reached: {_cause(error)}"


def _cause(error: BaseException) -> str:
    """The name of what the system said, never the text of a library, which may quote anything."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return "the connection was lost"
