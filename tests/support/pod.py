"""Runs the pod of a manifest with namespaces and control groups, as a node does; needs root."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from support.cgroup import MemoryGroup, memory_group
from support.container import Spec
from support.daemon import wait_until

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
UNITS = {"Ki": 10, "Mi": 20, "Gi": 30}
FIRST_GID = 400_000
"""Of all containers: what they share is the group of the volumes."""


def quantity(text: str) -> int:
    """Bytes of a quantity such as 512Mi."""
    found = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", text)
    assert found, text
    return int(found[1]) << UNITS[found[2]]


def containers(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    spec = manifest["spec"]
    return {each["name"]: each for each in [*spec["initContainers"], *spec["containers"]]}


def variables(container: Mapping[str, Any], address: str) -> dict[str, str]:
    """The environment of a container whose pod has an address."""
    found = {}
    for each in container.get("env", []):
        field = each.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        found[each["name"]] = address if field == "status.podIP" else each["value"]
    return found


def arguments(container: Mapping[str, Any], env: Mapping[str, str]) -> list[str]:
    return [
        re.sub(r"\$\((\w+)\)", lambda name: env[name[1]], word)
        for word in container.get("args", [])
    ]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Pod:
    """Volumes and network of a pod; containers are started one by one. A context manager."""

    def __init__(self, manifest: Mapping[str, Any], folder: Path) -> None:
        self.manifest = manifest
        self.folder = folder
        self.network = f"bi-pod-{os.getpid()}"
        # Addresses for documentation (RFC 5737): nobody's.
        self.node, self.address = "198.51.100.1", "198.51.100.2"
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.groups: dict[str, MemoryGroup] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as made:
            self._make_network(made)
            for volume in self.manifest["spec"]["volumes"]:
                self._make_volume(volume["name"], volume["emptyDir"], made)
            self._open = made.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self.processes):
            self.kill(name)
        self._open.close()

    def _make_network(self, made: ExitStack) -> None:
        _ip("netns", "add", self.network)
        made.callback(_ip, "netns", "delete", self.network)
        ours = f"bi{os.getpid()}"
        _ip("link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", self.network)
        _ip("address", "add", f"{self.node}/30", "dev", ours)
        _ip("link", "set", ours, "up")
        inside = ("-netns", self.network)
        _ip(*inside, "address", "add", f"{self.address}/30", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "link", "set", "lo", "up")

    def _make_volume(self, name: str, kind: Mapping[str, str], made: ExitStack) -> None:
        """An emptyDir as it is made for a pod with an fsGroup: everybody's, and the group's."""
        place = self.folder / name
        place.mkdir()
        if kind.get("medium") == "Memory":
            size = quantity(kind["sizeLimit"])
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True
            )
            made.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
        group = self.manifest["spec"]["securityContext"]["fsGroup"]
        os.chown(place, 0, FIRST_GID + group)
        place.chmod(0o2777)

    def start(
        self, name: str, command: list[str], *, first_uid: int, alone: bool = False
    ) -> subprocess.Popen[str]:
        """Run a container's command; `alone` with a network of its own."""
        found = containers(self.manifest)[name]
        who = found["securityContext"]
        env = variables(found, self.address)
        group = self.groups.get(name)
        if group is None:
            limit = quantity(found["resources"]["limits"]["memory"])
            group = self._open.enter_context(memory_group(limit, name))
            self.groups[name] = group
        spec = Spec(
            command=[*command, *arguments(found, env)],
            env={"PATH": "/usr/bin:/bin", **env},
            uid=who["runAsUser"],
            gid=who["runAsGroup"],
            groups=[self.manifest["spec"]["securityContext"]["fsGroup"]],
            first_uid=first_uid,
            first_gid=FIRST_GID,
            network=None if alone else self.network,
            mounts=[
                (str(self.folder / each["name"]), each["mountPath"], not each.get("readOnly"))
                for each in found["volumeMounts"]
            ],
            python=sorted({sys.base_prefix, sys.prefix, str(ROOT / "daemon"), str(ROOT / "ctl")}),
            group=str(group.folder),
        )
        process = subprocess.Popen(
            spec.arguments(),
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes[name] = process
        return process

    def kill(self, name: str) -> None:
        """SIGKILL to a container's process 1, which ends all others there."""
        process = self.processes.pop(name)
        first = wait_until(lambda: process.poll() is not None or self.first(process), what=name)
        if process.returncode is None:
            os.kill(first, signal.SIGKILL)
        process.communicate()

    @staticmethod
    def first(process: subprocess.Popen[str]) -> int:
        """The number on the host of a container's process 1; 0 while there is none."""
        try:
            text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        except OSError:
            return 0
        return int((text.split() or ["0"])[0])


def read_manifest(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found
