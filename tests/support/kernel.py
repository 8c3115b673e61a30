"""A /proc and /sys of the tests: plain files below a folder, of the kernel's form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MEMINFO = """\
MemTotal:       16000 kB
MemFree:         1000 kB
MemAvailable:    4000 kB
SwapTotal:       2000 kB
SwapFree:        1500 kB
HugePages_Total:       0
"""
DISKSTATS = """\
   7       0 loop0 9 0 900 0 9 0 900 0 0 0 0
   8       0 sda {read} 0 {read} 0 {written} 0 {written} 0 0 0 0
   8       1 sda1 5 0 500 0 5 0 500 0 0 0 0
 253       0 dm-0 5 0 500 0 5 0 500 0 0 0 0
"""
NET_HEAD = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
"""
STATUS = "Name:\tpython\nUmask:\t0022\nVmRSS:\t  400 kB\nVmSwap:\t   12 kB\nThreads:\t3\n"


class FakeKernel:
    """Writes what the tests want the kernel to say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/loadavg", "0.50 1.25 2.00 1/234 5678\n")
        self.write("proc/meminfo", MEMINFO)
        self.write("proc/sys/fs/file-nr", "1024\t24\t9223372036854775807\n")
        self.write("proc/pressure/cpu", "some avg10=1.50 avg60=0.00 avg300=0.00 total=1\n")
        for name in ("memory", "io"):
            lines = (f"{kind} avg10=0.25 avg60=0.00 avg300=0.00 total=1" for kind in _KINDS)
            self.write(f"proc/pressure/{name}", "\n".join(lines) + "\n")
        for name in ("loop0", "sda", "dm-0"):
            (root / "sys/block" / name).mkdir(parents=True)
        self.cpu()
        self.disk()
        self.network(eth0=(1000, 2000))
        self.cgroup2()

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def files(self) -> Iterator[Path]:
        """Every file that there is."""
        return (path for path in sorted(self.root.rglob("*")) if path.is_file())

    def cpu(self, user: int = 100, idle: int = 900, iowait: int = 0) -> None:
        self.write("proc/stat", f"cpu  {user} 0 0 {idle} {iowait} 0 0 0 50 0\ncpu0 1 1 1 1\n")

    def disk(self, read: int = 10, written: int = 20) -> None:
        self.write("proc/diskstats", DISKSTATS.format(read=read, written=written))

    def network(self, **interfaces: tuple[int, int]) -> None:
        rows = {"lo": (77, 77), **interfaces}
        lines = (f"{name:>6}: {got} 0 0 0 0 0 0 0 {sent} 0" for name, (got, sent) in rows.items())
        self.write("proc/net/dev", NET_HEAD + "\n".join(lines) + "\n")

    def cgroup2(self, own: str = "/", **files: str) -> None:
        """Version 2; a file's name is that of a group, `:`, and the file: `a/b:memory.max`."""
        self.write("proc/self/cgroup", f"0::{own}\n")
        self.write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
        for name, text in files.items():
            self.write(f"sys/fs/cgroup/{name.replace(':', '/')}", text + "\n")

    def cgroup1(self, own: str, files: dict[str, str]) -> None:
        """Version 1, as it is when version 2 is mounted beside it without controllers."""
        (self.root / "sys/fs/cgroup/cgroup.controllers").unlink(missing_ok=True)
        lines = ("9:name=systemd:/", f"4:memory:{own}", f"3:cpu,cpuacct:{own}", "0::/")
        self.write("proc/self/cgroup", "\n".join(lines) + "\n")
        for name, text in files.items():
            self.write(f"sys/fs/cgroup/{name}", text + "\n")

    def process(self, pid: int | str, *, started: int = 1000, ticks: int = 50, **more: str) -> None:
        """`more` are files of the process; its name is such as to break a careless reader."""
        fields = ["S", *["0"] * 10, str(ticks), "0", "0", "0", "20", "0", "3", "0", str(started)]
        folder = f"proc/{pid}"
        self.write(f"{folder}/stat", f"{pid} (a) R (b) {' '.join(fields)} 99999 100 7\n")
        self.write(f"{folder}/status", STATUS)
        self.write(f"{folder}/smaps_rollup", "1-2 ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss: 5 kB\n")
        self.write(f"{folder}/io", "rchar: 1\nwchar: 2\nread_bytes: 4096\nwrite_bytes: 8192\n")
        for name in ("0", "1", "2"):
            self.write(f"{folder}/fd/{name}", "")
        for name, text in more.items():
            self.write(f"{folder}/{name}", text)


_KINDS = ("some", "full")
