"""The daemon as a service: start, readiness, signals, sockets handed over, stop in time."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.reader import StoreReader
from bi_performance_wire.commands import COMMANDS
from bi_performanced.dispatch import Dispatcher, IncompleteTable
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until
from support.terminal import Session

PROGRAM = [sys.executable, "-m", "bi_performanced.main"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path) as running:
        yield running


def run_daemon(folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A daemon that is expected to end by itself."""
    return subprocess.run(
        [*PROGRAM, "--state-dir", str(folder / "state"), "--http", "off", *options],
        cwd=folder,
        env={**os.environ, "RUNTIME_DIRECTORY": str(folder / "run"), **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_ready_is_said_when_everything_is_bound(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        assert client.result("ping") is True
    assert httpx.get(f"{daemon.http_url}/performance/readyz").status_code == 200
    ready = next(found for found in daemon.notifications if "READY" in found)
    assert str(daemon.socket) in ready["STATUS"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(daemon: DaemonProcess, number: int) -> None:
    assert daemon.process is not None
    daemon.signal(number)
    assert daemon.process.wait(12) == 0
    assert not daemon.socket.exists()
    assert any("STOPPING" in found for found in daemon.take_notifications())
    assert daemon.log_events()[-1]["event"] == "daemon.stopped"


def test_it_stops_in_time_whatever_hangs_on_it(tmp_path: Path) -> None:
    """Clients that are idle, that read nothing of a large answer, that send half a request."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "performance.toml").write_text("[performance]\nshutdown_timeout = 1\n")
    with DaemonProcess(tmp_path) as daemon:
        assert daemon.process is not None
        host, port = daemon.http_url.removeprefix("http://").split(":")
        with (
            closing(PerformanceOptimizer(str(daemon.socket))) as optimizer,
            RawClient(daemon.socket) as idle,
            RawClient(daemon.socket) as stalled,
            RawClient(daemon.socket) as half,
            socket.create_connection((host, int(port))) as slow,
        ):
            wait_until(lambda: optimizer.sync.cache.set("large", os.urandom(8 << 20)))
            assert idle.result("ping") is True
            for _ in range(10):
                stalled.send("cache.get", key="large", payload=True)
            half.socket.sendall(b"\x94\x00\x01\xa4pi")
            slow.sendall(b"GET /performance/status HTTP/1.1\r\n")
            # None of them ever ends by itself.
            assert daemon.stop(within=30) == 0
            assert idle.receive() is None


def test_a_second_signal_ends_it_at_once(daemon: DaemonProcess) -> None:
    assert daemon.process is not None
    with RawClient(daemon.socket) as stalled:
        stalled.result("cache.set", key="k", value=b"x" * 60_000)
        stalled.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            # Until both sides' buffers are full.
            while True:
                stalled.send("cache.get", key="k")
        daemon.signal(signal.SIGTERM)
        wait_until(
            lambda: any(each["event"] == "daemon.stopping" for each in daemon.log_events()),
            what="the stop",
        )

        def ended() -> bool:
            assert daemon.process is not None
            if daemon.process.poll() is None:
                daemon.signal(signal.SIGTERM)
                return False
            return True

        # Less than shutdown_timeout; what comes within a second is the same order.
        wait_until(ended, within=6, what="the end")
        assert daemon.process.returncode in (0, 1)


def test_two_signals_at_once_are_one_order(daemon: DaemonProcess) -> None:
    """As timeout(1) sends them, and a terminal whose shell passes them on."""
    assert daemon.process is not None
    with RawClient(daemon.socket) as client:
        assert client.result("ping") is True
        daemon.signal(signal.SIGSTOP)
        daemon.signal(signal.SIGTERM)
        daemon.signal(signal.SIGINT)
        daemon.signal(signal.SIGCONT)
        assert daemon.process.wait(12) == 0
    assert not daemon.socket.exists()
    assert daemon.log_events()[-1]["event"] == "daemon.stopped"


def test_a_signal_that_comes_while_it_puts_things_away_does_not_kill(
    daemon: DaemonProcess,
) -> None:
    assert daemon.process is not None
    while daemon.process.poll() is None and daemon.socket.exists():
        daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(12) == 0
    assert not daemon.socket.exists()
    assert daemon.log_events()[-1]["event"] == "daemon.stopped"


BROKEN = """
import sys
import bi_performanced.app as app

def open(*_, **__):
    raise RuntimeError("odd")

app.Cache.open = open
from bi_performanced.main import main
sys.exit(main())
"""


def test_a_start_that_fails_leaves_no_socket(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, "--state-dir", str(tmp_path / "state"), "--http", "off"],
        cwd=tmp_path,
        env={**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1 and "RuntimeError: odd" in done.stderr
    assert not (tmp_path / "run" / "control.sock").exists()


def test_a_person_who_starts_it_is_told_where_it_serves(tmp_path: Path) -> None:
    command = [*PROGRAM, "--state-dir", str(tmp_path / "state"), "--http", "127.0.0.1:0"]
    log = tmp_path / "log"
    env = {"RUNTIME_DIRECTORY": str(tmp_path / "run")}
    with Session([*command, "--log-file", str(log)], columns=200, env=env) as terminal:
        text = terminal.wait_for(lambda text: "serving on" in text)
        assert f"serving on {tmp_path / 'run' / 'control.sock'} and http://127.0.0.1:" in text
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 0
        assert len(terminal.raw.splitlines()) == 1


def test_what_is_no_terminal_is_told_nothing(daemon: DaemonProcess) -> None:
    assert daemon.process is not None and daemon.process.stdout is not None
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(12) == 0
    assert daemon.process.stdout.read() == b""


def test_requests_in_flight_are_answered_before_the_end(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.set_many", items=[[f"k{n}", n] for n in range(5000)])
        number = client.send("cache.clear", pattern="k*")
        daemon.signal(signal.SIGTERM)
        answer = client.receive()
        # Either it was read before the stop and done whole, or not begun at all.
        assert answer is None or answer == [1, number, None, {"cleared": 5000}]
    assert daemon.process is not None and daemon.process.wait(12) == 0


def test_a_dead_daemon_s_socket_is_no_hindrance(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        daemon.kill9()
        assert daemon.socket.exists()
        daemon.start()
        with RawClient(daemon.socket) as client:
            assert client.result("ping") is True


def test_two_daemons_do_not_share_a_socket(daemon: DaemonProcess) -> None:
    second = run_daemon(daemon.folder, "--socket", str(daemon.socket))
    assert second.returncode == 1
    assert "is running on" in second.stderr and str(daemon.socket) in second.stderr
    with RawClient(daemon.socket) as client:
        assert client.result("ping") is True, "the first one is not disturbed"


def test_two_daemons_do_not_share_a_store(daemon: DaemonProcess, tmp_path: Path) -> None:
    second = run_daemon(daemon.folder, "--socket", str(tmp_path / "other.sock"))
    assert second.returncode == 1
    assert "another daemon uses the store" in second.stderr
    assert not (tmp_path / "other.sock").exists()
    with RawClient(daemon.socket) as client:
        assert client.result("ping") is True


def test_a_file_in_the_socket_s_place_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "control.sock"
    path.write_text("precious")
    done = run_daemon(tmp_path)
    assert done.returncode == 1 and "is not a socket" in done.stderr
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "env", "words"),
    [
        (["--socket", "/tmp/" + "s" * 120], {}, "socket.path"),
        (["--socket", "/nowhere/at/all/control.sock"], {}, "is not a directory"),
        (["--state-dir", "/proc/nowhere"], {}, "state_dir"),
        ([], {"RUNTIME_DIRECTORY": "/proc/nowhere"}, "runtime directory"),
        (["--log-file", "/proc/nowhere/log"], {}, "log.file"),
        (["--config", "/nowhere.toml"], {}, "/nowhere.toml"),
        (["--http", "nonsense"], {}, "http.listen"),
        (["--log-level", "LOUD"], {}, "log.level"),
        ([], {"REDIS_ENABLED": "maybe"}, "REDIS_ENABLED"),
        ([], {"PERFORMANCE_CACHE_TTL": "-5"}, "PERFORMANCE_CACHE_TTL"),
    ],
)
def test_what_hinders_the_start_is_one_sentence_with_the_setting(
    tmp_path: Path, options: list[str], env: dict[str, str], words: str
) -> None:
    done = run_daemon(tmp_path, *options, **env)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "control.sock").exists()


@pytest.mark.parametrize("kind", ["pipe", "read pipe", "socket"])
def test_a_log_that_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd.log"
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "socket":
            bound.bind(str(path))
        else:
            os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if kind == "read pipe" else None
        done = run_daemon(tmp_path, "--log-file", str(path))
        if reader is not None:
            os.close(reader)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "log.file" in done.stderr
    assert "neither a regular file" in done.stderr


def test_a_log_may_go_to_a_device(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, "--log-file", "/dev/null") as daemon:
        with RawClient(daemon.socket) as client:
            assert client.result("ping") is True
        assert daemon.stop() == 0


def test_a_runtime_directory_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    done = run_daemon(tmp_path)
    assert done.returncode == 1 and "chmod o-w" in done.stderr


def test_a_table_without_a_handler_is_refused() -> None:
    handlers: dict[str, Any] = {row.name: (lambda args, caller: None) for row in COMMANDS}
    Dispatcher(handlers)
    del handlers["cache.clear"]
    with pytest.raises(IncompleteTable, match=r"cache\.clear"):
        Dispatcher(handlers)
    with pytest.raises(IncompleteTable, match="no row"):
        Dispatcher(handlers | {"cache.clear": handlers["ping"], "no row": handlers["ping"]})


def test_sighup_opens_the_log_anew(daemon: DaemonProcess) -> None:
    moved = daemon.log.with_suffix(".1")
    daemon.log.rename(moved)
    daemon.take_notifications()
    daemon.signal(signal.SIGHUP)
    wait_until(daemon.log.exists, what="the new file")
    wait_until(
        lambda: any(each["event"] == "log.reopened" for each in daemon.log_events()),
        what="a line in it",
    )
    wait_until(lambda: daemon.take_notifications() or len(daemon.notifications) > 2)
    said = [found for found in daemon.notifications if "RELOADING" in found]
    assert said and said[0]["MONOTONIC_USEC"].isdigit()
    assert "READY" in daemon.notifications[-1]
    assert any('"daemon.ready"' in line for line in moved.read_text().splitlines())


def test_the_watchdog_is_fed_by_the_loop_itself(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, env={"WATCHDOG_USEC": "400000"}) as daemon:

        def signs() -> int:
            daemon.take_notifications()
            return sum("WATCHDOG" in found for found in daemon.notifications)

        wait_until(lambda: signs() >= 3, what="signs of life")
        daemon.signal(signal.SIGSTOP)
        signs()
        stopped = signs()
        wait_for_silence = time.monotonic() + 1.0
        while time.monotonic() < wait_for_silence:
            assert signs() == stopped, "a process that does not run gives no sign"
            time.sleep(0.05)
        daemon.signal(signal.SIGCONT)
        wait_until(lambda: signs() > stopped, what="signs of life again")


ACTIVATE = """
import os, sys
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="control:http")
os.execv(sys.executable, [sys.executable, "-m", "bi_performanced.main", *sys.argv[1:]])
"""


def test_sockets_that_the_service_manager_opened_are_served(tmp_path: Path) -> None:
    path = tmp_path / "handed.sock"
    with socket.socket(socket.AF_UNIX) as control, socket.socket() as http:
        control.bind(str(path))
        control.listen()
        http.bind(("127.0.0.1", 0))
        http.listen()
        port = http.getsockname()[1]

        def place() -> None:
            # In the child: the two as descriptors 3 and 4, whatever lies there.
            first = fcntl.fcntl(control.fileno(), fcntl.F_DUPFD, 100)
            second = fcntl.fcntl(http.fileno(), fcntl.F_DUPFD, 100)
            os.dup2(first, 3)
            os.dup2(second, 4)

        daemon = DaemonProcess(tmp_path, program=("-c", ACTIVATE))
        try:
            daemon.start(preexec_fn=place, pass_fds=(3, 4))
            with RawClient(path) as client:
                assert client.result("ping") is True
                client.result("cache.set", key="kept", value=1)
            url = f"http://127.0.0.1:{port}/performance/status"
            assert httpx.get(url).json()["status"] == "ok"
            assert daemon.stop() == 0
            assert path.exists(), "the socket is the service manager's"
            # What connects while no daemon runs is served by the next one.
            with RawClient(path) as waiting:
                waiting.send("cache.get", key="kept")
                daemon.start(preexec_fn=place, pass_fds=(3, 4))
                assert waiting.receive()[3] == 1
        finally:
            daemon.__exit__(None, None, None)


def test_check_prints_the_configuration_and_does_not_start(tmp_path: Path) -> None:
    done = run_daemon(tmp_path, "--check", PERFORMANCE_CACHE_MAX_SIZE="77")
    assert done.returncode == 0
    assert "cache.max_size" in done.stdout and "77" in done.stdout
    assert "PERFORMANCE_CACHE_MAX_SIZE" in done.stdout
    assert not (tmp_path / "run").exists()


def shell(folder: Path, words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """The daemon by a shell that runs `words`, where $PROGRAM stands for it."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {words}"],
        cwd=folder,
        env={
            **os.environ,
            "PROGRAM": " ".join([*PROGRAM, "--state-dir", str(folder / "state")]),
            "RUNTIME_DIRECTORY": str(folder / "run"),
            **env,
        },
        capture_output=True,
        timeout=30,
    )
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("words", ["--check", "--help"])
def test_output_that_nobody_takes_is_no_traceback(tmp_path: Path, words: str) -> None:
    closed = shell(tmp_path, f"$PROGRAM {words} >&-")
    assert (closed.returncode, closed.stderr) == (0, b"")
    full = shell(tmp_path, f"$PROGRAM {words} >/dev/full")
    assert full.returncode == 1
    assert full.stderr.count(b"\n") == 1 and b"No space left on device" in full.stderr
    left = shell(tmp_path, f"$PROGRAM {words} | true")
    assert left.returncode in (0, 1), "as it came to write before the reader left, or after"
    assert left.stderr == b""


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-"])
def test_a_mistake_that_cannot_be_told_has_its_status_all_the_same(
    tmp_path: Path, where: str
) -> None:
    assert shell(tmp_path, f"$PROGRAM --config /nowhere.toml {where}").returncode == 2


def test_check_says_every_path_in_ascii_and_without_commands(tmp_path: Path) -> None:
    folder = "/tmp/é\x1b]0;owned\x07"
    done = shell(tmp_path, '$PROGRAM --check --state-dir "$F"', PYTHONIOENCODING="ascii", F=folder)
    assert done.returncode == 0
    assert rb"/tmp/\xe9\x1b]0;owned\x07" in done.stdout


@pytest.mark.parametrize(
    "text", ['performance:\n  "a\\e]0;owned\\a": 1\n', '"b\\e[31m": 1\n', '? "\\e[31m\\x9b"\n: 1\n']
)
def test_an_unknown_key_commands_no_terminal(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    done = shell(tmp_path, "$PROGRAM --config odd.yaml")
    assert done.returncode == 2
    assert b"\\x1b" in done.stderr and not set(done.stderr) & set(b"\x1b\x07\x9b")


def test_a_word_of_the_command_line_commands_no_terminal(tmp_path: Path) -> None:
    done = shell(tmp_path, "$PROGRAM $'--odd\\e[31m'")
    assert done.returncode == 2
    assert b"\\x1b[31m" in done.stderr and b"\x1b" not in done.stderr


def test_version_is_said() -> None:
    done = subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("bi-performanced ")


def test_entries_and_their_order_survive_a_kill(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        with RawClient(daemon.socket) as client:
            client.result("cache.set_many", items=[[f"k{n}", n] for n in range(1000)])
            client.result("cache.set", key="short", value=1, ttl=0.05)
            client.result("cache.delete", key="k5")
            client.result("cache.set", key="k6", value="changed")
        daemon.restart()
        with RawClient(daemon.socket) as client:
            values = client.result("cache.get_many", keys=[f"k{n}" for n in range(1000)])
            assert values == [*range(5), None, "changed", *range(7, 1000)]
            wait_until(lambda: client.result("cache.get", key="short") is None)


def test_a_store_that_is_not_one_is_replaced_and_said(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        daemon.kill9()
        store = daemon.runtime / "store"
        store.write_bytes(os.urandom(store.stat().st_size))
        daemon.start()
        with RawClient(daemon.socket) as client:
            assert client.result("cache.set", key="k", value=1) == {"stored": 1}
            assert client.result("cache.get", key="k") == 1


@pytest.mark.parametrize("loss", ["store", "runtime", "all"])
def test_nothing_is_acknowledged_while_a_vanished_store_may_be_read(
    tmp_path: Path, loss: str
) -> None:
    """Who is attached trusts its mapping up to a second longer than the daemon lives."""
    with DaemonProcess(tmp_path) as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        cache = optimizer.sync.cache
        assert cache.set("key", "old") and cache.get("key") == "old"
        reader = optimizer._link.reader
        assert isinstance(reader, StoreReader)
        (daemon.runtime / "store").unlink()
        daemon.kill9()
        if loss != "store":
            shutil.rmtree(daemon.runtime)
            daemon.runtime.mkdir(mode=0o750)
        if loss == "all":
            shutil.rmtree(daemon.state)
        daemon.start()
        assert not reader.alive(), "ready is said when nobody can read the old store"
        with RawClient(daemon.socket) as client:
            client.result("cache.set", key="key", value="new")
        assert cache.get("key") != "old"
        optimizer.close()


def test_a_start_after_an_orderly_end_waits_for_nobody(tmp_path: Path) -> None:
    """As a service whose runtime directory went with it."""
    with DaemonProcess(tmp_path) as daemon:
        assert daemon.stop() == 0
        shutil.rmtree(daemon.runtime)
        daemon.runtime.mkdir(mode=0o750)
        daemon.start()
        waits = [each for each in daemon.log_events() if each["event"] == "cache.waits_for_readers"]
        assert not waits


def test_messages_of_a_newer_client_are_answered_not_dropped(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.socket.sendall(msgpack.packb([0, 1, "cache.later", [{"x": 1}]]))
        assert client.receive()[2]["code"] == "unknown_method"
        assert client.result("ping") is True
