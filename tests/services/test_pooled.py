"""Phases as one: asked for by name, weighed as they were drawn, each participant one witness."""

import json
from collections import defaultdict
from math import sqrt
from typing import Any

import pytest

from control_plane.domain import inference, requests
from control_plane.domain.evidence import Evidence
from control_plane.domain.statistics.sequence import always_valid, information_target
from control_plane.services import phases, results
from shared.errors import Invalid
from tests.services.test_looks import PEOPLE, begun, close_day, day_of, looked
from tests.services.test_timers import ticking
from tests.support.builders import World


async def two_phases(world: World) -> None:
    """Sixteen participants at 50/50 for a day, then at 25/75 for another; those who stay are in both."""
    uid, assigned = await begun(world)
    async with ticking(world):
        await world.report(uid, *day_of(world, assigned, {"a": 2, "b": 4}))
        await close_day(world)
        await looked(world, 1)
        wanted = {"id": "test", "weights": {"a": 25, "b": 75}}
        view, _ = await world.do(phases.open_phase, requests.parse(requests.OpenPhase, wanted))
        assigned = await world.assigned(view.experiment)
        world.clock.jump(60)
        await world.report(uid, *day_of(world, assigned, {"a": 3, "b": 6}, each=20))
        await close_day(world)
        await looked(world, 3)


Sums = dict[str, tuple[bool, int, int]]
"""By participant: in the treatment, impressions, conversions."""


async def by_hand(world: World) -> list[Sums]:
    """Each phase's sums, from tallies and assignments alone."""
    rows = await world.rows(
        "select p.number, who.public_id, v.is_control, coalesce(sum(case t.event_name when '' then assigned_count"
        " end), 0) as m, coalesce(sum(case t.event_name when 'done' then assigned_count end), 0) as c"
        " from assignment a join phase p on p.id = a.phase_id join participant who on who.id = a.participant_id"
        " join variant v on v.id = a.variant_id left join tally t on t.phase_id = a.phase_id and"
        " t.participant_id = a.participant_id and t.variant_id = a.variant_id"
        " group by p.number, who.public_id, v.is_control"
    )
    found: dict[int, Sums] = defaultdict(dict)
    for row in rows:
        found[row["number"]][row["public_id"]] = (not row["is_control"], row["m"], row["c"])
    return [found[number] for number in sorted(found)]


def expected(stretches: list[Sums]) -> tuple[float, float, float, list[float]]:
    """(difference, variance, degrees of freedom, shares) by the formula of the method, one stratum."""
    sizes = [(sum(t for t, *_ in one.values()), len(one)) for one in stretches]
    weights = [n_t * (n - n_t) / n for n_t, n in sizes]
    shares = [weight / sum(weights) for weight in weights]
    value, own = 0.0, defaultdict(float)
    for share, one in zip(shares, stretches, strict=True):
        m, c = (sum(row[at] for row in one.values()) for at in (1, 2))
        scores = {who: (c_i - c / m * m_i) / (m / len(one)) for who, (_, m_i, c_i) in one.items()}
        for side in (True, False):
            group = {who: scores[who] for who, (t, *_) in one.items() if t is side}
            n, mean, sign = len(group), sum(group.values()) / len(group), 1 if side else -1
            value += sign * share * mean
            for who, e in group.items():
                own[who] += sign * share * (e - mean) / n * sqrt(n / (n - 1))
    freedom = max(len(own) - 2 * len(stretches), min(len(own) - 2, *(n - 2 for _, n in sizes)))
    return value, sum(u * u for u in own.values()), freedom, shares


async def test_phases_are_pooled_as_computed_by_hand(world: World) -> None:
    """Difference, error, interval and p, at 1e-9; no rate over phases, no verdict, and each phase beside it."""
    await two_phases(world)
    found = await world.answer(phase="pooled")
    stretches = await by_hand(world)
    value, variance, freedom, shares = expected(stretches)
    a, b = found["variants"]
    assert b["difference"] == pytest.approx(value, rel=1e-9)
    rows = [row for row in stretches[0].values() if not row[0]]
    base = sum(c for *_, c in rows) / sum(m for _, m, _ in rows)
    target = information_target(alpha=0.05, power=0.8, effect=0.1 * base)
    always = always_valid(
        estimate=value, standard_error=sqrt(variance), share=1 / variance / target, alpha=0.05,
        degrees_of_freedom=freedom,
    )  # fmt: skip
    assert b["pValue"] == pytest.approx(always.p_value, rel=1e-7)
    assert b["differenceInterval"]["low"] == pytest.approx(always.interval.low, rel=1e-9)
    assert b["differenceInterval"]["high"] == pytest.approx(always.interval.high, rel=1e-9)
    assert [item["variants"][0]["share"] for item in found["phases"]] == pytest.approx(shares, rel=1e-12)
    single = [expected([one])[0] for one in stretches]
    assert [x["variants"][0]["difference"] for x in found["phases"]] == pytest.approx(single, rel=1e-9)
    assert (found["verdict"], found["looks"], found["phase"], found["phaseId"]) == (None, [], None, None)
    assert (a["conversionRate"], a["reasons"]["conversionRate"]) == (None, "OF_ONE_PHASE")
    assert a["impressions"] + b["impressions"] == 16 * 30
    assert len(PEOPLE) <= a["participants"] + b["participants"] < 2 * len(PEOPLE), "who stays counts once"
    for item in found["variants"]:
        absent = {name for name, value in item.items() if value is None}
        assert absent == set(item["reasons"])


async def test_phases_never_mix_unless_that_is_asked_for(world: World) -> None:
    """By default results are of the present phase; the pooled answer can be made again and asked for as of a day."""
    await two_phases(world)
    usual: dict[str, Any] = await world.answer()
    assert (usual["phase"], usual["phases"]) == (2, [])
    asked = requests.parse(requests.GetResults, {"id": "test", "phase": "pooled", "include": "inputs"})
    text = (await world.do(results.get, asked)).evidence.model_dump_json(by_alias=True)
    again = inference.answer(Evidence.model_validate_json(text))
    assert json.dumps(again) == json.dumps(await world.answer(phase="pooled"))
    first_day = usual["looks"][0]["cutOff"][:10]
    then = await world.answer(phase="pooled", asOf=first_day)
    assert sum(item["impressions"] for item in then["variants"]) in (160, 480)
    with pytest.raises(Invalid, match="groupBy"):
        await world.answer(phase="pooled", groupBy="team")


async def test_a_draft_has_nothing_to_pool(world: World) -> None:
    """It answers as it does without being asked for phases."""
    await world.experiment(*PEOPLE, metrics={"primary": {"eventName": "done"}})
    draft = await world.answer(phase="pooled")
    assert (draft["phase"], draft["phases"]) == (None, [])
