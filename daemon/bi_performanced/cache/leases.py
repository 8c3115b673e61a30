"""Who loads a missing key: at most one lease a key, and those who wait for its value.

A pure state machine: no clock, no waiting, no socket. Each call decides and returns the waiters
whose answer is now known; whoever called wakes them. Times are seconds on a clock that only rises.

A lease ends when its value is stored, when somebody stores another one, or when its holder gives
it up, is gone, or has not been heard of for `ttl` seconds. In the first two cases the waiters are
told to read; in the others the one that has waited longest has the lease. A deletion or a clear
during a lease voids it: it stays, so that nobody loads the same key at the same time, but its value
is refused, and the next waiter loads anew.

The token is a fencing number (Kleppmann, "How to do distributed locking", 2016): eight bytes that
grow, then eight of chance, so that nobody can name one that was not given to them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bi_performance_wire.errors import BUSY, WireError
from bi_performanced.config import LeaseSettings

USER_SHARE: Final = 2
"""One user has at most this part of the leases and waiters of all, and of one key's waiters."""
TAGS_KEPT: Final = 4096
"""Cleared tags that are remembered while leases last; beyond, all of them count as cleared."""

LEADER: Final = "leader"
HIT: Final = "hit"
HELD: Final = "held"


class Outcome(NamedTuple):
    """What a waiter is told: it leads, with a token; there is a value; or another one leads on."""

    state: str
    token: bytes = b""
    payload: bytes | None = None
    """The encoded entry that was stored, where it is known."""


class Refused(Exception):
    """The value of a lease that is not current, or of a key that was deleted meanwhile."""


@dataclass(eq=False)
class Holder:
    """A connection with what it holds and waits for."""

    uid: int
    pid: int = 0
    """Of the process, as the kernel says; 0 where that is not to be seen."""
    deadline: float = 0.0
    """When its leases end unless it is heard of."""
    leases: set[Lease] = field(default_factory=set)
    waiters: set[Waiter] = field(default_factory=set)
    tickets: dict[int, Lease | Waiter] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.leases) + len(self.waiters)


@dataclass(eq=False)
class Lease:
    key: bytes
    token: bytes
    holder: Holder
    ticket: int | None
    tags_at: int
    """How many tag clears there had been when it was given."""
    granted: float
    """When it was given."""
    void: bool = False
    """The key was deleted or cleared since."""


@dataclass(eq=False)
class Waiter:
    key: bytes
    holder: Holder
    ticket: int | None
    outcome: Outcome | None = None
    """None while it waits."""


@dataclass
class Counts:
    """Since the daemon's start."""

    granted: int = 0
    """Leases that were given, those to waiters included."""
    promoted: int = 0
    """Those that were given to a waiter because the one before it came to nothing."""
    shared: int = 0
    """Waiters that were told of the value that another one loaded."""
    failed: int = 0
    """Leases that were given up because the load failed."""
    lost: int = 0
    """Leases that ended with their holder or for want of a heartbeat."""
    refused: int = 0
    """Values that were not stored: the lease was not current, or the key deleted meanwhile."""
    busy: int = 0
    """Requests beyond a limit."""


