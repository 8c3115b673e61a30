"""The scraper's side against a real daemon: asyncio, trio, threads, forks, and outages."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from bi_performance.entries import CacheEntry
from bi_performance.link import Link
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.reader import StoreReader
from support.daemon import DaemonProcess, wait_until
from support.patient import be_patient, hit


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path) as running:
        yield running


@pytest.fixture
def optimizer(daemon: DaemonProcess) -> Iterator[PerformanceOptimizer]:
    made = PerformanceOptimizer(str(daemon.socket))
    yield made
    made.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a count)


async def _use_everything(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.cache
    assert await cache.get("key") is None
    assert await cache.get("key", "default") == "default"
    assert await cache.set("key", {"a": (1, 2)}, ttl=3600)
    assert await cache.get("key") == {"a": (1, 2)}
    assert await cache.get(b"key") == {"a": (1, 2)}
    entry = await cache.get_entry("key")
    assert entry.found and entry.level == "local" and not entry.stale
    assert entry.ttl is not None and 3590 < entry.ttl <= 3600
    assert entry.age is not None and 0 <= entry.age < 60
    assert await cache.get_entry("other") == CacheEntry(False)
    many = {f"many-{n}": n for n in range(2500)}
    assert await cache.set_many(many, ttl=60) == 2500
    assert await cache.get_many([*many, "absent"]) == many
    assert await cache.delete("many-0")
    assert await cache.get("many-0") is None
    assert len(await cache.keys("many-1?") or ()) == 10
    assert await cache.clear("many") == 2499
    assert await cache.seen("page", ttl=60) is False
    assert await cache.seen("page", ttl=60) is True
    stats = await cache.stats()
    assert stats is not None and stats["hits"] >= 2500
    assert await cache.set("none", None)
    assert await cache.get("none", "default") is None
    assert await cache.clear() == 3


def test_the_whole_api_works_under_asyncio(optimizer: PerformanceOptimizer) -> None:
    asyncio.run(_use_everything(optimizer))


def test_the_whole_api_works_under_trio(optimizer: PerformanceOptimizer) -> None:
    trio.run(_use_everything, optimizer)


def test_the_whole_api_works_without_a_loop(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    assert cache.get("key", 1) == 1
    assert cache.set("key", [1, 2], ttl=5)
    assert cache.get("key") == [1, 2]
    assert cache.get_entry("key").found
    assert cache.set_many([("a", 1), (b"b", 2)]) == 2
    assert cache.get_many(["a", "b", "c"]) == {"a": 1, "b": 2}
    assert sorted(cache.keys() or ()) == ["a", "b", "key"]
    assert cache.delete("a") and cache.get("a") is None
    assert cache.seen("x") is False and cache.seen("x") is True
    assert cache.clear("key") == 1
    stats = cache.stats()
    assert stats is not None and stats["entries"] == 2


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda cache: cache.get(""), ValueError, "1 to 8192 bytes"),
        (lambda cache: cache.get("k" * 8193), ValueError, "8193"),
        (lambda cache: cache.get(5), TypeError, "int"),
        (lambda cache: cache.set("k", object()), TypeError, "value: object cannot"),
        (lambda cache: cache.set("k", 1, ttl=0), ValueError, "ttl"),
        (lambda cache: cache.set("k", 1, ttl=-1), ValueError, "ttl"),
        (lambda cache: cache.set("k", 1, ttl=float("nan")), ValueError, "ttl"),
        (lambda cache: cache.set("k", 1, ttl=float("inf")), ValueError, "ttl"),
        (lambda cache: cache.set("k", 1, ttl="5"), TypeError, "ttl"),
        (lambda cache: cache.set_many({"a": 1, "": 2}), ValueError, "key"),
        (lambda cache: cache.get("\ud800"), ValueError, "surrogates"),
        (lambda cache: cache.clear("[a"), ValueError, "pattern"),
        (lambda cache: cache.keys("*" * 40), ValueError, "stars"),
        (lambda cache: cache.keys(limit=0), ValueError, "limit"),
        (lambda cache: cache.keys(limit=10**30), ValueError, "limit"),
        (lambda cache: cache.keys(limit="5"), TypeError, "limit"),
        (lambda cache: cache.set("k", 1, ttl=10**400), ValueError, "ttl"),
    ],
)
def test_the_caller_s_own_mistakes_are_type_and_value_errors(
    optimizer: PerformanceOptimizer,
    call: Callable[[Any], Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        call(optimizer.sync.cache)
    with pytest.raises(error, match=words):
        asyncio.run(call(optimizer.cache))
    assert optimizer.sync.cache.get("a") is None, "nothing was stored"


def test_a_value_over_the_limit_is_refused_without_an_exception(
    optimizer: PerformanceOptimizer, caplog: pytest.LogCaptureFixture
) -> None:
    assert optimizer.sync.cache.set("small", 1)
    assert optimizer.sync.cache.set("huge", os.urandom(20 << 20)) is False
    assert optimizer.sync.cache.get("small") == 1
    assert "refused a request (too_large" in caplog.text
    assert optimizer.sync.cache.set("larger", os.urandom(40 << 20)) is False
    assert optimizer.sync.cache.set("small", 2), "the link is not taken for broken"
    assert "away" not in caplog.text


def test_threads_share_one_link(optimizer: PerformanceOptimizer) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        cache = optimizer.sync.cache
        for n in range(200):
            key = f"thread-{number}-{n}"
            cache.set(key, key)
            if cache.get(key) != key:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    stats = optimizer.sync.cache.stats()
    assert stats is not None and stats["clients"] == 1


def test_a_process_without_a_daemon_misses_and_never_raises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = PerformanceOptimizer(str(tmp_path / "nobody.sock"))

    async def use() -> None:
        cache = optimizer.cache
        for _ in range(100):
            assert await cache.get("key", "default") == "default"
            assert await cache.set("key", 1) is False
            assert await cache.set_many({"a": 1}) == 0
            assert await cache.delete("key") is False
            assert await cache.clear() is None
            assert await cache.stats() is None
            assert await cache.seen("x") is False

    asyncio.run(use())
    trio.run(use)
    warnings = [each for each in caplog.records if each.name == "performance"]
    assert len(warnings) == 1, "one warning, not one a call"
    assert "away" in warnings[0].getMessage()
    assert optimizer.cache.unavailable > 400


@pytest.mark.parametrize("path", ["relative.sock", "/tmp", "/no\0where", "x" * 300])
def test_a_socket_that_cannot_be_is_said_and_never_raised(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = PerformanceOptimizer(path)
    assert optimizer.sync.cache.get("key", "default") == "default"
    assert optimizer.sync.cache.set("key", 1) is False
    assert "Errno" not in caplog.text and "no control socket" in caplog.text


def test_a_killed_daemon_costs_misses_and_is_returned_to(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer
) -> None:
    cache = optimizer.sync.cache
    assert cache.set("kept", "value")
    assert cache.get("kept") == "value"
    daemon.kill9()
    wait_until(lambda: cache.get("kept") is None, what="a miss after the deadline")
    assert cache.set("new", 1) is False
    daemon.start()
    wait_until(lambda: cache.get("kept") == "value", what="the kept entry")
    wait_until(lambda: cache.set("new", 1), what="a write")


def test_a_restart_ends_the_longest_pause(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the pause brings a process back, but the new socket."""
    monkeypatch.setattr("bi_performance.link.FIRST_PAUSE", 3600.0)
    monkeypatch.setattr("bi_performance.link.LONGEST_PAUSE", 3600.0)
    cache = optimizer.sync.cache
    assert cache.set("kept", "value")
    assert cache.get("kept") == "value"
    daemon.kill9()
    wait_until(lambda: cache.get("kept") is None, what="a miss after the deadline")
    assert cache.set("new", 1) is False
    daemon.start()
    wait_until(lambda: cache.get("kept") == "value", within=10, what="the kept entry")


