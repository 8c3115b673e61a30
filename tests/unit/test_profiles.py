"""Profiles: what a file may say, what a choice comes to, and a change whole or not at all."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from bi_performance_wire.errors import WireError
from bi_performanced.advice.catalog import SHIPPED, read_profile, read_profiles
from bi_performanced.advice.choice import Choice, Kept
from bi_performanced.advice.tuner import Planner, Tuner, restore
from bi_performanced.config import ConfigError, Settings
from bi_performanced.config.overlay import ROWS, Laid, lay
from bi_performanced.config.parse import Problem
from bi_performanced.events import Broker

GIB = 1 << 30


def configured(**cache: Any) -> Settings:
    settings = Settings(origins=dict.fromkeys(ROWS, "default"))
    values: dict[str, Any] = {"max_bytes": 64 << 20, **cache}
    return dataclasses.replace(settings, cache=dataclasses.replace(settings.cache, **values))


def planner(settings: Settings | None = None, room: int = GIB) -> Planner:
    return Planner(settings or configured(), lambda: room)


# ── files


def test_the_shipped_profiles_are_the_three_and_say_why_of_each_setting() -> None:
    found = read_profiles(None)
    assert set(found) == {"balanced", "memory_focused", "performance_focused"}
    assert found["balanced"].aims == ()
    for profile in found.values():
        assert profile.summary and all(aim.reason for aim in profile.aims)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('sumary = "x"', "unknown key sumary (did you mean summary?)"),
        ("", "summary must be a sentence"),
        ('summary = "x"\nsettings = 3', "settings must be tables"),
        (
            'summary = "x"\n[settings."cache.default_tll"]\nvalue = 1',
            "unknown setting cache.default_tll (did you mean cache.default_ttl?)",
        ),
        (
            'summary = "x"\n[settings."http.listen"]\nvalue = "off"\nreason = "r"',
            "http.listen cannot be changed while the daemon runs",
        ),
        (
            'summary = "x"\n[settings."cache.default_ttl"]\nunit = "s"\nreason = "r"',
            "one of value, at_least, at_most, and scale",
        ),
        (
            'summary = "x"\n[settings."cache.default_ttl"]\nvalue = 1\nscale = 2\nunit = "s"\n'
            'reason = "r"',
            "one of value, at_least, at_most, and scale",
        ),
        (
            'summary = "x"\n[settings."cache.default_ttl"]\nvalue = -1\nunit = "s"\nreason = "r"',
            "cache.default_ttl must be at least",
        ),
        (
            'summary = "x"\n[settings."cache.max_size"]\nvalue = "many"\nunit = "entries"\n'
            'reason = "r"',
            "cache.max_size must be a whole number",
        ),
        (
            'summary = "x"\n[settings."cache.default_ttl"]\nvalue = 1\nunit = "ms"\nreason = "r"',
            "must have the unit 's', not 'ms'",
        ),
        (
            'summary = "x"\n[settings."cache.default_ttl"]\nvalue = 1\nunit = "s"',
            "must have a reason",
        ),
        (
            'summary = "x"\n[settings."cache.compression"]\nscale = 2\nreason = "r"',
            "only a number can be scaled or bounded",
        ),
        (
            'summary = "x"\n[settings."cache.max_size"]\nscale = nan\nunit = "entries"\n'
            'reason = "r"',
            "scale must be more than 0",
        ),
        (
            'summary = "x"\n[settings."cache.max_size"]\nscale = true\nunit = "entries"\n'
            'reason = "r"',
            "scale must be a number",
        ),
        (
            'summary = "x"\n[settings."cache.max_size"]\nfactor = 2\nunit = "entries"\n'
            'reason = "r"',
            "unknown key factor",
        ),
        ("summary = ", "is not TOML"),
    ],
)
def test_a_file_that_is_no_profile_is_told_what_is_wrong(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(Problem, match=re.escape(said)) as raised:
        read_profile(path)
    assert str(path) in str(raised.value)


def test_a_folder_s_profiles_stand_beside_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "night.toml").write_text(
        'summary = "at night"\n[settings."cache.default_ttl"]\nvalue = 43200\nunit = "s"\n'
        'reason = "pages do not change"\n'
    )
    assert set(read_profiles(tmp_path)) > {"night", "balanced"}
    (tmp_path / "balanced.toml").write_text('summary = "mine"')
    with pytest.raises(Problem, match="is a shipped profile"):
        read_profiles(tmp_path)
    (tmp_path / "balanced.toml").rename(tmp_path / "My Own.toml")
    with pytest.raises(Problem, match="small letters"):
        read_profiles(tmp_path)
    with pytest.raises(Problem, match=r"advice\.profiles_dir"):
        read_profiles(tmp_path / "nowhere")


def test_the_shipped_files_are_the_whole_folder() -> None:
    assert sorted(path.name for path in SHIPPED.iterdir() if path.suffix != ".toml") == []


# ── what a choice comes to


def test_a_profile_lies_over_file_and_environment_and_under_the_command_line() -> None:
    settings = configured(default_ttl=60.0, max_size=100)
    settings.origins["cache.default_ttl"] = "env PERFORMANCE_CACHE_TTL"
    settings.origins["cache.max_size"] = "flag --max-size"
    made = planner(settings)
    plan = made.plan(Choice("performance_focused"))
    assert plan.settings.cache.default_ttl == 14400
    assert plan.settings.origins["cache.default_ttl"] == "profile:performance_focused"
    assert plan.settings.beneath["cache.default_ttl"] == (60.0, "env PERFORMANCE_CACHE_TTL")
    assert plan.settings.cache.max_size == 100
    assert plan.settings.origins["cache.max_size"] == "flag --max-size"
    assert "command line" in made.kept(plan)["cache.max_size"]
    with pytest.raises(WireError, match="command line"):
        made.plan(Choice("balanced", {"cache.max_size": 5}))


def test_balanced_is_exactly_what_is_configured() -> None:
    settings = configured(default_ttl=77.0)
    assert planner(settings).plan(Choice()).settings == settings


def test_a_scale_keeps_to_the_bounds_and_the_room_of_the_host() -> None:
    plan = planner(configured(max_size=1, max_bytes=1 << 20)).plan(Choice("memory_focused"))
    assert plan.settings.cache.max_size == 1, "never below the least that is allowed"
    assert plan.settings.cache.max_bytes == 1 << 20
    roomy = planner(configured(max_bytes=64 << 20)).plan(Choice("performance_focused"))
    assert roomy.settings.cache.max_bytes == 128 << 20
    tight = planner(configured(max_bytes=64 << 20), room=80 << 20)
    assert tight.plan(Choice("performance_focused")).settings.cache.max_bytes == 80 << 20
    full = planner(configured(max_bytes=64 << 20), room=4 << 20)
    assert full.plan(Choice("performance_focused")).settings.cache.max_bytes == 64 << 20


def test_a_profile_does_not_turn_round_what_is_configured_farther_already() -> None:
    longer = planner(configured(default_ttl=100_000.0)).plan(Choice("performance_focused"))
    assert longer.settings.cache.default_ttl == 100_000
    settings = configured()
    monitoring = dataclasses.replace(settings.monitoring, metrics_interval=5.0)
    closer = planner(dataclasses.replace(settings, monitoring=monitoring))
    assert closer.plan(Choice("memory_focused")).settings.monitoring.metrics_interval == 5


def test_a_single_setting_lies_over_the_profile() -> None:
    plan = planner().plan(Choice("performance_focused", {"cache.default_ttl": "90"}))
    assert plan.settings.cache.default_ttl == 90
    assert plan.settings.origins["cache.default_ttl"] == "config set"
    assert plan.settings.beneath["cache.default_ttl"][0] == 3600


@pytest.mark.parametrize(
    ("choice", "code", "field", "said"),
    [
        (Choice("blanced"), "not_found", "profile", "did you mean balanced"),
        (Choice("x" * 5000), "not_found", "profile", "there is no profile"),
        (Choice("balanced", {"cache.ttl": 1}), "invalid_argument", "setting", "unknown setting"),
        (Choice("balanced", {"http.listen": "off"}), "invalid_argument", "setting", "runs"),
        (Choice("balanced", {"cache.max_size": 0}), "invalid_argument", "value", "at least 1"),
        (Choice("balanced", {"cache.max_size": []}), "invalid_argument", "value", "whole number"),
        (Choice("balanced", {"cache.default_ttl": "nan"}), "invalid_argument", "value", "finite"),
    ],
)
def test_what_cannot_be_chosen_is_told_by_field(
    choice: Choice, code: str, field: str, said: str
) -> None:
    with pytest.raises(WireError, match=said) as raised:
        planner().plan(choice)
    assert (raised.value.code, raised.value.field) == (code, field)


def test_a_folder_with_a_bad_profile_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("summary = 3")
    settings = configured()
    advice = dataclasses.replace(settings.advice, profiles_dir=tmp_path)
    with pytest.raises(ConfigError, match="summary"):
        planner(dataclasses.replace(settings, advice=advice))


def test_an_overlay_without_entries_changes_nothing() -> None:
    settings = configured()
    assert lay(settings, {}) == settings
    laid = lay(settings, {"mode": Laid("observe", "test")})
    assert laid.mode == "observe" and laid.beneath["mode"] == ("on", "default")


# ── the kept choice


def test_a_choice_is_read_back_as_it_was(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    assert kept.read() == Choice()
    kept.prepare(Choice("memory_focused", {"cache.max_size": 7}))
    assert kept.read() == Choice(), "what is only prepared is not chosen"
    kept.commit()
    assert kept.read() == Choice("memory_focused", {"cache.max_size": 7})
    kept.discard()
    assert kept.read().profile == "memory_focused"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"profile": 3, "adjustments": {}}',
        b'{"profile": "balanced", "adjustments": []}',
        b'{"profile": "balanced"}',
        b'{"profile": "gone", "adjustments": {}}',
        b'{"profile": "balanced", "adjustments": {"cache.max_size": -4}}',
        b'{"profile": "balanced", "adjustments": {"no.such": 1}}',
        b"\xff" * 100_000,
        b"[" * 60_000,
    ],
)
def test_a_kept_choice_that_cannot_be_used_is_balanced_with_the_reason(
    tmp_path: Path, data: bytes
) -> None:
    kept = Kept(tmp_path)
    kept.path.write_bytes(data)
    plan, trouble = restore(planner(), kept)
    assert plan.choice == Choice() and trouble


# ── carrying out


class Recorder:
    """A part that goes by what it is told, or refuses."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.refuse = False
        self.hold: trio.Event | None = None

    async def reconfigure(self, settings: Any) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.refuse:
            raise OSError(28, "No space left on device")
        self.settings = settings


