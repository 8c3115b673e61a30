"""Which keys are alike."""

from __future__ import annotations

import pytest

from bi_performanced.cache.insight.prefixes import rule_of


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        (b"user:17:name", b"user:"),
        (b"log|today", b"log|"),
        (b"/var/log", b""),
        (b"static/site.css", b"static/"),
        (b"https://shop.example/page/1", b"https://shop.example/"),
        (b"https://shop.example/", b"https://shop.example/"),
        (b"https://shop.example", b"https://shop.example"),
        (b"greeting", b""),
        (b"x" * 200, b""),
        (b"x" * 100 + b":1", b""),
        (b"user:", b"user:"),
        (b"\xff\xfe:1", b"\xff\xfe:"),
    ],
)
def test_a_key_belongs_to_its_beginning(key: bytes, prefix: bytes) -> None:
    assert rule_of()(key) == prefix


def test_a_configured_prefix_goes_before_and_the_longest_of_them_first() -> None:
    rule = rule_of([b"user:", b"user:admin:", b"x"])
    assert rule(b"user:admin:1") == b"user:admin:"
    assert rule(b"user:1") == b"user:"
    assert rule(b"xyz") == b"x"
    assert rule(b"other:1") == b"other:"
