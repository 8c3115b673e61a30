"""The scraper's side in trouble that no healthy daemon makes: odd answers, stalls, re-entrance."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest

from bi_performance.optimizer import PerformanceOptimizer
from support.daemon import DaemonProcess, wait_until


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path) as running:
        yield running


@pytest.fixture
def optimizer(daemon: DaemonProcess) -> Iterator[PerformanceOptimizer]:
    made = PerformanceOptimizer(str(daemon.socket))
    yield made
    made.close()


class Listener:
    """A control socket on which a function answers each request, connection by connection."""

    def __init__(self, path: Path, answer: Callable[[int], bytes]) -> None:
        self.path = str(path)
        self.accepted = 0
        self._answer = answer
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.path)
        self._listening.listen(50)
        self._thread = threading.Thread(target=self._accept)
        self._peers: list[tuple[socket.socket, threading.Thread]] = []

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(peer,))
            self._peers.append((peer, thread))
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        unpacker = msgpack.Unpacker(strict_map_key=False)
        served = 0
        with suppress(OSError):
            while data := peer.recv(1 << 16):
                unpacker.feed(data)
                for message in unpacker:
                    # A connection that only looks whether somebody is there asks nothing.
                    self.accepted += not served
                    served += 1
                    peer.sendall(self._answer(message[1]))

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for peer, thread in self._peers:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            thread.join()
            peer.close()


def test_an_answer_over_the_client_s_limits_ends_its_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left of such an answer must not be read as that to the next request."""
    # An array of two million objects; behind it what would pass for the next answer.
    endless = b"\xdd\x00\x20\x00\x01" + msgpack.packb([1, 2, None, {"stored": 1}])
    with Listener(
        tmp_path / "socket", lambda serial: b"\x94\x01" + msgpack.packb(serial) + b"\xc0" + endless
    ) as daemon:
        optimizer = PerformanceOptimizer(daemon.path)
        assert optimizer.sync.cache.delete("first") is False
        assert "the client's limit" in caplog.text
        assert "raise socket." not in caplog.text, "no setting of the daemon's would help"
        assert optimizer.sync.cache.delete("second") is False
        assert daemon.accepted == 2, "each request had a connection of its own"
        optimizer.close()


def test_bytes_behind_an_answer_end_its_connection(tmp_path: Path) -> None:
    def answer(serial: int) -> bytes:
        return b"".join(
            msgpack.packb([1, number, None, {"deleted": number == serial, "text": "x" * 20_000}])
            for number in (serial, serial + 1)
        )

    with Listener(tmp_path / "socket", answer) as daemon:
        optimizer = PerformanceOptimizer(daemon.path)
        assert optimizer.sync.cache.delete("first")
        assert optimizer.sync.cache.delete("second")
        assert daemon.accepted == 2
        optimizer.close()


CALLS: dict[str, tuple[Callable[[Any], Any], object]] = {
    "set": (lambda cache: cache.set("k", 1), False),
    "set_many": (lambda cache: cache.set_many({"k": 1}), 0),
    "delete": (lambda cache: cache.delete("k"), False),
    "clear": (lambda cache: cache.clear(), None),
    "keys": (lambda cache: cache.keys(), None),
    "seen": (lambda cache: cache.seen("k"), False),
    "stats": (lambda cache: cache.stats(), None),
}


@pytest.mark.parametrize(
    "odd",
    [True, [1], "x", 5, {"stored": "x", "cleared": [], "keys": 1, "deleted": 0}],
    ids=repr,
)
def test_an_answer_of_another_version_is_as_none(
    optimizer: PerformanceOptimizer, caplog: pytest.LogCaptureFixture, odd: object
) -> None:
    def answer(method: str, args: object, **more: object) -> Generator[None, None, object]:
        return odd
        yield

    assert optimizer.sync.cache.set("other", 1), "attached"
    optimizer._link.request = answer  # type: ignore[assignment, method-assign]  # a peer
    # Any map is statistics.
    calls = [CALLS[name] for name in CALLS if name != "stats" or not isinstance(odd, dict)]
    for call, nothing in calls:
        assert call(optimizer.sync.cache) == nothing
        assert asyncio.run(call(optimizer.cache)) == nothing
    assert optimizer.cache.unavailable == 2 * len(calls)
    if not isinstance(odd, dict):
        assert optimizer.sync.run_performance_analysis()["status"] == "unavailable"
        assert optimizer.sync.apply_optimizations("balanced")["status"] == "unavailable"
    assert caplog.text.count("a form that this version does not know: ") == 1


def test_keys_that_an_answer_has_no_room_for_are_told_of(
    optimizer: PerformanceOptimizer, caplog: pytest.LogCaptureFixture
) -> None:
    cache = optimizer.sync.cache
    assert cache.set_many({f"{n:08000}": 1 for n in range(600)}) == 600
    few = cache.keys(limit=10)
    assert few is not None and len(few) == 10 and not caplog.text, "as many as were asked for"
    found = cache.keys(limit=1000)
    assert found is not None and 500 < len(found) < 600
    assert asyncio.run(optimizer.cache.keys(limit=1000)) is not None
    assert caplog.text.count("has room for") == 1


