"""What a daemon leaves to tell the next one whether readers may still trust a store of its own.

An attached reader trusts its mapping until the daemon's deadline passes. A store that is taken up
ends that trust by a word in it; one whose file has vanished cannot be reached any more, and the
next daemon must let the time pass. This file says when it need not: the last daemon of the folder
took its word back at its end, or ran before the machine was started. It lies with the state, for a
runtime directory vanishes whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from bi_performanced.cache.memory import boot_id

FILE: Final = "store.json"
_MAX_BYTES: Final = 1 << 16


class Trace:
    """The file of one store's folder, in a daemon's state directory."""

    def __init__(self, state: Path, folder: Path) -> None:
        self.path = state / FILE
        self._folder = os.path.realpath(folder)

    def vouches(self) -> bool:
        """Whether nobody can be reading a store of this folder; False when that is not known."""
        try:
            with self.path.open("rb") as file:
                found = json.loads(file.read(_MAX_BYTES))
            folder, boot, running = found["folder"], found["boot"], found["running"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
        return folder == self._folder and (running is False or boot != boot_id().hex())

    def write(self, *, running: bool) -> None:
        """Say that a daemon serves a store of this folder, or that it has taken its word back.

        Raises OSError; the file does not vouch for anything then.
        """
        said = {"folder": self._folder, "boot": boot_id().hex(), "running": running}
        beside = self.path.with_name(FILE + ".new")
        try:
            beside.write_text(json.dumps(said) + "\n", encoding="utf-8")
            beside.replace(self.path)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
