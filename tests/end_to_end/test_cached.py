"""`@cached`: functions whose results all processes share, and the keys of their arguments."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.options import LoadContext, Options
from support.daemon import DaemonProcess


@pytest.fixture(scope="module")
def optimizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PerformanceOptimizer]:
    with DaemonProcess(tmp_path_factory.mktemp("cached"), http="off") as daemon:
        made = PerformanceOptimizer(str(daemon.socket))
        yield made
        made.close()


@pytest.fixture(autouse=True)
def empty(optimizer: PerformanceOptimizer) -> None:
    optimizer.sync.cache.clear()


def test_a_function_is_called_once_for_its_arguments(optimizer: PerformanceOptimizer) -> None:
    calls: list[Any] = []

    @optimizer.sync.cache.cached(ttl=60)
    def add(a: int, b: int = 2, *more: int, c: int = 0, **named: int) -> int:
        """Adds."""
        calls.append(a)
        return a + b + c + sum(more) + sum(named.values())

    assert add(1) == add(a=1) == add(1, 2) == add(b=2, a=1) == add(1, c=0) == 3
    assert add(1, d=1, e=2) == add(1, e=2, d=1) == 6
    assert add(1, 2, 3) == 6
    assert len(calls) == 3
    assert add.__name__ == "add" and add.__doc__ == "Adds."
    entry = optimizer.sync.cache.get_entry(add.key(1))
    assert entry.value == 3 and entry.ttl is not None and 58 < entry.ttl <= 60


@pytest.mark.parametrize("run", [asyncio.run, trio.run])
def test_an_async_function_is_awaited_as_ever(optimizer: PerformanceOptimizer, run: Any) -> None:
    calls: list[Any] = []

    @optimizer.cache.cached(ttl=60)
    async def square(x: float) -> float:
        calls.append(x)
        return x * x

    async def use() -> None:
        assert await square(3) == await square(x=3) == 9
        assert await square(3.0) == 9.0
        assert len(calls) == 2, "1 and 1.0 are not one key"
        assert await square.refresh(3) == 9 and len(calls) == 3
        assert await square.invalidate(3) is True
        assert await optimizer.cache.get(square.key(3)) is None
        assert await square(3) == 9 and len(calls) == 4

    trio.run(use) if run is trio.run else asyncio.run(use())


def test_refresh_and_invalidate_are_of_the_same_key(optimizer: PerformanceOptimizer) -> None:
    values = iter(range(10))

    @optimizer.cache.cached()
    def next_value(name: str) -> int:
        return next(values)

    assert [next_value("a"), next_value("a"), next_value("b")] == [0, 0, 1]
    assert next_value.refresh("a") == 2
    assert next_value("a") == 2
    assert next_value.invalidate("a") is True
    assert [next_value("a"), next_value("b")] == [3, 1]


def test_keys_are_given_by_text_or_by_a_function(optimizer: PerformanceOptimizer) -> None:
    class Shop:
        def __init__(self, name: str) -> None:
            self.name = name
            self.calls = 0

        @optimizer.cache.cached(key=lambda self, number: f"{self.name}:{number}")
        def item(self, number: int) -> int:
            self.calls += 1
            return number

        @optimizer.cache.cached(key="shop:{self.name}:{number}")
        def other(self, number: int = 5) -> int:
            return number

        @optimizer.cache.cached()
        def unkeyed(self) -> int:
            return 1

    one, two = Shop("one"), Shop("two")
    assert [one.item(1), one.item(1), two.item(1)] == [1, 1, 1]
    assert one.calls == two.calls == 1
    assert one.item.key(1) == "one:1" and Shop.item.key(two, 1) == "two:1"
    assert one.item.refresh(1) == 1 and one.calls == 2
    assert one.item.invalidate(1) and optimizer.sync.cache.get("one:1") is None
    assert one.other() == 5 and one.other.key() == "shop:one:5"
    with pytest.raises(TypeError, match=r"'self' cannot be part of a key .* give cached\(key=…\)"):
        one.unkeyed()
    with pytest.raises(TypeError, match="key is a text or a function"):
        optimizer.cache.cached(key=5)  # type: ignore[arg-type] # the mistake that is tried


def test_a_context_is_given_and_is_no_part_of_the_key(optimizer: PerformanceOptimizer) -> None:
    @optimizer.cache.cached(options=Options(ttl=60))
    def page(url: str, *, ctx: LoadContext | None = None) -> str:
        assert ctx is not None
        ctx.ttl = 7
        return f"{url} as {ctx.key!s}"

    assert page("/a") == f"/a as {page.key('/a')}"
    ttl = optimizer.sync.cache.get_entry(page.key("/a")).ttl
    assert ttl is not None and 5 < ttl <= 7


KEYS = """
from bi_performance.optimizer import PerformanceOptimizer
cache = PerformanceOptimizer("/none.sock").cache
@cache.cached()
def f(a, b=frozenset({"x", "y", "z"}), **named):
    pass
