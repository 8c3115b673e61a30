"""The pages that are written by hand name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bi_performance_ctl.catalog import LOCAL
from bi_performance_wire.commands import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_every_event_that_is_logged_stands_in_the_table() -> None:
    text = (DOCS / "logs.md").read_text()
    call = r"(?:log|_limited)\.(?:debug|info|warning|error|critical)\(\s*\"([a-z_]+\.[a-z_.]+)\""
    found = {
        event
        for path in (ROOT / "daemon").rglob("*.py")
        for event in re.findall(call, path.read_text())
    }
    paused = r"next_peer\(.*\"([a-z.]+_paused)\"\)"
    fronts = ROOT / "daemon" / "bi_performanced" / "fronts"
    found |= {
        event for path in fronts.glob("*.py") for event in re.findall(paused, path.read_text())
    }
    assert len(found) > 15 and "http.accept_paused" in found
    assert sorted(event for event in found if f"`{event}`" not in text) == []


def test_every_route_and_command_stands_in_its_page() -> None:
    http, cli = (DOCS / "http.md").read_text(), (DOCS / "cli.md").read_text()
    for row in COMMANDS:
        if row.http:
            assert row.http[1] in http
        if row.cli:
            assert row.cli in cli
    for local in LOCAL:
        assert local.words in cli


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_feature_table_names_tests_and_sources_that_are_there() -> None:
    text = (DOCS / "features.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| (?!what \||---)", line)]
    unproved = [row for row in rows if "](../tests/" not in row]
    assert len(rows) > 50 and unproved == []
    named = set(re.findall(r"\[(test_\w+)\]\(\.\./(tests/[\w/]+\.py)\)", text))
    gone = [
        f"{path}: {name}"
        for name, path in sorted(named)
        if not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert len(named) > 60 and gone == []
    listed = re.findall(r"^- ([A-Z]\d+): \[", text, re.MULTILINE)
    marks = re.findall(r"[(, ]([A-Z]\d+)(?=[,)])", text.partition("## Sources")[0])
    assert len(set(listed)) == len(listed) and set(listed) == set(marks)
