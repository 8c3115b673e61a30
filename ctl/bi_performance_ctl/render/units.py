"""Numbers as people read them. What is unknown is a dash, never 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

UNKNOWN = "–"
_BLOCKS = "▁▂▃▄▅▆▇█"


def size(count: float) -> str:
    """Bytes: 512 B, 1.5 KiB, 32 MiB."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    text = f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"
    return f"{text} {unit}"


def duration(seconds: float) -> str:
    """Seconds that have passed: 12 s, 3 min 20 s, 5 h 12 min, 3 d 4 h."""
    whole = int(seconds)
    for unit, parts, below, name in ((86400, 3600, "h", "d"), (3600, 60, "min", "h")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // parts} {below}"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"


def span(seconds: float) -> str:
    """Seconds that were chosen: 0.5 s, 15 s, 1 h, 1 h 30 min, 2 d."""
    left = int(seconds)
    if seconds != left or left < 60:
        return f"{seconds:g} s"
    parts = []
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= unit:
            parts.append(f"{left // unit} {name}")
            left %= unit
    return " ".join(parts)


def latency(ns: float) -> str:
    """Nanoseconds: 850 ns, 1.52 µs, 3.1 ms."""
    if ns < 1000:
        return f"{ns:.0f} ns"
    if ns < 1e6:
        return f"{ns / 1e3:.2f} µs"
    return f"{ns / 1e6:.2f} ms"


def percent(value: float) -> str:
    """Of 0 to 100."""
    return f"{value:.1f}%"


def share(value: float) -> str:
    """Of 0 to 1."""
    return f"{value:.1%}"


def number(value: float) -> str:
    """1,234 or 1.09."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.2f}"


def per_second(value: float) -> str:
    """1,234/s; of a few, 0.4/s."""
    return f"{value:,.0f}/s" if value >= 10 or value == 0 else f"{value:.1f}/s"


def count(many: int, one: str, more: str | None = None) -> str:
    """1 process, 2 processes."""
    return f"{many:,} {one if many == 1 else more or one + 's'}"


def known(value: float | None, how: Callable[[float], str] = number) -> str:
    """A figure, or the dash that stands for an unknown one."""
    return UNKNOWN if value is None else how(value)


_SUFFIXES: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("_bytes_per_second", lambda value: size(value) + "/s"),
    ("_per_second", per_second),
    ("_bytes", size),
    ("_percent", percent),
    ("_rate", share),
    ("_ratio", share),
    ("_seconds", span),
    ("_ttl", span),
)


def figure(name: str, value: Any) -> str:
    """A value in the unit that its name ends in."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    for suffix, how in _SUFFIXES:
        if name.endswith(suffix):
            return how(value)
    return number(value)


def label(name: str) -> str:
    """A figure's name without its unit, in words."""
    if name in ("max_bytes", "prefix_bytes"):
        # Without its unit it would be another figure's name, or none.
        name = name.replace("bytes", "size")
    for suffix in ("_bytes_per_second", "_per_second", "_bytes", "_percent", "_seconds"):
        name = name.removesuffix(suffix)
    words = name.replace("cgroup", "control group").replace("cpu", "CPU")
    return words.replace("_", " ")


def setting(value: Any, unit: str | None) -> str:
    """A setting's value with its unit: 128 MiB, 4 h, 5,000 entries, true."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, int | float):
        return str(value)
    if unit == "bytes":
        return size(value)
    if unit == "s":
        return span(value)
    return f"{value:,}{' ' + unit if unit else ''}"


def before_and_after(before: Any, after: Any, unit: str | None) -> str:
    """A change; with every digit where the rounded values would look alike."""
    first, second = setting(before, unit), setting(after, unit)
    if first == second:
        first, second = (f"{value} {unit or ''}".rstrip() for value in (before, after))
    return f"{first} → {second}"


def spark(values: list[float | None], top: float | None = None) -> str:
    """A line of blocks from 0 to `top`, else to the largest value; a gap where it is unknown."""
    most = top or max((value for value in values if value is not None), default=0) or 1
    last = len(_BLOCKS) - 1
    return "".join(
        " " if value is None else _BLOCKS[max(0, min(last, round(value / most * last)))]
        for value in values
    )
