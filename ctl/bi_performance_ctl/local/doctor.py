"""`doctor`: why does it not work, and what mends it; one line a check."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from bi_performance_ctl.checks import Finding, daemon, here, reach
from bi_performance_ctl.console import FAILED, Console
from bi_performance_ctl.render.prose import fold
from bi_performance_wire.streams import visible


def add(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace, console: Console) -> int:
    findings = list(examine(console))
    if console.json:
        console.document({"findings": [finding._asdict() for finding in findings]})
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            mark = console.mark(finding.state)
            padding = " " * (8 - len(finding.state))
            indent = " " * (12 + width)
            detail, *rest = fold(visible(finding.detail), indent, console, first=indent)
            console.say(f"{mark}{padding}{finding.check:{width}}  {detail.strip()}")
            for line in rest:
                console.say(line)
            if finding.remedy:
                # In one line, for there may be a command in it to be copied.
                console.say(f"{'':{10 + width}}  → {visible(finding.remedy)}")
        console.say(_summary(findings))
    return FAILED if any(finding.state == "failed" for finding in findings) else 0


def examine(console: Console) -> Iterator[Finding]:
    """All checks, in the order in which one explains the next."""
    reachable = yield from reach.sockets(console)
    if reachable:
        yield from daemon.daemon(console)
        yield from daemon.store(console)
    yield from here.python()
    yield from here.environment()
    yield from here.configuration_files()
    yield from here.namespace()


def _summary(findings: list[Finding]) -> str:
    failed, warnings = (
        sum(finding.state == state for finding in findings) for state in ("failed", "warning")
    )
    if failed:
        return f"\n{failed} failed, {warnings} to look at, of {len(findings)} checks"
    if warnings:
        return f"\nnothing failed; {warnings} to look at, of {len(findings)} checks"
    return f"\nall is well: {len(findings)} checks"