def test_a_stopped_daemon_s_entries_are_misses_after_its_deadline(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer
) -> None:
    cache = optimizer.sync.cache
    assert cache.set("key", "value")
    assert cache.get("key") == "value"
    daemon.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: cache.get("key") is None, what="a miss after the deadline")
        for _ in range(1000):
            assert cache.get("key") is None
        assert cache.set("key", "other") is False
    finally:
        daemon.signal(signal.SIGCONT)
    wait_until(lambda: cache.get("key") is not None, what="the entry")


def test_a_daemon_restarted_under_load_raises_nowhere(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer
) -> None:
    ended = threading.Event()
    errors: list[BaseException] = []
    counts = [0, 0]

    def work() -> None:
        async def run() -> None:
            n = 0
            while not ended.is_set():
                n += 1
                stored = await optimizer.cache.set(f"k{n % 50}", n)
                counts[0] += stored
                counts[1] += await optimizer.cache.get(f"k{n % 50}") is not None

        try:
            asyncio.run(run())
        except BaseException as error:
            errors.append(error)

    def have_moved_on(before: tuple[int, ...]) -> bool:
        return all(now > then + 20 for now, then in zip(counts, before, strict=True))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            wait_until(partial(have_moved_on, tuple(counts)))
            daemon.restart()
        wait_until(partial(have_moved_on, tuple(counts)))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not errors


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_cancelled_request_s_connection_is_not_used_again(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer, library: str
) -> None:
    """Each request is cancelled while it waits; no later one gets its answer."""
    assert optimizer.sync.cache.set("key", "value")

    async def cancelled() -> None:
        if library == "asyncio":
            for _ in range(30):
                task = asyncio.create_task(optimizer.cache.keys("never"))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        else:
            for _ in range(30):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await optimizer.cache.keys("never")
                assert scope.cancelled_caught
        assert await optimizer.cache.keys("key") == ["key"]
        assert (await optimizer.cache.stats() or {})["entries"] == 1

    before = open_files()
    asyncio.run(cancelled()) if library == "asyncio" else trio.run(cancelled)
    assert open_files() <= before + 1


