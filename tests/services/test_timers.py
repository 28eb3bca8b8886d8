"""What is scheduled happens by itself: once, in order, whatever the process and the clock do meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from control_plane.api.reads import Reads
from control_plane.api.witness import witness
from control_plane.domain import requests
from control_plane.services import experiments, lifecycle
from control_plane.services.due import Timers
from control_plane.services.replicas import Alone
from control_plane.services.work import Joining, Services
from shared.errors import FailedPrecondition, Invalid
from shared.moment import SECOND, to_rfc3339
from tests.support.builders import World, make_world, nobody_writes
from tests.support.waiting import eventually

HOUR = 3600


def after(world: World, seconds: float) -> str:
    """The moment so many seconds from now."""
    return to_rfc3339(world.clock.now() + round(seconds * SECOND))


@asynccontextmanager
async def ticking(world: World) -> AsyncIterator[set[bytes]]:
    """The runner runs; yields the agents it wakes."""
    woken: set[bytes] = set()
    services = Services(
        database=world.database,
        clock=world.clock,
        new_id=world.new_id,
        wake=woken.add,
        joining=Joining(addresses=(), ca_certificate=b""),
        hosts=Reads(new_id=world.new_id, reach=lambda _: False),
        witness=witness,
    )
    task = asyncio.create_task(Timers(services, world.clock, Alone()).run())
    try:
        yield woken
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def status(world: World) -> str:
    """Where the one experiment is."""
    return str((await world.rows("select status from experiment"))[0]["status"])


async def moves_to(world: World, wanted: str) -> None:
    """The one experiment comes to be in this state as its clock goes on by a few looks."""

    async def there() -> bool:
        await world.clock.advance(1.0)
        return await status(world) == wanted

    await eventually(there, what=wanted)


async def test_an_experiment_starts_and_stops_by_itself(world: World) -> None:
    """At `startAt` it runs and its agents are woken; at `endAt` it is stopped; both are the timer's in the audit."""
    uid = await world.agent("p", "q")
    schedule = {"startAt": after(world, HOUR), "endAt": after(world, 3 * HOUR)}
    await world.experiment("p", "q", schedule=schedule)
    async with ticking(world) as woken:
        await world.clock.advance(HOUR - 2)
        assert (await status(world), woken) == ("draft", set())
        await world.clock.advance(2)
        await moves_to(world, "running")
        await eventually(lambda: woken == {uid}, what="its agent is woken")
        await world.clock.advance(2 * HOUR)
        await moves_to(world, "stopped")
    audit = await world.rows("select actor, operation from audit order by id")
    assert [(row["actor"], row["operation"]) for row in audit] == [
        ("timer", "Timer.start"),
        ("timer", "Timer.stop"),
    ]
    rows = await world.rows("select before, after from audit order by id")
    states = [(json.loads(row["before"])["status"], json.loads(row["after"])["status"]) for row in rows]
    assert states == [("draft", "running"), ("running", "stopped")]


async def test_what_became_due_while_away_is_done_in_order(world: World) -> None:
    """A process that was down over start and end does both when it is back, once."""
    await world.agent("p")
    await world.experiment("p", schedule={"startAt": after(world, HOUR), "endAt": after(world, 2 * HOUR)})
    await world.clock.advance(10 * HOUR)
    for _ in range(2):
        async with ticking(world):
            await moves_to(world, "stopped")
    assert len(await world.rows("select id from audit")) == 2
    assert len(await world.rows("select id from assignment")) == 1


@pytest.mark.fault(43)
async def test_a_clock_that_jumps_repeats_and_misses_nothing(world: World) -> None:
    """Set back, the clock passes `startAt` again and nothing happens; set forward, what is due comes."""
    await world.agent("p")
    await world.experiment("p", schedule={"startAt": after(world, HOUR), "endAt": after(world, 5 * HOUR)})
    async with ticking(world):
        world.clock.jump(HOUR + 1)
        await moves_to(world, "running")
        world.clock.jump(-2 * HOUR)
        await world.clock.advance(3 * HOUR)
        assert await status(world) == "running"
        world.clock.jump(10 * HOUR)
        await moves_to(world, "stopped")
    assert len(await world.rows("select id from audit")) == 2


async def test_two_runners_do_it_once(world: World) -> None:
    """The row decides, not the process."""
    await world.agent("p")
    await world.experiment("p", schedule={"startAt": after(world, HOUR)})
    async with ticking(world), ticking(world):
        await world.clock.advance(HOUR)
        await moves_to(world, "running")
        await world.clock.advance(5)
    assert len(await world.rows("select id from phase")) == 1
    assert len(await world.rows("select id from audit")) == 1


