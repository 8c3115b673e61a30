"""The control socket beside a bare trio echo, and how long the control program takes to start.

python benchmarks/control.py [--json FILE] [--plot FILE]
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import trio
from measure import (
    FIRST,
    SECOND,
    Spread,
    arguments,
    bars,
    daemon,
    pin,
    ratio,
    rounds,
    save,
    say,
)

ROUNDS = 9
CONNECTIONS = 8
PIPELINED = 64


async def echo(path: str) -> None:
    """The least that answers MessagePack-RPC under trio: no limits, no table, no deadlines."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.bind(path)
        raw.listen()
        raw.setblocking(False)
        listener = trio.socket.from_stdlib_socket(raw)

        async def serve(peer: trio.socket.SocketType) -> None:
            unpacker = msgpack.Unpacker()
            while data := await peer.recv(65536):
                unpacker.feed(data)
                answers = [msgpack.packb((1, message[1], None, True)) for message in unpacker]
                await peer.send(b"".join(answers))
            peer.close()

        async with trio.open_nursery() as nursery:
            while True:
                peer, _ = await listener.accept()
                nursery.start_soon(serve, peer)


@contextmanager
def echo_server(cpu: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "echo.sock"
        process = subprocess.Popen([sys.executable, __file__, "--echo", str(path)])
        try:
            while not path.exists():
                time.sleep(0.01)
            time.sleep(0.1)
            pin(cpu, process.pid)
            yield path
        finally:
            process.kill()
            process.wait()


def one_by_one(path: Path) -> Callable[[], object]:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path))
    message = msgpack.packb((0, 1, "ping", []))

    def once() -> None:
        peer.sendall(message)
        peer.recv(4096)

    return once


def pipelined(path: Path) -> Callable[[], object]:
    """`PIPELINED` requests on each of several connections, then all their answers."""
    peers = []
    for _ in range(CONNECTIONS):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(path))
        peers.append(peer)
    messages = b"".join(msgpack.packb((0, n, "ping", [])) for n in range(PIPELINED))
    size = sum(len(msgpack.packb((1, n, None, True))) for n in range(PIPELINED))

    def once() -> None:
        for peer in peers:
            peer.sendall(messages)
        for peer in peers:
            left = size
            while left:
                left -= len(peer.recv(left))

    return once


def start_of(*command: str) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    if sys.argv[1:2] == ["--echo"]:
        trio.run(echo, sys.argv[2])
    args = arguments(__doc__ or "").parse_args()
    rows: list[dict[str, Any]] = []
    figures: dict[str, dict[str, Spread]] = {}
    pin(FIRST)
    for placement, cpu in (("same processor", FIRST), ("across processors", SECOND)):
        with daemon(cpu) as ours, echo_server(cpu) as bare:
            for label, make, requests in (
                ("ping, one by one", one_by_one, 1),
                ("ping, pipelined", pipelined, PIPELINED * CONNECTIONS),
            ):
                acts = {"bi-performanced": make(ours), "bare trio echo": make(bare)}
                measured = rounds(acts, count=ROUNDS, seconds=0.4)
                share = ratio(measured["bi-performanced"], measured["bare trio echo"])
                say(f"\n{label}, {placement}")
                for name, found in measured.items():
                    each = Spread.of([ns / requests / 1e3 for ns in found])
                    figures.setdefault(f"{label}\n{placement}", {})[name] = each
                    say(f"  {name:18} {each} µs a request")
                say(f"  {share} of the bare echo's rate")
                rows.append(
                    {"operation": label, "placement": placement, "rate_of_echo": share._asdict()}
                )
    with daemon() as path:
        program = str(Path(sys.executable).with_name("bi-performance"))
        acts = {
            "python -c pass": start_of(sys.executable, "-c", "pass"),
            "bi-performance status": start_of(program, "--socket", str(path), "status"),
        }
        for act in acts.values():
            act()
        taken: dict[str, list[float]] = {name: [] for name in acts}
        for _ in range(30):
            for name, act in acts.items():
                began = time.perf_counter_ns()
                act()
                taken[name].append(time.perf_counter_ns() - began)
        times = ratio(taken["python -c pass"], taken["bi-performance status"])
        say("\nstart of the control program")
        for name, found in taken.items():
            say(f"  {name:22} {Spread.of([ns / 1e6 for ns in found])} ms")
        say(f"  {times}× the interpreter's own start")
        rows.append({"operation": "status", "times_of_python": times._asdict()})
    bars(args.plot, "round trips of the control socket", "µs a request", figures)
    save(args.json, rows)


if __name__ == "__main__":
    main()
