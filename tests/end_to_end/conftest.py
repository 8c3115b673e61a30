"""Two hosts on one Redis, for the tests of what goes on between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from support.hosts import Host, empty, make_hosts
from support.redis import RedisServer


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def both(
    redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Host, Host]]:
    with ExitStack() as stack:
        one, other = make_hosts(tmp_path_factory.mktemp("hosts"), redis, stack)
        yield one, other


@pytest.fixture
def hosts(both: tuple[Host, Host], redis: RedisServer) -> tuple[Host, Host]:
    """Well, with nothing on them nor in Redis, and nothing still to be heard."""
    empty(both, redis)
    return both
