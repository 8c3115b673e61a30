"""What the control program says of figures, profiles, advice and the daemon's health."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bi_performance.optimizer import PerformanceOptimizer
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until
from support.terminal import on_a_terminal

PROGRAM = [sys.executable, "-m", "bi_performance_ctl.main"]
CONFIG = """\
[performance.advice]
interval = 0.2
[performance.cache]
max_size = 200
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("daemon")
    (folder / "performance.toml").write_text(CONFIG)
    with DaemonProcess(folder, "--config", str(folder / "performance.toml")) as running:
        wait_until(lambda: _host(running)["cpu_percent"] is not None, what="two samples")
        yield running


@pytest.fixture(autouse=True)
def as_configured(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.result("optimize", profile="balanced")
        client.result("cache.clear")


def _host(daemon: DaemonProcess) -> dict[str, Any]:
    with RawClient(daemon.socket) as client:
        found: dict[str, Any] = client.result("metrics")["system"]
        return found


def run(
    daemon: DaemonProcess, *words: str, status: int = 0, cwd: Path | None = None, **env: str
) -> str:
    """Its standard output; standard error when it is to end with another status than 0."""
    done = subprocess.run(
        [*PROGRAM, "--socket", str(daemon.socket), *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


def narrow(daemon: DaemonProcess, *words: str, columns: int = 80, **env: str) -> str:
    return on_a_terminal(
        [*PROGRAM, "--socket", str(daemon.socket), *words], columns=columns, env=env
    )


@pytest.fixture
def attached(daemon: DaemonProcess) -> Iterator[PerformanceOptimizer]:
    optimizer = PerformanceOptimizer(str(daemon.socket), mode="on")
    optimizer.sync.cache.set("page", "text")
    for _ in range(4):
        optimizer.sync.cache.get("page")
    optimizer.sync.cache.get("absent")
    yield optimizer
    optimizer.close()


def test_metrics_have_sections_and_what_is_unknown_is_a_dash_with_its_reason(
    daemon: DaemonProcess, attached: PerformanceOptimizer
) -> None:
    text = run(daemon, "metrics")
    for section in ("Cache", "Host", "Daemon", "Attached processes: 1"):
        assert f"\n{section}\n" in text
    assert re.search(r"^  +hit rate +\d", text, re.MULTILINE)
    assert re.search(rf" {os.getpid()} +4 +80\.0%", text), text
    limit = _host(daemon)["cgroup_cpu_limit"]
    if limit is None:
        assert "limit of processors –" in text
        assert re.search(r"CPU limit.*: no control group limits the processors", text)
    assert "null" not in text and "None" not in text and "{" not in text


def test_metrics_in_an_exposition_format_are_that_text(daemon: DaemonProcess) -> None:
    text = run(daemon, "metrics", "--format", "prometheus")
    assert text.startswith("# HELP bi_performance_") and text.endswith("\n")
    assert run(daemon, "metrics", "--format", "openmetrics").endswith("# EOF\n")
    document = json.loads(run(daemon, "metrics", "--format", "prometheus", "--json-output"))
    assert document["media_type"].startswith("text/plain")
    refused = run(daemon, "metrics", "--format", "xml", status=2)
    assert "'prometheus'" in refused


def test_the_past_is_a_line_of_blocks_for_each_series(daemon: DaemonProcess) -> None:
    text = run(daemon, "metrics", "--history", "seconds")
    assert re.search(r"^  memory used .*%.*[▁-█]", text, re.MULTILINE)
    wide = narrow(daemon, "metrics", "--history", "seconds", "--no-color")
    assert max(len(line) for line in wide.split("\r\n")) <= 80


@pytest.mark.parametrize("columns", [40, 80])
def test_processes_are_shown_whole_in_a_narrow_terminal(
    daemon: DaemonProcess, attached: PerformanceOptimizer, columns: int
) -> None:
    text = narrow(daemon, "metrics", "--no-color", columns=columns)
    assert str(os.getpid()) in text and "80.0%" in text and "…" not in text


def test_optimize_says_what_it_was_and_what_it_is(daemon: DaemonProcess) -> None:
    text = run(daemon, "optimize", "performance_focused")
    assert "profile performance_focused applied, instead of balanced" in text
    assert re.search(r"cache\.default_ttl +1 h → 4 h\n", text)
    assert re.search(r"cache\.max_size +200 entries → 400 entries\n", text)
    assert re.search(r"cache\.max_bytes +[\d.]+ [KMG]iB → [\d.]+ [KMG]iB\n", text)
    again = run(daemon, "optimize", "performance_focused")
    assert "in force already: nothing changed" in again and "→" not in again
    back = json.loads(run(daemon, "optimize", "balanced", "--json-output"))
    assert back["previous_profile"] == "performance_focused"


def test_an_unknown_profile_is_told_with_the_known_ones(daemon: DaemonProcess) -> None:
    said = run(daemon, "optimize", "fastest", status=1)
    assert "'fastest'" in said
    assert all(name in said for name in ("balanced", "memory_focused", "performance_focused"))


def test_profiles_mark_the_active_one_in_words(daemon: DaemonProcess) -> None:
    run(daemon, "optimize", "memory_focused")
    text = run(daemon, "profiles")
    assert "● memory_focused  active\n" in text and text.count("active") == 1
    assert re.search(r"performance_focused\n.*\n +cache\.default_ttl  4 h\n", text)
    assert max(map(len, narrow(daemon, "profiles", "--no-color").split("\r\n"))) <= 80


def test_a_setting_is_changed_shown_with_what_lies_beneath_and_taken_back(
    daemon: DaemonProcess,
) -> None:
    assert "1 h → 2 h" in run(daemon, "config", "set", "cache.default_ttl", "7200")
    assert "nothing changed" in run(daemon, "config", "set", "cache.default_ttl", "7200")
    line = next(row for row in run(daemon, "config").splitlines() if "default_ttl" in row)
    assert "7200.0 s (2 h)" in line and "config set; over 3600.0 s (1 h), default" in line
    few = narrow(daemon, "config", "--no-color", columns=60)
    assert "cache.default_ttl = 7200.0 s (2 h)\r\n  config set\r\n  over 3600.0 s (1 h)" in few
    assert "adjusted: cache.default_ttl" in run(daemon, "status")
    assert "2 h → 1 h" in run(daemon, "config", "set", "cache.default_ttl", "default")
    assert "unknown setting" in run(daemon, "config", "set", "cache.ttl", "5", status=1)
    assert "adjusted" not in run(daemon, "status")


def test_status_has_figures_of_monitor_and_optimizer_below_each_other(
    daemon: DaemonProcess,
) -> None:
    text = run(daemon, "status")
    assert re.search(r"monitor +● ok +CPU [\d.]+% · memory [\d.]+% used", text)
    assert re.search(r"optimizer +● ok +profile balanced · (no|\d) recommendation", text)
    rows = [line for line in text.splitlines() if "●" in line][1:]
    assert len({row.index("●") for row in rows}) == 1
    for columns in (60, 80):
        folded = narrow(daemon, "status", "--no-color", columns=columns)
        assert max(map(len, folded.split("\r\n"))) <= columns


def test_no_recommendations_is_a_sentence(daemon: DaemonProcess) -> None:
    assert run(daemon, "recommendations").startswith("No recommendations")
    wait_until(
        lambda: "have been gathered for" in run(daemon, "recommendations"), what="some figures"
    )


def test_a_recommendation_reads_as_advice_and_its_command_works(daemon: DaemonProcess) -> None:
    """More keys than there is room for: what was evicted is asked for again."""
    chance = random.Random(5)

    def churn() -> bool:
        with RawClient(daemon.socket) as client:
            for _ in range(400):
                key = f"page-{chance.randrange(300)}"
                if client.result("cache.get", key=key) is None:
                    client.result("cache.set", key=key, value="x" * 100)
            found: list[Any] = client.result("recommendations")["recommendations"]
            # Until the curve is known, which may be later, another title stands there.
            return [each["id"] for each in found if "2 times as large" in each["title"]] == [
                "cache.too_small"
            ]

    wait_until(churn, within=60, what="a recommendation")
    text = run(daemon, "recommendations")
    title = r"^● warning  2 times as large, the cache would hit \d+ points more$"
    assert re.search(title, text, re.MULTILINE)
    command = re.search(r"\n\n    bi-performance (config set cache\.max_size 400)\n\n", text)
    assert command, text
    assert re.search(r"\n  effect   +the hit rate rises from [\d.]+% to [\d.]+%,", text)
    assert re.search(r"\n  evidence +hit rate [\d.]+% · predicted hit rate [\d.]+%", text)
    assert re.search(r"\n  measured +over [\d a-z]+ · a sample of [\d,]+\n", text)
    assert "1 recommendation" in run(daemon, "status")
    on_terminal = narrow(daemon, "recommendations", "--no-color", columns=44)
    assert "    bi-performance config set cache.max_size 400\r\n" in on_terminal
    once = narrow(daemon, "monitor", "--once", "--no-color", columns=44)
    assert "● warning" in once and "points more" in once.replace("\r\n", "")
    assert "200 entries → 400 entries" in run(daemon, *command[1].split())


HOSTILE = "\x1b]0;owned\x07\x9b31m\x7f\r"


def test_a_process_cannot_command_the_terminal_by_its_name(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.send("attach", instance=os.urandom(16), pid=1, name="evil" + HOSTILE)
        client.socket.recv(1 << 16)
        for words in (["metrics"], ["monitor", "--once"], ["metrics", "--json-output"]):
            text = narrow(daemon, *words, "--no-color", columns=120)
            assert "evil" in text
            shown = re.sub(r"\x1b\[[\d;]*m", "", text)
            assert not set(shown) & set("\x1b\x07\x9b\x7f"), shown


@pytest.mark.parametrize(
    "words",
    [
        ["metrics"],
        ["metrics", "--history", "seconds"],
        ["profiles"],
        ["recommendations"],
        ["optimize", "memory_focused"],
        ["config", "set", "cache.default_ttl", "60"],
        ["monitor", "--once"],
    ],
)
def test_everything_goes_through_ascii_without_color_and_as_json(
    daemon: DaemonProcess, words: list[str]
) -> None:
    text = run(daemon, *words, PYTHONIOENCODING="ascii")
    assert text.isascii() and "\\u" not in text and "\\x" not in text
    run(daemon, "optimize", "balanced")
    assert "\x1b[3" not in narrow(daemon, *words, NO_COLOR="1")
    run(daemon, "optimize", "balanced")
    assert "\x1b[" not in run(daemon, *words)
    run(daemon, "optimize", "balanced")
    json.loads(run(daemon, *words, "--json-output"))


# ── doctor


def findings(daemon: DaemonProcess, *, status: int = 0, **env: Any) -> dict[str, Any]:
    """By check; of several findings of a check the one that is worst."""
    done = subprocess.run(
        [*PROGRAM, "--socket", str(daemon.socket), "doctor", "--json-output"],
        env={**os.environ, **env.pop("env", {})},
        capture_output=True,
        text=True,
        timeout=60,
        **env,
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    order = ("ok", "warning", "failed")
    found: dict[str, Any] = {}
    for each in json.loads(done.stdout)["findings"]:
        assert each["state"] in order
        before = found.get(each["check"])
        if before is None or order.index(each["state"]) > order.index(before["state"]):
            found[each["check"]] = each
    return found


def test_doctor_has_nothing_to_say_of_a_daemon_that_is_well(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    found = findings(daemon, cwd=tmp_path)
    for check in (
        *("socket", "daemon", "version", "cache", "monitor", "optimizer", "HTTP", "log", "state"),
        *("config", "store", "python", "libraries", "import"),
    ):
        assert found[check]["state"] == "ok" and not found[check]["remedy"], found[check]
    assert "mode 0660" in found["socket"]["detail"]
    assert "performance.toml" in found["config"]["detail"]


def test_doctor_names_who_holds_the_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with DaemonProcess(tmp_path, http=f"127.0.0.1:{port}") as daemon:
            found = findings(daemon)["HTTP"]
    assert found["state"] == "warning"
    assert str(os.getpid()) in found["detail"] and "http.listen" in found["remedy"]


def test_doctor_does_not_miss_what_was_switched_off(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, http="off", env={"BI_PERFORMANCE_MODE": "observe"}) as daemon:
        found = findings(daemon, env={"BI_PERFORMANCE_MODE": "off"})
        assert found["HTTP"]["state"] == "ok" and "off" in found["HTTP"]["detail"]
        assert found["mode"]["state"] == "warning" and "observe" in found["mode"]["detail"]
        text = run(daemon, "doctor", BI_PERFORMANCE_MODE="off")
    assert "→ unset BI_PERFORMANCE_MODE" in text and "to look at" in text


def test_doctor_looks_at_the_configuration_files_of_this_folder(
    daemon: DaemonProcess, tmp_path: Path
) -> None:
    (tmp_path / "config").mkdir()
    toml, yaml = (tmp_path / "config" / f"performance.{kind}" for kind in ("toml", "yaml"))
    toml.write_text("[performance.cache]\nmax_size = 5\n")
    assert findings(daemon, cwd=tmp_path)["config"]["state"] == "ok"
    toml.write_text("[performance.cache\n")
    broken = findings(daemon, status=1, cwd=tmp_path)["config"]
    assert "performance.toml" in broken["detail"] and broken["remedy"]
    toml.write_text("")
    yaml.write_text("performance: {}\n")
    both = findings(daemon, status=1, cwd=tmp_path)["config"]
    assert "both" in both["detail"] and "keep one" in both["remedy"]


def test_doctor_tells_a_library_that_is_missing(daemon: DaemonProcess, tmp_path: Path) -> None:
    """As in an installation without the extra: what tells of the packages hides one."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib import metadata\n"
        "real = metadata.version\n"
        "def version(name):\n"
        "    if name == 'psutil':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
    )
    found = findings(daemon, env={"PYTHONPATH": str(tmp_path)})["psutil"]
    assert found["state"] == "warning"
    assert "pip install 'bi-performance[performance]'" in found["remedy"]


@pytest.mark.root
@pytest.mark.parametrize(("group", "said"), [(65533, "join the group"), (0, "alone")])
def test_doctor_says_which_group_opens_a_closed_socket(group: int, said: str) -> None:
    """A user who is not let in, as its group has it; nobody is sent into root's group."""
    # Python itself may lie where that user cannot look: it is left when all is loaded.
    code = (
        "import os, sys, json, bi_performance_ctl.local.doctor as doctor, yaml\n"
        "from bi_performance_ctl.main import main\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    # Not below the folder of all tests: another run of them closes that to others.
    with TemporaryDirectory(prefix="closed-", dir="/tmp") as name:
        above = Path(name)
        above.chmod(0o755)
        closed = above / "run"
        closed.mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(closed / "control.sock"))
            listener.listen()
            os.chown(closed, 0, group)
            closed.chmod(0o750)
            command = [sys.executable, "-c", code, "--socket", f"{closed}/control.sock", "doctor"]
            done = subprocess.run(
                [*command, "--json-output"], capture_output=True, text=True, timeout=60, cwd="/"
            )
    assert done.returncode == 1, (done.stdout, done.stderr)
    found = json.loads(done.stdout)["findings"][0]
    assert found["check"] == "socket" and "permission denied" in found["detail"]
    assert said in found["remedy"] and str(closed) in found["remedy"]
