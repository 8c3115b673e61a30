"""Deletions and clears that Redis has not heard of yet, on disk.

A file of records that is only appended to: length, checksum, kind, bytes. All of them take
something away, so their order does not matter and sending one twice does no harm. Values never go
here.

    u32 length of the body · u32 check of that · u32 check of the body
    body: `k` and a key, or `p` and a predicate

The checks are low halves of xxh3. A record that ends too early was being written when the daemon
died, and was not acknowledged; anything else that does not fit is damage.

When there are too many they become one clear of everything: a miss more for everybody, but never an
old value. After a failed write or fsync the file is written anew beside, for the next fsync of the
same file would say nothing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio
import xxhash

from bi_performanced.remote.predicate import Predicate

MAX_KEYS: Final = 200_000
MAX_BYTES: Final = 32 << 20
"""Keys, and bytes of keys, that are told apart; beyond, everything is cleared."""
MAX_CLEARS: Final = 1000
_COMPACT: Final = 1 << 20
_RECORD: Final = struct.Struct(">III")
_EVERYTHING: Final = Predicate()


class Outbox:
    """The outbox of one shard. The calls that change it are synchronous; `save` makes it last."""

    def __init__(self, path: Path, *, max_keys: int = MAX_KEYS, max_bytes: int = MAX_BYTES) -> None:
        """Read what an earlier daemon has left. A damaged end is cut off, other damage clears
        everything, for what was to be deleted is not known then."""
        self.path = path
        self._max_keys, self._max_bytes = max_keys, max_bytes
        self._keys: dict[bytes, None] = {}
        self._clears: dict[Predicate, None] = {}
        self._bytes = 0
        self._unsaved: list[bytes] = []
        self._file_bytes = 0
        self._anew = False
        """The file has to be written as a whole."""
        self.failed: str | None = None
        """Why it could not be saved, until it could."""
        self._lock = trio.Lock()
        self._read()

    def __len__(self) -> int:
        return len(self._keys) + len(self._clears)

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    @property
    def clears(self) -> Iterable[Predicate]:
        return self._clears

    @property
    def saved(self) -> bool:
        return not self._unsaved and not self._anew

    def add(self, keys: Iterable[bytes], clears: Iterable[Predicate] = ()) -> None:
        """Note what is to be deleted."""
        for key in keys:
            if key not in self._keys and _EVERYTHING not in self._clears:
                self._keys[key] = None
                self._bytes += len(key)
                self._unsaved.append(b"k" + key)
        for predicate in clears:
            if predicate not in self._clears and _EVERYTHING not in self._clears:
                self._clears[predicate] = None
                self._unsaved.append(b"p" + predicate.pack())
        if (
            len(self._keys) > self._max_keys
            or self._bytes > self._max_bytes
            or len(self._clears) > MAX_CLEARS
        ):
            self._clear_everything()

    def _clear_everything(self) -> None:
        self._keys.clear()
        self._clears = {_EVERYTHING: None}
        self._bytes = 0
        self._unsaved.clear()
        self._anew = True

    def some(self, count: int) -> tuple[list[bytes], list[Predicate]]:
        """Up to `count` keys, and clears, to be sent and then told to `sent`."""
        keys = [key for key, _ in zip(self._keys, range(count), strict=False)]
        return keys, list(self._clears)[: max(0, count - len(keys))]

    def sent(self, keys: Iterable[bytes], clears: Iterable[Predicate]) -> None:
        """Redis has carried these out."""
        for key in keys:
            if key in self._keys:
                del self._keys[key]
                self._bytes -= len(key)
        for predicate in clears:
            self._clears.pop(predicate, None)
        if not len(self):
            self._unsaved.clear()
            self._anew = self._anew or self._file_bytes > 0
        elif self._file_bytes > 2 * self._bytes + _COMPACT:
            self._unsaved.clear()
            self._anew = True

    async def save(self, limiter: trio.CapacityLimiter) -> bool:
        """Put on disk what was noted before this call; whether it is there.

        Writes and fsyncs in a thread that is not abandoned when this is cancelled.
        """
        async with self._lock:
            if self.saved:
                return True
            records, self._unsaved = self._unsaved, []
            anew, self._anew = self._anew or self.failed is not None, False
            if anew:
                records = [b"k" + key for key in self._keys]
                records += [b"p" + predicate.pack() for predicate in self._clears]
            data = b"".join(_record(body) for body in records)
            try:
                write = self._replace if anew else self._append
                await trio.to_thread.run_sync(write, data, limiter=limiter)
            except OSError as error:
                self._anew = True
                self.failed = f"{self.path} cannot be written: {error.strerror}"
                return False
            except trio.Cancelled:
                # The thread was not begun; all of it is written the next time.
                self._anew = True
                raise
            self._file_bytes = len(data) + (0 if anew else self._file_bytes)
            self.failed = None
            return True

    def _append(self, data: bytes) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        if not self._file_bytes:
            _sync_folder(self.path.parent)

    def _replace(self, data: bytes) -> None:
        if not data:
            self.path.unlink(missing_ok=True)
            return
        beside = self.path.with_name(self.path.name + ".new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        beside.replace(self.path)
        _sync_folder(self.path.parent)

    def _read(self) -> None:
        with suppress(OSError):
            self.path.with_name(self.path.name + ".new").unlink(missing_ok=True)
        try:
            if self.path.stat().st_size > 4 * self._max_bytes + (64 << 20):
                self._clear_everything()
                return
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError:
            self._clear_everything()
            return
        self._file_bytes = len(data)
        at = 0
        while at + _RECORD.size <= len(data):
            size, size_check, check = _RECORD.unpack_from(data, at)
            if _check(data[at : at + 4]) != size_check:
                self._clear_everything()
                return
            body = data[at + _RECORD.size : at + _RECORD.size + size]
            if len(body) < size:
                break
            at += _RECORD.size + size
            predicate = Predicate.unpack(body[1:]) if body[:1] == b"p" else None
            if _check(body) != check or (body[:1] != b"k" and predicate is None):
                self._clear_everything()
                return
            if predicate is None:
                self.add([body[1:]])
            else:
                self.add([], [predicate])
        self._unsaved.clear()
        # What was cut off by a crash was never acknowledged.
        self._anew = self._anew or at < len(data)


def _record(body: bytes) -> bytes:
    size = len(body).to_bytes(4, "big")
    return _RECORD.pack(len(body), _check(size), _check(body)) + body


def _check(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data) & 0xFFFFFFFF


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
