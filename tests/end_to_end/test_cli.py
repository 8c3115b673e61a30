"""The control program as people and scripts use it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bi_performance_wire.commands import COMMANDS, Command
from support.clients import RawClient
from support.daemon import PLAIN, DaemonProcess
from support.terminal import on_a_terminal

PROGRAM = [sys.executable, "-m", "bi_performance_ctl.main"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as running:
        yield running


def ctl(
    *words: str, socket_path: Path | None = None, stdin: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("XDG_RUNTIME_DIR",)}
    given = {"BI_PERFORMANCE_SOCKET": str(socket_path)} if socket_path else {}
    return subprocess.run(
        [*PROGRAM, *words],
        env={**kept, **given, **env},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


class Seen:
    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon

    def __call__(self, *words: str, stdin: str = "", status: int = 0) -> str:
        done = ctl(*words, socket_path=self.daemon.socket, stdin=stdin)
        assert done.returncode == status, (done.stdout, done.stderr)
        return done.stdout if status == 0 else done.stderr


@pytest.fixture
def say(daemon: DaemonProcess) -> Seen:
    with RawClient(daemon.socket) as client:
        client.result("cache.clear")
    return Seen(daemon)


def test_the_seed_s_commands_work(say: Seen) -> None:
    assert "ok" in say("status") and "cache" in say("status")
    say("cache", "set", "analytics:1", "x")
    say("cache", "set", "other", "y")
    assert say("clear-cache", "--dry-run") == "would clear 2 entries\n"
    assert json.loads(say("clear-cache", "--dry-run", "--json-output")) == {
        "cleared": 2,
        "dry_run": True,
    }
    assert "cleared 1 entry" in say("clear-cache", "--pattern", "analytics")
    assert say("clear-cache") == "cleared 1 entry\n"
    table = say("benchmark", "--iterations", "100")
    for words in ("set", "get, hit in place", "round trip", "set_many of 100", "plain dict", "p99"):
        assert words in table
    assert "cleared 0" in say("clear-cache"), "the benchmark leaves nothing"


@pytest.mark.parametrize("row", [row for row in COMMANDS if row.cli and row.example])
def test_every_example_of_the_help_works(say: Seen, row: Command) -> None:
    assert row.cli and row.example
    with RawClient(say.daemon.socket) as client:
        client.result(
            "cache.set_many", items=[["greeting", "hello"], ["https://example.com/", "p"]]
        )
    shown = say(*row.cli.split(), "--help")
    for line in row.example.splitlines():
        say(*(word.strip("'") for word in line.split()[1:]))
        assert line in shown


def test_the_monitor_s_examples_work(say: Seen) -> None:
    text = say("monitor", "--help")
    for example in ("monitor --once", "monitor --interval 10 >> monitor.txt"):
        assert f"\n  bi-performance {example}\n" in text
    assert "hit rate" in say("monitor", "--once")


def test_json_output_is_one_document_and_stands_before_or_after(say: Seen) -> None:
    for words in (
        ["--json-output", "status"],
        ["status", "--json-output"],
        ["cache", "stats", "--json-output"],
        ["config", "--json-output"],
        ["clear-cache", "--json-output"],
        ["benchmark", "--iterations", "10", "--json-output"],
        ["doctor", "--json-output"],
        ["cache", "keys", "--json-output"],
        ["metrics", "--json-output"],
        ["recommendations", "--json-output"],
        ["profiles", "--json-output"],
        ["optimize", "balanced", "--json-output"],
        ["monitor", "--once", "--json-output"],
    ):
        json.loads(say(*words))


def test_values_of_every_kind_go_in_and_out(say: Seen) -> None:
    say("cache", "set", "text", "hällo")
    assert say("cache", "get", "text") == "hällo\n"
    say("cache", "set", "map", '{"a": [1, null]}', "--json")
    assert json.loads(say("cache", "get", "map")) == {"a": [1, None]}
    say("cache", "set", "piped", "-", stdin="from standard input")
    assert say("cache", "get", "piped").strip() == "from standard input"
    document = json.loads(say("cache", "get", "map", "--json-output"))
    assert document == {"found": True, "value": {"a": [1, None]}}
    with RawClient(say.daemon.socket) as client:
        client.result("cache.set", key="binary", value=b"\x00\xff")
    done = subprocess.run(
        [*PROGRAM, "--socket", str(say.daemon.socket), "cache", "get", "binary"],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"\x00\xff"
    assert sorted(say("cache", "keys").split()) == ["binary", "map", "piped", "text"]
    assert say("cache", "keys", "--pattern", "t*").split() == ["text"]
    assert "deleted" in say("cache", "delete", "text")
    assert "no such key" in say("cache", "delete", "text")
    assert "not_found" in say("cache", "get", "text", status=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage:"),
        (["stauts"], "did you mean status"),
        (["cache"], "cache needs one of"),
        (["cache", "gett"], "cache needs one of: get"),
        (["benchmark", "--iterations", "0"], "--iterations"),
        (["benchmark", "--iterations", "many"], "--iterations"),
        (["benchmark", "--redis", "no url"], "--redis"),
        (["benchmark", "--redis", "redis://:secret@127.0.0.1:1/0"], "does not answer"),
        (["status", "--timeout", "-1"], "--timeout"),
        (["status", "extra"], "extra"),
        (["cache", "set", "key"], "VALUE"),
        (["cache", "set", "key", "{", "--json"], "not JSON"),
        (["cache", "set", "key", "v", "--ttl", "soon"], "ttl"),
        (["cache", "keys", "--limit", "0"], "--limit must"),
        (["logs", "--lines", "x"], "--lines"),
        (["demo", "--processes", "0"], "--processes"),
    ],
)
def test_a_wrong_use_is_status_2_with_the_remedy(say: Seen, words: list[str], said: str) -> None:
    done = ctl(*words, socket_path=say.daemon.socket)
    assert done.returncode == 2
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cache", "set", "key", "v", "--ttl", "0"], "ttl"),
        (["cache", "get", ""], "key"),
        (["clear-cache", "--pattern", "[a"], "pattern"),
    ],
)
def test_what_the_daemon_refuses_is_status_1_with_its_words(
    say: Seen, words: list[str], said: str
) -> None:
    done = ctl(*words, socket_path=say.daemon.socket)
    assert done.returncode == 1 and said in done.stderr and done.stdout == ""


def test_no_daemon_is_status_3_and_says_where_it_was_sought(tmp_path: Path) -> None:
    done = ctl("status", socket_path=tmp_path / "nobody.sock")
    assert done.returncode == 3
    assert "nobody.sock" in done.stderr and "bi-performanced" in done.stderr
    done = ctl("status", "--json-output", socket_path=tmp_path / "nobody.sock")
    assert done.returncode == 3 and done.stdout == ""


def test_a_daemon_that_does_not_answer_is_status_3_in_time(tmp_path: Path) -> None:
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        done = ctl("status", "--timeout", "0.3", socket_path=path)
    assert done.returncode == 3 and "does not answer" in done.stderr


def test_config_says_where_each_value_came_from(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, env={"PERFORMANCE_CACHE_MAX_SIZE": "77"}) as daemon:
        say = Seen(daemon)
        line = next(line for line in say("config").splitlines() if "cache.max_size" in line)
        assert "77" in line and "PERFORMANCE_CACHE_MAX_SIZE" in line
        rows = json.loads(say("config", "--json-output"))["settings"]
        found = {row["key"]: row for row in rows}
        assert found["cache.max_size"]["value"] == 77
        assert found["database.pool_size"]["origin"].startswith("default")
        assert found["log.level"]["value"] == "INFO"


def test_doctor_finds_what_is_wrong(daemon: DaemonProcess, say: Seen, tmp_path: Path) -> None:
    text = say("doctor")
    for words in ("socket", "daemon", "version", "cache", "HTTP", "log", "store", "import"):
        assert words in text
    done = ctl("doctor", socket_path=tmp_path / "nobody.sock")
    assert done.returncode == 1
    assert "nobody.sock" in done.stdout and "start bi-performanced" in done.stdout


def test_doctor_prints_the_line_that_mends_a_hidden_package(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    package = tmp_path / "business_intel_scraper"
    (package / "backend").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    done = ctl("doctor", socket_path=daemon.socket, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "extend_path" in done.stdout
    line = re.search(r"__path__ = .*", done.stdout)
    assert line
    for file in (package / "__init__.py", package / "backend" / "__init__.py"):
        file.write_text(line[0] + "\n")
    healed = ctl("doctor", socket_path=daemon.socket, PYTHONPATH=str(tmp_path))
    assert healed.returncode == 0, healed.stdout


def test_logs_are_shown_and_followed_over_rotation(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        say = Seen(daemon)
        assert "daemon.ready" in say("logs")
        assert json.loads(say("logs", "--json-output", "-n", "1"))["logger"] == "performance"
        assert say("logs", "--level", "error") == ""
        follower = subprocess.Popen(
            [*PROGRAM, "--socket", str(daemon.socket), "logs", "--follow", "-n", "1"],
            stdout=subprocess.PIPE,
            text=True,
            # A shell starts what it puts into the background with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert follower.stdout is not None
        try:
            assert "daemon.ready" in follower.stdout.readline()
            for _ in range(3):
                daemon.log.rename(daemon.log.with_suffix(".1"))
                daemon.signal(signal.SIGHUP)
                line = follower.stdout.readline()
                assert "log.reopened" in line
            follower.send_signal(signal.SIGINT)
            assert follower.wait(10) == 130
        finally:
            follower.kill()
            follower.wait()
            follower.stdout.close()


def test_colors_and_bars_are_for_terminals_only(daemon: DaemonProcess, say: Seen) -> None:
    def seen(*words: str, **env: str) -> str:
        return on_a_terminal([*PROGRAM, "--socket", str(daemon.socket), *words], env=env)

    assert "\x1b[" in seen("status")
    assert "\x1b[3" not in seen("status", NO_COLOR="1")
    assert "\x1b[3" not in seen("status", "--no-color")
    assert "measuring" in seen("benchmark", "--iterations", "2000")
    assert "\x1b[" not in say("status") and "\x1b[" not in say("benchmark", "--iterations", "10")


def test_a_reader_that_has_enough_is_no_error(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.set_many", items=[[f"key-{n:05}" * 10, n] for n in range(5000)])
    command = " ".join(
        [*PROGRAM, "--socket", str(daemon.socket), "cache keys --limit 5000 | head -1"]
    )
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("key-") and done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_commands_and_their_options(say: Seen, shell: str) -> None:
    script = say("completion", shell)
    for word in ("clear-cache", "benchmark", "iterations", "pattern", "monitor", "interval"):
        assert word in script
    if path := shutil.which(shell):
        done = subprocess.run([path, "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == ""


def test_bash_completes(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(ctl("completion", "bash").stdout)
    bash = shutil.which("bash")
    assert bash

    def complete(*words: str) -> list[str]:
        line = (
            f'source {script}; COMP_WORDS=({" ".join(words)} "");'
            f" COMP_CWORD={len(words)}; _bi_performance; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run([bash, "-c", line], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert "status" in complete("bi-performance")
    assert set(complete("bi-performance", "cache")) >= {"get", "set", "delete", "keys"}
    assert "--pattern" in complete("bi-performance", "clear-cache")
    assert "--ttl" in complete("bi-performance", "cache", "set")
    assert "set" in complete("bi-performance", "config")
    assert "--ttl" not in complete("bi-performance", "config", "set")
    assert {"--interval", "--once"} <= set(complete("bi-performance", "monitor"))
    assert {"--history", "--format"} <= set(complete("bi-performance", "metrics"))


def test_help_names_every_command(say: Seen) -> None:
    text = say("--help")
    for row in COMMANDS:
        if row.cli:
            assert row.cli in text and row.summary in text
    assert "exit status" in text and "examples" in text


def user_of_its_own() -> tuple[int, tuple[str, ...]]:
    """A number that the user has in a namespace of its own, and what begins a command there.

    A directory goes by it that nobody else has: neither another run of the tests nor a daemon.
    Where there are no such namespaces it is the user that runs the tests.
    """
    uid = 3_000_000 + os.getpid()
    words = ("unshare", "--user", f"--map-user={uid}")
    if shutil.which("unshare"):
        trial = subprocess.run([*words, "id", "-u"], capture_output=True, text=True)
        if trial.stdout.strip() == str(uid):
            return uid, words
    return os.getuid(), ("env",)


def test_the_socket_is_found_where_the_contract_says(tmp_path: Path) -> None:
    """Without an option or a variable: the runtime directory of the user, checked for its owner."""
    uid, as_that_user = user_of_its_own()
    runtime = Path(f"/tmp/bi-performance-{uid}")
    assert not (runtime / "control.sock").exists(), "stop your own daemon for this test"
    env = {"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": ""}
    command, *words = as_that_user
    program = (*words, sys.executable, *PLAIN)
    try:
        with DaemonProcess(tmp_path, env=env, python=command, program=program) as daemon:
            assert (runtime / "control.sock").exists()
            done = subprocess.run(
                [*as_that_user, *PROGRAM, "status"],
                env={k: v for k, v in os.environ.items() if k != "XDG_RUNTIME_DIR"},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0 and "ok" in done.stdout, (done.stdout, done.stderr)
            daemon.stop()
        assert not (runtime / "control.sock").exists()
    finally:
        shutil.rmtree(runtime, ignore_errors=True)
