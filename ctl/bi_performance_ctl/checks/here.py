"""What is here: this Python and its libraries, the environment, files, the import path."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bi_performance_ctl.checks import Finding, failed, ok, warning

REQUIRED = ("trio", "hypercorn", "starlette", "msgpack", "msgspec", "structlog", "rich", "PyYAML")
OPTIONAL = (
    ("psutil", "the host's figures are read from /proc without it"),
    ("redis", "no Redis can be used"),
    ("memory-profiler", "memory cannot be traced"),
)
EXTRA = "pip install 'bi-performance[performance]'"
MODES = ("on", "observe", "off")


def python() -> Iterator[Finding]:
    """This program's Python, in which the daemon usually runs too."""
    said = f"{platform.python_version()}, {sys.prefix}"
    if sys.platform == "linux":
        yield ok("python", said)
    else:
        yield failed("python", f"{said}, on {sys.platform}", "run it on Linux")
    found = {name: _version(name) for name in REQUIRED}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        yield failed(
            "libraries",
            f"missing: {', '.join(missing)}",
            "pip install --upgrade --force-reinstall bi-performance",
        )
    else:
        yield ok("libraries", ", ".join(f"{name} {version}" for name, version in found.items()))
    there = []
    for name, without in OPTIONAL:
        version = _version(name)
        if version is None:
            yield warning(name, f"is not installed in this Python: {without}", EXTRA)
        else:
            there.append(f"{name} {version}")
    if there:
        yield ok("optional", ", ".join(there))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def environment() -> Iterator[Finding]:
    """Variables of this shell that change what a scraper does."""
    mode = os.environ.get("BI_PERFORMANCE_MODE", "")
    if mode in ("observe", "off"):
        what = (
            "counts what the cache would serve, and serves nothing"
            if mode == "observe"
            else ("does not use the cache")
        )
        yield warning(
            "mode",
            f"BI_PERFORMANCE_MODE={mode} in this environment: a scraper started here {what}",
            "unset BI_PERFORMANCE_MODE",
        )
    elif mode and mode not in MODES:
        yield warning(
            "mode",
            f"BI_PERFORMANCE_MODE is {mode!r}, which a scraper takes for on",
            f"set it to one of {', '.join(MODES)}, or unset it",
        )


def configuration_files() -> Iterator[Finding]:
    """The files that a daemon which is started in this folder would read."""
    found = [
        path for name in ("toml", "yaml") if (path := Path(f"config/performance.{name}")).is_file()
    ]
    if len(found) == 2:
        yield failed(
            "config",
            "config/performance.toml and config/performance.yaml both exist here, and a daemon"
            " started here would not know which to read",
            "keep one of them",
        )
    for path in found:
        problem = _problem(path)
        if problem is None:
            yield ok("config", f"{path} is here, for a daemon that is started in this folder")
        else:
            yield failed(
                "config", f"{path}: {problem}", "mend it; bi-performanced --check tells more"
            )


def _problem(path: Path) -> str | None:
    """Why a file cannot be read as what it is, or None."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return str(error)
    try:
        if path.suffix == ".toml":
            tomllib.loads(text)
        else:
            import yaml

            yaml.safe_load(text)
    except Exception as error:
        # Whatever a parser may raise on what is not its language.
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def namespace() -> Iterator[Finding]:
    """A scraper's own package of the same name hides our modules."""
    path = "business_intel_scraper.backend.performance"
    try:
        found = importlib.util.find_spec(path)
    except (ImportError, AttributeError, ValueError):
        found = None
    if found is not None:
        yield ok("import", f"{path} is found")
        return
    outer = importlib.util.find_spec("business_intel_scraper")
    where = outer.origin if outer is not None and outer.origin else "elsewhere"
    yield failed(
        "import",
        f"{path} is hidden by {where}",
        "put this line first into that file, and into backend/__init__.py if there is one:"
        ' __path__ = __import__("pkgutil").extend_path(__path__, __name__)',
    )
