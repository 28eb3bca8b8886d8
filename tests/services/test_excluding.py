"""Variants and participants that a design leaves out, and how a design says it is decided."""

from collections import Counter
from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.services import experiments, lifecycle, phases, preview
from shared.errors import FailedPrecondition, Invalid
from shared.ids import show_id
from shared.moment import SECOND
from tests.support.builders import World, make_variant

NAMES = [f"bot-{n}" for n in range(8)]
THREE = [make_variant("a", control=True), make_variant("b"), make_variant("c")]


async def drafted(world: World, **analysis: Any) -> Any:
    """A draft with three variants, of which `a` and `b` have half each."""
    return await world.experiment(*NAMES, variants=THREE, analysis=analysis)


async def changed(world: World, **analysis: Any) -> Any:
    """The one experiment, with another analysis."""
    values = {"id": "test", "analysis": analysis}
    return (await world.do(experiments.update, requests.parse(requests.UpdateExperiment, values))).experiment


async def test_an_excluded_variant_gets_nobody_and_is_in_no_result(world: World) -> None:
    """The others share the participants by their weights, which sum to 100 without it; the plan says the same."""
    uid = await world.agent(*NAMES)
    draft = await drafted(world, excludedVariantIds=["c"])
    ahead = await world.do(experiments.get, requests.ById(id="test"))
    started = await world.start(draft)
    held = await world.assigned(started)
    assert Counter(held.values()) == {"a": 4, "b": 4}
    ids = {variant.id: variant.key for variant in started.variants}
    assert {item.participant: ids[item.variant_id] for item in ahead.assignments} == held
    assert {ids[key]: weight for key, weight in started.phase.weights.items()} == {"a": 50, "b": 50, "c": 0}
    await world.clock.advance(60)
    await world.report(uid, world.impression("bot-0", at=world.clock.now() - SECOND))
    found = (await world.answer())["variants"]
    assert [arm["key"] for arm in found] == ["a", "b"]
    assert sum(arm["impressions"] for arm in found) == 1


async def test_a_phase_gives_an_excluded_variant_nothing(world: World) -> None:
    """Its weight is not asked for, and refused."""
    await world.agent(*NAMES)
    await world.start(await drafted(world, excludedVariantIds=["c"]))
    request = requests.parse(requests.OpenPhase, {"id": "test", "weights": {"a": 25, "b": 50, "c": 25}})
    with pytest.raises(Invalid, match=r"weights\.c: is of a variant that analysis\.excludedVariantIds"):
        await world.do(phases.open_phase, request)
    request = requests.parse(requests.OpenPhase, {"id": "test", "weights": {"a": 25, "b": 75}})
    view, _ = await world.do(phases.open_phase, request)
    assert Counter((await world.assigned(view.experiment)).values()) == {"a": 2, "b": 6}


async def test_normalising_leaves_an_excluded_variant_alone(world: World) -> None:
    """The weights of the others are put right."""
    variants = [{**item, "weight": 30} for item in THREE]
    await world.experiment(*NAMES, variants=variants, analysis={"excludedVariantIds": ["c"]})
    with pytest.raises(FailedPrecondition, match="sum to 60"):
        await world.do(lifecycle.start, requests.ById(id="test"))
    view = await world.do(lifecycle.begin, requests.Start(id="test", normalize=True))
    assert [variant.weight for variant in view.experiment.variants] == [50, 50, 30]


@pytest.mark.parametrize(
    ("excluded", "why"),
    [
        (["a"], "a is the control"),
        (["b", "c"], r"has 1 besides 2 excluded, needs at least 2"),
    ],
)
async def test_what_has_to_stay_keeps_a_start_back(world: World, excluded: list[str], why: str) -> None:
    """The control, and two variants: a draft may be anything, a start says what is wrong."""
    with pytest.raises(FailedPrecondition, match=why):
        await world.start(await drafted(world, excludedVariantIds=excluded))


async def test_a_variant_is_excluded_by_id_or_key_and_comes_back(world: World) -> None:
    """Unknown names are refused with the known ones; a variant that is deleted is in the list no more."""
    with pytest.raises(Invalid, match=r"there is no variant 'd'"):
        await drafted(world, excludedVariantIds=["d"])
    draft = await drafted(world)
    with pytest.raises(Invalid, match=r"there is no variant 'd'.*") as caught:
        await changed(world, excludedVariantIds=["d"])
    assert caught.value.faults[0].remedy == "the experiment has a, b, c"
    by_id = await changed(world, excludedVariantIds=[show_id(draft.variants[2].id), "c"])
    assert by_id.design.analysis.excluded_variant_ids == ("c",)
    copy = await world.do(experiments.duplicate, requests.Duplicate(id="test", key="copy"))
    assert [variant.key for variant in copy.experiment.arms] == ["a", "b"]
    await world.do(experiments.delete_variant, requests.OfVariant(id="test", variantId="c"))
    left = await world.do(experiments.get, requests.ById(id="test"))
    assert left.experiment.design.analysis.excluded_variant_ids == ()
    assert (await changed(world)).arms == left.experiment.variants


