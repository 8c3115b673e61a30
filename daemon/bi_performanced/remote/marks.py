"""The clears that a shard knows of: whether an entry from Redis is older than one that concerns it.

Ids of the log and versions of entries are of one sequence, so no clock is compared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from bi_performanced.remote.envelope import NEVER, Envelope, Version
from bi_performanced.remote.predicate import Matcher, Predicate

MAX_PATTERNS: Final = 256
MAX_TAGS: Final = 20_000


class Cleared(NamedTuple):
    """The ids of the last hard and the last soft clear."""

    hard: Version = NEVER
    soft: Version = NEVER

    def later(self, other: Cleared) -> Cleared:
        return Cleared(max(self.hard, other.hard), max(self.soft, other.soft))


class Marks:
    """What was cleared, by everything, tag and pattern."""

    def __init__(self, matcher: Callable[[str], Matcher]) -> None:
        self._matcher = matcher
        self.everything = Cleared()
        self._tags: OrderedDict[bytes, Cleared] = OrderedDict()
        self._asked: set[bytes] = set()
        """The tags of which Redis has said what it knew; of others only the log's part is known."""
        self._patterns: OrderedDict[Version, tuple[Predicate, Matcher]] = OrderedDict()

    def reset(self) -> None:
        """Forget all, because what is remembered may be of another Redis."""
        self.everything = Cleared()
        self._tags.clear()
        self._asked.clear()
        self._patterns.clear()

    def note(self, id_: Version, predicate: Predicate) -> None:
        """A clear in the log."""
        mark = Cleared(soft=id_) if predicate.soft else Cleared(hard=id_)
        if predicate.pattern is not None:
            try:
                matches = self._matcher(predicate.pattern)
            except Exception:
                # A pattern that this version does not take: everything could match.
                self.everything = self.everything.later(mark)
                return
            self._patterns[id_] = (predicate, matches)
            while len(self._patterns) > MAX_PATTERNS:
                # Too many at once: what is older than the oldest counts as cleared.
                oldest, _ = self._patterns.popitem(last=False)
                self.everything = self.everything.later(Cleared(hard=oldest))
        elif predicate.tags:
            for tag in predicate.tags:
                self._note_tag(tag, mark)
        else:
            self.everything = self.everything.later(mark)

    def swept(self, id_: Version) -> None:
        """The entries of a pattern clear are all removed."""
        self._patterns.pop(id_, None)

    def learn(self, tag: bytes, cleared: Cleared) -> None:
        """What Redis says of a tag; it is kept true by the log from then on."""
        self._note_tag(tag, cleared)
        self._asked.add(tag)

    def _note_tag(self, tag: bytes, cleared: Cleared) -> None:
        self._tags[tag] = self._tags.get(tag, cleared).later(cleared)
        self._tags.move_to_end(tag)
        while len(self._tags) > MAX_TAGS:
            forgotten, _ = self._tags.popitem(last=False)
            self._asked.discard(forgotten)

    def unknown(self, tags: Iterable[bytes]) -> list[bytes]:
        """Those of these tags of which Redis has to be asked."""
        return [tag for tag in tags if tag not in self._asked]

    def judge(self, key: bytes, envelope: Envelope) -> Cleared:
        """The clears that concern an entry, whatever its age."""
        cleared = self.everything
        for tag in envelope.tags:
            cleared = cleared.later(self._tags.get(tag, Cleared()))
        for id_, (predicate, matches) in self._patterns.items():
            if id_ > envelope.version and matches(key):
                cleared = cleared.later(Cleared(soft=id_) if predicate.soft else Cleared(hard=id_))
        return cleared
