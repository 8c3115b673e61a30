"""Profiles, what applying one changed, and recommendations."""

from __future__ import annotations

import time
from typing import Any

from bi_performance_ctl.console import Console
from bi_performance_ctl.render.prose import fold, heading, joined, pairs
from bi_performance_ctl.render.units import (
    before_and_after,
    duration,
    figure,
    label,
    number,
    setting,
    span,
)
from bi_performance_wire.streams import visible

_ABOUT_THE_SAMPLE = ("window_seconds", "sample")


def profiles(result: dict[str, Any], console: Console) -> str:
    """Each profile with what it sets here; the active one is marked in words too."""
    lines: list[str] = []
    for profile in result["profiles"]:
        name = heading(profile["name"], console)
        lines.append(f"● {name}  {console.paint('active', '32')}" if profile["active"] else name)
        lines += fold(visible(profile["summary"]), "  ", console)
        if not profile["settings"]:
            lines.append("    sets nothing itself")
        for row in profile["settings"]:
            value = setting(row["value"], row["unit"])
            lines.append(f"    {visible(row['setting'])}  {visible(value)}")
            reason = fold(visible(row["reason"]), " " * 6, console)
            lines += [console.paint(line, "2") for line in reason]
        lines.append("")
    lines.append("bi-performance optimize PROFILE applies one")
    return "\n".join(lines)


def optimized(result: dict[str, Any], console: Console) -> str:
    """What applying a profile changed: before and after, as read back from the daemon's parts."""
    now, before = visible(result["profile_applied"]), visible(result["previous_profile"])
    if now != before:
        lines = [f"profile {heading(now, console)} applied, instead of {before}"]
        if not result["changes"]:
            lines.append("  no setting differs between the two here: nothing else changed")
    elif result["changes"]:
        lines = [f"profile {heading(now, console)} applied anew: single changes are taken back"]
    else:
        lines = [f"profile {heading(now, console)} is in force already: nothing changed"]
    lines += _changes(result["changes"], console)
    if result["kept"]:
        lines.append("kept as they are:")
        lines += pairs(result["kept"].items(), console)
    return "\n".join(lines)


def adjusted(result: dict[str, Any], console: Console) -> str:
    """What `config set` changed."""
    if not result["changes"]:
        return "it has this value already: nothing changed"
    lines = _changes(result["changes"], console)
    if any(change.get("reason") == "set while running" for change in result["changes"]):
        lines.append("it holds over restarts, until the next bi-performance optimize")
    return "\n".join(lines)


def _changes(changes: list[dict[str, Any]], console: Console) -> list[str]:
    width = max((len(visible(change["setting"])) for change in changes), default=0)
    lines = []
    for change in changes:
        values = visible(before_and_after(change["before"], change["after"], change.get("unit")))
        lines.append(f"  {visible(change['setting']):{width}}  {values}")
        if change.get("reason"):
            reason = fold(visible(change["reason"]), " " * 6, console)
            lines += [console.paint(line, "2") for line in reason]
    return lines


def recommendations(result: dict[str, Any], console: Console) -> str:
    """Advice: what, why, the command on a line of its own, and what it is good for."""
    found = result["recommendations"]
    seconds = result["window_seconds"]
    if not found:
        if seconds < 1:
            said = (
                "No recommendations yet: figures are gathered anew since the start or the last"
                " change of a setting. Ask again in a minute."
            )
        else:
            said = (
                f"No recommendations: figures have been gathered for {duration(seconds)}, and"
                " nothing in them asks for a change."
            )
        return "\n".join(fold(said, "", console))
    lines = []
    for each in found:
        lines += [*_advice(each, console), ""]
    return "\n".join(lines[:-1])


def _advice(each: dict[str, Any], console: Console) -> list[str]:
    title = visible(each["title"])
    if console.columns is None:
        lines = [f"{console.mark(each['severity'])}  {heading(title, console)}"]
    else:
        # The mark's width is what is seen of it, not its escape sequences.
        blank = " " * (len(each["severity"]) + 4)
        first, *rest = fold(title, blank, console)
        lines = [f"{console.mark(each['severity'])}  {heading(first.strip(), console)}"]
        lines += [blank + heading(line.strip(), console) for line in rest]
    lines += [
        *fold(visible(each["action"]), "  ", console),
        "",
        # Whole, whatever the terminal's width: it is there to be copied.
        f"    {console.paint(visible(each['command']), '36')}",
        "",
    ]
    evidence = each["evidence"]
    over = joined(
        [
            f"over {span(round(evidence['window_seconds']))}"
            if evidence.get("window_seconds") is not None
            else None,
            f"a sample of {number(evidence['sample'])}"
            if evidence.get("sample") is not None
            else None,
        ]
    )
    seen = joined(
        [
            f"{label(name)} {figure(name, value)}"
            for name, value in evidence.items()
            if name not in _ABOUT_THE_SAMPLE
        ]
    )
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["since"]))
    rows = [
        ("effect", each["expected_effect"]),
        ("evidence", seen),
        ("measured", over),
        ("since", f"{since} ({each['id']})"),
    ]
    return lines + pairs([(name, value) for name, value in rows if value], console)
