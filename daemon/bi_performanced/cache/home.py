"""The store in service: its heartbeat, its growth and shrinking, and the stores it has left.

A store moves to another size by a copy, in slices, while the old one serves; readers follow because
its epoch ends.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import structlog
import trio

from bi_performance_wire import layout as L
from bi_performance_wire.errors import BUSY, TOO_LARGE, WireError
from bi_performanced.cache.budget import Budget
from bi_performanced.cache.clients import Clients, boot_clock
from bi_performanced.cache.copying import Copying
from bi_performanced.cache.leaving import LeftStores
from bi_performanced.cache.memory import Geometry, Memory
from bi_performanced.cache.opening import ALIVE_NS, Opened
from bi_performanced.cache.past import Why
from bi_performanced.cache.policy import Listener
from bi_performanced.cache.room import Growing, RoomMaker
from bi_performanced.cache.store import Counters, Damaged, Store, TooLarge
from bi_performanced.cache.sweeping import SWEEP_SLOTS
from bi_performanced.cache.tenants import OverQuota, make_store
from bi_performanced.config import CacheSettings
from bi_performanced.config.limits import free_bytes, headroom, room
from bi_performanced.config.tenants import quotas_of
from bi_performanced.host.signs import Signs

log = structlog.get_logger("performance")

HEARTBEAT = 0.25
"""Seconds between two renewals of the readers' deadline, by the loop itself."""
GROW_AT = 0.75
SOON = 20.0
"""Seconds within which a store that fills up is followed by one of four times its size."""
SPARE = 8 << 20
"""Bytes of memory that are left to others when the store is made smaller."""
SPARE_GROWING = 32 << 20
"""The same when it grows."""
RETRY_GROWTH = 60.0
GROWTH_WAIT = 5.0
"""Seconds that a request waits for the store to grow."""


