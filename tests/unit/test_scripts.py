"""The scripts on a machine that lacks something: one line that names it, status 2."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

WITHOUT_VENV = """#!/bin/sh
case "$*" in
*ensurepip*) exit 1 ;;
esac
exit 0
"""
OLD = """#!/bin/sh
case "$*" in
*version_info*) exit 1 ;;
-V) echo Python 3.9.2 ;;
esac
exit 0
"""


@pytest.mark.parametrize("script", ["demo", "test"])
@pytest.mark.parametrize(
    ("python", "words"),
    [
        (None, "apt install python3 python3-venv"),
        (WITHOUT_VENV, "apt install python3-venv"),
        (OLD, "3.11 or newer is needed; "),
    ],
)
def test_a_python_that_cannot_be_used_is_named_with_the_remedy(
    tmp_path: Path, script: str, python: str | None, words: str
) -> None:
    program = tmp_path / "python3"
    if python is not None:
        program.write_text(python)
        program.chmod(0o755)
    done = subprocess.run(
        [str(SCRIPTS / script)],
        env={**os.environ, "PYTHON": str(program)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1
