"""What is remembered of entries that left: whether anybody had read them, and when they came.

Evidence for recommendations, in memory of a fixed size. An entry that expired and is stored anew
tells by its age how long it should have lived; one that left without having been read should not
have been stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bi_performanced.cache.past import Past

MOST_EXPIRED: Final = 4096
"""Keys that are remembered after they expired, the latest."""
KEPT: Final = 512
"""Entries that left unread whose keys are remembered, the latest of each span of time."""
AGES: Final = 40
"""Ages are counted by their power of two, from a tenth of a second up."""
LONGEST_PREFIX: Final = 64
_ENDS: Final = (b":", b"|", b"/")


@dataclass
class Tally:
    """Counts of some span of time."""

    left: int = 0
    """Entries that left by eviction or expiry, and of which is known whether they were read."""
    unread: int = 0
    keys: list[tuple[bytes, int, bool]] = field(default_factory=list)
    """The latest of those that left unread: key, bytes, and whether it was evicted."""
    refill_ages: list[int] = field(default_factory=lambda: [0] * AGES)
    """Entries stored again after they had expired, by floor(log2(tenths of a second)) since they
    were stored before."""

    def prefixes(self) -> dict[bytes, tuple[int, int]]:
        """For the beginnings of those keys: how many there are, and their bytes."""
        found: dict[bytes, tuple[int, int]] = {}
        for key, size, _ in self.keys:
            prefix = prefix_of(key)
            count, total = found.get(prefix, (0, 0))
            found[prefix] = (count + 1, total + size)
        return found

    def age_of_refills(self, share: float) -> float | None:
        """Seconds within which that share of them was wanted again, at most twice too large."""
        wanted = share * sum(self.refill_ages)
        seen = 0
        for bucket, count in enumerate(self.refill_ages):
            seen += count
            if count and seen >= wanted:
                return (2 << bucket) / 10
        return None


class Departures:
    """Tallies of the span of time that goes on and of the one before it."""

    def __init__(self) -> None:
        self.past = Past()
        """What is remembered of each key, for who asks about one."""
        self.expired: dict[int, int] = {}
        """Digest of a key that expired, to its creation in tenths of a second."""
        self.refilled = 0
        """Entries that were stored again after they had expired, since the start."""
        self.restart()

    def restart(self) -> None:
        """Forget both spans."""
        self._now, self._before = Tally(), Tally()

    def rotate(self) -> None:
        """Begin another span, and forget the one before the last."""
        self._now, self._before = Tally(), self._now

    def tally(self) -> Tally:
        """Both spans together."""
        now, before = self._now, self._before
        return Tally(
            now.left + before.left,
            now.unread + before.unread,
            before.keys + now.keys,
            [one + other for one, other in zip(now.refill_ages, before.refill_ages, strict=True)],
        )

    @property
    def now(self) -> Tally:
        """The tally of the span that goes on."""
        return self._now

    def leave(self, key: bytes, size: int, unread: bool, evicted: bool = True) -> None:
        """An entry of `size` bytes leaves by eviction or expiry."""
        now = self._now
        now.left += 1
        if unread:
            # Only remembered here, for this is on the way of every put: looked at when asked.
            keys = now.keys
            if len(keys) < KEPT:
                keys.append((key, size, evicted))
            else:
                keys[now.unread % KEPT] = (key, size, evicted)
            now.unread += 1

    def expire(self, digest: int, created: int) -> None:
        """An entry's time is over; `created` in tenths of a second on the boot clock."""
        expired = self.expired
        if len(expired) >= MOST_EXPIRED:
            del expired[next(iter(expired))]
        expired[digest] = created

    def arrive(self, digest: int, now: int) -> None:
        """A key is stored that had no entry; `now` in tenths of a second."""
        created = self.expired.pop(digest, None)
        if created is not None:
            self.refill(now - created)

    def refill(self, age: int) -> None:
        """A key is stored again, so many tenths of a second after one that has expired was."""
        self.refilled += 1
        self._now.refill_ages[min(AGES - 1, max(1, age).bit_length() - 1)] += 1


def prefix_of(key: bytes) -> bytes:
    """The beginning that a key shares with its like: its host, or what stands before a sign."""
    scheme = key.find(b"://")
    start, ends = (scheme + 3, (b"/",)) if scheme > 0 else (0, _ENDS)
    found = [at for sign in ends if (at := key.find(sign, start, LONGEST_PREFIX)) > 0]
    return key[: min(found) + 1] if found else key[:LONGEST_PREFIX]
