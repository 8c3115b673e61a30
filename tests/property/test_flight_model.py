"""One load of a key at a time, through any sequence of ends, failures and departures."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bi_performance.flights import Flight, Flights, Joiner, Landed, Turn

KEYS = st.sampled_from([b"a", b"b"])


class Told:
    """A signal that counts how often it was set."""

    def __init__(self) -> None:
        self.count = 0

    def set(self) -> None:
        self.count += 1

    async def wait(self, seconds: float | None) -> bool:
        return bool(self.count)

    def alive(self) -> bool:
        return True


class FlightsBesideModel(RuleBasedStateMachine):
    """Whoever waits does so for somebody who runs the load, and is told once."""

    @initialize()
    def make(self) -> None:
        self.flights = Flights()
        self.run: list[Flight] = []
        """Flights that somebody runs."""
        self.new: dict[bytes, Flight] = {}
        """Those that who comes now would join."""
        self.joined: dict[Flight, list[tuple[Joiner, Told]]] = {}
        self.over: list[tuple[Joiner, Told, Landed | Turn]] = []

    @rule(key=KEYS, leads=st.booleans())
    def enter(self, key: bytes, leads: bool) -> None:
        told = Told()
        found = self.flights.enter(key, lambda: told, leads=leads)
        if isinstance(found, Flight):
            assert key not in self.new
            self.new[key] = found
            self.run.append(found)
            self.joined[found] = []
        else:
            assert found.flight is self.new[key]
            self.joined[found.flight].append((found, told))

    def _over(self, flight: Flight) -> None:
        self.run.remove(flight)
        if self.new.get(flight.key) is flight:
            del self.new[flight.key]

    @rule(data=st.data(), outcome=st.sampled_from([Landed(b"x"), Turn.AGAIN]))
    def land(self, data: st.DataObject, outcome: Landed | Turn) -> None:
        if self.run:
            flight = data.draw(st.sampled_from(self.run))
            self.flights.land(flight, outcome)
            self.over += [(joiner, told, outcome) for joiner, told in self.joined.pop(flight)]
            self._over(flight)

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        if self.run:
            self._fail(data.draw(st.sampled_from(self.run)))

    def _fail(self, flight: Flight) -> None:
        self.flights.pass_on(flight)
        self._passed_on(flight)

    def _passed_on(self, flight: Flight) -> None:
        if (next_one := self._next(flight)) is not None:
            self.joined[flight].remove(next_one)
            self.over.append((*next_one, Turn.LEAD))
        else:
            self.over += [(*each, Turn.AGAIN) for each in self.joined.pop(flight)]
            self._over(flight)

    def _next(self, flight: Flight) -> tuple[Joiner, Told] | None:
        return next((each for each in self.joined[flight] if each[0].leads), None)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiting = [each for joined in self.joined.values() for each in joined]
        if waiting:
            joiner, told = data.draw(st.sampled_from(waiting))
            self.flights.leave(joiner)
            self.joined[joiner.flight].remove((joiner, told))
            assert told.count == 0

    @rule(key=KEYS)
    def be_cancelled_when_just_handed_over(self, key: bytes) -> None:
        flight = self.new.get(key)
        if flight is not None and (next_one := self._next(flight)) is not None:
            joiner, told = next_one
            self.flights.pass_on(flight)
            assert joiner.outcome is Turn.LEAD and told.count == 1
            self.joined[flight].remove(next_one)
            self.flights.leave(joiner)
            self._passed_on(flight)

    @rule(key=KEYS)
    def part(self, key: bytes) -> None:
        self.flights.part(key)
        self.new.pop(key, None)

    @rule()
    def part_all(self) -> None:
        self.flights.part_all()
        self.new.clear()

    @invariant()
    def nobody_is_forgotten(self) -> None:
        if not hasattr(self, "flights"):
            return
        assert set(self.joined) == set(self.run)
        for flight, joined in self.joined.items():
            assert list(flight.joiners) == [joiner for joiner, _ in joined]
            assert all(joiner.outcome is None and not told.count for joiner, told in joined)
        for joiner, told, outcome in self.over:
            assert joiner.outcome == outcome and told.count == 1


TestFlights = FlightsBesideModel.TestCase
TestFlights.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
