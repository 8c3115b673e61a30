"""How many bytes the store may have while memory is short, and when it may have them back.

It is halved at once and doubled only after a span of calm, which itself doubles with every relapse.
What is not known changes nothing. Nothing here reads a clock or a file.
"""

from __future__ import annotations

from typing import Final

from bi_performanced.host.signs import Signs

SHORT: Final = 0.05
"""Share of the memory that can be had, below which it is short, whatever else is known."""
UNEASY: Final = 0.25
"""Below which it is short when tasks wait for it."""
EASY: Final = 0.15
"""Above which it is not short, when nobody waits."""
SOME: Final = 15.0
"""Percent of the time in which some task waits for memory, from which it counts as waiting."""
FULL: Final = 5.0
"""The same of all tasks."""
CALM_PART: Final = 3
"""A third of these is calm."""
LOOKS: Final = 3
"""Looks one after the other that must find memory short."""
SETTLE: Final = 10.0
"""Seconds from one change until the next: what was freed shows in averages of ten seconds."""
CALM: Final = 60.0
"""Seconds without want after which the budget is doubled."""
LONGEST_CALM: Final = 3600.0
RELAPSE: Final = 600.0
"""Seconds from a growth in which want speaks against it: the next one waits twice as long."""
FLOOR_PART: Final = 8
FILE_FACTOR: Final = 1.5
"""What a store takes for each byte that it may hold."""


class Budget:
    """Between `least` and `most` bytes. `look` is called every few seconds."""

    def __init__(self, most: int) -> None:
        self.reset(most)

    def reset(self, most: int) -> None:
        """Begin anew, with another limit or the same."""
        self.most = most
        self.bytes = most
        """What the store may have now."""
        self.reason: str | None = None
        """Why that is less than `most`."""
        self._short = 0
        self._calm_since: float | None = None
        self._changed_at: float | None = None
        self._grown_at: float | None = None
        self._patience = CALM

    @property
    def least(self) -> int:
        return max(1, self.most // FLOOR_PART)

    def look(self, now: float, signs: Signs, taken: int) -> bool:
        """Go by what is known at `now` (seconds on any clock that only grows); whether `bytes`
        changed. `taken`: what the store is sized for now."""
        short = why_short(signs)
        self._short = self._short + 1 if short else 0
        if not is_calm(signs):
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        if self._changed_at is not None and now - self._changed_at < SETTLE:
            return False
        if short and self._short >= LOOKS:
            return self._shrink(now, short, taken)
        return self._grow(now, signs)

    def _shrink(self, now: float, reason: str, taken: int) -> bool:
        wanted = max(self.least, min(self.bytes, taken) // 2)
        if wanted >= self.bytes:
            return False
        if self._grown_at is not None and now - self._grown_at < RELAPSE:
            self._patience = min(LONGEST_CALM, 2 * self._patience)
        self.bytes, self.reason = wanted, reason
        self._changed_at, self._short = now, 0
        return True

    def _grow(self, now: float, signs: Signs) -> bool:
        if self.bytes == self.most or self._calm_since is None:
            return False
        if now - self._calm_since < self._patience:
            return False
        wanted = min(self.most, 2 * self.bytes)
        if not signs.share or signs.free_bytes is None:
            return False
        left = signs.free_bytes - FILE_FACTOR * (wanted - self.bytes)
        if left < EASY * signs.free_bytes / signs.share:
            # Then it would be short again.
            return False
        self.bytes = wanted
        if wanted == self.most:
            self.reason = None
        self._changed_at = self._grown_at = self._calm_since = now
        return True


def why_short(signs: Signs) -> str | None:
    """What makes memory short, as a sentence, or None."""
    if signs.share is None:
        return None
    if signs.share < SHORT:
        return f"{signs.share:.0%} of the memory of {signs.where} is left"
    if signs.share < UNEASY:
        if signs.full is not None and signs.full >= FULL:
            return (
                f"all tasks wait for memory {signs.full:.0f} % of the time,"
                f" and {signs.share:.0%} of that of {signs.where} is left"
            )
        if signs.some is not None and signs.some >= SOME:
            return (
                f"tasks wait for memory {signs.some:.0f} % of the time,"
                f" and {signs.share:.0%} of that of {signs.where} is left"
            )
    return None


def is_calm(signs: Signs) -> bool:
    """Whether nothing speaks of want, and something against it."""
    return (
        signs.share is not None
        and signs.share >= EASY
        and (signs.some is None or signs.some < SOME / CALM_PART)
        and (signs.full is None or signs.full < FULL / CALM_PART)
    )
