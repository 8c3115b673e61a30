"""Server-sent events: `GET /performance/events` (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import trio
from starlette.types import Receive, Scope, Send

from bi_performance_wire.errors import BUSY, INVALID_ARGUMENT, WireError
from bi_performanced.events import TOPICS, Broker, Event, Subscription

ALIVE_EVERY: Final = 15.0
"""Seconds of silence after which a comment shows that both ends are there."""
RETRY_MS: Final = 2000
"""What a browser is told to wait before it comes again."""
_LAST_ID: Final = re.compile(r"([0-9a-f]{8})-(\d{1,18})")


class Streams:
    """Opens the event streams of a listener, so many at most at a time."""

    def __init__(self, broker: Broker, most: int) -> None:
        self._broker = broker
        self._most = most
        self._open = 0

    def open(self, query: Mapping[str, str], headers: Mapping[str, str]) -> EventStream:
        """The response for a request. Raises WireError (invalid_argument, busy)."""
        topics = _topics(query)
        if self._open >= self._most:
            raise WireError(
                BUSY,
                f"{self._most} event streams are open, the limit",
                field="http.max_streams",
                hint="close some, or raise http.max_streams",
            )
        after = None
        found = _LAST_ID.fullmatch(headers.get("last-event-id", ""))
        if found and found[1] == self._broker.identity:
            after = int(found[2])
        return EventStream(self, self._broker.subscribe(topics, after=after))

    def count(self, change: int) -> None:
        self._open += change

    def identity(self) -> str:
        return self._broker.identity


def _topics(query: Mapping[str, str]) -> list[str]:
    for name in query:
        if name != "topics":
            raise WireError(
                INVALID_ARGUMENT,
                f"there is no parameter {name[:100]!r}",
                field=name[:100],
                hint="it takes: topics",
            )
    topics = [name for name in query.get("topics", "").split(",") if name]
    for name in topics:
        if name not in TOPICS:
            raise WireError(
                INVALID_ARGUMENT,
                f"topics: there is no topic {name[:100]!r}",
                field="topics",
                hint=f"these there are: {', '.join(TOPICS)}",
            )
    return topics or list(TOPICS)


class EventStream:
    """An ASGI response that goes on until the client leaves or the daemon stops."""

    status_code = 200

    def __init__(self, streams: Streams, subscription: Subscription) -> None:
        self._streams = streams
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            self._subscription.close()
        self._streams.count(+1)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_gone, receive, nursery.cancel_scope)
                await self._send_all(send)
                nursery.cancel_scope.cancel()
        finally:
            self._subscription.close()
            self._streams.count(-1)

    @staticmethod
    async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _send_all(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def say(text: str, *, more: bool = True) -> None:
            body = {"type": "http.response.body", "body": text.encode(), "more_body": more}
            await send(body)

        await say(f"retry: {RETRY_MS}\n\n")
        while True:
            text = ": alive\n\n"
            with suppress(trio.TooSlowError), trio.fail_after(ALIVE_EVERY):
                event = await self._subscription.next()
                if event is None:
                    break
                text = self._text(event)
            await say(text)
        await say("", more=False)

    def _text(self, event: Event) -> str:
        identity = f"{self._streams.identity()}-{event.number}"
        return f"id: {identity}\nevent: {event.body['topic']}\ndata: {json.dumps(event.body)}\n\n"