async def test_combinations_are_not_excluded(world: World) -> None:
    """A multivariate experiment compares them all."""
    levels = [{"key": "x", "content": "x"}, {"key": "y", "content": "y"}]
    values = {
        "name": "Test",
        "type": "multivariate",
        "factors": [{"key": "tone", "targetFile": "soul.md", "levels": levels}],
        "analysis": {"excludedVariantIds": ["x"]},
    }
    with pytest.raises(Invalid, match="one of the combinations"):
        await world.do(experiments.create, requests.parse(requests.CreateExperiment, values))


async def test_excluded_participants_are_not_assigned(world: World) -> None:
    """Nor claimed nor deployed to; the preview says why."""
    await world.agent(*NAMES)
    draft = await drafted(world, excludedVariantIds=["c"], excludedParticipantIds=["bot-1", "bot-3"])
    told = await world.do(preview.preview, requests.ById(id="test"))
    assert [(item.participant, item.code) for item in told.findings] == [
        (name, "EXCLUDED" if name in ("bot-1", "bot-3") else "PREFLIGHT_UNKNOWN") for name in NAMES
    ]
    started = await world.start(draft)
    assert set(await world.assigned(started)) == set(NAMES) - {"bot-1", "bot-3"}
    assert len(await world.rows("select * from claim")) == 6


async def test_an_excluded_participant_that_nobody_asked_for_is_a_mistake(world: World) -> None:
    """Of a list of ids; labels may mean somebody later."""
    with pytest.raises(FailedPrecondition, match="bot-9 would not take part anyway"):
        await world.start(await drafted(world, excludedVariantIds=["c"], excludedParticipantIds=["bot-9"]))


async def test_who_is_left_out_is_fixed_by_the_start(world: World) -> None:
    """As all structure is."""
    await world.agent(*NAMES)
    await world.start(await drafted(world, excludedVariantIds=["c"]))
    with pytest.raises(FailedPrecondition, match="running"):
        await changed(world)


async def test_how_it_is_decided_follows_from_who_takes_part(world: World) -> None:
    """A closed list of up to 1,000 by the path test, anything else by the sequence, unless it is said."""
    assert (await drafted(world)).decided_by == "path_test"
    assert (await changed(world, decision="sequence")).decided_by == "sequence"
    by_labels = await world.experiment(participants={"labels": {"role": "x"}}, key="labels")
    assert by_labels.decided_by == "sequence"
    many = await world.experiment(*[f"p-{n}" for n in range(1001)], key="many")
    assert many.decided_by == "sequence"


async def test_the_fingerprint_of_a_plan_says_what_differs_from_the_defaults(world: World) -> None:
    """So that an experiment whose analysis was written down before a field existed keeps its fingerprint."""
    draft = await drafted(world)
    assert draft.design.analysis.said() == {"alpha": 0.05}
    other = await changed(world, alpha=0.05, power=0.9)
    assert other.design.analysis.said() == {"alpha": 0.05, "power": 0.9}
    assert other.fingerprint() != draft.fingerprint()


@pytest.mark.parametrize(
    ("analysis", "field"),
    [
        ({"decision": "coin"}, "decision"),
        ({"horizonDays": 0}, "horizonDays"),
        ({"horizonDays": 367}, "horizonDays"),
        ({"tuning": 0}, "tuning"),
        ({"variance": "bootstrap"}, "variance"),
        ({"prior": {"a": 0}}, "prior.a"),
        ({"power": 0.4}, "power"),
        ({"power": 1}, "power"),
        ({"minimumDetectableEffect": 0}, "minimumDetectableEffect"),
        ({"excludedVariantIds": ["b", "b"]}, "excludedVariantIds"),
        ({"excludedParticipantIds": ["a b"]}, "excludedParticipantIds.0"),
    ],
)
async def test_a_field_out_of_range_is_named(world: World, analysis: dict[str, Any], field: str) -> None:
    """With its place."""
    with pytest.raises(Invalid) as caught:
        await drafted(world, **analysis)
    assert [fault.field for fault in caught.value.faults] == [f"analysis.{field}"]
