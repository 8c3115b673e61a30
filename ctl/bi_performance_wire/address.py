"""Which control socket the daemon binds, and which ones a client tries.

Paths are text here: the control program must not wait for pathlib.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from typing import NamedTuple

MAX_PATH_BYTES = 107
"""What fits into sockaddr_un with its final zero."""
NAME = "control.sock"
SERVICE_FOLDER = "/run/bi-performance"
SERVICE_USER = "bi-performance"


def runtime_folder(environ: Mapping[str, str], uid: int) -> str:
    """The daemon's runtime directory: socket and store lie here by default."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        return given.split(":")[0]
    if given := environ.get("XDG_RUNTIME_DIR"):
        return f"{given}/bi-performance"
    # In a world-writable folder, so it is made 0700 and its owner is checked.
    return f"/tmp/bi-performance-{uid}"


class Candidate(NamedTuple):
    """A socket that a client may try; `refused` says why it may not."""

    path: str
    origin: str
    refused: str | None


def paths(given: str | None, environ: Mapping[str, str], uid: int) -> list[str]:
    """Where the sockets lie that a client tries, in order."""
    return [path for path, _, _ in _places(given, environ, uid)]


def candidates(given: str | None, environ: Mapping[str, str], uid: int) -> list[Candidate]:
    """The sockets that a client tries, in order, with the reason against each that is no good.

    A socket that was named is taken as it is; one that was found must belong to this user, to
    root or to the service's user, else another user could pose as the daemon.
    """
    return [
        _named(path, origin) if named else _found(path, origin, uid)
        for path, origin, named in _places(given, environ, uid)
    ]


def _places(given: str | None, environ: Mapping[str, str], uid: int) -> list[tuple[str, str, bool]]:
    """(path, where it comes from, whether it was named)."""
    if given:
        return [(given, "--socket", True)]
    if named := environ.get("BI_PERFORMANCE_SOCKET"):
        return [(named, "BI_PERFORMANCE_SOCKET", True)]
    return [
        (f"/run/user/{uid}/bi-performance/{NAME}", "the user's runtime directory", False),
        (f"/tmp/bi-performance-{uid}/{NAME}", "the user's own directory", False),
        (f"{SERVICE_FOLDER}/{NAME}", "the service", False),
    ]


def _named(path: str, origin: str) -> Candidate:
    return Candidate(path, origin, too_long(path) or _missing(path))


def _found(path: str, origin: str, uid: int) -> Candidate:
    missing = _missing(path)
    if missing:
        return Candidate(path, origin, missing)
    owner = os.lstat(path).st_uid
    if owner not in (uid, 0, _service_uid()):
        return Candidate(path, origin, f"belongs to uid {owner}, who is not trusted")
    return Candidate(path, origin, _deaf(path))


def _deaf(path: str) -> str | None:
    """Why nobody listens on a socket, or None: a dead daemon's must not hide a living one's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as trial:
        try:
            trial.connect(path)
        except BlockingIOError:
            # Its queue is full: somebody does listen.
            return None
        except OSError as error:
            return f"does not accept connections: {error.strerror}"
    return None


def _missing(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (pathlib is not loaded here)
    except FileNotFoundError:
        return "does not exist"
    except PermissionError:
        return "cannot be reached: permission denied (join the group of the daemon)"
    except ValueError:
        return "is no path: it holds a zero byte"
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    if not stat.S_ISSOCK(mode):
        return "is not a socket"
    if not os.access(path, os.W_OK):
        return "permission denied (join the group of the daemon)"
    return None


def too_long(path: str) -> str | None:
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
