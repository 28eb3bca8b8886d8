"""Less spread by what was there before the start (CUPED), and values that are cut where that was agreed."""

import json
from math import sqrt
from typing import Any

import numpy as np
import pytest

from control_plane.domain import inference, requests
from control_plane.domain.evidence import Evidence
from control_plane.domain.statistics import path
from control_plane.domain.statistics.path import Design, Snapshot
from control_plane.services import results
from shared.errors import Invalid
from shared.model import Record
from tests.services.test_looks import DAY, PEOPLE, close_day, looked
from tests.services.test_timers import ticking
from tests.support.builders import World, seconds


def busy(world: World, rates: dict[str, int], *, value: int | None = None) -> list[Record]:
    """Of 20 users of each participant so many convert."""
    world.clock.jump(3600)
    at, found = world.clock.now() - seconds(100), []
    for who, rate in rates.items():
        for number in range(20):
            user = f"u{at}-{number}"
            found.append(world.impression(who, at=at, subject=user))
            if number < rate:
                found.append(world.conversion(who, at=at + 1, subject=user, value_micros=value))
    return found


OWN = {who: 2 + (5 * index) % 13 for index, who in enumerate(PEOPLE)}
"""What each converts by itself: hosts differ far more than variants do."""


async def lived(world: World, *, quiet: tuple[str, ...] = (), **fields: Any) -> tuple[bytes, dict[str, str]]:
    """Sixteen hosts report for two days; then the experiment starts at midnight: (agent, variant by participant)."""
    world.clock.jump(DAY - world.clock.now() // 1_000_000 % DAY)
    uid = await world.agent(*PEOPLE)
    for _ in range(2):
        await world.report(uid, *busy(world, {who: rate for who, rate in OWN.items() if who not in quiet}))
        world.clock.jump(DAY - world.clock.now() // 1_000_000 % DAY)
    values = {"metrics": {"primary": {"eventName": "done"}}, **fields}
    return uid, await world.assigned(await world.start(await world.experiment(*PEOPLE, **values)))


async def evidence_of(world: World) -> Evidence:
    """What the answer is made of, written and read again; it answers the server's bytes."""
    asked = requests.parse(requests.GetResults, {"id": "test", "include": "inputs"})
    text = (await world.do(results.get, asked)).evidence.model_dump_json(by_alias=True)
    read = Evidence.model_validate_json(text)
    assert json.dumps(inference.answer(read)) == json.dumps(await world.answer())
    assert inference.differing_looks(read) == []
    return read


def after(assigned: dict[str, str]) -> dict[str, int]:
    """Everybody as before, give or take one, and four more with b: enough, however they are dealt."""
    return {who: OWN[who] + (index % 3 - 1) + 4 * (assigned[who] == "b") for index, who in enumerate(PEOPLE)}


async def test_history_finds_what_the_spread_of_hosts_hides(world: World) -> None:
    """The look is the path test on the residuals of a regression on what was before; without it the error is larger."""
    uid, assigned = await lived(world, analysis={"variance": "cuped", "historyDays": 7, "horizonDays": 1})
    async with ticking(world):
        await world.report(uid, *busy(world, after(assigned)))
        await close_day(world)
        await looked(world, 1)
        late = [world.impression(PEOPLE[0], at=world.clock.now() - seconds(3 * DAY), subject="late")] * 1
        await world.report(uid, *late)
    found = await world.answer()
    (comparison,) = found["looks"][0]["comparisons"]
    assert (found["verdict"]["status"], comparison["decided"]) == ("winner", True)
    method = found["method"]
    assert (method["variance"], method["historyDays"], method["withoutHistory"]) == ("cuped", 7, 0)
    read = await evidence_of(world)
    assert read.history is not None
    assert sum(read.history.impressions) == 2 * 20 * len(PEOPLE), "what comes late is not in the covariate"
    # By hand: both centred, one regressed on the other, Welch's statistic of the residuals.
    y = np.array([c / 20 for c in read.sums.conversions])
    x = np.array([c / 40 for c in read.history.conversions])
    y, x = y - y.mean(), x - x.mean()
    e = y - (x @ y) / (x @ x) * x
    treated = np.array([member.arm == "b" for member in read.members])
    own, other = e[treated], e[~treated]
    apart = own.mean() - other.mean()
    error = sqrt(own.var(ddof=1) / len(own) + other.var(ddof=1) / len(other))
    assert comparison["difference"] == pytest.approx(apart, rel=1e-9)
    assert comparison["statistic"] == pytest.approx(abs(apart) / error, rel=1e-9)
    plain = read.model_copy(update={"history": None})
    assert inference.differing_looks(plain) == [1]
    control = read.model_dump(mode="json")
    assert control["settings"]["history_days"] == 7
    raw = [y[treated], y[~treated]]
    hidden = sqrt(sum(own.var(ddof=1) / len(own) for own in raw))
    assert hidden > 2 * error  # whether that decides is chance: the seed is another one in every run


async def test_who_has_no_history_counts_as_its_stratum(world: World) -> None:
    """There is a finding that says how many; where nobody has any, nothing is taken out and that is said."""
    uid, assigned = await lived(world, quiet=tuple(PEOPLE[:3]), analysis={"variance": "cuped"})
    async with ticking(world):
        await world.report(uid, *busy(world, after(assigned)))
        await close_day(world)
        await looked(world, 1)
    found = await world.answer()
    assert found["method"]["withoutHistory"] == 3
    (finding,) = [item for item in found["findings"] if item["code"] == "HISTORY_MISSING"]
    assert (finding["severity"], finding["evidence"]) == ("info", {"without": 3, "of": 16, "days": 14})
    assert found["variants"][1]["sequential"] is not None
    read = await evidence_of(world)
    nothing = dict.fromkeys(("impressions", "conversions", "values", "denominators"), (0,) * 16)
    none = read.model_copy(update={"history": read.sums.model_copy(update=nothing)})
    told = inference.answer(none)
    assert [x["message"] for x in told["findings"] if x["code"] == "HISTORY_MISSING"] == [
        "nobody has history before the start, so nothing is taken out"
    ]
    without = inference.answer(read.model_copy(update={"history": None}))
    assert told["variants"][1]["sequential"] == without["variants"][1]["sequential"]


def test_a_covariate_keeps_the_path_test_exact() -> None:
    """Of 300 experiments without a difference, whose history says much, no more than alpha are decided."""
    rng, alpha, decided = np.random.default_rng(2), 0.2, 0
    for _ in range(300):
        own = rng.uniform(0.1, 0.6, size=10)
        before = [(50, int(rng.binomial(50, rate))) for rate in own]
        shot = Snapshot(day=1.0, trials=[50] * 10, successes=[int(rng.binomial(50, rate)) for rate in own])
        design = Design(
            treated=[True] * 5 + [False] * 5, blocks=["x"] * 10, strata=["x"] * 10, seed=b"", alpha=alpha,
            horizon=1.0, before=before,
        )  # fmt: skip
        decided += path.looks(design, [shot])[0].crossed
    assert 0.1 < decided / 300 <= alpha + 3 * sqrt(alpha * (1 - alpha) / 300)


async def test_values_are_cut_where_that_was_agreed(world: World) -> None:
    """Of a mean, at the percentile of all participants' values; the plan says so, and counts stay as they are."""
    world.clock.jump(DAY - world.clock.now() // 1_000_000 % DAY)
    uid = await world.agent(*PEOPLE)
    draft = await world.experiment(
        *PEOPLE,
        metrics={"primary": {"eventName": "done", "kind": "mean"}, "secondary": [{"eventName": "done"}]},
        analysis={"winsorizeAt": 90},
    )
    assigned = await world.assigned(await world.start(draft))
    values = {who: 1_000_000 * (1000 if index == 5 else index) for index, who in enumerate(PEOPLE)}
    async with ticking(world):
        world.clock.jump(3600)
        at = world.clock.now() - seconds(50)
        records = [world.impression(who, at=at) for who in PEOPLE]
        records += [world.conversion(who, at=at + 1, value_micros=values[who]) for who in PEOPLE]
        await world.report(uid, *records)
        await close_day(world)
        await looked(world, 1)
    found = await world.answer()
    limit = sorted(values.values())[14]
    cut = {who: min(value, limit) / 1e6 for who, value in values.items()}
    means = {
        arm: np.mean([value for who, value in cut.items() if assigned[who] == arm]) for arm in ("a", "b")
    }
    for item in found["variants"]:
        assert item["mean"] == pytest.approx(means[item["key"]], rel=1e-9)
    assert found["looks"][0]["comparisons"][0]["difference"] == pytest.approx(
        means["b"] - means["a"], rel=1e-9
    )
    assert found["method"]["winsorizeAt"] == 90
    assert (await world.answer(eventName="done", phase="1"))["metric"]["kind"] == "mean"
    await evidence_of(world)


@pytest.mark.parametrize(
    "fields", [{"historyDays": 0}, {"winsorizeAt": 100}, {"winsorizeAt": 10}, {"variance": "x"}]
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    """By the name of its field."""
    with pytest.raises(Invalid, match=f"analysis.{next(iter(fields))}"):
        requests.parse(requests.CreateExperiment, {"name": "x", "analysis": fields})
