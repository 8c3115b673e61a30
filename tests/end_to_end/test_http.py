"""The HTTP listener: the routes, who may ask, and what a hostile client can do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bi_performance_wire.commands import COMMANDS
from support.clients import RawClient
from support.daemon import QUICK, DaemonProcess, wait_until


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.fixture
def http(daemon: DaemonProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=daemon.http_url, trust_env=False) as client:
        yield client


def with_settings(folder: Path, section: str, general: str = "") -> DaemonProcess:
    file = folder / "performance.toml"
    file.write_text(f"[performance]\n{general}\n[performance.http]\n{section}\n")
    return DaemonProcess(folder, "--config", str(file))


def connect(daemon: DaemonProcess) -> socket.socket:
    host, port = daemon.http_url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def request_of(daemon: DaemonProcess, path: str = "/performance/status", more: str = "") -> bytes:
    host = daemon.http_url.removeprefix("http://")
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def read_all(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def assert_problem(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status and body["title"]
    for word in words:
        assert word in answer.text


# ── the routes


def test_status_says_what_the_socket_says(daemon: DaemonProcess, http: httpx.Client) -> None:
    answer = http.get("/performance/status")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["status"] == "ok" and body["profile"] == "balanced"
    assert body["components"]["cache"]["status"] == "ok"
    with RawClient(daemon.socket) as client:
        other = client.result("status")
    for each in (body, other):
        del each["uptime_seconds"]
    assert body == other


def test_the_seed_s_lines_work(daemon: DaemonProcess, http: httpx.Client) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.set_many", items=[["dashboard:1", 1], ["a dashboard", 2], ["b", 3]])
        client.result("cache.get", key="b")
    curl = shutil.which("curl")
    assert curl, "curl is in ci/debian-packages.txt"
    for line, expected in (
        ("curl -s http://localhost:8000/performance/status", {"status": "ok"}),
        (
            'curl -s -X POST "http://localhost:8000/performance/cache/clear?pattern=dashboard"',
            {"cleared": 2},
        ),
    ):
        port = daemon.http_url.rpartition(":")[2]
        done = subprocess.run(
            line.replace("8000", port), shell=True, capture_output=True, check=True
        )
        assert json.loads(done.stdout).items() >= expected.items()
    stats = http.get("/performance/cache/stats").json()
    assert stats["hits"] >= 1 and 0 < stats["hit_rate"] <= 1
    assert set(stats["levels"]) == {"local", "redis"} and stats["levels"]["redis"] is None
    assert f"{stats['hit_rate']:.1%}".endswith("%")
    assert http.post("/performance/cache/clear").json() == {"cleared": 1}


def test_health_checks_and_description(http: httpx.Client) -> None:
    assert http.get("/performance/livez").text == "ok\n"
    assert http.get("/performance/readyz").text == "ok\n"
    document = http.get("/performance/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for row in COMMANDS:
        if row.http is not None:
            operation = document["paths"][row.http[1]][row.http[0].lower()]
            assert operation["summary"]
    parameter = document["paths"]["/performance/cache/clear"]["post"]["parameters"]
    assert {each["name"] for each in parameter} == {"pattern", "tags", "stale", "dry_run"}


def test_head_is_get_without_a_body(http: httpx.Client) -> None:
    for path in ("/performance/status", "/performance/livez", "/performance/openapi.json"):
        answer = http.head(path)
        assert answer.status_code == 200 and answer.content == b""
        assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("verb", "path", "status", "words"),
    [
        ("GET", "/", 404, "openapi.json"),
        ("GET", "/performance/nothing", 404, "/performance/nothing"),
        ("POST", "/performance/status", 405, "POST"),
        ("DELETE", "/performance/cache/stats", 405, "DELETE"),
        ("GET", "/performance/cache/clear", 405, "GET"),
        ("GET", "/performance/status?verbose=1", 400, "verbose"),
        ("POST", "/performance/cache/clear?patern=a", 400, "pattern"),
        ("POST", "/performance/cache/clear?pattern=", 400, "pattern"),
        ("POST", "/performance/cache/clear?pattern=a&pattern=b", 400, "twice"),
        ("POST", "/performance/cache/clear?pattern=%5Ba", 400, "pattern"),
        ("POST", "/performance/cache/clear?dry_run=maybe", 400, "dry_run: expected true or false"),
        ("POST", "/performance/cache/clear?pattern=%ff", 400, "pattern is not UTF-8"),
        ("POST", "/performance/cache/clear?%ff=a", 400, "UTF-8"),
        ("POST", "/performance/cache/clear?" + "a=1&" * 200, 400, "parameters"),
        ("GET", "/performance/status/", 404, "/performance/status"),
        ("POST", "/performance/cache/clear?pattern=" + "p" * 2000, 400, "pattern"),
    ],
)
def test_what_is_wrong_is_told_as_a_problem(
    http: httpx.Client, verb: str, path: str, status: int, words: str
) -> None:
    answer = http.request(verb, path)
    assert_problem(answer, status, words)
    if status == 405:
        assert answer.headers["allow"]


def test_a_body_is_refused_with_the_remedy(http: httpx.Client) -> None:
    answer = http.post("/performance/cache/clear", json={"pattern": "a"})
    assert_problem(answer, 400, "query")


# ── who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1:1", "a@localhost"]
)
def test_a_host_that_is_not_ours_is_misdirected(http: httpx.Client, host: str) -> None:
    assert_problem(http.get("/performance/status", headers={"Host": host}), 421)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Referer": "https://evil.example/page"},
        {"Referer": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_a_foreign_page_reaches_nothing(
    daemon: DaemonProcess, http: httpx.Client, headers: dict[str, str], verb: str
) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.set", key="witness", value=1)
        path = "/performance/cache/clear" if verb == "POST" else "/performance/status"
        answer = http.request(verb, path, headers=headers)
        assert_problem(answer, 403)
        assert "access-control-allow-origin" not in answer.headers
        assert client.result("cache.get", key="witness") == 1


def test_our_own_page_may_ask(daemon: DaemonProcess, http: httpx.Client) -> None:
    headers = {"Origin": daemon.http_url, "Sec-Fetch-Site": "same-origin"}
    assert http.post("/performance/cache/clear?pattern=none", headers=headers).status_code == 200


def test_a_token_is_asked_for_when_configured(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-long-random-token-of-the-test\n")
    token.chmod(0o600)
    with with_settings(tmp_path, f'post = "token"\ntoken_file = "{token}"') as daemon:
        url = f"{daemon.http_url}/performance/cache/clear"
        assert httpx.get(f"{daemon.http_url}/performance/status").status_code == 200
        assert_problem(httpx.post(url), 403, "token")
        assert_problem(httpx.post(url, headers={"Authorization": "Bearer wrong"}), 403)
        right = {"Authorization": "Bearer a-long-random-token-of-the-test"}
        assert httpx.post(url, headers=right).status_code == 200
        token.chmod(0o644)
        assert_problem(httpx.post(url, headers=right), 503, "0644")


def test_private_routes_ask_for_it_too_and_health_checks_do_not(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-long-random-token-of-the-test\n")
    token.chmod(0o600)
    settings = f'private = true\npost = "token"\ntoken_file = "{token}"'
    with with_settings(tmp_path, settings) as daemon:
        assert_problem(httpx.get(f"{daemon.http_url}/performance/status"), 403)
        assert httpx.get(f"{daemon.http_url}/performance/livez").status_code == 200
        assert httpx.get(f"{daemon.http_url}/performance/readyz").status_code == 200


@pytest.mark.root
def test_only_the_owner_may_post_when_configured(tmp_path: Path) -> None:
    with with_settings(tmp_path, 'post = "owner"') as daemon:
        url = f"{daemon.http_url}/performance/cache/clear"
        assert httpx.post(url).status_code == 200
        curl = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-s"]
        done = subprocess.run([*curl, "-X", "POST", url], capture_output=True, check=True)
        assert json.loads(done.stdout)["status"] == 403
        status = subprocess.run(
            [*curl, f"{daemon.http_url}/performance/status"], capture_output=True, check=True
        )
        assert json.loads(status.stdout)["status"] == "ok"


def test_a_taken_port_degrades_and_names_who_has_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            DaemonProcess(tmp_path, http=f"127.0.0.1:{port}", program=QUICK) as daemon,
            RawClient(daemon.socket) as client,
        ):
            status = client.result("status")
            assert status["status"] == "degraded"
            reason = status["components"]["http"]["reason"]
            assert str(port) in reason and str(os.getpid()) in reason
            assert client.result("cache.set", key="k", value=1) == {"stored": 1}
            taken.close()
            wait_until(lambda: client.result("status")["status"] == "ok", what="the port")
            assert httpx.get(f"http://127.0.0.1:{port}/performance/livez").status_code == 200


HANGING = """
import socket, sys, threading
import bi_performanced.fronts.http as http