f.__wrapped__.__module__ = "app"
print(f.key({"one": 1, "two": {"p", "q", "r"}}, named={"k": (1, 2.5, None)}))
"""


def test_keys_are_the_same_in_every_process(optimizer: PerformanceOptimizer) -> None:
    found = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", KEYS],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    # Written down: a key that changes with a version is a cache that is lost with it.
    assert found == {"__main__.f:1be25dab37acba30a673e7537984b876\n"}


def test_dicts_and_sets_count_by_their_content(optimizer: PerformanceOptimizer) -> None:
    @optimizer.cache.cached()
    def f(value: Any) -> None: ...

    assert f.key({"a": 1, "b": 2}) == f.key({"b": 2, "a": 1})
    assert f.key({"a": [{1, 2}]}) == f.key({"a": [{2, 1}]})
    different = [1, 1.0, True, "1", b"1", [1], (1,), {1}, frozenset({1}), {1: None}, ["set", [b""]]]
    assert len({f.key(each) for each in different}) == len(different)


def test_without_a_daemon_it_is_the_function(tmp_path: Path) -> None:
    alone = PerformanceOptimizer(str(tmp_path / "none.sock"))
    calls: list[int] = []

    @alone.cache.cached()
    def f(x: int) -> int:
        calls.append(x)
        return x

    assert [f(1), f(1), f.refresh(1)] == [1, 1, 1] and len(calls) == 3
    assert f.invalidate(1) is False
    alone.close()


def triple(value: int) -> int:
    return value * 3


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    def price(self, number: int) -> str:
        return f"{self.name} {number}"


def test_a_decorated_function_is_pickled_by_name_and_copied_as_one(
    optimizer: PerformanceOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[__name__]
    decorated = optimizer.sync.cache.cached(60)(triple)
    monkeypatch.setattr(module, "triple", decorated)
    assert pickle.loads(pickle.dumps(decorated)) is decorated  # noqa: S301 (our own)
    assert copy.copy(decorated) is copy.deepcopy(decorated) is decorated
    price = optimizer.sync.cache.cached(60, key="{self.name}:{number}")(Shop.price)
    monkeypatch.setattr(Shop, "price", price)
    bound = pickle.loads(pickle.dumps(Shop("shop").price))  # noqa: S301 (our own)
    assert bound(5) == "shop 5" and copy.deepcopy(bound)(5) == "shop 5"


def test_a_key_that_names_no_parameter_is_refused_at_the_decoration(
    optimizer: PerformanceOptimizer,
) -> None:
    cached = optimizer.sync.cache.cached
    for key, words in (
        ("u:{idd}", "'idd', which is no parameter of the function; it has: value"),
        ("{0}", "'0', which is no parameter"),
        ("{}", "'', which is no parameter"),
        ("{idd.name}", "'idd', which"),
        ("{", "no text with names in braces"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            cached(60, key=key)(triple)
    assert cached(60, key="{{x}} {value:03d} {value!r}")(triple).key(7) == "{x} 007 7"
    with pytest.raises(ValueError, match="cannot be made of these arguments: AttributeError"):
        cached(60, key="{value.name}")(triple)(7)


def test_an_argument_that_contains_itself_is_a_mistake_that_is_named(
    optimizer: PerformanceOptimizer,
) -> None:
    @optimizer.sync.cache.cached(60)
    def count(items: list[Any]) -> int:
        return len(items)

    items: list[Any] = []
    items.append(items)
    with pytest.raises(TypeError, match=r"count: the argument 'items'.* contains itself"):
        count(items)
