"""Clusters: hosts, or values of a label, are drawn whole."""

from collections import Counter
from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.services import deployments, experiments, fleet, lifecycle, phases, preview, results
from control_plane.services.experiments import cannot_decide
from shared.errors import FailedPrecondition, Invalid
from tests.support.builders import World

BY_HOST = {"clusterBy": "host"}
BY_TEAM = {"clusterBy": "label:team"}


async def hosts(world: World, count: int, *, each: int = 3) -> list[list[str]]:
    """Hosts that serve so many participants each."""
    served = [[f"bot-{host}-{n}" for n in range(each)] for host in range(count)]
    for names in served:
        await world.agent(*names)
    return served


async def teams(world: World, **members: list[str]) -> list[str]:
    """Participants with the label `team`."""
    for team, names in members.items():
        for name in names:
            request = requests.CreateParticipant(id=name, labels={"team": team, "fleet": "x"})
            await world.do(fleet.create_participant, request)
    return [name for names in members.values() for name in names]


async def by_unit(world: World) -> dict[str, set[Any]]:
    """What the members of each cluster have: variant, block and position."""
    page = await world.do(experiments.list_assignments, requests.PageOf(id="test", limit=100))
    found: dict[str, set[Any]] = {}
    for item in page.items:
        found.setdefault(item.unit, set()).add((item.variant_id, item.block, item.position))
    return found


async def test_participants_of_a_host_have_one_variant(world: World) -> None:
    """Hosts are drawn, half of them into each variant; the plan is what the start does."""
    served = await hosts(world, 4)
    draft = await world.experiment(*[name for names in served for name in names], analysis=BY_HOST)
    ahead = await by_unit(world)
    started = await world.start(draft)
    held = await world.assigned(started)
    assert [len({held[name] for name in names}) for names in served] == [1, 1, 1, 1]
    assert Counter(held.values()) == {"a": 6, "b": 6}
    found = await by_unit(world)
    assert found == ahead
    assert (len(found), {len(had) for had in found.values()}) == (4, {1})
    assert all(unit.startswith("host:") for unit in found)


async def test_a_design_is_judged_by_its_clusters(world: World) -> None:
    """Twelve participants on four hosts are four."""
    served = await hosts(world, 4)
    draft = await world.experiment(*[name for names in served for name in names], analysis=BY_HOST)
    view = await world.do(experiments.get, requests.ById(id="test"))
    told = cannot_decide(draft, view.assignments)
    assert told is not None
    assert told.startswith("4 clusters cannot decide: the smallest reachable p is 0.33")
    assert told.endswith("add clusters")


async def test_who_is_left_out_is_counted_by_clusters_too(world: World) -> None:
    """Two participants of one host hold another variant by hand: two people, one of what was drawn."""
    served = await hosts(world, 4)
    started = await world.start(
        await world.experiment(*[name for names in served for name in names], analysis=BY_HOST)
    )
    held = await world.assigned(started)
    other = {"a": "b", "b": "a"}[held[served[0][0]]]
    for name in served[0][:2]:
        values = {"id": "test", "participantId": name, "variantId": other}
        await world.do(deployments.create, requests.parse(requests.CreateDeployment, values))
    asked = requests.parse(requests.GetResults, {"id": "test", "eventName": "done"})
    (found,) = (await world.do(results.get, asked)).evidence.exclusions
    assert (found.reason, found.participants, found.units) == ("forced", 2, 1)


async def test_a_label_makes_clusters(world: World) -> None:
    """Whoever lacks it keeps the start back, by name, and the preview says so."""
    names = await teams(world, red=["r1", "r2"], blue=["b1", "b2", "b3"])
    await world.do(fleet.create_participant, requests.CreateParticipant(id="odd", labels={}))
    draft = await world.experiment(*names, "odd", analysis=BY_TEAM)
    told = await world.do(preview.preview, requests.ById(id="test"))
    assert ("odd", "NO_CLUSTER", "error") in [(f.participant, f.code, f.severity) for f in told.findings]
    with pytest.raises(FailedPrecondition, match=r"analysis\.clusterBy: the team of odd is not known"):
        await world.start(draft)
    values = {"id": "test", "participantIds": names}
    await world.do(experiments.update, requests.parse(requests.UpdateExperiment, values))
    await world.start(draft)
    found = await by_unit(world)
    assert set(found) == {"label:team=red", "label:team=blue"}
    assert {len(had) for had in found.values()} == {1}


