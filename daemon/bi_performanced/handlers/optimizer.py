"""The commands about profiles, single settings, analysis and recommendations."""

from __future__ import annotations

import time

from bi_performance_wire import types
from bi_performanced.advice.component import Advisor
from bi_performanced.advice.tuner import Tuner
from bi_performanced.dispatch import Handler
from bi_performanced.monitor.component import Monitor


def handlers(tuner: Tuner, advisor: Advisor, monitor: Monitor) -> dict[str, Handler]:
    """A handler for each of these commands."""
    return {
        "analysis": lambda args, caller: analysis(tuner, advisor, monitor),
        "recommendations": lambda args, caller: advisor.recommendations(
            private=caller.transport != "http"
        ),
        "profiles": lambda args, caller: tuner.profiles(),
        "optimize": lambda args, caller: tuner.optimize(args.profile),
        "server.adjust": lambda args, caller: tuner.adjust(args.setting, args.value),
    }


def analysis(tuner: Tuner, advisor: Advisor, monitor: Monitor) -> types.Analysis:
    return types.Analysis(
        timestamp=time.time(),
        profile=tuner.profile,
        cache_performance=advisor.cache_performance(),
        system_resources={**monitor.host.sample, "unknown": monitor.host.reasons},
        recommendations=advisor.recommendations(private=True).recommendations,
    )
