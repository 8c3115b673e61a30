"""Events: told in order, in bounded queues, to those who asked for their topic."""

from __future__ import annotations

import trio
import trio.testing

from bi_performanced.events import KEPT, QUEUED, Broker
from bi_performanced.health import watch_health


def test_a_listener_gets_what_it_asked_for_in_order() -> None:
    async def main() -> None:
        broker = Broker()
        profiles, everything = (
            broker.subscribe(["profile"]),
            broker.subscribe(["profile", "health", "recommendation"]),
        )
        broker.publish("health", "health.degraded", component="http", reason="taken")
        broker.publish("profile", "profile.applied", profile="balanced")
        event = await profiles.next()
        assert event is not None and event.body["event"] == "profile.applied"
        first, second = await everything.next(), await everything.next()
        assert first is not None and second is not None
        assert [first.body["topic"], second.body["topic"]] == ["health", "profile"]
        assert first.number + 1 == second.number == event.number
        assert first.body["timestamp"] <= second.body["timestamp"]

    trio.run(main)


def test_a_slow_listener_loses_the_oldest_and_is_told_how_many() -> None:
    async def main() -> None:
        broker = Broker()
        slow = broker.subscribe(["profile"])
        for number in range(QUEUED + 7):
            broker.publish("profile", "profile.applied", number=number)
        first = await slow.next()
        assert first is not None
        assert (first.body["event"], first.body["count"]) == ("events.lost", 7)
        rest = [await slow.next() for _ in range(QUEUED)]
        assert [each.body["number"] for each in rest if each] == list(range(7, QUEUED + 7))
        assert rest[0] is not None and first.number < rest[0].number

    trio.run(main)


def test_who_comes_again_goes_on_from_the_event_it_saw_last() -> None:
    async def main() -> None:
        broker = Broker()
        for number in range(KEPT + 10):
            broker.publish("health", "health.recovered", number=number)
        again = broker.subscribe(["health"], after=KEPT + 8)
        first, second = await again.next(), await again.next()
        assert first is not None and second is not None
        assert [first.number, second.number] == [KEPT + 9, KEPT + 10]

    trio.run(main)


def test_a_stop_ends_who_waits_and_who_comes_later() -> None:
    async def main() -> None:
        broker = Broker()
        waiting = broker.subscribe(["profile"])
        ended = []

        async def listen() -> None:
            ended.append(await waiting.next())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.testing.wait_all_tasks_blocked()
            broker.stop()
        assert ended == [None]
        assert await broker.subscribe(["profile"]).next() is None
        assert broker.listeners == 0

    trio.run(main)


def test_what_was_told_before_the_end_is_still_heard() -> None:
    async def main() -> None:
        broker = Broker()
        listener = broker.subscribe(["profile"])
        broker.publish("profile", "profile.applied")
        listener.close()
        listener.close()
        assert await listener.next() is not None
        assert await listener.next() is None
        broker.publish("profile", "profile.applied")
        assert await listener.next() is None

    trio.run(main)


def test_a_component_is_told_when_it_degrades_changes_its_reason_and_recovers() -> None:
    state = {"http": {"status": "ok"}, "cache": {"status": "ok"}}

    async def main() -> None:
        broker = Broker()
        listener = broker.subscribe(["health"])

        async def told() -> tuple[object, ...]:
            event = await listener.next()
            assert event is not None
            return event.body["event"], event.body["component"], event.body.get("reason")

        async with trio.open_nursery() as nursery:
            await nursery.start(watch_health, lambda: state, broker)
            state["http"] = {"status": "degraded", "reason": "taken"}
            assert await told() == ("health.degraded", "http", "taken")
            state["http"] = {"status": "degraded", "reason": "refused"}
            assert await told() == ("health.degraded", "http", "refused")
            state["http"] = {"status": "ok"}
            assert await told() == ("health.recovered", "http", None)
            nursery.cancel_scope.cancel()

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(main, clock=clock)
