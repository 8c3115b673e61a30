"""A warning at a limited rate."""

from __future__ import annotations

import logging
import time
from typing import Final

EVERY: Final = 30.0
"""Seconds between two warnings of one kind."""


class Limited:
    """Says at most every 30 seconds what happens, with how often it did."""

    def __init__(self, log: logging.Logger, text: str) -> None:
        """`text` has one %s, for the reason of the last time."""
        self._log = log
        self._text = text + " [%d times]"
        self._at = float("-inf")
        self._unsaid = 0
        self.count = 0
        """How often it happened in this process."""

    def say(self, reason: object) -> None:
        self.count += 1
        self._unsaid += 1
        now = time.monotonic()
        if now - self._at >= EVERY:
            self._at = now
            unsaid, self._unsaid = self._unsaid, 0
            self._log.warning(self._text, reason, unsaid)