class Tuned:
    def __init__(self, folder: Path) -> None:
        made = planner()
        plan = made.plan(Choice())
        self.cache = Recorder(plan.settings.cache)
        self.monitor = Recorder(plan.settings.monitoring)
        self.kept = Kept(folder)
        self.broker = Broker()
        parts = {"cache": self.cache, "monitoring": self.monitor}
        self.tuner = Tuner(made, plan, self.kept, parts, self.broker, trouble=None)


def test_a_change_is_reported_kept_and_told(tmp_path: Path) -> None:
    async def main() -> None:
        tuned = Tuned(tmp_path)
        told = tuned.broker.subscribe(["profile"])
        result = await tuned.tuner.optimize("memory_focused")
        assert result.profile_applied == "memory_focused" and result.previous_profile == "balanced"
        changes = {each.setting: (each.before, each.after) for each in result.changes}
        assert changes["cache.max_size"] == (10_000, 5000)
        assert tuned.kept.read().profile == "memory_focused"
        event = await told.next()
        assert event is not None and event.body["profile"] == "memory_focused"
        again = await tuned.tuner.optimize("memory_focused")
        assert again.changes == []
        back = await tuned.tuner.optimize("balanced")
        assert {each.setting for each in back.changes} == set(changes)
        assert tuned.cache.settings == configured().cache

    trio.run(main)


