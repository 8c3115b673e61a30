"""The store at a start: whose directory it is, and what is taken up of an earlier daemon's."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from bi_performance_wire import layout as L
from bi_performance_wire.errors import UNAVAILABLE, WireError
from bi_performanced.cache.clients import boot_clock
from bi_performanced.cache.memory import Geometry, Memory
from bi_performanced.cache.recovery import recover
from bi_performanced.cache.store import Damaged, Store
from bi_performanced.cache.tenants import make_store
from bi_performanced.cache.trace import Trace
from bi_performanced.config import CacheSettings
from bi_performanced.config.limits import free_bytes
from bi_performanced.config.tenants import quotas_of

log = structlog.get_logger("performance")

START_BYTES = 32 << 20
"""A store begins at this size and grows towards `cache.max_bytes` as it fills."""
LEAST_BYTES = 1 << 20
ALIVE_NS: Final = 1_000_000_000
"""How far ahead of a heartbeat readers trust the store, in nanoseconds."""


class Opened(NamedTuple):
    """A store that is this daemon's alone."""

    store: Store
    path: Path
    lock_fd: int
    """A descriptor whose lock keeps other daemons out."""
    trace: Trace
    ready_at: int
    """The boot clock in ns before which nothing may be acknowledged; 0 for at once."""


def open_store(settings: CacheSettings, runtime_dir: Path, state_dir: Path) -> Opened:
    """Take up the store that is there, or make one.

    Raises WireError (unavailable) when the directory is in use by another daemon, cannot be
    written, or cannot hold the smallest store.
    """
    folder = settings.store_dir or runtime_dir
    path = folder / "store"
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        lock_fd = os.open(
            folder / "store.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise _unavailable(folder, error) from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_fd)
        raise WireError(
            UNAVAILABLE,
            f"another daemon uses the store in {folder}",
            field="cache.store_dir",
            hint="stop it, or give this one a directory of its own",
        ) from error
    try:
        path.with_name("store.new").unlink(missing_ok=True)
        trace = Trace(state_dir, folder)
        store, cut_off = _take_up(path, settings)
        ready_at = 0 if cut_off or trace.vouches() else boot_clock() + ALIVE_NS
        try:
            trace.write(running=True)
        except OSError:
            # Without the file the next daemon waits, that is all; one that lies is a fault.
            if trace.vouches():
                raise
        return Opened(store, path, lock_fd, trace, ready_at)
    except OSError as error:
        os.close(lock_fd)
        raise _unavailable(folder, error) from error


def _take_up(path: Path, settings: CacheSettings) -> tuple[Store, bool]:
    """The store at `path`, recovered, or a new one; whether readers of the old one are cut off."""
    cut_off = False
    try:
        memory = Memory.adopt(path)
    except FileNotFoundError:
        pass
    except L.LayoutError as error:
        log.warning("cache.set_aside", path=str(path), reason=str(error))
        cut_off = _cut_off(path)
        path.unlink()
    else:
        store = _recovered(path, memory, settings)
        if store is not None:
            return store, True
        cut_off = True
    size = settings.max_bytes if _cannot_grow(path.parent, settings) else START_BYTES
    size = min(settings.max_bytes, size)
    while True:
        try:
            epoch = boot_clock() // 1_000_000
            memory = Memory.create(path, settings.max_size, size, epoch=epoch)
            return make_store(memory, quotas_of(settings.tenants)), cut_off
        except OSError as error:
            if error.errno != errno.ENOSPC or size <= LEAST_BYTES:
                raise
            size //= 2


def _cannot_grow(folder: Path, settings: CacheSettings) -> bool:
    """Whether the last step to `cache.max_bytes` would have no room: a store that grows is there
    twice for a moment."""
    whole, half = (
        Geometry.for_limits(settings.max_size, settings.max_bytes // part).file_bytes
        for part in (1, 2)
    )
    return whole <= free_bytes(folder) < whole + half


def _cut_off(path: Path) -> bool:
    """End the trust of whoever maps a file that cannot be taken up; whether that was done.

    Its first page holds the deadlines, where it is a store at all.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        # Not beyond its end: a hole could not be filled on a full file system.
        size = min(L.PAGE, os.fstat(fd).st_size)
        return os.pwrite(fd, bytes(size), 0) == size == L.PAGE
    except OSError:
        return False
    finally:
        os.close(fd)


def _recovered(path: Path, memory: Memory, settings: CacheSettings) -> Store | None:
    """An adopted store with its index made anew, or None (and no file) when it is damaged.

    Readers of the earlier epoch are cut off before anything is touched.
    """
    words = memory.words
    for word in range(L.W_ALIVE, L.W_ALIVE + L.ALIVE_WORDS):
        words[word] = 0
    words[L.W_EPOCH] += 1
    store = make_store(memory, quotas_of(settings.tenants))
    try:
        kept = recover(store, boot_clock())
    except Damaged as error:
        log.warning("cache.set_aside", path=str(path), reason=str(error))
        store.close()
        path.unlink()
        return None
    log.info("cache.recovered", entries=kept, size_bytes=store.live_bytes)
    return store


def _unavailable(folder: Path, error: OSError) -> WireError:
    return WireError(
        UNAVAILABLE,
        f"the store cannot be kept in {folder}: {error.strerror}",
        field="cache.store_dir",
        hint="give a directory that can be written and has room, best on a tmpfs",
    )
