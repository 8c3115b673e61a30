"""The answer to `status`: is it well, and if not why."""

from __future__ import annotations

from typing import Any

from bi_performance_ctl.console import Console
from bi_performance_ctl.render.prose import fold_parts
from bi_performance_ctl.render.units import count, duration, known, percent, size
from bi_performance_wire.streams import visible


def status(result: dict[str, Any], console: Console) -> str:
    bold = console.paint(f"bi-performance {visible(result['version'])}", "1")
    lines = [
        f"{bold}  {console.mark(result['status'])}  profile {visible(result['profile'])}"
        f"  up {duration(result['uptime_seconds'])}",
        "",
    ]
    components = result["components"].items()
    names = max((len(visible(name)) for name, _ in components), default=0) + 2
    states = max((len(visible(part["status"])) for _, part in components), default=0) + 2
    indent = 2 + names + 2 + states
    for name, part in components:
        state = part["status"]
        padding = " " * (states - len(visible(state)))
        figures = fold_parts(_figures(name, part), indent, console.columns)
        lines.append(f"  {visible(name):{names}}{console.mark(state)}{padding}{figures}".rstrip())
        if part.get("reason"):
            lines.append(f"  {'':{indent - 2}}{console.paint(visible(part['reason']), '33')}")
    return "\n".join(lines)


def _figures(name: str, part: dict[str, Any]) -> list[str]:
    if name == "cache" and "hits" in part:
        asked = part["hits"] + part["misses"]
        return [
            f"{part['hit_rate']:.1%} of {asked:,} reads hit" if asked else "not read yet",
            f"{part['entries']:,} of {part['max_entries']:,} entries",
            f"{size(part['size_bytes'])} of {size(part['max_bytes'])}",
            *(
                [f"{size(part['budget_bytes'])} while memory is short"]
                if part.get("budget_bytes")
                else []
            ),
            f"{count(part['clients'], 'process', 'processes')} attached",
            *([] if part["mode"] == "on" else [f"mode {visible(part['mode'])}"]),
            *([f"Redis {visible(part['redis']['status'])}"] if part.get("redis") else []),
        ]
    if name == "monitor" and "cpu_percent" in part:
        return [
            f"CPU {known(part['cpu_percent'], percent)}",
            f"memory {known(part['memory_used_percent'], percent)} used",
        ]
    if name == "optimizer" and "profile" in part:
        adjusted = [visible(key) for key in part.get("adjusted", ())]
        advice = part["recommendations"]
        return [
            f"profile {visible(part['profile'])}",
            *([f"adjusted: {', '.join(adjusted)}"] if adjusted else []),
            count(advice, "recommendation") if advice else "no recommendations",
        ]
    url = part.get("url")
    return [visible(str(url))] if url else []
