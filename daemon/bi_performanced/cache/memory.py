"""The store's file, mapped: creation in full, adoption after a restart, release."""

from __future__ import annotations

import mmap
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from bi_performance_wire import layout as L
from bi_performance_wire.errors import UNAVAILABLE, WireError
from bi_performance_wire.extra import TAG_WORDS

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Geometry(NamedTuple):
    """How large the parts of a store are, in slots and bytes."""

    slots: int
    small_bytes: int
    main_bytes: int

    @classmethod
    def for_limits(cls, max_entries: int, max_bytes: int) -> Geometry:
        """Parts for `max_entries` live entries of together `max_bytes`.

        The rings take 1.5 times the live bytes: dead space is reclaimed only where a tail
        passes, and with a third of the main ring to spare a live entry is copied about three
        times at the worst before its ring's dead space comes round. The index is filled to 0.76
        at the most: with the 28 bytes of a record's head an entry takes 39.9 bytes beside key and
        value, and Robin Hood probes are still short (2.6 slots for one that is there; at 0.7, 2.2).
        """
        # An odd count keeps the modulus from looking at the hash's low bits alone.
        slots = max(64, max_entries * 25 // 19) | 1
        return cls(slots, _align(max_bytes // 5), _align(max_bytes * 13 // 10))

    @property
    def index_at(self) -> int:
        return L.PAGE

    @property
    def frequency_at(self) -> int:
        return self.index_at + 8 * (self.slots + L.GUARD_SLOTS)

    @property
    def tags_at(self) -> int:
        return (self.frequency_at + self.slots + L.GUARD_SLOTS + 7) // 8 * 8

    @property
    def small_at(self) -> int:
        return _align(self.tags_at + 8 * TAG_WORDS)

    @property
    def main_at(self) -> int:
        return self.small_at + self.small_bytes

    @property
    def file_bytes(self) -> int:
        return self.main_at + self.main_bytes

    @property
    def max_record(self) -> int:
        """The largest record: a sixteenth of the main ring, as far as 24 bits count."""
        return min(L.SIZE, self.main_bytes // 16)

    def words(self) -> dict[int, int]:
        """What the control page says of it."""
        return {
            L.W_SLOTS: self.slots,
            L.W_INDEX_AT: self.index_at,
            L.W_FREQUENCY_AT: self.frequency_at,
            L.W_TAGS_AT: self.tags_at,
            L.W_SMALL_AT: self.small_at,
            L.W_SMALL_BYTES: self.small_bytes,
            L.W_MAIN_AT: self.main_at,
            L.W_MAIN_BYTES: self.main_bytes,
            L.W_MAX_RECORD: self.max_record,
        }


MOST_EPOCHS = 1 << 62
_SLICE = 4 << 20


def _align(size: int) -> int:
    return (size + L.PAGE - 1) // L.PAGE * L.PAGE


def boot_id() -> bytes:
    """The kernel's identity of this boot (16 bytes). Raises WireError where it is hidden."""
    try:
        text = BOOT_ID.read_text(encoding="ascii")
        return bytes.fromhex(text.strip().replace("-", ""))
    except (OSError, ValueError) as error:
        raise WireError(
            UNAVAILABLE,
            f"{BOOT_ID}, which tells one boot from another, cannot be read:"
            f" {getattr(error, 'strerror', None) or error}",
            hint="let the daemon see /proc/sys: ProcSubset=pid of a systemd unit hides it",
        ) from error


class Memory:
    """A mapped store: the bytes, and the same bytes as 64-bit words.

    A word is stored by one aligned 8-byte access (a cast memoryview copies an item whole, which
    `struct` with an explicit byte order does not), so another process sees the old word or the
    new one. Only the daemon has a writable mapping. `close` unmaps; the file stays.
    """

    def __init__(self, mapping: mmap.mmap) -> None:
        self.bytes = mapping
        self._view = memoryview(mapping)
        self.words: memoryview[int] = self._view[: len(mapping) // 8 * 8].cast("Q")
        self.size = len(mapping)
        """Bytes of the file, all of them allocated."""

    @classmethod
    def create(
        cls,
        path: Path | None,
        max_entries: int,
        max_bytes: int,
        *,
        epoch: int,
        seed: int | None = None,
    ) -> Memory:
        """Make a store at `path` (None: private memory, for simulations), allocated in full.

        `seed` is that of the keys' hashes, at random when none is given.
        Raises OSError when the file system cannot hold it, WireError when there is no boot_id;
        nothing is left behind then.
        """
        L.require_little_endian()
        boot = boot_id()
        geometry = Geometry.for_limits(max_entries, max_bytes)
        size = geometry.file_bytes
        if path is None:
            mapping = mmap.mmap(-1, size)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # A hole would be filled at the first store to it: on a full file system that is
                # a SIGBUS in the daemon instead of an error here.
                os.posix_fallocate(fd, 0, size)
                mapping = mmap.mmap(fd, size)
            except OSError as error:
                path.unlink()
                # posix_fallocate(3) does not say where.
                error.filename = str(path.parent)
                raise
            finally:
                os.close(fd)
        memory = cls(mapping)
        words = memory.words
        words[L.W_EPOCH] = epoch
        mapping[8 * L.W_BOOT_ID : 8 * L.W_BOOT_ID + 16] = boot
        words[L.W_FILE_BYTES] = size
        words[L.W_SEED] = secrets.randbits(63) if seed is None else seed
        words[L.W_MAX_ENTRIES] = max_entries
        words[L.W_MAX_BYTES] = max_bytes
        for word, value in geometry.words().items():
            words[word] = value
        words[L.W_OUTAGE] = L.NEVER
        # Last: a file without its magic was never finished.
        words[L.W_MAGIC] = L.MAGIC
        return memory

    @classmethod
    def adopt(cls, path: Path) -> Memory:
        """Map the store that an earlier daemon left.

        Raises FileNotFoundError, or LayoutError with the reason why it cannot be used: another
        format, another boot, damaged. WireError when there is no boot_id.
        """
        L.require_little_endian()
        boot = boot_id()
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(fd).st_size
            if size < L.PAGE:
                raise L.LayoutError("the store's file is shorter than its control page")
            # Pages that a damaged file lost would be holes; see create().
            os.posix_fallocate(fd, 0, size)
            mapping = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        memory = cls(mapping)
        try:
            L.check_geometry(memory.words, size)
            words = memory.words
            geometry = Geometry.for_limits(words[L.W_MAX_ENTRIES], words[L.W_MAX_BYTES])
            if any(words[word] != value for word, value in geometry.words().items()):
                raise L.LayoutError("the store's parts do not fit its limits")
            if words[L.W_EPOCH] >= MOST_EPOCHS:
                raise L.LayoutError("the store's epoch is impossible")
            if mapping[8 * L.W_BOOT_ID : 8 * L.W_BOOT_ID + 16] != boot:
                raise L.LayoutError("the store is of an earlier boot")
        except L.LayoutError:
            memory.close()
            raise
        return memory

    def punch(self, start: int, end: int) -> None:
        """Give whole pages between two offsets back to the system: they are zeros from now on.

        Nothing may be stored there before `refill`: on a full file system it would be a SIGBUS.
        """
        first, last = _align(start), end // L.PAGE * L.PAGE
        # In slices: madvise(2) keeps the interpreter's lock, 200 ms for a GiB.
        for start in range(first, last, _SLICE):
            self.bytes.madvise(mmap.MADV_REMOVE, start, min(_SLICE, last - start))

    @staticmethod
    def refill(path: Path) -> None:
        """Allocate again what was punched. Raises OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.posix_fallocate(fd, 0, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def release_pages(self) -> None:
        """Give the file's pages back to the system while readers still map it.

        They read zeros then, which no checksum admits; the file keeps its length, so nobody
        gets a SIGBUS. The control page stays.
        """
        self.punch(L.PAGE, len(self.bytes))

    def close(self) -> None:
        self.words.release()
        self._view.release()
        self.bytes.close()