def test_one_value_too_large_costs_the_batch_that_value_alone(
    optimizer: PerformanceOptimizer, caplog: pytest.LogCaptureFixture
) -> None:
    items = {f"key-{n}": n for n in range(2500)}
    largest = 40 << 20
    for place, size in ((0, 20 << 20), (1700, 20 << 20), (2499, 20 << 20), (1000, largest)):
        values: list[tuple[str, object]] = list(items.items())
        values.insert(place, ("large", os.urandom(size)))
        assert optimizer.sync.cache.set_many(values) == 2500
        assert optimizer.sync.cache.get_many([*items, "large"]) == items
        assert optimizer.sync.cache.clear() == 2500
    assert asyncio.run(optimizer.cache.set_many(values)) == 2500
    assert "too_large" in caplog.text
    assert "away" not in caplog.text


def test_a_value_over_the_limit_is_not_sent(optimizer: PerformanceOptimizer) -> None:
    cache = optimizer.sync.cache
    assert cache.get("absent") is None, "attached, and told the limit"
    stats = cache.stats()
    assert stats is not None
    sent: list[int] = []

    def trace(method: str, args: object, **more: object) -> None:
        sent.append(1)

    link = optimizer._link
    asking, link.request = link.request, trace  # type: ignore[assignment, method-assign]  # a spy
    assert cache.set("large", os.urandom(20 << 20)) is False
    link.request = asking  # type: ignore[method-assign]  # as it was
    assert not sent


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda cache: cache.set("k", 1, ttl=315_360_001), ValueError, "at most 315360000"),
        (lambda cache: cache.seen("k", ttl=1e12), ValueError, "at most 315360000"),
        (lambda cache: cache.clear("x" * 70_000_000), ValueError, "pattern.*1024"),
        (lambda cache: cache.clear(""), ValueError, "pattern"),
        (lambda cache: cache.clear(b"x"), TypeError, "pattern"),
        (lambda cache: cache.clear("\udc80"), ValueError, "pattern.*surrogates"),
        (lambda cache: cache.keys("\udc80"), ValueError, "pattern.*surrogates"),
        (lambda cache: cache.seen("\ud800"), ValueError, "fingerprint.*surrogates"),
        (lambda cache: cache.seen(""), ValueError, "fingerprint has 1 to 8187 bytes, this one 0"),
        (lambda cache: cache.seen(5), TypeError, "fingerprint is str or bytes"),
        (lambda cache: cache.seen("x" * 8190), ValueError, "1 to 8187 bytes, this one 8190"),
        (lambda cache: cache.keys("x" * 2000), ValueError, "pattern.*1024"),
        (lambda cache: cache.get_many("abc"), TypeError, "keys"),
        (lambda cache: cache.get_many(b"abc"), TypeError, "keys"),
        (lambda cache: cache.set_many({"good": 1, "bad": object()}), TypeError, "'bad'"),
        (lambda cache: cache.set_many([("good", 1), ("alone",)]), TypeError, r"items\[1\]"),
        (lambda cache: cache.set_many([("good", 1), 5]), TypeError, r"items\[1\]"),
        (lambda cache: cache.set_many({"good": 1, "\ud800": 2}), ValueError, "key.*surrogates"),
        (lambda cache: cache.set("\ud800", 2), ValueError, "key.*surrogates"),
        (lambda cache: cache.get("\ud800"), ValueError, "key.*surrogates"),
    ],
)
def test_a_mistake_is_named(
    optimizer: PerformanceOptimizer,
    call: Callable[[object], object],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        call(optimizer.sync.cache)
    with pytest.raises(error, match=words):
        asyncio.run(call(optimizer.cache))  # type: ignore[arg-type]  # a coroutine here
    assert optimizer.sync.cache.get("good") is None, "nothing was stored"


def test_an_outage_that_many_threads_meet_at_once_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them times out; the pause is that of one failure, not doubled by each."""
    monkeypatch.setattr("bi_performance.client.TIMEOUT", 0.3)
    monkeypatch.setattr("bi_performance.link.FIRST_PAUSE", 1e-9)
    monkeypatch.setattr("bi_performance.link.LONGEST_PAUSE", 3600.0)
    with Listener(tmp_path / "socket", lambda serial: b"") as daemon:
        optimizer = PerformanceOptimizer(daemon.path)
        begin = threading.Barrier(8)

        def write() -> None:
            begin.wait()
            assert optimizer.sync.cache.set("key", 1) is False

        threads = [threading.Thread(target=write) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert daemon.accepted == 8, "all had asked before the first gave up"
        assert optimizer._link._pause == 2e-9
        optimizer.close()


def test_writes_return_with_the_reads_after_a_stop(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process must not go on reading what it failed to replace, when it could replace it."""
    monkeypatch.setattr("bi_performance.link.FIRST_PAUSE", 3600.0)
    monkeypatch.setattr("bi_performance.link.LONGEST_PAUSE", 3600.0)
    cache = optimizer.sync.cache
    assert cache.set("key", "old")
    assert cache.get("key") == "old"
    daemon.signal(signal.SIGSTOP)
    try:
        assert cache.set("key", "lost", ttl=0.001) is False
        wait_until(lambda: cache.get("key") is None, what="a miss after the deadline")
        assert cache.delete("key") is False
    finally:
        daemon.signal(signal.SIGCONT)
    cache_of_another = PerformanceOptimizer(str(daemon.socket)).sync.cache
    wait_until(lambda: cache_of_another.set("other", 1), what="the daemon")
    wait_until(lambda: cache.get("other") == 1, what="a read")
    assert cache.set("key", "new") is True
    assert cache.get("key") == "new"


@pytest.mark.parametrize(
    "off", ['[performance]\nmode = "off"\n', "[performance.cache]\nenabled = false\n"]
)
@pytest.mark.parametrize("first", ["get", "set", "delete"])
def test_off_that_the_daemon_said_ends_with_that_daemon(
    tmp_path: Path, off: str, first: str
) -> None:
    """A scraper that was started while the cache was off must not need a restart of its own."""
    file = tmp_path / "performance.toml"
    file.write_text(off)
    daemon = DaemonProcess(tmp_path, "--config", str(file))
    optimizer = PerformanceOptimizer(str(daemon.socket))
    cache = optimizer.sync.cache
    with daemon:
        assert cache.get("key") is None
        assert optimizer.mode == "off"
        assert cache.set("key", 1) is False
        daemon.kill9()
        assert cache.set("key", 1) is False
        file.write_text("")
        daemon.start()
        use = {
            "get": lambda: cache.get("key") is None and optimizer.mode == "on",
            "set": lambda: cache.set("key", 1),
            "delete": lambda: cache.delete("key"),
        }
        wait_until(use[first], what="the end of the old answer")
        assert optimizer.mode == "on"
        assert cache.set("key", 2)
        assert cache.get("key") == 2
    optimizer.close()


def test_off_that_the_caller_said_stays(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attach(*_: object) -> None:
        raise AssertionError("asked the daemon")

    monkeypatch.setattr("bi_performance.link.Connection", attach)
    optimizer = PerformanceOptimizer(str(daemon.socket), mode="off")
    for _ in range(3):
        assert optimizer.sync.cache.get("key") is None
        assert optimizer.sync.cache.set("key", 1) is False
    assert optimizer.mode == "off"


def test_a_call_that_the_daemon_did_not_answer_is_counted_once(
    daemon: DaemonProcess, optimizer: PerformanceOptimizer
) -> None:
    cache = optimizer.sync.cache
    assert cache.set("key", 1) and cache.get("key") == 1
    daemon.kill9()
    wait_until(lambda: cache.get("key") is None, what="the end of the deadline")
    for call in (lambda: cache.get("key"), lambda: cache.set("key", 1), cache.stats):
        before = cache.unavailable
        assert not call()
        assert cache.unavailable == before + 1


REENTERED = """
import logging, signal, sys
from bi_performance.optimizer import PerformanceOptimizer
optimizer = PerformanceOptimizer(sys.argv[1])
found = []
def handler(*_):
    found.append(optimizer.sync.cache.get("key", "default"))
signal.signal(signal.SIGALRM, handler)
for delay in (0.001, 0.01, 0.02, 0.05, 0.1):
    optimizer = PerformanceOptimizer(sys.argv[1])
    signal.setitimer(signal.ITIMER_REAL, delay)
    while signal.getitimer(signal.ITIMER_REAL)[0]:
        optimizer.sync.cache.get("key")
assert len(found) == 5
assert set(found) == {"default"}, found
print("returned")
"""


def test_a_signal_handler_may_read_while_its_process_attaches(tmp_path: Path) -> None:
    """The listener never answers, so that most of the time is spent in attaching."""
    with Listener(tmp_path / "socket", lambda serial: b"") as daemon:
        done = subprocess.run(
            [sys.executable, "-c", REENTERED, daemon.path],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.stdout == "returned\n", done.stderr


class ReadingHandler(logging.Handler):
    """Asks the cache whenever something is logged, as one that tags its lines might."""

    def __init__(self, optimizer: PerformanceOptimizer) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        other = threading.Thread(target=self.optimizer.sync.cache.get, args=("key",))
        other.start()
        other.join()


def test_a_log_handler_may_wait_for_a_thread_that_reads(tmp_path: Path) -> None:
    optimizer = PerformanceOptimizer(str(tmp_path / "nobody"))
    handler = ReadingHandler(optimizer)
    logger = logging.getLogger("performance")
    logger.addHandler(handler)
    reading = threading.Thread(target=optimizer.sync.cache.get, args=("key",), daemon=True)
    try:
        reading.start()
        reading.join(30)
        assert not reading.is_alive()
    finally:
        logger.removeHandler(handler)
    assert len(handler.lines) == 1
