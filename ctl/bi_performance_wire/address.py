"""Which control socket the daemon binds, and which ones a client tries."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

MAX_PATH_BYTES = 107
"""What fits into sockaddr_un with its final zero."""
NAME = "control.sock"
SERVICE_FOLDER = Path("/run/bi-performance")
SERVICE_USER = "bi-performance"


def runtime_folder(environ: Mapping[str, str], uid: int) -> Path:
    """The daemon's runtime directory: socket and store lie here by default."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    if given := environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "bi-performance"
    # In a world-writable folder, so it is made 0700 and its owner is checked.
    return Path(f"/tmp/bi-performance-{uid}")


class Candidate(NamedTuple):
    """A socket that a client may try; `refused` says why it may not."""

    path: Path
    origin: str
    refused: str | None


def candidates(given: str | None, environ: Mapping[str, str], uid: int) -> list[Candidate]:
    """The sockets that a client tries, in order, with the reason against each that is no good.

    A socket that was named is taken as it is; one that was found must belong to this user, to
    root or to the service's user, else another user could pose as the daemon.
    """
    if given:
        return [_named(Path(given), "--socket")]
    if named := environ.get("BI_PERFORMANCE_SOCKET"):
        return [_named(Path(named), "BI_PERFORMANCE_SOCKET")]
    folders = (
        (Path(f"/run/user/{uid}/bi-performance"), "the user's runtime directory"),
        (Path(f"/tmp/bi-performance-{uid}"), "the user's own directory"),
        (SERVICE_FOLDER, "the service"),
    )
    return [_found(folder / NAME, origin, uid) for folder, origin in folders]


def _named(path: Path, origin: str) -> Candidate:
    return Candidate(path, origin, too_long(path) or _missing(path))


def _found(path: Path, origin: str, uid: int) -> Candidate:
    missing = _missing(path)
    if missing:
        return Candidate(path, origin, missing)
    owner = path.lstat().st_uid
    if owner not in (uid, 0, _service_uid()):
        return Candidate(path, origin, f"belongs to uid {owner}, who is not trusted")
    return Candidate(path, origin, None)


def _missing(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "does not exist"
    except PermissionError:
        return "cannot be reached: permission denied (join the group of the daemon)"
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    if not stat.S_ISSOCK(mode):
        return "is not a socket"
    if not os.access(path, os.W_OK):
        return "permission denied (join the group of the daemon)"
    return None


def too_long(path: Path) -> str | None:
    """Why a path cannot be a socket's, or None."""
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        return f"the path has {size} bytes; a socket's may have {MAX_PATH_BYTES}"
    return None


def _service_uid() -> int:
    try:
        import pwd

        return pwd.getpwnam(SERVICE_USER).pw_uid
    except (ImportError, KeyError):
        return 0
