"""Becomes process 1 of a container and runs a program in it; needs root.

`python -m support.container JSON` with a `Spec`: namespaces for processes, mounts, IPC, names,
control groups and users, a root in which only the named folders are, and a user without powers.
What is meant is what a container's runtime does; nothing here is quick or general.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND = 1, 2, 4, 32, 4096
MS_REC, MS_PRIVATE = 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SYSTEM = ("/bin", "/etc", "/lib", "/lib64", "/sbin", "/usr")
CGROUPS = Path("/sys/fs/cgroup")
IDS = 65_536
"""Users and groups that a container has."""


@dataclass
class Spec:
    """What is asked of a container."""

    command: list[str]
    env: dict[str, str]
    uid: int
    gid: int
    groups: list[int]
    first_uid: int
    """The user of the host that is user 0 inside; the 65535 after it follow."""
    first_gid: int
    network: str | None
    """The name of a network namespace; None for one of its own."""
    mounts: list[tuple[str, str, bool]] = field(default_factory=list)
    """(folder of the host, place inside, whether it may be written)."""
    python: list[str] = field(default_factory=list)
    """Folders in which the interpreter and the packages are."""
    group: str | None = None
    """The folder of a memory control group."""

    def arguments(self) -> list[str]:
        return [sys.executable, "-m", "support.container", json.dumps(asdict(self))]


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def _mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    _call("mount", source.encode(), bytes(target), kind.encode(), flags, data.encode())


def _bind(source: str, target: Path, *, writable: bool) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _mount(source, target, "", MS_BIND | MS_REC)
    if not writable:
        _mount("none", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY)


def _build(spec: Spec, root: Path) -> None:
    """Mount what the container has below `root`."""
    _mount("none", Path("/"), "", MS_REC | MS_PRIVATE)
    _mount("container", root, "tmpfs", MS_NOSUID, "mode=0755")
    for name in SYSTEM:
        place = root / name.lstrip("/")
        if Path(name).is_symlink():
            place.symlink_to(os.readlink(name))  # noqa: PTH115 (text)
        elif Path(name).exists():
            _bind(name, place, writable=False)
    for name in spec.python:
        _bind(name, root / name.lstrip("/"), writable=False)
    for source, name, writable in spec.mounts:
        _bind(source, root / name.lstrip("/"), writable=writable)
    (root / "proc").mkdir(exist_ok=True)
    _mount("proc", root / "proc", "proc")
    (root / "tmp").mkdir(exist_ok=True)
    dev = root / "dev"
    dev.mkdir()
    for name in ("null", "zero", "full", "random", "urandom"):
        (dev / name).touch()
        _mount(f"/dev/{name}", dev / name, "", MS_BIND)
    if spec.group is not None:
        second = (CGROUPS / "cgroup.controllers").exists()
        place = root / str(CGROUPS).lstrip("/") / ("" if second else "memory")
        place.mkdir(parents=True)
        _mount("cgroup", place, "cgroup2" if second else "cgroup", 0, "" if second else "memory")
    _mount("none", root, "", MS_REMOUNT | MS_RDONLY, "mode=0755")


def _map(pid: int, spec: Spec) -> None:
    for name, first in (("uid", spec.first_uid), ("gid", spec.first_gid)):
        Path(f"/proc/{pid}/{name}_map").write_text(f"0 {first} {IDS}\n")


def _into_users(spec: Spec) -> None:
    """Make this process a user of a namespace of its own, whose maps its parent's kind writes."""
    ours, theirs = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.read(ours, 1)
        _map(os.getppid(), spec)
        os._exit(0)
    _call("unshare", NEWUSER)
    os.write(theirs, b".")
    assert os.waitpid(helper, 0)[1] == 0
    os.close(ours)
    os.close(theirs)
    os.setgroups(spec.groups)
    os.setresgid(spec.gid, spec.gid, spec.gid)
    os.setresuid(spec.uid, spec.uid, spec.uid)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _first_process(spec: Spec, root: Path) -> None:
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _build(spec, root)
    os.chdir(root)
    _call("pivot_root", b".", b"tmp")
    os.chroot(".")
    _call("umount2", b"/tmp", 2)
    _into_users(spec)
    os.chdir("/")
    os.execvpe(spec.command[0], spec.command, spec.env)


def main() -> int:
    spec = Spec(**json.loads(sys.argv[1]))
    if spec.group is not None:
        (Path(spec.group) / "cgroup.procs").write_text("0")
    apart = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWCGROUP
    if spec.network is not None:
        fd = os.open(f"/run/netns/{spec.network}", os.O_RDONLY | os.O_CLOEXEC)
        _call("setns", fd, NEWNET)
    else:
        apart |= NEWNET
    _call("unshare", apart)
    pid = os.fork()
    if pid == 0:
        try:
            # Any folder will do: what is mounted there is seen by this process alone.
            _first_process(spec, Path("/mnt"))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(70)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
