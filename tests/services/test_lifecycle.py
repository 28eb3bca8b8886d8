"""Verbs beyond start and complete: what they leave on record."""

from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.services import deployments, experiments, fleet, lifecycle, phases
from shared.errors import FailedPrecondition, Invalid
from shared.ids import show_id
from tests.support.builders import World


async def wanted(world: World) -> dict[str, tuple[str, str | None]]:
    """(action, variant key) of every participant's slot, as desired now."""
    rows = await world.rows(
        "select p.public_id, d.action, v.key from slot s join deployment d on d.id = s.deployment_id"
        " join participant p on p.id = s.participant_id left join variant v on v.id = d.variant_id"
    )
    return {row["public_id"]: (row["action"], row["key"]) for row in rows}


async def do(world: World, verb: str, **fields: Any) -> Any:
    """The view after a verb on the one experiment."""
    kinds = {"pause": requests.Pause, "complete": requests.Complete, "ship": requests.Ship}
    kind = {**kinds, "reset": requests.Reset}.get(verb, requests.ById)
    return await world.do(getattr(lifecycle, verb), requests.parse(kind, {"id": "test", **fields}))


async def test_a_pause_that_reverts_is_undone_by_the_resume(world: World) -> None:
    """Every slot is to be restored, then to hold its own variant again, a forced one included."""
    await world.agent("p", "q")
    started = await world.start(await world.experiment("p", "q"))
    assigned = await world.assigned(started)
    await do(world, "pause", onPause="revert")
    assert set((await wanted(world)).values()) == {("restore", None)}
    view = await do(world, "resume")
    assert view.experiment.status == "running"
    assert await wanted(world) == {name: ("write", key) for name, key in assigned.items()}


@pytest.mark.parametrize("other", [False, True])
async def test_what_is_withdrawn_during_a_pause_that_reverts_is_no_matter_to_the_resume(
    world: World, *, other: bool
) -> None:
    """Whichever variant was deployed by hand and taken back, its own comes back; nobody outside gets any."""
    await world.agent("p", "q", "r", "s")
    started = await world.start(await world.experiment("p", "q", "r", "s", trafficAllocation=50))
    before = await wanted(world)
    keys = [variant.key for variant in started.variants]
    await do(world, "pause", onPause="revert")
    for name in ("p", "q", "r", "s"):
        own = before[name][1] if name in before else "a"
        order = {
            "id": "test",
            "participantId": name,
            "variantId": next(k for k in keys if (k != own) == other),
        }
        made = await world.do(deployments.create, requests.parse(requests.CreateDeployment, order))
        await world.do(deployments.withdraw, requests.ById(id=show_id(made.id)))
    await do(world, "resume")
    assert len(before) == 2
    assert await wanted(world) == {name: before.get(name, ("restore", None)) for name in ("p", "q", "r", "s")}


@pytest.mark.parametrize("meanwhile", ["resume", "phase"])
async def test_a_withdrawal_takes_nobody_s_own_variant(world: World, meanwhile: str) -> None:
    """What was deployed by hand stayed over a resume, or was in place for a phase: the own one follows it."""
    await world.agent("p", "q")
    started = await world.start(await world.experiment("p", "q"))
    assigned = await world.assigned(started)
    name = next(name for name, key in assigned.items() if key == "a")
    if meanwhile == "resume":
        await do(world, "pause", onPause="revert")
    await world.clock.advance(1)
    order = {"id": "test", "participantId": name, "variantId": "a" if meanwhile == "resume" else "b"}
    made = await world.do(deployments.create, requests.parse(requests.CreateDeployment, order))
    await world.clock.advance(1)
    if meanwhile == "resume":
        await do(world, "resume")
    else:
        request = requests.parse(requests.OpenPhase, {"id": "test", "weights": {"a": 0, "b": 100}})
        await world.do(phases.open_phase, request)
        assigned = dict.fromkeys(assigned, "b")
    assert await wanted(world) == {one: ("write", key) for one, key in assigned.items()}
    await world.do(deployments.withdraw, requests.ById(id=show_id(made.id)))
    assert await wanted(world) == {one: ("write", key) for one, key in assigned.items()}


async def test_nothing_is_shipped_to_or_restored_on_a_participant_that_was_deleted(world: World) -> None:
    """Nobody would ever take it, so whoever waited for the hosts would wait for good."""
    await world.agent("p", "q")
    await world.start(await world.experiment("p", "q"))
    await do(world, "complete")
    await world.do(fleet.delete_participant, requests.ById(id="p"))
    await do(world, "ship", variantId="b")
    assert await wanted(world) == {"p": ("close", None), "q": ("write", "b")}
    await do(world, "reset", then="restore")
    assert await wanted(world) == {"p": ("close", None), "q": ("restore", None)}


async def test_a_pause_that_holds_touches_no_slot(world: World) -> None:
    """Neither the pause nor the resume deploys anything."""
    await world.agent("p")
    await world.start(await world.experiment("p"))
    before = await world.rows("select * from deployment")
    await do(world, "pause")
    await do(world, "resume")
    assert await world.rows("select * from deployment") == before


async def test_shipping_is_one_deployment_for_each_participant(world: World) -> None:
    """Everybody gets the winner once, the claims end, the winner is on record."""
    await world.agent("p", "q")
    await world.start(await world.experiment("p", "q"))
    view = await do(world, "ship", variantId="b", conclusion="won")
    winner = next(item for item in view.experiment.variants if item.key == "b")
    assert (view.experiment.status, view.experiment.winner_variant_id) == ("completed", winner.id)
    assert await wanted(world) == {"p": ("write", "b"), "q": ("write", "b")}
    assert len(await world.rows("select id from deployment where origin = 'ship'")) == 2
    assert await world.rows("select * from claim") == []