def _in_child(optimizer: PerformanceOptimizer, number: int, out: Any) -> None:
    cache = optimizer.sync.cache
    key = f"child-{number}"
    stored = cache.set(key, key)
    inherited = isinstance(optimizer._link.reader, StoreReader) and os.getpid() == 0
    out.put((stored, hit(cache, key) == key, hit(cache, "parent") == "value", inherited))


def _fork_many(optimizer: PerformanceOptimizer, count: int) -> None:
    context = multiprocessing.get_context("fork")
    assert optimizer.sync.cache.set("parent", "value")
    assert hit(optimizer.sync.cache, "parent") == "value"
    before = open_files()
    for start in range(0, count, 10):
        out = context.SimpleQueue()
        children = [
            context.Process(target=_in_child, args=(optimizer, n, out))
            for n in range(start, min(start + 10, count))
        ]
        for child in children:
            child.start()
        for _ in children:
            assert out.get() == (True, True, True, False)
            assert hit(optimizer.sync.cache, "parent") == "value"
            assert optimizer.sync.cache.set("parent", "value")
        for child in children:
            child.join()
            assert child.exitcode == 0
            child.close()
        out.close()
    assert open_files() <= before

    def those_left() -> dict[str, Any] | None:
        stats = optimizer.sync.cache.stats()
        return stats if stats is not None and stats["clients"] == 1 else None

    stats = wait_until(those_left, what="one client left")
    assert stats["hits"] >= count * 2, "the children's hits are counted"


def test_forked_children_attach_anew_and_share_nothing(
    optimizer: PerformanceOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch)
    _fork_many(optimizer, 60)


@pytest.mark.long
def test_a_thousand_forked_children_attach_anew(
    optimizer: PerformanceOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch)
    _fork_many(optimizer, 1000)


def _by_forkserver(path: str, out: Any) -> None:
    cache = PerformanceOptimizer(path).sync.cache
    out.put((cache.get("parent"), cache.set("child", 1)))


def test_a_forkserver_s_children_attach(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer
) -> None:
    assert optimizer.sync.cache.set("parent", "value")
    context = multiprocessing.get_context("forkserver")
    out = context.SimpleQueue()
    child = context.Process(target=_by_forkserver, args=(str(daemon.socket), out))
    child.start()
    assert out.get() == ("value", True)
    child.join()
    assert child.exitcode == 0


async def _hit(optimizer: PerformanceOptimizer) -> None:
    for _ in range(20_000):
        assert await optimizer.cache.get("key") == "value"


async def _miss_without_a_daemon(optimizer: PerformanceOptimizer) -> None:
    away = PerformanceOptimizer("/nowhere/control.sock")
    for _ in range(20_000):
        assert await away.cache.get("key") is None


async def _write_without_a_daemon(optimizer: PerformanceOptimizer) -> None:
    away = PerformanceOptimizer("/nowhere/control.sock")
    for _ in range(2_000):
        assert not await away.cache.set("key", 1)


