"""One request of a scraper, with and without await: an answer, or the reason why there is none.

Nothing raises because of the daemon; ValueError means what only the daemon can tell to be a
mistake of the caller's, as a pattern or a profile that is none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from bi_performance.drivers import drive_async, let_others_run, sleep, take_turn
from bi_performance.link import Link
from bi_performance.protocol import QueueFull, Unavailable, drive
from bi_performance_wire.errors import UNAVAILABLE, WireError

TIMEOUT: Final = 1.0
"""Seconds for an ordinary request, from when its turn has come (see turns.py)."""


_FORMS: Final[Mapping[str, Mapping[str, type]]] = {
    "cache.set": {"stored": int},
    "cache.set_many": {"stored": int},
    "cache.add": {"stored": int},
    "cache.delete": {"deleted": bool},
    "cache.fetch": {"payloads": list},
    "cache.expire": {"expired": bool},
    "cache.touch": {"touched": bool},
    "cache.clear": {"cleared": int},
    "cache.keys": {"keys": list},
    "cache.stats": {},
    "analysis": {},
    "optimize": {},
}
"""What a result must be for a caller to be told it: a map in which at least these stand."""


class Answer(NamedTuple):
    """`result` None with a `reason`: the daemon is away, or refused."""

    result: Any
    reason: str | None = None


def _checked(method: str, result: Any) -> Answer:
    """The answer; raises WireError when a peer of another version made it in another form.

    Of several requests it is the list of results, in which an error is a WireError.
    """
    if isinstance(result, list):
        return Answer(
            [
                each if isinstance(each, WireError) else _checked(method, each).result
                for each in result
            ]
        )
    wanted = _FORMS.get(method, {})
    if isinstance(result, dict) and all(
        isinstance(result.get(name), kind) for name, kind in wanted.items()
    ):
        return Answer(result)
    raise WireError(
        UNAVAILABLE,
        f"{method} was answered in a form that this version does not know: {result!r:.80}",
        hint="let the daemon and its clients be of one version",
    )


async def ask(
    link: Link,
    method: str,
    args: dict[str, Any] | list[dict[str, Any]] | None,
    *,
    seconds: float = TIMEOUT,
    repeatable: bool = True,
) -> Answer:
    """Ask under asyncio or trio. Raises ValueError."""
    began = time.monotonic()
    try:
        turns = await take_turn(link.turns, seconds)
        began = time.monotonic()
        attempt = 0
        try:
            while True:
                steps = link.request(method, args, repeatable=repeatable)
                try:
                    return _checked(method, await drive_async(steps, seconds))
                except QueueFull as full:
                    pause = link.pause(full, attempt, began)
                attempt += 1
                await sleep(pause)
        finally:
            link.give(turns)
    except (Unavailable, WireError) as error:
        link.excuse(error, began)
        found = error
    # A daemon that is away answers at once: a caller that only writes must not hold the loop.
    await let_others_run()
    return Answer(None, str(found))


def ask_now(
    link: Link,
    method: str,
    args: dict[str, Any] | list[dict[str, Any]] | None,
    *,
    seconds: float = TIMEOUT,
    repeatable: bool = True,
) -> Answer:
    """Ask from any thread. Raises ValueError."""
    began = time.monotonic()
    turns = link.turns.threads
    try:
        turns.take(seconds)
        began = time.monotonic()
        attempt = 0
        try:
            while True:
                steps = link.request(method, args, repeatable=repeatable)
                try:
                    return _checked(method, drive(steps, seconds))
                except QueueFull as full:
                    pause = link.pause(full, attempt, began)
                attempt += 1
                time.sleep(pause)
        finally:
            link.give(turns)
    except (Unavailable, WireError) as error:
        link.excuse(error, began)
        return Answer(None, str(error))
