"""Looks at keys to which something happened, and lets go of what a foreign program has changed.

CLIENT TRACKING tells only that something happened to a key: another daemon has stored it, which
the log tells too, or has prolonged it, or its time was up. So the entry in Redis is read: what a
daemon has stored there is no foreign write, and the log says all that is to be known of it.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.envelope import Codec, Unreadable
from bi_performanced.remote.fetching import LARGEST, now_ms
from bi_performanced.remote.shard import Shard

GATHER: Final = 0.005
"""Seconds in which suspected keys come together before they are looked at."""
LOOKED_AT: Final = 16
"""Keys in one round trip: their entries may be large."""
ATTEMPTS: Final = 3
"""Looks at a key whose entry here was changed in their course. Then it is let go of."""


class Suspects:
    """The suspected keys of one shard. `run` must be running."""

    def __init__(self, shard: Shard, codec: Codec) -> None:
        self._shard = shard
        self._codec = codec
        self._keys: dict[bytes, int] = {}
        """How often each was looked at."""
        self._some = trio.Event()

    def add(self, key: bytes) -> None:
        """Something has happened to a key in Redis."""
        shard = self._shard
        shard.flights.touched(key)
        if shard.sink.holds(key) is not None or key in shard.publishing:
            self._again(key, 0)

    def _again(self, key: bytes, looks: int) -> None:
        self._keys[key] = looks
        self._some.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._some.wait()
            await trio.sleep(GATHER)
            suspects, self._keys = self._keys, {}
            self._some = trio.Event()
            keys = list(suspects)
            for at in range(0, len(keys), LOOKED_AT):
                await self._look({key: suspects[key] for key in keys[at : at + LOOKED_AT]})

    async def _look(self, suspects: dict[bytes, int]) -> None:
        shard = self._shard
        held: dict[bytes, int] = {}
        for key, looks in suspects.items():
            place = shard.sink.holds(key)
            if self._is_on_its_way(key):
                # It may have been written before that happened, and the answer be on its way.
                self._again(key, looks)
            elif place is not None:
                held[key] = place
        if not held:
            return
        commands = [("GETRANGE", shard.names.value(key), 0, LARGEST) for key in held]
        try:
            replies = await shard.reads.call(commands)
        except RemoteAway:
            # Nobody can say: they are let go of.
            replies = [b""] * len(held)
        for (key, place), reply in zip(held.items(), replies, strict=True):
            self._judge(key, place, reply, suspects[key] + 1)

    def _is_on_its_way(self, key: bytes) -> bool:
        shard = self._shard
        if shard.breaker.open:
            # What waits then is newer than whatever has happened in Redis, and is kept for later.
            return False
        return key in shard.publishing or shard.reading.waiting(key)[0]

    def _judge(self, key: bytes, place: int, reply: Any, looks: int) -> None:
        sink = self._shard.sink
        now = sink.holds(key)
        if now is None or self._shard.reading.waiting(key)[0]:
            if now is not None and not self._shard.breaker.open:
                self._again(key, looks)
            return
        if now != place and looks < ATTEMPTS:
            # Stored since, or only renewed.
            self._again(key, looks)
        elif reply == b"":
            # Deleted, or at the end of its time: no reason to think that what is being loaded is
            # old.
            if sink.let_go(key):
                self._shard.figures.foreign += 1
        elif not self._is_a_daemons(key, reply):
            sink.invalidate(key)
            self._shard.figures.foreign += 1

    def _is_a_daemons(self, key: bytes, reply: Any) -> bool:
        """Whether what Redis has is what is here, or of a daemon whose news are still to come."""
        if not isinstance(reply, bytes):
            return False
        try:
            envelope = self._codec.unpack(key, reply, -1, now_ms())
        except Unreadable:
            return False
        return (
            envelope.version > self._shard.read_to
            or envelope.payload == self._shard.sink.payload(key)
        )
