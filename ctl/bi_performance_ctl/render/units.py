"""Numbers as people read them."""

from __future__ import annotations


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
    """Seconds: 12 s, 3 min 20 s, 5 h 12 min, 3 d 4 h."""
    whole = int(seconds)
    for unit, parts, below, name in ((86400, 3600, "h", "d"), (3600, 60, "min", "h")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // parts} {below}"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"


def latency(ns: float) -> str:
    """Nanoseconds: 850 ns, 1.52 µs, 3.1 ms."""
    if ns < 1000:
        return f"{ns:.0f} ns"
    if ns < 1e6:
        return f"{ns / 1e3:.2f} µs"
    return f"{ns / 1e6:.2f} ms"
