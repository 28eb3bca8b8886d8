"""A personalization chooses by rules: nothing is random, and nothing is compared."""

from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.services import experiments, fleet, lifecycle, phases, preview
from shared.errors import FailedPrecondition, Invalid
from tests.support.builders import World, make_variant

GOLD = {"labels": [{"key": "tier", "operator": "equals", "value": "gold"}]}
SUPPORT = {"labels": [{"key": "role", "operator": "equals", "value": "support"}]}


def personal(key: str, rules: dict[str, Any] | None = None) -> dict[str, Any]:
    """A variant for whom the rules fit, without a weight."""
    return {**make_variant(key, weight=0), **({"targetingRules": rules} if rules else {})}


async def labelled(world: World, **labels: dict[str, str]) -> bytes:
    """An agent whose participants carry these labels."""
    uid = await world.agent(*labels)
    for name, values in labels.items():
        await world.do(fleet.update_participant, requests.CreateParticipant(id=name, labels=values))
    return uid


async def drafted(world: World, *variants: dict[str, Any], **fields: Any) -> Any:
    """A draft whose variants are chosen by rules."""
    return await world.experiment(
        *fields.pop("ids", ()), type="personalization", variants=list(variants), **fields
    )


async def chosen(world: World) -> dict[str, str | None]:
    """Variant key by participant, None for one without."""
    rows = await world.rows(
        "select p.public_id, v.key from assignment a join participant p on p.id = a.participant_id"
        " left join variant v on v.id = a.variant_id"
    )
    return {row["public_id"]: row["key"] for row in rows}


async def test_the_first_variant_that_fits_is_it(world: World) -> None:
    """In the variants' order, whatever their keys and weights; who fits none is on record without a variant."""
    await labelled(
        world, p={"tier": "gold", "role": "support"}, q={"role": "support"}, r={"tier": "tin"}, s={}
    )
    draft = await drafted(world, personal("z", GOLD), personal("a", SUPPORT), ids="pqrs")
    ahead = await world.do(preview.preview, requests.ById(id=draft.key))
    found = [(item.participant, item.code) for item in ahead.findings]
    assert [name for name, code in found if code == "NO_VARIANT"] == ["r", "s"]
    assert ahead.decision is None
    view = await world.do(lifecycle.start, requests.ById(id=draft.key))
    assert await chosen(world) == {"p": "z", "q": "a", "r": None, "s": None}
    [(code, unheard)] = view.warnings
    assert (code, unheard.split(" take")[0]) == ("PREFLIGHT_UNKNOWN", "p, q")
    assert view.experiment.phase.algorithm == "targeted-1"
    assert {item.method.value for item in view.assignments} == {"targeted"}
    assert len(await world.rows("select participant_id from slot")) == 2
    assert len(await world.rows("select participant_id from claim")) == 2


async def test_labels_that_change_move_nobody(world: World) -> None:
    """Who is assigned keeps the variant; who comes later is chosen for by the labels of then."""
    await labelled(world, p={"role": "support", "tier": "gold"})
    fields = {"participants": {"labels": {"role": "support"}}}
    await world.start(await drafted(world, personal("gold", GOLD), personal("rest"), **fields))
    await world.do(fleet.update_participant, requests.CreateParticipant(id="p", labels={"role": "support"}))
    await labelled(world, q={"role": "support"})
    assert await world.do(phases.admit, requests.ById(id="test")) == ["q"]
    assert await chosen(world) == {"p": "gold", "q": "rest"}


async def test_one_variant_is_enough_and_no_control_is_needed(world: World) -> None:
    """A start asks for neither; an allocation would be chance, and is refused."""
    await world.agent("p")
    await drafted(world, personal("a"), ids="p", trafficAllocation=50)
    with pytest.raises(FailedPrecondition) as refused:
        await world.do(lifecycle.start, requests.ById(id="test"))
    assert [fault.field for fault in refused.value.faults] == ["trafficAllocation"]
    values = {"id": "test", "trafficAllocation": 100}
    await world.do(experiments.update, requests.parse(requests.UpdateExperiment, values))
    await world.do(lifecycle.start, requests.ById(id="test"))
    assert await chosen(world) == {"p": "a"}


async def test_nothing_is_compared(world: World) -> None:
    """Counts and rates are there; every number that would compare is absent, and says why."""
    uid = await labelled(world, p={"tier": "gold"}, q={})
    await world.start(
        await drafted(world, {**personal("gold", GOLD), "isControl": True}, personal("rest"), ids="pq")
    )
    await world.clock.advance(60)
    now = world.clock.now()
    await world.report(
        uid,
        *(world.impression(name, at=now) for name in "ppq"),
        world.conversion("p", at=now + 1),
    )
    found = await world.answer()
    gold, rest = found["variants"]
    assert (gold["impressions"], gold["conversions"], gold["conversionRate"]) == (2, 1, 0.5)
    assert (rest["impressions"], rest["conversions"]) == (1, 0)
    assert (found["method"], found["verdict"], found["srm"]) == (None, None, None)
    for arm in (gold, rest):
        for name in ("probabilityToBeBest", "credibleInterval", "difference", "pValue", "chanceToWin"):
            assert (arm[name], arm["reasons"][name]) == (None, "NOT_RANDOMIZED")


async def test_there_is_no_phase(world: World) -> None:
    """Weights, allocation and seed decide nothing, so no phase can change them."""
    await world.agent("p")
    await world.start(await drafted(world, personal("a"), personal("b"), ids="p"))
    for fields in ({"weights": {"a": 50, "b": 50}}, {"seed": "ab" * 32}):
        request = requests.parse(requests.OpenPhase, {"id": "test", **fields})
        with pytest.raises(FailedPrecondition, match="rules choose") as refused:
            await world.do(phases.open_phase, request)
        assert refused.value.reason == "NO_PHASES"


async def test_rules_of_a_variant_belong_to_a_personalization(world: World) -> None:
    """Elsewhere they are refused by field; in a draft they can change, afterwards not."""
    with pytest.raises(Invalid, match=r"variants.0.targetingRules"):
        await world.experiment("p", variants=[personal("a", GOLD)])
    await world.agent("p")
    await drafted(world, personal("a", GOLD), ids="p")
    values = {"id": "test", "variantId": "a", "targetingRules": SUPPORT}
    request = requests.parse(requests.UpdateVariant, values)
    _, changed = await world.do(experiments.update_variant, request)
    assert changed.targeting_rules.model_dump(exclude_none=True) == {"labels": (SUPPORT["labels"][0],)}
    _, cleared = await world.do(
        experiments.update_variant,
        requests.parse(requests.UpdateVariant, {**values, "targetingRules": {"labels": []}}),
    )
    assert cleared.targeting_rules.labels == ()
    await world.start((await world.do(experiments.get, requests.ById(id="test"))).experiment)
    with pytest.raises(FailedPrecondition, match="edit"):
        await world.do(experiments.update_variant, request)