async def test_a_host_that_nobody_knows_keeps_a_start_back(world: World) -> None:
    """It could be any of the others."""
    await world.agent("p", "q")
    with pytest.raises(FailedPrecondition, match="the host of r is not known"):
        await world.start(await world.experiment("p", "q", "r", analysis=BY_HOST))


async def test_late_joiners_go_with_their_cluster(world: World) -> None:
    """Of a cluster that is in, with that; of a new one, with whom it is drawn; of none, not at all."""
    await teams(world, red=["r1", "r2"], blue=["b1"])
    await world.start(await world.experiment(participants={"labels": {"fleet": "x"}}, analysis=BY_TEAM))
    before = await by_unit(world)
    await teams(world, red=["r3"], blue=["b2"], green=["g1", "g2"], grey=["y1"])
    request = requests.CreateParticipant(id="odd", labels={"fleet": "x"})
    await world.do(fleet.create_participant, request)
    joined = await world.do(phases.admit, requests.ById(id="test"))
    assert set(joined) == {"r3", "b2", "g1", "g2", "y1"}
    after = await by_unit(world)
    assert {unit: after[unit] for unit in before} == before
    assert {len(had) for had in after.values()} == {1}
    ((green, first, place),) = after["label:team=green"]
    ((grey, second, other),) = after["label:team=grey"]
    # The two new clusters are a whole set: one of each variant.
    assert (first, {place, other}) == (second, {0, 1})
    assert green != grey


async def test_a_further_phase_keeps_clusters_whole(world: World) -> None:
    """With other weights, and with another seed."""
    served = await hosts(world, 8, each=2)
    await world.start(await world.experiment(*[name for names in served for name in names], analysis=BY_HOST))
    for change in ({"weights": {"a": 25, "b": 75}}, {"seed": "ab" * 32}):
        await world.clock.advance(60)
        request = requests.parse(requests.OpenPhase, {"id": "test", **change})
        view, _ = await world.do(phases.open_phase, request)
        held = await world.assigned(view.experiment)
        assert all(len({held[name] for name in names}) == 1 for names in served)
        assert Counter(held.values()) == {"a": 4, "b": 12}
        assert len(await by_unit(world)) == 8


async def test_a_switchback_resumes_cluster_by_cluster(world: World) -> None:
    """What a pause cuts goes on in the cluster's order, not each member's own."""
    served = await hosts(world, 3)
    await world.experiment(
        *[name for names in served for name in names],
        type="switchback",
        switchback={"blockDuration": "PT1H", "blocks": 8},
        analysis=BY_HOST,
    )
    await world.do(lifecycle.start, requests.ById(id="test"))

    async def turns() -> dict[str, list[Any]]:
        rows = await world.rows(
            "select p.public_id, a.time_block, a.variant_id from assignment a"
            " join participant p on p.id = a.participant_id order by a.time_block, a.from_at"
        )
        found: dict[str, dict[int, Any]] = {}
        for row in rows:
            found.setdefault(row["public_id"], {})[row["time_block"]] = row["variant_id"]
        return {name: list(had.values()) for name, had in found.items()}

    before = await turns()
    assert all(before[name] == before[names[0]] for names in served for name in names)
    await world.do(lifecycle.pause, requests.Pause(id="test"))
    await world.clock.advance(1800)
    await world.do(lifecycle.resume, requests.ById(id="test"))
    assert await turns() == before


async def test_what_is_not_drawn_has_no_clusters(world: World) -> None:
    """Rules mean participants."""
    with pytest.raises(FailedPrecondition, match="nothing is drawn"):
        await world.start(await world.experiment("p", type="personalization", analysis=BY_HOST))


async def test_clusters_are_named_right(world: World) -> None:
    """By host, by participant or by a label."""
    for wrong in ("label:", "team", "hosts"):
        with pytest.raises(Invalid, match=r"analysis\.clusterBy"):
            await world.experiment("p", analysis={"clusterBy": wrong})
