"""The pod of deploy/ with real namespaces, and what its files say held against the product."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bi_performance_wire.commands import COMMANDS
from bi_performanced.config import Settings, load
from bi_performanced.config.settings import declared
from support.clients import RawClient
from support.daemon import PLAIN, wait_until
from support.pod import ROOT, Pod, arguments, containers, quantity, read_manifest, variables

DEPLOY = ROOT / "deploy"
MANIFEST = read_manifest(DEPLOY / "pod.yaml")
DAEMON = [sys.executable, *PLAIN]
USERS = {"performance": 1_000_000, "products": 2_000_000, "prices": 3_000_000}
SCRAPER = """
import json, os, sys
from pathlib import Path
from bi_performance.optimizer import PerformanceOptimizer
cache = PerformanceOptimizer().sync.cache
print(">", json.dumps("up"), flush=True)
for line in sys.stdin:
    name, *given = json.loads(line)
    if name == "look":
        seen = {
            "pid": os.getpid(), "uid": os.getuid(), "groups": os.getgroups(),
            "socket folder": sorted(os.listdir("/run/bi-performance")),
            "there": [name for name in ("/store", "/state") if os.path.exists(name)],
            "mounts": Path("/proc/self/mounts").read_text(),
        }
    elif name == "take over":
        seen = []
        for attempt in (lambda: os.unlink("/run/bi-performance/control.sock"),
                        lambda: open("/run/bi-performance/own.sock", "w")):
            try:
                attempt()
            except OSError as error:
                seen.append(error.errno)
    elif name == "fill":
        count, size = given
        seen = sum(cache.set(f"page:{n}", os.urandom(size)) for n in range(count))
    else:
        seen = getattr(cache, name)(*given)
    print(">", json.dumps(seen), flush=True)
"""


class Scraper:
    """A container that does what it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self._answer() == "up"

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Beside answers there is what the client says of a daemon that is away.
            if line.startswith("> "):
                return json.loads(line[2:])
        raise AssertionError("it has ended")

    def __call__(self, name: str, *given: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, *given]) + "\n")
        self.process.stdin.flush()
        return self._answer()


@contextmanager
def a_pod() -> Iterator[Pod]:
    # Not pytest's own folder, which other users may not enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with Pod(MANIFEST, Path(folder)) as made:
            yield made


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Pod, str]]:
    """A pod whose sidecar is up, and the sidecar's URL."""
    with a_pod() as pod:
        yield pod, start_daemon(pod)


