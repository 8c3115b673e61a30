"""Does the daemon work: its answer, components, HTTP, log, state, and the shared store."""

from __future__ import annotations

import os
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bi_performance_ctl.checks import Finding, failed, ok, warning
from bi_performance_ctl.checks.reach import owned, user, way_in
from bi_performance_ctl.console import Console, Exit
from bi_performance_ctl.render.units import count, size
from bi_performance_wire import __version__

LITTLE = 64 << 20
"""Free bytes of a file system below which a warning is due."""


def daemon(console: Console) -> Iterator[Finding]:
    """Everything that the daemon itself can be asked."""
    try:
        info = console.ask("server.info")
        status = console.ask("status")
    except Exit as error:
        yield failed(
            "daemon",
            error.message,
            "restart it (systemctl restart bi-performance, or kill it and start"
            " bi-performanced); bi-performance logs says what it was at",
        )
        return
    yield ok("daemon", f"process {info['pid']} of {user(info['uid'])} answers")
    if info["version"] == __version__:
        yield ok("version", f"{__version__}, daemon and program")
    else:
        yield warning(
            "version",
            f"the daemon is {info['version']}, this program {__version__}",
            "restart the daemon after an upgrade",
        )
    for name, part in status["components"].items():
        if name == "http":
            continue
        if part["status"] == "degraded":
            yield warning(name, part["reason"], _mend(name))
        else:
            yield ok(name, part.get("reason") or part["status"])
    yield from _redis(status["components"].get("cache", {}).get("redis"))
    if status["components"].get("monitor", {}).get("source") == "procfs":
        yield warning(
            "psutil",
            "the daemon runs without psutil: it reads the host's figures from /proc",
            "pip install 'bi-performance[performance]' into its Python, and restart it",
        )
    mode = status["components"].get("cache", {}).get("mode", "on")
    if mode != "on":
        yield warning(
            "mode",
            f"the daemon's mode is {mode}: {_EFFECT.get(mode, 'not everything is done')}",
            "set mode to on, in its file or by BI_PERFORMANCE_MODE, and restart it",
        )
    yield from _http(info, status["components"].get("http", {}))
    yield _log(info)
    yield from _state(info)
    yield _config(console)


def _redis(part: dict[str, Any] | None) -> Iterator[Finding]:
    """The level behind the store, where one is configured."""
    if part is None:
        yield ok("redis", "none is configured: the cache is this host's own")
    elif part["status"] == "ok":
        yield ok("redis", f"{part['url']} answers, and the other hosts are heard")
    else:
        yield warning(
            "redis",
            f"{part.get('url') or 'cache.redis_url'}: {part['reason']}",
            "start it, or mend REDIS_URL or cache.redis_url and restart the daemon; meanwhile the"
            " cache is this host's own, and the daemon comes back to it by itself",
        )


_EFFECT = {
    "observe": "reads are counted, and none is served from the cache",
    "off": "nothing is cached",
}


def _mend(name: str) -> str:
    return {
        "cache": "bi-performance logs --level warning says what came before",
        "monitor": "make room in the state directory, or mend its permissions",
        "optimizer": "apply a profile anew: bi-performance optimize balanced",
    }.get(name, "bi-performance logs --level warning says more")


def _http(info: dict[str, Any], part: dict[str, Any]) -> Iterator[Finding]:
    if part.get("status") == "degraded":
        yield warning(
            "HTTP",
            f"not served: {part.get('reason', 'no reason is told')}",
            "end that process, and the daemon takes the port within five seconds; or give"
            " http.listen another port",
        )
        return
    if info["http"] is None:
        yield ok("HTTP", "off, as it is configured")
        return
    url = f"{info['http']}/performance/livez"
    try:
        # No proxy of the environment: the listener is on this host.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=3) as answer:
            answer.read()
        yield ok("HTTP", info["http"])
    except (urllib.error.URLError, OSError) as error:
        yield failed("HTTP", f"{url}: {error}", "bi-performance logs has the listener's errors")


def _log(info: dict[str, Any]) -> Finding:
    log = info["log_file"]
    if log is None:
        return ok("log", "standard error of the daemon; under systemd the journal")
    if os.access(log, os.R_OK):
        return ok("log", log)
    return warning("log", f"{log} cannot be read by you", way_in(Path(log), os.R_OK))


def _state(info: dict[str, Any]) -> Iterator[Finding]:
    """The folder that must survive a reboot."""
    path = Path(info["state_dir"])
    try:
        found = path.stat()
        space = os.statvfs(path)
    except PermissionError:
        yield ok("state", f"{path}, which only the daemon's user may look into")
        return
    except OSError as error:
        yield failed(
            "state",
            f"{path} cannot be used: {error.strerror}",
            "restart the daemon, which makes it, or give --state-dir another folder",
        )
        return
    free = space.f_bavail * space.f_frsize
    if found.st_uid != info["uid"] and not _may_write(found, info["uid"]):
        yield failed(
            "state",
            f"{path} is {owned(path)}; the daemon runs as {user(info['uid'])}",
            f"chown {user(info['uid'])} {path}",
        )
    elif found.st_mode & stat.S_IWOTH:
        yield warning("state", f"{path} can be written by everybody", f"chmod o-w {path}")
    elif free < LITTLE:
        yield warning(
            "state", f"{path} has only {size(free)} free", "make room on that file system"
        )
    else:
        yield ok("state", f"{path}, {size(free)} free")


def _may_write(found: os.stat_result, uid: int) -> bool:
    return uid == 0 or bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _config(console: Console) -> Finding:
    """Which file the daemon reads, and what lies over it."""
    try:
        listing = console.ask("server.config")
    except Exit as error:
        return warning("config", error.message, "ask again")
    laid = sum(1 for row in listing["settings"] if row.get("beneath"))
    over = f"; {count(laid, 'setting')} of a profile or config set over it" if laid else ""
    file = listing.get("file")
    return ok("config", (f"the daemon reads {file}" if file else "the daemon reads no file") + over)


def store(console: Console) -> Iterator[Finding]:
    """Attach as a scraper does."""
    from bi_performance.link import Link
    from bi_performance.reader import StoreReader

    try:
        link = Link(console.find_socket(), name="bi-performance doctor", mode="on")
    except Exit as error:
        yield failed("store", error.message, "start bi-performanced")
        return
    try:
        link.attach()
        if isinstance(link.reader, StoreReader):
            yield ok("store", "attached, and read in place")
            return
        reason = link.reason or "no reason is known"
        yield failed(
            "store",
            f"cannot be attached: {reason}",
            "bi-performance logs says why it was refused; a scraper goes on without the cache",
        )
    finally:
        link.close()
