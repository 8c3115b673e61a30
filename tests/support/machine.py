"""A small Debian with systemd as PID 1, in namespaces of its own.

A machine is an overlay of memory over a tree that support.debian makes, so that nothing of one
machine is left for the next one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.daemon import wait_until

TOOLS = ("mmdebstrap", "unshare", "nsenter", "setpriv", "pivot_root")
WORK = "bi-performance-machine-"

ENTER = r"""
set -eu
tree=$1 work=$2 cgroup=$3
shift 3
mount --make-rprivate /
mount -t tmpfs -o mode=0755 machine "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay -o "lowerdir=$tree,upperdir=$work/upper,workdir=$work/work" machine "$work/root"
cd "$work/root"
while [ $# -gt 0 ]; do
    mkdir -p ".$2"
    mount --bind "$1" ".$2"
    mount -o remount,bind,ro ".$2"
    shift 2
done
mount -t proc proc proc
# The kernel's settings are this host's: the machine may look at them.
for name in sys sysrq-trigger irq bus; do
    [ -e "proc/$name" ] || continue
    mount --bind "proc/$name" "proc/$name"
    mount -o remount,bind,ro "proc/$name"
done
# Read-only: systemd then knows that the devices are not its own.
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=0755 dev dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
mount -t tmpfs shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for name in null zero full random urandom tty; do
    : >"dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
mount -t tmpfs -o mode=0755,nosuid,nodev run run
# A machine that was set up: without this systemd takes it for its first boot.
echo 0123456789abcdef0123456789abcdef >etc/machine-id
echo machine >etc/hostname
# The namespace of control groups begins where the process is when it is made.
echo 0 >"$cgroup/cgroup.procs"
exec unshare --cgroup -- sh -euc '
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    pivot_root . mnt
    exec chroot . sh -euc "
        umount -l /mnt
        exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
            setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-syslog,-audit_control -- \
            /lib/systemd/systemd"'
"""


def missing() -> list[str]:
    """What a machine needs and is not here, in words; for those who are root."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if "overlay" not in Path("/proc/filesystems").read_text():
        subprocess.run(["modprobe", "-q", "overlay"], check=False)
        if "overlay" not in Path("/proc/filesystems").read_text():
            absent.append("the overlay file system")
    if _cgroup2() is None:
        absent.append("a mounted cgroup2")
    return absent


def _cgroup2() -> Path | None:
    """This process's own control group in the unified hierarchy."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            mounted = Path(before.split()[4])
            break
    else:
        return None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            own = mounted / line.removeprefix("0::").lstrip("/")
            return own if own.is_dir() else mounted
    return None


def _remove_groups(top: Path) -> bool:
    """Remove a control group with all below it; False while a process in it has not quite ended."""
    try:
        for folder, _, _ in os.walk(top, topdown=False):
            os.rmdir(folder)  # noqa: PTH106 (os.walk's own text)
    except OSError:
        return False
    return True


class Machine:
    """A booted machine; a context manager, gone outside with all that ran in it."""

    def __init__(self, tree: Path, folders: Mapping[Path, str]) -> None:
        """`folders` of this host are in the machine, read-only, at the given places."""
        self._tree = tree
        self._folders = folders
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._work = Path()
        self._cgroup = Path()

    def __enter__(self) -> Self:
        own = _cgroup2()
        assert own is not None
        for left in Path(tempfile.gettempdir()).glob(f"{WORK}*"):
            # Tests that were killed left an empty folder and empty control groups.
            if not Path("/proc", left.name.removeprefix(WORK).partition("-")[0]).exists():
                _remove_groups(own / left.name)
                left.rmdir()
        self._work = Path(tempfile.mkdtemp(prefix=f"{WORK}{os.getpid()}-"))
        self._cgroup = own / self._work.name
        try:
            self._cgroup.mkdir()
            self._boot()
        except BaseException:
            self._gone()
            raise
        return self

    def _boot(self) -> None:
        pairs = [text for source, place in self._folders.items() for text in (str(source), place)]
        self._process = subprocess.Popen(
            [
                # Whatever ends the tests, by SIGKILL too, ends the machine.
                *("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--kill-child=KILL"),
                *("--mount", "--pid", "--fork", "--uts", "--ipc", "--net", "--"),
                *("sh", "-c", ENTER, "machine"),
                *(str(self._tree), str(self._work), str(self._cgroup), *pairs),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._init = wait_until(self._find_init, what="the machine's first process")
        wait_until(self._answers, within=60.0, what="the machine's boot")

    def _find_init(self) -> int:
        process = self._process
        assert process is not None
        if process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(f"the machine did not start: {process.stderr.read().decode()}")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if not children:
            return 0
        name = Path("/proc", children[0], "comm").read_text().strip()
        return int(children[0]) if name == "systemd" else 0

    def _answers(self) -> bool:
        done = self.run("systemctl", "is-system-running", "--wait", check=False)
        return done.stdout.strip() in ("running", "degraded")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._gone()

    def _gone(self) -> None:
        """End the first process, with which the kernel ends all others, and leave nothing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            assert self._process.stderr is not None
            self._process.stderr.close()
        if self._init:
            wait_until(lambda: not Path("/proc", str(self._init)).exists(), what="the end of it")
        wait_until(lambda: _remove_groups(self._cgroup), what="the end of its control groups")
        self._work.rmdir()

    def run(
        self,
        *command: str,
        check: bool = True,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        timeout: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root or as a user with the groups that it has there."""
        inner = ["runuser", "-u", user, "--", *command] if user else list(command)
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), "-a", f"--wdns={cwd}", "--", *inner],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": "/root",
                "LANG": "C.UTF-8",
                **(env or {}),
            },
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            journal = self.run("journalctl", "-n", "20", "-o", "cat", "--no-pager", check=False)
            said = f"{done.stdout}{done.stderr}\nThe journal's end:\n{journal.stdout}"
            assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{said}"
        return done

    def shell(self, script: str, **options: Any) -> str:
        """Run lines of a shell, as they stand in the documentation; what they printed."""
        done = self.run("bash", "-euo", "pipefail", "-c", script, **options)
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def kill(self, pid: int | str, number: signal.Signals) -> None:
        self.run("bash", "-c", f"kill -{number.name.removeprefix('SIG')} {pid}")

    def write(self, path: str, text: str) -> None:
        script = 'mkdir -p "$(dirname "$1")"; printf %s "$2" >"$1"'
        self.run("bash", "-euc", script, "write", path, text)
