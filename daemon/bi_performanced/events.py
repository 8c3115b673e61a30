"""Events: told once to whoever listens, in bounded queues, never waited for.

A listener that does not keep up loses its oldest events, and is told how many. The latest events
are kept, so that a listener that was cut off can go on from the one it saw last.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, get_args

import trio

from bi_performance_wire.types import Topic

TOPICS: Final[tuple[Topic, ...]] = get_args(Topic)
KEPT: Final = 256
"""Events that can be asked for again."""
QUEUED: Final = 100
"""Events that wait for one listener."""


class Event(NamedTuple):
    """`number` grows by one with each event of this daemon."""

    number: int
    body: dict[str, Any]


class Subscription:
    """One listener's queue. Closed by its owner, or by the daemon's stop."""

    def __init__(self, topics: Iterable[str], leave: Callable[[Subscription], None]) -> None:
        self.topics = frozenset(topics)
        self._leave = leave
        self._queue: deque[Event] = deque()
        self._lost = 0
        self._wake = trio.Event()
        self.closed = False

    def put(self, event: Event) -> None:
        if event.body["topic"] not in self.topics:
            return
        if len(self._queue) >= QUEUED:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(event)
        self._wake.set()

    async def next(self) -> Event | None:
        """The next event, or None once the subscription is closed and its queue empty."""
        while not self._queue:
            if self.closed:
                return None
            self._wake = trio.Event()
            await self._wake.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            first = self._queue[0]
            body = {"topic": first.body["topic"], "event": "events.lost", "count": lost}
            return Event(first.number - 1, body | {"timestamp": first.body["timestamp"]})
        return self._queue.popleft()

    def close(self) -> None:
        """Let `next` return None. Safe to call twice."""
        if not self.closed:
            self.closed = True
            self._leave(self)
            self._wake.set()


class Broker:
    """Takes events from the parts of the daemon, and hands them to the listeners."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._number = 0
        self._stopped = False
        self.identity = os.urandom(4).hex()
        """Of this daemon's numbering: another daemon's numbers say nothing here."""

    def publish(self, topic: Topic, event: str, **fields: Any) -> None:
        """Tell an event, named as it is logged. `fields` must be plain values."""
        self._number += 1
        body = {"topic": topic, "event": event, "timestamp": time.time(), **fields}
        found = Event(self._number, body)
        self._kept.append(found)
        for subscription in self._subscriptions:
            subscription.put(found)

    def subscribe(self, topics: Iterable[str], *, after: int | None = None) -> Subscription:
        """A listener from now on, or from the event after number `after` as far as it is kept."""
        made = Subscription(topics, self._subscriptions.discard)
        if after is not None:
            for event in self._kept:
                if event.number > after:
                    made.put(event)
        if self._stopped:
            made.close()
        else:
            self._subscriptions.add(made)
        return made

    @property
    def listeners(self) -> int:
        return len(self._subscriptions)

    def stop(self) -> None:
        """End every subscription, and each that comes later at once."""
        self._stopped = True
        for subscription in list(self._subscriptions):
            subscription.close()
