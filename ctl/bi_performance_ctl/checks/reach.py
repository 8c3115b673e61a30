"""Can the daemon be reached: the control sockets, who owns them, and who is let in."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Generator
from pathlib import Path

from bi_performance_ctl.checks import Finding, failed, ok, warning
from bi_performance_ctl.console import Console
from bi_performance_wire.address import Candidate

START = "start bi-performanced, or name its socket with --socket or BI_PERFORMANCE_SOCKET"


def sockets(console: Console) -> Generator[Finding, None, bool]:
    """Every socket that a client tries; returns whether one of them can be used."""
    found = console.candidates()
    used = next((each for each in found if each.refused is None), None)
    for each in found:
        where = f"{each.path} ({each.origin})"
        if each is used:
            yield ok("socket", f"{where}, {owned(Path(each.path))}")
            if (others := _open_to_all(Path(each.path))) is not None:
                yield others
        elif each.refused is None:
            yield ok("socket", f"{where}: the one above goes first")
        elif each.refused == "does not exist":
            if used is not None:
                yield ok("socket", f"{where}: does not exist, and is not needed")
            else:
                # What to do about it stands below, once.
                yield Finding("socket", "failed", f"{where}: does not exist")
        else:
            made = failed if used is None else warning
            yield made("socket", f"{where}: {each.refused}", _remedy(each))
    if used is None:
        shut = any(each.refused != "does not exist" for each in found)
        remedy = f"as said above; or {START}" if shut else START
        yield failed("daemon", "no control socket can be used", remedy)
    return used is not None


def _remedy(candidate: Candidate) -> str:
    reason = candidate.refused or ""
    if "permission denied" in reason:
        return way_in(Path(candidate.path))
    if "does not accept connections" in reason:
        return "its daemon has ended: start bi-performanced, which takes the socket's place"
    if "is not trusted" in reason:
        return (
            f"if you trust its owner, name it: --socket {candidate.path}; else remove what lies"
            " there"
        )
    if "bytes" in reason:
        return "set socket.path of the daemon to a shorter path"
    return START


def owned(path: Path) -> str:
    """Owner, group and mode, in words."""
    try:
        found = path.stat()
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    return f"of {user(found.st_uid)}, group {group(found.st_gid)}, mode {mode}"


def way_in(path: Path, access: int = os.W_OK) -> str:
    """What opens a path that is closed to this user: the group to join, or whom to ask."""
    bit = stat.S_IWGRP if access == os.W_OK else stat.S_IRGRP
    for place in (*reversed(path.parents), path):
        try:
            found = place.stat()
        except OSError:
            break
        folder = stat.S_ISDIR(found.st_mode)
        if os.access(place, os.X_OK if folder else access):
            continue
        needed = stat.S_IXGRP if folder else bit
        owner = user(found.st_uid)
        # Nobody is told to join root's group.
        if not found.st_mode & needed or found.st_gid == 0:
            return (
                f"{place} is open to {owner} alone: run this as {owner}, or start a bi-performanced"
                " of your own"
            )
        name, me = group(found.st_gid), user(os.getuid())
        if me in _members(found.st_gid):
            return f"you are in the group {name}, but not in this session: log in anew"
        return (
            f"join the group {name}, which {place} is open to: sudo usermod --append --groups"
            f" {name} {me}, and log in anew"
        )
    return "ask the owner of the daemon for access"


def _open_to_all(path: Path) -> Finding | None:
    """A socket that every user of the host can write to."""
    try:
        every = all(place.stat().st_mode & stat.S_IXOTH for place in path.parents)
        if every and path.stat().st_mode & stat.S_IWOTH:
            return warning(
                "socket",
                f"{path} is open to every user of this host, who may clear the cache and change"
                " settings",
                f"chmod o-rwx {path}",
            )
    except OSError:
        pass
    return None


def user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"gid {gid}"


def _members(gid: int) -> list[str]:
    try:
        return grp.getgrgid(gid).gr_mem
    except KeyError:
        return []
