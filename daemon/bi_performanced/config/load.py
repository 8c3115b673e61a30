"""Command line over environment over file over defaults, into one frozen Settings."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit, urlunsplit

from bi_performance_wire import __version__
from bi_performance_wire.address import runtime_folder
from bi_performance_wire.streams import visible
from bi_performanced.config.limits import default_max_bytes
from bi_performanced.config.overlay import value_of
from bi_performanced.config.parse import Problem, convert
from bi_performanced.config.settings import Settings, declared
from bi_performanced.config.sources import find_file, flatten, read_file
from bi_performanced.config.tenants import quotas_of

MOST_PREFIXES = 50
PREFIX_BYTES = 64


class ConfigError(Exception):
    """What is wrong with the configuration: a sentence for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class Options(NamedTuple):
    """What the command line asks for besides settings."""

    settings: Settings
    check: bool


_FLAGS = {
    "socket": "socket.path",
    "http": "http.listen",
    "state_dir": "state_dir",
    "log_file": "log.file",
    "log_level": "log.level",
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """What was given is repeated there, and shall command no terminal."""
        super().error(visible(message))

    def print_help(self, file: Any = None) -> None:
        """As argparse, which says nothing of an output that cannot be written."""
        (file or sys.stdout).write(self.format_help())


def parser() -> Parser:
    """The daemon's command line."""
    made = Parser(
        prog="bi-performanced",
        description="The performance sidecar of the Business Intelligence Scraper, in the"
        " foreground: holds the cache that every scraper process of this host reads in place,"
        " answers bi-performance on a Unix socket and /performance over HTTP.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
files:
  config/performance.toml or config/performance.yaml, relative to the working directory;
  config/performance.example.toml explains every key.

signals:
  SIGTERM, SIGINT   stop: requests in flight are answered, then the daemon ends;
                    again, a second later or more: it ends at once
  SIGHUP            open the log file anew

exit status:
  0  stopped as told     1  could not start or failed     2  the configuration is wrong

examples:
  bi-performanced                                      embedded defaults, no Redis, no root
  bi-performanced --check --config performance.toml    what would apply, and from where
  bi-performanced --http off --log-file -              no HTTP, log on standard error
""",
    )
    add = made.add_argument
    add("--config", metavar="FILE", help="read this TOML or YAML file, and no other")
    add("--socket", metavar="PATH", help="bind the control socket here")
    add("--http", metavar="HOST:PORT", help="serve HTTP here; off for none")
    add("--state-dir", metavar="DIR", help="keep here what must survive a reboot")
    add("--log-file", metavar="PATH", help="log to this file; - is standard error")
    add("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR or CRITICAL")
    add("--check", action="store_true", help="validate the configuration, print it, and end")
    add("--version", action="version", version=f"bi-performanced {__version__}")
    return made


def load(argv: Sequence[str], environ: Mapping[str, str], cwd: Path) -> Options:
    """Read the configuration.

    Raises ConfigError with every problem found; SystemExit for --help, --version and a command
    line that cannot be read (status 2).
    """
    args = parser().parse_args(list(argv))
    rows = {row.key: row for row in declared()}
    values: dict[str, Any] = {}
    origins = dict.fromkeys(rows, "default")
    problems: list[str] = []

    def take(key: str, value: Any, source: str, origin: str) -> None:
        try:
            values[key] = convert(rows[key], value, source)
            origins[key] = origin
        except Problem as problem:
            problems.append(str(problem))

    path = None
    try:
        path = find_file(Path(args.config) if args.config else None, cwd)
        if path is not None:
            for key, value in flatten(path, read_file(path), set(rows)).items():
                take(key, value, str(path), f"file {path}")
    except Problem as problem:
        problems.append(str(problem))
    for key, row in rows.items():
        name = row.meta.env
        if name and environ.get(name, "") != "":
            take(key, environ[name], f"environment variable {name}", f"env {name}")
    _redis_enabled(environ, values, origins, problems)
    for flag, key in _FLAGS.items():
        if getattr(args, flag) is not None:
            option = "--" + flag.replace("_", "-")
            take(key, getattr(args, flag), option, f"flag {option}")
    if problems:
        raise ConfigError(problems)
    _fill_defaults(values, origins, environ)
    settings = _build(values, origins, path)
    if problems := _conflicts(settings):
        raise ConfigError(problems)
    return Options(settings, args.check)


def _conflicts(settings: Settings) -> list[str]:
    """What is wrong with settings that are right each by itself, with where they came from."""
    found = []
    origins = settings.origins
    if settings.http.post == "token" and settings.http.token_file is None:
        found.append(
            f"{origins['http.post']}: http.post is token, which needs http.token_file, the path"
            " of a file that holds the token"
        )
    prefixes = settings.cache.prefixes
    longest = max((len(each.encode("utf-8", "surrogatepass")) for each in prefixes), default=0)
    if len(prefixes) > MOST_PREFIXES or longest > PREFIX_BYTES:
        found.append(
            f"{origins['cache.prefixes']}: cache.prefixes may have at most {MOST_PREFIXES} names,"
            f" each of 1 to {PREFIX_BYTES} bytes"
        )
    try:
        quotas_of(settings.cache.tenants)
    except ValueError as error:
        found.append(f"{origins['cache.tenants']}: cache.tenants must have {error}")
    buffered, frame = settings.socket.max_buffered_bytes, settings.socket.max_frame_bytes
    if buffered <= frame:
        key = "socket.max_buffered_bytes"
        found.append(
            f"{origins[key]}: {key} is {buffered} and must be more than socket.max_frame_bytes,"
            f" {frame} ({frame / (1 << 20):.4g} MiB), or no such message could arrive"
        )
    return found


def _redis_enabled(
    environ: Mapping[str, str],
    values: dict[str, Any],
    origins: dict[str, str],
    problems: list[str],
) -> None:
    text = environ.get("REDIS_ENABLED", "").strip().lower()
    if not text:
        return
    if text in ("true", "yes", "on", "1"):
        if values.get("cache.redis_url") is None:
            values["cache.redis_url"] = "redis://localhost:6379/0"
            origins["cache.redis_url"] = "env REDIS_ENABLED"
    elif text in ("false", "no", "off", "0"):
        values["cache.redis_url"] = None
        origins["cache.redis_url"] = "env REDIS_ENABLED"
    else:
        problems.append(
            "environment variable REDIS_ENABLED must be true or false"
            f" (also yes, no, on, off, 1, 0), not {environ['REDIS_ENABLED']!r:.80}"
        )


def _fill_defaults(
    values: dict[str, Any], origins: dict[str, str], environ: Mapping[str, str]
) -> None:
    """The defaults that depend on the machine."""
    if values.get("state_dir") is None:
        values["state_dir"], origins["state_dir"] = _state_dir(environ)
    if values.get("cache.max_bytes") is None:
        folder = values.get("cache.store_dir") or Path(runtime_folder(environ, os.getuid()))
        values["cache.max_bytes"], reason = default_max_bytes(folder)
        origins["cache.max_bytes"] = f"default: {reason}"


def _state_dir(environ: Mapping[str, str]) -> tuple[Path, str]:
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0]), "env STATE_DIRECTORY"
    if given := environ.get("XDG_STATE_HOME"):
        return Path(given) / "bi-performance", "env XDG_STATE_HOME"
    return Path("~/.local/state/bi-performance").expanduser(), "default"


def _build(values: Mapping[str, Any], origins: dict[str, str], path: Path | None) -> Settings:
    changes: dict[str, Any] = {"origins": origins, "file": path}
    for part in dataclasses.fields(Settings):
        if part.name in values:
            changes[part.name] = values[part.name]
        elif dataclasses.is_dataclass(part.default) and not isinstance(part.default, type):
            inner = {
                item.name: values[key]
                for item in dataclasses.fields(part.default)
                if (key := f"{part.name}.{item.name}") in values
            }
            changes[part.name] = dataclasses.replace(part.default, **inner)
    return dataclasses.replace(Settings(), **changes)


class Shown(NamedTuple):
    """A setting as it is shown to people: secrets are masked."""

    key: str
    value: Any
    origin: str
    unit: str | None
    beneath: list[Any] | None


def listing(settings: Settings) -> list[Shown]:
    """Every setting with its value and where it came from."""
    found = []
    for row in declared():
        value = value_of(settings, row.key)
        if row.meta.secret and value is not None:
            value = _masked(value) if row.meta.kind == "url" else "********"
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        hidden = list(settings.beneath[row.key]) if row.key in settings.beneath else None
        found.append(Shown(row.key, value, settings.origins[row.key], row.meta.unit, hidden))
    return found


def _masked(url: str) -> str:
    """A URL without its user, password and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    guard = "********@" if "@" in parts.netloc else ""
    return urlunsplit((parts.scheme, guard + host, parts.path, "", ""))
