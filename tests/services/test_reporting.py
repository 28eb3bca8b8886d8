"""Events that a server reports: counted as an agent's are, once each, as a whole or not at all."""

from itertools import permutations
from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.reported import ReportEvents
from control_plane.services import reporting
from shared.errors import Invalid
from shared.moment import to_rfc3339
from tests.support.builders import World, content_digest, seconds


async def report(world: World, *events: dict[str, Any]) -> list[reporting.Taken]:
    """What became of a batch."""
    found: list[reporting.Taken] = await world.do(
        reporting.report, requests.parse(ReportEvents, {"events": list(events)})
    )
    return found


def impression(event_id: str, participant: str = "p", **fields: Any) -> dict[str, Any]:
    """An impression as a server writes it."""
    return {"kind": "impression", "participantId": participant, "eventId": event_id, **fields}


def conversion(event_id: str, participant: str = "p", **fields: Any) -> dict[str, Any]:
    """A conversion as a server writes it."""
    named = {"eventName": "done", **fields}
    return {"kind": "conversion", "participantId": participant, "eventId": event_id, **named}


async def counted(world: World, population: str = "assigned") -> tuple[int, int]:
    """(impressions, conversions) of the one experiment, over its variants."""
    found = await world.answer(eventName="done", population=population)
    arms = found["variants"]
    return sum(arm["impressions"] for arm in arms), sum(arm["conversions"] for arm in arms)


async def test_they_count_as_an_agents_do(world: World) -> None:
    """Both populations, by what was on disk, whichever of view and events comes first."""
    uid = await world.agent("p", "q")
    started = await world.start(await world.experiment("p", "q"))
    assigned = await world.assigned(started)
    now = world.clock.now()
    await world.report(uid, world.view("p", content_digest(assigned["p"]), at=now + seconds(1)))
    await world.clock.advance(60)
    taken = await report(
        world,
        *(impression(f"i-{name}", name) for name in ("p", "q")),
        *(conversion(f"c-{name}", name, value=0.1) for name in ("p", "q")),
    )
    assert [(item.duplicate, item.reason) for item in taken] == [(False, None)] * 4
    assert await counted(world) == (2, 2)
    assert await counted(world, "delivered") == (1, 1)
    await world.report(uid, world.view("q", content_digest(assigned["q"]), at=now + seconds(2)))
    assert await counted(world, "delivered") == (2, 2)
    values = await world.rows("select value_micros, source, agent_uid from event where kind = 'conversion'")
    assert values == [{"value_micros": 100_000, "source": "server", "agent_uid": None}] * 2


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_a_repeat_counts_once(world: World, order: tuple[int, ...]) -> None:
    """Within a batch, in another one, and beside an agent that reports the same id, whoever is first."""
    uid = await world.agent("p")
    await world.start(await world.experiment("p"))
    now = world.clock.now() + seconds(1)
    await world.clock.advance(60)

    async def by_agent() -> None:
        await world.report(uid, world.impression("p", at=now, event_id="x"))

    async def by_server() -> None:
        first, second = await report(world, impression("x"), impression("x"))
        assert (second.duplicate, second.id) == (True, first.id)

    ways = [by_agent, by_server, by_server]
    for index in order:
        await ways[index]()
    assert (await counted(world))[0] == 1


async def test_a_repeat_is_told_what_it_repeats(world: World) -> None:
    """The same batch again changes nothing and answers the ids it is kept under."""
    await world.experiment("p")
    batch = (impression("a"), conversion("b"))
    first = await report(world, *batch)
    before = await world.rows("select * from event")
    again = await report(world, *batch)
    assert [item.id for item in again] == [item.id for item in first]
    assert [(item.duplicate, item.reason) for item in again] == [(True, None)] * 2
    assert await world.rows("select * from event") == before
    assert {item.reason for item in first} == {"NO_ACTIVE_EXPERIMENT"}


async def test_a_batch_is_taken_whole_or_not_at_all(world: World) -> None:
    """One event that cannot be refuses all, each named; nothing is stored, and its ids stay free."""
    await world.experiment("p")
    late = to_rfc3339(world.clock.now() + seconds(301))
    with pytest.raises(Invalid) as refused:
        await report(world, impression("a"), impression("b", "nobody"), impression("c", occurredAt=late))
    assert [fault.field for fault in refused.value.faults] == [
        "events.1.participantId",
        "events.2.occurredAt",
    ]
    assert (
        await world.rows("select id from event") == await world.rows("select event_id from event_key") == []
    )
    assert not (await report(world, impression("a")))[0].duplicate


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"kind": "impression", "participantId": "p"}, "eventId"),
        (conversion("a", eventName=""), "a conversion needs an eventName"),
        (impression("a", eventName="done"), "an impression has no eventName"),
        (impression("a", value=1e13), "value"),
        (impression("a", digest="sha256:00"), "digest"),
        (impression("a", target="../x"), "target"),
        (impression("a", properties={"x": "y" * 9000}), "properties"),
        (impression("a", occurredAt="yesterday"), "occurredAt"),
        (impression("a", color="red"), "color"),
    ],
)
def test_what_is_no_event_is_told(event: dict[str, Any], field: str) -> None:
    """Each fault names its place."""
    with pytest.raises(Invalid, match=field):
        requests.parse(ReportEvents, {"events": [event]})


async def test_the_audit_log_holds_how_many_and_not_what(world: World) -> None:
    """Subjects and properties are nobody's business there."""
    request = requests.parse(ReportEvents, {"events": [impression("a", subject="Jane")]})
    assert request.on_record() == {"events": 1}
