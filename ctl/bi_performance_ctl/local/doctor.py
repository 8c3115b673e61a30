"""`doctor`: why does it not work, and what mends it; one line a check."""

from __future__ import annotations

import argparse
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bi_performance_ctl.console import FAILED, Console, Exit
from bi_performance_wire import __version__


class Finding(NamedTuple):
    """One check: `state` is ok, warning or failed; `remedy` is empty when it is ok."""

    check: str
    state: str
    detail: str
    remedy: str = ""


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
            console.say(f"{mark}{padding}{finding.check:{width}}  {finding.detail}")
            if finding.remedy:
                console.say(f"{'':{10 + width}}  → {finding.remedy}")
    return FAILED if any(finding.state == "failed" for finding in findings) else 0


def examine(console: Console) -> Iterator[Finding]:
    """All checks, in the order in which one explains the next."""
    reachable = yield from _sockets(console)
    if reachable:
        yield from _daemon(console)
        yield _store(console)
    yield from _configuration_files()
    yield _namespace()


def _sockets(console: Console) -> Generator[Finding, None, bool]:
    found = console.candidates()
    usable = [each for each in found if each.refused is None]
    for each in found:
        if each.refused is None:
            yield Finding("socket", "ok", f"{each.path} ({each.origin})")
        else:
            missing = each.refused == "does not exist"
            state = "unused" if missing else "warning" if usable else "failed"
            yield Finding("socket", state, f"{each.path} ({each.origin}): {each.refused}")
    if not usable:
        yield Finding(
            "daemon",
            "failed",
            "no control socket can be used",
            "start bi-performanced, or name its socket with --socket or BI_PERFORMANCE_SOCKET",
        )
        return False
    return True


def _daemon(console: Console) -> Iterator[Finding]:
    try:
        info = console.ask("server.info")
        status = console.ask("status")
    except Exit as error:
        yield Finding("daemon", "failed", error.message, "restart it; its log says what it was at")
        return
    yield Finding("daemon", "ok", f"process {info['pid']} of uid {info['uid']} answers")
    if info["version"] == __version__:
        yield Finding("version", "ok", __version__)
    else:
        yield Finding(
            "version",
            "warning",
            f"the daemon is {info['version']}, this program {__version__}",
            "restart the daemon after an upgrade",
        )
    for name, part in status["components"].items():
        if part["status"] == "degraded":
            yield Finding(name, "warning", part["reason"], "see the reason")
        else:
            yield Finding(name, "ok", part["status"])
    yield from _http(info)
    log = info["log_file"]
    if log is not None and not os.access(log, os.R_OK):
        yield Finding("log", "warning", f"{log} cannot be read by you", "join the daemon's group")
    else:
        yield Finding("log", "ok", log or "standard error of the daemon")


def _http(info: dict[str, Any]) -> Iterator[Finding]:
    if info["http"] is None:
        yield Finding("HTTP", "warning", "not served", "set http.listen, or free its port")
        return
    url = f"{info['http']}/performance/livez"
    try:
        # No proxy of the environment: the listener is on this host.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=3) as answer:
            answer.read()
        yield Finding("HTTP", "ok", info["http"])
    except (urllib.error.URLError, OSError) as error:
        yield Finding(
            "HTTP", "failed", f"{url}: {error}", "bi-performance logs has the listener's errors"
        )


def _store(console: Console) -> Finding:
    from bi_performance.link import Link
    from bi_performance.reader import StoreReader

    link = Link(console.find_socket(), name="bi-performance doctor", mode="on")
    try:
        link.attach()
        if isinstance(link.reader, StoreReader):
            return Finding("store", "ok", "attached, and read in place")
        return Finding(
            "store", "failed", "cannot be attached", "bi-performance logs says why it was refused"
        )
    finally:
        link.close()


def _configuration_files() -> Iterator[Finding]:
    found = [name for name in ("toml", "yaml") if Path(f"config/performance.{name}").is_file()]
    if len(found) == 2:
        yield Finding(
            "config",
            "failed",
            "config/performance.toml and config/performance.yaml both exist here",
            "keep one of them",
        )


def _namespace() -> Finding:
    """A scraper's own package of the same name hides our modules."""
    path = "business_intel_scraper.backend.performance"
    try:
        found = importlib.util.find_spec(path)
    except (ImportError, AttributeError, ValueError):
        found = None
    if found is not None:
        return Finding("import", "ok", f"{path} is found")
    outer = importlib.util.find_spec("business_intel_scraper")
    where = outer.origin if outer is not None and outer.origin else "elsewhere"
    return Finding(
        "import",
        "failed",
        f"{path} is hidden by {where}",
        "put this line first into that file, and into backend/__init__.py if there is one:"
        ' __path__ = __import__("pkgutil").extend_path(__path__, __name__)',
    )
