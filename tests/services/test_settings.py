"""What a project's settings refuse, when, and what they say for a design."""

from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.settings import UpdateSettings
from control_plane.services import experiments, lifecycle, settings
from shared.errors import FailedPrecondition, Invalid
from tests.support.builders import World, make_variant


async def say(world: World, **values: Any) -> Any:
    """Changes the settings."""
    return await world.do(settings.update, requests.parse(UpdateSettings, values))


async def refused(world: World, use_case: Any, model: Any, **values: Any) -> dict[str, str]:
    """Messages by field of what the settings refuse."""
    with pytest.raises(Invalid) as error:
        await world.do(use_case, requests.parse(model, values))
    assert error.value.reason == "REFUSED_BY_SETTINGS"
    return {fault.field: fault.message for fault in error.value.faults}


MARKED = {"glob": "*.md", "required": ["(?m)^# "], "forbidden": ["secret"]}


def variant(key: str, content: str) -> dict[str, Any]:
    """A variant with this content."""
    return {**make_variant(key, control=key == "a"), "content": content}


async def test_a_file_that_is_not_allowed_is_refused_where_it_is_named(world: World) -> None:
    """At create, at an update and as a variant's file; nothing of the refused request stays."""
    await say(world, targetAllowList=["config/**"])
    values = {"name": "T", "targetFile": "soul.md", "variants": [make_variant("a")]}
    assert set(await refused(world, experiments.create, requests.CreateExperiment, **values)) == {
        "targetFile"
    }
    assert await world.rows("select id from experiment") == []
    await world.experiment("p", targetFile="config/soul.md")
    message = await refused(
        world, experiments.update, requests.UpdateExperiment, id="test", targetFile="soul.md"
    )
    assert "soul.md is none of the files" in message["targetFile"]
    files = {"id": "test", "name": "C", "files": [{"path": "other.md", "content": "x"}]}
    found = await refused(world, experiments.add_variant, requests.AddVariant, **files)
    assert set(found) == {"variants.c.files.other.md"}
    shown = await world.do(experiments.get, requests.ById(id="test"))
    assert [item.key for item in shown.experiment.variants] == ["a", "b"]
    assert shown.experiment.target_file == "config/soul.md"


async def test_contents_are_checked_where_they_come_in(world: World) -> None:
    """Every broken rule at once, with variant, file, rule and line."""
    await say(world, validators=[MARKED])
    values = {
        "name": "T",
        "targetFile": "soul.md",
        "variants": [variant("a", "# ok\n"), variant("b", "no heading\na secret\n")],
    }
    with pytest.raises(Invalid) as error:
        await world.do(experiments.create, requests.parse(requests.CreateExperiment, values))
    assert [(fault.field, fault.message) for fault in error.value.faults] == [
        (
            "variants.b.content",
            "b, soul.md: does not have what is required: (?m)^#  (validator *.md, required)",
        ),
        (
            "variants.b.content",
            "b, soul.md, line 2: has what is forbidden: secret (validator *.md, forbidden)",
        ),
    ]
    good = [variant("a", "# a\n"), variant("b", "# b\n")]
    await world.experiment("p", variants=good)
    changed = {"id": "test", "variantId": "b", "content": "none"}
    found = await refused(world, experiments.update_variant, requests.UpdateVariant, **changed)
    assert set(found) == {"variants.b.content"}
    await world.do(
        experiments.update_variant,
        requests.parse(requests.UpdateVariant, {"id": "test", "variantId": "b", "content": "# new"}),
    )