def test_single_settings_are_taken_back_by_default_or_by_a_profile(tmp_path: Path) -> None:
    async def main() -> None:
        tuned = Tuned(tmp_path)
        await tuned.tuner.adjust("cache.default_ttl", "120")
        assert tuned.cache.settings.default_ttl == 120
        assert tuned.tuner.status()["adjusted"] == ["cache.default_ttl"]
        await tuned.tuner.adjust("cache.default_ttl", "default")
        assert tuned.cache.settings.default_ttl == 3600
        await tuned.tuner.adjust("cache.max_size", 5)
        await tuned.tuner.optimize("balanced")
        assert tuned.cache.settings.max_size == 10_000
        with pytest.raises(WireError, match="unknown setting"):
            await tuned.tuner.adjust("cache.nothing", "default")

    trio.run(main)


@pytest.mark.parametrize("part", ["cache", "monitor"])
def test_a_part_that_refuses_leaves_everything_as_it_was(tmp_path: Path, part: str) -> None:
    async def main() -> None:
        tuned = Tuned(tmp_path)
        getattr(tuned, part).refuse = True
        with pytest.raises(WireError, match="nothing was changed") as raised:
            await tuned.tuner.optimize("memory_focused")
        assert raised.value.code == "unavailable"
        assert tuned.tuner.profile == "balanced"
        assert tuned.cache.settings == configured().cache
        assert tuned.kept.read() == Choice()

    trio.run(main)
    assert list(tmp_path.iterdir()) == []


