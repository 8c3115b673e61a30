"""The advisor: looks at the evidence, and says when a recommendation comes and goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import structlog
import trio

from bi_performance_wire import types
from bi_performanced.advice.rules import RULES, Finding, Rule
from bi_performanced.advice.tuner import Tuner
from bi_performanced.advice.window import Evidence, Window
from bi_performanced.cache.component import Cache
from bi_performanced.config import AdviceSettings
from bi_performanced.events import Broker
from bi_performanced.monitor.component import Monitor

log = structlog.get_logger("performance")


class Advisor:
    """Runs the rules at an interval, while `run` runs."""

    def __init__(
        self,
        settings: AdviceSettings,
        cache: Cache,
        monitor: Monitor,
        tuner: Tuner,
        broker: Broker,
        rules: Sequence[Rule] = RULES,
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._monitor = monitor
        self._tuner = tuner
        self._broker = broker
        self._rules = rules
        self._window: Window | None = None
        self._seen: Evidence | None = None
        self._found: dict[str, tuple[Finding, float]] = {}
        """By id, with the Unix time since which it holds."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at an interval until cancelled."""
        self._window = Window(
            self._cache, self._monitor, self._settings.window, trio.current_time()
        )
        self._tuner.on_change.append(self.restart)
        self._cache.on_clear = self._cleared
        task_status.started()
        while True:
            await trio.sleep(self._settings.interval)
            try:
                self.look()
            except Exception as error:
                # A rule that stumbles over odd figures must not end the daemon.
                log.error("advice.failed", exc_info=error)

    def restart(self) -> None:
        """Begin anew after a change: what was found before rests on what is no more."""
        if self._window is not None:
            self._window.restart(trio.current_time())
        self._replace([])

    def _cleared(self) -> None:
        """What left before a clear is no evidence of what is there now."""
        self._cache.departures.restart()
        self.look()

    def look(self) -> None:
        """Run every rule once on what was measured so far."""
        assert self._window is not None
        tuner = self._tuner
        raised = frozenset(self._found)
        self._seen = self._window.look(trio.current_time(), tuner.settings, tuner.profile, raised)
        found = (rule(self._seen) for rule in self._rules)
        self._replace([finding for finding in found if finding is not None])

    def _replace(self, findings: list[Finding]) -> None:
        before, now = self._found, time.time()
        self._found = {
            each.id: (each, before[each.id][1] if each.id in before else now) for each in findings
        }
        for name, (finding, _) in self._found.items():
            if name not in before:
                log.info("recommendation.raised", **_named(finding))
                self._broker.publish("recommendation", "recommendation.raised", **_named(finding))
        for name, (finding, _) in before.items():
            if name not in self._found:
                log.info("recommendation.cleared", **_named(finding))
                self._broker.publish("recommendation", "recommendation.cleared", **_named(finding))

    def recommendations(self, *, private: bool) -> types.Recommendations:
        """What holds now; parts of keys are told only where `private` says so."""
        seconds = self._seen.seconds if self._seen is not None else 0.0
        return types.Recommendations(
            recommendations=[
                _shown(finding, since, private) for finding, since in self._found.values()
            ],
            window_seconds=round(seconds, 1),
        )

    def cache_performance(self) -> dict[str, Any]:
        """The cache's figures since the start, and over the window."""
        stats = self._cache.stats()
        found: dict[str, Any] = {
            name: getattr(stats, name)
            for name in (
                "hit_rate",
                "hits",
                "misses",
                "entries",
                "max_entries",
                "size_bytes",
                "max_bytes",
                "evictions",
                "expirations",
            )
        }
        if self._seen is not None:
            seen = self._seen
            found["window"] = {
                "seconds": round(seen.seconds, 1),
                "hit_rate": seen.hit_rate if seen.reads else None,
                **seen.grown,
            }
        return found

    @property
    def count(self) -> int:
        return len(self._found)


def _named(finding: Finding) -> dict[str, Any]:
    return {"id": finding.id, "severity": finding.severity, "title": finding.title}


def _shown(finding: Finding, since: float, private: bool) -> types.Recommendation:
    evidence, command = finding.evidence, finding.command
    if finding.secret is not None and not private:
        # Who asks over HTTP need not be allowed to see keys.
        evidence = {name: value for name, value in evidence.items() if name != "prefix"}
        command = "bi-performance recommendations"
    return types.Recommendation(
        id=finding.id,
        severity=finding.severity,
        title=finding.title,
        evidence=evidence,
        action=finding.action,
        command=command,
        expected_effect=finding.expected_effect,
        since=since,
    )
