"""Who takes part, as the design says: targeting, allocation, strata, large populations."""

from collections import Counter
from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.services import experiments, fleet
from shared.errors import FailedPrecondition
from tests.support.builders import World


async def labelled(world: World, **roles: str) -> None:
    """Participants (underscores are dashes) with a role each."""
    for name, role in roles.items():
        request = requests.CreateParticipant(id=name.replace("_", "-"), labels={"role": role})
        await world.do(fleet.create_participant, request)


async def listed(world: World) -> dict[str, Any]:
    """The assignments of the one experiment by participant."""
    page = await world.do(experiments.list_assignments, requests.PageOf(id="test", limit=100))
    return {item.participant: item for item in page.items}


async def test_rules_decide_who_of_the_selected_is_in(world: World) -> None:
    """Whom the rules do not mean has no assignment and no claim, in the plan as after the start."""
    await labelled(world, p="support", q="sales", r="support")
    rules = {"labels": [{"key": "role", "operator": "equals", "value": "support"}]}
    draft = await world.experiment("p", "q", "r", targetingRules=rules)
    assert set(await listed(world)) == {"p", "r"}
    await world.start(draft)
    found = await listed(world)
    assert {name: item.labels_used for name, item in found.items()} == {
        "p": {"role": "support"},
        "r": {"role": "support"},
    }
    assert len(await world.rows("select * from claim")) == 2


async def test_rules_that_mean_nobody_keep_a_start_back(world: World) -> None:
    """The fault is told as any other."""
    await labelled(world, p="sales")
    rules = {"labels": [{"key": "role", "operator": "equals", "value": "support"}]}
    with pytest.raises(FailedPrecondition, match="nobody takes part"):
        await world.start(await world.experiment("p", targetingRules=rules))


async def test_labels_that_change_later_put_nobody_out(world: World) -> None:
    """An assignment stands, whatever becomes of the labels it was made with."""
    await labelled(world, p="support", q="support")
    rules = {"labels": [{"key": "role", "operator": "equals", "value": "support"}]}
    await world.start(await world.experiment("p", "q", targetingRules=rules))
    await world.do(fleet.update_participant, requests.CreateParticipant(id="p", labels={"role": "sales"}))
    assert set(await listed(world)) == {"p", "q"}


async def test_the_allocation_leaves_the_rest_on_record_and_free(world: World) -> None:
    """Outside the allocation there is no variant, no slot and no claim, so another experiment may have the file."""
    names = [f"bot-{n}" for n in range(8)]
    await world.agent(*names)
    await world.start(await world.experiment(*names, trafficAllocation=50))
    found = await listed(world)
    outside = [name for name, item in found.items() if item.variant_id is None]
    assert (len(found), len(outside)) == (8, 4)
    assert len(await world.rows("select * from slot")) == len(await world.rows("select * from claim")) == 4
    view = await world.do(experiments.get, requests.ById(id="test"))
    assert view.experiment.phase.traffic_allocation == 50
    other = await world.start(await world.experiment(*outside, name="Other"))
    assert set(await world.assigned(other)) == set(outside)


async def test_strata_are_the_values_of_labels_where_named(world: World) -> None:
    """Each value of the label is dealt out evenly for itself."""
    roles = {f"s{n}": "support" for n in range(6)} | {f"m{n}": "sales" for n in range(6)}
    await labelled(world, **roles)
    started = await world.start(await world.experiment(*roles, strata=["role"]))
    found = await listed(world)
    control = next(item.id for item in started.variants if item.is_control)
    counts = Counter((item.stratum, item.variant_id == control) for item in found.values())
    assert counts == {
        ("role=support", True): 3,
        ("role=support", False): 3,
        ("role=sales", True): 3,
        ("role=sales", False): 3,
    }


async def test_a_large_population_is_hashed(world: World) -> None:
    """Beyond a thousand participants the recorded procedure is the hash."""
    names = [f"bot-{n}" for n in range(1_001)]
    started = await world.start(await world.experiment(*names))
    assert started.phase.algorithm == "hash-1"
    rows = await world.rows("select variant_id, block from assignment")
    assert {row["block"] for row in rows} == {"hash"}
    assert all(400 < count < 600 for count in Counter(row["variant_id"] for row in rows).values())
