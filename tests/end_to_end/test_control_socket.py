"""The control socket as any MessagePack-RPC client sees it, and what a hostile one can do."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from bi_performance.optimizer import PerformanceOptimizer
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[RawClient]:
    with RawClient(daemon.socket) as made:
        yield made


def with_settings(folder: Path, section: str) -> DaemonProcess:
    """A daemon whose control socket has other limits."""
    file = folder / "performance.toml"
    file.write_text(f"[performance.socket]\n{section}\n")
    return DaemonProcess(folder, "--config", str(file))


def open_files(daemon: DaemonProcess) -> int:
    """How many the daemon keeps open: of many looks the least, for its monitor reads files."""
    return min(len(os.listdir(f"/proc/{daemon.pid}/fd")) for _ in range(50))  # noqa: PTH208


# ── any client


FOREIGN = """
import sys
from pynvim import msgpack_rpc
session = msgpack_rpc.socket_session(sys.argv[1])
# Neovim's own errors are pairs; ours are maps.
session.error_wrapper = lambda error: ValueError(error["code"])
assert session.request("ping") is True
assert session.request("cache.set", {"key": "pynvim", "value": [1, {"a": None}]}) == {"stored": 1}
assert session.request("cache.get", {"key": "pynvim"}) == [1, {"a": None}]
assert session.request("status")["status"] == "ok"
try:
    session.request("no.such.method")
except ValueError as error:
    assert str(error) == "unknown_method"
