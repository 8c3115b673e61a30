"""What Redis has of one key, for people who ask: read as it lies there, and counted nowhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from bi_performanced.remote.breaker import RemoteAway
from bi_performanced.remote.envelope import Codec, Envelope, Unreadable

if TYPE_CHECKING:
    from bi_performanced.remote.shard import Shard

LARGEST: Final = 64 << 20
"""Bytes of an entry that are read to see whether it can be."""
UNREADABLE: Final = {
    "garbage": "it is no entry of ours, or was cut or changed",
    "unknown_format": "another version wrote it, in a format that is not known here",
    "signature": "its signature is not by our cache.secret, or it was put back after its time",
}


async def look(shard: Shard, codec: Codec, key: bytes) -> dict[str, Any]:
    """What stands in Redis under a key, and what waits here to be written there. Raises nothing
    because of Redis: where it could not be asked, `present` is None with the `reason`."""
    found: dict[str, Any] = {
        "present": None,
        "reason": None,
        "waiting": _waiting(shard, key),
        "leased_for_seconds": None,
    }
    try:
        shard.breaker.check()
        name = shard.names.value(key)
        size, pttl, lock = await shard.reads.call(
            [("STRLEN", name), ("PTTL", name), ("PTTL", shard.names.lock(key))]
        )
        if isinstance(lock, int) and lock > 0:
            found["leased_for_seconds"] = lock / 1000
        if isinstance(size, Exception) or isinstance(pttl, Exception):
            return {**found, **_refused(shard, size if isinstance(size, Exception) else pttl)}
        if not size or pttl == -2:
            return {**found, "present": False}
        found |= {
            "present": True,
            "stored_bytes": size,
            "kept_seconds": None if pttl < 0 else pttl / 1000,
        }
        (data,) = await shard.reads.call([("GETRANGE", name, 0, LARGEST)])
        if isinstance(data, Exception):
            return {**found, **_refused(shard, data)}
        envelope = codec.unpack(key, data, pttl, time.time_ns() // 1_000_000)
        await shard.reading.learn_tags([envelope])
        return {**found, **_read(shard, key, envelope)}
    except Unreadable as error:
        return {**found, "state": "unreadable", "reason": UNREADABLE[error.kind]}
    except RemoteAway as error:
        return {**found, "reason": str(error) or "Redis does not answer"}


def _refused(shard: Shard, error: Exception) -> dict[str, Any]:
    if str(error).startswith("WRONGTYPE"):
        return {
            "present": True,
            "state": "unreadable",
            "reason": "it is no string: another program keeps something else under this name",
        }
    return {"present": None, "reason": shard.explain(error)}


def _read(shard: Shard, key: bytes, envelope: Envelope) -> dict[str, Any]:
    judged = shard.reading.weigh(key, envelope)
    if judged is None:
        state = "over" if envelope.remaining <= 0 else "cleared"
    else:
        state = "fresh" if judged.fresh else "stale"
    return {
        "state": state,
        "version": envelope.version.text().decode(),
        "ttl_seconds": judged.fresh / 1000 if judged else 0.0,
        "grace_seconds": (envelope.hard - envelope.soft) / 1000,
        "value_bytes": len(envelope.payload),
        "tags": [tag.decode("utf-8", "replace") for tag in envelope.tags],
    }


def _waiting(shard: Shard, key: bytes) -> str | None:
    """What of the key is not in Redis yet."""
    if key in shard.outbox:
        return "outbox"
    write = shard.queue.find(key)
    if write is None:
        return None
    return "deletion" if write.envelope is None else "value"