class Home:
    """The store in service and those who read it.

    `run` must be running for readers to trust the store.
    """

    def __init__(self, settings: CacheSettings, opened: Opened) -> None:
        self.settings = settings
        """What the store grows within."""
        self.budget = Budget(settings.max_bytes)
        """What of `cache.max_bytes` it may have while memory is short."""
        self.store = opened.store
        self.path = opened.path
        self.clients = Clients(opened.store, _read_only(opened.path))
        self.failed: str | None = None
        """Why the store does not have the size, or take the entries, that it should."""
        self._copying = Copying()
        self.room_maker = RoomMaker(self, self._copying)
        self._listener: Listener | None = None
        self.hollow = False
        """The free parts of the store's file have no memory behind them: nothing can be put."""
        self._lock_fd = opened.lock_fd
        self._trace = opened.trace
        self._ready_at = opened.ready_at
        self._in_service_since = boot_clock()
        self._earlier = Counters()
        self._threads = trio.CapacityLimiter(1)
        self._wake = trio.Event()
        self._grown = trio.Event()
        self._wanted_record = 0
        self._growth_retry = 0.0
        self._resizing = trio.Lock()
        self._sweep_at = 0
        self._left = LeftStores(self._threads)
        if self._wanted_limits(settings) is not None:
            self._wake.set()

    @property
    def copying(self) -> bool:
        """Whether the entries are being copied to another store."""
        return self._copying.active

    @property
    def epoch(self) -> int:
        return int(self.store.memory.words[L.W_EPOCH])

    @property
    def counters(self) -> Counters:
        """What happened to the stores since the daemon started."""
        return _sum(self._earlier, self.store.counters)

    @property
    def allocated(self) -> tuple[int, int]:
        """Bytes: the store in service can hold, and its file takes."""
        return self.store.max_bytes, self.store.memory.size

    def room(self) -> int:
        """Bytes that `cache.max_bytes` can be raised to on this host."""
        return room(self.path.parent, already=self.store.memory.size)

    def listen(self, listener: Listener) -> None:
        """Have somebody hear what the policy of the store in service is told."""
        self._listener = listener
        self.store.policy.listen(listener, self.store.fullness)

    def set_word(self, word: int, value: int) -> None:
        """Write a word of the control page, which goes with the entries to another store."""
        self.store.memory.words[word] = value

    # ── changes

    def check_room(self) -> None:
        """Raise Growing while nothing can be put."""
        if self.hollow:
            raise Growing(
                BUSY, "the store is giving memory back", field="value", hint="try again in a second"
            )

    def clear(self) -> int:
        """Drop every entry in one step; how many there were."""
        self._copying.note_clear()
        return self.store.clear()

    def note_clear(
        self,
        pattern: str | None,
        tags: Sequence[bytes],
        *,
        stale: bool = False,
        elsewhere: bool = False,
        what: str | None = None,
    ) -> int:
        """Remember a clear of what is stored up to now; its number. See Past.cleared."""
        return self.store.departures.past.cleared(
            boot_clock() // L.CREATED_UNIT_NS,
            self.store.sequence,
            pattern=pattern,
            tags=tags,
            stale=stale,
            elsewhere=elsewhere,
            what=what,
        )

    async def wait_grown(self) -> None:
        """Wait, after Growing, for the growth that was asked for; a second try tells how it went.

        Returns after GROWTH_WAIT seconds at the latest.
        """
        with trio.move_on_after(GROWTH_WAIT):
            await self._grown.wait()
            while self.room_maker.wanted:
                # It is the room that is waited for, and something else was done first.
                await self._grown.wait()

    def grow_if_full(self) -> None:
        """Have the store grow when it is about to be full and may."""
        store = self.store
        if store.live_bytes > GROW_AT * store.max_bytes < self.budget.bytes:
            self._wake.set()
        if store.tight():
            self.room_maker.go_on()

    def refuse_large(
        self, key: bytes, payload: bytes, error: TooLarge, extra: bytes = b""
    ) -> NoReturn:
        """Raise for an entry that the store cannot hold: Growing when it will, else too_large."""
        if isinstance(error, OverQuota):
            self.note_refused(key, Why.TOO_LARGE, len(payload))
            raise WireError(
                TOO_LARGE,
                f"the entry has {len(payload)} bytes encoded; in its namespace the limit is"
                f" {error.limit}",
                field="value",
                hint="raise its quota in cache.tenants",
            ) from error
        beside = L.RECORD_OVERHEAD + len(key) + len(extra)
        size = beside + len(payload)
        if size <= self.largest_record() and trio.current_time() < self._growth_retry:
            raise WireError(
                TOO_LARGE,
                f"the entry has {len(payload)} bytes encoded; {self.failed}",
                field="value",
                hint="make room there, or name another cache.store_dir",
            ) from error
        if size <= self.largest_record():
            self._wanted_record = max(self._wanted_record, size)
            self._wake.set()
            raise Growing(
                BUSY,
                f"the store is growing to hold an entry of {len(payload)} bytes",
                field="value",
                hint="try again in a second",
            ) from error
        limit = self.largest_record() - beside
        self.note_refused(key, Why.TOO_LARGE, len(payload))
        limits = f"the limit is {limit}"
        hint = "raise cache.max_bytes: an entry may take a sixteenth of the main ring"
        if size <= Geometry.for_limits(1, self.budget.most).max_record:
            limits = f"while memory is short {limits} ({self.budget.reason})"
            hint = "free memory on the host or in the control group: then the limit grows again"
        message = f"the entry has {len(payload)} bytes encoded; {limits}"
        raise WireError(TOO_LARGE, message, field="value", hint=hint) from error

    def note_refused(self, key: bytes, why: Why, size: int) -> None:
        """Remember that an entry was not let in."""
        store = self.store
        tenths = boot_clock() // L.CREATED_UNIT_NS
        store.departures.past.note(store.digest(key), why, tenths, 0, min(size, L.CHECKSUM))

    def largest_record(self) -> int:
        """Bytes of the largest record that the store holds once it has its full size."""
        return Geometry.for_limits(1, self.budget.bytes).max_record

    def rebuild(self, error: Damaged) -> None:
        """Begin anew with an empty store after a fault in the one that is there."""
        log.error("cache.damaged", reason=str(error), entries_lost=self.store.entries)
        self.note_clear(None, (), what="the store was damaged and has been emptied")
        self.store.clear()

    # ── life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the readers' deadline, drop what expired, and grow, until cancelled."""
        while (left := self._ready_at - boot_clock()) > 0:
            # Readers of a store that has vanished may be trusting it: until they cannot, nothing
            # that this daemon would acknowledge is true for them.
            log.info("cache.waits_for_readers", seconds=round(left / 1e9, 3))
            await trio.sleep(left / 1e9)
        async with trio.open_nursery() as nursery:
            self._beat()
            nursery.start_soon(self._grow_when_full)
            nursery.start_soon(self.room_maker.run)
            task_status.started()
            while True:
                await trio.sleep(HEARTBEAT)
                self._beat()
                self.store.policy.gather()
                self._reap()
                if self.hollow and not self._resizing.locked():
                    await self._refill()
                await self._left.release(trio.current_time(), self._oldest_epoch())

    def _beat(self) -> None:
        self.store.memory.words[_alive_word(self.epoch)] = boot_clock() + ALIVE_NS

    def _oldest_epoch(self) -> int:
        """The epoch at which the attached process came that has not moved longest."""
        epochs = [each.reply.epoch for each in self.clients.attached.values()]
        return min(epochs, default=self.epoch)

    def _reap(self) -> None:
        """Take out what expired, a few hundred slots at a time."""
        store = self.store
        if not store.entries:
            return
        now = boot_clock()
        entries, self._sweep_at = store.sweep(self._sweep_at, SWEEP_SLOTS)
        for entry in entries:
            if entry.kept_until <= now:
                store.drop_expired(entry, now)

    def close(self) -> None:
        """Tell readers that nobody keeps this store, and let go of it; the file stays."""
        words = self.store.memory.words
        words[_alive_word(self.epoch)] = 0
        # Where it cannot be said the next daemon waits a second if the store is gone by then.
        with suppress(OSError):
            self._trace.write(running=False)
        self.clients.close()
        self._left.close()
        self.store.close()
        os.close(self._lock_fd)

    # ── another size

    async def reconfigure(self, settings: CacheSettings) -> None:
        """Go by other settings, the store moved to its new limits when this returns.

        Stored entries keep their time to live. Raises OSError when the store cannot be moved;
        the settings are the old ones then.
        """
        async with self._resizing:
            wanted = self._wanted_limits(settings)
            if wanted is not None:
                await self.resize(*wanted)
            before, self.settings = self.settings, settings
            if settings.max_bytes != self.budget.most:
                self.budget.reset(settings.max_bytes)
            self.failed, self._growth_retry = None, 0.0
            told = (before.default_ttl, before.compression, before.max_bytes)
            if told != (settings.default_ttl, settings.compression, settings.max_bytes):
                self._renew_epoch()

    async def mind(self, signs: Signs, now: float) -> None:
        """Go by how short memory is at `now`, the store moved to its limit when this returns."""
        async with self._resizing:
            before = self.budget.bytes
            changed = self.budget.look(now, signs, self.store.max_bytes)
            told = {"before": before, "bytes": self.budget.bytes, "max_bytes": self.budget.most}
            if self.budget.bytes < before:
                log.warning("cache.budget_shrunk", **told, reason=self.budget.reason)
            elif changed:
                log.info("cache.budget_grown", **told)
            if self.store.max_bytes > self.budget.bytes:
                try:
                    await self.resize(self.settings.max_size, self.budget.bytes)
                except OSError as error:
                    # Nothing more is taken, at least; the next look tries again.
                    if changed:
                        log.warning("cache.shrink_failed", reason=error.strerror or str(error))
            elif changed:
                # The largest value that may be stored is another one now.
                self._renew_epoch()

    async def give_back(self) -> None:
        """Let the store have `cache.max_bytes` again."""
        if self.budget.bytes < self.budget.most:
            async with self._resizing:
                self.budget.reset(self.settings.max_bytes)
                self._renew_epoch()

    def _renew_epoch(self) -> None:
        """Have every process attach again, so that it is told what it goes by."""
        words, epoch = self.store.memory.words, self.epoch
        words[L.W_EPOCH] = epoch + 1
        self._beat()
        words[_alive_word(epoch)] = 0

    async def _grow_when_full(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            async with self._resizing:
                wanted = self._wanted_limits(self.settings)
                if wanted is not None and trio.current_time() >= self._growth_retry:
                    await self._try_to_grow(*wanted)
            self.tell_those_who_wait()

    async def _try_to_grow(self, max_entries: int, max_bytes: int) -> None:
        try:
            await self.resize(max_entries, max_bytes)
            self.failed, self._growth_retry = None, 0.0
        except OSError as error:
            self.failed = (
                f"the store stays at {self.store.max_bytes} bytes: "
                f"{error.strerror} in {self.path.parent}"
            )
            self._growth_retry = trio.current_time() + RETRY_GROWTH
            log.warning("cache.growth_failed", reason=self.failed)

    def _wanted_limits(self, settings: CacheSettings) -> tuple[int, int] | None:
        """The limits (entries, bytes) that the store should have, when it has others."""
        store = self.store
        size = store.max_bytes
        if store.live_bytes > GROW_AT * size:
            size *= 4 if boot_clock() - self._in_service_since < SOON * 1e9 else 2
        while Geometry.for_limits(1, size).max_record < self._wanted_record:
            size *= 2
        most = settings.max_bytes
        if most == self.budget.most:
            most = self.budget.bytes
        wanted = settings.max_size, min(size, most)
        return wanted if wanted != (store.max_entries, store.max_bytes) else None

    async def resize(self, max_entries: int, max_bytes: int) -> None:
        """Move to a store of other limits, as `_move`, making room for it where that is short.

        What has to leave for smaller limits leaves first. Where memory is short, that of the
        entries that left is given back before the new store takes its own; puts wait meanwhile.
        Raises OSError; the store is in service with its entries then.
        """
        store = self.store
        if max_entries >= store.max_entries and max_bytes >= store.max_bytes:
            fits = await self._has_room(max_entries, max_bytes, spare=SPARE_GROWING)
            needed = Geometry.for_limits(max_entries, max_bytes).file_bytes
            if not fits and free_bytes(self.path.parent) >= needed:
                # The file could be made; it is the processes beside it that would be killed.
                raise OSError(errno.ENOMEM, "There is not enough memory", str(self.path.parent))
            await self._move(max_entries, max_bytes)
            return
        limits = store.max_entries, store.max_bytes
        await self._copying.in_slices(store, store.shrink(max_entries, max_bytes, boot_clock()))
        try:
            if await self._has_room(max_entries, max_bytes, spare=SPARE):
                await self._move(max_entries, max_bytes)
            else:
                self.hollow = True
                await trio.to_thread.run_sync(store.punch, limiter=self._threads)
                await self._move(max_entries, max_bytes)
                self._filled()
            # Who gives memory back wants it now.
            self._left.hurry()
        finally:
            if self.store is store:
                store.max_entries, store.max_bytes = limits
                with trio.CancelScope(shield=True):
                    await self._refill()

    async def _has_room(self, max_entries: int, max_bytes: int, *, spare: int) -> bool:
        """Whether another store fits beside this one, those that were left freed if need be."""
        needed = Geometry.for_limits(max_entries, max_bytes).file_bytes
        folder = self.path.parent
        await self._left.make_way(
            self._oldest_epoch(), short=headroom(folder, spare=spare) < needed
        )
        return headroom(folder, spare=spare) >= needed

    async def _refill(self) -> None:
        """Allocate again what was given back. Until that can be done puts are refused."""
        if not self.hollow:
            return
        try:
            await trio.to_thread.run_sync(Memory.refill, self.path, limiter=self._threads)
        except OSError as error:
            self.failed = f"the store cannot take entries: {error.strerror} in {self.path.parent}"
        else:
            self.failed = None
            self._filled()

    def _filled(self) -> None:
        self.hollow = False
        self.tell_those_who_wait()

    def tell_those_who_wait(self) -> None:
        """What was waited for may be there: see `wait_grown`."""
        self._grown.set()
        self._grown = trio.Event()

    async def _move(self, max_entries: int, max_bytes: int) -> None:
        """Move to a store of other limits, entries, order and remaining lifetimes kept.

        Readers use the old store until the new one is complete, then attach again. Raises
        OSError when the file system cannot hold both for the moment; nothing has changed then.
        """
        new_path = self.path.with_name("store.new")
        epoch = self.epoch + 1

        def create() -> Store:
            new_path.unlink(missing_ok=True)
            # The same hashes, so that what is known of keys by their hashes stays known.
            memory = Memory.create(new_path, max_entries, max_bytes, epoch=epoch, seed=seed)
            return make_store(memory, quotas_of(self.settings.tenants), old.departures)

        old = self.store
        seed = int(old.memory.words[L.W_SEED])
        target = await trio.to_thread.run_sync(create, limiter=self._threads)
        try:
            await self._copying.copy(old, target)
            store_fd = _read_only(new_path)
        except BaseException:
            old.journal = None
            target.close()
            new_path.unlink(missing_ok=True)
            raise
        # From here to the end nothing awaits. The rename is the moment at which a restart would
        # find the new store.
        new_path.rename(self.path)
        self.store = target
        self._in_service_since = boot_clock()
        self.clients.move_to(target, store_fd)
        old.policy.listen(None, old.fullness)
        target.policy.listen(self._listener, target.fullness)
        self._beat()
        old.memory.words[_alive_word(epoch - 1)] = 0
        self._earlier = _sum(self._earlier, old.counters)
        target.counters = Counters()
        self._sweep_at = 0
        self._wanted_record = 0
        log.info(
            "cache.resized", max_bytes=max_bytes, max_entries=max_entries, entries=target.entries
        )
        self._left.add(old, epoch - 1)


def _alive_word(epoch: int) -> int:
    return L.W_ALIVE + epoch % L.ALIVE_WORDS


def _read_only(path: Path) -> int:
    """A descriptor that can be handed to any process: it cannot be reopened for writing there."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _sum(first: Counters, second: Counters) -> Counters:
    return Counters(**{name: value + getattr(second, name) for name, value in vars(first).items()})
