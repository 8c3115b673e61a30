"""The user's own lines, as they were written: REST, control program, Python, configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import DaemonProcess

CURL = """\
# Get system status

curl http://localhost:8000/performance/status

# View metrics as JSON

curl http://localhost:8000/performance/metrics

# Apply optimization profile

curl -X POST http://localhost:8000/performance/optimize/balanced

# Clear specific cache pattern

curl -X POST "http://localhost:8000/performance/cache/clear?pattern=dashboard"

# Get recommendations

curl http://localhost:8000/performance/recommendations
"""

PROGRAM = """\
# Check system status

bi-performance status

# View detailed metrics

bi-performance metrics --json-output

# Apply optimization profile

bi-performance optimize balanced

# Clear cache

bi-performance clear-cache --pattern analytics

# Run performance benchmark

bi-performance benchmark --iterations 100

# Get recommendations

bi-performance recommendations
"""

TROUBLE = """\
bi-performance optimize memory_focused
bi-performance clear-cache
bi-performance status
bi-performance recommendations
bi-performance optimize performance_focused
"""

PYTHON = """\
from business_intel_scraper.backend.performance.optimizer import get_performance_optimizer

# Get optimizer instance

optimizer = get_performance_optimizer()

# Run performance analysis

analysis = await optimizer.run_performance_analysis()
print(f"Cache hit rate: {analysis['cache_performance']['hit_rate']:.1%}")

# Apply optimization

result = await optimizer.apply_optimizations('performance_focused')
print(f"Applied {result['profile_applied']} profile")

# Use performance cache

await optimizer.cache.set("key", "value", ttl=3600)
cached_value = await optimizer.cache.get("key")
"""

ENVIRONMENT = """\
# Performance settings

PERFORMANCE_CACHE_TTL=3600
PERFORMANCE_CACHE_MAX_SIZE=10000
PERFORMANCE_MONITORING_ENABLED=true
"""

PORT = "8000"


class Machine:
    """A shell in which the lines mean what they say: the daemon is on port 8000 of localhost."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon

    def run(self, script: str) -> str:
        """What a script prints. As root the daemon has the port itself, in its own network."""
        port = self.daemon.http_url.rpartition(":")[2]
        enter = ["nsenter", "-t", str(self.daemon.pid), "-n"] if port == PORT else []
        done = subprocess.run(
            [*enter, "bash", "-euo", "pipefail", "-c", script.replace(PORT, port)],
            env={
                **os.environ,
                "BI_PERFORMANCE_SOCKET": str(self.daemon.socket),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "no_proxy": "*",
            },
            cwd=self.daemon.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def in_a_network_of_its_own() -> tuple[str, tuple[str, ...], str]:
    """Python, program and address for a daemon on the port that the lines name.

    As an ordinary user it gets a free port, and the lines name that instead.
    """
    trial = ["unshare", "-n", "ip", "link", "set", "lo", "up"]
    if not shutil.which("ip") or subprocess.run(trial, capture_output=True).returncode != 0:
        return sys.executable, ("-m", "bi_performanced.main"), "127.0.0.1:0"
    script = 'ip link set lo up && exec "$@"'
    words = ("-n", "sh", "-c", script, "sh", sys.executable, "-m", "bi_performanced.main")
    return "unshare", words, f"127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    python, program, http = in_a_network_of_its_own()
    folder = tmp_path_factory.mktemp("seed")
    with DaemonProcess(folder, http=http, python=python, program=program) as daemon:
        yield Machine(daemon)


def test_the_rest_lines(machine: Machine) -> None:
    documents = [json.loads(line) for line in machine.run(CURL).splitlines()]
    status, metrics, optimized, cleared, recommendations = documents
    assert status["status"] == "ok" and status["profile"] == "balanced"
    assert set(status["components"]) >= {"cache", "monitor"}
    assert metrics["cache"]["hit_rate"] == 0.0 and metrics["system"]
    assert optimized["profile_applied"] == "balanced"
    assert set(optimized) >= {"profile_applied", "previous_profile", "changes"}
    assert set(cleared) >= {"cleared"} and cleared["cleared"] == 0
    assert set(recommendations) >= {"recommendations"}


def test_the_program_s_lines(machine: Machine) -> None:
    text = machine.run(PROGRAM)
    assert "ok" in text and "cleared 0 entries" in text
    document, _ = json.JSONDecoder().raw_decode(text[text.index("{\n") :])
    assert document["cache"]["entries"] == 0


def test_the_monitor_s_line_goes_on_until_it_is_ended(machine: Machine) -> None:
    """`bi-performance monitor`: continuous, here for as long as it takes to see two reports."""
    text = machine.run("(bi-performance monitor || true) | head -n 2")
    assert len(text.splitlines()) == 2


def test_the_troubleshooting_lines(machine: Machine) -> None:
    assert "performance_focused" in machine.run(TROUBLE)
    machine.run("bi-performance optimize balanced")


def test_the_python_lines(machine: Machine) -> None:
    body = "".join(f"    {line}" for line in PYTHON.splitlines(keepends=True))
    script = (
        f"import asyncio\nasync def main():\n{body}\n    print(cached_value)\nasyncio.run(main())\n"
    )
    (machine.daemon.folder / "scraper.py").write_text(script)
    said = machine.run("python scraper.py")
    assert re.fullmatch(
        r"Cache hit rate: [\d.]+%\nApplied performance_focused profile\nvalue\n", said
    )


def test_the_environment_s_lines(tmp_path: Path) -> None:
    lines = [line for line in ENVIRONMENT.splitlines() if "=" in line]
    env = dict(line.split("=", 1) for line in lines)
    done = subprocess.run(
        [sys.executable, "-m", "bi_performanced.main", "--check"],
        env={**os.environ, **env},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in env:
        assert f"env {name}" in done.stdout


def test_the_log_s_lines(machine: Machine) -> None:
    """`tail -f logs/performance.log`, and the standard logger of the scraper's side."""
    events = machine.daemon.log_events()
    assert all(event["logger"] == "performance" for event in events)
    machine.run(
        "python -c \"import logging; logging.getLogger('performance').setLevel(logging.INFO)\""
    )