class Leases:
    """All leases of this daemon."""

    def __init__(
        self, settings: LeaseSettings, draw: Callable[[], int], chance: Callable[[], bytes]
    ) -> None:
        """`draw` gives a number that is higher than a former daemon's; `chance` eight bytes."""
        self.settings = settings
        self.counts = Counts()
        self._draw = draw
        self._chance = chance
        self._number = 0
        self._current: dict[bytes, Lease] = {}
        self._tokens: dict[bytes, Lease] = {}
        self._queues: dict[bytes, OrderedDict[Waiter, None]] = {}
        self._holders: set[Holder] = set()
        """Those that hold or wait for something."""
        self._users: dict[int, int] = {}
        self._waiting = 0
        self._running = True
        self._tag_clears = 0
        self._cleared_tags: dict[bytes, int] = {}
        self.on_end: Callable[[bytes], None] = lambda token: None
        """Called with the token of each lease that has ended, however that came."""
        self._tags_floor = 0
        """Up to here each tag counts as cleared."""

    # ── asking

    def ask(
        self, key: bytes, holder: Holder, now: float, *, ticket: int | None = None, wait: bool
    ) -> Outcome | Waiter:
        """The lease of a key, or a place among those who wait for it; without `wait`, HELD.

        `ticket` is the holder's own name for what it asks. Raises WireError (busy).
        """
        holder.deadline = now + self.settings.ttl
        if key in self._current and not (wait and self._running):
            return Outcome(HELD)
        self._check(key, holder)
        if ticket is not None and ticket in holder.tickets:
            raise self._full("ticket", 1, "requests of this ticket are unanswered or hold a lease")
        if key not in self._current:
            return self._grant(key, holder, ticket, now)
        waiter = Waiter(key, holder, ticket)
        self._queues.setdefault(key, OrderedDict())[waiter] = None
        holder.waiters.add(waiter)
        self._waiting += 1
        self._enter(holder, ticket, waiter)
        return waiter

    def _check(self, key: bytes, holder: Holder) -> None:
        limits = self.settings
        if holder.size >= limits.max_per_connection:
            raise self._full(
                "max_per_connection", limits.max_per_connection, "leases are this connection's"
            )
        if self.size >= limits.max_total:
            raise self._full("max_total", limits.max_total, "leases and waiters are all there are")
        share = -(-limits.max_total // USER_SHARE)
        if self._users.get(holder.uid, 0) >= share:
            raise self._full("max_total", share, "of them are for one user")
        queue = self._queues.get(key)
        if queue is None:
            return
        if len(queue) >= limits.max_waiters:
            raise self._full("max_waiters", limits.max_waiters, "requests wait for this key")
        share = -(-limits.max_waiters // USER_SHARE)
        if len(queue) >= share and sum(each.holder.uid == holder.uid for each in queue) >= share:
            raise self._full("max_waiters", share, "of those that wait for a key are for one user")

    def _full(self, name: str, limit: int, what: str) -> WireError:
        self.counts.busy += 1
        return WireError(
            BUSY,
            f"{limit} {what}, the limit",
            field=name,
            hint=f"load without a lease, or raise leases.{name}",
        )

    def _enter(self, holder: Holder, ticket: int | None, what: Lease | Waiter) -> None:
        if ticket is not None:
            holder.tickets[ticket] = what
        self._holders.add(holder)
        self._users[holder.uid] = self._users.get(holder.uid, 0) + 1

    def _leave(self, holder: Holder, ticket: int | None, what: Lease | Waiter) -> None:
        if ticket is not None and holder.tickets.get(ticket) is what:
            del holder.tickets[ticket]
        if not holder.size:
            self._holders.discard(holder)
        self._users[holder.uid] -= 1
        if not self._users[holder.uid]:
            del self._users[holder.uid]

    def _grant(self, key: bytes, holder: Holder, ticket: int | None, now: float) -> Outcome:
        self._number = max(self._number + 1, self._draw())
        token = self._number.to_bytes(8, "big") + self._chance()
        lease = Lease(key, token, holder, ticket, self._tag_clears, now)
        self._current[key] = self._tokens[token] = lease
        holder.leases.add(lease)
        self._enter(holder, ticket, lease)
        self.counts.granted += 1
        return Outcome(LEADER, token)

    # ── the end of a lease

    def _end(self, lease: Lease) -> None:
        del self._current[lease.key], self._tokens[lease.token]
        lease.holder.leases.discard(lease)
        self._leave(lease.holder, lease.ticket, lease)
        self.on_end(lease.token)
        if not self._current:
            self._cleared_tags.clear()
            self._tags_floor = self._tag_clears

    def _out(self, waiter: Waiter) -> None:
        """Take a waiter out of its queue."""
        queue = self._queues[waiter.key]
        del queue[waiter]
        if not queue:
            del self._queues[waiter.key]
        waiter.holder.waiters.discard(waiter)
        self._waiting -= 1
        self._leave(waiter.holder, waiter.ticket, waiter)

    def _promote(self, key: bytes, now: float) -> list[Waiter]:
        """After the end of a lease that came to nothing: the next one has it.

        One that was heard of goes before those that were not, for they may be stopped.
        """
        queue = self._queues.get(key)
        if queue is None:
            return []
        first = next(iter(queue))
        waiter = next((each for each in queue if each.holder.deadline > now), first)
        self._out(waiter)
        self.counts.promoted += 1
        waiter.outcome = self._grant(key, waiter.holder, waiter.ticket, now)
        waiter.holder.deadline = max(waiter.holder.deadline, now + self.settings.ttl)
        return [waiter]

    def token(self, key: bytes) -> bytes | None:
        """The token of a key's lease."""
        lease = self._current.get(key)
        return None if lease is None else lease.token

    def current(self, token: bytes) -> bool:
        """Whether a lease of this token lasts, void or not."""
        return token in self._tokens

    def release(self, token: bytes, now: float, *, failed: bool = False) -> list[Waiter]:
        """Give a lease up. One that is not current is given up already."""
        lease = self._tokens.get(token)
        if lease is None:
            return []
        self.counts.failed += failed
        self._end(lease)
        return self._promote(lease.key, now)

    def withdraw(
        self, holder: Holder, ticket: int, now: float, *, failed: bool = False
    ) -> list[Waiter]:
        """Give up what was asked under a ticket, whether it waits or has the lease by now."""
        found = holder.tickets.get(ticket)
        if isinstance(found, Lease):
            return self.release(found.token, now, failed=failed)
        if found is None:
            return []
        self._out(found)
        found.outcome = Outcome(HELD)
        return [found]

    def leave(self, waiter: Waiter) -> None:
        """Wait no more: its time is over, or nobody is there to be told."""
        if waiter.outcome is None:
            self._out(waiter)
            waiter.outcome = Outcome(HELD)

    def gone(self, holder: Holder, now: float) -> list[Waiter]:
        """The connection or its process has ended: the next waiters have what it held."""
        left = list(holder.waiters)
        for waiter in left:
            self.leave(waiter)
        return left + self._lose(holder, now)

    def _lose(self, holder: Holder, now: float) -> list[Waiter]:
        promoted = []
        for lease in list(holder.leases):
            self.counts.lost += 1
            self._end(lease)
            promoted += self._promote(lease.key, now)
        return promoted

    # ── heartbeats

    def renew(self, holder: Holder, now: float) -> None:
        """The holder has been heard of: all its leases last `ttl` seconds from now on."""
        holder.deadline = now + self.settings.ttl

    def overdue(self, now: float) -> list[Waiter]:
        """End the leases of holders that were not heard of."""
        promoted = []
        for holder in list(self._holders):
            if holder.leases and holder.deadline <= now:
                promoted += self._lose(holder, now)
        return promoted

    def postpone(self, seconds: float) -> None:
        """The daemon itself stood still: whoever beat meanwhile could not be heard."""
        for holder in self._holders:
            holder.deadline += seconds

    # ── values

    def admit(self, token: bytes, key: bytes, tags: Iterable[bytes] = ()) -> None:
        """Whether a value loaded under a token may be stored now. Raises Refused, saying why."""
        lease = self._tokens.get(token)
        if lease is None or lease.key != key:
            self.counts.refused += 1
            raise Refused("the lease is not current: it was lost, or a newer value came")
        if lease.void or any(
            self._cleared_tags.get(tag, self._tags_floor) > lease.tags_at for tag in tags
        ):
            self.counts.refused += 1
            raise Refused("the key was deleted or cleared while its value was loaded")

    def stored(self, key: bytes, payload: bytes | None) -> list[Waiter]:
        """A value of the key was stored, under its lease or not: whoever waits may read it."""
        lease = self._current.get(key)
        if lease is None:
            return []
        self._end(lease)
        told = list(self._queues.get(key, ()))
        for waiter in told:
            self._out(waiter)
            waiter.outcome = Outcome(HIT, payload=payload)
        self.counts.shared += len(told)
        return told

    def void(self, key: bytes) -> None:
        """The key was deleted or made stale: what is being loaded is older than that."""
        lease = self._current.get(key)
        if lease is not None:
            lease.void = True

    def void_all(self, matches: Callable[[bytes], bool] | None = None) -> None:
        """Everything was cleared, or every key that matches."""
        for key, lease in self._current.items():
            if matches is None or matches(key):
                lease.void = True

    def void_tags(self, tags: Iterable[bytes]) -> None:
        """Everything with one of the tags was cleared. A lease's tags are known at its end only."""
        if not self._current:
            return
        self._tag_clears += 1
        for tag in tags:
            self._cleared_tags[tag] = self._tag_clears
        if len(self._cleared_tags) > TAGS_KEPT:
            self._cleared_tags.clear()
            self._tags_floor = self._tag_clears

    # ── figures and the end

    @property
    def size(self) -> int:
        """Leases and waiters."""
        return len(self._current) + self._waiting

    @property
    def held(self) -> int:
        return len(self._current)

    @property
    def waiting(self) -> int:
        return self._waiting

    def lease_of(self, key: bytes) -> Lease | None:
        """The lease of a key, if it lasts."""
        return self._current.get(key)

    def queued(self, key: bytes) -> Iterator[Waiter]:
        """Who waits for a key, in order."""
        return iter(self._queues.get(key, ()))

    def stop(self) -> list[Waiter]:
        """The daemon stops: nobody waits any more."""
        self._running = False
        told = [waiter for queue in self._queues.values() for waiter in queue]
        for waiter in told:
            self.leave(waiter)
        return told
