"""Settings over settings: what a profile, or a change while running, puts above the file.

An overlay lies above file and environment and below the command line, whose word is the last of
the person who started the daemon. What it hides is remembered, so that taking it away restores it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from bi_performanced.config.settings import Settings, declared


class Laid(NamedTuple):
    """A value of an overlay and where it comes from, as `profile:memory_focused`."""

    value: Any
    origin: str


def value_of(settings: Settings, key: str) -> Any:
    """The value of a dotted key."""
    found: Any = settings
    for name in key.split("."):
        found = getattr(found, name)
    return found


def from_command_line(settings: Settings, key: str) -> bool:
    """Whether the command line has set a key, which no overlay may change."""
    return settings.origins[key].startswith("flag ")


def lay(settings: Settings, overlay: Mapping[str, Laid]) -> Settings:
    """The settings with an overlay above them; keys of the command line stay."""
    origins, beneath = dict(settings.origins), dict(settings.beneath)
    parts: dict[str, dict[str, Any]] = {}
    for key, laid in overlay.items():
        if from_command_line(settings, key):
            continue
        part, _, name = key.rpartition(".")
        parts.setdefault(part, {})[name] = laid.value
        beneath[key] = (value_of(settings, key), settings.origins[key])
        origins[key] = laid.origin
    changes: dict[str, Any] = parts.pop("", {})
    for part, values in parts.items():
        changes[part] = dataclasses.replace(getattr(settings, part), **values)
    return dataclasses.replace(settings, **changes, origins=origins, beneath=beneath)


ROWS = {row.key: row for row in declared()}
"""Every declared setting by its dotted key."""
