"""The control socket's deadlines on a virtual clock: hours pass in no time."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import trio
import trio.testing

from bi_performance_wire.commands import Command
from bi_performanced.config import SocketSettings
from bi_performanced.dispatch import Dispatcher
from bi_performanced.fronts.socket import SocketFront

ROWS = (Command("ping", "Answer."), Command("wait", "Answer after two hours."))


async def _wait() -> bool:
    await trio.sleep(7200)
    return True


def run(
    folder: Path, scenario: Callable[[socket.socket, SocketFront], Any], **settings: Any
) -> None:
    """`scenario` with a peer that is connected to a front of its own."""

    async def main() -> None:
        handlers: dict[str, Any] = {
            "ping": lambda args, caller: True,
            "wait": lambda args, caller: _wait(),
        }
        front = SocketFront(SocketSettings(**settings), Dispatcher(handlers, ROWS))
        with socket.socket(socket.AF_UNIX) as raw, socket.socket(socket.AF_UNIX) as peer:
            raw.bind(str(folder / "socket"))
            raw.listen()
            raw.setblocking(False)
            listener = trio.socket.from_stdlib_socket(raw)
            async with trio.open_nursery() as nursery:
                await nursery.start(front.run, listener)
                peer.setblocking(False)
                peer.connect(str(folder / "socket"))
                await scenario(peer, front)
                front.stop()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def ask(peer: socket.socket, number: int, method: str) -> None:
    peer.send(msgpack.packb([0, number, method, []]))


async def answer(peer: socket.socket) -> Any:
    await trio.lowlevel.wait_readable(peer)
    data = peer.recv(4096)
    return msgpack.unpackb(data) if data else None


def test_a_connection_without_requests_is_closed_after_its_hour(tmp_path: Path) -> None:
    async def scenario(peer: socket.socket, front: SocketFront) -> None:
        await ask(peer, 1, "ping")
        assert await answer(peer) == [1, 1, None, True]
        began = trio.current_time()
        assert await answer(peer) is None
        assert 3600 <= trio.current_time() - began < 3602

    run(tmp_path, scenario)


def test_a_connection_that_waits_for_an_answer_is_not_idle(tmp_path: Path) -> None:
    async def scenario(peer: socket.socket, front: SocketFront) -> None:
        began = trio.current_time()
        await ask(peer, 1, "wait")
        assert await answer(peer) == [1, 1, None, True]
        assert trio.current_time() - began >= 7200

    run(tmp_path, scenario, idle_timeout=60.0)


def test_a_stop_waits_for_what_is_in_flight(tmp_path: Path) -> None:
    async def scenario(peer: socket.socket, front: SocketFront) -> None:
        await ask(peer, 1, "wait")
        await ask(peer, 2, "ping")
        assert await answer(peer) == [1, 2, None, True]
        front.stop()
        assert await answer(peer) == [1, 1, None, True]
        assert await answer(peer) is None

    run(tmp_path, scenario)
