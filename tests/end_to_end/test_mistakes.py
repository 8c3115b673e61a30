"""Mistakes in a call: refused before anything is asked, by an error that names the argument."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bi_performance import Options
from bi_performance.optimizer import PerformanceOptimizer

NONE = PerformanceOptimizer("/nowhere/none.sock")
CACHE: Any = NONE.sync.cache
ASYNC: Any = NONE.cache
Call = Callable[[], Any]


def one() -> int:
    return 1


SYNC: list[tuple[Call, str]] = [
    (lambda: CACHE.clear(stale="x"), "stale is True or False, not str"),
    (lambda: CACHE.clear(dry_run=5), "dry_run is True or False, not int"),
    (lambda: CACHE.set("k", 1, sliding="x"), "sliding is True or False, not str"),
    (lambda: CACHE.set_many({"k": 1}, sliding=2), "sliding is True or False, not int"),
    (lambda: CACHE.set("k", 1, local="y"), "local is True or False, not str"),
    (lambda: CACHE.set("k", 1, tags=None), "tags is a list of tags, not NoneType"),
    (lambda: CACHE.set_many(None), "items is a mapping or pairs, not NoneType"),
    (lambda: CACHE.get_many(None), "keys is a list of keys, not NoneType"),
    (lambda: CACHE.get_or_set("k", one, sliding="x"), "sliding is True or False, not str"),
    (lambda: CACHE.get_or_set("k", one, local=1), "local is True or False, not int"),
    (lambda: CACHE.get_or_set("k", one, tags=5), "tags is a list of tags, not int"),
    (lambda: CACHE.get_or_set("k", None), "factory is a function, not NoneType"),
    (lambda: CACHE.get_or_set_entry("k", 5), "factory is a function, not int"),
    (lambda: CACHE.refresh("k", "x"), "factory is a function, not str"),
    (lambda: CACHE.get_or_set_many(None, one), "keys is a list of keys, not NoneType"),
    (lambda: CACHE.get_or_set_many(["k"], None), "factory is a function, not NoneType"),
    (lambda: CACHE.cached(one), "write @cached() with brackets"),
    (lambda: ASYNC.cached(one), "write @cached() with brackets"),
    (lambda: CACHE.get_or_set("k", one, gracee=1), "get_or_set() has no option 'gracee'; did"),
    (lambda: CACHE.refresh("k", one, xyz=1), "refresh() has no option 'xyz'; there are ttl, grace"),
    (lambda: CACHE.cached(60, soft=1), "cached() has no option 'soft'"),
    (lambda: Options(sliding=None), "sliding is True or False, not NoneType"),  # type: ignore[arg-type] # the mistake is the test
]
AWAITED: list[tuple[Call, str]] = [
    (lambda: ASYNC.clear(stale="x"), "stale is True or False, not str"),
    (lambda: ASYNC.set("k", 1, local="y"), "local is True or False, not str"),
    (lambda: ASYNC.get_many(None), "keys is a list of keys, not NoneType"),
    (lambda: ASYNC.get_or_set("k", None), "factory is a function, not NoneType"),
    (lambda: ASYNC.get_or_set_many(None, one), "keys is a list of keys, not NoneType"),
    (lambda: ASYNC.get_or_set_many(["k"], one, bogus=1), "get_or_set_many() has no option 'bogus'"),
    (lambda: ASYNC.get_or_set_entry("k", one, ttl_=1), "get_or_set_entry() has no option 'ttl_'"),
]


def ids(cases: list[tuple[Call, str]]) -> list[str]:
    return [f"{number}: {words}" for number, (_, words) in enumerate(cases)]


@pytest.mark.parametrize(("call", "words"), SYNC, ids=ids(SYNC))
def test_a_mistake_is_a_type_error_that_names_the_argument(call: Call, words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        call()


@pytest.mark.parametrize(("call", "words"), AWAITED, ids=ids(AWAITED))
def test_it_is_the_same_with_await(call: Call, words: str) -> None:
    async def wait() -> None:
        await call()

    with pytest.raises(TypeError, match=re.escape(words)):
        asyncio.run(wait())


def ctl(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bi_performance_ctl.main", *words]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_of_a_group_lists_its_commands(word: str) -> None:
    done = ctl("cache", word)
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("cache get ", "cache set ", "cache stats "):
        assert f"  {command}" in done.stdout
    assert "examples:\n  bi-performance cache get https://example.com/" in done.stdout
    assert "Every setting" in ctl("config", word).stdout, "a command's own, where it is one too"
    for words in (("cache", "by", "bogus"), ("cache", "top", "--by", "bogus")):
        wrong = ctl(*words)
        assert wrong.returncode == 2 and "invalid choice: 'bogus' (choose from" in wrong.stderr
    wrong = ctl("cache")
    assert wrong.returncode == 2 and "cache needs one of: " in wrong.stderr


@pytest.mark.parametrize("words", [("cache", "set"), ("cache", "touch"), ("clear-cache",)])
def test_help_has_a_text_for_each_option(words: tuple[str, ...]) -> None:
    text = ctl(*words, "--help").stdout
    options = re.findall(r"^  (--\S+)( [^ ]\S*)?(?:\n +|  +)?(.*)$", text, re.MULTILINE)
    assert len(options) > 2
    assert [option for option, _, told in options if not told.strip()] == []
    if words == ("cache", "set"):
        assert "--token" not in text, "what only programs use"
        assert "reads renew the entry" in text and "not put into Redis" in text
        assert "Redis has it" in text
