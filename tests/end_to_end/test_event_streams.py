"""Events on the control socket and as server-sent events, from a running daemon."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest

from support.clients import RawClient
from support.daemon import QUICK, DaemonProcess, wait_until

EVENTS = "/performance/events"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path) as running:
        yield running


def apply(daemon: DaemonProcess, profile: str) -> None:
    with RawClient(daemon.socket) as client:
        client.result("optimize", profile=profile)


class Stream:
    """A client of the event stream, reading the format as the HTML standard has it."""

    def __init__(self, daemon: DaemonProcess, query: str = "", **headers: str) -> None:
        host, port = daemon.http_url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        lines = [f"GET {EVENTS}{query} HTTP/1.1", f"Host: {host}:{port}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._file = self.socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(":")
            self.headers[name.lower()] = value.strip()
        self._text = b""

    def _chunk(self) -> bytes:
        size = int(self._file.readline(), 16)
        data = self._file.read(size)
        self._file.readline()
        return data

    def block(self) -> dict[str, str] | None:
        """The fields up to the next empty line; None at the stream's regular end."""
        while b"\n\n" not in self._text:
            piece = self._chunk()
            if not piece:
                return None
            self._text += piece
        text, _, self._text = self._text.partition(b"\n\n")
        pairs = (line.split(": ", 1) for line in text.decode().splitlines())
        return dict(pairs)

    def event(self) -> tuple[str, dict[str, Any]]:
        """The next event: its id and its body."""
        while True:
            found = self.block()
            assert found is not None
            if "data" in found:
                body: dict[str, Any] = json.loads(found["data"])
                assert found["event"] == body["topic"]
                return found["id"], body

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ── the control socket


def test_a_subscriber_is_sent_what_happens(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        assert client.result("subscribe", topics=["profile"]) == {"topics": ["profile"]}
        apply(daemon, "memory_focused")
        kind, name, params = client.receive()
        assert (kind, name) == (2, "event")
        assert params[0]["topic"] == "profile" and params[0]["profile"] == "memory_focused"
        assert {each["setting"] for each in params[0]["changes"]} >= {"cache.max_size"}
        # Requests go on on the same connection.
        assert client.result("ping") is True
        assert client.result("subscribe", topics=[]) == {"topics": []}
        apply(daemon, "balanced")
        assert client.result("ping") is True


def test_a_component_that_degrades_and_recovers_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            DaemonProcess(tmp_path, http=f"127.0.0.1:{port}", program=QUICK) as daemon,
            RawClient(daemon.socket, timeout=20) as client,
        ):
            client.result("subscribe", topics=["health"])
            taken.close()
            _, _, [event] = client.receive()
            if event["event"] == "health.degraded":
                assert str(port) in event["reason"]
                _, _, [event] = client.receive()
            assert (event["event"], event["component"]) == ("health.recovered", "http")


@pytest.mark.parametrize(
    ("args", "field"),
    [({"topics": ["weather"]}, "topics"), ({"topics": "profile"}, "topics"), ({}, "topics")],
)
def test_an_unknown_topic_is_refused(
    daemon: DaemonProcess, args: dict[str, Any], field: str
) -> None:
    with RawClient(daemon.socket) as client:
        error = client.error("subscribe", args)
        assert error["code"] == "invalid_argument" and error["field"] == field


