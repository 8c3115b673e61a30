"""The scripts that run in Redis: value, version and log entry change together or not at all.

They are sent whole (EVAL) instead of by digest: a script that is not known would otherwise fail
behind a SET that has been carried out, and one script serves a batch, so its text costs little.
`allow-oom`: what takes something out of a full Redis must not be refused for its log entry; the
SET of a new value is a command of its own and is refused.

An own write must not come back as an invalidation. Redis keeps it back (NOLOOP) when the last that
touched the key was a plain command of the writing connection, but not when it was a script:
therefore a PEXPIRE stands behind the script, in one transaction.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, Protocol

from bi_performanced.remote.connection import Command
from bi_performanced.remote.envelope import MAGIC, STATE_AT, VERSION_AT, Envelope, Version
from bi_performanced.remote.names import Names
from bi_performanced.remote.predicate import Predicate


class Leased(Protocol):
    """What of a lease Redis has to see."""

    @property
    def key(self) -> bytes: ...
    @property
    def token(self) -> bytes: ...
    @property
    def seen(self) -> Version: ...


LOG_LENGTH: Final = 100_000
"""Entries that the log keeps, about: what a host may miss and still catch up with."""
SLACK: Final = 3_600_000
"""Milliseconds that marks of a clear outlive the last entry they can concern, for what is being
loaded."""

LONGEST_LEASE: Final = 60_000
"""Milliseconds: no lease of any version lasts longer without being extended."""

_ALLOWED = "#!lua flags=allow-oom\n"

_ADD_TO_LOG = """
local function mark(id)
  local dash = string.find(id, '-', 1, true)
  local ms, number = string.sub(id, 1, dash - 1), string.sub(id, dash + 1)
  return struct.pack('>I8I8', tonumber(ms), tonumber(number))
end
local function logged(from)
  local found = {}
  for i = from, #ARGV do
    found[#found + 1] = 'k'
    found[#found + 1] = ARGV[i]
  end
  return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'o', ARGV[2], unpack(found))
end
local function expiry(ms)
  local t = redis.call('TIME')
  local at = t[1] * 1000 + ms
  local old = redis.call('HGET', KEYS[2], 'x')
  if not old or tonumber(old) < at then
    redis.call('HSET', KEYS[2], 'x', string.format('%.0f', at))
  end
end
"""

WRITE = (
    _ALLOWED
    + _ADD_TO_LOG
    + f"""
local values = tonumber(ARGV[4])
local id = logged(5)
for i = 3, 2 + values do
  redis.call('SETRANGE', KEYS[i], {VERSION_AT}, mark(id))
end
redis.call('UNLINK', unpack(KEYS, 3 + values))
if values > 0 then
  expiry(tonumber(ARGV[3]))
end
return id
"""
)

ADD = (
    _ALLOWED
    + _ADD_TO_LOG
    + """
if redis.call('EXISTS', KEYS[3]) == 1 then
  local found = redis.pcall('GETRANGE', KEYS[3], 0, -1)
  if #ARGV == 5 or (type(found) == 'string' and found ~= ARGV[6]) then
    return false
  end
  redis.call('UNLINK', KEYS[3])
end
redis.call('UNLINK', KEYS[4])
expiry(tonumber(ARGV[3]))
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'o', ARGV[2], 'k', ARGV[5])
"""
)

CLEAR = (
    _ALLOWED
    + f"""
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'o', ARGV[2], 'p', ARGV[3])
local field = ARGV[5]
if ARGV[4] == 'all' then
  redis.call('HSET', KEYS[2], field, id)
elseif ARGV[4] == 'pattern' and field == 'h' then
  redis.call('HSET', KEYS[2], 'p', id)
end
local t = redis.call('TIME')
local at = math.max(tonumber(redis.call('HGET', KEYS[2], 'x') or '0'), t[1] * 1000) + {SLACK}
for i = 4, #KEYS do
  if redis.call('TYPE', KEYS[i]).ok ~= 'hash' then
    redis.call('UNLINK', KEYS[i])
  end
  redis.call('HSET', KEYS[i], field, id)
  redis.call('PEXPIREAT', KEYS[i], string.format('%.0f', at))
end
if ARGV[4] == 'pattern' or (ARGV[4] == 'all' and field == 'h') then
  redis.call('HSET', KEYS[3], id, ARGV[3])
end
return id
"""
)

SWEEP = (
    _ALLOWED
    + f"""
local gone = 0
local ms, number = tonumber(ARGV[1]), tonumber(ARGV[2])
for i = 1, #KEYS do
  local head = redis.pcall('GETRANGE', KEYS[i], 0, {VERSION_AT + 15})
  local ours = type(head) == 'string' and string.sub(head, 1, 2) == ARGV[4]
  if ours and #head == {VERSION_AT + 16} then
    local a, b = struct.unpack('>I8I8', head, {VERSION_AT + 1})
    if a < ms or (a == ms and b < number) then
      if ARGV[3] == 's' then
        redis.call('SETRANGE', KEYS[i], {STATE_AT}, '\\1')
      else
        redis.call('UNLINK', KEYS[i])
      end
      gone = gone + 1
    end
  end
