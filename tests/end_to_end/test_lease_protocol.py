"""The lease commands on the socket, as any client uses them: one loads, the others wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until

TTL = 0.4


CONFIG = f"""
[performance.leases]
ttl = {TTL}
max_waiters = 4
max_per_connection = 6
[performance.socket]
max_in_flight = 2
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("leases")
    (folder / "config.toml").write_text(CONFIG)
    with DaemonProcess(folder, "--config", str(folder / "config.toml"), http="off") as running:
        yield running


class Party(RawClient):
    """A client that asks for leases."""

    def lease(self, key: str = "k", **args: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.result("cache.lease", key=key, **args)
        return found

    def answer(self) -> dict[str, Any]:
        _, _, error, result = self.receive()
        assert error is None, error
        found: dict[str, Any] = result
        return found

    def lead(self, key: str = "k", **args: Any) -> bytes:
        found = self.lease(key, **args)
        assert found["state"] == "leader" and found["ttl"] == TTL
        token: bytes = found["token"]
        return token


@pytest.fixture
def parties(daemon: DaemonProcess) -> Iterator[list[Party]]:
    made = [Party(daemon.socket) for _ in range(3)]
    yield made
    for party in made:
        party.close()
    with RawClient(daemon.socket) as client:
        client.result("cache.clear")
    wait_until(lambda: not figures(daemon)["held"], what="the end of all leases")


def figures(daemon: DaemonProcess) -> Any:
    with RawClient(daemon.socket) as client:
        return client.result("cache.stats")["levels"]["local"]["leases"]


def until_waiting(daemon: DaemonProcess, count: int) -> None:
    wait_until(lambda: figures(daemon)["waiting"] == count, what=f"{count} waiters")


def test_one_leads_and_the_others_are_pushed_its_value(
    daemon: DaemonProcess, parties: list[Party]
) -> None:
    token = parties[0].lead()
    parties[1].send("cache.lease", key="k", payload=True)
    parties[2].send("cache.lease", key="k")
    until_waiting(daemon, 2)
    assert parties[0].lease(wait=0) == {"state": "held"}
    assert parties[0].result("cache.set", key="k", value=[1], token=token) == {"stored": 1}
    assert parties[1].answer() == {"state": "hit", "payload": b"\x00\x91\x01"}
    assert parties[2].answer() == {"state": "hit"}
    assert parties[2].lease() == {"state": "hit"}
    assert parties[2].lead(refresh=True) > token, "tokens grow"


def test_a_plain_set_is_the_newer_value(daemon: DaemonProcess, parties: list[Party]) -> None:
    token = parties[0].lead()
    parties[1].send("cache.lease", key="k")
    until_waiting(daemon, 1)
    assert parties[2].result("cache.set", key="k", value="newer") == {"stored": 1}
    assert parties[1].answer() == {"state": "hit"}
    assert (
        "not current" in parties[0].result("cache.set", key="k", value="o", token=token)["refused"]
    )
    assert parties[0].result("cache.get", key="k") == "newer"


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("cache.delete", {"key": "k"}),
        ("cache.expire", {"key": "k"}),
        ("cache.clear", {}),
        ("cache.clear", {"pattern": "k*"}),
        ("cache.clear", {"stale": True}),
        ("cache.clear", {"tags": ["red"]}),
    ],
)
def test_what_is_cleared_meanwhile_is_not_stored_and_the_next_one_loads_anew(
    daemon: DaemonProcess, parties: list[Party], method: str, args: dict[str, Any]
) -> None:
    token = parties[0].lead()
    parties[1].send("cache.lease", key="k")
    until_waiting(daemon, 1)
    parties[2].result(method, **args)
    stored = parties[0].result("cache.set", key="k", value=1, tags=["red"], token=token)
    assert stored["stored"] == 0 and "deleted or cleared" in stored["refused"]
    assert parties[0].result("cache.release", token=token) == {"released": True}
    again = parties[1].answer()
    assert again["state"] == "leader"
    assert parties[1].result("cache.set", key="k", value=2, tags=["red"], token=again["token"])
    assert parties[0].result("cache.get", key="k") == 2


