"""The entries of this host: one, some, and all of them, in the store in service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from bi_performance_wire import layout as L
from bi_performance_wire.errors import INTERNAL, UNAVAILABLE, WireError
from bi_performance_wire.extra import unpack_extra
from bi_performanced.cache.clients import boot_clock
from bi_performanced.cache.home import Home
from bi_performanced.cache.leasing import Leasing
from bi_performanced.cache.past import Why
from bi_performanced.cache.patterns import matcher
from bi_performanced.cache.store import Damaged, Held, TooLarge
from bi_performanced.cache.sweeping import every_entry
from bi_performanced.cache.terms import Terms, check_key, check_ttl

LISTING_BYTES = 4 << 20


class _Clear(NamedTuple):
    """A clear of a pattern or of tags whose entries are being found."""

    matches: Callable[[bytes], bool]
    tags: frozenset[bytes]
    newest: int
    """The sequence of the last entry that it concerns."""
    stale: bool

    def concerns(self, key: bytes, extra: bytes) -> bool:
        if not self.matches(key):
            return False
        return not self.tags or bool(extra and self.tags & set(unpack_extra(extra).tags))


class Local:
    """What is stored on this host. Synchronous calls take a few microseconds of the loop."""

    def __init__(self, home: Home, leasing: Leasing) -> None:
        self._home = home
        self._leasing = leasing
        self._clears: list[_Clear] = []
        self.default_ttl_sets = 0
        """Entries that were stored without a ttl of their own."""

    # ── one entry

    def held(self, key: bytes, *, stale: bool = False) -> Held | None:
        """A readable entry with all that is known of it, with `stale` also one in its grace.

        Raises WireError for a key out of bounds.
        """
        check_key(key)
        return self._home.store.get(key, boot_clock(), stale=stale)

    def put(self, key: bytes, payload: bytes, terms: Terms, flags: int = 0) -> None:
        """Store an encoded entry. Readable by every process when this returns. Raises WireError."""
        check_key(key)
        self.check_writable()
        seconds = self.seconds(terms)
        now = boot_clock()
        self._store(
            key,
            payload,
            expires=now + int(seconds * 1e9),
            extra=terms.extra(seconds),
            flags=flags,
        )
        if terms.ttl is None:
            self.default_ttl_sets += 1
        self._leasing.stored(key, payload)

    def install(
        self,
        key: bytes,
        payload: bytes,
        *,
        expires: int,
        created: int,
        extra: bytes,
        flags: int,
    ) -> None:
        """Store an entry that comes from elsewhere, as old as it is; times as the store's.

        A stale one is nothing that anybody waits for: who loads the key goes on.
        """
        self.check_writable()
        self._store(key, payload, expires=expires, created=created, extra=extra, flags=flags)
        if expires > boot_clock():
            self._leasing.stored(key, payload)

    def put_some(
        self, entries: Sequence[tuple[bytes, bytes]], start: int, terms: Terms, flags: int = 0
    ) -> tuple[int, WireError | None]:
        """Store entries whose keys were checked, from `start` on.

        Returns how many, and why not more.
        """
        self.check_writable()
        now = boot_clock()
        seconds = self.seconds(terms)
        expires = now + int(seconds * 1e9)
        extra = terms.extra(seconds)
        try:
            self._home.room_maker.check(sum(len(payload) for _, payload in entries[start:]))
        except WireError as error:
            return 0, error
        put, leases = self._home.store.put, self._leasing.leases
        at = start
        try:
            for at in range(start, len(entries)):
                key, payload = entries[at]
                put(key, payload, expires=expires, now=now, extra=extra, flags=flags)
                if leases.held:
                    self._leasing.stored(key, payload)
        except TooLarge as error:
            try:
                self._home.refuse_large(key, payload, error, extra)
            except WireError as refused:
                return at - start, refused
        except Damaged as error:
            self._home.rebuild(error)
            return at - start, _emptied()
        if terms.ttl is None:
            self.default_ttl_sets += len(entries) - start
        self._home.grow_if_full()
        return len(entries) - start, None

    def delete(self, key: bytes, why: Why = Why.DELETED) -> bool:
        """Remove an entry; whether one was readable. Raises WireError for a key out of bounds."""
        check_key(key)
        self._leasing.leases.void(key)
        return self._home.store.delete(key, boot_clock(), why)

    def expire(self, key: bytes) -> bool:
        """Make an entry stale: it is served in its grace only, by who asks for stale ones.

        Whether it was fresh. Raises WireError for a key out of bounds.
        """
        check_key(key)
        self._leasing.leases.void(key)
        held = self._home.store.get(key, boot_clock())
        if held is not None and self._is_being_cleared(key, held):
            return True
        return self._home.store.expire(key, boot_clock())

    def touch(self, key: bytes, ttl: float | None) -> Held | None:
        """Have an entry live for `ttl` seconds from now on (None: as its `sliding` says).

        Its age goes on. The entry as it is then, or None when there was none to renew. Raises
        WireError.
        """
        check_key(key)
        self.check_writable()
        now = boot_clock()
        held = self._home.store.get(key, now)
        if held is None or self._is_being_cleared(key, held):
            return None
        if ttl is None:
            seconds = (unpack_extra(held.extra).sliding if held.extra else 0) / 10
            if not seconds:
                return None
        else:
            seconds = check_ttl(ttl)
        self._store(
            key,
            held.payload,
            expires=now + int(seconds * 1e9),
            extra=held.extra,
            flags=held.flags & ~L.FLAG_EXTRA,
            created=held.created,
        )
        return self._home.store.get(key, now)

    def _is_being_cleared(self, key: bytes, held: Held) -> bool:
        """Whether a sweep is on its way to an entry; then it is at its end already.

        Stored anew it would seem to have come after the clear.
        """
        for clear in self._clears:
            if held.sequence <= clear.newest and clear.concerns(key, held.extra):
                now = boot_clock()
                if clear.stale:
                    self._home.store.expire(key, now)
                else:
                    self._home.store.delete(key, now)
                return True
        return False

    def seconds(self, terms: Terms) -> float:
        """How long an entry with these terms lives. Raises WireError."""
        return self._home.settings.default_ttl if terms.ttl is None else check_ttl(terms.ttl)

    def check_writable(self) -> None:
        """Raise WireError while nothing can be stored."""
        self._home.check_room()
        if not self._home.settings.enabled:
            raise WireError(
                UNAVAILABLE,
                "the cache is switched off",
                field="cache.enabled",
                hint="set cache.enabled to true and restart the daemon",
            )

    def _store(
        self,
        key: bytes,
        payload: bytes,
        *,
        expires: int,
        extra: bytes,
        flags: int,
        created: int | None = None,
    ) -> None:
        self._home.room_maker.check(L.RECORD_OVERHEAD + len(key) + len(extra) + len(payload))
        try:
            self._home.store.put(
                key,
                payload,
                expires=expires,
                now=boot_clock(),
                extra=extra,
                flags=flags,
                created=created,
            )
        except TooLarge as error:
            self._home.refuse_large(key, payload, error, extra)
        except Damaged as error:
            self._home.rebuild(error)
            raise _emptied() from error
        self._home.grow_if_full()

    # ── many entries

    async def keys(self, pattern: str | None, limit: int) -> tuple[list[bytes], bool]:
        """Up to `limit` readable keys that match, and whether there are more.

        Together they have at most LISTING_BYTES.
        """
        matches = matcher(pattern)
        found: dict[bytes, None] = {}
        size = 0
        async with aclosing(every_entry(lambda: self._home.store, lambda: None)) as entries:
            async for _, entry, now in entries:
                if entry.fresh_until > now and entry.key not in found and matches(entry.key):
                    size += len(entry.key)
                    if len(found) == limit or size > LISTING_BYTES:
                        return list(found), True
                    found[entry.key] = None
        return list(found), False

    async def clear(
        self,
        pattern: str | None,
        *,
        tags: Sequence[bytes] = (),
        stale: bool = False,
        dry_run: bool = False,
        elsewhere: bool = False,
    ) -> int:
        """Remove every entry that was there when this was called and matches; how many.

        With tags those that have one of them: they are gone at once, and counted by a sweep.
        With `stale` entries are not removed but made stale: served in their grace, by who asks for
        stale ones. With `dry_run` nothing changes. Everything is cleared, or made stale, in one
        step; entries that are stored while a sweep for a pattern goes on stay. `elsewhere`: another
        host does it.
        """
        store = self._home.store
        number = 0
        if not dry_run:
            self.void(pattern, tags)
            number = self._home.note_clear(pattern, tags, stale=stale, elsewhere=elsewhere)
        if pattern is None and not tags and not dry_run:
            return store.expire_all(boot_clock()) if stale else self._home.clear()
        matches, wanted = matcher(pattern), frozenset(tags)
        newest = store.sequence
        if tags and pattern is None and not stale and not dry_run:
            store.clear_tags(tags)
        clear = _Clear(matches, wanted, newest, stale)
        if dry_run:
            return await self._sweep(clear, dry_run=True)
        self._clears.append(clear)
        try:
            cleared = await self._sweep(clear, number)
        finally:
            self._clears.remove(clear)
        if not stale:
            self._home.store.counters.deletes += cleared
        return cleared

    async def _sweep(self, clear: _Clear, number: int = 0, *, dry_run: bool = False) -> int:
        """Carry out a clear, or only count; how many entries were readable."""
        cleared = 0

        def begin_again() -> None:
            nonlocal cleared
            # What was removed so far is gone in the new store too.
            cleared = 0 if dry_run else cleared

        async with aclosing(every_entry(lambda: self._home.store, begin_again)) as entries:
            async for store, entry, now in entries:
                if entry.sequence > clear.newest or not clear.concerns(entry.key, entry.extra):
                    continue
                readable = (entry.fresh_until or entry.expires) > now
                if dry_run:
                    cleared += readable
                elif clear.stale:
                    cleared += readable and store.expire(entry.key, now)
                elif store.drop_found(entry, now, number):
                    cleared += readable
        return cleared

    def void_one(self, key: bytes) -> None:
        """What is being loaded of a key is older than what is there."""
        self._leasing.leases.void(key)

    def void(self, pattern: str | None, tags: Sequence[bytes]) -> None:
        """What is being loaded of what is cleared now is older than that."""
        if tags:
            # Whatever the pattern: which tags a value will have is known when it comes.
            self._leasing.leases.void_tags(tags)
        else:
            self._leasing.leases.void_all(None if pattern is None else matcher(pattern))


def _emptied() -> WireError:
    return WireError(INTERNAL, "the store was damaged and has been emptied")