def test_a_choice_that_cannot_be_kept_is_not_made(tmp_path: Path) -> None:
    async def main() -> None:
        folder = tmp_path / "state"
        folder.mkdir()
        tuned = Tuned(folder)
        folder.rmdir()
        with pytest.raises(WireError, match="nothing was changed"):
            await tuned.tuner.optimize("memory_focused")
        assert tuned.cache.settings == configured().cache

    trio.run(main)


def test_a_caller_that_goes_away_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        tuned = Tuned(tmp_path)
        tuned.monitor.hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tuned.tuner.optimize, "memory_focused")
            await trio.testing.wait_all_tasks_blocked()
            while tuned.cache.settings.max_size != 5000:
                await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        assert tuned.tuner.profile == "balanced"
        assert tuned.cache.settings == configured().cache
        assert tuned.kept.read() == Choice()
        tuned.monitor.hold = None
        assert (await tuned.tuner.optimize("memory_focused")).changes

    trio.run(main)


def test_changes_beyond_a_few_that_wait_are_told_busy(tmp_path: Path) -> None:
    async def main() -> None:
        tuned = Tuned(tmp_path)
        tuned.cache.hold = trio.Event()
        told: list[str] = []

        async def change(profile: str) -> None:
            try:
                await tuned.tuner.optimize(profile)
                told.append("done")
            except WireError as error:
                told.append(error.code)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(change, "memory_focused")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert told == ["busy"] * 11
            tuned.cache.hold.set()
        assert told.count("done") == 9

    trio.run(main)


def test_changes_are_carried_out_one_after_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        tuned = Tuned(tmp_path)
        async with trio.open_nursery() as nursery:
            for profile in ("memory_focused", "performance_focused", "balanced") * 3:
                nursery.start_soon(tuned.tuner.optimize, profile)
        assert tuned.kept.read().profile == tuned.tuner.profile
        plan = planner().plan(Choice(tuned.tuner.profile))
        assert tuned.cache.settings == plan.settings.cache

    trio.run(main)
