"""Suggestions for names: helpful for a person's, free for a hostile one."""

from __future__ import annotations

import difflib

import pytest

from bi_performance_wire.commands import COMMANDS
from bi_performance_wire.errors import WireError
from bi_performance_wire.near import MOST, nearest
from bi_performanced.config.sources import nearest as nearest_key
from bi_performanced.dispatch import Dispatcher, _unknown_argument


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher({row.name: lambda args, caller: None for row in COMMANDS})


def test_a_name_a_letter_away_is_found(dispatcher: Dispatcher) -> None:
    assert nearest("cache.gett", dispatcher.bound) == "cache.get"
    assert nearest("x" * 20, dispatcher.bound) is None


def test_a_long_name_is_compared_with_nothing(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a megabyte of text, compared with each method, would hold the daemon for minutes."""

    def compared(*_: object, **__: object) -> list[str]:
        raise AssertionError("compared")

    monkeypatch.setattr(difflib, "get_close_matches", compared)
    for name in ("c" * (MOST + 1), "cache." * 100_000):
        with pytest.raises(WireError, match="there is no method") as caught:
            dispatcher.find(name)
        assert len(str(caught.value)) < 200
        assert (
            _unknown_argument(dispatcher.bound["cache.get"], name).hint == "it takes: key, payload"
        )
        assert nearest_key(name, ["cache.max_size"]) == ""
