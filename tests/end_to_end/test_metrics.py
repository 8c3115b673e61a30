"""Metrics of a real daemon with real attached processes, in every format."""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from bi_performance.client import SyncCache
from bi_performance.link import Link
from bi_performance.reader import StoreReader
from bi_performance_wire import layout as L
from bi_performance_wire.types import Metrics
from bi_performanced.monitor.figures import HOST, OWN_PAGE, PROCESS, SERIES
from support.clients import RawClient
from support.daemon import QUICK, DaemonProcess, wait_until

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
SCRAPED = (
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1"
)
METRICS = "/performance/metrics"
PR_SET_DUMPABLE = 4

SCRAPER = """
import sys, time
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.own import EVERY_NS
import bi_performance.own as own
# What is written every ten seconds, every tenth of one here.
own.EVERY_NS = own.PSS_EVERY_NS = 100_000_000
own.PSS_COST = 0
ballast = bytearray(b"x") * int(sys.argv[2])
cache = PerformanceOptimizer(sys.argv[1]).sync.cache
assert cache.set("key", "value")
for _ in range(int(sys.argv[3])):
    assert cache.get("key") == "value"
print("attached", flush=True)
while True:
    # Few enough not to take the processor, many enough to be sampled.
    for _ in range(300):
        cache.get("absent")
        cache.set("key", "value")
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon"), program=QUICK) as running:
        yield running


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own may not be."""
    folder = Path(tempfile.mkdtemp(prefix="bi-performance-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def scraper(
    daemon: DaemonProcess, *, ballast: int = 0, hits: int = 0
) -> Iterator[subprocess.Popen[str]]:
    """A process that is attached and goes on using the cache."""
    command = [sys.executable, "-c", SCRAPER, str(daemon.socket), str(ballast), str(hits)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "attached\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(daemon: DaemonProcess, query: str = "", **headers: str) -> httpx.Response:
    return httpx.get(f"{daemon.http_url}{METRICS}{query}", headers=headers, trust_env=False)


def metrics(daemon: DaemonProcess, query: str = "") -> dict[str, Any]:
    answer = ask(daemon, query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = json.loads(answer.text, parse_constant=_no_constant)
    return found


def _no_constant(text: str) -> float:
    raise AssertionError(f"{text} is not JSON")


def settled(daemon: DaemonProcess) -> dict[str, Any]:
    """The metrics once there was a second sample of everything."""

    def look() -> dict[str, Any] | None:
        found = metrics(daemon)
        parts = [found["system"], found["daemon"], *found["processes"]]
        waits = ("needs two samples", "no sample")
        reasons = [reason for part in parts for reason in part["unknown"].values()]
        return None if any(word in each for each in reasons for word in waits) else found

    result: dict[str, Any] = wait_until(look, within=30, what="a second sample")
    return result


def check(part: Mapping[str, Any], names: set[str]) -> None:
    """Each figure is a number, or null and its reason is told."""
    assert names <= set(part)
    for name in names:
        value = part[name]
        if value is None:
            assert part["unknown"][name], name
        else:
            assert isinstance(value, int | float) and math.isfinite(value) and value >= 0, name
            assert name not in part["unknown"]


HOST_NAMES = {figure.name for figure in HOST}
PROCESS_NAMES = {figure.name for figure in PROCESS}


# ── figures


def test_every_figure_is_a_number_or_null_with_a_reason(daemon: DaemonProcess) -> None:
    with scraper(daemon):
        first = metrics(daemon)
        found = settled(daemon)
        for each in (first, found):
            check(each["system"], HOST_NAMES)
            check(each["daemon"], PROCESS_NAMES)
            for process in each["processes"]:
                check(process, PROCESS_NAMES)
    assert set(found) == set(Metrics.__struct_fields__)
    assert found["system"]["memory_total_bytes"] > 1 << 20
    assert found["daemon"]["rss_bytes"] > 1 << 20
    assert abs(found["timestamp"] - time.time()) < 60
    assert found["history"] is None


def test_a_process_s_memory_is_what_psutil_says(daemon: DaemonProcess) -> None:
    psutil = pytest.importorskip("psutil")
    size = 64 << 20
    with scraper(daemon, ballast=size) as process:
        found = next(each for each in settled(daemon)["processes"] if each["pid"] == process.pid)
        seen = psutil.Process(process.pid)
        assert found["rss_bytes"] == pytest.approx(seen.memory_info().rss, rel=0.1)
        assert found["pss_bytes"] == pytest.approx(seen.memory_full_info().pss, rel=0.2)
        assert found["rss_bytes"] > size and found["pss_bytes"] > size
        assert found["own_pid"] == process.pid and found["sources"] == {}

        # The process opens its own /proc files for moments: the two looks may differ, not for long.
        def agree() -> bool:
            told = next(each for each in metrics(daemon)["processes"] if each["pid"] == process.pid)
            return (told["threads"], told["open_files"]) == (seen.num_threads(), seen.num_fds())

        wait_until(agree, what="the same threads and open files")


def test_hits_are_told_by_process_and_a_process_that_left_is_told_no_more(
    daemon: DaemonProcess,
) -> None:
    before = metrics(daemon)["cache"]["hits"]
    with scraper(daemon, hits=700) as one, scraper(daemon, hits=300) as other:
        found = metrics(daemon)
        hits = {each["pid"]: each["hits"] for each in found["processes"]}
        assert (hits[one.pid], hits[other.pid]) == (700, 300)
        assert len({each["instance"] for each in found["processes"]}) == len(hits)
        assert all(each["trusted"] for each in found["processes"])
        assert found["cache"]["hits"] == before + 1000
    wait_until(lambda: not metrics(daemon)["processes"], what="no process")
    assert metrics(daemon)["cache"]["hits"] == before + 1000
    families = parsed(ask(daemon, "?format=prometheus"))
    assert families["bi_performance_process_cache_hits"].samples == []


@contextmanager
def forked_scraper(daemon: DaemonProcess, uid: int, gid: int) -> Iterator[int]:
    """The same of another user, who may not be able to run this Python: a fork of this process."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            # As after an exec: without, its own /proc files are root's.
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)
            os.dup2(theirs, 1)
            sys.stdout = os.fdopen(1, "w")
            sys.argv = ["-c", str(daemon.socket), str(40 << 20), "0"]
            exec(SCRAPER, {})  # noqa: S102 (the scraper above)
        finally:
            os._exit(1)
    os.close(theirs)
    try:
        with os.fdopen(ours) as said:
            assert said.readline() == "attached\n"
            yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def tells_all(daemon: DaemonProcess) -> dict[str, Any]:
    """The figures of the one process, once it told all that it can."""

    def told() -> dict[str, Any] | None:
        (found,) = settled(daemon)["processes"]
        return found if found["pss_bytes"] is not None else None

    result: dict[str, Any] = wait_until(told, within=30, what="what the process tells of itself")
    return result


@pytest.mark.root
def test_another_user_s_process_tells_itself_what_is_hidden(open_folder: Path) -> None:
    uid, gid = 12002, 12345
    # Root without its powers is a user like any other.
    bare = ("--bounding-set=-all", sys.executable, *QUICK)
    with DaemonProcess(open_folder, python="setpriv", program=bare) as daemon:
        os.chown(daemon.runtime, 0, gid)
        os.chown(daemon.socket, 0, gid)
        with forked_scraper(daemon, uid, gid) as pid:
            found = tells_all(daemon)
    check(found, PROCESS_NAMES)
    assert (found["pid"], found["uid"]) == (pid, uid)
    assert found["rss_bytes"] > 40 << 20 and found["threads"] >= 1
    shown = {"rss_bytes", "threads", "cpu_percent", "cpu_seconds", "swap_bytes"}
    assert found["sources"].keys().isdisjoint(shown), "the kernel shows these to everybody"
    assert 40 << 20 < found["pss_bytes"] <= found["rss_bytes"] + (1 << 20)
    hidden = {"pss_bytes", "read_bytes", "write_bytes", "read_bytes_per_second"}
    assert {name: found["sources"][name] for name in hidden} == dict.fromkeys(hidden, OWN_PAGE)


@pytest.mark.root
def test_a_process_in_another_pid_namespace_tells_all_of_itself(tmp_path: Path) -> None:
    apart = ("--pid", "--mount-proc", "--fork", "--kill-child", sys.executable)
    program = (*apart, *QUICK)
    with (
        DaemonProcess(tmp_path, python="unshare", program=program) as daemon,
        scraper(daemon, ballast=40 << 20) as process,
    ):
        found = tells_all(daemon)
        own = metrics(daemon)["daemon"]
    check(found, PROCESS_NAMES)
    assert (found["pid"], found["own_pid"]) == (None, process.pid)
    assert set(found["sources"]) == PROCESS_NAMES, found["unknown"]
    assert 40 << 20 < found["pss_bytes"] <= found["rss_bytes"] + (1 << 20)
    assert found["cpu_seconds"] > 0 and found["open_files"] > 3
    assert own["rss_bytes"] > 1 << 20


def test_a_process_that_only_hits_writes_its_figures_now_and_then(daemon: DaemonProcess) -> None:
    link = Link(str(daemon.socket))
    cache = SyncCache(link)
    assert cache.set("key", "value") and cache.get("key") == "value"
    reader = link.reader
    assert isinstance(reader, StoreReader)
    written = reader.page[L.P_OWN_AT]
    assert written, "from the start"
    for _ in range(2 * L.SAMPLE_EVERY):
        cache.get("key")
    assert reader.page[L.P_OWN_AT] == written, "not again so soon"
    reader._own.due = 0
    for _ in range(2 * L.SAMPLE_EVERY):
        cache.get("key")
    assert reader.page[L.P_OWN_AT] > written
    link.close()


def test_a_client_without_a_page_of_its_own_has_reasons(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as client:
        client.send("attach", instance=b"r" * 16, name="raw", pid=0)
        found = wait_until(
            lambda: [each for each in settled(daemon)["processes"] if each["name"] == "raw"],
            what="the client",
        )[0]
        check(found, PROCESS_NAMES)
        assert (found["hits"], found["own_pid"]) == (0, None)


# ── switches and the past


def with_monitoring(folder: Path, section: str) -> DaemonProcess:
    file = folder / "performance.toml"
    file.write_text(f"[performance.monitoring]\n{section}\n")
    return DaemonProcess(folder, "--config", str(file))


@pytest.mark.parametrize("way", ["file", "environment"])
def test_disabled_nothing_is_measured_and_that_is_the_reason(tmp_path: Path, way: str) -> None:
    made = (
        with_monitoring(tmp_path, "enabled = false")
        if way == "file"
        else DaemonProcess(tmp_path, env={"PERFORMANCE_MONITORING_ENABLED": "false"})
    )
    with made as daemon, scraper(daemon, hits=5):
        found = metrics(daemon, "?history=seconds")
        for part, names in ((found["system"], HOST_NAMES), (found["daemon"], PROCESS_NAMES)):
            check(part, names)
            assert {part[name] for name in names} == {None}
            assert set(part["unknown"].values()) == {"monitoring.enabled is false"}
        (process,) = found["processes"]
        check(process, PROCESS_NAMES)
        assert process["rss_bytes"] is None and process["hits"] == 5, "counters go on"
        assert found["history"]["timestamps"] == []
        status = httpx.get(f"{daemon.http_url}/performance/status").json()
        assert status["status"] == "ok"
        assert status["components"]["monitor"]["status"] == "off"
        families = parsed(ask(daemon, "?format=prometheus"))
        assert families["bi_performance_cache_hits"].samples[0].value == 5
        assert families["bi_performance_leases_granted"].samples[0].value == 0
        assert families["bi_performance_leases_waiting"].samples[0].value == 0
        assert not [name for name in families if "_host_" in name]
        promtool(ask(daemon, "?format=prometheus").text)


def test_without_system_monitoring_the_host_alone_is_left_out(tmp_path: Path) -> None:
    with with_monitoring(tmp_path, "system_monitoring = false") as daemon:
        found = wait_until(
            lambda: (m := metrics(daemon))["daemon"]["rss_bytes"] and m, what="a sample"
        )
        assert set(found["system"]["unknown"]) == HOST_NAMES
        assert set(found["system"]["unknown"].values()) == {"monitoring.system_monitoring is false"}


def test_the_past_is_kept_over_a_restart(tmp_path: Path) -> None:
    def points(daemon: DaemonProcess) -> list[float]:
        past = metrics(daemon, "?history=seconds")["history"]
        assert set(past["series"]) == set(SERIES)
        assert all(len(values) == len(past["timestamps"]) for values in past["series"].values())
        found: list[float] = past["timestamps"]
        return found

    with with_monitoring(tmp_path, "metrics_interval = 1") as daemon:
        wait_until(lambda: len(points(daemon)) >= 2, what="two points")
        minutes = metrics(daemon, "?history=minutes")["history"]
        assert minutes["interval_seconds"] == 1.0 and minutes["timestamps"]
        assert daemon.stop() == 0
        written = points_of(tmp_path / "state" / "history")
        daemon.start()
        wait_until(lambda: len(points(daemon)) > written, what="a point more")
        again = points(daemon)
        assert again == sorted(again)
        load = metrics(daemon, "?history=seconds")["history"]["series"]["load_1m"]
        assert None not in load
        # And what a kill leaves is whole too.
        daemon.restart()
        assert len(points(daemon)) >= written


def points_of(path: Path) -> int:
    head = path.read_bytes().split(b"\n", 2)[1]
    count: int = json.loads(head)["counts"][0]
    return count


# ── Prometheus and OpenMetrics


def parsed(answer: httpx.Response) -> dict[str, Any]:
    """The families that a reader of the format finds."""
    if answer.headers["content-type"] == OPENMETRICS:
        # Untyped in the library.
        found = list(openmetrics_families(answer.text))  # type: ignore[no-untyped-call]
    else:
        assert answer.headers["content-type"] == PROMETHEUS
        found = list(text_string_to_metric_families(answer.text))
    assert len({each.name for each in found}) == len(found)
    return {each.name: each for each in found}


def promtool(text: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is in Debian's package prometheus")
    done = subprocess.run(
        [program, "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", "*/*", "application/json"),
        ("", "application/json", "application/json"),
        ("", "text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("", "application/json, text/plain, */*", "application/json"),
        ("", "image/png", "application/json"),
        ("", "text/plain", PROMETHEUS),
        ("", "text/plain;version=0.0.4;q=0.9, application/json;q=0.2", PROMETHEUS),
        ("", "application/openmetrics-text;q=0.1, application/json;q=0.5", "application/json"),
        ("", "Application/OpenMetrics-Text; version=1.0.0", OPENMETRICS),
        ("", "text/plain;q=high, application/json;q=0.1", "application/json"),
        ("", SCRAPED, OPENMETRICS),
        ("?format=prometheus", "application/json", PROMETHEUS),
        ("?format=openmetrics", "*/*", OPENMETRICS),
        ("?format=json", SCRAPED, "application/json"),
    ],
)
def test_the_format_is_what_is_asked_for(
    daemon: DaemonProcess, query: str, accept: str, kind: str
) -> None:
    answer = ask(daemon, query, accept=accept)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["cache-control"] == "no-store"
    head = httpx.head(f"{daemon.http_url}{METRICS}{query}", headers={"accept": accept})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == kind


@pytest.mark.parametrize(("name", "value"), [("format", "xml"), ("history", "hours")])
def test_an_unknown_format_is_a_problem_that_names_the_field_and_those_there_are(
    daemon: DaemonProcess, name: str, value: str
) -> None:
    answer = ask(daemon, f"?{name}={value}")
    assert answer.status_code == 400
    body = answer.json()
    assert body["field"] == name and value in body["detail"]
    assert ("prometheus" if name == "format" else "minutes") in body["hint"]


def test_promtool_has_no_complaint_and_the_parsers_read_what_json_says(
    daemon: DaemonProcess,
) -> None:
    with scraper(daemon, hits=9):
        found = settled(daemon)
        text = ask(daemon, "?format=prometheus")
        promtool(text.text)
        for families in (parsed(text), parsed(ask(daemon, "?format=openmetrics"))):
            assert (
                families["bi_performance_host_cpus"].samples[0].value
                == (found["system"]["cpu_count"])
            )
            usage = families["bi_performance_host_cpu_usage_ratio"]
            assert usage.type == "gauge" and 0 <= usage.samples[0].value <= 1
            hits = families["bi_performance_process_cache_hits"]
            assert hits.type == "counter"
            assert [each.value for each in hits.samples] == [9.0]
            process = found["processes"][0]
            assert hits.samples[0].labels == {
                "process": process["instance"],
                "name": process["name"],
                "pid": str(process["pid"]),
            }
            assert families["bi_performance_host_disk_read_bytes"].type == "counter"
            limits = found["system"]["cgroup_memory_limit_bytes"]
            present = "bi_performance_host_cgroup_memory_limit_bytes" in families
            assert present is (limits is not None), "what is unknown is absent, never 0"
    with RawClient(daemon.socket) as client:
        result = client.result("metrics", format="openmetrics")
    assert result["media_type"] == OPENMETRICS and result["text"].endswith("# EOF\n")


HOSTILE = 'a"b\\c\nbi_performance_cache_hits_total 666\n# HELP x\r\t\x00{}=,\u2028\u202eé\U0001f600'


def test_a_hostile_name_is_escaped_and_costs_nobody_the_scrape(daemon: DaemonProcess) -> None:
    with RawClient(daemon.socket) as one, RawClient(daemon.socket) as other:
        for client in (one, other):
            # The same name and the same instance twice.
            client.send("attach", instance=b"x" * 16, name=HOSTILE, pid=7)
        wait_until(lambda: len(metrics(daemon)["processes"]) == 2, what="both")
        text = ask(daemon, "?format=prometheus")
        promtool(text.text)
        for families in (parsed(text), parsed(ask(daemon, "?format=openmetrics"))):
            assert [each.value for each in families["bi_performance_cache_hits"].samples] != [666]
            samples = families["bi_performance_process_cache_hits"].samples
            assert [each.labels["name"] for each in samples] == [HOSTILE, HOSTILE]
            assert len({each.labels["process"] for each in samples}) == 2
        assert {each["name"] for each in metrics(daemon)["processes"]} == {HOSTILE}


def test_counters_only_grow_over_a_series_of_scrapes(daemon: DaemonProcess) -> None:
    before: dict[tuple[str, ...], float] = {}
    scrapes = 0

    def scrape() -> bool:
        nonlocal scrapes
        families = parsed(ask(daemon, "?format=prometheus"))
        for family in families.values():
            for each in family.samples if family.type == "counter" else ():
                key = (each.name, *map(str, sorted(each.labels.items())))
                assert each.value >= before.get(key, 0), key
                before[key] = each.value
        scrapes += 1
        return scrapes >= 25

    for hits in (50, 20):
        with scraper(daemon, hits=hits), scraper(daemon):
            scrapes = 0
            wait_until(scrape, what="the scrapes")
    assert len([name for name, *_ in before if name == "bi_performance_cache_hits_total"]) == 1


def test_the_description_tells_of_formats_events_and_profiles(daemon: DaemonProcess) -> None:
    document = httpx.get(f"{daemon.http_url}/performance/openapi.json").json()
    paths = document["paths"]
    operation = paths[METRICS]["get"]
    content = operation["responses"]["200"]["content"]
    assert set(content) == {"application/json", PROMETHEUS, OPENMETRICS}
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Metrics"}
    assert content[PROMETHEUS]["schema"] == {"type": "string"}
    assert {each["name"] for each in operation["parameters"]} == {"format", "history"}
    assert "processes" in document["components"]["schemas"]["Metrics"]["properties"]
    (profile,) = paths["/performance/optimize/{profile}"]["post"]["parameters"]
    assert (profile["name"], profile["in"], profile["required"]) == ("profile", "path", True)
    events = paths["/performance/events"]["get"]
    assert set(events["responses"]["200"]["content"]) == {"text/event-stream"}
    assert {each["name"] for each in events["parameters"]} == {"topics", "Last-Event-ID"}
    topics = next(each for each in events["parameters"] if each["name"] == "topics")
    assert "profile" in topics["schema"]["items"]["enum"]
