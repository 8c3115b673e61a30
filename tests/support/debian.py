"""A Debian's tree and wheels for it: made once, and kept outside of the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SUITE = "bookworm"
PACKAGES = ("dbus", "passwd", "python3", "python3-venv", "systemd", "systemd-sysv")
UNUSED = 30 * 86400
LEAVE_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")


def cache_folder() -> Path:
    """Where trees and wheels are kept between runs."""
    given = os.environ.get("BI_TEST_CACHE")
    return Path(given) if given else Path("/var/cache/bi-performance-tests")


def kept(name: str, content: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` made by `make(folder)` for this content; made anew when it is not there.

    It appears under its name when it is whole: whoever is stopped on the way leaves a folder that
    nobody uses and the next one removes.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    wanted = cache / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    if wanted.is_dir():
        os.utime(wanted)
        return wanted
    _tidy(cache, name)
    unfinished = cache / f".{name}-{os.getpid()}"
    try:
        make(unfinished)
        if not wanted.is_dir():
            unfinished.rename(wanted)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return wanted


def _tidy(cache: Path, name: str) -> None:
    """Remove what was left half-made, and what no test run has used for a month."""
    for half in cache.glob(f".{name}-*"):
        if not Path("/proc", half.name.rpartition("-")[2]).exists():
            shutil.rmtree(half, ignore_errors=True)
    for old in cache.glob(f"{name}-*"):
        if time.time() - old.stat().st_mtime > UNUSED:
            shutil.rmtree(old, ignore_errors=True)


def debian_tree() -> Path:
    """The root of a minimal Debian with systemd and Python."""
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=apt",
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEAVE_OUT),
        SUITE,
    ]

    def make(folder: Path) -> None:
        folder.mkdir(mode=0o755)
        _quietly([*command, str(folder), *_mirror()])

    return kept("debian", " ".join(command), make)


def _mirror() -> list[str]:
    """Where this host has the same Debian from, which may be the only place that it can reach."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line.split() for line in done.stdout.splitlines()]
    return [uri for codename, uri in found if codename == SUITE][:1]


def _quietly(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def wheels(requirements: Sequence[str], python: str = "3.11") -> Path:
    """A folder of the wheels of exactly these requirements, for Debian's Python."""
    arch = os.uname().machine
    tags = [f"manylinux_2_{minor}_{arch}" for minor in range(5, 37)] + [f"manylinux2014_{arch}"]

    def make(folder: Path) -> None:
        _quietly(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
                *(f"--platform={tag}" for tag in tags),
                *("--dest", str(folder), *requirements),
            ],
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )

    return kept("wheels", " ".join([python, arch, *requirements]), make)
