"""Recalculation: asked for once, computed in turns of a durable timer, right whatever the process does meanwhile."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.series import GetRecalculation, GetTimeSeries, RecalculateTimeSeries
from control_plane.services import experiments, lifecycle, phases, recalculation, series
from control_plane.services.recalculation import DAYS_AT_ONCE
from control_plane.services.work import Work
from control_plane.store.recalculations import Progress
from shared.errors import FailedPrecondition, Invalid, NotFound
from tests.services.test_timers import ticking
from tests.support.builders import World, make_world, open_database, seconds
from tests.support.waiting import eventually

DAY = 86_400
METRICS = {"primary": {"eventName": "done", "goal": "increase"}}


async def lived(world: World, days: int) -> Any:
    """A running experiment with an impression on every day so far, and a conversion on every second."""
    uid = await world.agent("p", "q")
    experiment = await world.start(await world.experiment("p", "q", metrics=METRICS))
    for day in range(days):
        at = world.clock.now() + seconds(1)
        person = "p" if day % 3 else "q"
        done = [world.conversion(person, at=at)] if day % 2 else []
        world.clock.jump(2)
        await world.report(uid, world.impression(person, at=at), *done)
        world.clock.jump(DAY - 2 if day < days - 1 else 0)
    return experiment


async def begin(world: World, **fields: Any) -> recalculation.Accepted:
    """What a request is answered."""
    request = requests.parse(RecalculateTimeSeries, {"id": "test", "metric": "done", **fields})
    found: recalculation.Accepted = await world.do(recalculation.begin, request)
    return found


async def results(world: World, **fields: Any) -> recalculation.Results:
    """The days as they are computed."""
    request = requests.parse(GetRecalculation, {"id": "test", **fields})
    found: recalculation.Results = await world.do(recalculation.results, request)
    return found


async def becomes(world: World, wanted: Progress) -> recalculation.Results:
    """The days, once they are so."""

    async def there() -> recalculation.Results | None:
        await world.clock.advance(1.0)
        found = await results(world)
        return found if found.status is wanted else None

    found = await eventually(there, what=wanted)
    assert found is not None
    return found


async def turns(world: World, count: int) -> None:
    """So many turns of the timer, in this very process."""
    for _ in range(count):

        def turn(work: Work, request: requests.ById) -> None:
            ahead = work.store.timers.ahead(work.store.experiments.find(work.project_id, "test").id)  # type: ignore[union-attr]
            (timer,) = (timer for timer in ahead if timer.kind == recalculation.KIND)
            assert work.store.timers.take(timer.id, now=work.now)
            recalculation.advance(work, request)

        await world.do(turn, requests.ById(id="test"))


@asynccontextmanager
async def reopened(world: World, folder: Path) -> AsyncIterator[World]:
    """The same database, opened by another process after the first one is gone."""
    database = open_database(folder)
    try:
        yield replace(world, database=database)
    finally:
        await database.close()


async def test_every_day_is_what_the_series_says(world: World) -> None:
    """From the beginning of the phase to today, more days than one turn does; then nothing is under way."""
    await lived(world, 2 * DAYS_AT_ONCE + 5)
    before = await results(world)
    assert (before.status, before.job, len(before.days)) == (Progress.PENDING, None, 0)
    made = await begin(world)
    assert (made.accepted, made.job.status) == (True, Progress.PENDING)
    async with ticking(world):
        found = await becomes(world, Progress.COMPLETED)
    assert found.job is not None
    assert (found.job.id, found.job.status, found.current) == (made.job.id, Progress.COMPLETED, True)
    shown = await world.do(series.get, GetTimeSeries.model_validate({"id": "test", "fillGaps": True}))
    assert {item.day: item.so_far for item in shown.days} == {
        day: item.counts for day, item in found.days.items()
    }
    assert len(found.days) == 2 * DAYS_AT_ONCE + 5
    assert found.fingerprint == shown.fingerprint == made.job.fingerprint
    assert await world.rows("select * from timer where done_at is null and kind <> 'look'") == []


async def test_what_is_under_way_is_not_begun_again(world: World) -> None:
    """Pending and in progress it is the same job; once it is finished another one begins from nothing."""
    await lived(world, DAYS_AT_ONCE + 5)
    first = await begin(world)
    again = await begin(world, fingerprint=first.job.fingerprint)
    assert (again.accepted, again.job) == (False, first.job)
    await turns(world, 1)
    some = await results(world)
    assert (some.status, len(some.days)) == (Progress.PARTIAL, DAYS_AT_ONCE)
    middle = await begin(world)
    assert (middle.accepted, middle.job.id, middle.job.status) == (False, first.job.id, Progress.IN_PROGRESS)
    await turns(world, 1)
    assert (await results(world)).status is Progress.COMPLETED
    second = await begin(world)
    assert (second.accepted, second.job.id != first.job.id) == (True, True)
    assert ((await results(world)).status, (await results(world)).days) == (Progress.PENDING, {})


async def test_a_job_goes_on_after_the_process_is_gone(tmp_path: Path) -> None:
    """Killed before a turn and between two: the next process finishes it, every day once and right."""
    async with make_world(tmp_path) as world:
        await lived(world, 2 * DAYS_AT_ONCE)
        await begin(world)
    async with reopened(world, tmp_path) as world:
        await turns(world, 1)
        assert len((await results(world)).days) == DAYS_AT_ONCE
    async with reopened(world, tmp_path) as world:
        async with ticking(world):
            found = await becomes(world, Progress.COMPLETED)
        shown = await world.do(series.get, GetTimeSeries.model_validate({"id": "test", "fillGaps": True}))
        assert {item.day: item.so_far for item in shown.days} == {
            day: item.counts for day, item in found.days.items()
        }


async def test_a_day_later_it_is_partial(world: World) -> None:
    """A day that was not there when the job was made has no result until it is asked for anew."""
    await lived(world, 3)
    await begin(world)
    async with ticking(world):
        await becomes(world, Progress.COMPLETED)
        world.clock.jump(DAY)
        found = await results(world)
        assert (found.status, found.within.last not in found.days) == (Progress.PARTIAL, True)
        await begin(world)
        await becomes(world, Progress.COMPLETED)


async def test_another_definition_is_another_fingerprint(world: World) -> None:
    """A changed metric has nothing computed; the days of the old one stay to be read; an old fingerprint is refused."""
    await lived(world, 2)
    first = await begin(world)
    await turns(world, 1)
    change = {"id": "test", "metrics": {"primary": {"eventName": "done", "goal": "decrease"}}}
    await world.do(experiments.update, requests.parse(requests.UpdateExperiment, change))
    now = await results(world)
    assert (now.fingerprint != first.job.fingerprint, now.status) == (True, Progress.PENDING)
    with pytest.raises(FailedPrecondition) as refused:
        await begin(world, fingerprint=first.job.fingerprint)
    assert refused.value.details == {"fingerprint": now.fingerprint}
    old = await results(world, fingerprint=first.job.fingerprint)
    assert (old.status, old.current, len(old.days)) == (Progress.COMPLETED, False, 2)
    with pytest.raises(NotFound):
        await results(world, fingerprint="0" * 64)


async def test_another_phase_is_another_fingerprint(world: World) -> None:
    """The days of a phase are its own; a name that is put on the metric changes nothing."""
    await lived(world, 2)
    first = await begin(world)
    named = {"id": "test", "metrics": {"primary": {**METRICS["primary"], "name": "Done"}}}
    await world.do(experiments.update, requests.parse(requests.UpdateExperiment, named))
    assert (await results(world)).fingerprint == first.job.fingerprint
    weights = {"id": "test", "weights": {"a": 25, "b": 75}}
    await world.do(phases.open_phase, requests.OpenPhase.model_validate(weights))
    assert (await results(world)).fingerprint != first.job.fingerprint
    await turns(world, 1)
    old = await results(world, fingerprint=first.job.fingerprint)
    assert (old.status, old.phase_id) == (Progress.COMPLETED, first.job.phase_id)


async def test_a_draft_has_no_days(world: World) -> None:
    """It is refused with what fits; a metric there is not is not found, a fingerprint that is none is refused."""
    experiment = await world.experiment("p", metrics=METRICS)
    for call in (begin, results):
        with pytest.raises(FailedPrecondition) as refused:
            await call(world)
        assert (refused.value.reason, refused.value.details["state"]) == ("NOT_STARTED", "draft")
    await world.start(experiment)
    with pytest.raises(NotFound):
        await begin(world, metric="none")
    with pytest.raises(Invalid, match="fingerprint"):
        await begin(world, fingerprint="x")


async def test_a_job_that_cannot_go_on_says_so(world: World) -> None:
    """Failed without a day, partial with some; the days that are missing say why, and it can be asked for again."""
    await lived(world, DAYS_AT_ONCE + 1)
    await begin(world)
    broken = "update recalculation set metric = '[]'"
    await world.database.write(lambda tx: tx.run(broken))
    async with ticking(world):
        found = await becomes(world, Progress.FAILED)
    assert found.failure == "something is wrong with variantd itself; its log says what"
    assert (await begin(world)).accepted
    await turns(world, 1)
    await world.database.write(lambda tx: tx.run(broken))
    async with ticking(world):

        async def ended() -> bool:
            await world.clock.advance(1.0)
            job = (await results(world)).job
            return job is not None and job.status is Progress.PARTIAL

        await eventually(ended)
    assert ((await results(world)).status, len((await results(world)).days)) == (
        Progress.PARTIAL,
        DAYS_AT_ONCE,
    )
    assert (await begin(world)).accepted


async def test_what_is_reset_meanwhile_is_finished_for_nobody(world: World) -> None:
    """A job of a run that is over is done, and the draft has no days to show."""
    await lived(world, 2)
    await begin(world)
    await world.do(lifecycle.reset, requests.Reset(id="test"))
    async with ticking(world):

        async def over() -> bool:
            await world.clock.advance(1.0)
            return await world.rows("select 1 from timer where done_at is null") == []

        await eventually(over)
    assert [row["status"] for row in await world.rows("select status from recalculation")] == ["completed"]
    with pytest.raises(FailedPrecondition):
        await results(world)
