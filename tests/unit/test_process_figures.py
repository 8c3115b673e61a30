"""Figures of one process: the kernel's, never another's, and what it tells of itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bi_performance import own as own_figures
from bi_performance.own import OwnFigures
from bi_performance_wire import layout as L
from bi_performanced.cache.clients import Attachment, OwnWords, boot_clock
from bi_performanced.cache.component import Cache
from bi_performanced.config import CacheSettings
from bi_performanced.host.processes import PAGE
from bi_performanced.host.procfs import TICK
from bi_performanced.host.text import reading as reading_of
from bi_performanced.monitor.figures import OWN_PAGE, PROCESS
from bi_performanced.monitor.process import STALE, STALE_PSS, ProcessReader
from support.kernel import FakeKernel

SECOND = 10**9


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path / "root")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache.open(
        CacheSettings(max_bytes=4 << 20), runtime_dir=tmp_path, state_dir=tmp_path, mode="on"
    )
    yield made
    made.close()


def attach(cache: Cache) -> Attachment:
    found = cache.attach(uid=12, instance=b"i" * 16, pid=9, peer_pid=0, name="scraper")
    found.close_fds()
    return found


def reading(reader: ProcessReader, own: OwnWords | None = None, now: int = 0) -> Any:
    return reader.read(shares=True, own=own, now=now)


def test_another_process_that_got_the_pid_is_not_taken_for_it(kernel: FakeKernel) -> None:
    kernel.process(5, started=1000)
    reader = ProcessReader(5, kernel.root)
    assert reading(reader).sample["rss_bytes"]
    kernel.process(5, started=1001)
    found = reading(reader, OwnWords(at=5, rss_bytes=7), now=6)
    assert set(found.reasons.values()) == {"the process has ended, and another has its pid"}
    assert set(found.sample.values()) == {None}, "nor is what the first told of itself used"


def test_a_process_that_began_after_the_attachment_is_another(kernel: FakeKernel) -> None:
    hertz = TICK
    kernel.process(5, started=20 * hertz)
    late = ProcessReader(5, kernel.root, before=10 * SECOND)
    assert set(reading(late).reasons.values()) == {"the process has ended, and another has its pid"}
    assert reading(ProcessReader(5, kernel.root, before=20 * SECOND)).sample["threads"] == 3


def test_a_process_that_ends_between_two_looks_is_null_with_the_reason(
    kernel: FakeKernel,
) -> None:
    kernel.process(5)
    reader = ProcessReader(5, kernel.root)
    reading(reader)
    for path in sorted((kernel.root / "proc/5").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (kernel.root / "proc/5").rmdir()
    found = reading(reader)
    assert set(found.sample.values()) == {None}
    assert "/proc/5/stat: No such file or directory" in found.reasons["rss_bytes"]


def test_a_process_that_ends_while_it_is_read_is_null_from_there_on(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.process(5)

    def gone(*_: object) -> int:
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr("bi_performanced.host.processes.Folder._line", lambda *_: _unwrap(gone))
    found = reading(ProcessReader(5, kernel.root))
    assert found.sample["rss_bytes"] == 100 * PAGE
    assert found.sample["pss_bytes"] is found.sample["swap_bytes"] is None
    assert "has ended" in found.reasons["pss_bytes"]


def _unwrap(what: Callable[..., int]) -> int:
    with reading_of(Path("/proc/5/status")):
        return what()


def test_a_brief_look_keeps_what_costs_more_from_the_last_one(kernel: FakeKernel) -> None:
    kernel.process(5, ticks=100)
    now = 10.0
    reader = ProcessReader(5, kernel.root, lambda: now)
    reader.read(shares=False, brief=True)
    kernel.process(5, ticks=200, io="read_bytes: 8192\nwrite_bytes: 8192\n")
    now += 2
    found = reader.read(shares=False, brief=True)
    assert found.sample["cpu_percent"] == pytest.approx(100 * 100 / TICK / 2)
    assert found.sample["read_bytes"] == 4096
    assert found.reasons["read_bytes_per_second"] == "needs two samples"
    found = reader.read(shares=False)
    assert found.sample["read_bytes_per_second"] == 2048


# ── what a process tells of itself


def told(**more: Any) -> OwnWords:
    given: dict[str, Any] = {
        "at": 100 * SECOND,
        "cpu_ns": 2 * SECOND,
        "rss_bytes": 4096,
        "threads": 2,
        "open_files": 0,
        "read_bytes": 10,
        "write_bytes": 0,
        "swap_bytes": 0,
        "pss_at": 95 * SECOND,
        "pss_bytes": 2048,
    }
    return OwnWords(**(given | more))


def test_what_cannot_be_seen_is_taken_from_its_page(kernel: FakeKernel) -> None:
    reader = ProcessReader(0, kernel.root)
    first = reading(reader, told(), 101 * SECOND)
    assert first.sample["cpu_seconds"] == 2.0 and first.sample["rss_bytes"] == 4096
    assert first.sample["swap_bytes"] == 0 and first.sample["pss_bytes"] == 2048
    assert first.sample["cpu_percent"] is None
    assert first.reasons["cpu_percent"] == (
        "the process is in another PID namespace; the process's own page: needs two samples"
    )
    later = told(at=110 * SECOND, cpu_ns=3 * SECOND, read_bytes=1010)
    for _ in range(3):
        found = reading(reader, later, 111 * SECOND)
        assert found.reasons == {}
        assert found.sample["cpu_percent"] == pytest.approx(10.0)
        assert found.sample["read_bytes_per_second"] == pytest.approx(100.0)
        assert set(found.sources.values()) == {OWN_PAGE}
        assert set(found.sources) == {figure.name for figure in PROCESS}


def test_what_can_be_seen_is_not_taken_from_its_page(kernel: FakeKernel) -> None:
    kernel.process(5)
    for name in ("io", "smaps_rollup"):
        (kernel.root / "proc/5" / name).unlink()
    found = reading(ProcessReader(5, kernel.root), told(), 101 * SECOND)
    assert found.sample["rss_bytes"] == 100 * PAGE and found.sample["threads"] == 3
    assert found.sources == dict.fromkeys(("pss_bytes", "read_bytes", "write_bytes"), OWN_PAGE)
    assert found.reasons["cpu_percent"] == "needs two samples"


@pytest.mark.parametrize(
    ("words", "now", "name", "reason"),
    [
        (OwnWords(), 101, "rss_bytes", "tells nothing yet"),
        (told(threads=None), 101, "threads", "does not tell it"),
        (told(at=102 * SECOND), 101, "rss_bytes", "of the future"),
        (told(), 100 + int(STALE) + 1, "rss_bytes", "was written 181 s ago"),
        (told(), 95 + int(STALE_PSS) + 1, "pss_bytes", "was written 601 s ago"),
        (told(pss_at=0), 101, "pss_bytes", "tells nothing yet"),
        (told(rss_bytes=(1 << 64) - 2), 101, "rss_bytes", "cannot be"),
        (told(pss_bytes=1 << 60), 101, "pss_bytes", "cannot be"),
        (told(cpu_ns=(1 << 64) - 2, threads=1 << 40), 101, "threads", "cannot be"),
    ],
)
def test_a_page_is_not_believed_beyond_what_can_be(
    kernel: FakeKernel, words: OwnWords, now: int, name: str, reason: str
) -> None:
    found = reading(ProcessReader(0, kernel.root), words, now * SECOND)
    assert found.sample[name] is None
    assert reason in found.reasons[name] and name not in found.sources


@pytest.mark.parametrize(
    ("later", "name", "reason"),
    [
        (told(at=101 * SECOND, cpu_ns=1 << 62), "cpu_percent", "cannot be"),
        (told(at=101 * SECOND, read_bytes=1 << 59), "read_bytes_per_second", "cannot be"),
        (told(at=101 * SECOND, cpu_ns=0), "cpu_percent", "went back"),
        (told(at=99 * SECOND), "cpu_percent", "needs two samples"),
    ],
)
def test_rates_that_cannot_be_are_null(
    kernel: FakeKernel, later: OwnWords, name: str, reason: str
) -> None:
    reader = ProcessReader(0, kernel.root)
    reading(reader, told(), 101 * SECOND)
    found = reading(reader, later, 102 * SECOND)
    assert found.sample[name] is None and reason in found.reasons[name]


def test_a_process_writes_what_is_true_of_it_and_seldom(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However large the process of the tests has become.
    monkeypatch.setattr(own_figures, "PSS_MOST", 1 << 40)
    attachment = attach(cache)
    own, began = OwnFigures(), boot_clock()
    words = attachment._words
    own.write(words, began)
    found = attachment.own_words()
    assert found.at == began and found.pss_at == 0, "no walk over its memory while it attaches"
    status = Path("/proc/self/status").read_text()
    assert found.threads == threading.active_count()
    assert found.rss_bytes and abs(found.rss_bytes - 1024 * _status(status, "VmRSS")) < 1 << 20
    assert found.open_files and found.cpu_ns and found.swap_bytes is not None
    assert own.due == began + 10 * SECOND
    own.write(words, began + 10 * SECOND)
    found = attachment.own_words()
    assert found.pss_at == began + 10 * SECOND
    assert found.pss_bytes and found.rss_bytes
    assert 0 < found.pss_bytes <= found.rss_bytes + (1 << 20)
    own.write(words, began + 20 * SECOND)
    assert attachment.own_words().pss_at == found.pss_at, "that again in a minute"
    attachment.close()
    assert attachment.own_words() == OwnWords()


def _status(text: str, name: str) -> int:
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])


def test_a_process_without_proc_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    def hidden(name: str) -> bytes:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr("bi_performance.own._read", hidden)
    attachment = attach(cache)
    own = OwnFigures()
    own.write(attachment._words, 5)
    assert own.due > 5, "and it is not tried again at once"
    assert attachment.own_words().rss_bytes is None
    attachment.close()
    own.write(attachment._words, 5)


def test_a_hit_that_was_taken_back_leaves_a_client_trusted(cache: Cache) -> None:
    """A reader that only observes counts a hit and takes it back, while the daemon looks."""
    attachment = attach(cache)
    attachment._words[L.P_HITS] = 1
    assert cache.stats().hits == 1
    attachment._words[L.P_HITS] = 0
    attachment._words[L.P_MISSES] = 1
    assert (cache.stats().hits, cache.stats().misses) == (1, 1)
    assert attachment.plausible
    attachment._words[L.P_MISSES] = 0
    cache.stats()
    assert not attachment.plausible, "misses are never taken back"
    attachment.close()
