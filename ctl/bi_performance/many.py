"""Several missing values by one call of a bulk factory, with a lease for each key.

Nobody waits for another's load while he holds a lease of his own: what this caller leads is loaded
and stored first, then what others load is waited for, and what they gave up is loaded in a further
round. So two processes with the same keys in different orders do not wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from bi_performance.checks import Key, key_bytes
from bi_performance.flights import Flight, Joiner, Landed, Turn
from bi_performance.keeper import HIT, LEADER, Asked
from bi_performance.loading import LEASE_WAIT, NESTED_WAIT, Loader, loading, nested, within_load
from bi_performance.options import LoadContext, LoadTimeout, Options
from bi_performance.reader import Outcome
from bi_performance.worlds import Late, Signal, World, is_async
from bi_performance_wire.errors import WireError
from bi_performance_wire.types import MAX_KEY_BYTES
from bi_performance_wire.value import ValueFormatError, decode

ROUNDS: Final = 20
"""Rounds after which what is still missing is loaded without leases."""
NESTED_ROUNDS: Final = 3
"""The same within a factory, whose keys others may wait for."""
STORED_AT_ONCE: Final = 100
STORED_BYTES: Final = 8 << 20


class Bulk:
    """One call of `get_or_set_many`."""

    def __init__(
        self,
        loader: Loader,
        world: World,
        keys: Iterable[Key],
        factory: Callable[..., Any],
        options: Options,
        prefix: bytes = b"",
    ) -> None:
        """`prefix`: what comes before each key in the store."""
        self._loader = loader
        self._prefix = prefix
        self._world = world
        self._factory = factory
        self._options = options
        self._keys: dict[bytes, Key] = {}
        for key in keys:
            self._keys.setdefault(self._name(key), key)
        self._found: dict[bytes, Any] = {}
        bounded = nested() or world.blocks_a_loop
        self._patience = NESTED_WAIT if bounded else LEASE_WAIT
        self._absent: set[bytes] = set()
        """Keys that the factory did not give a value for."""

    def _name(self, key: Key) -> bytes:
        """How the store calls a key. Raises TypeError or ValueError for what is none."""
        return self._prefix + key_bytes(key, most=MAX_KEY_BYTES - len(self._prefix))

    async def run(self) -> dict[Key, Any]:
        """The values of the keys, those left out for which there is none."""
        pending = [name for name in self._keys if not self._look(name)]
        if pending:
            seconds = self._options.hard_timeout
            if seconds is None:
                await self._load(pending)
            else:
                try:
                    await self._world.within(seconds, lambda: self._load(pending))
                except Late:
                    raise LoadTimeout(
                        f"{len(pending)} keys were not loaded within {seconds:g} s"
                    ) from None
        return {key: self._found[name] for name, key in self._keys.items() if name in self._found}

    def _look(self, name: bytes) -> bool:
        value = self._loader.read(name)
        if value.__class__ is Outcome:
            return False
        self._found[name] = value
        return True

    async def _load(self, pending: list[bytes]) -> None:
        if self._loader.link.mode == "off":
            await self._call(dict.fromkeys(pending))
            return
        # A factory that asks for what it is to load would wait for itself.
        own = [name for name in pending if name in loading()]
        pending = [name for name in pending if name not in own]
        rounds = (
            0
            if self._loader.link.mode != "on"
            else NESTED_ROUNDS
            if self._patience == NESTED_WAIT
            else ROUNDS
        )
        for number in range(rounds):
            if not pending:
                break
            await self._round(pending, wait=0.0 if number == 0 else self._patience)
            pending = [
                name for name in pending if name not in self._found and name not in self._absent
            ]
        pending += own
        if not pending:
            return
        leases: dict[bytes, Asked | None] = dict.fromkeys(pending)
        try:
            if self._loader.link.mode == "observe":
                await self._ask(leases, pending, wait=0.0, refresh=True)
            await self._call(leases)
        finally:
            _finish(leases)

    async def _round(self, pending: list[bytes], *, wait: float) -> None:
        flights: dict[bytes, Flight] = {}
        joiners: list[Joiner] = []
        try:
            for name in pending:
                # Not to be given a load that nobody would run while this one's own are.
                entered = self._loader.flights.enter(name, self._world.signal, leads=False)
                if isinstance(entered, Flight):
                    flights[name] = entered
                else:
                    joiners.append(entered)
            if flights:
                await self._lead(flights, wait)
            while joiners:
                await self._follow(joiners[-1])
                joiners.pop()
        finally:
            for flight in flights.values():
                self._loader.flights.pass_on(flight)
            for joiner in joiners:
                self._loader.flights.leave(joiner)

    async def _follow(self, joiner: Joiner) -> None:
        bounded = self._patience == NESTED_WAIT
        outcome = await self._loader.wait(self._world, joiner, bounded=bounded)
        if isinstance(outcome, Landed):
            self._found[joiner.flight.key] = decode(outcome.payload)
        elif outcome is Turn.AGAIN:
            # What was given up is loaded in the next round, with all else that is missing then.
            self._look(joiner.flight.key)

    async def _lead(self, flights: dict[bytes, Flight], wait: float) -> None:
        """Load what can be had a lease for; the flights that have landed are taken out."""
        if self._loader.link.reader.asks:
            there = await self._loader.fetch(self._world, list(flights))
            for name, found in there.items():
                self._found[name] = decode(found)
                self._loader.flights.land(flights.pop(name), Landed(found))
            if not flights:
                return
        leases: dict[bytes, Asked | None] = {}
        try:
            await self._ask(leases, list(flights), wait=wait)
            mine: dict[bytes, Asked | None] = {}
            for name, asked in leases.items():
                assert asked is not None
                if asked.state == LEADER:
                    mine[name] = asked
                elif asked.state == HIT:
                    self._take(name, asked, flights)
                elif not asked.state and asked.state is not None:
                    # No daemon to ask.
                    mine[name] = None
            if mine:
                for name, payload in (await self._call(mine)).items():
                    outcome = Turn.AGAIN if payload is None else Landed(payload)
                    self._loader.flights.land(flights.pop(name), outcome)
        finally:
            _finish(leases)

    def _take(self, name: bytes, asked: Asked, flights: dict[bytes, Flight]) -> None:
        """What another process has loaded."""
        outcome: Landed | Turn = Turn.AGAIN
        try:
            if asked.payload is not None:
                self._found[name] = decode(asked.payload)
                outcome = Landed(asked.payload)
            else:
                self._look(name)
        except ValueFormatError:
            return
        self._loader.flights.land(flights.pop(name), outcome)

    async def _ask(
        self,
        leases: dict[bytes, Asked | None],
        names: list[bytes],
        *,
        wait: float,
        refresh: bool = False,
    ) -> None:
        """Ask for leases; until all are answered, or one is given while others are waited for."""
        if self._loader.link.resting:
            leases.update((name, self._loader.unanswered(name)) for name in names)
            return
        signal = self._world.signal()
        asking = _Asking(signal, len(names), each=wait > 0)
        for name in names:
            leases[name] = self._loader.keeper.ask(
                name, asking.answered, wait=wait, refresh=refresh, alive=signal.alive
            )
        while asking.left > 0 and not any(
            asked is not None and asked.state == LEADER for asked in leases.values() if wait
        ):
            signal = asking.signal
            await signal.wait(None)
            # Before looking: what is answered from here on wakes anew.
            asking.signal = self._world.signal()

    async def _call(self, leases: Mapping[bytes, Asked | None]) -> dict[bytes, bytes | None]:
        """Call the factory for these keys and store what it gives under their leases.

        For each key the encoded entry; None where nobody else may take it.
        """
        factory, names = self._factory, list(leases)
        keys = [self._keys[name] for name in names]
        self._loader.unshared += sum(asked is None for asked in leases.values())
        failed = True
        try:
            began = time.monotonic()
            with within_load(names):
                given = await self._world.call(lambda: factory(keys), is_async=is_async(factory))
            took = time.monotonic() - began
            if not isinstance(given, Mapping):
                raise TypeError(
                    f"a bulk factory returns a mapping of keys and values, not"
                    f" {type(given).__name__}"
                )
            values = {self._name(key): value for key, value in given.items()}
            entries: dict[bytes, bytes | None] = {}
            requests: list[dict[str, Any]] = []
            negative = self._options.negative_ttl
            for name in names:
                if name not in values and not negative:
                    self._absent.add(name)
                    entries[name] = None
                    continue
                self._found[name] = value = values.get(name)
                context = LoadContext(name, self._options, None)
                entries[name], args = self._loader.entry(leases[name], context, value, took)
                if args is not None:
                    requests.append(args)
            failed = False
        finally:
            if failed:
                _finish(leases, failed=True)
        for lost in await self._store(requests):
            entries[lost] = None
        return entries

    async def _store(self, requests: list[dict[str, Any]]) -> list[bytes]:
        """Store what was loaded; the keys for which it was refused."""
        lost: list[bytes] = []
        while requests:
            batch: list[dict[str, Any]] = []
            size = 0
            while requests and len(batch) < STORED_AT_ONCE and size < STORED_BYTES:
                batch.append(requests.pop())
                size += len(batch[-1]["payload"])
            answer = await self._world.ask(self._loader.link, "cache.set", batch)
            if answer.result is None:
                return lost
            for args, result in zip(batch, answer.result, strict=True):
                if isinstance(result, WireError):
                    self._loader.link.note(result)
                elif not result["stored"]:
                    lost.append(args["key"])
        return lost


class _Asking:
    """Counts answers; `answered` is called in the keeper's thread. Wakes at the last, or `each`."""

    def __init__(self, signal: Signal, count: int, *, each: bool) -> None:
        self.signal = signal
        self.left = count
        self._each = each

    def answered(self) -> None:
        self.left -= 1
        if self._each or not self.left:
            self.signal.set()


def _finish(leases: Mapping[bytes, Asked | None], *, failed: bool = False) -> None:
    """Give up what is not over; a lease whose value was stored is over for the daemon."""
    for asked in leases.values():
        if asked is not None:
            asked.finish(failed=failed)