def hang(*_, **__):
    threading.Event().wait()

WHERE = hang
from bi_performanced.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("where", ["socket.getaddrinfo", "http.port_holder"])
def test_a_port_that_takes_long_to_bind_keeps_nobody_waiting(tmp_path: Path, where: str) -> None:
    """A name server that does not answer, or a search through very many processes."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        program = ("-c", HANGING.replace("WHERE", where))
        with DaemonProcess(tmp_path, http=address, program=program) as daemon:
            with RawClient(daemon.socket) as client:
                status = client.result("status")
                assert status["components"]["http"]["status"] == "degraded"
                assert address in status["components"]["http"]["reason"]
            assert daemon.stop() == 0
            assert not daemon.socket.exists()


def test_a_name_that_is_none_degrades(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, http="a..b:80") as daemon, RawClient(daemon.socket) as client:
        assert "no host's name" in client.result("status")["components"]["http"]["reason"]


# ── hostile


@contextlib.contextmanager
def requests_go_on(daemon: DaemonProcess) -> Iterator[None]:
    """A keep-alive client that must be served before and after, on the same connection."""
    with httpx.Client(base_url=daemon.http_url, trust_env=False) as client:
        assert client.get("/performance/status").status_code == 200
        yield
        assert client.get("/performance/status").status_code == 200
        assert client.get("/performance/livez").status_code == 200
    faults = [e for e in daemon.log_events() if e["level"] in ("error", "critical")]
    assert not faults


ATTACKS = {
    "websocket upgrade and a byte": (
        b"GET /performance/status HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n\x81"
    ),
    "bad h2c upgrade": (
        b"GET /performance/status HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\n"
        b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: !!!\r\n\r\n"
    ),
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 50,
    "not http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
    "two lengths": (
        b"POST /performance/cache/clear HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
        b"Content-Length: 2\r\n\r\nab"
    ),
    "negative length": (
        b"POST /performance/cache/clear HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n"
    ),
    "chunked body": (
        b"POST /performance/cache/clear HTTP/1.1\r\nHost: localhost\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"
    ),
    "huge body": (
        b"POST /performance/cache/clear HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: 99999999\r\n\r\n"
    ),
    "half a body": (
        b"POST /performance/cache/clear HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: 9\r\n\r\nhalf"
    ),
    "huge header": b"GET /performance/status HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70000,
    "bad header": b"GET /performance/status HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
    "no host": b"GET /performance/status HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "absolute target": b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "connect": b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "old version": b"GET /performance/status HTTP/1.0\r\n\r\n",
    "odd path": b"GET /performance/%00%ff/../status HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "smuggled": (
        b"POST /performance/cache/clear HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_answered_with_an_error_and_nobody_else_notices(
    daemon: DaemonProcess, attack: str
) -> None:
    data = ATTACKS[attack].replace(
        b"Host: localhost\r\n",
        b"Host: localhost:" + daemon.http_url.rpartition(":")[2].encode() + b"\r\n",
    )
    with requests_go_on(daemon), connect(daemon) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), answer[:200]


def test_a_client_that_never_reads_is_cut_and_the_stop_is_in_time(tmp_path: Path) -> None:
    settings = "write_timeout = 1.5\nmax_connections = 50"
    with with_settings(tmp_path, settings, "shutdown_timeout = 1") as daemon:
        path = "/performance/openapi.json"
        with requests_go_on(daemon), connect(daemon) as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.settimeout(1)
            with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
                for _ in range(5000):
                    stalled.sendall(request_of(daemon, path))

            def is_cut() -> bool:
                # A write on a connection that the other side has ended fails sooner or later.
                try:
                    stalled.send(b"x")
                except TimeoutError:
                    return False
                except OSError:
                    return True
                return False

            wait_until(is_cut, what="the end of the stalled connection")
        again = connect(daemon)
        again.settimeout(1)
        with contextlib.suppress(TimeoutError):
            for _ in range(5000):
                again.sendall(request_of(daemon, path))
        assert daemon.stop(within=3) == 0
        again.close()


def test_a_slow_head_is_ended_and_an_idle_connection_closed(tmp_path: Path) -> None:
    settings = "header_timeout = 0.5\nidle_timeout = 0.8"
    with (
        with_settings(tmp_path, settings) as daemon,
        connect(daemon) as slow,
        connect(daemon) as idle,
    ):
        slow.sendall(b"GET /performance/status HTTP/1.1\r\nHost: loc")
        assert read_all(slow).startswith(b"HTTP/1.1 408")
        assert read_all(idle) == b""


def test_connections_are_limited(tmp_path: Path) -> None:
    with with_settings(tmp_path, "max_connections = 3") as daemon:
        held = [connect(daemon) for _ in range(3)]
        for each in held:
            each.sendall(request_of(daemon))
            assert each.recv(100).startswith(b"HTTP/1.1 200")
        for asked in (b"", request_of(daemon)):
            with connect(daemon) as further:
                further.sendall(asked)
                answer = read_all(further)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"connection: close" in answer.lower()
                assert json.loads(answer.split(b"\r\n\r\n")[1])["field"] == "http.max_connections"
        held.pop().close()

        def is_served() -> bool:
            with connect(daemon) as again:
                again.sendall(request_of(daemon))
                return again.recv(100).startswith(b"HTTP/1.1 200")

        wait_until(is_served, what="a free place")
        for each in held:
            each.close()


def test_those_turned_away_are_many_and_leave_nothing(tmp_path: Path) -> None:
    """Neither reading the answer nor closing: what a flood of them would do."""
    with with_settings(tmp_path, "max_connections = 1") as daemon, connect(daemon) as held:
        held.sendall(request_of(daemon))
        assert held.recv(100).startswith(b"HTTP/1.1 200")
        files = f"/proc/{daemon.pid}/fd"
        before = len(os.listdir(files))  # noqa: PTH208 (a count)
        flood = [connect(daemon) for _ in range(200)]
        wait_until(lambda: len(os.listdir(files)) <= before, what="the end of them")  # noqa: PTH208 (a count)
        for each in flood:
            each.close()


def test_an_error_s_detail_is_written_for_people(daemon: DaemonProcess) -> None:
    for junk in (
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    ):
        with connect(daemon) as connection:
            connection.sendall(junk)
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"bytearray" not in answer and b"b'" not in answer


def test_pipelined_requests_are_answered_in_order(daemon: DaemonProcess) -> None:
    with connect(daemon) as connection:
        last = request_of(daemon, "/performance/livez", "Connection: close\r\n")
        connection.sendall(request_of(daemon) * 3 + request_of(daemon, "/nothing") + last)
        answers = read_all(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200", b"200", b"404", b"200"]


def test_nothing_is_left_of_a_hundred_connections(daemon: DaemonProcess) -> None:
    files = f"/proc/{daemon.pid}/fd"
    before = len(os.listdir(files))  # noqa: PTH208 (a count)
    for n in range(100):
        with connect(daemon) as connection:
            data = request_of(daemon)
            connection.sendall(data[: n * 2] if n % 2 else data)
            if n % 3:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_until(lambda: len(os.listdir(files)) <= before, what="the end of them")  # noqa: PTH208 (a count)


def test_no_route_tells_keys(daemon: DaemonProcess, http: httpx.Client) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.set", key="secret-key-of-a-customer", value=1)
    documents: list[Any] = [
        http.get(row.http[1]).text for row in COMMANDS if row.http and row.http[0] == "GET"
    ]
    assert documents and not any("secret-key" in text for text in documents)
