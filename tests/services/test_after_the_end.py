"""What a phase found is of the phase: what hosts do with contents that came after it takes nothing back."""

from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.services import lifecycle, phases
from control_plane.store.store import Store
from shared.model import Outcome, Result, Step
from tests.services.test_looks import begun, close_day, day_of, looked
from tests.services.test_timers import ticking
from tests.support.builders import World


async def won(world: World, days: int = 4) -> bytes:
    """The agent of an experiment in which `b` won by the looks of so many days."""
    uid, assigned = await begun(world)
    async with ticking(world):
        for number in range(1, days + 1):
            await world.report(uid, *day_of(world, assigned, {"a": 2, "b": 7}))
            await close_day(world)
            await looked(world, number)
    return uid


async def refused(world: World, uid: bytes, origin: str, variant: str) -> int:
    """Hosts of that arm in phase 1 refuse what they were told to hold for this reason; how many."""
    rows = await world.rows(
        "select p.public_id, d.slot_id, d.revision, v.key from deployment d join participant p"
        " on p.id = d.participant_id join assignment a on a.participant_id = p.id join phase f on f.id = a.phase_id"
        f" join variant v on v.id = a.variant_id where f.number = 1 and d.origin = '{origin}'"
    )
    outcomes = [
        Outcome(
            participant=row["public_id"],
            slot_id=row["slot_id"],
            revision=row["revision"],
            attempt=1,
            step=Step.ALLOWED,
            result=Result.REFUSED,
            files=(),
            occurred_at=world.clock.now(),
        )
        for row in rows
        if row["key"] == variant
    ]
    now = world.clock.now()
    told = [(uid, outcome) for outcome in outcomes]
    await world.database.write(lambda tx: Store(tx).offers.record(told, new_id=world.new_id, now=now))
    return len(outcomes)


@pytest.mark.parametrize("then", ["ship", "phase"])
async def test_who_refuses_what_came_after_a_phase_was_not_lost_in_it(world: World, then: str) -> None:
    """The winner is shipped, or another phase deals anew, and hosts that had the control refuse to swap."""
    uid = await won(world)
    before = await world.answer()
    assert before["verdict"]["status"] == "winner"
    if then == "ship":
        await world.do(lifecycle.complete, requests.Complete(id="test", winnerVariantId="b", then="ship"))
        assert await refused(world, uid, "ship", "a") == 8
    else:
        wanted: dict[str, Any] = {"id": "test", "weights": {"a": 0, "b": 100}}
        await world.do(phases.open_phase, requests.parse(requests.OpenPhase, wanted))
        assert await refused(world, uid, "phase", "a") == 8
    after = await world.answer(phase="1")
    assert after["srm"]["lossPValues"] == before["srm"]["lossPValues"]
    assert after["exclusions"] == before["exclusions"]
    if then == "ship":
        assert after["verdict"]["status"] == "winner"


async def test_a_phase_replays_by_its_own_weights(world: World) -> None:
    """Another split from now on does not make the first draw one that its seed does not give."""
    await won(world)
    before = await world.answer()
    wanted = {"id": "test", "weights": {"a": 25, "b": 75}}
    await world.do(phases.open_phase, requests.parse(requests.OpenPhase, wanted))
    after = await world.answer(phase="1")
    assert (before["srm"]["replays"], before["verdict"]["status"]) == (True, "winner")
    assert (after["srm"]["replays"], after["verdict"]["status"]) == (True, "winner")