def test_a_subscriber_that_does_not_read_harms_nobody(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as silent, RawClient(daemon.socket) as other:
        silent.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.result("subscribe", topics=["profile"])
        for number in range(600):
            other.result("server.adjust", setting="cache.default_ttl", value=1000 + number)
        assert other.result("ping") is True
        received = 0
        lost = 0
        with contextlib.suppress(TimeoutError):
            silent.socket.settimeout(2)
            while received + lost < 600:
                _, _, [event] = silent.receive()
                if event["event"] == "events.lost":
                    lost += event["count"]
                else:
                    received += 1
        assert received + lost == 600 and received >= 100, "each was sent or counted as lost"


def test_a_quiet_subscriber_stays_and_the_stop_ends_it(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "performance.toml").write_text(
        "[performance.socket]\nidle_timeout = 0.5\n"
    )
    with DaemonProcess(tmp_path) as daemon:
        with RawClient(daemon.socket) as quiet, RawClient(daemon.socket) as idle:
            quiet.result("subscribe", topics=["profile"])
            idle.result("ping")
            assert idle.receive() is None, "one that wants nothing is closed"
            apply(daemon, "memory_focused")
            assert quiet.receive()[1] == "event"
            assert daemon.stop() == 0
            assert quiet.receive() is None
        assert not [each for each in daemon.log_events() if each["level"] == "error"]


# ── server-sent events


def test_the_stream_tells_events_with_ids(daemon: DaemonProcess) -> None:
    with Stream(daemon) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.block() == {"retry": "2000"}
        apply(daemon, "memory_focused")
        first, body = stream.event()
        assert body["event"] == "profile.applied"
        apply(daemon, "balanced")
        second, body = stream.event()
        assert body["profile"] == "balanced"
        numbers = [int(each.partition("-")[2]) for each in (first, second)]
        assert numbers[0] < numbers[1]


def test_a_stream_that_was_cut_goes_on_where_it_was(daemon: DaemonProcess) -> None:
    with Stream(daemon) as stream:
        assert stream.block() is not None
        apply(daemon, "memory_focused")
        seen, _ = stream.event()
    apply(daemon, "performance_focused")
    apply(daemon, "balanced")
    with Stream(daemon, Last_Event_ID=seen) as stream:
        assert [stream.event()[1]["profile"] for _ in range(2)] == [
            "performance_focused",
            "balanced",
        ]
    daemon.restart()
    with Stream(daemon, Last_Event_ID=seen) as stream:
        # Of another daemon's numbers nothing is known: it begins now.
        assert stream.block() is not None
        apply(daemon, "performance_focused")
        assert stream.event()[1]["profile"] == "performance_focused"


def test_topics_are_chosen_in_the_query(daemon: DaemonProcess) -> None:
    with Stream(daemon, "?topics=health,recommendation") as stream:
        assert stream.block() is not None
        apply(daemon, "memory_focused")
        assert stream.headers["cache-control"] == "no-store"
    for query in ("?topics=weather", "?topic=profile", "?topics=profile&topics=health"):
        answer = httpx.get(f"{daemon.http_url}{EVENTS}{query}", trust_env=False)
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["field"] in ("topics", "topic")


def test_streams_are_limited_and_the_routes_go_on(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "performance.toml").write_text(
        "[performance.http]\nmax_streams = 2\nmax_connections = 10\n"
    )
    with DaemonProcess(tmp_path) as daemon, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(Stream(daemon)) for _ in range(2)]
        assert all(stream.block() for stream in streams)
        answer = httpx.get(daemon.http_url + EVENTS, trust_env=False)
        assert answer.status_code == 503 and answer.json()["field"] == "http.max_streams"
        assert httpx.get(f"{daemon.http_url}/performance/livez", trust_env=False).text == "ok\n"
        streams.pop().close()

        def again() -> bool:
            with Stream(daemon) as stream:
                return stream.status == 200

        wait_until(again, what="a free place")


def test_a_stream_outlives_the_timeouts_of_requests(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "performance.toml").write_text(
        "[performance.http]\nidle_timeout = 0.3\nheader_timeout = 0.3\nrequest_timeout = 0.3\n"
    )
    with DaemonProcess(tmp_path) as daemon, Stream(daemon) as stream:
        assert stream.block() is not None
        # A connection that wants nothing is closed after the timeout: by then it has passed.
        host, port = daemon.http_url.removeprefix("http://").split(":")
        for _ in range(2):
            with socket.create_connection((host, int(port)), timeout=10) as idle:
                assert idle.recv(1) == b""
        apply(daemon, "memory_focused")
        assert stream.event()[1]["profile"] == "memory_focused"


def test_a_stop_ends_streams_in_time(daemon: DaemonProcess) -> None:
    with Stream(daemon) as stream, Stream(daemon) as stalled:
        assert stream.block() is not None
        stalled.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        assert daemon.stop() == 0
        assert stream.block() is None, "the stream ends as it should, not in the middle"
    assert daemon.log_events()[-1]["event"] == "daemon.stopped"


def test_a_stop_does_not_wait_for_a_client_that_keeps_its_connection(daemon: DaemonProcess) -> None:
    with Stream(daemon) as stream:
        assert stream.block() is not None
        stopped = threading.Thread(target=daemon.stop)
        stopped.start()
        assert stream.block() is None
        # Nothing but the daemon closes here: within its own deadline it would be cut, not ended.
        assert stream.socket.recv(1) == b""
        stopped.join()
    assert "daemon.stop_forced" not in {each["event"] for each in daemon.log_events()}


def test_a_foreign_page_gets_no_events(daemon: DaemonProcess) -> None:
    answer = httpx.get(
        daemon.http_url + EVENTS, headers={"Origin": "http://evil.example"}, trust_env=False
    )
    assert answer.status_code == 403


def test_a_head_request_for_the_stream_ends(daemon: DaemonProcess) -> None:
    with httpx.Client(base_url=daemon.http_url, trust_env=False, timeout=10) as client:
        assert client.head(EVENTS).status_code == 200
        # The connection is free for the next request: the stream has ended.
        assert client.get("/performance/livez").text == "ok\n"


def test_the_subscribe_method_is_any_client_s(daemon: DaemonProcess) -> None:
    """A notification of the published protocol, as any MessagePack-RPC library reads it."""
    with RawClient(daemon.socket) as client:
        client.socket.sendall(msgpack.packb([0, 7, "subscribe", [{"topics": ["profile"]}]]))
        assert client.receive() == [1, 7, None, {"topics": ["profile"]}]
        apply(daemon, "memory_focused")
        message = client.receive()
        assert message[0] == 2 and message[1] == "event" and len(message[2]) == 1
