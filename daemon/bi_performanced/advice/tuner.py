"""The settings in force: the configured ones, a profile over them, single changes over that.

A change is decided first, prepared on disk, carried out by the parts it concerns, and then made
the choice that a restart finds. What fails before that leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
import structlog
import trio

from bi_performance_wire import types
from bi_performance_wire.errors import BUSY, INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, WireError
from bi_performanced.advice.catalog import BALANCED, LIVE, Profile, check_live, read_profiles
from bi_performanced.advice.choice import Choice, Kept
from bi_performanced.config.load import ConfigError
from bi_performanced.config.overlay import ROWS, Laid, from_command_line, lay, value_of
from bi_performanced.config.parse import Problem, convert
from bi_performanced.config.settings import Declared, Settings
from bi_performanced.config.sources import nearest
from bi_performanced.events import Broker

log = structlog.get_logger("performance")


MOST_WAITING = 8
"""Changes that wait for their turn; a further one is told busy."""


class Part(Protocol):
    """A component that goes by settings of one section."""

    @property
    def settings(self) -> Any:
        """What the part goes by now, read from what it really does."""

    async def reconfigure(self, settings: Any, /) -> None:
        """Go by other settings when this returns. Raises OSError; nothing has changed then."""


class Plan(NamedTuple):
    """A choice and what it comes to."""

    choice: Choice
    settings: Settings


class Planner:
    """Which settings a choice comes to; without any effect."""

    def __init__(self, configured: Settings, room: Callable[[], int]) -> None:
        """`room`: bytes that `cache.max_bytes` may be raised to. Raises ConfigError."""
        self.configured = configured
        self._room = room
        try:
            self.profiles = read_profiles(configured.advice.profiles_dir)
        except Problem as problem:
            raise ConfigError([str(problem)]) from None

    def plan(self, choice: Choice) -> Plan:
        """Raises WireError (not_found, invalid_argument) for what cannot be chosen."""
        profile = self.find(choice.profile)
        overlay = profile.overlay(self.configured, self._room())
        for key, value in choice.adjustments.items():
            overlay[key] = Laid(self._adjusted(key, value), "config set")
        return Plan(choice, lay(self.configured, overlay))

    def check(self, key: str) -> Declared:
        """The row of a setting that can be changed here. Raises WireError."""
        try:
            row = check_live("setting", key)
            if from_command_line(self.configured, key):
                raise Problem(f"setting: {key} was given on the command line, which goes first")
        except Problem as problem:
            raise _argument_error(problem) from None
        return row

    def _adjusted(self, key: str, value: Any) -> Any:
        row = self.check(key)
        try:
            return convert(row, value, "value")
        except Problem as problem:
            raise _argument_error(problem) from None

    def find(self, name: str) -> Profile:
        """A profile by name. Raises WireError (not_found) that names the known ones."""
        found = self.profiles.get(name)
        if found is None:
            raise WireError(
                NOT_FOUND,
                f"there is no profile {name[:100]!r}{nearest(name, self.profiles)}",
                field="profile",
                hint=f"these there are: {', '.join(self.profiles)}",
            )
        return found

    def kept(self, plan: Plan) -> dict[str, str]:
        """The settings of a plan's profile that are left as they are, and why."""
        return {
            aim.key: "the command line sets it"
            for aim in self.find(plan.choice.profile).aims
            if from_command_line(self.configured, aim.key)
        }

    def reason(self, plan: Plan, key: str) -> str | None:
        """Why a setting is as it is in a plan."""
        if key in plan.choice.adjustments:
            return "set while running"
        aims = self.find(plan.choice.profile).aims
        found = next((aim.reason for aim in aims if aim.key == key), None)
        return found or "as it is configured"


def _argument_error(problem: Problem) -> WireError:
    """A sentence that begins with the argument's name, as an error of that argument."""
    field, _, text = str(problem).partition(": ")
    return WireError(INVALID_ARGUMENT, text, field=field)


def restore(planner: Planner, kept: Kept) -> tuple[Plan, str | None]:
    """The plan that an earlier daemon kept; the default and the reason when it cannot be used."""
    try:
        return planner.plan(kept.read()), None
    except WireError as error:
        reason = f"the kept choice cannot be used: {error.message}"
    except ValueError as error:
        reason = str(error)
    log.warning("profile.not_restored", reason=reason, profile=BALANCED)
    return planner.plan(Choice()), reason


