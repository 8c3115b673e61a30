"""The value format: every type of the table comes back as it was; nothing else gets in or out."""

from __future__ import annotations

import collections
import contextlib
import datetime
import enum
import math
import uuid
import zoneinfo
from decimal import Decimal
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_performance_wire import value as V
from bi_performance_wire.value import ValueFormatError, decode, encode

GOLDEN: list[tuple[Any, str]] = [
    (None, "00c0"),
    ("text", "00a474657874"),
    (b"bytes", "00c4056279746573"),
    ([1, -1, 2.5], "009301ffcb4004000000000000"),
    ({"a": 1, 2: "b"}, "0082a1610102a162"),
    ((1, "x"), "00d6019201a178"),
    ({7}, "00d5029107"),
    (frozenset({7}), "00d5039107"),
    (datetime.date(2026, 11, 24), "00d60507ea0b18"),
    (Decimal("1.50"), "00d606312e3530"),
    (uuid.UUID(int=5), "00d80700000000000000000000000000000005"),
    (2**64, "00c70908010000000000000000"),
    (-(2**70), "00c70908c00000000000000000"),
    ("\ud800", "00c70309eda080"),
    (
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC),
        "00c714040207ea0102030405000000060000000000000000",
    ),
]


@pytest.mark.parametrize(("value", "golden"), GOLDEN, ids=repr)
def test_the_bytes_of_each_type_never_change(value: Any, golden: str) -> None:
    assert encode(value).hex() == golden
    assert decode(bytes.fromhex(golden)) == value


hashable = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.text(st.characters(categories=["Cs"]), max_size=3)
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.dates()
    | st.datetimes()
    | st.datetimes(timezones=st.just(datetime.UTC))
)
values = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
        | st.frozensets(hashable, max_size=4)
    ),
    max_leaves=15,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of equal types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return len(left) == len(right) and all(
            same(a, b) and same(left[a], right[b]) for a, b in zip(left, right, strict=True)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return math.copysign(1, left) == math.copysign(1, right) and (
            left == right or (left != left and right != right)
        )
    if isinstance(left, Decimal):
        return str(left) == str(right)
    return bool(left == right)


@given(values)
def test_every_value_comes_back_as_it_was(value: Any) -> None:
    assert same(decode(encode(value)), value)


@given(values.filter(lambda value: value is not None))
def test_every_truncation_is_refused(value: Any) -> None:
    payload = encode(value)
    for end in range(len(payload)):
        with pytest.raises(ValueFormatError):
            decode(payload[:end])


@given(st.binary(max_size=100))
def test_random_bytes_are_a_value_or_refused(data: bytes) -> None:
    for prefix in (b"", b"\0", b"\1\x10\0\0\0", b"\1\x10\0\0\0(\xb5/\xfd"):
        with contextlib.suppress(ValueFormatError):
            decode(prefix + data)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        -0.0,
        Decimal("NaN"),
        Decimal("-Infinity"),
        Decimal("1E+5"),
        datetime.datetime(2026, 10, 25, 2, 30, fold=1),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=5.5))),
        {(1, ("a", frozenset({2}))): 1},
        {"\udfff": ["\ud800", {"\udbff"}, ("\ud800",)]},
        [[[[]]]] * 3,
    ],
    ids=repr,
)
def test_corner_cases_come_back(value: Any) -> None:
    assert same(decode(encode(value)), value)


def test_a_named_zone_is_kept_where_it_is_known() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    value = datetime.datetime(2026, 7, 1, 12, tzinfo=berlin)
    found = decode(encode(value))
    assert isinstance(found, datetime.datetime)
    assert found == value
    assert found.tzinfo is berlin


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (object(), "value: "),
        ({"a": [1, 2, {3: Color.RED}]}, "value['a'][2][3]: "),
        ([Text("x")], "value[0]: "),
        ({"k": Pair(1, 2)}, "value['k']: "),
        (collections.OrderedDict(a=1), "value: "),
        ({Color.RED: 1}, "key <Color.RED: 1> of value: "),
        ((1, {2, Color.RED}), "an element of value[1]: "),
        (lambda: None, "value: "),
    ],
    ids=["object", "enum", "str", "namedtuple", "dict", "key", "set", "function"],
)
def test_a_type_that_is_not_in_the_table_is_a_type_error_naming_its_place(
    value: Any, place: str
) -> None:
    with pytest.raises(TypeError) as caught:
        encode(value)
    assert str(caught.value).startswith(place)


def test_a_cycle_is_a_value_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    within: tuple[list[Any]] = ([],)
    within[0].append(within)
    for value in (endless, within):
        with pytest.raises(ValueError, match="deeper"):
            encode(value)


def test_compression_is_kept_only_when_it_pays() -> None:
    pays = "the same words again " * 1000
    assert encode(pays)[0] == V.ZSTD
    assert len(encode(pays)) < len(pays) // 10
    assert decode(encode(pays)) == pays
    assert encode(pays, compress=False)[0] == V.PLAIN
    noise = bytes(range(256)) * 4 + uuid.uuid4().bytes * 250
    noise = b"".join(uuid.uuid4().bytes for _ in range(400))
    assert encode(noise)[0] == V.PLAIN


def test_a_declared_size_is_checked_before_anything_is_made() -> None:
    squeezed = encode("x" * 100_000)
    for size in (0, 1, 99_999, V.MAX_RAW, V.MAX_RAW + 1, 2**32 - 1):
        with pytest.raises(ValueFormatError):
            decode(squeezed[:1] + size.to_bytes(4, "little") + squeezed[5:])


def test_a_value_of_a_foreign_client_is_decoded() -> None:
    stamp = msgpack.Timestamp.from_unix(0)
    assert decode(b"\0" + msgpack.packb(stamp)) == datetime.datetime(
        1970, 1, 1, tzinfo=datetime.UTC
    )
    with pytest.raises(ValueFormatError, match="extension"):
        decode(b"\0" + msgpack.packb(msgpack.ExtType(99, b"")))
