"""Messages are found in a byte stream by structure alone, within limits."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_performance_wire.errors import WireError
from bi_performance_wire.framing import Framer, Limits, count_objects

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)
messages = st.lists(values, max_size=5)


@given(st.lists(messages, max_size=5), st.data())
def test_any_split_of_any_stream_gives_the_same_messages(
    sent: list[list[object]], data: st.DataObject
) -> None:
    packed = [msgpack.packb(message) for message in sent]
    stream = b"".join(packed)
    framer = Framer()
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        framer.feed(stream[:size])
        stream = stream[size:]
        while (frame := framer.next_frame()) is not None:
            found.append(frame)
    assert found == packed
    assert framer.pending == 0


@given(messages)
def test_every_truncation_waits_for_more(message: list[object]) -> None:
    packed = msgpack.packb(message)
    framer = Framer()
    for at in range(len(packed) - 1):
        framer.feed(packed[at : at + 1])
        assert framer.next_frame() is None
    framer.feed(packed[-1:])
    assert framer.next_frame() == packed


@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_or_an_error_or_wait(data: bytes) -> None:
    framer = Framer(Limits(frame_bytes=1000, shape_bytes=100, objects=50, depth=5))
    framer.feed(data)
    try:
        while framer.next_frame() is not None:
            pass
    except WireError as error:
        assert error.code in ("invalid_request", "too_large")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"\x91\xc6\x00\x00\x04\x00" + bytes(1024), "frame_bytes"),
        (b"\x91\xc6\xff\xff\xff\xff", "frame_bytes"),
        (b"\xdc\x00\x60" + b"\xcb00000000" * 96, "shape_bytes"),
        (b"\x91\xc8\x03\x00\x05" + bytes(768), "shape_bytes"),
        (b"\xdd\xff\xff\xff\xff", "objects"),
        (b"\x91\xdf\x00\x00\x00\x40", "objects"),
        (b"\x91" * 9 + b"\x90", "depth"),
    ],
)
def test_each_limit_has_its_own_error_as_soon_as_it_is_sure(data: bytes, field: str) -> None:
    framer = Framer(Limits(frame_bytes=1000, shape_bytes=500, objects=100, depth=8))
    framer.feed(data)
    with pytest.raises(WireError) as caught:
        framer.next_frame()
    assert caught.value.code == "too_large"
    assert caught.value.field == field
    assert caught.value.hint is not None and field in caught.value.hint


@pytest.mark.parametrize("first", [0x00, 0x47, 0x80, 0xA0, 0xC0, 0xC1, 0xFF])
def test_a_message_that_is_no_array_is_refused_at_its_first_byte(first: int) -> None:
    framer = Framer()
    framer.feed(bytes([first]))
    with pytest.raises(WireError) as caught:
        framer.next_frame()
    assert caught.value.code == "invalid_request"


@given(st.integers(0, 2**32 - 1))
def test_the_id_of_a_request_over_a_limit_is_still_known(number: int) -> None:
    framer = Framer(Limits(frame_bytes=100))
    framer.feed(msgpack.packb([0, number, "method", [b"x" * 200]]))
    with pytest.raises(WireError):
        framer.next_frame()
    assert framer.message_id() == number


def test_exactly_one_object_is_one_object() -> None:
    count_objects(msgpack.packb({"a": [1, 2]}), Limits())
    for data in (b"", b"\x01\x02", b"\x92\x01"):
        with pytest.raises(WireError):
            count_objects(data, Limits())
