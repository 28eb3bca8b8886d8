"""Reports at the edge: names, texts and clocks that are seldom so."""

import pytest

from control_plane.domain import requests
from control_plane.domain.reported import ReportEvents
from control_plane.services import phases, reporting
from shared.errors import Invalid
from shared.moment import to_rfc3339
from tests.services.test_looks import begun, close_day, day_of
from tests.services.test_timers import ticking
from tests.support.builders import World, seconds
from tests.support.waiting import eventually


async def test_an_event_about_another_file_is_told_so(world: World) -> None:
    """A conversion about a file of no experiment is of no experiment; there are not too many names."""
    uid = await world.agent("p", "q")
    await world.start(await world.experiment("p", "q"))
    at = world.clock.now() + 1
    await world.report(uid, world.conversion("p", at=at, path="other.md"))
    assert await world.rows("select reason from event") == [{"reason": "NO_ACTIVE_EXPERIMENT"}]


async def test_a_name_cannot_pass_for_a_windowed_one(world: World) -> None:
    """What separates an event's name from its window is in no name that is reported."""
    await world.agent("p", "q")
    primary = {"eventName": "done", "window": "PT1H"}
    await world.start(await world.experiment("p", "q", metrics={"primary": primary}))
    world.clock.jump(3 * 3600)
    early, late = (to_rfc3339(world.clock.now() - seconds(ago)) for ago in (10_000, 100))
    events = [
        {"kind": "impression", "participantId": "p", "eventId": "1", "occurredAt": early},
        {
            "kind": "conversion",
            "participantId": "p",
            "eventId": "2",
            "eventName": "done\x1f3600000000",
            "occurredAt": late,
        },
    ]
    with pytest.raises(Invalid):
        await world.do(reporting.report, requests.parse(ReportEvents, {"events": events}))
    assert sum(arm["conversions"] for arm in (await world.answer())["variants"]) == 0


@pytest.mark.every_engine
@pytest.mark.parametrize("field", ["eventName", "subject", "eventId"])
async def test_text_that_no_database_takes_is_refused_by_field(world: World, field: str) -> None:
    """On both engines alike, as the agent's local API does."""
    await world.agent("p")
    event = {"kind": "conversion", "participantId": "p", "eventId": "1", "eventName": "done", field: "a\0b"}
    with pytest.raises(Invalid):
        await world.do(reporting.report, requests.parse(ReportEvents, {"events": [event]}))


async def test_a_clock_that_is_set_back_over_a_phase_stops_no_look(world: World) -> None:
    """A phase that ended before it began, by that clock, has no look; the next one has."""
    uid, _ = await begun(world)
    async with ticking(world):
        world.clock.jump(3600)
        for seed, later in (("ab", -120), ("cd", 0)):
            wanted = requests.parse(requests.OpenPhase, {"id": "test", "seed": seed * 32})
            opened = await world.do(phases.open_phase, wanted)
            world.clock.jump(later)
        assigned = await world.assigned(opened[0].experiment)
        await world.report(uid, *day_of(world, assigned, {"a": 2, "b": 5}))
        await close_day(world)

        async def taken() -> bool:
            await world.clock.advance(1.0)
            return bool(await world.rows("select id from timer where kind = 'look' and done_at is not null"))

        await eventually(taken)
    assert await world.rows("select failure from timer where failure is not null") == []
    assert len(await world.rows("select number from look")) == 2


async def test_the_name_that_decides_is_counted_whatever_else_is_reported(world: World) -> None:
    """A hundred other names before the first of the primary metric's."""
    uid = await world.agent("p", "q")
    await world.start(await world.experiment("p", "q", metrics={"primary": {"eventName": "done"}}))
    at = world.clock.now() + 1
    names = [f"other-{number}" for number in range(100)]
    await world.report(
        uid, world.impression("p", at=at), *(world.conversion("p", at=at + 1, name=name) for name in names)
    )
    await world.report(uid, world.conversion("p", at=at + 2))
    assert sum(arm["conversions"] for arm in (await world.answer())["variants"]) == 1
