"""The control program's input and output at their edges: odd bytes, odd terminals, no room."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from support.clients import RawClient
from support.daemon import DaemonProcess
from support.terminal import on_a_terminal

PROGRAM = [sys.executable, "-m", "bi_performance_ctl.main"]
HOSTILE = "\x1b]0;owned\x07\x9b31m\x7f\r"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.fixture(autouse=True)
def cleared(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.clear")


def run(
    daemon: DaemonProcess, *words: str | bytes, stdin: bytes = b"", **env: str
) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*PROGRAM, "--socket", str(daemon.socket), *words],
        env={**os.environ, **env},
        input=stdin,
        capture_output=True,
        timeout=60,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    return done


def seen(daemon: DaemonProcess, *words: str, columns: int = 80) -> str:
    command = [*PROGRAM, "--socket", str(daemon.socket), *words]
    return on_a_terminal(command, columns=columns)


COMMANDS = [
    ["status"],
    ["metrics"],
    ["metrics", "--format", "openmetrics"],
    ["profiles"],
    ["recommendations"],
    ["monitor", "--once"],
    ["config"],
    ["cache", "stats"],
    ["cache", "keys"],
    ["doctor"],
    ["logs"],
    ["benchmark", "--iterations", "10"],
    ["status", "--json-output"],
    ["--help"],
    ["completion", "bash"],
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_terminal_of_ascii_loses_signs_and_no_more(
    daemon: DaemonProcess, words: list[str]
) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.set", key="schlüssel", value="wärt")
    done = run(daemon, *words, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    if words == ["cache", "keys"]:
        assert done.stdout == b"schl\\xfcssel\n"
    if words == ["status"]:
        assert b"* ok" in done.stdout


@pytest.mark.parametrize("words", COMMANDS)
def test_output_that_has_no_room_is_one_sentence(daemon: DaemonProcess, words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*PROGRAM, "--socket", str(daemon.socket), *words],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
    if words == ["cache", "keys"]:
        assert done.returncode == 0, "there was nothing to write"
        return
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"No space left on device" in done.stderr


@pytest.mark.parametrize("words", COMMANDS)
def test_closed_standard_output_is_no_traceback(daemon: DaemonProcess, words: list[str]) -> None:
    command = " ".join([*PROGRAM, "--socket", str(daemon.socket), *words, ">&-"])
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0 and done.stderr == b""


def test_closed_standard_input_is_told(daemon: DaemonProcess) -> None:
    command = " ".join([*PROGRAM, "--socket", str(daemon.socket), "cache set key - <&-"])
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 2 and b"standard input" in done.stderr


def test_a_key_that_is_no_text_is_found_by_its_bytes(daemon: DaemonProcess) -> None:
    key = b"caf\xe9"
    with RawClient(daemon.socket) as client:
        client.result("cache.set", key=key, value="found")
        assert run(daemon, "cache", "get", key).stdout == b"found\n"
        assert run(daemon, "cache", "keys").stdout == b"caf\\xe9\n"
        assert json.loads(run(daemon, "cache", "keys", "--json-output").stdout)["keys"]
        assert run(daemon, "cache", "set", b"new\xff", b"value\xff").returncode == 0
        assert client.result("cache.get", key=b"new\xff") == b"value\xff"
        assert run(daemon, "cache", "delete", key).stdout == b"deleted\n"
        missing = run(daemon, "cache", "get", key)
        assert missing.returncode == 1 and b"not_found" in missing.stderr
        pattern = run(daemon, "clear-cache", "--pattern", key)
        assert pattern.returncode == 2 and b"--pattern" in pattern.stderr


@pytest.mark.parametrize("data", [bytes(range(256)), b"text\r\nof two lines\n", b"", b"\xff" * 9])
def test_what_is_piped_in_comes_out_the_same(daemon: DaemonProcess, data: bytes) -> None:
    assert run(daemon, "cache", "set", "piped", "-", stdin=data).returncode == 0
    with RawClient(daemon.socket) as client:
        value = client.result("cache.get", key="piped")
    assert value in (data, data.decode("utf-8", "replace"))
    assert isinstance(value, str) == (b"\xff" not in data)
    done = run(daemon, "cache", "get", "piped")
    assert done.stdout == data + (b"\n" if isinstance(value, str) and data[-1:] != b"\n" else b"")


def test_large_values_come_out_whole(daemon: DaemonProcess) -> None:
    data = os.urandom(3 << 20)
    assert run(daemon, "cache", "set", "large", "-", stdin=data).returncode == 0
    assert run(daemon, "cache", "get", "large").stdout == data


def test_nothing_stored_commands_the_terminal(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.set", key="a" + HOSTILE + "\nb", value="text\t" + HOSTILE + "\nmore")
        client.result("cache.set", key="bytes", value=("bin" + HOSTILE).encode())
        client.result("cache.set", key="map", value={HOSTILE: [HOSTILE]})
    key = "a" + HOSTILE + "\nb"
    listing = seen(daemon, "cache", "keys", "--pattern", "a*")
    assert listing == "a\\x1b]0;owned\\x07\\x9b31m\\x7f\\r\\nb\r\n"
    assert seen(daemon, "cache", "get", key).startswith(
        "text\t\\x1b]0;owned\\x07\\x9b31m\\x7f\\r\r\n"
    )
    for words in (
        ["cache", "get", "bytes"],
        ["cache", "get", "map"],
        ["cache", "keys", "--json-output"],
    ):
        text = seen(daemon, *words)
        assert not set(text) & set("\x1b\x07\x9b\x7f"), text
    assert run(daemon, "cache", "get", key).stdout == ("text\t" + HOSTILE + "\nmore\n").encode()
    assert run(daemon, "cache", "keys", "--pattern", "a*").stdout.count(b"\n") == 1
    missing = run(daemon, "cache", "get", HOSTILE)
    assert b"\x1b" not in missing.stderr


def test_a_log_that_is_none_is_shown_harmlessly(daemon: DaemonProcess, tmp_path: Path) -> None:
    file = tmp_path / "binary"
    event = json.dumps({"level": "info", "event": HOSTILE, "key": HOSTILE, "timestamp": HOSTILE})
    file.write_bytes(bytes(range(256)) * 5000 + b"\n" + event.encode() + b"\n")
    text = seen(daemon, "logs", "--no-color", "--file", str(file))
    assert not set(text) & set("\x1b\x07\x9b\x7f")
    assert "owned" in text


@pytest.mark.parametrize(
    "words",
    [["config"], ["cache", "stats"], ["status"], ["metrics"], ["profiles"], ["recommendations"]],
)
def test_a_narrow_terminal_cuts_nothing_off(daemon: DaemonProcess, words: Sequence[str]) -> None:
    text = seen(daemon, *words, "--no-color", columns=40)
    assert "…" not in text
    if words == ["config"]:
        assert "cache.default_ttl = 3600.0" in text
        assert "socket.max_buffered_bytes" in text


def test_a_narrow_terminal_breaks_no_number(daemon: DaemonProcess) -> None:
    text = seen(daemon, "benchmark", "--iterations", "1000", "--no-color", columns=40)
    assert len(re.findall(r"p99 [\d.]+ (?:ns|µs|ms)\b", text)) == 7
    assert len(re.findall(r"\b\d{1,3}(?:,\d{3})* keys/s", text)) == 7
    assert "1,000 times" in text
    wide = seen(daemon, "benchmark", "--iterations", "10", "--no-color", columns=120)
    assert "keys/s" in wide and " keys/s ·" not in wide, "there is room for a table"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cache", "set", "k", "v", "--ttl", "soon"], "--ttl must be a number, not 'soon'"),
        (["cache", "set", "k", "v", "--ttl", "1e999"], "--ttl must be a finite number, not '1e"),
        (["benchmark", "--iterations", "²"], "--iterations must be a whole number"),
        (["cache", "keys", "--limit", "x"], "--limit must be a whole number, not 'x'"),
        (["cache", "keys", "--limit", "0"], "--limit must be at least 1, not '0'"),
        (["cache", "keys", "--limit", "9999999"], "--limit must be at most 100000"),
        (["cache", "keys", "--pattern", ""], "--pattern must have at least 1 character"),
    ],
)
def test_a_wrong_argument_is_told_in_words(
    daemon: DaemonProcess, words: list[str], said: str
) -> None:
    done = run(daemon, *words)
    assert done.returncode == 2
    assert said in done.stderr.decode()
    assert b"null" not in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NaN", b"NaN is no number"),
        ('{"a": [-Infinity]}', b"-Infinity is no number"),
        ("1e999", b"1e999 is larger"),
        ("[" * 100_000, b"nested too deep"),
        ("[" * 900 + "]" * 900, b"nested deeper"),
    ],
)
def test_what_json_cannot_say_is_not_stored(daemon: DaemonProcess, text: str, said: bytes) -> None:
    done = run(daemon, "cache", "set", "j", "-", "--json", stdin=text.encode())
    assert done.returncode == 2 and said in done.stderr
    assert done.stderr.count(b"\n") == 1 and len(done.stderr) < 300
    assert run(daemon, "cache", "get", "j").returncode == 1


@pytest.mark.parametrize("words", [[], ["--json-output"]])
def test_a_number_that_json_cannot_say_is_null(daemon: DaemonProcess, words: list[str]) -> None:
    with RawClient(daemon.socket) as client:
        client.result("cache.set", key="odd", value={"a": [float("nan"), float("-inf"), 1.5]})
    found = json.loads(
        run(daemon, "cache", "get", "odd", *words).stdout, parse_constant=pytest.fail
    )
    assert (found["value"] if words else found) == {"a": [None, None, 1.5]}


def test_help_speaks_of_nothing_that_only_programs_know(daemon: DaemonProcess) -> None:
    assert b"nil" not in run(daemon, "--help").stdout
    assert b"nil" not in run(daemon, "cache", "get", "--help").stdout
