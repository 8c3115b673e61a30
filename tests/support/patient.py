"""Calls of a client that are made again until the daemon, however busy the machine, was there.

A client never waits long: a daemon that had no turn for a second is a miss and an answer that is
not there. Where that is not what a test is about it goes by what comes in the end.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from bi_performance import asking
from bi_performance.client import PerformanceCache, SyncCache
from support.daemon import wait_until

_ABSENT: Final = object()
LONG: Final = 30.0


def hit(cache: SyncCache, key: str) -> Any:
    """The value, as soon as a read is a hit; that one is the only one."""
    found: list[Any] = []

    def read() -> bool:
        found[:] = [cache.get(key, _ABSENT)]
        return found[0] is not _ABSENT

    wait_until(read, what=f"a hit of {key}")
    return found[0]


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the clients of this process wait long for answers: not every call can be repeated."""
    monkeypatch.setattr("bi_performance.link.ATTACH_WAIT", LONG)
    for ask in (asking.ask, asking.ask_now, PerformanceCache._ask, SyncCache._ask):
        defaults = ask.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "seconds", LONG)
