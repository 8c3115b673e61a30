"""Reading the kernel's text files, believing nothing of what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bi_performanced.host import Unknown

_MOST: Final = 1 << 20
"""Bytes beyond which a file is not what it should be."""
_LARGEST: Final = (1 << 64) - 1
_MOST_DIGITS: Final = 20


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong with a file, and with its form, into Unknown that names the file."""
    try:
        yield
    except ProcessLookupError:
        raise Unknown(f"{path}: the process has ended") from None
    except OSError as error:
        # One read below an open folder is named by its last part alone.
        named = str(error.filename)
        where = named if named.startswith("/") else path
        raise Unknown(f"{where}: {error.strerror or error}") from None
    except (ValueError, IndexError, KeyError):
        raise Unknown(f"{path}: is not of the form that is known") from None


def text(path: Path | str, folder: int | None = None) -> str:
    """A file's text, read below an open folder if one is given.

    Raises OSError, or ValueError for one that is too large to be the kernel's.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        pieces = []
        size = 0
        # A file of the kernel has no size, and is given out a page at a time.
        while piece := os.read(fd, 1 << 16):
            pieces.append(piece)
            size += len(piece)
            if size > _MOST:
                raise ValueError("too large")
    finally:
        os.close(fd)
    return b"".join(pieces).decode("ascii", "replace")


def whole(word: str) -> int:
    """A count as the kernel writes it. Raises ValueError."""
    if not word.isdecimal() or not word.isascii() or len(word) > _MOST_DIGITS:
        raise ValueError(word)
    number = int(word)
    if number > _LARGEST:
        raise ValueError(word)
    return number


def decimal(word: str) -> float:
    """A number with a point, as the kernel writes one. Raises ValueError."""
    first, point, second = word.partition(".")
    if point:
        whole(second)
    return whole(first) if not point else float(f"{whole(first)}.{second}")
