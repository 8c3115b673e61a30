"""What the daemon hands to an attached process, and what it reads of the process's own pages."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from bi_performance_wire import layout as L
from bi_performance_wire.types import Attached
from bi_performanced.cache.notes import NOTHING, Noted, Notes
from bi_performanced.cache.store import Store

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def boot_clock() -> int:
    """Nanoseconds on the clock that everything stored or shared goes by."""
    return time.clock_gettime_ns(L.BOOT_CLOCK)


MAX_RATE = 20_000_000
"""Reads a second beyond which a client's own counters are not believed."""

IN_FLIGHT = 1000
"""Reads that a client's threads may be within at one time."""

IDLE_MAPS = 4
"""Touch maps that are kept of uids of which no process is attached any more."""

_FIGURES = (L.P_HITS, L.P_MISSES, L.P_EXPIRED, L.P_TORN, L.P_HIT_BYTES, L.P_OBSERVED)


def sealed_memory(name: str, size: int) -> int:
    """A memfd of a size that nobody can change: a client cannot make the daemon's map fault."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


@dataclass
class Figures:
    """Counters of one client or of many, as far as they were plausible."""

    hits: int = 0
    misses: int = 0
    expired: int = 0
    torn: int = 0
    hit_bytes: int = 0
    observed: int = 0

    def add(self, other: Figures) -> None:
        self.hits += other.hits
        self.misses += other.misses
        self.expired += other.expired
        self.torn += other.torn
        self.hit_bytes += other.hit_bytes
        self.observed += other.observed


class OwnWords(NamedTuple):
    """What a process told of itself, as it stands in its page: nothing of it is to be believed.

    Each but the two times is None where the process does not know it.
    """

    at: int = 0
    """The boot clock in ns; 0 when it told nothing yet."""
    cpu_ns: int | None = None
    rss_bytes: int | None = None
    threads: int | None = None
    open_files: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None
    swap_bytes: int | None = None
    pss_at: int = 0
    pss_bytes: int | None = None

    @classmethod
    def of(cls, words: memoryview[int]) -> OwnWords:
        def told(word: int) -> int | None:
            # The words hold one more, so that 0 is unknown.
            found = words[word]
            return found - 1 if found else None

        return cls(
            at=words[L.P_OWN_AT],
            cpu_ns=told(L.P_OWN_CPU_NS),
            rss_bytes=told(L.P_OWN_RSS),
            threads=told(L.P_OWN_THREADS),
            open_files=told(L.P_OWN_FILES),
            read_bytes=told(L.P_OWN_READ),
            write_bytes=told(L.P_OWN_WRITTEN),
            swap_bytes=told(L.P_OWN_SWAP),
            pss_at=words[L.P_OWN_PSS_AT],
            pss_bytes=told(L.P_OWN_PSS),
        )


class TouchMap:
    """One byte an index slot, written by all clients of one uid.

    It outlives them: what they have read is known from nowhere else.
    """

    def __init__(self, uid: int, size: int) -> None:
        self.fd = sealed_memory(f"bi-performance-touches-{uid}", size)
        self._map = mmap.mmap(self.fd, size)
        self.view = memoryview(self._map)
        self.users = 0

    def close(self) -> None:
        os.close(self.fd)
        self.view.release()
        self._map.close()


@dataclass
class Attachment:
    """One attached process, from its `attach` until its connection ends.

    `fds` are the store (read-only), the client's page and its uid's touch map, to be sent with
    the reply. Whoever sent them calls `close_fds`, so that an attached process costs the daemon
    two descriptors, its connection and the copy that the page's mapping keeps; `close` does it too.
    """

    reply: Attached
    uid: int
    pid: int
    """As the client sees itself; for people only."""
    peer_pid: int
    """As the kernel says; 0 for a process in a PID namespace that the daemon cannot see into."""
    name: str
    instance: bytes
    fds: list[int]
    _page: mmap.mmap
    _words: memoryview[int]
    _on_close: Callable[[Attachment], None]
    attached_at: int
    """The boot clock in ns."""
    figures: Figures = field(default_factory=Figures)
    plausible: bool = True
    _seen_at: int = 0
    closed: bool = False
    _log_seen: int = 0
    _notes: Notes = field(default_factory=Notes)
    _noted_at: tuple[int, int] = (0, 0)

    def logged(self) -> list[int]:
        """Hashes of sampled keys that the client read since the last call, in order.

        Of more than LOG_WORDS the latest. What a client writes there is its own, so they may be
        anything.
        """
        if self.closed:
            return []
        words = self._words
        head = words[L.P_LOG_HEAD]
        new = head - self._log_seen
        if not new:
            return []
        self._log_seen = head
        if not 0 < new <= L.LOG_WORDS:
            new = L.LOG_WORDS
        return [words[L.P_LOG + at % L.LOG_WORDS] for at in range(max(0, head - new), head)]

    def sample(self, now: int) -> Figures:
        """The client's figures, taken over as far as they grew as figures can."""
        if not self.closed and self.plausible:
            before = self.figures
            seen = Figures(*(self._words[word] for word in _FIGURES))
            # A reader that only observes takes back a hit, which was perhaps seen before that.
            if 0 < before.hits - seen.hits <= IN_FLIGHT:
                seen.hits = before.hits
            allowed = (now - self._seen_at) * MAX_RATE // 1_000_000_000 + 1000
            if (
                0 <= seen.hits - before.hits <= allowed
                and 0 <= seen.misses - before.misses <= allowed
                and 0 <= seen.observed - before.observed <= allowed
            ):
                self.figures = seen
                self._seen_at = now
            else:
                self.plausible = False
        return self.figures

    def noted(self, now: int) -> Noted:
        """What was noted of single reads since the last call; of a closed one, nothing.

        Each of them stands for as many as the figures, which are checked, have grown by.
        """
        if self.closed or not self._notes.news(self._words):
            return NOTHING
        before = self._noted_at
        figures = self.sample(now)
        self._noted_at = figures.hits, figures.misses
        if not self.plausible:
            return NOTHING
        return self._notes.since(self._words, figures.hits - before[0], figures.misses - before[1])

    def own_words(self) -> OwnWords:
        """What the process tells of itself; of a closed one, nothing."""
        return OwnWords() if self.closed else OwnWords.of(self._words)

    def close(self) -> None:
        """Take the last figures, give back descriptors and mapping. Safe to call twice."""
        if not self.closed:
            self._on_close(self)
            self.closed = True
            self._words.release()
            self._page.close()
            self.close_fds()

    def close_fds(self) -> None:
        """Close the descriptors, once they were sent."""
        fds, self.fds = self.fds, []
        for fd in fds:
            os.close(fd)


