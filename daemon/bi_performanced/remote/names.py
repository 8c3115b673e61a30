"""The names of keys in Redis: entries under the prefix, our own keys beside it."""

from __future__ import annotations

from typing import Final

CLUSTER_TAGS: Final = (b"{3}", b"{f}", b"{2}", b"{g}", b"{1}", b"{d}", b"{0}", b"{e}")
"""Hash tags of the shards of a cluster, spread over its 16,384 slots; never changed, for the keys
of every host depend on them."""


def slot(tag: bytes) -> int:
    """The slot of a hash tag with its braces: CRC-16 (XMODEM), as the cluster specification has
    it."""
    crc = 0
    for byte in tag[1:-1]:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
    return crc % 16384


class Names:
    """The names of one shard. `tag` is empty where Redis is no cluster."""

    def __init__(self, prefix: bytes, tag: bytes = b"") -> None:
        self.prefix = prefix + tag
        # Ours must not begin with the prefix, or tracking would report every write twice.
        last = b"~" if prefix.endswith(b"!") else b"!"
        self._own = prefix[:-1] + last + tag
        self.log = self._own + b"log"
        """The stream of what was changed."""
        self.state = self._own + b"state"
        """A hash: `e` this Redis's epoch, `h` and `s` the ids of the last hard and soft clear of
        everything, `p` that of the last hard one by pattern, `x` when the last entry expires, in
        Unix milliseconds."""
        self.sweeps = self._own + b"sweeps"
        """A hash of the clears whose entries are still being removed: id → predicate."""
        self.fence = self._own + b"fence"
        """The counter of fencing numbers."""

    def kinds(self) -> dict[bytes, bytes]:
        """What each of our own names is in Redis."""
        return {
            self.log: b"stream",
            self.state: b"hash",
            self.sweeps: b"hash",
            self.fence: b"string",
        }

    def value(self, key: bytes) -> bytes:
        return self.prefix + key

    def key(self, name: bytes) -> bytes | None:
        """The key of an entry's name, or None for a name that is not of this shard."""
        return name[len(self.prefix) :] if name.startswith(self.prefix) else None

    def lock(self, key: bytes) -> bytes:
        """Who may publish this key."""
        return self._own + b"l:" + key

    def tag(self, tag: bytes) -> bytes:
        """A hash: `h` and `s`, the ids of the last hard and soft clear of the tag."""
        return self._own + b"t:" + tag

    def sweep(self, id_: bytes) -> bytes:
        """Who is removing the entries of a clear."""
        return self._own + b"w:" + id_
