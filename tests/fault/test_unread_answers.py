"""Clients that ask and do not read, or begin and do not end: bounded memory, others unharmed."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgpack
import pytest

from bi_performance_wire.value import encode
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until

MIB = 1 << 20
BOUND = 96 * MIB
"""How far the daemon's memory may rise above that of an idle one."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Holds 3,000 keys of 8,000 bytes, and twelve values of 1 MiB, each once compressed too."""
    folder = tmp_path_factory.mktemp("daemon")
    file = folder / "performance.toml"
    file.write_text("[performance.cache]\nmax_bytes = '128 MiB'\n")
    with DaemonProcess(folder, "--config", str(file)) as running:
        text = random.Random(1).randbytes(MIB // 2).hex()
        with RawClient(running.socket) as client:
            for n in range(3000):
                client.result("cache.set", key=f"{n:08000}", value=n)
            for n in range(12):
                value = b"\x00" + msgpack.packb(bytes(MIB))
                client.result("cache.set", key=f"plain-{n}", payload=value)
                client.result("cache.set", key=f"packed-{n}", payload=encode(text))
        yield running


def resident(daemon: DaemonProcess, field: str) -> int:
    """Bytes of the daemon's private memory (RssAnon) or another field of its status."""
    text = Path(f"/proc/{daemon.pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def pipeline(client: RawClient, method: str, args: dict[str, object], count: int) -> None:
    """Send requests without reading any answer, as many as the daemon takes."""
    client.socket.setblocking(False)
    frames = b"".join(msgpack.packb([0, n, method, [args]]) for n in range(count))
    while frames:
        try:
            frames = frames[client.socket.send(frames) :]
        except BlockingIOError:
            break
        except OSError:
            # Cut off already.
            break


def settled(measure: Callable[[], int]) -> int:
    """The measure's highest value, once it rises no more."""
    found = [measure()]

    def quiet() -> bool:
        found.append(measure())
        return len(found) > 100 and max(found[-60:]) <= max(found[:-60])

    wait_until(quiet, within=60, what="an end of the growth")
    return max(found)


ASKED: dict[str, tuple[str, dict[str, object]]] = {
    "keys": ("cache.keys", {"limit": 100_000}),
    "values": ("cache.get_many", {"keys": [f"plain-{n}" for n in range(12)]}),
    "packed": ("cache.get_many", {"keys": [f"packed-{n}" for n in range(12)]}),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("clients", [1, 12])
def test_answers_that_nobody_reads_are_not_heaped_up(
    daemon: DaemonProcess, asked: str, clients: int
) -> None:
    method, args = ASKED[asked]
    before = resident(daemon, "RssAnon")
    with ExitStack() as stack:
        for _ in range(clients):
            pipeline(stack.enter_context(RawClient(daemon.socket)), method, args, 120)
        peak = settled(lambda: resident(daemon, "RssAnon"))
        with RawClient(daemon.socket) as good:
            assert good.result("cache.get", key="plain-0") == bytes(MIB)
    assert peak - before < BOUND, f"{(peak - before) / MIB:.0f} MiB"


@pytest.mark.parametrize("asked", ASKED)
def test_a_client_that_reads_gets_every_answer_however_much_it_asked(
    daemon: DaemonProcess, asked: str
) -> None:
    method, args = ASKED[asked]
    with RawClient(daemon.socket, timeout=60) as client:
        wanted = {client.send(method, args) for _ in range(20)}
        while wanted:
            kind, number, error, _ = client.receive()
            assert (kind, error) == (1, None)
            wanted.remove(number)


def test_messages_that_never_end_are_cut_the_oldest_first(daemon: DaemonProcess) -> None:
    before = resident(daemon, "RssAnon")
    half = msgpack.packb([0, 1, "cache.set", [{"key": "half", "payload": bytes(20 * MIB)}]])[:-1]
    with ExitStack() as stack:
        sockets = []
        for _ in range(8):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            peer.connect(str(daemon.socket))
            peer.sendall(half)
            sockets.append(peer)
        peak = settled(lambda: resident(daemon, "RssAnon"))
        sockets[0].settimeout(10)
        message = msgpack.unpackb(sockets[0].recv(1 << 16))
        assert message[2]["code"] == "busy"
        assert message[2]["field"] == "max_buffered_bytes"
        sockets[-1].sendall(b"\x00")
        answer = msgpack.unpackb(sockets[-1].recv(1 << 16))
        assert answer[1] == 1, "the newest is served"
    assert peak - before < BOUND, f"{(peak - before) / MIB:.0f} MiB"


def test_a_long_listing_is_ended_at_its_limit_of_bytes_and_says_so(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        found = client.result("cache.keys", limit=100_000)
        assert found["truncated"] is True
        size = sum(map(len, found["keys"]))
        assert 3 * MIB < size <= 4 * MIB
        assert client.result("cache.keys", limit=100_000, pattern="plain")["truncated"] is False
