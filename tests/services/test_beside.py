"""What stands beside the primary metric's comparison: secondary metrics together, and factors one by one."""

import json
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.multitest import multipletests

from control_plane.domain import inference, requests
from control_plane.domain.evidence import Evidence
from control_plane.domain.statistics.multivariate import Member, interactions, main_effects
from control_plane.domain.statistics.sequence import always_valid, information_target
from control_plane.services import results
from shared.model import Record
from tests.services.test_looks import DAY, begun, close_day, looked
from tests.services.test_timers import ticking
from tests.support.builders import World, make_variant, seconds

SECONDARY = [
    {"eventName": "clicked", "of": "subjects"},
    {"eventName": "bought", "kind": "mean"},
    {"eventName": "left", "goal": "decrease"},
    {"eventName": "never"},
]


def met(world: World, assigned: dict[str, str], rates: dict[str, dict[str, int]]) -> list[Record]:
    """Of 15 users of each participant so many do each thing as its variant's number says; odd ones one more."""
    world.clock.jump(3600)
    at, found = world.clock.now() - seconds(100), []
    for index, (who, variant) in enumerate(sorted(assigned.items())):
        for number in range(15):
            user = f"u{number}"
            found.append(world.impression(who, at=at, subject=user))
            found += [
                world.conversion(
                    who, name=name, at=at + 1, subject=user, value_micros=(index + 1) * 1_000_000
                )
                for name, count in rates[variant].items()
                if number < count + index * len(name) % 3
            ]
    return found


async def same_bytes(world: World, **asked: Any) -> None:
    """The evidence, written and read again, answers what the server does."""
    wanted = requests.parse(requests.GetResults, {"id": "test", "include": "inputs", **asked})
    text = (await world.do(results.get, wanted)).evidence.model_dump_json(by_alias=True)
    again = inference.answer(Evidence.model_validate_json(text))
    assert json.dumps(again) == json.dumps(await world.answer(**asked))


@pytest.mark.parametrize("correction", ["holm", "benjamini_hochberg"])
async def test_secondary_metrics_are_corrected_together(world: World, correction: str) -> None:
    """Each metric's own p for two variants, adjusted over the metrics that have one, as statsmodels does it."""
    uid, assigned = await begun(
        world,
        metrics={"primary": {"eventName": "done"}, "secondary": SECONDARY},
        analysis={"secondaryCorrection": correction},
        variants=[
            make_variant("a", control=True, weight=34),
            make_variant("b", weight=33),
            make_variant("c", weight=33),
        ],
    )
    rates = {
        "a": {"done": 5, "clicked": 4, "bought": 4, "left": 9},
        "b": {"done": 6, "clicked": 13, "bought": 9, "left": 2},
        "c": {"done": 6, "clicked": 5, "bought": 4, "left": 8},
    }
    async with ticking(world):
        await world.report(uid, *met(world, assigned, rates))
        await close_day(world)
        await looked(world, 1)
    found = await world.answer()
    assert found["secondary"]["correction"] == correction
    told = {item["metric"]: item for item in found["secondary"]["metrics"]}
    assert list(told) == ["clicked", "bought", "left", "never"]
    for at, arm in enumerate(("b", "c")):
        mine = [item["variants"][at] for item in told.values()]
        assert {item["variant"] for item in mine} == {arm}
        for name, item in zip(told, mine, strict=True):
            own = (await world.answer(eventName=name))["variants"][at + 1]
            for field in ("difference", "lift", "pValue", "pValueAdjusted"):
                assert item[field] == own[field], (name, field)
            assert {key for key, value in item.items() if value is None} == set(item["reasons"])
        known = [item for item in mine if item["pValueAdjusted"] is not None]
        assert len(known) == 3, "of what never happened there is no p"
        method = {"holm": "holm", "benjamini_hochberg": "fdr_bh"}[correction]
        expected = multipletests([item["pValueAdjusted"] for item in known], method=method)[1]
        assert [item["pValueCorrected"] for item in known] == pytest.approx(expected, rel=1e-9)
    assert told["clicked"]["variants"][0]["pValueCorrected"] < 0.05
    assert told["left"]["goal"] == "decrease"
    await same_bytes(world)
    await same_bytes(world, eventName="clicked")
    assert (await world.answer(eventName="else"))["secondary"] is None


def factor(key: str, *levels: str) -> dict[str, Any]:
    """A factor on `KEY.md`."""
    made = [{"key": level, "content": level} for level in levels]
    return {"key": key, "targetFile": f"{key}.md", "levels": made}