@pytest.mark.parametrize("work", [_hit, _miss_without_a_daemon, _write_without_a_daemon])
def test_calls_that_do_not_wait_let_the_loop_run(
    optimizer: PerformanceOptimizer, work: Callable[[PerformanceOptimizer], Awaitable[None]]
) -> None:
    optimizer.sync.cache.set("key", "value")

    async def use() -> int:
        turns = 0
        ended = False

        async def other() -> None:
            nonlocal turns
            while not ended:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await work(optimizer)
        ended = True
        await task
        return turns

    assert asyncio.run(use()) > 5


def test_observe_serves_nothing_and_reports_what_it_would_have(daemon: DaemonProcess) -> None:
    observing = PerformanceOptimizer(str(daemon.socket), mode="observe")
    cache = observing.sync.cache
    assert cache.get("key") is None
    assert cache.set("key", "value")
    for _ in range(5):
        assert cache.get("key") is None
    assert cache.observed() == {"hits": 0, "misses": 6, "would_have_hit": 5}
    stats = cache.stats()
    assert stats is not None and stats["levels"]["local"]["observed_hits"] == 5
    observing.close()


def test_observe_skips_no_work_that_was_seen(daemon: DaemonProcess) -> None:
    observing = PerformanceOptimizer(str(daemon.socket), mode="observe")
    for _ in range(3):
        assert observing.sync.cache.seen("page") is False
    assert asyncio.run(observing.cache.seen("page")) is False
    assert observing.sync.cache.observed() == {"hits": 0, "misses": 4, "would_have_hit": 3}
    observing.close()
    other = PerformanceOptimizer(str(daemon.socket), mode="on")
    assert other.sync.cache.seen("page") is True
    other.close()


def test_off_is_a_local_no_op(daemon: DaemonProcess, caplog: pytest.LogCaptureFixture) -> None:
    off = PerformanceOptimizer(str(daemon.socket), mode="off")
    before = open_files()
    assert off.sync.cache.set("key", 1) is False
    assert off.sync.cache.get("key", "default") == "default"
    assert off.sync.cache.seen("key") is False
    assert open_files() == before, "no connection was made"
    assert not caplog.records


def test_the_daemon_s_mode_holds_for_clients_that_say_nothing(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, env={"BI_PERFORMANCE_MODE": "observe"}) as daemon:
        optimizer = PerformanceOptimizer(str(daemon.socket))
        assert optimizer.sync.cache.set("key", 1)
        assert optimizer.sync.cache.get("key") is None
        assert optimizer.mode == "observe"


def test_one_of_many_callers_at_once_has_not_seen_a_fingerprint(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An answer that takes too long is told as "not seen", as it has to be.
    be_patient(monkeypatch)
    links = [PerformanceOptimizer(str(daemon.socket)) for _ in range(6)]
    first: list[int] = []

    def work(optimizer: PerformanceOptimizer) -> None:
        for n in range(100):
            if not optimizer.sync.cache.seen(f"page-{n}", ttl=60):
                first.append(n)

    threads = [threading.Thread(target=work, args=(each,)) for each in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(first) == list(range(100))
    for each in links:
        each.close()


def test_a_garbled_daemon_is_contained(tmp_path: Path) -> None:
    """Whatever answers on the socket, a scraper sees misses."""
    import socket as sockets

    path = str(tmp_path / "false.sock")
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(50)
        answers = [
            b"",
            b"\xc1",
            b"HTTP/1.1 400\r\n\r\n",
            b"\x94\x01\x63\xc0\xc0",
            b"\xdd\xff\xff\xff\xff",
            b"\x94\x01\x01\xc0\x80",
            b"\x94\x01\x01\xa1x\xc0",
        ]

        def answer() -> None:
            for n in range(200):
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.sendall(answers[n % len(answers)])

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        logging.getLogger("performance").setLevel(logging.CRITICAL)
        try:
            for _ in range(30):
                link = PerformanceOptimizer(path)
                assert link.sync.cache.get("key") is None
                assert link.sync.cache.set("key", 1) is False
                link.close()
        finally:
            logging.getLogger("performance").setLevel(logging.NOTSET)
        listener.shutdown(sockets.SHUT_RDWR)
        thread.join()


def test_a_link_that_was_closed_attaches_again(optimizer: PerformanceOptimizer) -> None:
    assert optimizer.sync.cache.set("key", 1)
    optimizer.close()
    assert optimizer.sync.cache.get("key") == 1


def test_a_mode_that_is_none_is_said_and_taken_as_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BI_PERFORMANCE_MODE", "perhaps")
    assert Link("/nowhere").mode == "on"
    assert "on, observe or off" in caplog.text
