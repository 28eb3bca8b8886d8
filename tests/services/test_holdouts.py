"""Holdouts: who is in one stays out of every experiment that names it, at every door."""

from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.intake import Method
from control_plane.services import experiments, fleet, holdouts, lifecycle, phases
from shared.errors import AlreadyExists, FailedPrecondition, NotFound
from tests.support.builders import World, make_variant

NAMES = tuple(f"bot-{n:02}" for n in range(40))


async def held(world: World, *, share: float = 30, key: str = "quiet") -> Any:
    """A holdout of this share."""
    return await world.do(holdouts.create, requests.CreateHoldout(name="Quiet", key=key, share=share))


async def methods(world: World, experiment: str = "test") -> dict[str, Method]:
    """How each participant came to what it has."""
    page = await world.do(experiments.list_assignments, requests.PageOf(id=experiment, limit=100))
    return {item.participant: item.method for item in page.items}


async def out(world: World, experiment: str = "test") -> set[str]:
    """Who is held out."""
    return {name for name, method in (await methods(world, experiment)).items() if method is Method.HOLDOUT}


async def test_the_same_participants_stay_out_of_every_experiment(world: World) -> None:
    """In the plan, after the start and in another experiment; without claim, slot or deployment."""
    await world.agent(*NAMES)
    await held(world)
    values = {"name": "Test", "targetFile": "soul.md", "participantIds": list(NAMES), "holdoutId": "quiet"}
    variants = [make_variant("a", control=True), make_variant("b")]
    request = requests.parse(requests.CreateExperiment, {**values, "variants": variants})
    view = await world.do(experiments.create, request)
    draft = view.experiment
    planned = await out(world)
    assert {item.participant for item in view.assignments if item.method is Method.HOLDOUT} == planned
    assert 4 <= len(planned) <= 20
    await world.start(draft)
    assert await out(world) == planned
    page = await world.do(fleet.list_participants, requests.ListHosts(limit=100))
    named = {item.participant.public_id for item in page.items if item.holdout_ids}
    assert named == planned
    claims = await world.rows("select participant_id from claim")
    assert len(claims) == len(NAMES) - len(planned) == len(await world.rows("select * from slot"))
    await world.experiment(*NAMES, name="Other", targetFile="other.md", holdoutId="quiet")
    assert await out(world, "other") == planned
    assert (await world.do(holdouts.get, requests.ById(id="quiet"))).experiments == ("other", "test")


async def test_two_holdouts_hold_out_different_participants(world: World) -> None:
    """Each has a draw of its own."""
    await held(world, share=50)
    await held(world, share=50, key="calm")
    await world.experiment(*NAMES, holdoutId="quiet")
    await world.experiment(*NAMES, name="Other", holdoutId="calm")
    assert await out(world) != await out(world, "other")


async def test_all_and_nobody(world: World) -> None:
    """A share of 0 holds nobody out; with 100 there is nobody to start with."""
    await held(world, share=0)
    await held(world, share=100, key="all")
    await world.experiment(*NAMES, holdoutId="quiet")
    assert await out(world) == set()
    whole = await world.experiment(*NAMES, name="Other", holdoutId="all")
    assert await out(world, "other") == set(NAMES)
    with pytest.raises(FailedPrecondition, match="nobody takes part"):
        await world.start(whole)


async def test_another_phase_holds_out_the_same(world: World) -> None:
    """A new seed deals out anew among the others; who is held out is not drawn again."""
    await held(world)
    await world.start(await world.experiment(*NAMES, holdoutId="quiet"))
    before = await out(world)
    assert before
    await world.do(phases.open_phase, requests.OpenPhase(id="test", seed="0" * 64))
    assert await out(world) == before


async def test_a_share_stays_while_an_experiment_is_under_way(world: World) -> None:
    """Draft and completed experiments do not bind it; a running, paused or stopped one does. Its name is free."""
    await held(world)
    change = requests.UpdateHoldout(id="quiet", share=10)
    draft = await world.experiment(*NAMES, holdoutId="quiet")
    assert (await world.do(holdouts.update, change)).holdout.rule.share == 10
    await world.start(draft)
    other = requests.UpdateHoldout(id="quiet", share=20)
    with pytest.raises(FailedPrecondition, match="its share cannot change: test") as refused:
        await world.do(holdouts.update, other)
    assert refused.value.reason == "HOLDOUT_IN_USE"
    renamed = await world.do(holdouts.update, requests.UpdateHoldout(id="quiet", name="Calm", share=10))
    assert (renamed.holdout.name, renamed.holdout.key) == ("Calm", "quiet")
    await world.do(lifecycle.complete, requests.Complete(id="test"))
    assert (await world.do(holdouts.update, other)).holdout.rule.share == 20


async def test_a_holdout_that_is_named_cannot_be_deleted(world: World) -> None:
    """The experiments are told; once none names it, it goes."""
    await held(world)
    await world.experiment(*NAMES, holdoutId="quiet")
    with pytest.raises(FailedPrecondition, match="it cannot be deleted: test"):
        await world.do(holdouts.delete, requests.ById(id="quiet"))
    await world.do(
        experiments.update, requests.parse(requests.UpdateExperiment, {"id": "test", "holdoutId": None})
    )
    await world.do(holdouts.delete, requests.ById(id="quiet"))
    with pytest.raises(NotFound):
        await world.do(holdouts.get, requests.ById(id="quiet"))


async def test_keys_are_unique_and_names_make_them(world: World) -> None:
    """A key that is taken is refused; from equal names come different keys."""
    await held(world)
    with pytest.raises(AlreadyExists, match="'quiet'"):
        await held(world)
    made = await world.do(holdouts.create, requests.CreateHoldout(name="Quiet", share=1))
    assert made.holdout.key == "quiet-2"


async def test_a_holdout_that_is_not_there_is_told(world: World) -> None:
    """An experiment does not name what there is not."""
    with pytest.raises(NotFound, match="'nothing'"):
        await world.experiment("p", holdoutId="nothing")