async def test_a_start_that_cannot_be_is_told_and_not_tried_for_ever(world: World) -> None:
    """A draft that is not ready stays one, says why, and starts by hand once it is mended."""
    await world.experiment(schedule={"startAt": after(world, HOUR)})
    async with ticking(world):
        await world.clock.advance(HOUR)

        async def failed() -> bool:
            await world.clock.advance(1.0)
            return bool(await world.rows("select id from timer where failure is not null"))

        await eventually(failed)
    assert await status(world) == "draft"
    view = await world.do(experiments.get, requests.ById(id="test"))
    assert [code for code, _ in view.warnings] == ["SCHEDULE_FAILED"]
    assert "nobody takes part" in view.warnings[0][1]


async def change(world: World, **schedule: Any) -> Any:
    """The experiment with another schedule."""
    values = {"id": "test", "schedule": schedule or None}
    return await world.do(experiments.update, requests.parse(requests.UpdateExperiment, values))


async def test_the_schedule_follows_the_experiment(world: World) -> None:
    """A new schedule takes the place of the old; starting by hand, archiving and resetting leave nothing to come."""
    await world.agent("p")
    draft = await world.experiment("p", schedule={"startAt": after(world, HOUR)})

    async def ahead() -> list[str]:
        rows = await world.rows("select kind from timer where done_at is null order by due_at")
        return [row["kind"] for row in rows]

    await change(world, startAt=after(world, 2 * HOUR), endAt=after(world, 3 * HOUR))
    assert await ahead() == ["start", "stop"]
    await world.do(lifecycle.archive, requests.ById(id="test"))
    assert await ahead() == []
    await world.do(lifecycle.unarchive, requests.ById(id="test"))
    assert await ahead() == ["start", "stop"]
    started = await world.start(draft)
    assert await ahead() == ["stop", "look"]
    start = started.design.schedule.start_at
    await change(world, startAt=start, endAt=after(world, 9 * HOUR))
    assert await ahead() == ["stop", "look"]
    await world.do(lifecycle.complete, requests.Complete(id="test"))
    assert await ahead() == ["look"]  # of its last day, once that is closed


async def test_an_end_that_passed_before_the_start_is_told(world: World) -> None:
    """Nothing would stop it any more, so it does not start until the end is moved or gone."""
    await world.agent("p")
    draft = await world.experiment("p", schedule={"endAt": after(world, HOUR)})
    async with ticking(world):
        await world.clock.advance(HOUR)

        async def passed() -> bool:
            await world.clock.advance(1.0)
            return bool(await world.rows("select id from timer where failure is not null"))

        await eventually(passed, what="the end of a draft")
    with pytest.raises(FailedPrecondition, match=r"schedule.endAt: .* is past") as refused:
        await world.start(draft)
    assert refused.value.reason == "NOT_READY"
    await change(world, endAt=after(world, HOUR))
    await world.start(draft)
    async with ticking(world):
        await world.clock.advance(HOUR)
        await moves_to(world, "stopped")


async def test_a_schedule_that_cannot_be_is_refused(world: World) -> None:
    """A past moment, an end before the start, and a start of what has started name their fields."""
    await world.agent("p")
    with pytest.raises(Invalid, match=r"schedule.startAt: .* is past"):
        await world.experiment("p", schedule={"startAt": after(world, -1)})
    with pytest.raises(Invalid, match="endAt must be after startAt"):
        await world.experiment("p", schedule={"startAt": after(world, 2), "endAt": after(world, 1)})
    with pytest.raises(Invalid, match="not a moment"):
        await world.experiment("p", schedule={"startAt": "tomorrow"})
    await world.start(await world.experiment("p"))
    with pytest.raises(Invalid, match="it has started"):
        await change(world, startAt=after(world, HOUR))


@pytest.mark.fault(7, 8)
async def test_a_database_that_takes_nothing_for_a_while_costs_no_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is due meanwhile has not failed: it is done once the database takes it."""
    monkeypatch.setattr("control_plane.store.sqlite.BUSY_SECONDS", 0.05)
    monkeypatch.setattr("control_plane.store.postgres.LOCK_SECONDS", 0.2)
    async with make_world(tmp_path) as world:
        await world.agent("p", "q")
        await world.experiment("p", "q", schedule={"startAt": after(world, HOUR)})
        with structlog.testing.capture_logs() as said, nobody_writes(tmp_path):
            async with ticking(world):
                await world.clock.advance(HOUR)

                async def put_off() -> bool:
                    await world.clock.advance(1.0)
                    return any(line["event"] == "timers.put_off" for line in said)

                await eventually(put_off, what="the timer meets a database that is locked")
        assert await status(world) == "draft"
        async with ticking(world):
            await moves_to(world, "running")
        assert {row["failure"] for row in await world.rows("select failure from timer")} == {None}