def start_daemon(pod: Pod) -> str:
    """Start the sidecar and wait as its startup probe does; the URL."""
    process = pod.start("performance", DAEMON, first_uid=USERS["performance"])
    container = containers(MANIFEST)["performance"]
    probe = container["startupProbe"]["httpGet"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    url = f"http://{pod.address}:{ports[probe['port']]}"

    def answers() -> bool:
        assert process.poll() is None, process.communicate()[0]
        try:
            return httpx.get(url + probe["path"], trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers, within=30, what="the startup probe")
    return url


def start_scraper(pod: Pod, name: str, *, alone: bool = False) -> Scraper:
    command = [sys.executable, "-c", SCRAPER]
    return Scraper(pod.start(name, command, first_uid=USERS[name], alone=alone))


@pytest.mark.root
def test_two_scrapers_of_a_pod_read_each_other_s_values_in_place() -> None:
    with a_pod() as pod:
        _share(pod, start_daemon(pod))


def _share(pod: Pod, url: str) -> None:

    def figures() -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{url}/performance/metrics", trust_env=False).json()
        return found

    products = start_scraper(pod, "products")
    # Where the containers share no network, as those of compose.yaml.
    prices = start_scraper(pod, "prices", alone=True)
    for each, uid in ((products, 10002), (prices, 10003)):
        seen = each("look")
        assert (seen["pid"], seen["uid"], seen["groups"]) == (1, uid, [10000])
        assert seen["socket folder"] == ["control.sock", "control.sock.lock"]
        assert seen["there"] == [], "the store's file is nowhere, its descriptor is enough"
        assert "/store" not in seen["mounts"]
        assert each("take over") == [30, 30], "a file system that is read-only for it"
    socket = (pod.folder / "socket" / "control.sock").stat()
    assert socket.st_mode & 0o777 == 0o660
    assert (socket.st_uid, socket.st_gid) == (USERS["performance"] + 10001, 400_000 + 10000)
    assert (pod.folder / "store" / "run" / "store").stat().st_mode & 0o777 == 0o600

    assert products("set", "page", {"of": "products"}) and prices("set", "price", 12)
    assert products("get", "page") and prices("get", "price"), "both are attached"
    os.kill(pod.first(pod.processes["performance"]), signal.SIGSTOP)
    # Nobody answers: what is read now is read in place.
    in_place = [prices("get", "page"), products("get", "price")]
    os.kill(pod.first(pod.processes["performance"]), signal.SIGCONT)
    assert in_place == [{"of": "products"}, 12]
    for _ in range(3):
        assert prices("get", "page") == {"of": "products"}
    for _ in range(5):
        assert products("get", "absent") is None

    def counted() -> list[tuple[int, int]]:
        return sorted((each["hits"], each["misses"]) for each in figures()["processes"])

    wait_until(lambda: counted() == [(2, 5), (5, 0)], what="the counts by process")
    # Whose it is cannot be told from here, so that nothing rests on it.
    assert {(each["uid"], each["pid"]) for each in figures()["processes"]} == {(65534, None)}

    pod.kill("products")
    wait_until(lambda: len(figures()["processes"]) == 1, what="the end of the connection")
    assert prices("get", "page") == {"of": "products"} and prices("set", "more", 1)

    pod.kill("performance")
    assert prices("set", "dropped", 1) is False
    start_daemon(pod)
    wait_until(lambda: prices("get", "page") == {"of": "products"}, what="the entries")
    assert prices("set", "after", 1) and prices("get", "after") == 1
    again = start_scraper(pod, "products")
    assert again("get", "page") == {"of": "products"} and again("get", "after") == 1


@pytest.mark.root
def test_probes_of_the_node_are_answered_and_nothing_can_be_changed_from_there(
    served: tuple[Pod, str],
) -> None:
    _, url = served
    with httpx.Client(base_url=f"{url}/performance/", trust_env=False) as node:
        for path in ("livez", "readyz", "status", "metrics?format=prometheus"):
            assert node.get(path).status_code == 200
        assert node.post("cache/clear").status_code == 403


@pytest.mark.root
def test_the_cache_takes_its_quarter_of_the_container_s_memory(served: tuple[Pod, str]) -> None:
    pod, url = served
    limit = quantity(containers(MANIFEST)["performance"]["resources"]["limits"]["memory"])
    with RawClient(pod.folder / "socket" / "control.sock") as control:
        settings = {each["key"]: each for each in control.result("server.config")["settings"]}
    assert settings["cache.max_bytes"]["value"] == limit // 4
    assert "quarter of the cgroup" in settings["cache.max_bytes"]["origin"]
    scraper = start_scraper(pod, "products")
    # More than it may hold: it grows to that and no further.
    pages = 20 + (limit // 4 >> 19)
    assert scraper("fill", pages, 1 << 19) == pages
    assert httpx.get(f"{url}/performance/cache/stats", trust_env=False).json()["evictions"] > 0
    with RawClient(pod.folder / "socket" / "control.sock") as control:
        assert control.result("cache.stats")["max_bytes"] == limit // 4
    assert pod.groups["performance"].used() < limit
    assert httpx.get(f"{url}/performance/readyz", trust_env=False).status_code == 200


def configured() -> Settings:
    """What the daemon of the pod goes by."""
    container = containers(MANIFEST)["performance"]
    env = variables(container, "198.51.100.2")
    return load(arguments(container, env), env, ROOT / "deploy").settings


def test_the_pod_s_variables_and_paths_are_the_product_s() -> None:
    settings = configured()
    found = containers(MANIFEST)
    known = {row.meta.env for row in declared()} | {"RUNTIME_DIRECTORY", "STATE_DIRECTORY"}
    for each in found.values():
        env = variables(each, "198.51.100.2")
        assert env.keys() - {"POD_IP"} <= known
        assert env["BI_PERFORMANCE_SOCKET"] == str(settings.socket.path)
        places = {mount["name"]: mount["mountPath"] for mount in each["volumeMounts"]}
        assert places["socket"] == str(settings.socket.path.parent) if settings.socket.path else 0
        # Of the volumes a scraper has the socket alone, and may not write there.
        assert each is found["performance"] or each["volumeMounts"] == [
            {"name": "socket", "mountPath": places["socket"], "readOnly": True}
        ]
    daemon = found["performance"]
    env = variables(daemon, "198.51.100.2")
    for name, volume in (("RUNTIME_DIRECTORY", "/store"), ("STATE_DIRECTORY", "/state")):
        assert Path(env[name]).parent == Path(volume), "below the volume, which is everybody's"
    assert str(settings.state_dir) == env["STATE_DIRECTORY"] and settings.cache.store_dir is None
    routes = {row.http[1] for row in COMMANDS if row.http} | {"/performance/livez"}
    for probe in ("startupProbe", "livenessProbe"):
        assert daemon[probe]["httpGet"]["path"] in routes
    assert settings.http.listen == f"198.51.100.2:{daemon['ports'][0]['containerPort']}"
    assert MANIFEST["spec"]["terminationGracePeriodSeconds"] > settings.shutdown_timeout + 1.5


def test_the_pod_s_users_differ_and_its_volumes_fit_its_limits() -> None:
    found = containers(MANIFEST)
    users = [each["securityContext"]["runAsUser"] for each in found.values()]
    assert len(set(users)) == len(users) == 3 and 0 not in users
    limit = quantity(found["performance"]["resources"]["limits"]["memory"])
    (store,) = (each for each in MANIFEST["spec"]["volumes"] if each["name"] == "store")
    size = quantity(store["emptyDir"]["sizeLimit"])
    most = limit // 4
    # A store that grows is there twice for a moment.
    assert 3 * most <= size, "the volume is not what limits the cache"
    assert 3 * most + (96 << 20) <= limit, "the daemon's own memory has room beside it"


def test_compose_says_what_the_pod_says() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    found = containers(MANIFEST)
    group = str(MANIFEST["spec"]["securityContext"]["fsGroup"])
    assert services.keys() == found.keys()
    for name, service in services.items():
        pod = found[name]
        env = variables(pod, "198.51.100.2")
        env.pop("POD_IP", None)
        assert service["environment"] == env
        uid, gid = service["user"].split(":")
        assert int(uid) == pod["securityContext"]["runAsUser"]
        assert group in (gid, *service.get("group_add", ()))
        limit = pod["resources"]["limits"]["memory"]
        assert service["mem_limit"] == limit.removesuffix("Mi") + "m"
        assert service["image"] == pod["image"]
    daemon = services["performance"]
    assert "/store:size=400m,mode=0700,uid=10001,gid=10000" in daemon["tmpfs"]
    assert daemon["volumes"][0] == "socket:/run/bi-performance"
    assert services["prices"]["volumes"] == ["socket:/run/bi-performance:ro"]
    volume = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]["socket"]
    assert f"mode=0750,uid=10001,gid={group}" in volume["driver_opts"]["o"]
    (_, program, word) = daemon["healthcheck"]["test"]
    assert program == "bi-performance" and word in {row.cli for row in COMMANDS}


def test_the_image_is_made_of_files_that_are_there() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    copied = re.findall(r"(?m)^COPY ((?!--)[^\n]*) /src", text)
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert f"bi-performance:{project['version']}" in text
    assert containers(MANIFEST)["performance"]["image"] == f"bi-performance:{project['version']}"
    python = re.search(r"(?m)^ARG PYTHON=(.*)$", text)
    assert python and f"Programming Language :: Python :: {python[1]}" in project["classifiers"]
    assert re.search(r'(?m)^ENTRYPOINT \["bi-performanced"\]$', text)
    uid = containers(MANIFEST)["performance"]["securityContext"]["runAsUser"]
    assert f"USER {uid}:" in text
