"""One JSON object a line, whatever is logged and whatever happens to the file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from bi_performanced.telemetry.logs import Limited, LogSink, configure, render


class Awkward:
    def __str__(self) -> str:
        raise RuntimeError("no")


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.just(Awkward()),
        st.text(alphabet="\ud800\udfff\n\r\x00\u2028"),
    ),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES))
def test_any_event_is_one_line_of_json(event: dict[str, Any]) -> None:
    line = render(event)
    assert "\n" not in line and "\r" not in line
    assert isinstance(json.loads(line), dict)
    line.encode("utf-8")


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[LogSink]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    made = configure("INFO", tmp_path / "log")
    yield made
    made.close()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(sink: LogSink) -> list[dict[str, Any]]:
    assert sink.path is not None
    return [json.loads(line) for line in sink.path.read_text().splitlines()]


def test_a_line_has_what_the_contract_says(sink: LogSink) -> None:
    log = structlog.get_logger("performance")
    log.info("cache.tested", count=5, timestamp="mine")
    log.debug("cache.quiet")
    (line,) = lines(sink)
    assert datetime.fromisoformat(line["timestamp"]).utcoffset() is not None
    assert line["level"] == "info" and line["event"] == "cache.tested"
    assert line["logger"] == "performance" and line["count"] == 5
    assert line["timestamp_"] == "mine"


def test_an_exception_is_part_of_its_line(sink: LogSink) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        structlog.get_logger("performance").error("work.failed", exc_info=error)
    (line,) = lines(sink)
    assert line["exception"]["type"] == "ValueError"
    assert line["exception"]["message"] == "first\nsecond"
    assert "Traceback" in line["exception"]["traceback"]


def test_libraries_that_log_as_usual_are_heard(sink: LogSink) -> None:
    logging.getLogger("some.library").warning("it %s", "happened")
    record = logging.LogRecord("some.library", 30, "", 1, "wrong %d argument", ("text",), None)
    # To the daemon's handler alone: pytest's own would raise.
    logging.getLogger().handlers[0].handle(record)
    found = lines(sink)
    assert found[1]["message"] == "wrong %d argument ('text',)"
    assert found[0]["message"] == "it happened" and found[0]["source"] == "some.library"


def test_a_full_disk_costs_lines_that_are_counted(sink: LogSink) -> None:
    log = structlog.get_logger("performance")
    full = os.open("/dev/full", os.O_WRONLY)
    kept, sink._fd = sink._fd, full
    for _ in range(3):
        log.info("cache.lost")
    sink._fd = kept
    os.close(full)
    log.info("cache.kept")
    (line,) = lines(sink)
    assert line["event"] == "cache.kept" and line["lines_lost"] == 3


def test_a_file_that_cannot_be_opened_anew_is_kept(sink: LogSink) -> None:
    assert sink.path is not None
    moved = sink.path.with_suffix(".1")
    sink.path.rename(moved)
    sink.path.mkdir()
    assert sink.reopen() is not None
    structlog.get_logger("performance").info("still.here")
    assert "still.here" in moved.read_text()


def test_a_repeated_warning_is_held_back_and_counted(sink: LogSink) -> None:
    limited = Limited(0.05)
    for _ in range(5):
        limited.warning("again.and.again")
    assert len(lines(sink)) == 1
    limited._next.clear()
    limited.warning("again.and.again")
    assert lines(sink)[1]["suppressed"] == 4
