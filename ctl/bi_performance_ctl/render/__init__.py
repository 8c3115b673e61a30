"""Results for people. `status` is written by hand, for it must start fast; tables are rich's."""

from __future__ import annotations

from typing import Any

from bi_performance_ctl.console import Console


def show(name: str, result: Any, console: Console) -> None:
    """Print the result of a command."""
    if name == "status":
        from bi_performance_ctl.render.status import status

        console.say(status(result, console))
        return
    if name in ("profiles", "optimize", "server.adjust", "recommendations"):
        from bi_performance_ctl.render import optimizer

        how = {
            "profiles": optimizer.profiles,
            "optimize": optimizer.optimized,
            "server.adjust": optimizer.adjusted,
            "recommendations": optimizer.recommendations,
        }
        console.say(how[name](result, console))
        return
    if name in ("cache.explain", "cache.top", "cache.breakdown"):
        from bi_performance_ctl.render import insight

        how_told = {
            "cache.explain": insight.explained,
            "cache.top": insight.top,
            "cache.breakdown": insight.breakdown,
        }
        console.say(how_told[name](result, console))
        return
    if name == "cache.curve":
        from bi_performance_ctl.render.curve import curve

        console.say(curve(result, console))
        return
    from bi_performance_ctl.render import tables

    tables.show(name, result, console)
