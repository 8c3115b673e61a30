"""A real cluster of Redis: masters that share the slots."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from support.daemon import wait_until
from support.redis import RedisServer, free_port

SLOTS = 16384


class RedisCluster:
    """Three masters, formed inside and gone outside."""

    def __init__(self, folder: Path) -> None:
        self._buses = [free_port() for _ in range(3)]
        self.masters = [
            RedisServer(folder / f"{at}", *clustered(bus)) for at, bus in enumerate(self._buses)
        ]

    @property
    def url(self) -> str:
        """With a first node that does not answer."""
        return f"redis+cluster://127.0.0.1:1,127.0.0.1:{self.masters[1].port}"

    def __enter__(self) -> Self:
        try:
            self._form()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kill()

    def _kill(self) -> None:
        for each in self.masters:
            each.kill()

    def _form(self) -> None:
        for each in self.masters:
            each.start(wait=False)
        for each in self.masters:
            wait_until(each.answers, what="a node")
        first = self.masters[0]
        for at, each in enumerate(self.masters):
            low, high = (SLOTS * edge // len(self.masters) for edge in (at, at + 1))
            each.command("CLUSTER", "ADDSLOTSRANGE", low, high - 1)
            each.command("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
            if each is not first:
                each.command("CLUSTER", "MEET", "127.0.0.1", first.port, self._buses[0])
        wait_until(lambda: all(self._ready(each) for each in self.masters), what="the cluster")

    def move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move a slot with all that is in it, as redis-cli does."""
        names = {node: node.command("CLUSTER", "MYID") for node in (source, target)}
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *self.masters):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", names[target])

    def _ready(self, node: RedisServer) -> bool:
        info: bytes = node.command("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info


def clustered(bus: int) -> tuple[str, ...]:
    """The options of a node."""
    return (
        "cluster-enabled yes",
        f"cluster-port {bus}",
        "cluster-node-timeout 2000",
        "cluster-require-full-coverage no",
    )
