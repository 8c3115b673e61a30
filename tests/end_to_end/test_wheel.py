"""The bare wheel, without extras, in an environment of its own: the seed's first example runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from support.daemon import DaemonProcess, wait_until

ROOT = Path(__file__).parents[2]

SEED = """
import asyncio

from business_intel_scraper.backend.performance.optimizer import get_performance_optimizer


async def main():
    # Get optimizer instance

    optimizer = get_performance_optimizer()

    # Run performance analysis

    analysis = await optimizer.run_performance_analysis()
    print(f"Cache hit rate: {analysis['cache_performance']['hit_rate']:.1%}")

    # Apply optimization

    result = await optimizer.apply_optimizations('performance_focused')
    print(f"Applied {result['profile_applied']} profile")

    # Use performance cache

    await optimizer.cache.set("key", "value", ttl=3600)
    cached_value = await optimizer.cache.get("key")
    print(cached_value)


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "-w",
            str(folder),
            str(ROOT),
        ],
        check=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_our_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "bi_performance",
        "bi_performance_ctl",
        "bi_performance_wire",
        "bi_performanced",
        "business_intel_scraper",
    }
    assert not [name for name in names if re.search(r"(^|/)tests?[_./]|_test\.|\.pyc$", name)]
    assert "business_intel_scraper/__init__.py" not in names


def test_the_seed_s_first_example_runs_with_the_bare_wheel(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    python = str(place / "bin" / "python")
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "-c",
            str(ROOT / "constraints.txt"),
            str(wheel),
        ],
        check=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        cwd=tmp_path,
    )
    absent = "import importlib.util as u; print([n for n in ('psutil', 'redis') if u.find_spec(n)])"
    listed = subprocess.run([python, "-c", absent], capture_output=True, text=True, check=True)
    assert listed.stdout == "[]\n", "a bare installation has no extras"
    script = tmp_path / "scraper.py"
    script.write_text(SEED)
    with DaemonProcess(tmp_path, python=python) as daemon:
        environ = {**os.environ, "BI_PERFORMANCE_SOCKET": str(daemon.socket)}

        def answered() -> subprocess.CompletedProcess[str] | None:
            done = subprocess.run(
                [python, str(script)], capture_output=True, text=True, env=environ, cwd=tmp_path
            )
            # Once more when the daemon had no turn in time.
            return None if "performance daemon is away" in done.stderr else done

        done = wait_until(answered, within=60, what="a run with the daemon")
        assert done.stderr == ""
        said = r"Cache hit rate: [0-9]+\.[0-9]%\nApplied performance_focused profile\nvalue\n"
        assert re.fullmatch(said, done.stdout)
        status = subprocess.run(
            [str(place / "bin" / "bi-performance"), "status"],
            capture_output=True,
            text=True,
            env=environ,
            check=True,
        )
        assert "1 of 20,000 entries" in status.stdout
    done = subprocess.run(
        [python, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "BI_PERFORMANCE_SOCKET": str(tmp_path / "nobody")},
    )
    said = "Cache hit rate: 0.0%\nApplied None profile\nNone\n"
    assert done.returncode == 0 and done.stdout == said, "without a daemon it is a miss"
    assert "performance daemon is away" in done.stderr