assert session.request("ping") is True
print("all answered")
"""


def test_a_client_library_that_is_not_ours_works(daemon: DaemonProcess) -> None:
    # In a process of its own: it leaves its event loop unclosed.
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(daemon.socket)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "all answered\n", done.stderr


def test_pipelined_requests_are_each_answered_once(client: RawClient) -> None:
    count = 500
    numbers = {client.send("cache.set", key=f"pipelined-{n}", value=n) for n in range(count)}
    numbers |= {client.send("cache.get", key=f"pipelined-{n}") for n in range(count)}
    answers = [client.receive() for _ in range(2 * count)]
    assert {answer[1] for answer in answers} == numbers
    assert all(answer[2] is None for answer in answers)
    assert sorted(a[3] for a in answers if isinstance(a[3], int)) == list(range(count))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -5,
        2**64 - 1,
        1.5,
        "text",
        b"\x00\xff",
        [],
        {},
        [1, [2, [3]]],
        {"a": {"b": [None]}, 5: b"x"},
        msgpack.ExtType(77, b"foreign"),
    ],
)
def test_a_value_comes_back_as_it_went_in(client: RawClient, value: Any) -> None:
    client.result("cache.set", key="same", value=value)
    assert client.result("cache.get", key="same") == value
    assert client.result("cache.get_many", keys=["same", "absent"]) == [value, None]


def test_the_bytes_of_a_value_are_not_encoded_anew(client: RawClient) -> None:
    """A float of 4 bytes, an integer and text in a longer form than needed: kept as they came."""
    odd = b"\x93\xca\x3f\x80\x00\x00\xcf\x00\x00\x00\x00\x00\x00\x00\x01\xd9\x01a"
    request = msgpack.packb([0, 1, "cache.set"])[1:] + b"\x91"
    request = b"\x94" + request + b"\x82\xa3key\xa3odd\xa5value" + odd
    client.socket.sendall(request)
    assert client.receive() == [1, 1, None, {"stored": 1}]
    client.socket.sendall(msgpack.packb([0, 2, "cache.get", [{"key": "odd"}]]))
    received = client.socket.recv(1000)
    assert received.endswith(odd)


def test_what_ours_and_a_foreign_client_store_the_other_reads(
    daemon: DaemonProcess, client: RawClient
) -> None:
    optimizer = PerformanceOptimizer(str(daemon.socket))
    client.result("cache.set", key="foreign", value={"n": 1})
    assert optimizer.sync.cache.get("foreign") == {"n": 1}
    assert optimizer.sync.cache.set("own", {"n": 2})
    assert client.result("cache.get", key="own") == {"n": 2}
    assert optimizer.sync.cache.set("large", "z" * 100_000)
    assert client.result("cache.get", key="large") == "z" * 100_000
    optimizer.close()


def test_a_method_named_in_bytes_is_found(client: RawClient) -> None:
    client.socket.sendall(msgpack.packb([0, 1, b"ping", []]) + msgpack.packb([2, b"other", [1]]))
    assert client.receive() == [1, 1, None, True]


def test_a_notification_is_carried_out_and_not_answered(client: RawClient) -> None:
    client.socket.sendall(msgpack.packb([2, "cache.set", [{"key": "noted", "value": 7}]]))
    client.socket.sendall(msgpack.packb([2, "no.such.method", []]))
    assert client.result("cache.get", key="noted") == 7


@pytest.mark.parametrize(
    ("method", "args", "code", "names"),
    [
        ("no.such", None, "unknown_method", "no.such"),
        ("cache.gett", None, "unknown_method", "cache.get"),
        ("cache.get", None, "invalid_argument", "key"),
        ("cache.get", {}, "invalid_argument", "key"),
        ("cache.get", {"key": 5}, "invalid_argument", "key"),
        ("cache.get", {"key": ""}, "invalid_argument", "key"),
        ("cache.get", {"key": "k" * 8193}, "invalid_argument", "key"),
        ("cache.get", {"key": "k", "kay": 1}, "invalid_argument", "kay"),
        ("cache.set", {"key": "k"}, "invalid_argument", "value"),
        ("cache.set", {"key": "k", "value": 1, "payload": b"\0\1"}, "invalid_argument", "payload"),
        ("cache.set", {"key": "k", "value": 1, "ttl": 0}, "invalid_argument", "ttl"),
        ("cache.set", {"key": "k", "value": 1, "ttl": -1}, "invalid_argument", "ttl"),
        ("cache.set", {"key": "k", "value": 1, "ttl": float("nan")}, "invalid_argument", "ttl"),
        ("cache.set", {"key": "k", "value": 1, "ttl": float("inf")}, "invalid_argument", "ttl"),
        ("cache.set", {"key": "k", "value": 1, "ttl": "5"}, "invalid_argument", "ttl"),
        ("cache.set", {"key": "k", "value": 1, "ttl": True}, "invalid_argument", "ttl"),
        ("cache.set", {"key": "k", "value": "v" * 65537}, "too_large", "value"),
        ("cache.set", {"key": "k", "value": [0] * 5000}, "too_large", "value"),
        ("cache.set", {"key": "k", "payload": b""}, "invalid_argument", "payload"),
        ("cache.set", {"key": "k", "payload": "text"}, "invalid_argument", "payload"),
        ("cache.set", {"key": "k", "payload": bytes(20 << 20)}, "too_large", "value"),
        ("cache.set_many", {"items": [["a"]]}, "invalid_argument", "items"),
        ("cache.set_many", {"items": {"a": 1}}, "invalid_argument", "items"),
        ("cache.set_many", {"items": [["a", 1], ["", 1]]}, "invalid_argument", "items"),
        ("cache.clear", {"pattern": ""}, "invalid_argument", "pattern"),
        ("cache.clear", {"pattern": "[a"}, "invalid_argument", "pattern"),
        ("cache.clear", {"pattern": "p" * 10_000}, "invalid_argument", "pattern"),
        ("cache.keys", {"limit": 0}, "invalid_argument", "limit"),
        ("cache.keys", {"limit": "many"}, "invalid_argument", "limit"),
        ("status", {"verbose": True}, "invalid_argument", "no arguments"),
        ("attach", {"instance": b"short"}, "invalid_argument", "instance"),
    ],
)
def test_bad_arguments_are_answered_by_name_and_change_nothing(
    client: RawClient, method: str, args: dict[str, Any] | None, code: str, names: str
) -> None:
    client.result("cache.set", key="witness", value="unchanged")
    before = client.result("cache.stats")
    error = client.error(method, args)
    assert error["code"] == code
    assert names in f"{error['message']} {error.get('field')} {error.get('hint')}"
    after = client.result("cache.stats")
    assert after["entries"] == before["entries"] and after["sets"] == before["sets"]
    assert client.result("cache.get", key="witness") == "unchanged"


@pytest.mark.parametrize("text", [b"\xa3key\xa3\xed\xb2\x80", b"\xa3\xff\xfe\xfd\xa1k"])
def test_text_that_is_no_utf_8_is_told_so(client: RawClient, text: bytes) -> None:
    client.socket.sendall(b"\x94\x00\x05\xa9cache.get\x91\x81" + text)
    error = client.receive()[2]
    assert error["code"] == "invalid_argument" and error["field"] == "params"
    assert "must be UTF-8" in error["message"] and "codec" not in error["message"]
    assert "bytes" in error["hint"]


@pytest.mark.parametrize("params", [None, 5, "text", {"key": "k"}, [1], ["k"], [{}, {}], [[]]])
def test_params_are_an_array_of_nothing_or_one_map(client: RawClient, params: Any) -> None:
    client.socket.sendall(msgpack.packb([0, 9, "cache.get", params]))
    kind, number, error, result = client.receive()
    assert (kind, number, result) == (1, 9, None)
    assert error["code"] in ("invalid_request", "invalid_argument")


# ── limits, each with its name


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x00", b"\xa5hello", b"\x85", b"\xc0", b"\xff" * 100, b"\xc1"],
)
def test_what_is_no_array_closes_the_connection_at_its_first_byte(
    daemon: DaemonProcess, client: RawClient, data: bytes
) -> None:
    client.socket.sendall(data)
    kind, _, error, _ = client.receive()
    assert kind == 1 and error["code"] == "invalid_request"
    assert client.receive() is None, "closed"
    with RawClient(daemon.socket) as other:
        assert other.result("ping") is True


@pytest.mark.parametrize(
    "message",
    [
        [],
        [0],
        [0, 1, "ping"],
        [1, 1, None, None],
        [7, 1, "ping", []],
        [0, -1, "ping", []],
        [0, 1 << 32, "ping", []],
        [0, "1", "ping", []],
        [0, 1, 5, []],
        [0, 1, b"\xff", []],
        [2, "ping"],
        [3, "ping", []],
    ],
)
def test_what_is_no_request_ends_the_connection_and_says_why(
    client: RawClient, message: list[Any]
) -> None:
    client.socket.sendall(msgpack.packb(message))
    answer = client.receive()
    assert answer[2]["code"] == "invalid_request"
    assert "[0, id, method, params]" in answer[2]["message"]
    assert client.receive() is None


LIMITS = """
max_frame_bytes = "64 KiB"
max_shape_bytes = "4 KiB"
max_objects = 64
max_depth = 6
max_in_flight = 2
max_connections = 3
"""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with with_settings(tmp_path_factory.mktemp("narrow"), LIMITS) as running:
        yield running


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (b"x" * (65 << 10), "frame_bytes"),
        ([[] for _ in range(70)], "objects"),
        ([[[[[[[]]]]]]], "depth"),
    ],
)
def test_a_message_over_a_limit_is_told_which(
    narrow: DaemonProcess, value: Any, field: str
) -> None:
    with RawClient(narrow.socket) as client:
        client.send("cache.set", key="k", value=value)
        _, number, error, _ = client.receive()
        assert number == 1
        assert error["code"] == "too_large" and field in error["field"]
        assert client.receive() is None


def test_a_map_of_many_small_things_is_refused_before_it_is_unpacked(narrow: DaemonProcess) -> None:
    with RawClient(narrow.socket) as client:
        client.socket.sendall(b"\x94\x00\x01\xa4ping\x91\xdf\x7f\xff\xff\xff")
        _, _, error, _ = client.receive()
        assert error["code"] == "too_large" and "objects" in error["field"]


def test_a_connection_too_many_is_told_busy_and_the_others_work(narrow: DaemonProcess) -> None:
    clients = [RawClient(narrow.socket) for _ in range(3)]
    assert all(client.result("ping") for client in clients)
    with RawClient(narrow.socket) as further:
        answer = further.receive()
        assert answer[2]["code"] == "busy" and answer[2]["field"] == "max_connections"
        assert further.receive() is None
    assert all(client.result("ping") for client in clients)
    clients.pop().close()
    wait_until(lambda: has_a_place(narrow), what="a free place")
    for client in clients:
        client.close()
    # What is closed here is noticed there a moment later: the next test needs a place too.
    wait_until(lambda: has_a_place(narrow), what="a free place")


def has_a_place(daemon: DaemonProcess) -> bool:
    with RawClient(daemon.socket) as client:
        client.send("ping")
        answer = client.receive()
        return answer is not None and answer[3] is True


def test_requests_in_flight_are_limited_and_told_busy(narrow: DaemonProcess) -> None:
    wait_until(lambda: has_a_place(narrow), what="a free place")
    with RawClient(narrow.socket) as client:
        client.result("cache.set_many", items=[[f"k{n}", n] for n in range(10)])
        # A pattern clear runs beside other requests; all of these arrive in one piece.
        requests = [
            msgpack.packb([0, n, "cache.clear", [{"pattern": "nothing*", "dry_run": True}]])
            for n in range(10)
        ]
        client.socket.sendall(b"".join(requests))
        answers = [client.receive() for _ in requests]
        busy = [answer[2] for answer in answers if answer[2] is not None]
        assert len(busy) == 8
        assert all(error["code"] == "busy" and error["field"] == "max_in_flight" for error in busy)
        assert client.result("ping") is True


def test_a_quiet_connection_is_closed_and_an_attached_one_stays(tmp_path: Path) -> None:
    with with_settings(tmp_path, "idle_timeout = 0.6") as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        assert optimizer.sync.cache.get("key") is None
        with RawClient(daemon.socket) as client:
            assert client.result("ping") is True
            assert client.receive() is None
        assert any(each.get("reason") == "idle_timeout" for each in daemon.log_events())
        stats = optimizer.sync.cache.stats()
        assert stats is not None and stats["clients"] == 1
        optimizer.close()


def test_a_client_that_does_not_read_is_cut_and_delays_nobody(tmp_path: Path) -> None:
    with with_settings(tmp_path, "write_timeout = 1.0") as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        assert optimizer.sync.cache.set("large", os.urandom(4 << 20))
        with RawClient(daemon.socket) as stalled, RawClient(daemon.socket) as other:
            for _ in range(20):
                stalled.send("cache.get", key="large", payload=True)
            for _ in range(200):
                assert other.result("ping") is True

            def is_cut() -> bool:
                assert other.result("ping") is True
                return any(each.get("reason") == "write_timeout" for each in daemon.log_events())

            wait_until(is_cut, what="the end of the stalled connection")
        optimizer.close()


def test_a_message_that_arrives_byte_by_byte_is_answered(client: RawClient) -> None:
    for byte in msgpack.packb([0, 5, "cache.set", [{"key": "slow", "value": "x"}]]):
        client.socket.sendall(bytes([byte]))
    assert client.receive() == [1, 5, None, {"stored": 1}]


# ── hostile


def test_random_and_damaged_bytes_disturb_nobody_and_leak_nothing(daemon: DaemonProcess) -> None:
    rng = random.Random(20)
    with RawClient(daemon.socket) as witness:
        witness.result("cache.set", key="witness", value=1)
        before = open_files(daemon)
        valid = [
            msgpack.packb([0, 1, "cache.set", [{"key": "fuzz", "value": {"a": [1, 2.5, "x"]}}]]),
            msgpack.packb([0, 2, "cache.set_many", [{"items": [["fuzz", 1], ["fuzz2", b"v"]]}]]),
            msgpack.packb([0, 3, "attach", [{"instance": bytes(16), "pid": 1, "name": "fuzz"}]]),
            msgpack.packb([0, 4, "cache.clear", [{"pattern": "fuzz*"}]]),
            msgpack.packb([2, "cache.delete", [{"key": "fuzz"}]]),
            msgpack.packb([0, 5, "status", []]),
        ]
        for n in range(400):
            data = bytearray(rng.choice(valid) if n % 4 else rng.randbytes(rng.randrange(1, 200)))
            for _ in range(rng.randrange(4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if rng.random() < 0.3:
                del data[rng.randrange(len(data)) :]
            with RawClient(daemon.socket, timeout=5) as client:
                client.socket.sendall(bytes(data))
                if rng.random() < 0.5:
                    client.socket.shutdown(socket.SHUT_WR)
                    try:
                        while client.socket.recv(4096):
                            pass
                    except ConnectionResetError:
                        pass
            if n % 50 == 0:
                assert witness.result("cache.get", key="witness") == 1
        wait_until(lambda: open_files(daemon) <= before, what="the descriptors of before")
        assert witness.result("status")["status"] == "ok"
    assert not [each for each in daemon.log_events() if each["level"] in ("error", "critical")]


def test_descriptors_sent_to_the_daemon_are_not_kept(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.result("ping")
        before = open_files(daemon)
        with open(os.devnull, "rb") as file:  # noqa: PTH123 (a descriptor is wanted)
            for n in range(50):
                message = msgpack.packb([0, n, "ping", []])
                socket.send_fds(client.socket, [message], [file.fileno()] * 3)
                assert client.receive()[3] is True
        assert open_files(daemon) == before


def test_a_connection_that_attaches_again_and_again_holds_one_attachment(
    daemon: DaemonProcess, client: RawClient
) -> None:
    """Each holds a page and descriptors: thousands would leave none for anybody else."""
    args = {"instance": bytes(16), "pid": 1, "name": "again"}
    clients = client.result("cache.stats")["clients"]
    client.result("attach", args)
    before = open_files(daemon)
    for _ in range(50):
        client.result("attach", args)
    # The monitor has files of /proc open for moments; fifty attachments would stay.
    wait_until(lambda: open_files(daemon) <= before, what="the descriptors")
    assert client.result("cache.stats")["clients"] == clients + 1


def test_clients_that_vanish_leave_nothing_behind(daemon: DaemonProcess) -> None:
    before = open_files(daemon)
    for _ in range(30):
        optimizer = PerformanceOptimizer(str(daemon.socket))
        optimizer.sync.cache.set("key", 1)
        assert optimizer.sync.cache.get("key") == 1
        optimizer.close()
        with RawClient(daemon.socket) as client:
            client.send("cache.keys", limit=1000)
    wait_until(lambda: open_files(daemon) <= before, what="the descriptors of before")


def test_many_small_messages_at_once_leave_turns_to_the_others(tmp_path: Path) -> None:
    """A flood arrives in one piece; the request of another does not wait for all of it."""
    with (
        DaemonProcess(tmp_path) as daemon,
        RawClient(daemon.socket, timeout=120) as crowd,
        RawClient(daemon.socket, timeout=120) as other,
    ):
        flood = 12_000
        quiet = msgpack.packb([2, "server.config", []]) * flood
        last = msgpack.packb([0, 1, "ping", []])
        assert crowd.result("ping") and other.result("ping")
        order: list[str] = []

        def wait_for_the_last() -> None:
            crowd.socket.sendall(quiet + last)
            assert crowd.receive()[3] is True
            order.append("flood")

        thread = threading.Thread(target=wait_for_the_last)
        thread.start()
        while thread.is_alive():
            assert other.result("ping") is True
            order.append("other")
        thread.join()
        assert order.index("flood") > 10, "the other was served all the time"


def test_a_clear_forgets_what_was_evicted(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon, RawClient(daemon.socket) as client:
        client.result("server.adjust", setting="cache.max_size", value=100)
        keys = [f"k{n}" for n in range(300)]
        client.result("cache.set_many", items=[[key, 1] for key in keys])
        client.result("cache.clear")
        before = client.result("cache.stats")["levels"]["local"]["returns"]
        client.result("cache.set_many", items=[[key, 1] for key in keys[:50]])
        assert client.result("cache.stats")["levels"]["local"]["returns"] == before
