"""A retired host: what nobody waits for any more, and what stays on record."""

import json
from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.fleet import Presence
from control_plane.services import deployments, experiments, fleet, lifecycle
from shared.errors import FailedPrecondition, PermissionDenied
from shared.ids import show_id
from tests.support.builders import World


async def retire(world: World, uid: bytes) -> Any:
    """The agent, retired."""
    return await world.do(fleet.retire_agent, requests.ById(id=show_id(uid)))


async def presence(world: World, participant: str) -> Presence:
    """As it is shown."""
    view = await world.do(fleet.get_participant, requests.ById(id=participant))
    now: Presence = view.participant.presence(world.clock.now())
    return now


async def test_nothing_waits_for_a_retired_host(world: World) -> None:
    """What it had not finished is withdrawn with the reason, its claims end; another host's stay as they are."""
    gone = await world.agent("p")
    await world.agent("q")
    await world.start(await world.experiment("p", "q"))
    agent = await retire(world, gone)
    assert agent.presence(world.clock.now()) is Presence.RETIRED
    rows = await world.rows(
        "select p.public_id, d.state, d.reason from deployment d join participant p on p.id = d.participant_id"
    )
    states = {
        row["public_id"]: (row["state"], row["reason"] and json.loads(row["reason"])["code"]) for row in rows
    }
    assert states == {"p": ("withdrawn", "RETIRED"), "q": ("pending", None)}
    held = await world.rows("select p.public_id from claim c join participant p on p.id = c.participant_id")
    assert [row["public_id"] for row in held] == ["q"]
    assert (await presence(world, "p"), await presence(world, "q")) == (Presence.RETIRED, Presence.CONNECTED)


@pytest.mark.parametrize("then", ["keep", "restore", "ship"])
async def test_completing_asks_nothing_of_a_retired_host(world: World, then: str) -> None:
    """However an experiment ends, only the hosts that are left are told."""
    gone = await world.agent("p")
    await world.agent("q")
    await world.start(await world.experiment("p", "q"))
    await retire(world, gone)
    values = {"id": "test", "then": then, "winnerVariantId": "b"}
    await world.do(lifecycle.complete, requests.parse(requests.Complete, values))
    rows = await world.rows(
        "select p.public_id from deployment d join participant p on p.id = d.participant_id"
        " where d.state = 'pending'"
    )
    assert [row["public_id"] for row in rows] == ["q"]


async def test_what_was_assigned_and_counted_stays(world: World) -> None:
    """The assignment stays, is shown as retired, and its impressions are in the results."""
    gone = await world.agent("p")
    await world.agent("q")
    started = await world.start(await world.experiment("p", "q"))
    await world.report(gone, world.impression("p", at=world.clock.now()))
    before = await world.assigned(started)
    await retire(world, gone)
    view = await world.do(experiments.get, requests.ById(id="test"))
    assert {item.participant: item.retired for item in view.assignments} == {"p": True, "q": False}
    assert await world.assigned(started) == before
    sums = await world.ask(lambda store: store.events.sums(started.phase.id, "", population="assigned"))
    assert sum(item.impressions for item in sums) == 1


async def test_a_start_leaves_retired_hosts_out(world: World) -> None:
    """Named or by label, nobody who is gone is assigned; where nobody is left the start says so."""
    gone = await world.agent("p")
    await world.agent("q")
    await retire(world, gone)
    started = await world.start(await world.experiment("p", "q"))
    assert set(await world.assigned(started)) == {"q"}
    alone = await world.experiment("p", name="Alone", targetFile="other.md")
    with pytest.raises(FailedPrecondition, match="nobody takes part"):
        await world.start(alone)


async def test_a_replacement_takes_the_participant(world: World) -> None:
    """Whoever declares it is bound to it and asked for nothing, until somebody deploys there again."""
    gone = await world.agent("p")
    await world.agent("q")
    started = await world.start(await world.experiment("p", "q"))
    variant = (await world.assigned(started))["p"]
    await retire(world, gone)
    fresh = await world.agent("p")
    assert await presence(world, "p") is Presence.CONNECTED
    assert await world.ask(lambda store: store.offers.wanted([fresh])) == []
    values = {"id": "test", "participantId": "p", "variantId": variant}
    await world.do(deployments.create, requests.parse(requests.CreateDeployment, values))
    [desired] = await world.ask(lambda store: store.offers.wanted([fresh]))
    assert (desired.participant, desired.revision) == ("p", 2)
    view = await world.do(experiments.get, requests.ById(id="test"))
    assert not any(item.retired or item.forced_by for item in view.assignments)


async def test_retiring_again_changes_nothing(world: World) -> None:
    """Not even what a replacement was given meanwhile; and the retired one does not come back."""
    gone = await world.agent("p")
    first = await retire(world, gone)
    await world.agent("p")
    await world.start(await world.experiment("p"))
    again = await retire(world, gone)
    assert (again.retired_at, await presence(world, "p")) == (first.retired_at, Presence.CONNECTED)
    assert {row["state"] for row in await world.rows("select state from deployment")} == {"pending"}
    with pytest.raises(PermissionDenied, match="retired"):
        await world.session(gone, "p")
    move = requests.parse(requests.MoveParticipant, {"id": "p", "agentId": show_id(gone)})
    with pytest.raises(FailedPrecondition, match="retired"):
        await world.do(fleet.move_participant, move)
