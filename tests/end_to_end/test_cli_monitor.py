"""`monitor` as a person has it on a terminal, and as a file or a pipe gets it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until
from support.terminal import Session

PROGRAM = [sys.executable, "-m", "bi_performance_ctl.main"]
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  (ok|degraded)  hit rate (–|[\d.]+%)  (–|[\d.,]+) hits/s"
    r"  [\d,]+ entr(y|ies)  CPU (–|[\d.]+%)  memory (–|[\d.]+%)  \d+ recommendations?\n"
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path) as running:
        yield running


def command(daemon: DaemonProcess, *words: str) -> list[str]:
    return [*PROGRAM, "--socket", str(daemon.socket), "monitor", *words]


@contextmanager
def watching(
    daemon: DaemonProcess, *words: str, env: Mapping[str, str] | None = None
) -> Iterator[Session]:
    words = words or ("--interval", "0.2")
    with Session(command(daemon, *words), env=env) as session:
        session.wait_for(lambda text: "● ok" in text or "* ok" in text)
        yield session


def is_put_back(session: Session) -> bool:
    picture = session.look()
    return picture.cursor_shown and not picture.alternate and session.modes == session.before


def test_the_screen_has_every_part_and_fits(daemon: DaemonProcess) -> None:
    with watching(daemon) as session:
        text = session.wait_for(lambda text: "Recommendations" in text and "q ends" in text)
        rows = text.split("\n")
        assert len(rows) == 24
        assert rows[0].startswith("bi-performance ") and "profile balanced  up " in rows[0]
        for part in ("Cache", "Host", "Daemon", "Processes", "Recommendations"):
            assert any(row.startswith(part) for row in rows), part
        assert "q ends" in rows[-1]
        assert session.picture.alternate and not session.picture.cursor_shown
        session.type("q")
        assert session.end() == 0
        assert is_put_back(session)


def test_rates_and_processes_are_live(daemon: DaemonProcess) -> None:
    optimizer = PerformanceOptimizer(str(daemon.socket), mode="on")
    try:
        optimizer.sync.cache.set("page", "text")
        with watching(daemon) as session:

            def reads(text: str) -> bool:
                for _ in range(50):
                    assert optimizer.sync.cache.get("page") == "text"
                return bool(
                    re.search(r"Processes 1 .* hits/s", text)
                    and re.search(r"hit rate +100\.0% .*[▁-█]", text)
                    and re.search(rf" {os.getpid()} +[1-9][\d,]* +100\.0%", text)
                )

            session.wait_for(reads)
            session.type("q")
            assert session.end() == 0
    finally:
        optimizer.close()


def test_more_processes_than_there_is_room_for_are_counted(daemon: DaemonProcess) -> None:
    clients = [RawClient(daemon.socket) for _ in range(30)]
    try:
        for number, client in enumerate(clients):
            client.send("attach", instance=os.urandom(16), pid=0, name=f"scraper-{number}")
            client.socket.recv(1 << 16)
        with watching(daemon) as session:
            text = session.wait_for(
                lambda text: "Processes 30" in text and "Recommendations" in text
            )
            shown = text.count("scraper-")
            assert 1 < shown < 30 and f"and {30 - shown} more" in text
            session.resize(100, 60)
            session.wait_for(lambda text: text.count("scraper-") == 30)
    finally:
        for client in clients:
            client.close()


def test_the_window_may_have_any_size(daemon: DaemonProcess) -> None:
    with watching(daemon, "--interval", "3600") as session:
        for columns, lines in ((200, 50), (30, 10), (5, 2), (1, 1), (60, 3), (80, 24)):
            session.resize(columns, lines)
            begin = "bi-performance 0.1.0"[: min(columns, 14)]
            text = session.wait_for(lambda text, begin=begin: text.startswith(begin))  # type: ignore[misc]
            assert len(text.split("\n")) == lines
        session.wait_for(lambda text: "Recommendations" in text and "q ends" in text)
        session.type("q")
        assert session.end() == 0


@pytest.mark.parametrize(
    ("how", "status"),
    [("q", 0), ("Q", 0), ("\x04", 0), ("\x03", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_the_terminal_is_put_back_however_it_ends(
    daemon: DaemonProcess, how: str | signal.Signals, status: int
) -> None:
    with watching(daemon, "--interval", "3600") as session:
        if isinstance(how, str):
            session.type(how)
        else:
            session.process.send_signal(how)
        assert session.end() == status
        assert is_put_back(session)
        assert "Traceback" not in session.picture.text


def test_a_daemon_that_hangs_holds_up_neither_q_nor_the_window(daemon: DaemonProcess) -> None:
    with watching(daemon) as session:
        daemon.signal(signal.SIGSTOP)
        try:
            # The next look is waited for from here on.
            session.type(" ")
            session.resize(70, 20)
            session.wait_for(lambda text: text.startswith("bi-performance"))
            session.type("q")
            assert session.end() == 0
        finally:
            daemon.signal(signal.SIGCONT)
        assert is_put_back(session)


def test_it_outlives_the_daemon_and_finds_it_again(daemon: DaemonProcess) -> None:
    with watching(daemon) as session:
        daemon.kill9()
        text = session.wait_for(lambda text: "daemon away since" in text and "q ends" in text)
        assert "● away" in text and "seen before" in text and "Cache" in text
        daemon.start()
        session.wait_for(lambda text: "● ok" in text and "away" not in text)
        session.type("q")
        assert session.end() == 0


def test_it_can_be_put_aside_and_taken_up_again(daemon: DaemonProcess) -> None:
    with Session(["/bin/sh", "-i"], env={"PS1": "ready> ", "ENV": ""}) as shell:
        shell.wait_for(lambda text: "ready>" in text)
        shell.type(" ".join(command(daemon, "--interval", "0.2")) + "\n")
        shell.wait_for(lambda text: "● ok" in text)
        shell.type("\x1a")
        shell.wait_for(lambda text: "Stopped" in text)
        assert shell.picture.cursor_shown and not shell.picture.alternate
        shell.type("fg\n")
        shell.wait_for(lambda text: "● ok" in text)
        assert shell.picture.alternate
        shell.type("q")
        shell.wait_for(lambda text: "ready>" in text and "● ok" not in text)
        shell.type("echo ended with $?\n")
        shell.wait_for(lambda text: "ended with 0" in text)


def test_it_ends_with_its_window(daemon: DaemonProcess) -> None:
    with watching(daemon) as session:
        session.hang_up()
        assert session.process.wait(20) != 0


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"PYTHONIOENCODING": "ascii"}])
def test_it_needs_neither_colors_nor_signs(daemon: DaemonProcess, env: dict[str, str]) -> None:
    with watching(daemon, env=env) as session:
        text = session.wait_for(lambda text: "Recommendations" in text)
        assert max(len(row) for row in text.split("\n")) <= 80
        session.type("q")
        assert session.end() == 0
        if "NO_COLOR" in env:
            assert b"\x1b[3" not in session.raw
        else:
            assert session.raw.isascii() and "\\" not in text


def test_a_terminal_that_can_do_nothing_gets_lines(daemon: DaemonProcess) -> None:
    with Session(command(daemon, "--interval", "0.2"), columns=200, env={"TERM": "dumb"}) as seen:
        seen.wait_for(lambda text: text.count("hits/s") > 2)
        assert b"\x1b" not in seen.raw
        seen.type("\x03")
        assert seen.end() == 0


def test_without_a_daemon_it_says_so_at_once(tmp_path: Path) -> None:
    words = [*PROGRAM, "--socket", str(tmp_path / "nobody.sock"), "monitor"]
    with Session(words, columns=200) as session:
        assert session.end() == 3
        assert not session.picture.alternate and b"\x1b[?1049h" not in session.raw
        assert "no daemon was found" in session.picture.text


# ── without a terminal


@contextmanager
def piped(words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()
        process.stderr.close()


def test_a_pipe_gets_a_line_each_interval_at_once(daemon: DaemonProcess) -> None:
    with piped(command(daemon, "--interval", "0.2")) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in range(3):
            line = process.stdout.readline()
            assert LINE.fullmatch(line), line
        daemon.kill9()
        wait_until(lambda: "  away  since " in process.stdout.readline(), what="away")
        daemon.start()
        wait_until(lambda: LINE.fullmatch(process.stdout.readline()), what="the daemon")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and process.stderr.read() == ""


def test_a_reader_that_goes_ends_it_at_once_and_quietly(daemon: DaemonProcess) -> None:
    with piped(command(daemon, "--interval", "3600")) as process:
        assert process.stdout is not None and process.stderr is not None
        assert LINE.fullmatch(process.stdout.readline())
        process.stdout.close()
        process.wait(20)
        assert process.stderr.read() == ""


def test_json_is_a_document_in_a_line(daemon: DaemonProcess) -> None:
    with piped(command(daemon, "--interval", "0.2", "--json-output")) as process:
        assert process.stdout is not None
        for _ in range(3):
            found = json.loads(process.stdout.readline())
            assert found["state"] == "ok" and found["profile"] == "balanced"
            assert set(found["now"]) >= {"hit_rate", "hits_per_second"}
            assert {"cache", "system", "daemon", "processes", "recommendations"} <= set(found)
            assert "history" not in found
        daemon.kill9()
        away = wait_until(
            lambda: next(
                found for line in process.stdout if (found := json.loads(line))["state"] == "away"
            ),
            what="away",
        )
        assert away["away_since"] and away["reasons"]


def test_once_is_one_report(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.set", key="page", value="text")
    done = subprocess.run(
        command(daemon, "--once"), capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("bi-performance ") and "\x1b" not in done.stdout
    for part in ("Cache", "entries    1 of", "Host", "Daemon", "Processes", "Recommendations"):
        assert part in done.stdout
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())
    document = subprocess.run(
        command(daemon, "--once", "--json-output"), capture_output=True, check=True, timeout=60
    )
    assert json.loads(document.stdout)["cache"]["entries"] == 1


@pytest.mark.parametrize("given", ["0.1", "0", "-1", "3601", "nan", "inf", "soon", ""])
def test_an_interval_out_of_bounds_is_told(daemon: DaemonProcess, given: str) -> None:
    done = subprocess.run(
        command(daemon, f"--interval={given}"), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "--interval must be a number of seconds from 0.2 to 3600" in done.stderr
