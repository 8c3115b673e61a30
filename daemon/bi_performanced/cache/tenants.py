"""Namespaces with quotas: a store in which nobody makes way for others while within its quota.

Used only where `cache.tenants` is set; without it a store knows of no namespaces. What leaves in
a namespace goes by second-chance FIFO (CLOCK) over a queue of hashes of its own, 8 bytes an entry:
the policy of the whole store could not tell whose entry is whose.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from bi_performance_wire import layout as L
from bi_performance_wire.tenants import tenant_of
from bi_performanced.cache.departures import Departures
from bi_performanced.cache.index import NONE
from bi_performanced.cache.memory import Memory
from bi_performanced.cache.ring import Damaged
from bi_performanced.cache.store import Store, TooLarge
from bi_performanced.config.tenants import MOST_TENANTS, Quota

CHANCES: Final = 64
"""Used entries that are passed in a row: then one leaves all the same."""
AT_ONCE: Final = 64
"""Entries of a namespace that leave for one at the most: a quota that was made smaller is come to
by many puts."""


class OverQuota(TooLarge):
    """The record is larger than all that its namespace may have."""


class Hashes:
    """A queue of 64-bit numbers, 8 bytes each."""

    def __init__(self) -> None:
        self._items = array("Q")
        self._head = 0

    def __len__(self) -> int:
        return len(self._items) - self._head

    def append(self, item: int) -> None:
        self._items.append(item)

    def pop(self) -> int:
        item = self._items[self._head]
        self._head += 1
        if self._head > 1024 and self._head > len(self._items) // 2:
            del self._items[: self._head]
            self._head = 0
        return item

    def clear(self) -> None:
        self._items = array("Q")
        self._head = 0


@dataclass
class Account:
    """What a namespace has in the store, and what left it for others of it."""

    quota: Quota | None = None
    entries: int = 0
    bytes: int = 0
    sets: int = 0
    evictions: int = 0
    queue: Hashes = field(default_factory=Hashes)


class TenantStore(Store):
    """A store that keeps books for each namespace; keys in none are one more, without a quota."""

    def __init__(
        self, memory: Memory, quotas: Mapping[bytes, Quota], departures: Departures | None = None
    ) -> None:
        super().__init__(memory, departures)
        self.accounts: dict[bytes, Account] = {b"": Account()}
        self.accounts |= {name: Account(quota) for name, quota in quotas.items()}
        self._most_accounts = len(self.accounts) + MOST_TENANTS
        self._putting: Account | None = None
        # A second chance takes the uses away.
        self.uses_fade = True

    def account(self, key: bytes) -> Account:
        """Whose a key is. Names come from clients: beyond a bound they share one account."""
        name = tenant_of(key)
        found = self.accounts.get(name)
        if found is None:
            if len(self.accounts) >= self._most_accounts:
                return self.accounts[b""]
            found = self.accounts[name] = Account()
        return found

    # ── what Store does, with books

    def put(
        self,
        key: bytes,
        payload: bytes,
        *,
        expires: int,
        now: int,
        flags: int = 0,
        extra: bytes = b"",
        created: int | None = None,
    ) -> None:
        account = self.account(key)
        size = L.RECORD_OVERHEAD + len(key) + len(extra) + len(payload)
        digest = self.digest(key)
        if account.quota is not None and size <= self.max_record:
            beside = size - len(payload)
            self._keep_quota(account, account.quota, key, digest, size, beside, now)
        self._putting = account
        try:
            super().put(
                key,
                payload,
                expires=expires,
                now=now,
                flags=flags,
                extra=extra,
                created=created,
            )
        finally:
            self._putting = None
        # What was there of the key has left the books.
        account.entries += 1
        account.bytes += size
        account.sets += 1
        self._queue(account, digest)

    def clear(self) -> int:
        for account in self.accounts.values():
            account.entries = account.bytes = 0
            account.queue.clear()
        return super().clear()

    def _came(self, place: int, size: int) -> None:
        super()._came(place, size)
        key = self._key_at(place)
        account = self.account(key)
        account.entries += 1
        account.bytes += size
        account.queue.append(self.digest(key))

    def _gone(self, place: int, size: int) -> None:
        super()._gone(place, size)
        account = self.account(self._key_at(place))
        account.entries -= 1
        account.bytes -= size

    def _key_at(self, place: int) -> bytes:
        at = self.address(place) + L.HEADER_BYTES
        word = L.WORD.unpack_from(self._data, at)[0]
        at += L.KEY_IN_BODY
        return self._data[at : at + (word & L.KEY_LENGTH)]

    # ── who makes way

    def _keep_quota(
        self,
        account: Account,
        quota: Quota,
        key: bytes,
        digest: int,
        size: int,
        beside: int,
        now: int,
    ) -> None:
        """Let entries of the namespace leave for a record that comes; all of it but `beside` bytes
        is payload."""
        if size > quota.max_bytes:
            raise OverQuota(quota.max_bytes - beside)
        slot = self.find(key, digest)
        old = 0 if slot == NONE else self._size(self.index.cells[slot])
        for _ in range(AT_ONCE):
            over = account.bytes - old + size > quota.max_bytes or (
                quota.max_entries is not None
                and account.entries + (slot == NONE) > quota.max_entries
            )
            if not over or not self._evict_of(account, now, keep=digest):
                return

    def _evict(self, now: int) -> None:
        """Make one entry leave: of who has no quota, else of who stores, else of who has most."""
        free = [each for each in self.accounts.values() if each.quota is None and each.entries]
        if free and self._evict_of(max(free, key=lambda each: each.bytes), now):
            return
        if self._putting is not None and self._evict_of(self._putting, now):
            return
        for account in sorted(self.accounts.values(), key=lambda each: -each.bytes):
            if self._evict_of(account, now):
                return
        raise Damaged("the rings hold fewer entries than were counted")

    def _evict_of(self, account: Account, now: int, keep: int | None = None) -> bool:
        """Make an entry of a namespace leave; False when it has none but the one that is kept."""
        queue, index = account.queue, self.index
        chances = 0
        for _ in range(len(queue)):
            digest = queue.pop()
            slot = self._slot_of(digest)
            if slot == NONE:
                continue
            if digest == keep:
                queue.append(digest)
                continue
            if chances < CHANCES and index.frequency(slot):
                chances += 1
                index.set_frequency(slot, 0)
                queue.append(digest)
                continue
            account.evictions += 1
            self._evict_slot(slot, now)
            return True
        return False

    def _queue(self, account: Account, digest: int) -> None:
        """Remember an entry that came; of those that are queued twice or are gone, forget some."""
        queue = account.queue
        queue.append(digest)
        if len(queue) > 2 * account.entries + CHANCES:
            seen = 0
            while seen < 3:
                first = queue.pop()
                seen += 1
                if first != digest and self._slot_of(first) != NONE:
                    queue.append(first)

    def _slot_of(self, digest: int) -> int:
        """The slot of the key with this hash, or NONE."""
        cells = self.index.cells
        slot = digest % self.index.slots
        want = digest >> L.FINGERPRINT_SHIFT | L.TAG_DISTANCE_ONE
        while want <= L.TAG_MAX:
            cell = cells[slot]
            tag = cell >> L.TAG_SHIFT
            if tag == want:
                if self.digest(self._key_at(cell & L.PLACE)) == digest:
                    return slot
            elif tag < want & L.TAG_DISTANCE:
                return NONE
            want += L.TAG_DISTANCE_ONE
            slot += 1
        return NONE

    def figures(self) -> dict[str, dict[str, int | None]]:
        """What each namespace has, by name; keys in none under the empty name."""
        return {
            name.decode("ascii", "replace"): {
                "entries": each.entries,
                "bytes": each.bytes,
                "max_entries": each.quota.max_entries if each.quota else None,
                "max_bytes": each.quota.max_bytes if each.quota else None,
                "sets": each.sets,
                "evictions": each.evictions,
            }
            for name, each in self.accounts.items()
        }


def make_store(
    memory: Memory, quotas: Mapping[bytes, Quota], departures: Departures | None = None
) -> Store:
    """A store that keeps quotas where there are any, else one that knows of none."""
    return TenantStore(memory, quotas, departures) if quotas else Store(memory, departures)
