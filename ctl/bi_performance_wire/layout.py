"""The shared store's layout: what the daemon writes and every attached process reads in place.

One file, all integers little-endian::

    control page | index: 8-byte slots | frequency bytes | tag words | small ring | main ring

*Control page* (4 KiB): 64-bit words, numbered below. `ALIVE + epoch % ALIVE_WORDS` holds the
deadline on the boot clock until which readers of that epoch may trust what they read; a daemon
that starts zeroes the words of every other epoch, so that readers of an older one attach again.

*Index slot* (64 bits, read and written whole)::

    63      58 57        48 47   46                                  0
    | distance | fingerprint | ring | logical position of the record |

`distance` is 1 + how far the slot lies from the key's home slot (Robin Hood hashing: Celis,
Larson, Munro 1985), so 0 means empty and a probe stops at the first slot nearer to its home than
the key would be. `ring` is 0 for the small ring, 1 for the main ring. A *logical position* only
grows; the byte lies at `base + position % size` of its ring, and a record never straddles the end.

*Record*::

    0  u32  checksum: low half of xxh3_64 over bytes 8… , seeded with ring bit and logical position
    4  u24  size of the whole record; u8 state (LIVE, DEAD or PAD)
    8  u16  key length (14 bits) and flags (2 bits)
    10 u48  sequence, growing with every stored version
    16 u64  expiry in ns on the boot clock
    24 u32  creation in tenths of a second on the boot clock
    28      key; with FLAG_EXTRA what `bi_performance_wire.extra` says; then payload

The seed binds a checksum to the place: bytes that an earlier or later lap of the ring left at the
same address do not verify. The state byte is outside the checksum: a delete stores it alone.
"""

from __future__ import annotations

import struct
import sys
from typing import Final

from bi_performance_wire.extra import TAG_WORDS

MAGIC: Final = int.from_bytes(b"BIPERF\x00\x02", "little")
"""Six letters, and the format's version in the last two bytes."""

BOOT_CLOCK: Final = 7
"""CLOCK_BOOTTIME of clock_gettime(2): goes on during suspend, starts anew at boot."""

PAGE: Final = 4096

# Words of the control page.
W_MAGIC: Final = 0
W_EPOCH: Final = 1
W_BOOT_ID: Final = 2  # and 3
W_FILE_BYTES: Final = 4
W_SEED: Final = 5
W_SLOTS: Final = 6
W_INDEX_AT: Final = 7
W_FREQUENCY_AT: Final = 8
W_SMALL_AT: Final = 9
W_SMALL_BYTES: Final = 10
W_MAIN_AT: Final = 11
W_MAIN_BYTES: Final = 12
W_MAX_RECORD: Final = 13
W_MAX_ENTRIES: Final = 14
W_MAX_BYTES: Final = 15
W_SMALL_TAIL: Final = 16
W_SMALL_HEAD: Final = 17
W_MAIN_TAIL: Final = 18
W_MAIN_HEAD: Final = 19
W_CLEARED: Final = 20
"""Records of this sequence or an earlier one were cleared."""
W_COHERENT_UNTIL: Final = 21
"""The boot clock in ns until which entries that other hosts write too are known to be theirs."""
W_EXPIRED: Final = 22
"""Entries created before this tenth of a second on the boot clock are stale, whatever they say."""
W_EXPIRED_AT: Final = 26
"""When W_EXPIRED was written, in ns on the boot clock: since then they are stale."""
W_PARTITION: Final = 23
"""Nanoseconds after W_COHERENT_UNTIL for which shared entries are served all the same."""
W_TAGS_AT: Final = 24
W_OUTAGE: Final = 27
"""Shared entries of a higher sequence were stored while the second level was away: they are not
gated. NEVER while it is not."""
W_REMOTE: Final = 25
"""1 while a miss here may be a hit in a second level that the daemon can ask."""
W_TICK: Final = 40
"""The tick that a touch is marked with: the upper six bits of a byte."""
W_SAMPLE: Final = 41
"""The first touch in a tick is also logged where the key's hash and this have no bit in common."""
W_POLICY: Final = 42
"""The rule by which entries leave, for the next daemon."""
W_EVIDENCE: Final = 43
"""And behind it EVIDENCE_WORDS words, doubles as they lie in memory: what speaks for each rule."""
EVIDENCE_WORDS: Final = 5
W_ALIVE: Final = 64
ALIVE_WORDS: Final = 64

