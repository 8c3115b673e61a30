"""The past of all figures, in memory of a fixed size: ten minutes by seconds, a day by minutes."""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

SECONDS: Final = 600
MINUTES: Final = 1440
_KIND: Final = b"BIHISTORY"
_MAGIC: Final = _KIND + b"1\n"
_MAX_HEAD: Final = 1 << 16
MAX_BYTES: Final = 1 << 24
"""Of a file, beyond which it is none of ours."""
NAN: Final = math.nan


class Track:
    """The newest `size` points of every series, oldest first when read; NaN is unknown.

    A point's time is the wall clock's, for people: the order is that of arrival, whatever the
    clock does.
    """

    def __init__(self, names: Iterable[str], size: int) -> None:
        self.size = size
        self.names = tuple(names)
        self._times = array("d", [NAN]) * size
        self._values = {name: array("d", [NAN]) * size for name in self.names}
        self._next = 0
        self.count = 0

    def add(self, at: float, sample: Mapping[str, float | None]) -> None:
        """Append a point; series that are not in the sample are unknown there."""
        place = self._next
        self._times[place] = at
        for name, values in self._values.items():
            value = sample.get(name)
            values[place] = NAN if value is None else value
        self._next = (place + 1) % self.size
        self.count = min(self.count + 1, self.size)

    def last(self, name: str, count: int) -> list[float | None]:
        """The newest values of a series, oldest first."""
        if count <= 0:
            return []
        return [_known(value) for value in self._ordered(self._values[name])[-count:]]

    def times(self) -> list[float]:
        return self._ordered(self._times).tolist()

    def series(self) -> dict[str, list[float | None]]:
        """Every series, oldest first."""
        return {name: self.last(name, self.count) for name in self.names}

    def _ordered(self, values: array[float]) -> array[float]:
        if self.count < self.size:
            return values[: self.count]
        return values[self._next :] + values[: self._next]

    def dump(self) -> bytes:
        """The points, oldest first: times, then series after series."""
        columns = (self._times, *self._values.values())
        return b"".join(self._ordered(column).tobytes() for column in columns)

    def load(self, data: bytes, names: list[str], count: int) -> None:
        """Take up what `dump` gave, for those series that still exist. Raises ValueError."""
        if not 0 <= count <= self.size or len(data) != 8 * count * (1 + len(names)):
            raise ValueError("the history's length is not that of its points")
        columns = [array("d") for _ in range(1 + len(names))]
        for place, column in enumerate(columns):
            column.frombytes(data[8 * count * place : 8 * count * (place + 1)])
        if not all(map(math.isfinite, columns[0])):
            raise ValueError("it has points without a time")
        by_name = dict(zip(names, columns[1:], strict=True))
        for at in range(count):
            self.add(columns[0][at], {name: by_name[name][at] for name in by_name})


class Mean:
    """The mean of every series over the samples since the last one was taken."""

    def __init__(self, names: Iterable[str]) -> None:
        self._sums = dict.fromkeys(names, 0.0)
        self._counts = dict.fromkeys(self._sums, 0)

    def add(self, sample: Mapping[str, float | None]) -> None:
        """Count in what is known."""
        for name in self._sums:
            if (value := sample.get(name)) is not None:
                self._sums[name] += value
                self._counts[name] += 1

    def take(self) -> dict[str, float | None]:
        """The means, None for what was never known; and begin anew."""
        found = {
            name: self._sums[name] / count if count else None
            for name, count in self._counts.items()
        }
        self._sums = dict.fromkeys(self._sums, 0.0)
        self._counts = dict.fromkeys(self._sums, 0)
        return found


class History:
    """Both tracks, and their file."""

    def __init__(self, names: Iterable[str]) -> None:
        names = tuple(names)
        self.seconds = Track(names, SECONDS)
        self.minutes = Track(names, MINUTES)

    def dump(self) -> bytes:
        """Everything, as a file's content."""
        head = {
            "names": self.seconds.names,
            "counts": [self.seconds.count, self.minutes.count],
        }
        body = self.seconds.dump() + self.minutes.dump()
        return _MAGIC + json.dumps(head).encode() + b"\n" + body

    def load(self, data: bytes) -> None:
        """Take up a file's content; raises ValueError for what is none."""
        if data.startswith(_KIND) and not data.startswith(_MAGIC):
            raise ValueError("it is of another version's form")
        if not data.startswith(_MAGIC):
            raise ValueError("it does not begin as a history")
        head, newline, body = data[len(_MAGIC) :].partition(b"\n")
        if not newline or len(head) > _MAX_HEAD:
            raise ValueError("its head is missing")
        try:
            found: dict[str, Any] = json.loads(head)
            names = [str(name) for name in found["names"]]
            first, second = (int(count) for count in found["counts"])
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"its head cannot be read: {error}") from None
        split = 8 * first * (1 + len(names))
        self.seconds.load(body[:split], names, first)
        self.minutes.load(body[split:], names, second)

    def save(self, path: Path, data: bytes) -> None:
        """Put content into the file's place whole or not at all. Raises OSError."""
        beside = path.with_name(path.name + ".new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
