"""Starting, assigning, completing: what is recorded can be replayed and is all there."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain import requests
from control_plane.domain.assignment import Arm, Placement, replay
from control_plane.domain.experiment import key_from, normalised
from control_plane.services import deployments, experiments, fleet, lifecycle
from shared.errors import AlreadyExists, FailedPrecondition
from tests.support.builders import World


async def test_the_record_of_a_start_replays(world: World) -> None:
    """Phase and assignments hold all that the procedure needs to give the same result again."""
    names = [f"bot-{n}" for n in range(14)]
    await world.agent(*names[:6])
    await world.agent(*names[6:11])
    started = await world.start(await world.experiment(*names))
    found = await world.ask(lambda store: store.experiments.assignments(started.phase.id))
    keys = {variant.id: variant.key for variant in started.variants}
    placements = [
        Placement(
            participant=item.participant,
            arm=keys[item.variant_id],
            stratum=item.stratum,
            block=item.block,
            position=item.position,
        )
        for item in found
    ]
    arms = [Arm(key=keys[key], weight=weight) for key, weight in started.phase.weights.items()]
    assert len(placements) == 14
    assert replay(placements, arms, seed=started.phase.seed)
    assert len({item.stratum for item in placements}) == 3
    assert abs(Counter(item.arm for item in placements)["a"] - 7) <= 1


async def test_the_plan_is_what_a_start_does(world: World) -> None:
    """Planned assignments of the draft are the ones that are fixed."""
    names = [f"bot-{n}" for n in range(8)]
    await world.agent(*names)
    draft = await world.experiment(*names)
    planned = await world.do(experiments.list_assignments, requests.PageOf(id="test", limit=100))
    started = await world.start(draft)
    fixed = await world.assigned(started)
    keys = {variant.id: variant.key for variant in started.variants}
    assert {item.participant: keys[item.variant_id] for item in planned.items} == fixed


async def test_labels_select_participants(world: World) -> None:
    """A selector by labels takes who carries them at the start."""
    await world.agent("x")
    for name, role in (("bot-1", "support"), ("bot-2", "sales"), ("bot-3", "support")):
        await world.do(fleet.create_participant, requests.CreateParticipant(id=name, labels={"role": role}))
    values = {"participants": {"labels": {"role": "support"}}}
    view = await world.do(
        experiments.create,
        requests.parse(
            requests.CreateExperiment,
            {
                "name": "By label",
                "targetFile": "a.md",
                "variants": [
                    {"name": "a", "content": "a", "weight": 50, "isControl": True},
                    {"name": "b", "content": "b", "weight": 50},
                ],
                **values,
            },
        ),
    )
    started = await world.start(view.experiment)
    assert set(await world.assigned(started)) == {"bot-1", "bot-3"}


async def test_completing_releases_the_claims(world: World) -> None:
    """While one experiment holds a file another cannot start on it; once completed, it can."""
    await world.agent("p")
    await world.start(await world.experiment("p"))
    second = await world.experiment("p", name="Second")
    with pytest.raises(FailedPrecondition, match="held by experiment test"):
        await world.start(second)
    await world.do(lifecycle.complete, requests.parse(requests.Complete, {"id": "test", "then": "restore"}))
    assert (await world.start(second)).status == "running"


async def test_the_same_key_twice_is_refused(world: World) -> None:
    """A key names one experiment; a key made from a name gets a suffix instead."""
    await world.experiment(key="one")
    with pytest.raises(AlreadyExists):
        await world.experiment(key="one")
    assert [(await world.experiment(name="Same")).key for _ in range(2)] == ["same", "same-2"]


async def test_deployments_by_how_they_stand(world: World) -> None:
    """What slots are at, and whether their hosts are done with it."""
    await world.agent("p", "q")
    await world.start(await world.experiment("p", "q"))
    for state, settled, count in (
        (None, None, 2),
        ("pending", False, 2),
        ("pending", True, 0),
        ("applied", None, 0),
    ):
        asked = {"id": "test", "current": True, "state": state, "settled": settled}
        page = await world.do(deployments.list_page, requests.parse(requests.ListDeployments, asked))
        assert len(page.items) == count


async def test_the_snapshot_is_kept_at_completion(world: World) -> None:
    """What every participant had done when the experiment was completed is frozen."""
    uid = await world.agent("p")
    await world.start(await world.experiment("p"))
    await world.report(uid, world.impression("p", at=world.clock.now()))
    await world.do(lifecycle.complete, requests.parse(requests.Complete, {"id": "test"}))
    rows = await world.rows("select snapshot from experiment")
    assert '"impressions": 1' in rows[0]["snapshot"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Tön für Straßen", "ton-fur-strassen"),
        ("To\u0308n", "ton"),
        ("ﬁle №2", "file-no2"),
        ("2 Wege", "x-2-wege"),
        ("実験", "x"),
    ],
)
def test_a_key_is_made_of_the_letters_of_a_name(name: str, key: str) -> None:
    """Accents go, letters stay; what no key may hold becomes a hyphen."""
    assert key_from(name, ()) == key
    assert key_from(name, (key,)) == f"{key}-2"


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20))
def test_normalised_weights_sum_to_100(weights: list[int]) -> None:
    """Planned weights are whole per cents that sum to 100, whatever was typed."""
    found = normalised(weights)
    assert sum(found) == 100
    assert all(share >= 0 for share in found)


@pytest.mark.parametrize(("count", "warned"), [(4, True), (5, True), (8, True), (10, False), (12, False)])
async def test_a_design_that_cannot_decide_says_so(world: World, count: int, warned: bool) -> None:
    """4 + 4 participants reach p = 0.029 in one stratum, 2 + 2 only 0.33; what cannot reach alpha is told at start."""
    names = [f"bot-{n}" for n in range(count)]
    await world.agent(*names)
    draft = await world.experiment(*names, analysis={"alpha": 0.02})
    view = await world.do(lifecycle.start, requests.ById(id=draft.key))
    unheard, *others = [code for code, _ in view.warnings]
    assert unheard == "PREFLIGHT_UNKNOWN"
    assert others == (["DESIGN_CANNOT_DECIDE"] if warned else [])