async def test_factors_are_checked_level_by_level(world: World) -> None:
    """A content that many combinations share is told once, at its level."""
    await say(world, targetAllowList=["*.md"], validators=[{"glob": "tone.md", "format": "front_matter"}])
    levels = [{"key": "warm", "content": "warm"}, {"key": "cold", "content": "---\na: b\n---\n"}]
    other = [{"key": "x", "content": "x"}, {"key": "y", "content": "y"}]
    values = {
        "name": "M",
        "type": "multivariate",
        "factors": [
            {"key": "tone", "targetFile": "tone.md", "levels": levels},
            {"key": "model", "targetFile": "model.txt", "levels": other},
        ],
    }
    found = await refused(world, experiments.create, requests.CreateExperiment, **values)
    assert set(found) == {"factors.tone.levels.warm", "factors.model.targetFile"}


async def test_a_start_tells_everything_at_once(world: World) -> None:
    """Settings that came later keep a draft from starting, besides whatever else is missing; names still change."""
    await world.agent("p", "q")
    await world.experiment("p", "q", variants=[variant("a", "# a"), {**variant("b", "secret"), "weight": 40}])
    await say(world, targetAllowList=["config/**"], validators=[MARKED])
    with pytest.raises(FailedPrecondition) as error:
        await world.do(lifecycle.start, requests.ById(id="test"))
    assert [fault.field for fault in error.value.faults] == [
        "variants.weight",
        "targetFile",
        "variants.b.content",
        "variants.b.content",
    ]
    renamed = {"id": "test", "name": "Other"}
    await world.do(experiments.update, requests.parse(requests.UpdateExperiment, renamed))
    await world.do(
        experiments.update_variant,
        requests.parse(requests.UpdateVariant, {"id": "test", "variantId": "b", "name": "Bee", "weight": 50}),
    )
    await say(world, targetAllowList=None, validators=None)
    await world.do(lifecycle.start, requests.ById(id="test"))


async def test_what_runs_goes_on(world: World) -> None:
    """Settings that would refuse a running experiment do not touch it."""
    await world.agent("p", "q")
    started = await world.start(await world.experiment("p", "q"))
    await say(world, targetAllowList=["config/**"])
    await world.do(lifecycle.pause, requests.Pause(id=started.key))
    view = await world.do(lifecycle.resume, requests.ById(id=started.key))
    assert view.experiment.status.value == "running"


async def test_defaults_fill_in_what_a_design_does_not_say(world: World) -> None:
    """A new draft takes them where its caller is silent; what was said, and drafts there are, stay."""
    before = await world.experiment("p", settle=5)
    await say(world, defaults={"settleSeconds": 120, "alpha": 0.1})

    async def design(**values: Any) -> tuple[int, float]:
        view = await world.do(
            experiments.create, requests.parse(requests.CreateExperiment, {"name": "D", **values})
        )
        found = view.experiment.design
        return found.exposure_criteria.settle_seconds, found.analysis.alpha

    assert await design() == (120, 0.1)
    assert await design(exposureCriteria={}, analysis={"alpha": 0.01}) == (120, 0.01)
    assert await design(exposureCriteria={"settleSeconds": 0}) == (0, 0.1)

    async def change(**values: Any) -> Any:
        request = requests.parse(requests.UpdateExperiment, {"id": before.key, **values})
        return (await world.do(experiments.update, request)).experiment.design

    kept = await change(description="x")
    assert (kept.exposure_criteria.settle_seconds, kept.analysis.alpha) == (5, 0.05)
    reset = await change(exposureCriteria=None)
    assert (reset.exposure_criteria.settle_seconds, reset.analysis.alpha) == (120, 0.05)


async def test_settings_change_in_parts(world: World) -> None:
    """What was not sent stays, null is none again; who changed them, when and how often is known."""
    first = await world.do(settings.get, requests.Nothing())
    assert (first.version, first.updated_at) == (0, None)
    await say(world, targetAllowList=["*.md"], validators=[MARKED])
    await world.clock.advance(1)
    found = await say(world, validators=None)
    assert found.settings.target_allow_list == ("*.md",)
    assert found.settings.validators == ()
    assert (found.version, found.updated_at, found.updated_by) == (2, world.clock.now(), "test")
