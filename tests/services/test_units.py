"""What a proportion is a share of: impressions, subjects or participants, each counted once."""

import json
from typing import Any

import pytest

from control_plane.domain import inference, requests
from control_plane.domain.evidence import Evidence
from control_plane.services import recalculation, results, series
from control_plane.services.metrics import stored
from shared.errors import Invalid
from shared.model import Record
from tests.services.test_looks import begun, close_day, looked
from tests.services.test_timers import ticking
from tests.support.builders import World, seconds

Facts = dict[str, list[tuple[str, int]]]
"""By participant: a subject's name and how many of its impressions convert."""


def said(world: World, assigned: dict[str, str]) -> tuple[list[Record], Facts]:
    """Three users of each participant, the first met thrice; of the others, some convert, one of them twice."""
    world.clock.jump(3600)
    at = world.clock.now() - seconds(100)
    records, facts = [], {}
    for index, (participant, variant) in enumerate(sorted(assigned.items())):
        users = [("u0", index % 2), ("u1", 2 if variant == "b" else 0), ("u2", 0 if index % 3 else 1)]
        facts[participant] = users
        for place, (user, conversions) in enumerate(users):
            moment = at + seconds(place)
            for _ in range(3 if not place else 1):
                records.append(world.impression(participant, at=moment, subject=user))
            records += [
                world.conversion(participant, at=moment + 1 + n, subject=user) for n in range(conversions)
            ]
    return records, facts


def expected(of: str, facts: Facts, assigned: dict[str, str], variant: str) -> tuple[int, int]:
    """(units, converted units), counted from what was said."""
    own = [users for who, users in facts.items() if assigned[who] == variant]
    if of == "impressions":
        return 5 * len(own), sum(n for users in own for _, n in users)
    if of == "subjects":
        return 3 * len(own), sum(n > 0 for users in own for _, n in users)
    return len(own), sum(any(n for _, n in users) for users in own)


@pytest.mark.parametrize("of", ["impressions", "subjects", "participants"])
async def test_a_rate_is_of_what_its_metric_says(world: World, of: str) -> None:
    """Counts stay as they are; the rate, its interval and the looks are of the units, and can be made again."""
    uid, assigned = await begun(world, metrics={"primary": {"eventName": "done", "of": of}})
    async with ticking(world):
        records, facts = said(world, assigned)
        await world.report(uid, *records)
        await close_day(world)
        await looked(world, 1)
    found = await world.answer(groupBy="team")
    for item in found["variants"]:
        units, converted = expected(of, facts, assigned, item["key"])
        assert (item["units"], item["convertedUnits"]) == (units, converted)
        assert item["conversionRate"] == converted / units
        assert item["impressions"] == 5 * item["participants"]
        assert item["conversions"] == expected("impressions", facts, assigned, item["key"])[1]
        group = next(x for x in found["groups"][0]["variants"] if x["key"] == item["key"])
        assert group["conversionRate"] == item["conversionRate"]
    a, b = found["variants"]
    (look,) = found["looks"]
    apart = b["conversionRate"] - a["conversionRate"]
    assert look["comparisons"][0]["difference"] == pytest.approx(apart, rel=1e-9)
    assert (found["metric"]["of"], found["metric"]["kind"]) == (of, "proportion")
    asked = requests.parse(requests.GetResults, {"id": "test", "include": "inputs"})
    text = (await world.do(results.get, asked)).evidence.model_dump_json(by_alias=True)
    read = Evidence.model_validate_json(text)
    assert inference.differing_looks(read) == []
    assert json.dumps(inference.answer(read)) == json.dumps(await world.answer())


@pytest.mark.every_engine
@pytest.mark.parametrize("of", ["subjects", "participants"])
async def test_the_days_of_a_share_add_up_to_it(world: World, of: str) -> None:
    """Who was met before counts on no later day, and days computed anew say the same."""
    uid, assigned = await begun(world, metrics={"primary": {"eventName": "done", "of": of}})
    async with ticking(world):
        records, _ = said(world, assigned)
        await world.report(uid, *records)
        await close_day(world)
        await looked(world, 1)
        records, facts = said(world, assigned)
        await world.report(uid, *records)
    asked = requests.parse(series.GetTimeSeries, {"id": "test"})
    days = (await world.do(series.get, asked)).days
    arms = (await world.do(results.get, requests.parse(requests.GetResults, {"id": "test"}))).experiment.arms
    for arm in arms:
        first, second = (day.counts[arm.id] for day in days)
        assert first.share == expected(of, facts, assigned, arm.key)
        assert second.share in (None, (0, 0))
        assert days[1].so_far[arm.id].rate == days[0].so_far[arm.id].rate
    job = requests.parse(recalculation.RecalculateTimeSeries, {"id": "test", "metric": "done"})
    await world.do(recalculation.begin, job)
    await world.do(recalculation.advance, requests.ById(id="test"))
    again = await world.do(
        recalculation.results, requests.parse(recalculation.GetRecalculation, {"id": "test"})
    )
    assert [item.counts for _, item in sorted(again.days.items())] == [day.so_far for day in days]


@pytest.mark.parametrize("kind", ["mean", "count", "ratio"])
async def test_only_a_proportion_is_of_something(world: World, kind: str) -> None:
    """And what it is of is one of three; whatever else is said is refused by name."""
    ratio = {"denominatorEventName": "chat"} if kind == "ratio" else {}

    def asked(fields: dict[str, Any]) -> Any:
        spec = requests.parse(
            requests.CreateExperiment, {"name": "x", "metrics": {"primary": {"eventName": "e", **fields}}}
        )
        return lambda work, _: stored(work, spec.metrics, draft=True)

    with pytest.raises(Invalid, match="only a proportion is of impressions"):
        asked({"kind": kind, "of": "subjects", **ratio})
    with pytest.raises(Invalid, match="of"):
        asked({"of": "users"})
    kept = await world.do(asked({"of": "subjects"}), None)
    assert kept["primary"]["of"] == "subjects"
    usual = await world.do(asked({}), None)
    assert "of" not in usual["primary"], "what was agreed before has the same fingerprint"
