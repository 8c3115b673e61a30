"""What a factory may say of the value that it loads, and what of that is kept for the next load."""

from __future__ import annotations

from typing import Any

import pytest

from bi_performance import LoadContext, Options
from bi_performance.optimizer import PerformanceOptimizer
from bi_performance.options import read_meta
from bi_performance.reader import Entry
from support.callers import GRACE, WORLDS, here, running, there, use

__all__ = ["here", "running", "there"]


@WORLDS
def test_a_factory_says_how_long_its_value_lasts_and_renews_what_did_not_change(
    here: PerformanceOptimizer, run: Any
) -> None:
    seen: list[Any] = []

    def load(ctx: LoadContext) -> Any:
        seen.append((ctx.key, ctx.has_stale, ctx.stale_value, ctx.etag, ctx.last_modified))
        if ctx.etag == "v1":
            ctx.ttl = 500
            return ctx.not_modified()
        ctx.ttl = 100
        ctx.etag, ctx.last_modified = "v1", "yesterday"
        ctx.tags = ("page",)
        return {"page": 1}

    assert use(here, run, load, soft_timeout=None).value == {"page": 1}
    ttl = here.sync.cache.get_entry("k").ttl
    assert ttl is not None and 90 < ttl <= 100
    here.sync.cache.expire("k")
    assert use(here, run, load, soft_timeout=None).value == {"page": 1}
    ttl = here.sync.cache.get_entry("k").ttl
    assert ttl is not None and 400 < ttl <= 500
    assert here.sync.cache.refresh("k", load) == {"page": 1}
    old = ("k", True, {"page": 1}, "v1", "yesterday")
    assert seen == [("k", False, None, None, None), old, old]
    assert here.sync.cache.clear(tags=["page"]) == 1, "the tag stays, though it was not said again"


def test_what_a_factory_said_holds_for_the_value_that_is_renewed(
    here: PerformanceOptimizer,
) -> None:
    """Until it says otherwise, or there is a new value; what the options say is not kept."""
    cache = here.sync.cache
    script: list[dict[str, Any]] = [{"ttl": 500, "grace": 100, "tags": ["a"]}, {}, {"tags": ["b"]}]
    script += [{"ttl": 60, "grace": 60, "tags": []}, {}]
    loads = iter(script)

    def load(ctx: LoadContext) -> Any:
        for name, value in next(loads).items():
            setattr(ctx, name, value)
        return ctx.not_modified() if ctx.has_stale else "value"

    def entry() -> tuple[int, float, tuple[bytes, ...]]:
        found = here._server.find(b"k", count=False)
        assert isinstance(found, Entry) and found.ttl is not None
        grace = 0 if found.extra is None else found.extra.grace
        return round(found.ttl), grace / 10, () if found.extra is None else found.extra.tags

    found = []
    for number in range(len(script)):
        options = Options(ttl=60, grace=60, tags=(f"option{number}",))
        assert cache.refresh("k", load, options=options) == "value"
        found.append(entry())
    said = (500, 100.0)
    assert found == [(*said, (b"a",)), (*said, (b"a",)), (*said, (b"b",)), *[(60, 60.0, ())] * 2]
    assert cache.refresh("k", lambda: "new", options=options) == "new"
    assert entry() == (60, 60.0, (b"option4",))


def test_what_is_kept_beside_a_value_is_bounded_where_it_is_set(here: PerformanceOptimizer) -> None:
    cache = here.sync.cache

    def long(ctx: LoadContext) -> Any:
        ctx.etag, ctx.last_modified = "e" * 800, "m" * 100
        ctx.ttl, ctx.grace, ctx.tags = 77, 66, ["tag"]
        return 1

    assert cache.get_or_set("k", long, options=GRACE, early=1) == 1
    found = here._server.find(b"k", count=False)
    assert isinstance(found, Entry)
    assert read_meta(found)[1:] == ("e" * 800, "m" * 100, 77.0, 66.0, ("tag",))
    for name, value, error in (
        ("etag", "e" * 801, ValueError),
        ("etag", "é" * 401, ValueError),
        ("etag", "\ud800", ValueError),
        ("etag", b"e", TypeError),
        ("last_modified", "m" * 101, ValueError),
        ("ttl", "1", TypeError),
        ("grace", -1, ValueError),
        ("tags", [""], ValueError),
        ("bogus", 1, AttributeError),
    ):

        def wrong(ctx: LoadContext, name: str = name, value: Any = value) -> None:
            setattr(ctx, name, value)

        with pytest.raises(error, match=name.removesuffix("s")):
            cache.refresh("k", wrong)


def test_a_factory_s_mistakes_are_its_caller_s(here: PerformanceOptimizer) -> None:
    def renew(ctx: LoadContext) -> Any:
        return ctx.not_modified()

    def misname(ctx: LoadContext) -> Any:
        ctx.etag = 5  # type: ignore[assignment] # the mistake that is tried
        return 1

    def long(ctx: LoadContext) -> Any:
        ctx.ttl = -1
        return 1

    for factory, error, words in (
        (renew, ValueError, "no older value"),
        (misname, TypeError, "etag"),
        (long, ValueError, "ttl"),
    ):
        with pytest.raises(error, match=words):
            here.sync.cache.get_or_set("k", factory)
    assert here.sync.cache.get_or_set("k", lambda: 1) == 1
