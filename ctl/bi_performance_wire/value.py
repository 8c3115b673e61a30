"""The value format: what lies behind the key in a record, and in `payload` on the socket.

    0x00  one msgpack object
    0x01  u32 little-endian: size of the msgpack object; one zstd frame that holds it

Beside msgpack's own types there are extension types (docs/value-format.md has the table). What
cannot be given back as exactly the same type and value is a TypeError that says where it stands;
no pickle. msgpack writes, because it alone refuses subclasses; msgspec reads, three times faster.
"""

from __future__ import annotations

import datetime
import decimal
import struct
import threading
import types
import uuid
import zoneinfo
from collections.abc import Callable
from itertools import chain
from typing import Any, Final

import msgpack
import msgspec

PLAIN: Final = 0
ZSTD: Final = 1

EXT_TUPLE: Final = 1
EXT_SET: Final = 2
EXT_FROZENSET: Final = 3
EXT_DATETIME: Final = 4
EXT_DATE: Final = 5
EXT_DECIMAL: Final = 6
EXT_UUID: Final = 7
EXT_INTEGER: Final = 8
EXT_TEXT: Final = 9

COMPRESS_FROM: Final = 4096
"""Bytes from which compression is tried. Undoing it costs 1.5 to 3 us a KB, so that a hit of 1 KB
would cost three times as much to save 600 bytes; at 25 KB it saves 20 KB."""
COMPRESS_KEEP: Final = 0.8
"""The compressed form is kept when it is at most this share of the plain one."""
COMPRESS_LEVEL: Final = 1
MAX_RAW: Final = 64 << 20
"""Bytes of msgpack that a value may have, and that a compressed payload may declare."""
MAX_INTEGER_BYTES: Final = 8192
MAX_DEPTH: Final = 128
"""Containers inside each other; both libraries take more, but not inside extensions."""

_local = threading.local()


class ValueFormatError(ValueError):
    """A payload that no encoder of this format wrote."""


def encode(value: object, *, compress: bool = True) -> bytes:
    """The payload of a value.

    Raises TypeError for a type that is not in the table, subclasses included, naming its place
    (`value['a'][3]`), and ValueError, naming the limit, for a value that is too large, nested
    too deep or holds itself.
    """
    kind = type(value)
    try:
        if kind is bytes or kind is str:
            plain = _pack_text(value)
        else:
            _check(value)
            plain = _packb(value)
    except UnicodeEncodeError:
        # Somewhere is text with lone surrogates, which UTF-8 cannot say.
        plain = _packb(_replace_text(value))
    if len(plain) > MAX_RAW:
        raise ValueError(f"the value has {len(plain)} bytes encoded; the limit is {MAX_RAW}")
    if compress and len(plain) >= COMPRESS_FROM:
        squeezed: bytes = _codec("compressor").compress(plain)
        if len(squeezed) + 5 <= len(plain) * COMPRESS_KEEP:
            return b"\x01" + len(plain).to_bytes(4, "little") + squeezed
    return b"\x00" + plain


def decode(payload: bytes) -> object:
    """The value of a payload; raises ValueFormatError for anything that is not one."""
    return decode_from(payload, 0)


def decode_from(buffer: bytes, offset: int) -> object:
    """The value of the payload that fills `buffer` from `offset` on; raises as `decode`."""
    try:
        if buffer[offset] == PLAIN:
            return _decode(buffer[offset + 1 :])
        return _decode(decompress(buffer[offset:]))
    except ValueFormatError:
        raise
    except Exception as error:
        # Not only msgspec's errors: those of an extension (a date that is none) pass through it.
        raise ValueFormatError(f"the payload is not a value: {error!r:.200}") from None


def raw_size(payload: bytes) -> int:
    """Bytes that a payload says it has when decompressed, which `decompress` holds it to."""
    return len(payload) - 1 if payload[0] == PLAIN else int.from_bytes(payload[1:5], "little")


