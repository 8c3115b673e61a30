"""Profiles as data: the shipped files, and those of the user's own folder, checked when read.

A profile is a TOML file. `summary` says for whom it is; each table under `settings` names a
setting and gives its `value`, or a `scale` of the configured value, with the `unit` that the
setting has and the `reason` for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from bi_performanced.config.overlay import ROWS, Laid, value_of
from bi_performanced.config.parse import Problem, convert
from bi_performanced.config.settings import Declared, Settings
from bi_performanced.config.sources import nearest, parse_toml, read_text

SHIPPED: Final = Path(__file__).with_name("profiles")
LIVE: Final[tuple[str, ...]] = (
    "cache.default_ttl",
    "cache.max_size",
    "cache.max_bytes",
    "cache.compression",
    "monitoring.metrics_interval",
)
"""The settings that can be changed while the daemon runs."""
BALANCED: Final = "balanced"
"""The profile that is in force until another one is applied: the configured values."""
MOST: Final = 100
"""Profiles of one folder."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_MOST_SCALE: Final = 100
_HOW: Final = ("value", "at_least", "at_most", "scale")


class Aim(NamedTuple):
    """What a profile makes of one setting."""

    key: str
    how: str
    """`value`; `at_least` or `at_most` that value, where the configured one is not so already; or
    `scale`, a multiple of the configured one."""
    value: Any
    reason: str


class Profile(NamedTuple):
    name: str
    summary: str
    aims: tuple[Aim, ...]

    def overlay(self, settings: Settings, room: int) -> dict[str, Laid]:
        """This profile's values over configured settings.

        `room` is the number of bytes up to which `cache.max_bytes` may be scaled.
        """
        origin = f"profile:{self.name}"
        return {aim.key: Laid(_aimed(aim, settings, room), origin) for aim in self.aims}


def _aimed(aim: Aim, settings: Settings, room: int) -> Any:
    if aim.how == "value":
        return aim.value
    row = ROWS[aim.key]
    configured = value_of(settings, aim.key)
    if aim.how == "at_least":
        return max(configured, aim.value)
    if aim.how == "at_most":
        return min(configured, aim.value)
    scaled = configured * aim.value
    if aim.key == "cache.max_bytes" and aim.value > 1:
        scaled = max(configured, min(scaled, room))
    low, high = row.meta.low, row.meta.high
    scaled = max(scaled, low if low is not None else scaled)
    scaled = min(scaled, high if high is not None else scaled)
    return scaled if row.type == "float" else round(scaled)


def read_profiles(own: Path | None) -> dict[str, Profile]:
    """The shipped profiles and those of a folder, by name.

    Raises Problem for a file that is no such profile, naming file, key and remedy.
    """
    found = {path.stem: read_profile(path) for path in sorted(SHIPPED.glob("*.toml"))}
    if own is None:
        return found
    try:
        paths = sorted(path for path in own.iterdir() if path.suffix == ".toml")
    except OSError as error:
        raise Problem(f"advice.profiles_dir: {own} cannot be read: {error.strerror}") from None
    if len(paths) > MOST:
        raise Problem(f"advice.profiles_dir: {own} holds more than {MOST} profiles")
    for path in paths:
        if path.stem in found:
            raise Problem(f"{path}: {path.stem} is a shipped profile; give yours another name")
        if not _NAME.fullmatch(path.stem):
            raise Problem(
                f"{path}: a profile's name has small letters, digits, _ and -, and begins with a"
                " letter"
            )
        found[path.stem] = read_profile(path)
    return found


def read_profile(path: Path) -> Profile:
    """One file's profile. Raises Problem."""
    found = parse_toml(path, read_text(path))
    known = ("summary", "settings")
    for key in found:
        if key not in known:
            raise Problem(f"{path}: unknown key {key}{nearest(key, known)}")
    summary, settings = found.get("summary"), found.get("settings", {})
    if not isinstance(summary, str) or not 0 < len(summary) <= 300:
        raise Problem(f"{path}: summary must be a sentence that says for whom the profile is")
    if not isinstance(settings, dict):
        raise Problem(f'{path}: settings must be tables, as [settings."cache.default_ttl"]')
    return Profile(path.stem, summary, tuple(_aim(path, key, settings[key]) for key in settings))


def check_live(source: str, key: str) -> Declared:
    """The row of a setting that can be changed while running. Raises Problem."""
    if key not in ROWS:
        raise Problem(f"{source}: unknown setting {key:.100}{nearest(key, ROWS)}")
    if key not in LIVE:
        raise Problem(
            f"{source}: {key} cannot be changed while the daemon runs; these can: {', '.join(LIVE)}"
        )
    return ROWS[key]


def _aim(path: Path, key: str, given: Any) -> Aim:
    row = check_live(str(path), key)
    where = f"{path}: {key}"
    if not isinstance(given, Mapping):
        raise Problem(f"{where} must be a table with value or scale, unit and reason")
    known = (*_HOW, "unit", "reason")
    for name in given:
        if name not in known:
            raise Problem(f"{where}: unknown key {name}{nearest(name, known)}")
    how = [name for name in _HOW if name in given]
    if len(how) != 1:
        raise Problem(
            f"{where} must have one of value, at_least, at_most, and scale of the configured value"
        )
    unit = row.meta.unit
    if given.get("unit") != unit:
        wanted = "have no unit" if unit is None else f"have the unit {unit!r}"
        raise Problem(f"{where} must {wanted}, not {given.get('unit')!r:.40}")
    reason = given.get("reason")
    if not isinstance(reason, str) or not 0 < len(reason) <= 300:
        raise Problem(f"{where} must have a reason, a sentence")
    if how == ["value"]:
        return Aim(key, "value", convert(row, given["value"], str(path)), reason)
    if row.type not in ("int", "float"):
        raise Problem(f"{where}: only a number can be scaled or bounded; give a value")
    if how != ["scale"]:
        return Aim(key, how[0], convert(row, given[how[0]], str(path)), reason)
    scale = given["scale"]
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise Problem(f"{where}: scale must be a number, not {scale!r:.40}")
    if not 0 < scale <= _MOST_SCALE:
        raise Problem(f"{where}: scale must be more than 0 and at most {_MOST_SCALE}, not {scale}")
    return Aim(key, "scale", float(scale), reason)
