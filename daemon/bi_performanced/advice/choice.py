"""What was chosen while running, kept over restarts: a profile, and single settings over it.

One small file is replaced whole, so that a daemon that is killed at any moment finds the old
choice or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from bi_performanced.advice.catalog import BALANCED

FILE: Final = "profile.json"
_MAX_BYTES: Final = 65536


class Choice(NamedTuple):
    profile: str = BALANCED
    adjustments: Mapping[str, Any] = {}
    """Values of single settings, by key."""


class Kept:
    """The file that holds the choice."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._beside = folder / (FILE + ".new")

    def read(self) -> Choice:
        """The choice that was kept, or the default. Raises ValueError with the reason."""
        try:
            with self.path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return Choice()
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}") from None
        try:
            found = json.loads(data[:_MAX_BYTES])
            profile, adjustments = found["profile"], found["adjustments"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{self.path} does not hold a choice of a profile") from None
        if not isinstance(profile, str) or not isinstance(adjustments, dict):
            raise ValueError(f"{self.path} does not hold a choice of a profile")
        return Choice(profile, adjustments)

    def prepare(self, choice: Choice) -> None:
        """Write a choice beside the file, safely on disk. Raises OSError."""
        data = json.dumps(choice._asdict(), indent=2).encode() + b"\n"
        fd = os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def commit(self) -> None:
        """Make what was prepared the choice. Raises OSError; the old one holds then."""
        self._beside.replace(self.path)
        # The rename itself is on disk once the directory is.
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Forget what was prepared."""
        with suppress(OSError):
            self._beside.unlink(missing_ok=True)
