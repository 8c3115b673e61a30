"""The answer to `status`: is it well, and if not why."""

from __future__ import annotations

from typing import Any

from bi_performance_ctl.console import Console, visible
from bi_performance_ctl.render.units import duration, size


def status(result: dict[str, Any], console: Console) -> str:
    bold = console.paint(f"bi-performance {result['version']}", "1")
    lines = [
        f"{bold}  {console.mark(result['status'])}  profile {result['profile']}"
        f"  up {duration(result['uptime_seconds'])}",
        "",
    ]
    for name, part in result["components"].items():
        state = part["status"]
        padding = " " * (9 - len(state))
        lines.append(f"  {name:9}{console.mark(state)}{padding}{_figures(name, part)}".rstrip())
        if part.get("reason"):
            lines.append(f"  {'':20}{console.paint(visible(part['reason']), '33')}")
    return "\n".join(lines)


def _figures(name: str, part: dict[str, Any]) -> str:
    if name == "cache":
        asked = part["hits"] + part["misses"]
        rate = f"{part['hit_rate']:.1%} of {asked:,} reads hit" if asked else "not read yet"
        mode = "" if part["mode"] == "on" else f" · mode {part['mode']}"
        people = "process" if part["clients"] == 1 else "processes"
        return (
            f"{rate} · {part['entries']:,} of {part['max_entries']:,} entries"
            f" · {size(part['size_bytes'])} of {size(part['max_bytes'])}"
            f" · {part['clients']} {people} attached{mode}"
        )
    return str(part.get("url", ""))