async def test_factors_have_their_main_effects(world: World) -> None:
    """Two by two: the mean of the differences within cells with Σv/Q², at any moment, for two level contrasts."""
    people = [f"p{number:02}" for number in range(32)]
    world.clock.jump(DAY - world.clock.now() // 1_000_000 % DAY)
    uid = await world.agent(*people)
    draft = await world.experiment(
        *people,
        type="multivariate",
        factors=[factor("tone", "warm", "terse"), factor("model", "small", "large")],
        targetFile=None,
        variants=[],
        metrics={"primary": {"eventName": "done"}},
    )
    assigned = await world.assigned(await world.start(draft))
    rates = {"warm-small": 3, "warm-large": 4, "terse-small": 9, "terse-large": 14}
    async with ticking(world):
        records = met(world, assigned, {key: {"done": n} for key, n in rates.items()})
        await world.report(uid, *records[:900])
        await world.report(uid, *records[900:])
        await close_day(world)
        await looked(world, 1)
    found = await world.answer()
    sums = {
        row["public_id"]: (row["m"], row["c"])
        for row in await world.rows(
            "select public_id, sum(case event_name when '' then assigned_count else 0 end) as m,"
            " sum(case event_name when '' then 0 else assigned_count end) as c"
            " from tally join participant on participant.id = participant_id group by public_id"
        )
    }
    cells = {
        key: np.array([sums[who][1] / sums[who][0] for who, variant in assigned.items() if variant == key])
        for key in rates
    }
    mean = {key: values.mean() for key, values in cells.items()}
    v = {key: values.var(ddof=1) / len(values) for key, values in cells.items()}
    tone, model = found["mainEffects"]
    assert (tone["factor"], tone["level"], tone["baseline"], tone["additive"]) == (
        "tone",
        "terse",
        "warm",
        False,
    )
    by_hand = (mean["terse-small"] - mean["warm-small"] + mean["terse-large"] - mean["warm-large"]) / 2
    assert tone["difference"] == pytest.approx(by_hand, rel=1e-9)
    variance = sum(v.values()) / 4
    freedom = sum(v.values()) ** 2 / sum(one**2 / (len(cells[key]) - 1) for key, one in v.items())
    base = np.concatenate([cells["warm-small"], cells["warm-large"]]).mean()
    always = always_valid(
        estimate=by_hand,
        standard_error=variance**0.5,
        share=1 / variance / information_target(alpha=0.025, power=0.8, effect=0.1 * base),
        alpha=0.025,
        degrees_of_freedom=freedom,
    )
    assert tone["interval"]["low"] == pytest.approx(always.interval.low, rel=1e-9)
    assert tone["pValueAdjusted"] == pytest.approx(2 * always.p_value, rel=1e-6)
    assert model["difference"] == pytest.approx(
        (mean["warm-large"] - mean["warm-small"] + mean["terse-large"] - mean["terse-small"]) / 2, rel=1e-9
    )
    (both,) = found["interactions"]
    assert both["factors"] == ["tone", "model"]
    apart = mean["terse-large"] - mean["terse-small"] - mean["warm-large"] + mean["warm-small"]
    assert both["difference"] == pytest.approx(apart, rel=1e-9)
    assert both["standardError"] == pytest.approx(sum(v.values()) ** 0.5, rel=1e-9)
    assert found["verdict"] is not None
    await same_bytes(world)
    for item in found["mainEffects"]:
        absent = {key for key, value in item.items() if value is None}
        assert absent == set(item["reasons"])


def test_effects_are_those_of_a_regression() -> None:
    """With as many in every cell, main effects and interactions are the coefficients of statsmodels' least squares.

    Three levels by two; the error is the cells' own, which pooled is the regression's.
    """
    rng = np.random.default_rng(5)
    factors = [("tone", ("warm", "terse", "dry")), ("model", ("small", "large"))]
    members = [
        Member(levels=(tone, model), trials=10, successes=float(rng.integers(0, 10)))
        for tone in factors[0][1]
        for model in factors[1][1]
        for _ in range(6)
    ]
    y = np.array([one.successes / 10 for one in members])
    columns = {
        "terse": [one.levels[0] == "terse" for one in members],
        "dry": [one.levels[0] == "dry" for one in members],
        "large": [one.levels[1] == "large" for one in members],
    }
    x = {name: np.array(values, dtype=float) for name, values in columns.items()}
    additive = sm.OLS(y, sm.add_constant(np.column_stack(list(x.values())))).fit()
    found = main_effects(members, factors)
    assert [one.effect.value for one in found] == pytest.approx(list(additive.params[1:]), rel=1e-9)
    design = np.column_stack([*x.values(), x["terse"] * x["large"], x["dry"] * x["large"]])
    saturated = sm.OLS(y, sm.add_constant(design)).fit()
    both = interactions(members, factors)
    assert [one.effect.value for one in both] == pytest.approx(list(saturated.params[4:]), rel=1e-9)
    spread = [
        np.var([m.successes / 10 for m in members if m.levels == key], ddof=1) / 6
        for key in cells_of(both[0])
    ]
    assert both[0].effect.variance == pytest.approx(sum(spread), rel=1e-9)
    assert interactions(members[1:6], factors) == ()


def cells_of(one: Any) -> list[tuple[str, str]]:
    """The four cells of an interaction."""
    return [(tone, model) for tone in ("warm", one.levels[0]) for model in ("small", one.levels[1])]
