"""Leases over all hosts: who may load a missing key.

A lease is a key in Redis that runs out after about a second unless it is extended. Whatever is
stored, deleted or cleared under its key ends it, in the same transaction: a leader that slept
through that publishes nothing any more. The end of a lease is an entry in the log, so that waiters
on other hosts need not ask.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, Final, NamedTuple

import trio

from bi_performanced.remote import scripts
from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.envelope import NEVER, Codec, Envelope, Version
from bi_performanced.remote.predicate import Predicate
from bi_performanced.remote.shard import Shard, is_full

TTL: Final = 1.0
"""Seconds until a lease that nobody extends has run out."""
REMEMBERED: Final = 10_000
"""Keys whose latest end of a lease is known, for those who begin to wait a moment later."""


MOST: Final = 20_000
"""Leases of this host that are known; the oldest beyond cannot be published."""
ATTEMPTS: Final = 3


class RemoteLease(NamedTuple):
    """The right to publish a key. `fence` is greater than that of every earlier lease."""

    key: bytes
    token: bytes
    fence: int
    seen: Version
    """Where the log was when it was granted: a clear behind that ends it."""
    found: bool
    """Whether Redis had an entry of the key then, readable or not."""


class Held(NamedTuple):
    """Another has the lease, or had it a moment ago."""

    key: bytes
    seen: Version
    remaining: float
    """Seconds until it has run out, unless it is extended."""


class RemoteLeases:
    """The leases of one shard. All calls raise RemoteAway when Redis is away."""

    def __init__(self, shard: Shard, codec: Codec) -> None:
        self._shard = shard
        self._codec = codec
        self._active: OrderedDict[bytes, RemoteLease] = OrderedDict()
        """What was granted to this host and may still be published, by token."""
        self._ended: OrderedDict[bytes, Version] = OrderedDict()
        self.waiting: dict[bytes, list[trio.Event]] = {}
        """Who waits, by key."""

    async def acquire(self, key: bytes, ttl: float = TTL) -> RemoteLease | Held:
        """The lease of a key, or who has it. Never waits for the other to end."""
        token = os.urandom(16)
        command = scripts.acquire(self._shard.names, key, token, int(ttl * 1000))
        (reply,) = await self._call(command)
        fence, remaining, last, *there = reply
        seen = Version.parse(last) if last else NEVER
        if fence:
            lease = RemoteLease(key, token, fence, seen, bool(there[0]))
            self._active[token] = lease
            if len(self._active) > MOST:
                self._active.popitem(last=False)
            return lease
        return Held(key, seen, max(0, remaining) / 1000)

    async def extend(self, lease: RemoteLease, ttl: float = TTL) -> bool:
        """Let it last `ttl` seconds from now; False when it has ended."""
        command = scripts.extend(self._shard.names, lease.key, lease.token, int(ttl * 1000))
        (reply,) = await self._call(command)
        return bool(reply)

    async def keep(self, lease: RemoteLease, ttl: float = TTL) -> None:
        """Extend it until cancelled; returns when it has ended, or may have while Redis is away."""
        good_until = trio.current_time() + ttl
        while trio.current_time() < good_until:
            await trio.sleep(ttl / 4)
            asked = trio.current_time()
            try:
                if not await self.extend(lease, ttl):
                    return
            except RemoteAway:
                continue
            good_until = asked + ttl

    async def release(self, lease: RemoteLease) -> None:
        """End it without a value; the next one of those who wait may load."""
        self._active.pop(lease.token, None)
        await self._call(
            scripts.release(self._shard.names, self._shard.origin, lease.key, lease.token)
        )

    async def publish(self, lease: RemoteLease, envelope: Envelope) -> Version | None:
        """Store the value and end the lease, in one step; its version.

        None: the lease had ended, or what it stood for was deleted or cleared meanwhile; nothing
        is stored then. Cancelled, it is stored or not.
        """
        # Only one has the lease of a key. What happens to it from here on may come behind this.
        self._shard.publishing.add(lease.key)
        try:
            return await self._publish(lease, envelope)
        finally:
            self._shard.publishing.discard(lease.key)

    async def _publish(self, lease: RemoteLease, envelope: Envelope) -> Version | None:
        shard = self._shard
        data = self._codec.pack(lease.key, envelope)
        shard.flights.touched(lease.key)
        for _ in range(ATTEMPTS):
            if lease.token not in self._active:
                return None
            known = max(lease.seen, shard.read_to)
            commands = scripts.publish(shard.names, shard.origin, lease, data, envelope, known)
            replies = await shard.writes.call(commands)
            errors: list[Any] = [reply for reply in replies[:-1] if isinstance(reply, Exception)]
            done: list[Any] = errors or replies[-1]
            if is_full(done):
                # No room for it: what is there is old, and the others need not wait.
                shard.figures.refused += 1
                shard.delete(lease.key)
                break
            shard.look(errors or replies[-1:])
            shard.look(done)
            if not isinstance(done[0], list):
                self._active.pop(lease.token, None)
                if done[0]:
                    shard.figures.stores += 1
                    return Version.parse(done[0])
                return None
            # There was a clear by pattern that this host has not read of yet.
            with trio.move_on_after(shard.timeout):
                await shard.read_up_to(Version.parse(done[0][0]))
        self._active.pop(lease.token, None)
        return None

    async def wait(self, held: Held) -> None:
        """Until the lease has ended or its key was changed, on any host, or its time was up.

        Then the key is to be fetched, and if it is missing, the lease to be asked for again. Raises
        RemoteAway when Redis goes away meanwhile.
        """
        if self._ended.get(held.key, NEVER) > held.seen:
            return
        event = trio.Event()
        waiting = self.waiting.setdefault(held.key, [])
        waiting.append(event)
        try:
            with trio.move_on_after(held.remaining + 0.001):
                await event.wait()
        finally:
            waiting.remove(event)
            if not waiting:
                self.waiting.pop(held.key, None)
        self._shard.breaker.check()

    def superseded(self, key: bytes, version: Version) -> bool:
        """Whether the log tells of a change of the key after this version."""
        return self._ended.get(key, NEVER) > version

    def ended(self, key: bytes, id_: Version) -> None:
        """The log says that a key was changed or its lease has ended."""
        self._ended[key] = id_
        self._ended.move_to_end(key)
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
        for event in self.waiting.get(key, ()):
            event.set()

    def cleared(self, id_: Version, predicate: Predicate) -> None:
        """The log says that something was cleared. What is told apart in Redis itself, tags and
        everything, is looked at there."""
        if predicate.pattern is None or predicate.soft:
            return
        try:
            matches = self._shard.matcher(predicate.pattern)
        except Exception:
            # A pattern that this version does not take could match any key.
            self._active.clear()
            return
        for token, lease in list(self._active.items()):
            if lease.seen < id_ and matches(lease.key):
                del self._active[token]

    def lose_all(self) -> None:
        """News were missed: what was loaded meanwhile may have been cleared."""
        self._active.clear()

    def wake_all(self) -> None:
        """Redis is away, or news were missed: nobody waits on."""
        for waiting in self.waiting.values():
            for event in waiting:
                event.set()

    async def _call(self, command: Any) -> list[Any]:
        replies = await self._shard.writes.call([command])
        self._shard.look(replies)
        return replies
