"""Who may import whom, and that the light paths stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "bi_performance_wire": ROOT / "ctl",
    "bi_performance": ROOT / "ctl",
    "business_intel_scraper": ROOT / "ctl",
    "bi_performance_ctl": ROOT / "ctl",
    "bi_performanced": ROOT / "daemon",
}
MAY_IMPORT = {
    "bi_performance_wire": set(),
    "bi_performance": {"bi_performance_wire"},
    "business_intel_scraper": {"bi_performance", "bi_performance_wire"},
    "bi_performance_ctl": {"bi_performance", "bi_performance_wire"},
    "bi_performanced": {"bi_performance_wire"},
}
LAYERS = {
    # Within the daemon: a part may import those that stand before it.
    "host": set(),
    "telemetry": set(),
    "config": {"host"},
    "remote": {"config", "telemetry"},
    "cache": {"config", "host", "remote", "telemetry"},
    "monitor": {"cache", "config", "host", "telemetry"},
    "advice": {"cache", "config", "events", "monitor", "telemetry"},
    "handlers": {"advice", "cache", "config", "dispatch", "events", "monitor"},
    "fronts": {"cache", "config", "dispatch", "events", "telemetry"},
}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = list((PACKAGES[package] / package).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            top = name.split(".")[0]
            if top in PACKAGES and top != package:
                assert top in MAY_IMPORT[package], f"{path} imports {name}"


@pytest.mark.parametrize("part", LAYERS)
def test_a_part_of_the_daemon_knows_only_what_it_is_built_on(part: str) -> None:
    for path in (PACKAGES["bi_performanced"] / "bi_performanced" / part).rglob("*.py"):
        for name in imported(path):
            if name.startswith("bi_performanced."):
                other = name.split(".")[1]
                assert other == part or other in LAYERS[part], f"{path} imports {name}"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "bi_performance_ctl.main",
            ["msgspec", "rich", "asyncio", "trio", "bi_performanced", "zstandard"],
        ),
        ("bi_performance", ["msgspec", "trio", "rich", "bi_performanced", "bi_performance_ctl"]),
        ("bi_performance.optimizer", ["trio", "rich", "bi_performanced", "hypercorn"]),
    ],
)
def test_what_must_start_fast_loads_nothing_heavy(module: str, absent: list[str]) -> None:
    code = f"import {module}, sys; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_file_of_ours_names_a_place_of_this_machine() -> None:
    for folder in (ROOT / "ctl", ROOT / "daemon", ROOT / "scripts", ROOT / "config"):
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix in (".py", ".toml", ".yaml", ".md", ""):
                text = path.read_text(errors="replace")
                assert str(ROOT) not in text, path