def test_what_does_not_concern_the_key_does_not_matter(parties: list[Party]) -> None:
    token = parties[0].lead()
    parties[1].result("cache.delete", key="other")
    parties[1].result("cache.clear", pattern="other")
    parties[1].result("cache.clear", tags=["blue"])
    parties[1].result("cache.clear", dry_run=True)
    assert parties[0].result("cache.set", key="k", value=1, tags=["red"], token=token)["stored"]


def test_a_lease_that_is_given_up_passes_on(daemon: DaemonProcess, parties: list[Party]) -> None:
    before = figures(daemon)
    first = parties[0].lead()
    parties[1].send("cache.lease", key="k", ticket=7)
    parties[2].send("cache.lease", key="k")
    until_waiting(daemon, 2)
    assert parties[0].result("cache.release", token=first, failed=True) == {"released": True}
    assert parties[0].result("cache.release", token=first) == {"released": False}
    assert parties[1].answer()["state"] == "leader"
    assert parties[1].result("cache.release", ticket=7) == {"released": True}
    assert parties[2].answer()["state"] == "leader"
    after = figures(daemon)
    assert after["failed"] - before["failed"] == 1
    assert after["promoted"] - before["promoted"] == 2


def test_a_wait_ends_by_its_bound_or_by_its_ticket(
    daemon: DaemonProcess, parties: list[Party]
) -> None:
    parties[0].lead()
    assert parties[1].lease(wait=0.01) == {"state": "held"}
    parties[1].send("cache.lease", key="k", ticket=1)
    until_waiting(daemon, 1)
    parties[1].send("cache.release", ticket=1)
    answers = [parties[1].answer(), parties[1].answer()]
    assert {"state": "held"} in answers and {"released": True} in answers
    assert figures(daemon)["waiting"] == 0


def test_the_end_of_a_connection_passes_its_leases_on(
    daemon: DaemonProcess, parties: list[Party]
) -> None:
    parties[0].lead()
    parties[1].send("cache.lease", key="k")
    until_waiting(daemon, 1)
    parties[0].close()
    assert parties[1].answer()["state"] == "leader"


