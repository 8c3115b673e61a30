"""What is written from the declarations: the example files and the table of all settings."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from bi_performanced.config.settings import Declared, declared

_HEAD = """\
Every setting with its default. Copy this file to config/performance.{0} and take the
comment sign from what you change. The order of precedence is: command line, environment, this
file, defaults. bi-performanced --check shows what applies, and from where.
"""


def toml() -> str:
    """config/performance.example.toml: every key, commented."""
    lines = _comment(_HEAD.format("toml"))
    section = None
    lines += ["", "[performance]"]
    for row in _plain_keys_first():
        part, _, name = row.key.rpartition(".")
        if part != section and part:
            lines += ["", f"[performance.{part}]"]
            section = part
        lines += ["", *_comment(_about(row)), f"# {name} = {_toml_value(row)}"]
    return "\n".join(lines) + "\n"


def yaml() -> str:
    """config/performance.example.yaml: every key, commented."""
    lines = _comment(_HEAD.format("yaml"))
    section = None
    lines += ["", "performance:"]
    for row in _plain_keys_first():
        part, _, name = row.key.rpartition(".")
        indent = "    " if part else "  "
        if part != section and part:
            lines += ["", f"  {part}:"]
            section = part
        lines += [
            "",
            *(indent + line for line in _comment(_about(row))),
            f"{indent}# {name}: {_yaml_value(row)}",
        ]
    return "\n".join(lines) + "\n"


def reference() -> str:
    """docs/configuration.md: how configuration works, and the table of all settings."""
    lines = [_REFERENCE]
    section = None
    for row in _plain_keys_first():
        part, _, _ = row.key.rpartition(".")
        if part != section:
            lines += [
                "",
                f"## {part or 'general'}",
                "",
                "| key | default | environment | what |",
                "| --- | --- | --- | --- |",
            ]
            section = part
        default = f"`{_toml_value(row)}`" if row.default is not None else "–"
        variable = f"`{row.meta.env}`" if row.meta.env else ""
        lines.append(f"| `{row.key}` | {default} | {variable} | {_cell(row)} |")
    return "\n".join(lines) + "\n"


DOCUMENTS: Final[dict[str, Callable[[], str]]] = {
    "config/performance.example.toml": toml,
    "config/performance.example.yaml": yaml,
    "docs/configuration.md": reference,
}
"""Path in the repository, and what stands there."""


def _plain_keys_first() -> Iterator[Declared]:
    rows = declared()
    yield from (row for row in rows if "." not in row.key)
    yield from (row for row in rows if "." in row.key)


def _about(row: Declared) -> str:
    meta = row.meta
    said = meta.doc
    if meta.choices and not all(choice in said for choice in meta.choices):
        said += f" ({', '.join(meta.choices)})"
    bounds = _bounds(row)
    if bounds:
        said += f" [{bounds}]"
    if meta.env:
        said += f" (environment: {meta.env})"
    return said


def _bounds(row: Declared) -> str:
    meta = row.meta
    if meta.low is None or meta.high is None:
        return meta.unit or ""
    low, high = _number(row, meta.low), _number(row, meta.high)
    unit = "" if meta.kind == "size" else meta.unit or ""
    return f"{low} to {high} {unit}".strip()


def _number(row: Declared, value: float) -> str:
    if row.meta.kind == "size":
        for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
            if value >= size and value % size == 0:
                return f"{int(value) // size} {unit}"
    return f"{value:.15g}"


def _cell(row: Declared) -> str:
    said = row.meta.doc.replace("|", "\\|")
    if row.meta.choices and not all(choice in said for choice in row.meta.choices):
        said += f"; one of {', '.join(row.meta.choices)}"
    bounds = _bounds(row)
    return f"{said} [{bounds}]" if bounds else said


def _comment(text: str) -> list[str]:
    return [f"# {line}".rstrip() for line in textwrap.wrap(text, 92)]


def _example(row: Declared) -> Any:
    """The default, or for a setting without one a value of the right form."""
    if row.default is not None:
        return row.default
    return _EXAMPLES.get(row.key, "")


_EXAMPLES: Final = {
    "cache.redis_url": "redis://localhost:6379/0",
    "cache.max_bytes": "256 MiB",
    "cache.store_dir": Path("/run/bi-performance"),
    "cache.secret": "a long random text",
    "advice.profiles_dir": Path("/etc/bi-performance/profiles"),
    "database.url": "postgresql://scraper@localhost/scraper",
    "http.token_file": Path("/etc/bi-performance/token"),
    "socket.path": Path("/run/bi-performance/control.sock"),
    "log.file": "/var/log/bi-performance/performance.log",
    "state_dir": Path("/var/lib/bi-performance"),
}


def _toml_value(row: Declared) -> str:
    value = _example(row)
    if isinstance(value, bool):
        return "true" if value else "false"
    if row.meta.kind == "size" and isinstance(value, int):
        shown = _number(row, value)
        return shown if shown.isdigit() else f'"{shown}"'
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return "[]"
    return f'"{value}"'


def _yaml_value(row: Declared) -> str:
    return _toml_value(row)


_REFERENCE = """\
# Configuration

Nothing need be configured: `bi-performanced` starts on embedded defaults. This page is written
from the declarations in `daemon/bi_performanced/config/settings.py` by `scripts/generate.py`.

A setting comes from the first of these that has it:

1. the command line of `bi-performanced` (`--socket`, `--http`, `--state-dir`, `--log-file`,
   `--log-level`)
2. the environment variable in the table; one that is empty counts as absent
3. one file: `--config FILE`, else `config/performance.toml`, else `config/performance.yaml`, both
   relative to the working directory. TOML and YAML carry the same keys; both files at once is an
   error.
4. the default

`bi-performanced --check` prints every setting with its value and where it came from, and exits
with 0, or with 2 and one sentence for each mistake. `bi-performance config` asks the running daemon
for the same. `REDIS_ENABLED=true` without a URL means `redis://localhost:6379/0`; `false` switches
Redis off whatever the URL says. Sizes are bytes, or as `64 MiB` (also `64M`; `MB` and `GB` are
decimal). Secrets and passwords in URLs are
shown nowhere. A second daemon of the same user needs a `socket.path`, a `cache.store_dir`, a
`state_dir` and an `http.listen` of its own. The empty files `control.sock.lock` and `store.lock`
say by a lock whose the socket and the store are. They stay when a daemon ends or could not start,
and hinder nobody: removing one while another daemon is opening it would let two take the same.

```yaml
performance:
  cache:
    default_ttl: 3600
    max_size: 10000
```

The settings of `database`, `tasks`, `spool`, `memory`, and of Redis under `cache`,
are read and checked; the parts they steer are not in this version, and the daemon logs
`config.without_effect` at its start when one of them is set.
"""