class Tuner:
    """Carries out changes of the settings in force, one at a time."""

    def __init__(
        self,
        planner: Planner,
        plan: Plan,
        kept: Kept,
        parts: Mapping[str, Part],
        broker: Broker,
        *,
        trouble: str | None,
    ) -> None:
        """`parts` by the section that they go by; `trouble`: why the choice was not restored."""
        self._planner = planner
        self._plan = plan
        self._kept = kept
        self._parts = parts
        self._broker = broker
        self._trouble = trouble
        self._changing = trio.Lock()
        self._threads = trio.CapacityLimiter(1)
        self.on_change: list[Callable[[], None]] = []
        """Called after each change: what was measured before it rests on other settings."""

    @property
    def settings(self) -> Settings:
        return self._plan.settings

    @property
    def profile(self) -> str:
        return self._plan.choice.profile

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = {"status": "ok", "profile": self.profile}
        if self._plan.choice.adjustments:
            found["adjusted"] = sorted(self._plan.choice.adjustments)
        if self._trouble:
            found["status"], found["reason"] = "degraded", self._trouble
        return found

    def profiles(self) -> types.Profiles:
        """Every profile, with the values that its settings would have here."""
        found = []
        for profile in self._planner.profiles.values():
            plan = self._planner.plan(Choice(profile.name))
            rows = [
                types.ProfileSetting(
                    setting=aim.key,
                    value=value_of(plan.settings, aim.key),
                    unit=ROWS[aim.key].meta.unit,
                    reason=aim.reason,
                )
                for aim in profile.aims
            ]
            active = profile.name == self.profile
            found.append(
                types.Profile(
                    name=profile.name, summary=profile.summary, active=active, settings=rows
                )
            )
        return types.Profiles(profiles=found)

    async def optimize(self, profile: str) -> types.Optimized:
        """Apply a profile; single changes that were made before are taken back."""
        result = await self._change(lambda: Choice(profile))
        kept = self._planner.kept(self._plan)
        return msgspec.structs.replace(result, kept=kept)

    async def adjust(self, key: str, value: Any) -> types.Optimized:
        """Change one setting; the value `default` takes such a change back."""

        def choose() -> Choice:
            self._planner.check(key)
            choice = self._plan.choice
            adjustments = {name: old for name, old in choice.adjustments.items() if name != key}
            if value != "default":
                adjustments[key] = value
            return Choice(choice.profile, adjustments)

        return await self._change(choose)

    async def _change(self, choose: Callable[[], Choice]) -> types.Optimized:
        if self._changing.statistics().tasks_waiting >= MOST_WAITING:
            raise WireError(
                BUSY,
                f"{MOST_WAITING} changes wait for another one to end, the limit",
                hint="try again in a moment",
            )
        async with self._changing:
            before, old = self._in_force(), self._plan
            plan = self._planner.plan(choose())
            if plan.choice != old.choice or self._trouble:
                await self._carry_out(plan)
            after = self._in_force()
            changes = [
                types.Change(
                    setting=key,
                    before=before[key],
                    after=after[key],
                    unit=ROWS[key].meta.unit,
                    reason=self._planner.reason(plan, key),
                )
                for key in LIVE
                if before[key] != after[key]
            ]
        result = types.Optimized(
            profile_applied=plan.choice.profile,
            previous_profile=old.choice.profile,
            changes=changes,
            kept={},
        )
        self._tell(result)
        return result

    async def _carry_out(self, plan: Plan) -> None:
        run = partial(trio.to_thread.run_sync, limiter=self._threads)
        try:
            try:
                await run(self._kept.prepare, plan.choice)
                await self._reconfigure(plan.settings)
            except OSError as error:
                raise self._unchanged(error) from error
            # From here on a caller that goes away leaves the change made, not half made.
            with trio.CancelScope(shield=True):
                try:
                    await run(self._kept.commit)
                except OSError as error:
                    await self._reconfigure(self._plan.settings)
                    raise self._unchanged(error) from error
                self._plan, self._trouble = plan, None
        finally:
            self._kept.discard()

    def _unchanged(self, error: OSError) -> WireError:
        where = error.filename or self._kept.path.parent
        return WireError(
            UNAVAILABLE,
            f"nothing was changed: {error.strerror or error} ({where})",
            field="profile",
            hint="make room there, or mend its permissions",
        )

    async def _reconfigure(self, settings: Settings) -> None:
        done: list[tuple[Part, Any]] = []
        try:
            for section, part in self._parts.items():
                wanted = getattr(settings, section)
                before = getattr(self._plan.settings, section)
                await part.reconfigure(wanted)
                done.append((part, before))
        except BaseException:
            with trio.CancelScope(shield=True):
                for part, before in reversed(done):
                    await part.reconfigure(before)
            raise

    def _in_force(self) -> dict[str, Any]:
        """Each setting that can change, as the parts have it."""
        found = {}
        for key in LIVE:
            section, _, name = key.partition(".")
            found[key] = getattr(self._parts[section].settings, name)
        return found

    def _tell(self, result: types.Optimized) -> None:
        if not result.changes and result.profile_applied == result.previous_profile:
            return
        changes = [
            {"setting": each.setting, "before": each.before, "after": each.after}
            for each in result.changes
        ]
        names = {
            "profile": result.profile_applied,
            "previous_profile": result.previous_profile,
            "changes": changes,
        }
        log.info("profile.applied", **names)
        self._broker.publish("profile", "profile.applied", **names)
        for changed in self.on_change:
            changed()
