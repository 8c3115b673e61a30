"""The store at a start: when readers of an earlier one may still be trusting theirs."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import pytest

from bi_performance_wire import layout as L
from bi_performanced.cache.opening import Opened, open_store
from bi_performanced.cache.trace import FILE, Trace
from bi_performanced.config import CacheSettings


def opened(folder: Path) -> Opened:
    made = open_store(CacheSettings(max_bytes=4 << 20), folder / "run", folder / "state")
    made.store.close()
    os.close(made.lock_fd)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path


def test_a_first_store_waits_because_nothing_says_that_it_is_the_first(folder: Path) -> None:
    assert opened(folder).ready_at > 0


def test_a_store_that_is_taken_up_waits_for_nobody(folder: Path) -> None:
    opened(folder)
    assert opened(folder).ready_at == 0


def test_after_a_daemon_that_was_killed_a_new_store_waits(folder: Path) -> None:
    opened(folder)
    (folder / "run" / "store").unlink()
    assert opened(folder).ready_at > 0


def test_after_a_daemon_that_stopped_a_new_store_waits_for_nobody(folder: Path) -> None:
    opened(folder).trace.write(running=False)
    (folder / "run" / "store").unlink()
    assert opened(folder).ready_at == 0


def test_after_a_boot_a_new_store_waits_for_nobody(folder: Path) -> None:
    opened(folder)
    (folder / "run" / "store").unlink()
    path = folder / "state" / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "00" * 16}))
    assert opened(folder).ready_at == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 50_000, '{"folder": 1}'])
def test_a_damaged_trace_vouches_for_nothing(folder: Path, text: str) -> None:
    (folder / "state" / FILE).write_text(text)
    assert opened(folder).ready_at > 0


def test_the_trace_of_another_folder_vouches_for_nothing(folder: Path) -> None:
    Trace(folder / "state", folder / "other").write(running=False)
    assert opened(folder).ready_at > 0


def test_a_store_that_is_set_aside_is_trusted_by_nobody(folder: Path) -> None:
    opened(folder)
    path = folder / "run" / "store"
    with path.open("r+b") as file, mmap.mmap(file.fileno(), L.PAGE) as page:
        words = memoryview(page).cast("Q")
        words[L.W_ALIVE + 3] = 1 << 62
        words[L.W_SLOTS] += 1
        assert opened(folder).ready_at == 0
        assert words[L.W_ALIVE + 3] == 0
        words.release()


def test_how_often_entries_were_used_is_known_after_a_restart(folder: Path) -> None:
    made = open_store(
        CacheSettings(max_size=50, max_bytes=4 << 20), folder / "run", folder / "state"
    )
    for n in range(40):
        made.store.put(b"key-%d" % n, b"value", expires=L.NEVER, now=1)
        for _ in range(n % 5):
            made.store.get(b"key-%d" % n, 1)
    made.store.delete(b"key-4", 1)
    uses = {
        each.key: made.store.index.touched(each.slot) for each in made.store.sweep(0, 1 << 20)[0]
    }
    assert len(set(uses.values())) > 3
    made.store.close()
    os.close(made.lock_fd)
    again = open_store(
        CacheSettings(max_size=50, max_bytes=4 << 20), folder / "run", folder / "state"
    )
    store = again.store
    found = {entry.key: store.index.touched(entry.slot) for entry in store.sweep(0, 1 << 20)[0]}
    assert found == uses
    store.close()
    os.close(again.lock_fd)
