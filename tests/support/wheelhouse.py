"""The wheels with which a machine without a network installs this project from its checkout."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHON = "3.11"
BUILD = ("hatchling", "packaging", "pathspec", "pluggy", "tomlkit", "trove-classifiers")
"""What makes the project's own wheel; it is not installed here, so nobody can be asked."""


def pinned(root: Path, extra: str) -> list[str]:
    """`name==version` of what the project with this extra needs, as constraints.txt has it."""
    with (root / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    versions: dict[str, str] = {}
    for line in (root / "constraints.txt").read_text().splitlines():
        if found := re.fullmatch(r"([\w.-]+)==(\S+)", line):
            versions[canonicalize_name(found[1])] = found[2]
    needed: dict[str, set[str]] = {name: set() for name in BUILD}
    waiting = [
        Requirement(text)
        for text in [*project["dependencies"], *project["optional-dependencies"][extra]]
    ]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in needed and one.extras <= needed[name]:
            continue
        needed.setdefault(name, set()).update(one.extras)
        waiting += _of(name, needed[name])
    # Without a version: what constraints.txt does not name, as some of what makes the wheel.
    return sorted(f"{name}=={versions[name]}" if name in versions else name for name in needed)


def _of(name: str, extras: set[str]) -> list[Requirement]:
    """What a distribution needs on Debian's Python, told by the one that is installed here."""
    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        # Needed by Debian's Python and not by this one: all such are small and need nothing.
        return []
    found = [Requirement(text) for text in texts]
    about = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.2"}
    return [
        one
        for one in found
        if one.marker is None
        or any(one.marker.evaluate({**about, "extra": extra}) for extra in ["", *extras])
    ]
