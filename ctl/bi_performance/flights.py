"""One load of a key at a time in this process: one caller runs it, the others join it.

Whoever runs it may fail or be cancelled: then the one that joined first runs it, and so on. Callers
may be of any thread and of any event loop. After Go's singleflight, where a failure is everybody's;
here it is only its own caller's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from bi_performance.worlds import Signal


class Landed(NamedTuple):
    """A load that came to a value, encoded, so that each caller gets a copy of its own."""

    payload: bytes


class Turn(Enum):
    LEAD = "lead"
    """Run the load yourself."""
    AGAIN = "again"
    """Look again: what was loaded is not what you asked for, or it can be read by now."""


class Joiner:
    """A caller that waits for another's load."""

    __slots__ = ("flight", "leads", "outcome", "signal", "thread")

    def __init__(self, flight: Flight, signal: Signal, leads: bool) -> None:
        self.flight = flight
        self.thread = threading.get_ident()
        self.signal = signal
        self.leads = leads
        """Whether it would run the load at once; who has others to load first does not."""
        self.outcome: Landed | Turn | None = None


class Flight:
    """One load, through all who run it in turn."""

    __slots__ = ("joiners", "key", "leader", "thread")

    def __init__(self, key: bytes, leader: Signal) -> None:
        self.key = key
        self.leader = leader
        """Of who runs it; told nothing."""
        self.thread = threading.get_ident()
        """In which, or in whose loop, it is run."""
        self.joiners: OrderedDict[Joiner, None] = OrderedDict()


class Flights:
    """All loads of this process with one daemon. Callers must end what they `enter`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """In a forked child: those who run the loads are not there."""
        self._lock = threading.RLock()
        self._flights: dict[bytes, Flight] = {}

    def enter(
        self, key: bytes, signal: Callable[[], Signal], *, leads: bool = True
    ) -> Flight | Joiner:
        """A flight to run and to end, or a place among those who wait for one. Without `leads`
        that is never told to run it: Turn.AGAIN instead."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None and not flight.leader.alive():
                self.land(flight, Turn.AGAIN)
                flight = None
            if flight is None:
                flight = self._flights[key] = Flight(key, signal())
                return flight
            joiner = Joiner(flight, signal(), leads)
            flight.joiners[joiner] = None
            return joiner

    def land(self, flight: Flight, outcome: Landed | Turn) -> None:
        """End a flight: all who joined it are told."""
        with self._lock:
            self._part(flight)
            joiners, flight.joiners = flight.joiners, OrderedDict()
            for joiner in joiners:
                joiner.outcome = outcome
        for joiner in joiners:
            joiner.signal.set()

    def pass_on(self, flight: Flight) -> None:
        """Whoever ran it gave up: the next one that leads runs it, or it ends."""
        with self._lock:
            able = (each for each in flight.joiners if each.leads and each.signal.alive())
            if (joiner := next(able, None)) is not None:
                del flight.joiners[joiner]
                flight.leader = joiner.signal
                joiner.outcome = Turn.LEAD
                flight.thread = joiner.thread
        if joiner is None:
            self.land(flight, Turn.AGAIN)
        else:
            joiner.signal.set()

    def look(self, joiner: Joiner) -> None:
        """End the flight that this one waits for, if its event loop was closed over it."""
        if joiner.outcome is None and not joiner.flight.leader.alive():
            self.land(joiner.flight, Turn.AGAIN)

    def leave(self, joiner: Joiner) -> None:
        """Wait no more. A flight that was just handed over is passed on."""
        with self._lock:
            if joiner.outcome is None:
                joiner.flight.joiners.pop(joiner, None)
                joiner.outcome = Turn.AGAIN
                return
        if joiner.outcome is Turn.LEAD:
            self.pass_on(joiner.flight)

    def part(self, key: bytes) -> None:
        """This process deleted the key: who comes from now on must not get what is loaded now."""
        with self._lock:
            self._flights.pop(key, None)

    def part_all(self) -> None:
        """The same after a clear, whatever it was of."""
        with self._lock:
            self._flights.clear()

    def _part(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
