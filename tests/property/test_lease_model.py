"""Leases under any sequence of requests, deaths, deletions and delays."""

from __future__ import annotations

from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bi_performance_wire.errors import BUSY, WireError
from bi_performanced.cache.leases import HELD, HIT, LEADER, Holder, Leases, Outcome, Refused, Waiter
from bi_performanced.config import LeaseSettings

KEYS = st.sampled_from([b"a", b"b", b"c"])
TAGS = st.sampled_from([b"red", b"blue"])
TTL = 2.0
LIMITS = LeaseSettings(ttl=TTL, max_total=12, max_per_connection=5, max_waiters=4)


class Held:
    """What the model knows of a lease that it was given."""

    def __init__(self, key: bytes, token: bytes, holder: Holder) -> None:
        self.key, self.token, self.holder = key, token, holder
        self.void = False
        self.cleared: set[bytes] = set()


class LeasesBesideModel(RuleBasedStateMachine):
    """One lease a key, each waiter told once and in order, and no value older than a deletion."""

    @initialize()
    def make(self) -> None:
        numbers = count(1)
        self.leases = Leases(LIMITS, lambda: next(numbers), lambda: bytes(8))
        self.now = 0.0
        self.holders = [Holder(uid) for uid in (1, 1, 1, 2, 2)]
        self.heard = dict.fromkeys(self.holders, 0.0)
        self.held: dict[bytes, Held] = {}
        self.queues: dict[bytes, list[Waiter]] = {}
        self.old: list[Held] = []
        self.numbers: list[int] = []

    def _granted(self, key: bytes, holder: Holder, outcome: Outcome) -> None:
        assert key not in self.held, "one lease a key"
        self.numbers.append(int.from_bytes(outcome.token[:8], "big"))
        self.held[key] = Held(key, outcome.token, holder)

    def _ended(self, key: bytes) -> None:
        self.old.append(self.held.pop(key))

    def _told(self, waiters: list[Waiter], ended: set[bytes]) -> None:
        """Of each lease that came to nothing one waiter was promoted: the first that was heard
        of lately, or the first."""
        assert len({id(waiter) for waiter in waiters}) == len(waiters)
        promoted = {waiter.key: waiter for waiter in waiters}
        assert len(promoted) == len(waiters)
        for key in ended:
            queue = self.queues.get(key, [])
            if not queue:
                assert key not in promoted
                continue
            lively = [each for each in queue if self.heard[each.holder] + TTL > self.now]
            wanted = (lively or queue)[0]
            assert promoted.pop(key) is wanted
            queue.remove(wanted)
            assert wanted.outcome is not None and wanted.outcome.state == LEADER
            self.heard[wanted.holder] = max(self.heard[wanted.holder], self.now)
            self._granted(key, wanted.holder, wanted.outcome)
        assert not promoted

    @rule(key=KEYS, which=st.integers(0, 4), wait=st.booleans())
    def ask(self, key: bytes, which: int, wait: bool) -> None:
        holder = self.holders[which]
        self.heard[holder] = self.now
        try:
            found = self.leases.ask(key, holder, self.now, wait=wait)
        except WireError as error:
            assert error.code == BUSY
            assert error.field in ("max_total", "max_per_connection", "max_waiters")
            return
        if isinstance(found, Waiter):
            assert key in self.held and wait
            self.queues.setdefault(key, []).append(found)
        elif found.state == LEADER:
            self._granted(key, holder, found)
        else:
            assert found.state == HELD and key in self.held and not wait

    @rule(key=KEYS)
    def release(self, key: bytes) -> None:
        if key in self.held:
            token = self.held[key].token
            self._ended(key)
            self._told(self.leases.release(token, self.now), {key})

    @precondition(lambda self: self.old)
    @rule(data=st.data(), tag=TAGS)
    def use_an_old_token(self, data: st.DataObject, tag: bytes) -> None:
        old = data.draw(st.sampled_from(self.old))
        assert self.leases.release(old.token, self.now) == []
        try:
            self.leases.admit(old.token, old.key, [tag])
        except Refused:
            return
        raise AssertionError("the value of a lease that is over was admitted")

    @rule(key=KEYS, tags=st.sets(TAGS))
    def publish(self, key: bytes, tags: set[bytes]) -> None:
        held = self.held.get(key)
        if held is None:
            return
        try:
            self.leases.admit(held.token, key, tags)
        except Refused:
            assert held.void or held.cleared & tags
            return
        assert not held.void and not held.cleared & tags
        self._stored(key)

    @rule(key=KEYS)
    def store_something_else(self, key: bytes) -> None:
        self._stored(key)

    def _stored(self, key: bytes) -> None:
        told = self.leases.stored(key, b"value")
        waiting = self.queues.pop(key, []) if key in self.held else []
        assert told == waiting
        assert all(each.outcome == Outcome(HIT, payload=b"value") for each in told)
        if key in self.held:
            self._ended(key)

    @rule(which=st.integers(0, 4))
    def end_a_connection(self, which: int) -> None:
        holder = self.holders[which]
        for queue in self.queues.values():
            queue[:] = [each for each in queue if each.holder is not holder]
        ended = {key for key, held in self.held.items() if held.holder is holder}
        for key in ended:
            self._ended(key)
        told = self.leases.gone(holder, self.now)
        self._told([each for each in told if each.outcome != Outcome(HELD)], ended)

    @rule(data=st.data(), key=KEYS)
    def wait_no_more(self, data: st.DataObject, key: bytes) -> None:
        if queue := self.queues.get(key):
            waiter = data.draw(st.sampled_from(queue))
            self.leases.leave(waiter)
            queue.remove(waiter)
            assert waiter.outcome == Outcome(HELD)

    @rule(which=st.integers(0, 4))
    def beat(self, which: int) -> None:
        self.leases.renew(self.holders[which], self.now)
        self.heard[self.holders[which]] = self.now

    @rule(seconds=st.sampled_from([0.5, 1.0, 1.9, 2.0, 5.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        ended = {
            key for key, held in self.held.items() if self.heard[held.holder] + TTL <= self.now
        }
        for key in ended:
            self._ended(key)
        self._told(self.leases.overdue(self.now), ended)

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        self.leases.void(key)
        if key in self.held:
            self.held[key].void = True

    @rule(some=st.sets(KEYS))
    def clear(self, some: set[bytes]) -> None:
        self.leases.void_all(some.__contains__)
        for key in some & self.held.keys():
            self.held[key].void = True

    @rule(tags=st.sets(TAGS))
    def clear_tags(self, tags: set[bytes]) -> None:
        self.leases.void_tags(tags)
        for held in self.held.values():
            held.cleared |= tags

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "leases"):
            return
        assert self.leases.held == len(self.held)
        assert self.leases.waiting == sum(map(len, self.queues.values()))
        assert self.leases.size <= LIMITS.max_total
        for key in (b"a", b"b", b"c"):
            assert list(self.leases.queued(key)) == self.queues.get(key, [])
            assert not self.queues.get(key) or key in self.held, "nobody waits for nothing"
        assert self.numbers == sorted(set(self.numbers)), "tokens grow"
        for held in self.held.values():
            assert self.leases.current(held.token)
        for holder in self.holders:
            assert holder.size <= LIMITS.max_per_connection


TestLeases = LeasesBesideModel.TestCase
TestLeases.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