end
return gone
"""
)

PROLONG = (
    _ALLOWED
    + f"""
local ms, number = tonumber(ARGV[1]), tonumber(ARGV[2])
for i = 1, #KEYS do
  local head = redis.pcall('GETRANGE', KEYS[i], 0, {VERSION_AT + 15})
  local ours = type(head) == 'string' and string.sub(head, 1, 2) == ARGV[3]
  if ours and #head == {VERSION_AT + 16} and string.byte(head, {STATE_AT + 1}) == 0 then
    local a, b = struct.unpack('>I8I8', head, {VERSION_AT + 1})
    if a < ms or (a == ms and b <= number) then
      local left = redis.call('PTTL', KEYS[i])
      if left >= 0 and left < tonumber(ARGV[3 + i]) then
        redis.call('PEXPIRE', KEYS[i], ARGV[3 + i])
      end
    end
  end
end
"""
)

DROP = (
    _ALLOWED
    + """
local said = {}
for i = 2, #KEYS do
  if redis.call('UNLINK', KEYS[i]) == 1 then
    said[#said + 1] = 'k'
    said[#said + 1] = ARGV[1 + i]
  end
end
if #said > 0 then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'o', ARGV[2], unpack(said))
end
"""
)

_LAST_ID = """
local function last()
  local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  return newest[1] and newest[1][1] or false
end
"""

ACQUIRE = (
    _ALLOWED
    + _LAST_ID
    + """
local left = redis.call('PTTL', KEYS[2])
if left > 0 and left <= tonumber(ARGV[3]) and redis.call('TYPE', KEYS[2]).ok == 'string' then
  return {0, left, last()}
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
local there = redis.call('EXISTS', KEYS[4])
return {redis.call('INCR', KEYS[3]), tonumber(ARGV[2]), last(), there}
"""
)

EXTEND = (
    _ALLOWED
    + """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
"""
)

RELEASE = (
    _ALLOWED
    + """
if redis.call('GET', KEYS[2]) ~= ARGV[3] then
  return 0
end
redis.call('UNLINK', KEYS[2])
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'o', ARGV[2], 'l', ARGV[4])
return 1
"""
)

# Without the flag: a new value in a full Redis is refused, before anything was changed.
PUBLISH = (
    _ADD_TO_LOG
    + f"""
local function later(id, i)
  if not id then
    return false
  end
  local dash = string.find(id, '-', 1, true)
  local ms, number = tonumber(string.sub(id, 1, dash - 1)), tonumber(string.sub(id, dash + 1))
  local at, nth = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  return ms > at or (ms == at and number > nth)
end
if redis.call('GET', KEYS[4]) ~= ARGV[4] or later(redis.call('HGET', KEYS[2], 'h'), 6) then
  return false
end
for i = 5, #KEYS do
  local mark = redis.pcall('HGET', KEYS[i], 'h')
  if type(mark) == 'string' and later(mark, 6) then
    return false
  end
end
local pattern = redis.call('HGET', KEYS[2], 'p')
if later(pattern, 8) then
  return {{pattern}}
end
redis.call('SET', KEYS[3], ARGV[5], 'PX', tonumber(ARGV[3]) + 1000)
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'o', ARGV[2], 'k', ARGV[10])
redis.call('SETRANGE', KEYS[3], {VERSION_AT}, mark(id))
redis.call('UNLINK', KEYS[4])
expiry(tonumber(ARGV[3]))
return id
"""
)

BEGIN = (
    _ALLOWED
    + """