def decompress(payload: bytes) -> bytes:
    """The msgpack object of a payload, without decoding it. Raises ValueFormatError."""
    if payload[:1] == b"\x00":
        return payload[1:]
    if payload[:1] != b"\x01" or len(payload) < 5:
        raise ValueFormatError("the payload is of no known format")
    size = int.from_bytes(payload[1:5], "little")
    if not 0 < size <= MAX_RAW:
        raise ValueFormatError(f"the payload declares {size} bytes; the limit is {MAX_RAW}")
    import zstandard  # late: a control program reads no values

    frame = payload[5:]
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        # A frame may declare its own size, which the library would believe and allocate.
        if declared not in (size, zstandard.CONTENTSIZE_UNKNOWN):
            raise ValueFormatError("the payload's two declared sizes differ")
        plain: bytes = _codec("decompressor").decompress(
            frame, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueFormatError(f"the payload cannot be decompressed: {error}") from None
    if len(plain) != size:
        raise ValueFormatError("the payload is not of its declared size")
    return plain


def _codec(which: str) -> Any:
    """This thread's zstd (de)compressor: the library's objects are not for several threads."""
    try:
        return getattr(_local, which)
    except AttributeError:
        import zstandard

        _local.compressor = zstandard.ZstdCompressor(level=COMPRESS_LEVEL)
        _local.decompressor = zstandard.ZstdDecompressor()
        return getattr(_local, which)


# ── what may be stored

_SCALARS: Final[frozenset[type]] = frozenset(
    {
        types.NoneType,
        bool,
        int,
        float,
        str,
        bytes,
        datetime.datetime,
        datetime.date,
        decimal.Decimal,
        uuid.UUID,
    }
)
_CONTAINERS: Final[frozenset[type]] = frozenset({list, dict, tuple, set, frozenset})
_KNOWN: Final = _SCALARS | _CONTAINERS


def _check(value: object) -> None:
    """Refuse what is not of the table, before msgpack sees it: it takes bytearray for bytes.

    Level by level with each container once, so that one that holds itself, however often, is
    found at the depth limit; the types of a level's items are taken at the speed of C.
    """
    if type(value) in _SCALARS:
        return
    if type(value) not in _CONTAINERS:
        raise TypeError(_refusal("value", value))
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: dict[int, object] = {}
        for container in level:
            items = chain(container, container.values()) if type(container) is dict else container
            kinds = set(map(type, items)) - _SCALARS
            if kinds:
                if not kinds <= _CONTAINERS:
                    raise TypeError(_find_refused(value))
                items = (
                    chain(container, container.values()) if type(container) is dict else container
                )
                inner.update((id(item), item) for item in items if type(item) in _CONTAINERS)
        if not inner:
            return
        level = list(inner.values())
    raise ValueError(f"the value is nested deeper than {MAX_DEPTH} levels, or holds itself")


def _find_refused(value: object) -> str:
    """Where the first thing stands that the format cannot say, and why it cannot."""
    queue: list[tuple[str, Any]] = [("value", value)]
    seen: set[int] = set()
    for path, item in queue:
        kind = type(item)
        if kind not in _KNOWN:
            return _refusal(path, item)
        if kind not in _CONTAINERS or id(item) in seen:
            continue
        seen.add(id(item))
        if kind is dict:
            for key, entry in item.items():
                queue.append((f"key {key!r:.60} of {path}", key))
                queue.append((f"{path}[{key!r:.60}]", entry))
        elif kind in (list, tuple):
            queue.extend((f"{path}[{at}]", entry) for at, entry in enumerate(item))
        else:
            queue.extend((f"an element of {path}", entry) for entry in item)
    return "value: it was changed while it was encoded"


def _refusal(path: str, item: object) -> str:
    kind = type(item)
    base = next((known.__name__ for known in kind.__mro__[1:] if known in _KNOWN), None)
    if base is not None:
        remedy = f" (a subclass of {base}: convert it)"
    elif kind in (bytearray, memoryview):
        remedy = " (convert it with bytes())"
    else:
        remedy = ""
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    return f"{path}: {name} cannot be stored{remedy}"


# ── encoding

_pack_text: Final = msgspec.msgpack.Encoder().encode
"""For bytes and text alone, which it encodes as msgpack does, in a third of the time."""


def _packb(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, strict_types=True, default=_to_ext)
    return packed


def _to_ext(value: Any) -> msgpack.ExtType:
    """Called for what msgpack has no type for; `_check` let nothing else through."""
    kind = type(value)
    if kind is datetime.datetime:
        return msgpack.ExtType(EXT_DATETIME, _datetime(value))
    if kind is tuple:
        return msgpack.ExtType(EXT_TUPLE, _packb(list(value)))
    if kind is decimal.Decimal:
        return msgpack.ExtType(EXT_DECIMAL, str(value).encode())
    if kind is datetime.date:
        return msgpack.ExtType(EXT_DATE, _DATE.pack(value.year, value.month, value.day))
    if kind is uuid.UUID:
        return msgpack.ExtType(EXT_UUID, value.bytes)
    if kind is set:
        return msgpack.ExtType(EXT_SET, _packb(list(value)))
    if kind is frozenset:
        return msgpack.ExtType(EXT_FROZENSET, _packb(list(value)))
    if kind is int:
        return msgpack.ExtType(EXT_INTEGER, _integer(value))
    raise TypeError(_refusal("value", value))


_DATE: Final = struct.Struct(">HBB")
_TIME: Final = struct.Struct(">BHBBBBBI")
"""Flags, year, month, day, hour, minute, second, microsecond."""
_OFFSET: Final = struct.Struct(">q")
"""Microseconds east of UTC."""
_FOLD: Final = 1
_AWARE: Final = 2


def _datetime(value: datetime.datetime) -> bytes:
    zone = value.tzinfo
    try:
        offset = value.utcoffset()
    except Exception as error:
        raise ValueError(f"the time zone {zone!r:.60} does not tell its offset: {error}") from error
    flags = value.fold * _FOLD | (offset is not None) * _AWARE
    data = _TIME.pack(
        flags,
        value.year,
        value.month,
        value.day,
        value.hour,
        value.minute,
        value.second,
        value.microsecond,
    )
    if offset is None:
        return data
    data += _OFFSET.pack(offset // _MICROSECOND)
    if isinstance(zone, zoneinfo.ZoneInfo) and zone.key:
        data += zone.key.encode()
    return data


def _integer(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    if size > MAX_INTEGER_BYTES:
        raise ValueError(f"an integer has {size} bytes; the limit is {MAX_INTEGER_BYTES}")
    return value.to_bytes(size, "big", signed=True)


def _replace_text(value: Any) -> Any:
    """The same value with text that UTF-8 cannot say as extensions."""
    kind = type(value)
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return msgpack.ExtType(EXT_TEXT, value.encode("utf-8", "surrogatepass"))
        return value
    if kind is list:
        return [_replace_text(item) for item in value]
    if kind is dict:
        return {_replace_text(key): _replace_text(item) for key, item in value.items()}
    code = _ARRAYS.get(kind)
    if code is not None:
        return msgpack.ExtType(code, _packb([_replace_text(item) for item in value]))
    return value


_ARRAYS: Final[dict[type, int]] = {tuple: EXT_TUPLE, set: EXT_SET, frozenset: EXT_FROZENSET}


# ── decoding


def _from_ext(code: int, data: memoryview) -> Any:
    if code == EXT_DATETIME:
        return _parse_datetime(data)
    if code == EXT_TUPLE:
        return tuple(_decode_array(data))
    hook = _DECODERS.get(code)
    if hook is None:
        raise ValueFormatError(f"extension type {code} is not of this format")
    return hook(data)


_MICROSECOND: Final = datetime.timedelta(microseconds=1)


def _parse_datetime(data: memoryview) -> datetime.datetime:
    flags, year, month, day, hour, minute, second, microsecond = _TIME.unpack_from(data)
    zone: datetime.tzinfo | None = None
    at = _TIME.size
    if flags & _AWARE:
        zone = _zone(_OFFSET.unpack_from(data, at)[0], bytes(data[at + _OFFSET.size :]))
    elif len(data) != at:
        raise ValueFormatError("a naive datetime has an offset")
    if flags & ~(_FOLD | _AWARE):
        raise ValueFormatError(f"a datetime has unknown flags {flags}")
    return datetime.datetime(
        year, month, day, hour, minute, second, microsecond, zone, fold=flags & _FOLD
    )


def _zone(offset: int, name: bytes) -> datetime.tzinfo:
    if name:
        try:
            return zoneinfo.ZoneInfo(name.decode())
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            # This machine does not know the zone: the same instant, at its offset.
            pass
    elif not offset:
        return datetime.UTC
    return datetime.timezone(offset * _MICROSECOND)


def _parse_decimal(data: memoryview) -> decimal.Decimal:
    # A context of our own: in the caller's, bad text may be a NaN instead of an error.
    return decimal.Decimal(bytes(data).decode("ascii"), _STRICT)


_STRICT: Final = decimal.Context(traps=[decimal.InvalidOperation])


def _parse_integer(data: memoryview) -> int:
    if not 0 < len(data) <= MAX_INTEGER_BYTES:
        raise ValueFormatError(f"an integer has {len(data)} bytes, not 1 to {MAX_INTEGER_BYTES}")
    return int.from_bytes(data, "big", signed=True)


_decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(ext_hook=_from_ext).decode
_decode_array: Callable[[memoryview], list[Any]] = msgspec.msgpack.Decoder(
    list[Any], ext_hook=_from_ext
).decode

_DECODERS: Final[dict[int, Callable[[memoryview], Any]]] = {
    EXT_SET: lambda data: set(_decode_array(data)),
    EXT_FROZENSET: lambda data: frozenset(_decode_array(data)),
    EXT_DATE: lambda data: datetime.date(*_DATE.unpack(data)),
    EXT_DECIMAL: _parse_decimal,
    EXT_UUID: lambda data: uuid.UUID(bytes=bytes(data)),
    EXT_INTEGER: _parse_integer,
    EXT_TEXT: lambda data: str(data, "utf-8", "surrogatepass"),
}