# Index slots.
DISTANCE_ONE: Final = 1 << 58
TAG_SHIFT: Final = 48
TAG_DISTANCE_ONE: Final = 1 << 10
TAG_DISTANCE: Final = 0xFC00
TAG_MAX: Final = 0xFFFF
FINGERPRINT_SHIFT: Final = 54
MAX_DISTANCE: Final = 63
GUARD_SLOTS: Final = 64
"""Slots behind the last home slot, so that no probe wraps around."""
MAIN_BIT: Final = 1 << 47
POSITION: Final = MAIN_BIT - 1
PLACE: Final = (1 << 48) - 1
"""Ring bit and logical position: what seeds the checksum."""

# Records.
HEADER: Final = struct.Struct("<II")
"""Checksum; size and state."""
BODY: Final = struct.Struct("<QQI")
"""Key length, flags and sequence in one word; expiry; creation."""
READ_BODY: Final = struct.Struct("<H6xQI")
"""Key length and flags; expiry; creation (the sequence is of no use to a reader)."""
HEADER_BYTES: Final = HEADER.size
RECORD_OVERHEAD: Final = HEADER.size + BODY.size
KEY_IN_BODY: Final = BODY.size
KEY_AT: Final = HEADER.size + BODY.size
EXPIRY: Final = struct.Struct("<Q")
EXPIRY_AT: Final = 16
WORD: Final = struct.Struct("<H")
"""The key's length and the flags: the first two bytes of a body."""

STATE_AT: Final = 7
LIVE: Final = 0xA5
DEAD: Final = 0x5A
PAD: Final = 0xC3
LIVE_HIGH: Final = LIVE << 24
SIZE: Final = (1 << 24) - 1
KEY_LENGTH: Final = (1 << 14) - 1
FLAG_SHARED: Final = 1 << 14
"""The entry is also in a store that other hosts write: it is gated by `W_COHERENT_UNTIL`."""
FLAG_EXTRA: Final = 1 << 15
"""Something stands between key and payload: see `bi_performance_wire.extra`."""
FLAGS: Final = FLAG_SHARED | FLAG_EXTRA
MOST_SEQUENCE: Final = 1 << 47
"""No store comes to this: at a million a second it would take four years."""
CHECKSUM: Final = (1 << 32) - 1
NEVER: Final = (1 << 63) - 1
CREATED_UNIT_NS: Final = 100_000_000

# A client's own page: 64-bit words that the client alone writes and the daemon only adds up.
PAGE_MAGIC: Final = int.from_bytes(b"BIPAGE\x00\x01", "little")
P_MAGIC: Final = 0
P_PID: Final = 1
P_HITS: Final = 2
P_MISSES: Final = 3
P_EXPIRED: Final = 4
P_TORN: Final = 5
P_HIT_BYTES: Final = 6
P_OBSERVED: Final = 7
"""Hits that `mode = observe` would have served."""
P_UNAVAILABLE: Final = 8
"""Calls answered as a miss because the daemon was away."""
P_STALE: Final = 9
"""Hits served beyond their time: in their grace, or while other hosts could not be heard."""
P_SAMPLES: Final = 15
P_LATENCY: Final = 16
"""LATENCY_BUCKETS words: sampled hits by floor(log2(duration in ns))."""
LATENCY_BUCKETS: Final = 32
SAMPLE_EVERY: Final = 256
"""Of so many hits one is sampled, on average: the gaps are drawn, for many loops have a period."""
# What a process tells of itself, for a daemon that may not look: each figure plus one, so that 0 is
# unknown. The daemon believes none of it where it can look itself.
P_OWN_AT: Final = 48
"""The boot clock in ns when the words up to P_OWN_SWAP were written; 0 before."""
P_OWN_CPU_NS: Final = 49
"""Processor time since the process's start."""
P_OWN_RSS: Final = 50
P_OWN_THREADS: Final = 51
P_OWN_FILES: Final = 52
"""Open descriptors."""
P_OWN_READ: Final = 53
P_OWN_WRITTEN: Final = 54
"""Bytes that the process made the disks read and write since its start."""
P_OWN_SWAP: Final = 55
P_OWN_PSS_AT: Final = 56
"""The boot clock in ns when P_OWN_PSS was written; 0 before."""
P_OWN_PSS: Final = 57