redis.call('HSETNX', KEYS[1], 'e', ARGV[1])
return redis.call('HGET', KEYS[1], 'e')
"""
)


def write(
    names: Names,
    origin: bytes,
    values: Sequence[tuple[bytes, bytes, int]],
    deleted: Sequence[bytes],
) -> list[Command]:
    """A transaction that stores entries (key, bytes, milliseconds) and removes keys.

    The last reply is that of EXEC.
    """
    stored = [names.value(key) for key, _, _ in values]
    gone = [names.value(key) for key in deleted]
    keys = [key for key, _, _ in values] + list(deleted)
    locks = [names.lock(key) for key in keys]
    longest = max((ms for _, _, ms in values), default=0)
    commands: list[Command] = [("MULTI",)]
    commands += [
        ("SET", name, data, "PX", max(1, ms))
        for name, (_, data, ms) in zip(stored, values, strict=True)
    ]
    if gone:
        commands.append(("UNLINK", *gone))
    every = (names.log, names.state, *stored, *locks)
    said: Command = (LOG_LENGTH, origin, longest, len(stored), *keys)
    commands.append(("EVAL", WRITE, len(every), *every, *said))
    commands += [
        ("PEXPIRE", name, max(1, ms)) for name, (_, _, ms) in zip(stored, values, strict=True)
    ]
    commands.append(("EXEC",))
    return commands


def add(
    names: Names, origin: bytes, key: bytes, data: bytes, ms: int, seen: bytes | None
) -> list[Command]:
    """A transaction that stores an entry if there is none, or only the dead one that was seen.

    The first item of EXEC's reply is the id in the log, or nil when there was an entry. The
    version is not in the entry yet: see `put_version`.
    """
    name = names.value(key)
    asked: Command = (
        *("EVAL", ADD, 4, names.log, names.state, name, names.lock(key)),
        *(LOG_LENGTH, origin, ms, 1, key),
    )
    return [
        ("MULTI",),
        asked if seen is None else (*asked, seen),
        ("SET", name, data, "NX", "PX", max(1, ms)),
        ("EXEC",),
    ]


def put_version(names: Names, key: bytes, version: Version) -> Command:
    """Write the version into an entry that `add` has stored. If another has come there since, it
    seems older than it is, which makes a miss at worst."""
    return ("SETRANGE", names.value(key), VERSION_AT, struct.pack(">QQ", *version))


def clear(names: Names, origin: bytes, predicate: Predicate) -> list[Command]:
    """One command, whose reply is the id in the log."""
    kind = "all" if predicate.everything else "pattern" if predicate.pattern is not None else "tags"
    keys = (names.log, names.state, names.sweeps, *map(names.tag, predicate.tags))
    field = "s" if predicate.soft else "h"
    return [
        ("EVAL", CLEAR, len(keys), *keys, LOG_LENGTH, origin, predicate.pack(), kind, field),
    ]


def sweep(names: Sequence[bytes], before: Version, *, soft: bool) -> Command:
    """Remove (or make stale) those of these entries that are older; the reply is how many."""
    how = "s" if soft else "h"
    return ("EVAL", SWEEP, len(names), *names, before.ms, before.number, how, MAGIC)


def prolong(values: Sequence[tuple[bytes, int]], known: Version) -> Command:
    """Have entries (names, milliseconds) live longer that are fresh and no newer than `known`."""
    names = [name for name, _ in values]
    times = [max(1, ms) for _, ms in values]
    return ("EVAL", PROLONG, len(names), *names, *known, MAGIC, *times)


def drop(names: Names, origin: bytes, keys: Sequence[bytes]) -> Command:
    """Remove the entries of keys, and say so in the log of those that were there."""
    every = (names.log, *map(names.value, keys))
    return ("EVAL", DROP, len(every), *every, LOG_LENGTH, origin, *keys)


def begin(names: Names, epoch: bytes) -> Command:
    """Give this Redis an epoch if it has none; the reply is the one it has. It is a write."""
    return ("EVAL", BEGIN, 1, names.state, epoch)


def acquire(names: Names, key: bytes, token: bytes, ms: int) -> Command:
    """Take a lease. The reply: fencing number or 0, milliseconds left, the log's last id, and of a
    lease that was taken whether there is an entry.

    What lies under its name and is no lease (it has no time, too much of it, or is no string) is
    overwritten.
    """
    keys = (names.log, names.lock(key), names.fence, names.value(key))
    return ("EVAL", ACQUIRE, 4, *keys, token, max(1, ms), max(LONGEST_LEASE, ms))


def extend(names: Names, key: bytes, token: bytes, ms: int) -> Command:
    """The reply is 0 when the lease has ended."""
    return ("EVAL", EXTEND, 1, names.lock(key), token, max(1, ms))


def release(names: Names, origin: bytes, key: bytes, token: bytes) -> Command:
    """The reply is 0 when the lease had ended."""
    keys = (names.log, names.lock(key))
    return ("EVAL", RELEASE, 2, *keys, LOG_LENGTH, origin, token, key)


def publish(
    names: Names,
    origin: bytes,
    lease: Leased,
    data: bytes,
    envelope: Envelope,
    known: Version,
) -> list[Command]:
    """A transaction that stores an entry if the lease is still good.

    `known`: up to where the log's pattern clears are known not to concern the key; when there is
    one behind that, nothing is done, and the first item is a list with its id.

    The first item of EXEC's reply is the id in the log, or nil when nothing was stored. The script
    lets the entry live a second too long, so that the command behind it has something to change:
    it is the one that Redis takes for the writer. Nothing stored, it shortens another's time at
    most.
    """
    key, name = lease.key, names.value(lease.key)
    ms = max(1, envelope.hard)
    tags = map(names.tag, envelope.tags)
    keys = (names.log, names.state, name, names.lock(key), *tags)
    said: Command = (LOG_LENGTH, origin, ms, lease.token, data, *lease.seen, *known, key)
    return [
        ("MULTI",),
        ("EVAL", PUBLISH, len(keys), *keys, *said),
        ("PEXPIRE", name, ms, "LT"),
        ("EXEC",),
    ]
