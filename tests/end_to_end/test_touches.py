"""What processes have read stays known when the last of them has left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance_wire import layout as L
from bi_performance_wire.types import Attached
from bi_performanced.cache.clients import IDLE_MAPS, Attachment, Clients, boot_clock
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.store import Store
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until

ATTACHED = Attached(epoch=1, mode="on", default_ttl=60, compression=True, max_payload=1000)


def nobody_is_attached(client: RawClient) -> bool:
    return not client.result("cache.stats")["clients"]


def read_and_leave(daemon: DaemonProcess, client: RawClient, keys: list[str]) -> None:
    """As a process of its own would: it attaches, reads each once and is gone."""
    optimizer = PerformanceOptimizer(str(daemon.socket))
    for key in keys:
        wait_until(lambda key=key: optimizer.sync.cache.get(key) is not None, what="a hit")
    optimizer.close()
    wait_until(lambda: nobody_is_attached(client), what="the end of the connection")


def test_what_a_process_that_has_left_had_read_is_not_what_leaves_first(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[performance.cache]\nmax_size = 200\n")
    with (
        DaemonProcess(tmp_path, "--config", str(tmp_path / "config.toml"), http="off") as daemon,
        RawClient(daemon.socket) as client,
    ):

        def store(name: str, count: int) -> None:
            for number in range(count):
                client.result("cache.set", key=f"{name}:{number}", value="text")

        hot = [f"page:{number}" for number in range(30)]
        store("page", 150)
        # So that time passes, which goes by what is stored.
        store("between", 40)
        read_and_leave(daemon, client, hot)
        found = client.result("cache.top", by="cold", limit=1000)
        assert (found["entries"], found["unread"]) == (190, 160)
        store("later", 100)
        left = client.result("cache.get_many", keys=hot)
        assert [each is not None for each in left] == [True] * len(hot), left


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[Clients]:
    store = Store(Memory.create(tmp_path / "store", 100, 1 << 20, epoch=1))
    made = Clients(store, os.open(tmp_path / "store", os.O_RDONLY | os.O_CLOEXEC))
    yield made
    made.close()
    assert not store.index.touch_maps
    store.close()


def attach(clients: Clients, uid: int) -> Attachment:
    return clients.attach(
        ATTACHED, uid=uid, pid=1, peer_pid=1, name="", instance=bytes(16), now=boot_clock()
    )


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_next_process_of_a_user_writes_into_the_map_of_the_last(clients: Clients) -> None:
    first = attach(clients, 7)
    maps = clients._store.index.touch_maps
    os.pwrite(first.fds[2], bytes([L.TICK_ONE | 1]), 3)
    first.close()
    assert len(maps) == 1 and clients._store.index.last_used(3) == L.TICK_ONE
    again = attach(clients, 7)
    assert len(maps) == 1, "an entry costs the daemon no more than before"
    assert os.pread(again.fds[2], 1, 3) == bytes([L.TICK_ONE | 1])


def test_of_users_that_have_left_no_more_than_a_few_maps_are_kept(clients: Clients) -> None:
    before = open_files()
    stays = attach(clients, 0)
    maps = clients._store.index.touch_maps
    for uid in range(1, 20):
        attach(clients, uid).close()
    assert len(maps) == 1 + IDLE_MAPS
    # Of those left, the first comes back and goes once more: it is the last to have left.
    attach(clients, 19 - IDLE_MAPS + 1).close()
    attach(clients, 20).close()
    assert list(clients._touch_maps) == [0, 18, 19, 16, 20]
    stays.close()
    assert list(clients._touch_maps) == [19, 16, 20, 0]
    assert open_files() == before + 2 * IDLE_MAPS, "one, and its mapping's"


def test_in_a_store_that_takes_another_s_place_nothing_is_kept(
    clients: Clients, tmp_path: Path
) -> None:
    gone, stays = attach(clients, 1), attach(clients, 2)
    gone.close()
    old = clients._store
    new = Store(Memory.create(tmp_path / "new", 200, 1 << 20, epoch=2))
    clients.move_to(new, os.open(tmp_path / "new", os.O_RDONLY | os.O_CLOEXEC))
    assert not old.index.touch_maps
    stays.close()
    assert not new.index.touch_maps, "a process of the old store leaves nothing in the new one"
    attach(clients, 1).close()
    assert len(new.index.touch_maps) == 1
    clients._drop_all()
    clients._store = old
    new.close()
