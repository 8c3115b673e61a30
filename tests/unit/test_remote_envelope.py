"""The envelope of an entry in Redis: what is read, and what is a miss."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bi_performanced.remote.envelope import (
    HEAD,
    STATE_AT,
    VERSION_AT,
    Codec,
    Envelope,
    Unreadable,
    Version,
)

NOW = 1_800_000_000_000
PREFIX = b"bi:perf:"
ENTRY = Envelope(
    b"\x00the client's bytes",
    created=NOW,
    soft=60_000,
    hard=90_000,
    extra=b"extra",
    tags=(b"shop:7", b"price"),
)

# What version 1 writes; every later version must go on reading these bytes.
GOLDEN = {
    None: bytes.fromhex(
        "b15001000000000000000000000000000000000000000000000001a3185c5000000000000000ea60"
        "0000000000015f900006000d00000005706167653a310673686f703a370570726963656578747261"
        "0074686520636c69656e742773206279746573abc6bf523902d6cf"
    ),
    "a secret": bytes.fromhex(
        "b15001010000000000000000000000000000000000000000000001a3185c5000000000000000ea60"
        "0000000000015f900006000d00000005706167653a310673686f703a370570726963656578747261"
        "0074686520636c69656e74277320627974657308e6c6a9883e0c8d7e37cea13269a7e5817e52cefb"
        "ba74c1de69b1eabffa7091"
    ),
}


def codec(secret: str | None = None, prefix: bytes = PREFIX) -> Codec:
    return Codec(prefix, secret)


@pytest.mark.parametrize("secret", [None, "a secret"])
def test_an_entry_comes_back_as_it_went_in(secret: str | None) -> None:
    data = codec(secret).pack(b"page:1", ENTRY)
    found = codec(secret).unpack(b"page:1", data, 80_000, NOW)
    assert found == dataclasses.replace(ENTRY, remaining=80_000)
    assert found.fresh == 50_000


@pytest.mark.parametrize("secret", GOLDEN)
def test_the_bytes_of_the_first_format_are_read(secret: str | None) -> None:
    data = GOLDEN[secret]
    assert codec(secret).pack(b"page:1", ENTRY) == data
    found = codec(secret).unpack(b"page:1", data, 90_000, NOW)
    assert found == dataclasses.replace(ENTRY, remaining=90_000)


def test_version_and_state_are_where_the_scripts_write_them() -> None:
    data = bytearray(codec("s").pack(b"k", ENTRY))
    assert data[VERSION_AT:HEAD] == bytes(16)
    data[VERSION_AT:HEAD] = (7).to_bytes(8, "big") + (3).to_bytes(8, "big")
    data[STATE_AT] = 1
    found = codec("s").unpack(b"k", bytes(data), 80_000, NOW)
    assert (found.version, found.stale, found.fresh) == (Version(7, 3), True, 0)


@pytest.mark.parametrize(
    ("reader", "key", "kind"),
    [
        (codec("another"), b"k", "signature"),
        (codec("s", b"other:"), b"k", "signature"),
        (codec(), b"k", "signature"),
        (codec("s"), b"other", "garbage"),
    ],
)
def test_an_entry_of_others_is_a_miss(reader: Codec, key: bytes, kind: str) -> None:
    data = codec("s").pack(b"k", ENTRY)
    with pytest.raises(Unreadable) as error:
        reader.unpack(key, data, 1000, NOW)
    assert error.value.kind == kind


def test_an_unsigned_entry_is_a_miss_where_there_is_a_secret() -> None:
    with pytest.raises(Unreadable, match="signature"):
        codec("s").unpack(b"k", codec().pack(b"k", ENTRY), 1000, NOW)


def test_an_unknown_format_is_a_miss_of_its_own_kind() -> None:
    data = bytearray(codec().pack(b"k", ENTRY))
    data[2] = 2
    with pytest.raises(Unreadable, match="unknown_format"):
        codec().unpack(b"k", bytes(data), 1000, NOW)


@pytest.mark.parametrize("secret", [None, "s"])
@given(st.data())
def test_no_damage_yields_a_value_that_nobody_wrote(
    secret: str | None, data: st.DataObject
) -> None:
    whole = codec(secret).pack(b"k", ENTRY)
    found = bytearray(whole)
    if data.draw(st.booleans()):
        del found[data.draw(st.integers(0, len(found) - 1)) :]
    else:
        at = data.draw(st.integers(0, len(found) - 1))
        found[at] ^= data.draw(st.integers(1, 255))
    try:
        read = codec(secret).unpack(b"k", bytes(found), 90_000, NOW)
    except Unreadable:
        return
    # Only what Redis writes itself is outside of the check.
    assert dataclasses.replace(read, version=Version(0, 0), stale=False) == dataclasses.replace(
        ENTRY, remaining=90_000
    )


@given(st.binary(max_size=200))
def test_garbage_is_a_miss(data: bytes) -> None:
    with pytest.raises(Unreadable):
        codec().unpack(b"k", data, 1000, NOW)


def test_a_time_to_live_that_was_taken_away_or_lengthened_ends_when_its_maker_said() -> None:
    data = codec().pack(b"k", ENTRY)
    assert codec().unpack(b"k", data, -1, NOW + 30_000).remaining == 60_000
    assert codec().unpack(b"k", data, 10_000_000, NOW).remaining == ENTRY.hard


def test_a_signed_entry_that_was_kept_and_put_back_is_a_miss() -> None:
    data = codec("s").pack(b"k", ENTRY)
    with pytest.raises(Unreadable, match="signature"):
        codec("s").unpack(b"k", data, 1000, NOW + 3_600_000)


def test_tags_beyond_their_room_are_an_error_of_the_caller() -> None:
    many = dataclasses.replace(ENTRY, tags=(b"t" * 255,) * 256)
    with pytest.raises(ValueError, match="65,535"):
        codec().pack(b"k", many)
