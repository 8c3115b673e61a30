"""Where one message ends: MessagePack objects found by their structure, within limits.

The stream has no lengths of its own, and a decoder would make objects before anybody could count
them: a megabyte of empty maps becomes 72 MiB. So the structure is walked first, making nothing,
and only a frame that is within the limits is handed on, as bytes, to be decoded.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from bi_performance_wire.errors import INVALID_REQUEST, TOO_LARGE, WireError


class Limits(NamedTuple):
    """What a peer may send in one message."""

    frame_bytes: int = 32 << 20
    shape_bytes: int = 64 << 10
    """Bytes outside the contents of str and bin: what becomes objects."""
    objects: int = 32_768
    depth: int = 64


DEFAULT_LIMITS: Final = Limits()

_ARRAY: Final = -1
_MAP: Final = -2
_BLOB: Final = -3
_EXT: Final = -4
_NEVER: Final = -5


def _table() -> tuple[list[int], list[int]]:
    """For each first byte the object's fixed size or its kind, and the width of its length."""
    sizes, widths = [1] * 256, [0] * 256
    for code in range(0x80, 0x90):
        sizes[code] = _MAP
    for code in range(0x90, 0xA0):
        sizes[code] = _ARRAY
    for code in range(0xA0, 0xC0):
        sizes[code] = _BLOB
    sizes[0xC1] = _NEVER
    for code, kind, width in (
        (0xC4, _BLOB, 1),
        (0xC5, _BLOB, 2),
        (0xC6, _BLOB, 4),
        (0xC7, _EXT, 1),
        (0xC8, _EXT, 2),
        (0xC9, _EXT, 4),
        (0xD9, _BLOB, 1),
        (0xDA, _BLOB, 2),
        (0xDB, _BLOB, 4),
        (0xDC, _ARRAY, 2),
        (0xDD, _ARRAY, 4),
        (0xDE, _MAP, 2),
        (0xDF, _MAP, 4),
    ):
        sizes[code], widths[code] = kind, width
    for first, size in ((0xCA, 5), (0xCB, 9), (0xCC, 2), (0xCD, 3), (0xCE, 5), (0xCF, 9)):
        sizes[first] = size
    for first, size in ((0xD0, 2), (0xD1, 3), (0xD2, 5), (0xD3, 9)):
        sizes[first] = size
    for step, code in enumerate(range(0xD4, 0xD9)):
        sizes[code] = 2 + (1 << step)
    return sizes, widths


_SIZES, _WIDTHS = _table()


class Framer:
    """Collects received bytes and gives out whole messages.

    After an error it must not be used again: where the next message would begin is unknown.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, *, arrays_only: bool = True) -> None:
        self._limits = limits
        self._arrays_only = arrays_only
        self._buffer = bytearray()
        self._begin()

    def _begin(self) -> None:
        self._at = 0
        self._left = 1
        """Objects still to come in the innermost open container; outermost, the message."""
        self._open: list[int] = []
        self._objects = 0
        self._shape = 0

    def feed(self, data: bytes) -> None:
        """Take received bytes; `next_frame` until it returns None before feeding more."""
        self._buffer += data

    @property
    def pending(self) -> int:
        """Bytes of an unfinished message."""
        return len(self._buffer)

    def next_frame(self) -> bytes | None:
        """One whole message, or None when more bytes are needed.

        Raises WireError: `invalid_request` for what is no message, `too_large` for one over a
        limit, naming the limit; the bytes behind it are lost.
        """
        buffer = self._buffer
        end = len(buffer)
        at = self._at
        if at == 0 and end and self._arrays_only and _SIZES[buffer[0]] != _ARRAY:
            raise WireError(
                INVALID_REQUEST,
                f"a message begins with an array, not with byte 0x{buffer[0]:02x}",
                hint="this socket speaks MessagePack-RPC",
            )
        limits, opened, left = self._limits, self._open, self._left
        objects, shape = self._objects, self._shape
        while at < end:
            code = buffer[at]
            size = _SIZES[code]
            if size > 0:
                following = at + size
                if following > end:
                    break
                shape += size
            elif size in (_BLOB, _EXT):
                width = _WIDTHS[code]
                content = at + 1 + width
                if content > end:
                    break
                count = int.from_bytes(buffer[at + 1 : content], "big") if width else code & 0x1F
                following = content + count
                if size == _BLOB:
                    outside = content - at
                else:
                    following += 1
                    outside = following - at
                if following > end:
                    # Not whole yet, and looked at again then; too large already, perhaps.
                    self._check(following, objects, shape + outside)
                    break
                shape += outside
            elif size == _NEVER:
                raise WireError(INVALID_REQUEST, "byte 0xc1 is no MessagePack")
            else:
                width = _WIDTHS[code]
                content = at + 1 + width
                if content > end:
                    break
                count = int.from_bytes(buffer[at + 1 : content], "big") if width else code & 0x0F
                if size == _MAP:
                    count *= 2
                shape += content - at
                depth = len(opened) + 1
                if (
                    objects + count >= limits.objects
                    or depth > limits.depth
                    or shape > limits.shape_bytes
                ):
                    self._check(content, objects + 1 + count, shape, depth)
                following = content
                if count:
                    objects += 1
                    at = content
                    opened.append(left)
                    left = count
                    continue
            at = following
            objects += 1
            left -= 1
            while not left and opened:
                left = opened.pop() - 1
            if not left:
                self._check(at, objects, shape)
                with memoryview(buffer) as view:
                    frame = bytes(view[:at])
                del buffer[:at]
                self._begin()
                return frame
        self._check(at, objects, shape)
        self._at, self._left, self._objects, self._shape = at, left, objects, shape
        return None

    def _check(self, size: int, objects: int, shape: int, depth: int = 0) -> None:
        limits = self._limits
        if size > limits.frame_bytes:
            raise _over("frame_bytes", limits.frame_bytes, "bytes")
        if shape > limits.shape_bytes:
            raise _over("shape_bytes", limits.shape_bytes, "bytes outside text and binary")
        if objects > limits.objects:
            raise _over("objects", limits.objects, "objects")
        if depth > limits.depth:
            raise _over("depth", limits.depth, "levels of nesting")

    def message_id(self) -> int | None:
        """The id of the request that could not be read whole, as far as it stands there."""
        head = self._buffer[:12]
        if len(head) < 3 or head[0] != 0x94 or head[1] != 0:
            return None
        size = _SIZES[head[2]]
        if head[2] < 0x80:
            return head[2]
        if 0xCC <= head[2] <= 0xCF and len(head) >= 2 + size:
            return int.from_bytes(head[3 : 2 + size], "big")
        return None


def _over(limit: str, value: int, unit: str) -> WireError:
    return WireError(
        TOO_LARGE,
        f"the message has more than {value} {unit}",
        field=limit,
        hint=f"send less at once, or raise socket.max_{limit}",
    )


def count_objects(data: bytes, limits: Limits) -> None:
    """Check that `data` is exactly one MessagePack object within limits; raises WireError."""
    framer = Framer(limits, arrays_only=False)
    framer.feed(data)
    frame = framer.next_frame()
    if frame is None or len(frame) != len(data):
        raise WireError(INVALID_REQUEST, "not exactly one MessagePack object")