class Clients:
    """All attached processes, and the touch maps of their uids for the store in service."""

    def __init__(self, store: Store, store_fd: int) -> None:
        self.attached: dict[int, Attachment] = {}
        self.retired = Figures()
        self._store = store
        self._store_fd = store_fd
        self._touch_maps: dict[int, TouchMap] = {}
        self._serial = 0
        self.on_close: Callable[[Attachment], None] = lambda attachment: None
        """Called when a process leaves, before its page goes."""
        store.policy.drain = self.logged

    def logged(self) -> list[int]:
        """Hashes that clients logged of what they read, since the last call."""
        found: list[int] = []
        for attachment in self.attached.values():
            found += attachment.logged()
        return found

    def attach(
        self,
        reply: Attached,
        *,
        uid: int,
        pid: int,
        peer_pid: int,
        name: str,
        instance: bytes,
        now: int,
    ) -> Attachment:
        """Make a page and share the uid's touch map. Raises OSError when out of descriptors."""
        touches = self._touch_maps.get(uid)
        if touches is None:
            touches = TouchMap(uid, self._store.index.slots + L.GUARD_SLOTS)
            self._touch_maps[uid] = touches
            self._store.index.touch_maps.append(touches.view)
        page_fd = sealed_memory("bi-performance-page", L.PAGE)
        page = mmap.mmap(page_fd, L.PAGE)
        words = memoryview(page).cast("Q")
        words[L.P_MAGIC] = L.PAGE_MAGIC
        touches.users += 1
        self._serial += 1
        serial = self._serial

        def closing(attachment: Attachment) -> None:
            self.on_close(attachment)
            self.retired.add(attachment.sample(boot_clock()))
            del self.attached[serial]
            touches.users -= 1
            if not touches.users:
                self._leave(uid, touches)

        attachment = Attachment(
            reply,
            uid,
            pid,
            peer_pid,
            name[:100],
            instance,
            [os.dup(self._store_fd), page_fd, os.dup(touches.fd)],
            page,
            words,
            closing,
            now,
            _seen_at=now,
        )
        self.attached[serial] = attachment
        return attachment

    def figures(self, now: int) -> Figures:
        """The sum over all clients that are and were attached."""
        total = Figures()
        total.add(self.retired)
        for attachment in self.attached.values():
            total.add(attachment.sample(now))
        return total

    def move_to(self, store: Store, store_fd: int) -> None:
        """Serve another store from now on; processes attached to the old one must come again.

        Their touch maps are of no more use.
        """
        self._drop_all()
        os.close(self._store_fd)
        self._store.policy.drain = list
        self._store = store
        self._store_fd = store_fd
        store.policy.drain = self.logged

    def _leave(self, uid: int, touches: TouchMap) -> None:
        """The last process of a uid has left: its map stays for those that come after it.

        Of more than IDLE_MAPS the one goes that has been without a process for the longest time:
        every map costs the daemon a little at each entry that it stores or looks for.
        """
        if self._touch_maps.get(uid) is not touches:
            return
        # In the order in which they were left.
        self._touch_maps[uid] = self._touch_maps.pop(uid)
        idle = [each for each, found in self._touch_maps.items() if not found.users]
        for each in idle[:-IDLE_MAPS]:
            self._drop(each)

    def _drop(self, uid: int) -> None:
        touches = self._touch_maps.pop(uid)
        maps = self._store.index.touch_maps
        # By identity: views compare by what they show.
        maps[:] = [view for view in maps if view is not touches.view]
        touches.close()

    def _drop_all(self) -> None:
        for uid in list(self._touch_maps):
            self._drop(uid)

    def close(self) -> None:
        for attachment in list(self.attached.values()):
            attachment.close()
        self._drop_all()
        os.close(self._store_fd)
