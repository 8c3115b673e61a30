"""Who has a TCP port, and whose a local connection is, as /proc/net/tcp tells."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LISTEN = "0A"


class Row(NamedTuple):
    local: tuple[str, int]
    remote: tuple[str, int]
    state: str
    uid: int
    inode: str


def _rows(proc: Path) -> Iterator[Row]:
    for name in ("net/tcp", "net/tcp6"):
        try:
            lines = (proc / name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            if len(parts) > 9:
                yield Row(_address(parts[1]), _address(parts[2]), parts[3], int(parts[7]), parts[9])


def _address(text: str) -> tuple[str, int]:
    """`0100007F:1F90` is 127.0.0.1, port 8080: words in the host's byte order."""
    host, port = text.split(":")
    raw = bytes.fromhex(host)
    words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return _plain(ipaddress.ip_address(words)), int(port, 16)


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def connection_uid(
    client: tuple[str, int], server: tuple[str, int], proc: Path = Path("/proc")
) -> int | None:
    """The uid of the process at the client's end of a connection on this host, or None."""
    ends = [
        (_plain(ipaddress.ip_address(host.split("%")[0])), port) for host, port in (client, server)
    ]
    for row in _rows(proc):
        if row.local == ends[0] and row.remote == ends[1]:
            return row.uid
    return None


def port_holder(port: int, proc: Path = Path("/proc")) -> str:
    """Who listens on a port, in words for a person."""
    inodes = {
        row.inode: row.uid for row in _rows(proc) if row.state == _LISTEN and row.local[1] == port
    }
    if not inodes:
        return "a process that cannot be seen from here"
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            links = [str(link.readlink()) for link in (process / "fd").iterdir()]
            if wanted.intersection(links):
                name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
                return f"process {process.name} ({name})"
        except OSError:
            continue
    return f"a process of uid {next(iter(inodes.values()))}"