async def test_shipping_needs_to_know_what(world: World) -> None:
    """Without a winner the field to set is named; a completed experiment ships its winner on record."""
    await world.agent("p")
    await world.start(await world.experiment("p"))
    with pytest.raises(Invalid, match="variantId"):
        await do(world, "ship")
    with pytest.raises(Invalid, match="winnerVariantId"):
        await do(world, "complete", then="ship")
    await do(world, "complete", winnerVariantId="b", conclusion="won", conclusionComment="clear")
    view = await do(world, "ship")
    assert await wanted(world) == {"p": ("write", "b")}
    assert (view.experiment.conclusion, view.experiment.conclusion_comment) == ("won", "clear")


async def test_shipping_late_meets_who_holds_the_file_by_now(world: World) -> None:
    """A completed experiment does not write over another one that runs on the same file."""
    await world.agent("p")
    await world.start(await world.experiment("p"))
    await do(world, "complete", winnerVariantId="b")
    await world.start(await world.experiment("p", name="Second"))
    with pytest.raises(FailedPrecondition, match="held by experiment second"):
        await do(world, "ship")


async def test_a_reset_keeps_what_was_measured_apart_from_the_next_run(world: World) -> None:
    """The next run has another seed and a phase of its own, and its results begin at nothing."""
    uid = await world.agent("p")
    first = await world.start(await world.experiment("p"))
    await world.report(uid, world.impression("p", at=world.clock.now()))
    await do(world, "complete", conclusion="won")
    view = await do(world, "reset")
    again = view.experiment
    assert (again.status, again.run, again.phase, again.started_at) == ("draft", 2, None, None)
    assert (again.conclusion, again.completed_at, again.seed == first.seed) == (None, None, False)
    second = await world.start(again)
    assert second.phase.id != first.phase.id
    sums = await world.ask(lambda store: store.events.sums(second.phase.id, "", population="assigned"))
    assert all(item.impressions == 0 for item in sums)
    kept = await world.ask(lambda store: store.events.sums(first.phase.id, "", population="assigned"))
    assert [item.impressions for item in kept] == [1]


async def test_a_draft_that_has_run_is_archived_by_delete(world: World) -> None:
    """What it measured stays; a draft that never ran is gone."""
    await world.agent("p")
    await world.start(await world.experiment("p"))
    await do(world, "complete")
    await do(world, "reset")
    await world.do(experiments.delete, requests.ById(id="test"))
    assert (await world.do(experiments.get, requests.ById(id="test"))).experiment.archived


async def test_what_is_archived_rests(world: World) -> None:
    """An archived draft neither starts nor changes until it is taken out again."""
    draft = await world.experiment("p")
    await do(world, "archive")
    with pytest.raises(FailedPrecondition, match="archived"):
        await world.start(draft)
    change = requests.parse(requests.UpdateExperiment, {"id": "test", "targetFile": "other.md"})
    with pytest.raises(FailedPrecondition, match="unarchive"):
        await world.do(experiments.update, change)
    await do(world, "unarchive")
    assert (await world.start(draft)).status == "running"


async def test_a_copy_is_a_draft_with_the_same_design(world: World) -> None:
    """Variants, participants, metrics and settings are copied; key, seed and history are its own."""
    await world.agent("p")
    source = await world.start(
        await world.experiment("p", metrics={"primary": {"eventName": "done", "goal": "decrease"}})
    )
    await do(world, "complete", winnerVariantId="b", conclusion="won")
    made = [
        (await world.do(experiments.duplicate, requests.Duplicate(id="test"))).experiment for _ in range(2)
    ]
    assert [item.name for item in made] == ["Test (Copy)", "Test (Copy) 2"]
    copy = made[0]
    assert (copy.status, copy.run, copy.conclusion, copy.phase) == ("draft", 1, None, None)
    assert (copy.metrics, copy.selector, copy.target_file) == (
        source.metrics,
        source.selector,
        source.target_file,
    )
    shape = [(item.key, item.weight, item.is_control, item.files) for item in source.variants]
    assert [(item.key, item.weight, item.is_control, item.files) for item in copy.variants] == shape
    assert {item.id for item in copy.variants}.isdisjoint(item.id for item in source.variants)
    assert copy.seed != source.seed


@pytest.mark.parametrize("again", [False, True])
async def test_a_draft_that_holds_a_file_is_not_put_away(world: World, *, again: bool) -> None:
    """Whoever wants the file would be sent to an experiment that is in no list."""
    await world.agent("p", "q")
    await world.experiment("p", "q")
    if again:
        await do(world, "start")
        await do(world, "complete", then="restore")
        await do(world, "reset")
    order = {"id": "test", "participantId": "p", "variantId": "a"}
    await world.do(deployments.create, requests.parse(requests.CreateDeployment, order))
    for verb in (lifecycle.archive, experiments.delete):
        with pytest.raises(FailedPrecondition) as refused:
            await world.do(verb, requests.ById(id="test"))
        assert refused.value.reason == "DRAFT_IN_USE"
    await do(world, "start")
    await do(world, "complete", then="restore")
    view = await do(world, "archive")
    assert view.experiment.archived
