"""The main job: the demo crawls a real site in every arm, survives a killed daemon, cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bi_performance_ctl.local.demo.crawl import fetch
from bi_performance_ctl.local.demo.site import Site
from support.daemon import wait_until

_CTL = [sys.executable, "-m", "bi_performance_ctl.main"]


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*_CTL, "demo", *options],
        env={**os.environ, "TMPDIR": str(folder), "BI_PERFORMANCE_MODE": "off"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_in(folder: Path) -> list[str]:
    """Command lines of processes whose working directory or arguments lie in the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                where = os.readlink(entry / "cwd")  # noqa: PTH115 (text, may be gone)
            except OSError:
                continue
            if str(folder) in line or where.startswith(str(folder)):
                found.append(line)
    return found


def test_the_demo_tells_what_the_sidecar_saves_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = start(tmp_path, "--pages", "40", "--processes", "2", "--json-output")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    result: dict[str, Any] = json.loads(out)
    assert result["site"]["pages"] == 40
    assert [each["overlap_percent"] for each in result["overlaps"]] == [0, 20, 80]
    for each in result["overlaps"]:
        arms = {row["arm"]: row for row in each["arms"]}
        assert set(arms) == {"none", "dict", "diskcache", "sidecar"}
        assert all(row["facts"] > 0 and row["errors"] == 0 for row in arms.values())
        assert all(row["visits"] == row["hits"] + row["fetched"] == 40 for row in arms.values())
        assert arms["none"]["fetched"] == 40
        # Every repeat is avoided, save those that two processes began at once.
        assert arms["sidecar"]["hits"] >= arms["sidecar"]["repeated"] * 0.8
    assert result["outage"]["errors"] == 0
    assert result["outage"]["visits"] == 40
    # A scraper returns within a tenth of a second of the restart; a page or two may be before.
    assert 0 < result["recrawl"]["hits"] <= result["outage"]["entries_after"]
    assert result["recrawl"]["hits"] >= result["outage"]["entries_after"] * 0.8
    assert result["status"]["status"] == "ok"
    assert "killed" in said and "started again" in said
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_until(lambda: processes_in(tmp_path), what="the site")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, said
    wait_until(lambda: not processes_in(tmp_path), what="the end of all processes")
    assert list(tmp_path.iterdir()) == []


def test_the_daemon_is_left_up_when_asked(tmp_path: Path) -> None:
    process = start(
        tmp_path, "--pages", "20", "--processes", "2", "--keep-running", "--json-output"
    )
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    result = json.loads(out)
    try:
        status = subprocess.run(
            [*_CTL, "--socket", result["socket"], "status", "--json-output"],
            capture_output=True,
            check=True,
        )
        assert json.loads(status.stdout)["status"] == "ok"
        assert f"kill {result['pid']}" in said
    finally:
        os.kill(result["pid"], signal.SIGTERM)
    deadline = time.monotonic() + 15
    while processes_in(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_site_is_started_again_where_it_was_when_it_has_ended(tmp_path: Path) -> None:
    """Python's documentation server imports its own modules anew, and may not survive that."""
    with closing(Site(tmp_path / "site")) as site:
        where = urlsplit(site.url)
        before = fetch(where.hostname or "", where.port or 0, "/json.html")
        site.process.kill()
        after = fetch(where.hostname or "", where.port or 0, "/json.html")
        # Further down a page shows addresses of objects.
        assert b"json" in before and after[:1000] == before[:1000]
