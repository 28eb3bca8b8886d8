"""Windows of metrics: what counts, for which metric, and what a window that was changed does."""

import json
from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.domain.metrics import CreateMetric
from control_plane.services import doctor, experiments, metrics
from shared.model import Record
from tests.support.builders import World, seconds

HOUR = {"eventName": "done", "window": "PT1H", "name": "soon"}


async def lived(world: World, **metrics: Any) -> bytes:
    """One participant, impressions at 0, conversions 10 minutes, 59 minutes and 2 hours after the first."""
    uid = await world.agent("p", "q")
    await world.start(await world.experiment("p", "q", metrics=metrics))
    world.clock.jump(3 * 3600)
    begun = world.clock.now() - seconds(3 * 3600)
    records: list[Record] = [world.impression("p", at=begun + seconds(1), subject="s")]
    for minutes in (10, 59, 120):
        at = begun + seconds(1 + 60 * minutes)
        records.append(world.conversion("p", at=at, subject="s", value_micros=1_000_000))
    await world.report(uid, *reversed(records))
    return uid


async def counted(world: World, **asked: Any) -> int:
    """Conversions of the one experiment."""
    return sum(arm["conversions"] for arm in (await world.answer(**asked))["variants"])


async def test_a_window_is_counted_from_the_first_exposure(world: World) -> None:
    """The metric with a window counts two of three, the one without all; the event's name means the first."""
    await lived(world, primary=HOUR, secondary=[{"eventName": "done", "name": "ever"}])
    assert await counted(world) == 2
    assert await counted(world, metric="soon") == 2
    assert await counted(world, metric="ever") == 3
    assert (await world.answer(metric="ever"))["rejected"] == []
    checked = await world.do(doctor.check_tallies, requests.ById(id="test"))
    assert checked.count == 0


async def test_a_metric_is_asked_for_by_what_it_is_called_before_what_it_counts(world: World) -> None:
    """One that is called as another's event is the one so called, declared or saved."""
    await lived(world, primary=HOUR, secondary=[{"eventName": "done", "name": "done"}])
    assert await counted(world, metric="done") == 3
    assert await counted(world, eventName="done") == 2
    changed = {"id": "test", "metrics": {"primary": HOUR, "secondary": []}}
    await world.do(experiments.update, requests.parse(requests.UpdateExperiment, changed))
    assert await counted(world, metric="done") == 2
    saved = {"name": "Other", "key": "done", "eventName": "other"}
    await world.do(metrics.create, requests.parse(CreateMetric, saved))
    assert await counted(world, metric="done") == 0


async def test_a_window_that_is_changed_counts_what_was_there(world: World) -> None:
    """Forth and back: the counts follow from the events, and the plan is told to be another."""
    uid = await lived(world, primary=HOUR)
    for window, expected in (("PT15M", 1), ("PT3H", 3), (None, 3), ("PT1H", 2)):
        primary = {"eventName": "done", "name": "soon", **({"window": window} if window else {})}
        request = requests.parse(requests.UpdateExperiment, {"id": "test", "metrics": {"primary": primary}})
        await world.do(experiments.update, request)
        assert await counted(world) == expected
        assert (await world.do(doctor.check_tallies, requests.ById(id="test"))).count == 0
        assert (await world.answer())["planChanged"] == (window != "PT1H")
    at = world.clock.now() - seconds(3 * 3600 - 1 - 60 * 30)
    await world.report(uid, world.conversion("p", at=at, subject="s"))
    assert await counted(world) == 3
    assert (await world.do(doctor.check_tallies, requests.ById(id="test"))).count == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_an_earlier_exposure_that_is_late_takes_a_conversion_out(
    world: World, order: tuple[int, ...]
) -> None:
    """Whatever arrives when."""
    uid = await world.agent("p", "q")
    await world.start(await world.experiment("p", "q", metrics={"primary": HOUR}))
    world.clock.jump(3 * 3600)
    begun = world.clock.now() - seconds(3 * 3600)
    records = [
        world.impression("p", at=begun + seconds(1), subject="s"),
        world.impression("p", at=begun + seconds(5000), subject="s"),
        world.conversion("p", at=begun + seconds(6000), subject="s"),
    ]
    for place in order:
        await world.report(uid, records[place])
    assert await counted(world) == 0
    assert await counted(world, eventName="done") == 0


async def test_a_window_is_on_both_sides_of_a_ratio(world: World) -> None:
    """What came after it is in neither sum; what an earlier version began counts as it did."""
    uid = await world.agent("p", "q")
    below = {**HOUR, "kind": "ratio", "denominatorEventName": "order"}
    started = await world.start(await world.experiment("p", "q", metrics={"primary": below}))
    variant = (await world.assigned(started))["p"]
    world.clock.jump(3 * 3600)
    begun = world.clock.now() - seconds(3 * 3600)
    records: list[Record] = [world.impression("p", at=begun + seconds(1), subject="s")]
    for minutes in (10, 59, 120):
        at = begun + seconds(1 + 60 * minutes)
        records.append(world.conversion("p", at=at, subject="s", value_micros=3_000_000))
        records.append(world.conversion("p", at=at + 1, subject="s", name="order"))
    records.append(world.conversion("p", at=begun + seconds(62), subject="s", name="order"))
    await world.report(uid, *records)

    async def ratio() -> float:
        answer = await world.answer()
        (found,) = (arm["mean"] for arm in answer["variants"] if arm["key"] == variant)
        return float(found)

    assert await ratio() == pytest.approx(6 / 3)
    assert (await world.do(doctor.check_tallies, requests.ById(id="test"))).count == 0
    stored = json.loads((await world.rows("select metrics from experiment"))[0]["metrics"])
    del stored["primary"]["denominatorWindow"]
    await world.database.write(lambda tx: tx.run("update experiment set metrics = ?", (json.dumps(stored),)))
    assert await ratio() == pytest.approx(6 / 4)
