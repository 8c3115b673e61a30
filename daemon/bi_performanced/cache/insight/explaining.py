"""Why a key is a hit or a miss, on every level, and when and why it went.

What is not known is said to be unknown, with the reason: nothing is inferred from silence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import trio
from xxhash import xxh3_64_intdigest

from bi_performance_wire import layout as L
from bi_performance_wire.insight import Explained
from bi_performanced.cache.clients import boot_clock
from bi_performanced.cache.home import Home
from bi_performanced.cache.insight import placing, words
from bi_performanced.cache.insight.remains import remains
from bi_performanced.cache.leasing import Leasing
from bi_performanced.cache.past import DEPARTURES, Clear, Departure, Why
from bi_performanced.cache.ring import Record
from bi_performanced.cache.second import SecondLevel
from bi_performanced.cache.terms import check_key

AT_ONCE: Final = 1
"""Explanations that are worked out at one time: each may look through the whole store."""
Outcome = Literal["hit", "stale", "miss"]
Level = Literal["local", "redis"]
_TENTH: Final = 10
_CLEARS: Final = (Why.CLEARED, Why.TAG)


@dataclass
class Findings:
    """What comes together in the course of an explanation."""

    reason: str
    why: str
    more: list[str] = field(default_factory=list)
    past: dict[str, Any] | None = None
    unknown: dict[str, str] = field(default_factory=dict)


class Explainer:
    """Answers for one key at a time."""

    def __init__(self, home: Home, leasing: Leasing, second: SecondLevel | None, mode: str) -> None:
        self._home = home
        self._leasing = leasing
        self._second = second
        self._mode = mode
        self._since = boot_clock()
        self._limiter = trio.CapacityLimiter(AT_ONCE)

    async def explain(self, key: bytes) -> Explained:
        """All that is known of a key. Changes nothing, and counts as no use of it.

        Raises WireError for a key out of bounds.
        """
        check_key(key)
        async with self._limiter:
            redis = None if self._second is None else await self._second.remote.look(key)
            now = boot_clock()
            local = placing.look(self._home.store, key, now)
            if local is None:
                found = await self._missing(key, now)
            else:
                found = self._present(local)
        state = local["state"] if local else None
        outcome: Outcome = "hit" if state == "fresh" else "stale" if state == "stale" else "miss"
        level: Level | None = None if outcome == "miss" else "local"
        if self._mode == "off":
            outcome, level, found.reason = "miss", None, "off"
            found.more.insert(0, found.why)
            found.why = "A read misses: the cache is switched off."
        elif redis is not None:
            if redis["present"] is None:
                found.unknown["redis"] = redis["reason"]
            if outcome != "hit" and redis.get("state") == "fresh" and not redis.get("waiting"):
                outcome, level, found.reason = "hit", "redis", "in_redis"
                found.more.insert(0, found.why.replace("A read misses: ", "On this host: "))
                found.why = "A read hits: Redis has the entry, and the next one brings it here."
            found.more += words.redis(redis)
        if self._mode == "observe":
            found.more.append("The mode is observe: no process is served anything yet.")
        lease = self._lease(key)
        if lease is not None:
            found.more.append(words.lease(lease))
        elif redis is not None and (left := redis.get("leased_for_seconds")) is not None:
            found.more.append(
                f"Another host is loading it: its lease lasts another {words.span(left)} unless it"
                " is extended."
            )
        return Explained(
            key=_shown(key),
            outcome=outcome,
            level=level,
            reason=found.reason,
            why=found.why,
            more=found.more,
            local=local,
            redis=redis,
            lease=lease,
            past=found.past,
            unknown=found.unknown,
        )

    # ── what is there

    def _present(self, local: dict[str, Any]) -> Findings:
        reason = {"fresh": "fresh", "stale": "in_grace", "over": "expired", "cleared": "cleared"}
        found = Findings(reason.get(local["state"], "partition"), words.here(local))
        if local["state"] == "cleared":
            tags = {tag.encode() for tag in local["tags"]}
            clear = self._first_clear(local["sequence"], tags)
            if clear is None:
                found.unknown["clear"] = (
                    "which tag, and when: no clear of one of its tags is remembered by this daemon;"
                    " a tag that shares its two words in the table has the same effect"
                )
            else:
                found.more.append(self._told(clear))
        return found

    def _first_clear(self, sequence: int, tags: set[bytes]) -> Clear | None:
        """The first clear by one of these tags that concerned an entry of this sequence."""
        found = None
        for clear in self._home.store.departures.past.clears():
            if clear.sequence >= sequence and not clear.stale and tags.intersection(clear.tags):
                found = clear
        return found

    def _told(self, clear: Clear) -> str:
        ago = words.span((boot_clock() // L.CREATED_UNIT_NS - clear.when) / _TENTH)
        return f"It was cleared {ago} ago, {words.cleared_by(clear)}."

    # ── what is not

    async def _missing(self, key: bytes, now: int) -> Findings:
        past = self._home.store.departures.past
        departure = past.find(_digests(key, past.seeds))
        everything = next(
            (each for each in past.clears() if each.everything and not each.stale), None
        )
        record, whole = None, True
        if departure is None or (everything is not None and everything.when >= departure.when):
            # A clear of everything does not look at keys: what still lies there says more.
            record, whole = await remains(lambda: self._home.store, key)
        if everything is not None and (
            record is not None
            and record.state == L.LIVE
            and record.sequence <= everything.sequence
            and (departure is None or record.created >= departure.when)
            # Else it may have left before, which is forgotten.
            and (not past.full or (past.reach or 0) <= record.created)
        ):
            return self._with_everything(everything, record, now)
        if departure is None:
            return self._never(everything, record, whole, now)
        found = self._departed(departure, now)
        if record is None and everything is not None and everything.when > departure.when:
            found.unknown["since"] = (
                "whether it was stored again after that and went when everything was cleared,"
                f" {words.span(now / 1e9 - everything.when / _TENTH)} ago"
            )
        return found

    def _departed(self, departure: Departure, now: int) -> Findings:
        past = self._home.store.departures.past
        clear = past.clear_of(departure.clear) if departure.clear else None
        ago = now / 1e9 - departure.when / _TENTH if departure.when else None
        lived = max(0, departure.when - departure.created) / _TENTH
        reason = "cleared" if departure.why in _CLEARS else departure.why.name.lower()
        found = Findings(
            reason, "A read misses: " + words.gone(departure, clear, ago, lived), past={}
        )
        found.past = {
            "why": reason,
            "ago_seconds": ago,
            "stored_for_seconds": lived if departure.created else None,
            "stored_bytes": departure.size or None,
            "read": {0: None, 1: False, 2: True}[departure.use],
        }
        if clear is not None:
            found.past["cleared"] = _clear(clear)
        if departure.why is Why.EXPIRED:
            self._made_stale(departure, found)
        return found

    def _made_stale(self, departure: Departure, found: Findings) -> None:
        """An entry's time may have been ended for it, with everything."""
        for clear in self._home.store.departures.past.clears():
            if clear.everything and clear.stale and clear.when <= departure.when:
                if clear.when >= departure.created:
                    found.more.append("Everything was made stale while it was there.")
                return

    def _with_everything(self, clear: Clear, record: Record, now: int) -> Findings:
        ago = now / 1e9 - clear.when / _TENTH
        lived = max(0, clear.when - record.created) / _TENTH
        how = clear.what or words.cleared_by(clear)
        text = (
            f"A read misses: it went {words.span(ago)} ago, {how}; it had been stored"
            f" {words.span(lived)} before."
        )
        return Findings(
            "cleared",
            text,
            past={
                "why": "cleared",
                "ago_seconds": ago,
                "stored_for_seconds": lived,
                "stored_bytes": record.size,
                "read": None,
                "cleared": _clear(clear),
            },
        )

    def _never(
        self, everything: Clear | None, record: Record | None, whole: bool, now: int
    ) -> Findings:
        past = self._home.store.departures.past
        began = words.span((now - self._since) / 1e9)
        if record is not None:
            age = words.span(now / 1e9 - record.created / _TENTH)
            found = Findings(
                "unknown",
                f"A read misses: it was here, stored {age} ago, and has left; why and when is not"
                " known.",
            )
            found.past = {
                "why": None,
                "ago_seconds": None,
                "stored_for_seconds": None,
                "stored_bytes": record.size,
                "read": None,
            }
        elif past.full or everything is not None:
            found = Findings("unknown", "A read misses: nothing is known of it on this host.")
        else:
            return Findings(
                "never_seen",
                "A read misses: since this daemon began, "
                f"{began} ago, no entry of it has been here, left or been refused.",
                ["A value that its own process finds too large is not sent here."],
            )
        if past.full and past.reach is not None:
            back = words.span(now / 1e9 - past.reach / _TENTH)
            found.unknown["past"] = (
                f"the last {DEPARTURES:,} departures are remembered, and they reach back {back}"
            )
        elif everything is not None:
            ago = words.span(now / 1e9 - everything.when / _TENTH)
            found.unknown["past"] = (
                f"everything was cleared {ago} ago, which does not look at keys, and "
                + (
                    "no record of it lies in the store any more"
                    if whole
                    else "too much in the store is like the key to look for a record of it"
                )
            )
        else:
            found.unknown["past"] = f"this daemon began {began} ago, and knows nothing from before"
        return found

    # ── who loads it

    def _lease(self, key: bytes) -> dict[str, Any] | None:
        leases = self._leasing.leases
        lease = leases.lease_of(key)
        if lease is None:
            return None
        now = trio.current_time()
        holder = lease.holder
        names = {
            each.peer_pid: each.name
            for each in self._home.clients.attached.values()
            if each.peer_pid
        }
        return {
            "pid": holder.pid or None,
            "name": names.get(holder.pid),
            "uid": holder.uid,
            "held_seconds": max(0.0, now - lease.granted),
            "left_seconds": max(0.0, holder.deadline - now),
            "void": lease.void,
            "waiting": sum(1 for _ in leases.queued(key)),
        }


def _digests(key: bytes, seeds: tuple[int, ...]) -> list[int]:
    return [xxh3_64_intdigest(key, seed) for seed in seeds]


def _clear(clear: Clear) -> dict[str, Any]:
    return {
        "pattern": clear.pattern,
        "tags": [tag.decode("utf-8", "replace") for tag in clear.tags],
        "another_host": clear.elsewhere,
    }


def _shown(key: bytes) -> str | bytes:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key
