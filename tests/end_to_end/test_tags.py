"""Tags, grace and soft clears, with a real daemon and readers in other processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from bi_performance.client import SyncCache
from bi_performance.optimizer import PerformanceOptimizer
from support.clients import RawClient
from support.daemon import DaemonProcess, wait_until

READER = """
import sys
from bi_performance.optimizer import PerformanceOptimizer
cache = PerformanceOptimizer(sys.argv[1]).sync.cache
for line in sys.stdin:
    key = line.strip()
    entry = cache.get_entry(key)
    print(cache.get(key), entry.value, entry.stale, flush=True)
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.fixture
def cache(daemon: DaemonProcess) -> Iterator[SyncCache]:
    optimizer = PerformanceOptimizer(str(daemon.socket))
    optimizer.sync.cache.clear()
    yield optimizer.sync.cache
    optimizer.close()


class Reader:
    """Another process that reads in place."""

    def __init__(self, daemon: DaemonProcess) -> None:
        command = [sys.executable, "-c", READER, str(daemon.socket)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def look(self, key: str) -> str:
        """What `get` gives, and what `get_entry` gives and whether that is stale."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(key + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def reader(daemon: DaemonProcess) -> Iterator[Reader]:
    found = Reader(daemon)
    yield found
    found.close()


def test_entries_of_a_cleared_tag_are_gone_for_every_process_and_others_stay(
    cache: SyncCache, reader: Reader
) -> None:
    cache.set("one", 1, tags=["shop", "news"])
    cache.set_many({"two": 2, "three": 3}, tags=["shop"])
    cache.set("four", 4, tags=["news"])
    cache.set("five", 5)
    assert reader.look("one") == "1 1 False"
    assert cache.clear(tags=["shop"], dry_run=True) == 3
    assert cache.get("two") == 2
    assert cache.clear(tags=["shop"]) == 3
    found = [reader.look(key) for key in ("one", "two", "three", "four", "five")]
    assert found == ["None None False"] * 3 + ["4 4 False", "5 5 False"]
    assert cache.clear(tags=["shop"]) == 0
    cache.set("one", 11, tags=["shop"])
    assert reader.look("one") == "11 11 False", "what is stored after it is not touched"


def test_a_tag_that_was_cleared_stays_so_after_a_kill(
    daemon: DaemonProcess, cache: SyncCache
) -> None:
    cache.set_many({f"key-{n}": n for n in range(100)}, tags=["all"])
    cache.set("late", 1)
    assert cache.clear(tags=["all"]) == 100
    daemon.kill9()
    daemon.start()
    assert wait_until(lambda: cache.get("late") == 1)
    assert cache.get_many([f"key-{n}" for n in range(100)]) == {}
    cache.set("key-1", 2, tags=["all"])
    assert cache.get("key-1") == 2


def test_a_soft_clear_leaves_what_has_grace_to_those_who_ask_for_stale_entries(
    cache: SyncCache, reader: Reader
) -> None:
    cache.set("with", 1, grace=3600)
    cache.set("without", 2)
    assert reader.look("with") == "1 1 False"
    assert cache.clear(stale=True) == 2
    assert reader.look("with") == "None 1 True"
    assert reader.look("without") == "None None False"
    cache.set("with", 3, grace=3600)
    assert reader.look("with") == "3 3 False", "stored in the same moment and fresh"


def test_an_entry_that_is_made_stale_alone_is_so_for_every_process(
    cache: SyncCache, reader: Reader
) -> None:
    cache.set("key", "old", grace=60, tags=["tag"])
    cache.set("other", "value", grace=60)
    assert cache.expire("key") and reader.look("key") == "None old True"
    assert reader.look("other") == "value value False"
    assert cache.clear(tags=["tag"]) == 0, "it was stale before: nothing became unreadable"
    assert reader.look("key") == "None None False"
    assert cache.clear("other", stale=True) == 1
    assert reader.look("other") == "None value True"


def test_what_cannot_be_stored_is_refused_by_the_client(cache: SyncCache) -> None:
    for tags, kind in (("text", TypeError), ([1], TypeError), ([""], ValueError)):
        with pytest.raises(kind, match="tag"):
            cache.set("key", 1, tags=tags)  # type: ignore[arg-type] # the mistake is the test
    with pytest.raises(ValueError, match="100 bytes"):
        cache.set("key", 1, tags=["é" * 51])
    with pytest.raises(ValueError, match="at most 16"):
        cache.set("key", 1, tags=[str(n) for n in range(17)])
    with pytest.raises(ValueError, match="grace"):
        cache.set("key", 1, grace=-1)
    assert cache.set("key", 1, tags=["é" * 50], grace=0.05)


def test_tags_are_for_http_and_the_control_program_too(
    daemon: DaemonProcess, cache: SyncCache
) -> None:
    import httpx

    cache.set_many({"one": 1, "two": 2}, tags=["shop"])
    cache.set("three", 3, tags=["news"])
    url = f"{daemon.http_url}/performance/cache/clear"
    answer = httpx.post(url, params={"tags": "shop, news", "dry_run": "true"}, trust_env=False)
    assert answer.json() == {"cleared": 3, "dry_run": True}
    answer = httpx.post(url, params={"tags": "x" * 101}, trust_env=False)
    assert answer.status_code == 400 and answer.json()["field"] == "tags"
    command = [sys.executable, "-m", "bi_performance_ctl.main", "--socket", str(daemon.socket)]
    told = subprocess.run(
        [*command, "clear-cache", "--tags", "shop,news"], capture_output=True, text=True, check=True
    )
    assert told.stdout == "cleared 3 entries\n"
    told = subprocess.run(
        [*command, "cache", "set", "k", "v", "--tags", "a,b", "--grace", "5"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert cache.clear(tags=["b"]) == 1


def test_an_empty_list_of_tags_does_not_clear_everything(
    daemon: DaemonProcess, cache: SyncCache
) -> None:
    import httpx

    cache.set("one", 1, tags=["shop"])
    cache.set("two", 2)
    with pytest.raises(ValueError, match="tags is empty"):
        cache.clear(tags=[])
    with pytest.raises(ValueError, match="tags is empty"):
        cache.clear("on", tags=iter(()))
    with RawClient(daemon.socket) as raw:
        error = raw.error("cache.clear", {"tags": []})
        assert error["code"] == "invalid_argument" and error["field"] == "tags"
        assert raw.result("cache.clear", {"tags": None, "dry_run": True})["cleared"] == 2
    url = f"{daemon.http_url}/performance/cache/clear"
    for text in ("", ",", " , "):
        answer = httpx.post(url, params={"tags": text}, trust_env=False)
        assert answer.status_code == 400 and answer.json()["field"] == "tags"
    command = [sys.executable, "-m", "bi_performance_ctl.main", "--socket", str(daemon.socket)]
    for words in (["clear-cache"], ["cache", "set", "k", "v"]):
        told = subprocess.run([*command, *words, "--tags", ""], capture_output=True, text=True)
        assert told.returncode == 2 and "--tags must name at least one" in told.stderr
    assert cache.get("one") == 1 and cache.get("two") == 2
    assert cache.clear(tags=None) == 2
