"""The value format: what lies behind the key in a record, and in `payload` on the socket.

    0x00  one msgpack object
    0x01  u32 little-endian: size of the msgpack object; a zstd frame that holds it

Beside msgpack's own types there are extension types (docs/value-format.md has the table). No
pickle: what cannot be said exactly is a TypeError that names where it stands in the value.
"""

from __future__ import annotations

import datetime
import threading
import uuid
import zoneinfo
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
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

COMPRESS_FROM: Final = 512
"""Bytes from which compression is tried; below, zstd's header eats what it saves."""
COMPRESS_KEEP: Final = 0.9
"""The compressed form is kept when it is at most this share of the plain one."""
MAX_RAW: Final = 64 << 20
"""Bytes of msgpack that a compressed payload may declare."""
MAX_INTEGER_BYTES: Final = 8192
MAX_DEPTH: Final = 500

_local = threading.local()


class ValueFormatError(ValueError):
    """A payload that no encoder of this format wrote."""


def encode(value: object, *, compress: bool = True) -> bytes:
    """The payload of a value.

    Raises TypeError for a type that is not in the table, subclasses included, naming its place
    (`value['a'][3]`), and ValueError for nesting deeper than MAX_DEPTH or a cycle.
    """
    plain = _pack(value)
    if compress and len(plain) >= COMPRESS_FROM:
        if len(plain) > MAX_RAW:
            raise ValueError(f"the value has {len(plain)} bytes; the limit is {MAX_RAW}")
        squeezed: bytes = _codec("compressor").compress(plain)
        if len(squeezed) + 5 <= len(plain) * COMPRESS_KEEP:
            return b"\x01" + len(plain).to_bytes(4, "little") + squeezed
    return b"\x00" + plain


def decode(payload: bytes) -> object:
    """The value of a payload; raises ValueFormatError for anything that is not one."""
    return decode_from(payload, 0)


def decode_from(buffer: bytes, offset: int) -> object:
    """The value of the payload that fills `buffer` from `offset` on."""
    try:
        if buffer[offset] == PLAIN:
            return _decode(buffer[offset + 1 :])
    except Exception:
        # Not only msgspec's errors: an extension's own (a date that is none) pass through it.
        return _second_opinion(buffer[offset + 1 :])
    return decode_from(b"\x00" + decompress(buffer[offset:]), 0)


def decompress(payload: bytes) -> bytes:
    """The msgpack object of a payload, without decoding it. Raises ValueFormatError."""
    if payload[:1] == b"\x00":
        return payload[1:]
    if payload[:1] != b"\x01" or len(payload) < 5:
        raise ValueFormatError("the payload is of no known format")
    size = int.from_bytes(payload[1:5], "little")
    if size > MAX_RAW:
        raise ValueFormatError(f"the payload declares {size} bytes; the limit is {MAX_RAW}")
    import zstandard

    frame = payload[5:]
    try:
        declared = zstandard.get_frame_parameters(frame).content_size
        # A frame may declare its own size, which the library would believe and allocate.
        if declared not in (size, zstandard.CONTENTSIZE_UNKNOWN):
            raise ValueFormatError("the payload's two declared sizes differ")
        plain: bytes = _codec("decompressor").decompress(frame, max_output_size=size)
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

        _local.compressor = zstandard.ZstdCompressor(level=1)
        _local.decompressor = zstandard.ZstdDecompressor()
        return getattr(_local, which)


# ── encoding


def _pack(value: object) -> bytes:
    try:
        return _packb(value)
    except UnicodeEncodeError:
        # Somewhere is text with lone surrogates, which UTF-8 cannot say.
        return _packb(_replace_text(value, 0))
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        if "recursion" in str(error):
            raise _too_deep() from None
        raise
    except TypeError as error:
        raise TypeError(_explain(value) or str(error)) from None


def _too_deep() -> ValueError:
    return ValueError(f"the value is nested deeper than {MAX_DEPTH} levels, or holds itself")


def _packb(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, strict_types=True, default=_default)
    return packed


def _default(value: object) -> msgpack.ExtType:
    kind = type(value)
    hook = _ENCODERS.get(kind)
    if hook is None:
        raise TypeError(f"{kind.__name__} is not a type of the value format")
    code, data = hook(value)
    return msgpack.ExtType(code, data)


def _datetime(value: datetime.datetime) -> bytes:
    zone = value.tzinfo
    key = zone.key if isinstance(zone, zoneinfo.ZoneInfo) else None
    return _packb([value.isoformat(), value.fold, key])


