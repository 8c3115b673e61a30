"""What was found out about a key, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from bi_performanced.cache.past import Clear, Departure, Use, Why

WAITING: Final = {
    "value": "Its value waits to be written to Redis.",
    "deletion": "Its deletion waits to be sent to Redis.",
    "outbox": "Its deletion waits on disk until Redis can be told of it.",
}


def span(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 5 h 12 min, 3 d 4 h."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = int(seconds)
    for unit, parts, below, name in (
        (86400, 3600, "h", "d"),
        (3600, 60, "min", "h"),
        (60, 1, "s", "min"),
    ):
        if whole >= unit:
            rest = whole % unit // parts
            return f"{whole // unit} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def here(found: dict[str, Any]) -> str:
    """Why an entry that lies in the store is served, or is not."""
    age = span(found["age_seconds"])
    if found["state"] == "fresh":
        left = found["ttl_seconds"]
        until = "without an end" if left is None else f"for another {span(left)}"
        return f"A read hits: the entry is in the store of this host, {age} old, fresh {until}."
    if found["state"] == "stale":
        left = span(found["served_stale_for_seconds"])
        return (
            f"A plain read misses: the entry, {age} old, is beyond its time. It is in its grace:"
            f" for another {left} it is served stale to those who ask for that."
        )
    if found["state"] == "over":
        return (
            f"A read misses: the entry's time is over. It was stored {age} ago, and lies there"
            " until a sweep passes it."
        )
    if found["state"] == "unsure":
        return (
            "A read misses although the entry is in the store: other hosts have it too, what they"
            " have changed lately is not known here, and cache.on_partition does not allow to serve"
            " it any longer."
        )
    return (
        "A read misses: one of the entry's tags was cleared after it was stored,"
        f" {age} ago. It lies there until a sweep passes it."
    )


def gone(departure: Departure, clear: Clear | None, ago: float | None, lived: float) -> str:
    """Why and when a key that is not there left; `lived` in seconds."""
    when = "at a time that was not noted" if ago is None else f"{span(ago)} ago"
    there = f", {span(lived)} after it was stored" if departure.created else ""
    used = {
        Use.UNKNOWN: "",
        Use.UNREAD: ", without having been read",
        Use.READ: ", after it had been read",
    }[departure.use]
    why = departure.why
    if why is Why.EVICTED:
        return f"it was evicted {when} to make room{there}{used}."
    if why is Why.EXPIRED:
        return f"its time was over, and it was taken out {when}{there}{used}."
    if why is Why.CLEARED:
        return f"it was cleared {when}{there}, {_by(clear)}."
    if why is Why.TAG:
        return f"one of its tags was cleared before it was taken out {when}{there}."
    if why is Why.TOO_LARGE:
        return f"it was refused {when}: {departure.size:,} bytes encoded are too large."
    if why is Why.DELETED and not departure.size:
        return f"it was deleted {when}; there was no entry on this host then."
    return f"{_PLAIN[why]} {when}{there}."


_PLAIN: Final = {
    Why.DELETED: "it was deleted",
    Why.ELSEWHERE: "another host or program changed the key in Redis, and it was dropped here",
    Why.NEWS_MISSED: "what other hosts had changed was not known any more, and it was dropped",
    Why.REFUSED: "its value was refused, for its lease was over or the key deleted meanwhile,",
    Why.CROWDED: "it was evicted because its part of the index was full,",
    Why.STALE: "it was made stale by a command, and had no grace,",
}


def _by(clear: Clear | None) -> str:
    return "by a pattern or a tag, no longer known which" if clear is None else cleared_by(clear)


def cleared_by(clear: Clear) -> str:
    """What a clear was, and whose."""
    what = "with everything"
    tags = ", ".join(tag.decode("utf-8", "replace") for tag in clear.tags)
    if clear.pattern is not None:
        what = f"by the pattern {clear.pattern!r}" + (f" among the tags {tags}" if tags else "")
    elif tags:
        what = f"by the tag {tags}" if len(clear.tags) == 1 else f"by the tags {tags}"
    return what + (", which another host cleared" if clear.elsewhere else "")


def redis(found: dict[str, Any]) -> Iterator[str]:
    """What stands in Redis, and what waits to be written there."""
    if found.get("waiting"):
        yield WAITING[found["waiting"]]
    if found["present"] is False:
        yield "Redis has no entry of it."
    elif found["present"]:
        state = found["state"]
        if state == "unreadable":
            yield f"What Redis has of it cannot be read: {found['reason']}."
        elif state == "fresh":
            yield f"Redis has it, fresh for another {span(found['ttl_seconds'])}."
        elif state == "stale":
            yield "Redis has it beyond its time, in its grace."
        elif state == "cleared":
            yield "What Redis has of it was cleared; it is removed there in the background."
        else:
            yield "What Redis has of it is over."


def lease(found: dict[str, Any]) -> str:
    """Who loads it, and who waits."""
    who = "a process that is not to be seen from here"
    if found["pid"]:
        who = f"process {found['pid']}" + (f" ({found['name']})" if found["name"] else "")
    waiting = found["waiting"]
    end = "" if not waiting else f"; {waiting} {'waits' if waiting == 1 else 'wait'} for it"
    text = (
        f"It is being loaded: {who} has had its lease for {span(found['held_seconds'])}, and has it"
        f" for another {span(found['left_seconds'])} unless it is heard of{end}."
    )
    if found["void"]:
        text += " Its value will be refused: the key was deleted or cleared meanwhile."
    return text