P_HOT_HEAD: Final = 58
"""How many sampled hits were ever noted."""
P_HOT: Final = 59
HOT_WORDS: Final = 32
"""HOT_WORDS words: hashes of the keys of sampled hits, the latest ones."""
P_MISSED_HEAD: Final = 91
"""How many misses were ever noted."""
P_MISSED: Final = 92
MISSED_SLOTS: Final = 2
MISSED_WORDS: Final = 17
"""MISSED_SLOTS times so many words, the latest noted misses: the hash of what follows, that of the
key, its length, and the key's first MISSED_BYTES bytes."""
MISSED_BYTES: Final = 8 * (MISSED_WORDS - 3)
MISSED_EVERY_NS: Final = 50_000_000
"""Of so many misses one is noted that this lies between two notes, about: of few, every one."""
MOST_MISSED: Final = 1 << 16
"""Misses between two notes at the most, on average."""

P_LOG_HEAD: Final = 127
"""How many hashes were ever logged."""
P_LOG: Final = 128
"""LOG_WORDS words: hashes of sampled keys that were read, the latest ones."""
LOG_WORDS: Final = PAGE // 8 - P_LOG

# A touch: a byte that tells of an index slot when its entry was used last, and how often.
TOUCH_COUNT: Final = 3
"""The count's bits, which saturate. It rises once a tick at the most."""
TICK_ONE: Final = 4
TICK_BITS: Final = 0xFC
TICKS: Final = 63
"""Ticks are numbered from 1 on, round and round; 0 is an entry that was never used."""


def next_tick(tick: int) -> int:
    """The tick after one; both as they stand in a touch byte."""
    return tick % (TICKS * TICK_ONE) + TICK_ONE


class LayoutError(ValueError):
    """A store of another format, another byte order, or with geometry that cannot be."""


def require_little_endian() -> None:
    """The words are shared as they lie in memory; a big-endian host would misread them."""
    if sys.byteorder != "little":
        raise LayoutError("the shared store needs a little-endian host")


def _other_format(magic: int) -> str:
    found, ours = magic.to_bytes(8, "little"), MAGIC.to_bytes(8, "little")
    if found[:6] != ours[:6]:
        return "not a store of this format"
    older, this = (int.from_bytes(each[6:], "big") for each in (found, ours))
    return f"a store of format {older}; this version has format {this}"


def check_geometry(words: memoryview[int], file_bytes: int) -> None:
    """Refuse a control page whose parts would lie outside the file or overlap.

    `words` is the control page as 64-bit words. Raises LayoutError.
    """
    if words[W_MAGIC] != MAGIC:
        raise LayoutError(_other_format(words[W_MAGIC]))
    parts = (
        (words[W_INDEX_AT], 8 * (words[W_SLOTS] + GUARD_SLOTS)),
        (words[W_FREQUENCY_AT], words[W_SLOTS] + GUARD_SLOTS),
        (words[W_TAGS_AT], 8 * TAG_WORDS),
        (words[W_SMALL_AT], words[W_SMALL_BYTES]),
        (words[W_MAIN_AT], words[W_MAIN_BYTES]),
    )
    end = PAGE
    if not words[W_SLOTS]:
        raise LayoutError("the store has no index")
    for at, size in parts:
        if at < end or size <= 0 or at % 8:
            raise LayoutError("the store's parts overlap")
        end = at + size
    if end > file_bytes or words[W_FILE_BYTES] != file_bytes:
        raise LayoutError("the store's file is shorter than its control page says")
    if not RECORD_OVERHEAD < words[W_MAX_RECORD] <= min(SIZE, words[W_MAIN_BYTES] // 2):
        raise LayoutError("the store's largest record is impossible")
    for tail, head, size in (
        (words[W_SMALL_TAIL], words[W_SMALL_HEAD], words[W_SMALL_BYTES]),
        (words[W_MAIN_TAIL], words[W_MAIN_HEAD], words[W_MAIN_BYTES]),
    ):
        if not tail <= head <= tail + size or head > POSITION:
            raise LayoutError("the store's ring pointers are impossible")