HOLDER = """
import os, sys, time
sys.path.insert(0, {tests!r})
from support.clients import RawClient
client = RawClient({socket!r})
assert client.result("cache.lease", key="k")["state"] == "leader"
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print("leads", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(socket: Path) -> Iterator[int]:
    """A process that leads and has a child which keeps its socket; its id."""
    code = HOLDER.format(tests=str(Path(__file__).parents[1]), socket=str(socket))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"leads\n"
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_stopped_process_is_known_by_the_heartbeat_that_does_not_come(
    daemon: DaemonProcess, parties: list[Party]
) -> None:
    with holder(daemon.socket) as pid:
        parties[1].send("cache.lease", key="k")
        until_waiting(daemon, 1)
        os.kill(pid, signal.SIGSTOP)
        assert parties[1].answer()["state"] == "leader"


APART = ("-pf", "--kill-child", sys.executable, "-m", "bi_performanced.main")


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.root)])
def test_the_end_of_a_process_counts_though_its_child_holds_the_socket(
    tmp_path: Path, apart: bool
) -> None:
    """Long before a heartbeat is missed, and over PID namespaces that do not see each other."""
    config = tmp_path / "config.toml"
    config.write_text("[performance.leases]\nttl = 60\n")
    how: dict[str, Any] = {"python": "unshare", "program": APART} if apart else {}
    with (
        DaemonProcess(tmp_path, "--config", str(config), http="off", **how) as daemon,
        holder(daemon.socket) as pid,
        Party(daemon.socket) as other,
    ):
        other.send("cache.lease", key="k")
        until_waiting(daemon, 1)
        os.kill(pid, signal.SIGKILL)
        assert other.answer()["state"] == "leader"


def test_heartbeats_keep_a_lease_and_without_them_it_passes_on(
    daemon: DaemonProcess, parties: list[Party]
) -> None:
    token = parties[0].lead()
    parties[1].send("cache.lease", key="k")
    until_waiting(daemon, 1)
    for _ in range(8):
        beat = parties[0].result("cache.renew", token=token)
        assert beat == {"renewed": 1, "current": True}
        parties[2].lease("other", wait=TTL / 4)
    assert parties[1].answer()["state"] == "leader"
    assert parties[0].result("cache.renew", token=token) == {"renewed": 0, "current": False}
    stored = parties[0].result("cache.set", key="k", value=1, token=token)
    assert stored["stored"] == 0 and "not current" in stored["refused"]


def test_waiting_does_not_keep_other_requests_from_being_made(
    daemon: DaemonProcess, parties: list[Party]
) -> None:
    for number in range(5):
        parties[0].lead(f"k{number}")
        parties[1].send("cache.lease", key=f"k{number}")
    until_waiting(daemon, 5)
    assert parties[1].result("cache.clear", pattern="nothing") == {"cleared": 0}, (
        "max_in_flight is 2"
    )


def test_leases_and_waiters_are_limited_each_by_its_own_name(
    daemon: DaemonProcess, parties: list[Party]
) -> None:
    for number in range(6):
        parties[0].lead(f"k{number}")
    error = parties[0].error("cache.lease", key="more")
    assert (error["code"], error["field"]) == ("busy", "max_per_connection")
    for _ in range(2):
        parties[1].send("cache.lease", key="k0")
    until_waiting(daemon, 2)
    error = parties[2].error("cache.lease", key="k0")
    assert (error["code"], error["field"]) == ("busy", "max_waiters")
    assert "one user" in error["message"]
    assert parties[2].lease("k1", wait=0.01) == {"state": "held"}, "another key is another queue"


def test_mistakes_are_named(parties: list[Party]) -> None:
    for args in ({}, {"token": b"t" * 16, "ticket": 1}, {"token": b"short"}):
        assert parties[0].error("cache.release", **args)["field"] == "token"
    assert parties[0].error("cache.lease", key="")["field"] == "key"
    assert parties[0].error("cache.lease", key="k", wait=-1)["field"] == "wait"
    assert parties[0].error("cache.add", key="k", value=1, token=b"t" * 16)["field"] == "token"
    assert parties[0].result("cache.set", key="k", value=1, token=b"t" * 16)["stored"] == 0
    assert parties[0].result("cache.get", key="k") is None
    token = parties[0].lead("a")
    assert parties[0].result("cache.set", key="b", value=1, token=token)["stored"] == 0


def test_a_stopped_daemon_that_wakes_up_takes_no_lease_away(
    daemon: DaemonProcess, parties: list[Party]
) -> None:
    token = parties[0].lead()
    daemon.signal(signal.SIGSTOP)
    parties[0].send("cache.renew")
    parties[0].socket.settimeout(2 * TTL)
    with pytest.raises(TimeoutError):
        parties[0].receive()
    daemon.signal(signal.SIGCONT)
    parties[0].socket.settimeout(10)
    assert parties[0].receive()[3]["renewed"] == 1
    assert parties[0].result("cache.set", key="k", value=1, token=token)["stored"] == 1


def test_a_daemon_that_stops_lets_nobody_wait(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, http="off") as daemon:
        with Party(daemon.socket) as leader, Party(daemon.socket) as other:
            assert leader.lease()["state"] == "leader"
            other.send("cache.lease", key="k")
            until_waiting(daemon, 1)
            daemon.signal(signal.SIGTERM)
            assert other.answer() == {"state": "held"}
        assert daemon.stop() == 0
