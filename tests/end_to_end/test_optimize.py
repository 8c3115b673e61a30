"""Profiles and single settings on a running daemon: applied, kept, restored, never half."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bi_performance.optimizer import PerformanceOptimizer
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until

PROFILES = ("balanced", "memory_focused", "performance_focused")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path) as running:
        yield running


def in_force(daemon: DaemonProcess) -> dict[str, Any]:
    """What the daemon goes by: the profile, and the settings that can change."""
    with RawClient(daemon.socket) as client:
        rows = client.result("server.config")["settings"]
        found = {row["key"]: row["value"] for row in rows}
        stats = client.result("cache.stats")
        assert stats["max_entries"] == found["cache.max_size"], "the store has what is said"
        assert stats["max_bytes"] == found["cache.max_bytes"]
        keys = ("cache.default_ttl", "cache.max_size", "cache.max_bytes", "cache.compression")
        picked = {key: found[key] for key in (*keys, "monitoring.metrics_interval")}
        return {"profile": client.result("status")["profile"], **picked}


def test_what_a_profile_changes_is_really_changed(daemon: DaemonProcess) -> None:
    optimizer = PerformanceOptimizer(str(daemon.socket))
    cache = optimizer.sync.cache
    assert cache.set("old", 1)
    with RawClient(daemon.socket) as client:
        result = client.result("optimize", profile="performance_focused")
    assert result["profile_applied"] == "performance_focused"
    changed = {each["setting"]: each for each in result["changes"]}
    assert changed["cache.default_ttl"]["before"] == 3600
    assert changed["cache.default_ttl"]["after"] == 14400
    assert changed["cache.default_ttl"]["unit"] == "s"
    assert cache.set("new", 1)
    old, new = cache.get_entry("old").ttl, cache.get_entry("new").ttl
    assert old is not None and old <= 3600, "a stored entry keeps its time"
    assert new is not None and 3600 < new <= 14400
    optimizer.close()


def test_entries_stay_when_the_store_moves_to_other_limits(daemon: DaemonProcess) -> None:
    optimizer = PerformanceOptimizer(str(daemon.socket))
    cache = optimizer.sync.cache
    keys = [f"page:{n}" for n in range(3000)]
    assert cache.set_many(dict.fromkeys(keys, "x" * 100)) == 3000
    with RawClient(daemon.socket) as client:
        client.result("optimize", profile="memory_focused")
        assert client.result("cache.stats")["max_entries"] == 5000
        assert client.result("cache.stats")["entries"] == 3000
        assert len(cache.get_many(keys)) == 3000
        client.result("server.adjust", setting="cache.max_size", value=1000)
        assert client.result("cache.stats")["entries"] == 1000
        assert len(cache.get_many(keys)) == 1000
    optimizer.close()


def test_a_choice_outlives_restarts_and_balanced_restores(daemon: DaemonProcess) -> None:
    configured = in_force(daemon)
    with RawClient(daemon.socket) as client:
        client.result("optimize", profile="memory_focused")
        client.result("server.adjust", setting="cache.default_ttl", value=50)
    chosen = in_force(daemon)
    assert chosen != configured
    daemon.restart()
    assert in_force(daemon) == chosen
    assert daemon.stop() == 0
    daemon.start()
    assert in_force(daemon) == chosen
    with RawClient(daemon.socket) as client:
        rows = {row["key"]: row for row in client.result("server.config")["settings"]}
        assert rows["cache.max_size"]["origin"] == "profile:memory_focused"
        assert rows["cache.max_size"]["beneath"] == [10000, "default"]
        assert rows["cache.default_ttl"]["origin"] == "config set"
        client.result("optimize", profile="balanced")
    assert in_force(daemon) == configured


def test_an_unknown_profile_is_told_which_there_are(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        error = client.error("optimize", profile="fast")
    assert error["code"] == "not_found" and error["field"] == "profile"
    assert all(name in error["hint"] for name in PROFILES)
    answer = httpx.post(f"{daemon.http_url}/performance/optimize/fast", trust_env=False)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert all(name in answer.json()["hint"] for name in PROFILES)
    optimizer = PerformanceOptimizer(str(daemon.socket))
    with pytest.raises(ValueError, match="balanced, memory_focused, performance_focused"):
        optimizer.sync.apply_optimizations("fast")
    with pytest.raises(TypeError, match="str"):
        optimizer.sync.apply_optimizations(3)  # type: ignore[arg-type]  # the mistake that is meant
    optimizer.close()


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"setting": "cache.default_tll", "value": 1}, "setting"),
        ({"setting": "socket.path", "value": "/tmp/x"}, "setting"),
        ({"setting": "cache.max_size", "value": -1}, "value"),
        ({"setting": "cache.max_size", "value": {"a": 1}}, "value"),
        ({"setting": "cache.default_ttl", "value": "soon"}, "value"),
        ({"setting": "cache.default_ttl"}, "value"),
        ({"setting": "x" * 101, "value": 1}, "setting"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_field(
    daemon: DaemonProcess, args: dict[str, Any], field: str
) -> None:
    before = in_force(daemon)
    with RawClient(daemon.socket) as client:
        error = client.error("server.adjust", args)
    assert error["code"] == "invalid_argument" and error["field"] == field, error
    assert in_force(daemon) == before


def test_a_choice_that_cannot_be_kept_changes_nothing(daemon: DaemonProcess) -> None:
    before = in_force(daemon)
    shutil.rmtree(daemon.folder / "state")
    with RawClient(daemon.socket) as client:
        error = client.error("optimize", profile="memory_focused")
        assert error["code"] == "unavailable" and "nothing was changed" in error["message"]
    assert in_force(daemon) == before


def test_a_kept_choice_that_is_damaged_is_told_and_mended_by_a_new_one(
    daemon: DaemonProcess,
) -> None:
    daemon.stop()
    (daemon.folder / "state" / "profile.json").write_bytes(b"\x00not json")
    daemon.start()
    with RawClient(daemon.socket) as client:
        status = client.result("status")
        assert status["status"] == "degraded" and status["profile"] == "balanced"
        assert "profile.json" in status["components"]["optimizer"]["reason"]
        client.result("optimize", profile="balanced")
        assert client.result("status")["status"] == "ok"
    daemon.restart()
    with RawClient(daemon.socket) as client:
        assert client.result("status")["status"] == "ok"


def test_a_bad_profile_of_one_s_own_keeps_the_daemon_from_starting(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "night.toml").write_text("summary = 4\n")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "performance.toml").write_text(
        f'[performance.advice]\nprofiles_dir = "{tmp_path / "profiles"}"\n'
    )
    for options in ([], ["--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "bi_performanced.main", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "night.toml: summary must be" in done.stderr and "Traceback" not in done.stderr


def test_a_profile_of_one_s_own_is_applied(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "night.toml").write_text(
        'summary = "at night"\n[settings."cache.default_ttl"]\nvalue = 43200\nunit = "s"\n'
        'reason = "pages do not change at night"\n'
    )
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "performance.toml").write_text(
        f'[performance.advice]\nprofiles_dir = "{tmp_path / "profiles"}"\n'
    )
    with DaemonProcess(tmp_path) as daemon:
        url = f"{daemon.http_url}/performance/optimize/night"
        answer = httpx.post(url, trust_env=False).json()
        assert answer["changes"][0]["reason"] == "pages do not change at night"
        assert in_force(daemon)["cache.default_ttl"] == 43200


# ── killed at each write


CALLS = ("openat", "write", "fsync", "rename", "close")


def test_a_daemon_killed_at_any_write_of_a_change_has_the_old_choice_or_the_new(
    tmp_path: Path,
) -> None:
    with DaemonProcess(tmp_path) as daemon:
        states = {}
        with RawClient(daemon.socket) as client:
            for profile in PROFILES:
                client.result("optimize", profile=profile)
                states[profile] = in_force(daemon)
        kills = 0
        for call in CALLS:
            for which in (1, 2):
                before = in_force(daemon)["profile"]
                after = "memory_focused" if before != "memory_focused" else "performance_focused"
                killed = change_and_kill(daemon, after, call, which)
                kills += killed
                if killed:
                    daemon.restart()
                now = in_force(daemon)
                assert now["profile"] in (before, after)
                assert now == states[now["profile"]], "all of one choice, never a mix"
                assert killed or now["profile"] == after
        assert kills >= 6, "the calls of a change were met"


def change_and_kill(daemon: DaemonProcess, profile: str, call: str, which: int) -> bool:
    """Apply a profile while strace kills the daemon at a call on the choice's file."""
    state = daemon.folder / "state"
    paths = [str(state / name) for name in ("profile.json.new", "profile.json")] + [str(state)]
    tracer = subprocess.Popen(
        [
            *("strace", "-f", "-qq", "-p", str(daemon.pid), "-o", "/dev/null"),
            *(word for path in paths for word in ("-P", path)),
            *("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={which}"),
        ]
    )
    try:
        wait_until(lambda: tracer_of(daemon.pid) == tracer.pid, what="the tracer")
        with RawClient(daemon.socket) as client:
            client.send("optimize", profile=profile)
            done = client.receive() is not None
            if done:
                tracer.send_signal(signal.SIGINT)
                tracer.wait(10)
    finally:
        # Until it is gone its tracees' end is told to nobody else.
        tracer.kill()
        tracer.wait()
    return not done


def tracer_of(pid: int) -> int:
    """Who traces a process's every thread, or 0."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        found.add(int(next(line for line in lines if line.startswith("TracerPid")).split()[1]))
    return found.pop() if len(found) == 1 else 0


def test_status_says_what_was_chosen(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.result("server.adjust", setting="cache.max_size", value="5000")
        part = client.result("status")["components"]["optimizer"]
    assert part["profile"] == "balanced" and part["adjusted"] == ["cache.max_size"]
    found = json.loads((daemon.folder / "state" / "profile.json").read_text())
    assert found == {"profile": "balanced", "adjustments": {"cache.max_size": "5000"}}