def _integer(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    if size > MAX_INTEGER_BYTES:
        raise ValueError(f"an integer has {size} bytes; the limit is {MAX_INTEGER_BYTES}")
    return value.to_bytes(size, "big", signed=True)


_ENCODERS: dict[type, Callable[[Any], tuple[int, bytes]]] = {
    tuple: lambda value: (EXT_TUPLE, _packb(list(value))),
    set: lambda value: (EXT_SET, _packb(list(value))),
    frozenset: lambda value: (EXT_FROZENSET, _packb(list(value))),
    datetime.datetime: lambda value: (EXT_DATETIME, _datetime(value)),
    datetime.date: lambda value: (EXT_DATE, value.isoformat().encode()),
    Decimal: lambda value: (EXT_DECIMAL, str(value).encode()),
    uuid.UUID: lambda value: (EXT_UUID, value.bytes),
    int: lambda value: (EXT_INTEGER, _integer(value)),
}

_CONTAINERS: Final[dict[type, int]] = {
    tuple: EXT_TUPLE,
    set: EXT_SET,
    frozenset: EXT_FROZENSET,
}

_KNOWN: Final[set[type]] = {
    type(None),
    bool,
    int,
    float,
    str,
    bytes,
    bytearray,
    memoryview,
    list,
    dict,
    *_ENCODERS,
}


def _replace_text(value: Any, depth: int) -> Any:
    """The same value with text that UTF-8 cannot say as extensions."""
    if depth > MAX_DEPTH:
        raise _too_deep()
    kind = type(value)
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            return msgpack.ExtType(EXT_TEXT, value.encode("utf-8", "surrogatepass"))
        return value
    if kind is list:
        return [_replace_text(item, depth + 1) for item in value]
    if kind is dict:
        return {
            _replace_text(key, depth + 1): _replace_text(item, depth + 1)
            for key, item in value.items()
        }
    code = _CONTAINERS.get(kind)
    if code is not None:
        return msgpack.ExtType(code, _packb([_replace_text(item, depth + 1) for item in value]))
    return value


def _explain(value: object) -> str | None:
    """Where the first thing stands that the format cannot say."""
    found: list[tuple[str, object, int]] = [("value", value, 0)]
    while found:
        path, item, depth = found.pop()
        kind = type(item)
        if kind not in _KNOWN:
            base = next((known.__name__ for known in kind.__mro__[1:] if known in _KNOWN), None)
            why = f" (a subclass of {base}: convert it)" if base else ""
            return f"{path}: {kind.__module__}.{kind.__qualname__} cannot be stored{why}"
        if depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(item, dict):
            for key, entry in reversed(item.items()):
                found.append((f"{path}[{key!r:.60}]", entry, depth + 1))
                found.append((f"key {key!r:.60} of {path}", key, depth + 1))
        elif isinstance(item, list | tuple):
            for at in range(len(item) - 1, -1, -1):
                found.append((f"{path}[{at}]", item[at], depth + 1))
        elif isinstance(item, set | frozenset):
            found.extend((f"an element of {path}", entry, depth + 1) for entry in item)
    return None


# ── decoding


def _from_ext(code: int, data: memoryview | bytes) -> Any:
    hook = _DECODERS.get(code)
    if hook is None:
        raise ValueFormatError(f"extension type {code} is not of this format")
    return hook(bytes(data))


def _parse_datetime(data: bytes) -> datetime.datetime:
    text, fold, key = _decode(data)
    found = datetime.datetime.fromisoformat(text).replace(fold=fold)
    if key is not None:
        try:
            return found.replace(tzinfo=zoneinfo.ZoneInfo(key))
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            # This machine does not know the zone: the same instant at its offset.
            return found
    return found


def _parse_decimal(data: bytes) -> Decimal:
    try:
        return Decimal(data.decode("ascii"))
    except InvalidOperation:
        raise ValueFormatError("not a decimal number") from None


def _parse_integer(data: bytes) -> int:
    if len(data) > MAX_INTEGER_BYTES:
        raise ValueFormatError("the integer is too long")
    return int.from_bytes(data, "big", signed=True)


_DECODERS: dict[int, Callable[[bytes], Any]] = {
    EXT_TUPLE: lambda data: tuple(_items(data)),
    EXT_SET: lambda data: set(_items(data)),
    EXT_FROZENSET: lambda data: frozenset(_items(data)),
    EXT_DATETIME: _parse_datetime,
    EXT_DATE: lambda data: datetime.date.fromisoformat(data.decode("ascii")),
    EXT_DECIMAL: _parse_decimal,
    EXT_UUID: lambda data: uuid.UUID(bytes=data),
    EXT_INTEGER: _parse_integer,
    EXT_TEXT: lambda data: data.decode("utf-8", "surrogatepass"),
}

_decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(ext_hook=_from_ext).decode


def _items(data: bytes) -> list[Any]:
    try:
        found = _decode(data)
    except msgspec.DecodeError:
        found = _unpack(data)
    if type(found) is not list:
        raise ValueFormatError("an extension holds no array")
    return found


def _second_opinion(data: bytes) -> object:
    """Decode with the other library: it takes map keys that msgspec does not know."""
    try:
        return _unpack(data)
    except Exception as error:
        # Whatever the library or an extension raised, the payload is no value.
        raise ValueFormatError(f"the payload is not a value: {error!r:.200}") from None


def _unpack(data: bytes) -> Any:
    return msgpack.unpackb(data, strict_map_key=False, ext_hook=_from_ext)
