"""Values that an application may report, and that make no sum together."""

import pytest

from shared.model import MAX_VALUE_MICROS
from tests.services.test_timers import HOUR, after, ticking
from tests.support.builders import World, content_digest
from tests.support.waiting import eventually

MOST = 9_000_000_000_000_000_000
"""A single one is an integer of a database, two of them are not."""


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two batches"])
async def test_values_beyond_every_sum_do_not_stop_a_spool(world: World, *, together: bool) -> None:
    """Whatever an application says, the batch is taken: what is beyond the bound is declared lost."""
    uid = await world.agent("p")
    await world.start(await world.experiment("p"))
    now = world.clock.now()
    events = [world.conversion("p", at=now + n, value_micros=MOST) for n in (1, 2)]
    for batch in [events] if together else [[one] for one in events]:
        await world.report(uid, *batch)
    assert (await world.report(uid, world.view("p", content_digest("a"), at=now))).through_seq == 3
    [lost] = await world.rows("select sum(count) as n from spool_loss")
    assert lost["n"] == 2


async def test_the_largest_value_is_counted(world: World) -> None:
    """Of either sign; a thousand of them on one day make a sum."""
    uid = await world.agent("p")
    await world.start(await world.experiment("p"))
    now = world.clock.now()
    for _ in range(2):
        values = [world.conversion("p", at=now + 2, value_micros=MAX_VALUE_MICROS) for _ in range(500)]
        await world.report(uid, world.impression("p", at=now + 1), *values)
    await world.report(uid, world.conversion("p", at=now + 2, value_micros=-MAX_VALUE_MICROS))
    [found] = await world.rows("select sum(value) as v from activity where event_name <> ''")
    assert found["v"] == 999 * MAX_VALUE_MICROS


async def two_days_of_large_values(world: World) -> None:
    """On each of two days `p` reports one conversion of a value that fits a database."""
    uid = await world.agent("p", "q")
    await world.start(await world.experiment("p", name="Test"))
    for _ in range(2):
        now = world.clock.now()
        large = world.conversion("p", at=now + 2, value_micros=MOST)
        await world.report(uid, world.impression("p", at=now + 1), large)
        await world.clock.advance(24 * HOUR)


async def test_results_are_there_whatever_values_were_reported(world: World) -> None:
    """No sum of what was taken is beyond what the database can add."""
    await two_days_of_large_values(world)
    await world.answer(eventName="done")


async def test_what_one_experiment_measured_holds_up_no_other_experiments_timers(world: World) -> None:
    """Values that make no sum together cost nobody anything."""
    start = after(world, 72 * HOUR)
    await two_days_of_large_values(world)
    await world.experiment("q", name="Second", targetFile="other.md", schedule={"startAt": start})
    await world.clock.advance(25 * HOUR)
    async with ticking(world):

        async def second_runs() -> bool:
            await world.clock.advance(1)
            rows = await world.rows("select status from experiment where key = 'second'")
            return rows == [{"status": "running"}]

        await eventually(second_runs, what="the other experiment starts")
