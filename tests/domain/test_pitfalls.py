"""What users of other systems complain about does not happen here: one test for each complaint."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import betaln

from control_plane.domain.analyze import analyze
from control_plane.domain.fields import parse
from control_plane.domain.sizing import SampleSize, size
from control_plane.domain.statistics import decision
from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.plan import Plan, Unit
from control_plane.domain.statistics.proportions import ArmSums
from control_plane.domain.statistics.summary import summarise
from control_plane.domain.statistics.verdict import Integrity, Status, verdict


def counts(*arms: tuple[int, int], **more: Any) -> dict[str, Any]:
    """Variants a, b, … as (conversions, impressions)."""
    variants = [{"key": chr(97 + at), "conversions": c, "impressions": m} for at, (c, m) in enumerate(arms)]
    return {"variants": variants, "control": "a", **more}


def excludes(interval: dict[str, float]) -> bool:
    """Whether 0 is not in it."""
    return not interval["low"] <= 0 <= interval["high"]


@pytest.mark.parametrize("method", ["welch", "newcombe", "sequence"])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.3])
def test_significant_while_the_interval_contains_zero(method: str, alpha: float) -> None:
    """At every level, for three arms of any size, p adjusted is below it exactly where the intervals exclude 0."""
    rng = np.random.default_rng(1)
    for _ in range(4):
        arms = [(int(rng.binomial(400, r)), 400) for r in rng.uniform(0.2, 0.35, 3)]
        for one in analyze(counts(*arms, decision=method, alpha=alpha))["variants"][1:]:
            assert (one["pValueAdjusted"] < alpha) == excludes(one["differenceInterval"])
            assert (one["pValueAdjusted"] < alpha) == excludes(one["liftInterval"])


def test_the_interval_stays_where_the_level_is_changed() -> None:
    """One level makes intervals of difference, lift and value, and is echoed."""
    at = {level: analyze(counts((45, 250), (67, 250), alpha=level)) for level in (0.05, 0.1)}
    assert [found["alpha"] for found in at.values()] == [0.05, 0.1]
    for name in ("differenceInterval", "liftInterval", "credibleInterval", "liftCredibleInterval"):
        wide, narrow = (found["variants"][1][name] for found in at.values())
        assert wide["low"] < narrow["low"] < narrow["high"] < wide["high"]


def test_adjusted_p_says_no_and_unadjusted_interval_yes() -> None:
    """With nine comparisons a p of 0.02 is nothing, and no interval says otherwise."""
    b = analyze(counts((45, 250), (67, 250), *[(45, 250)] * 8))["variants"][1]
    assert b["pValue"] < 0.05 < b["pValueAdjusted"]
    assert not excludes(b["differenceInterval"])


def _plan(hosts: int) -> Plan:
    return Plan(
        method="path_test",
        arms=("a", "b"),
        control="a",
        units=[Unit(arm=arm, block="x", stratum="x") for arm in "ab" for _ in range(hosts)],
        seed=bytes(32),
    )


def test_a_result_flips_from_day_to_day() -> None:
    """The first crossing stands: worse days later take nothing back, and no earlier look is another one."""
    days = [([1] * 5, [9] * 5), ([2, 3, 1, 2, 3], [18, 17, 19, 18, 17]), ([20] * 5, [19] * 5)]
    shots = [
        Snapshot(day=day, trials=[20 * day] * 10, successes=[*a, *b])
        for day, (a, b) in zip((7, 8, 9), days, strict=True)
    ]
    shots = [replace(shot, successes=[c + at % 3 for at, c in enumerate(shot.successes)]) for shot in shots]
    sound = Integrity(replays=True, ratio_p_value=None, leaked=False, losses={})
    said = []
    for n in (1, 2, 3):
        found = decision.looks(_plan(5), shots[:n])
        said.append(verdict(_plan(5), found, goal="increase", reachable=None, integrity=sound))
    first = next(at for at, one in enumerate(said) if one.status is Status.WINNER)
    assert [one.status for one in said[first:]] == [Status.WINNER] * (3 - first)
    assert shots[2].successes[5] < shots[2].successes[0] + 3, "by then nothing differs any more"


def test_looking_every_day_needs_no_other_mode() -> None:
    """Without being asked for anything, participants with looks are decided by a test that may be looked at daily."""
    rows = [[[10, 2]] * 4, [[10, 7]] * 4]
    looks = [{"participants": {"a": rows[0], "b": rows[1]}}]
    asked = {
        "control": "a",
        "variants": [{"key": k, "participants": r} for k, r in zip("ab", rows, strict=True)],
    }
    assert analyze({**asked, "looks": looks})["method"]["decision"] == "path_test"


@pytest.mark.parametrize("method", ["welch", "newcombe", "sequence"])
def test_no_p_value_where_the_effect_is_enormous(method: str) -> None:
    """From one in a thousand to a half, a million each: a p above 0, and an interval."""
    b = analyze(counts((1_000, 1_000_000), (500_000, 1_000_000), decision=method))["variants"][1]
    assert 0 <= b["pValue"] < 1e-300
    assert excludes(b["differenceInterval"])
    assert b["lift"] == pytest.approx(499)


def test_chance_to_win_is_read_as_one_minus_p() -> None:
    """Both are given, under their own names, they are not each other, and the answer says so."""
    found = analyze(counts((45, 250), (60, 250)))
    b = found["variants"][1]
    assert "not 1 - pValue" in found["explanations"]["chanceToWin"]
    assert "not the probability" in found["explanations"]["pValue"]
    assert abs(b["chanceToWin"] - (1 - b["pValue"])) > 0.03


def test_an_intended_split_of_95_to_5_alarms() -> None:
    """The weights are in the test, and the size of a deviation stands beside its p."""
    fair = analyze(counts((10, 9_500), (1, 500), weights={"a": 95, "b": 5}))["srm"]
    assert not fair["detected"]
    tiny = analyze(counts((1, 50_050_000), (1, 49_950_000), weights=[50, 50]))["srm"]
    assert tiny["pValue"] == pytest.approx(stats.chisquare([50_050_000, 49_950_000]).pvalue)
    assert tiny["largestDeviation"] == pytest.approx(0.0005)


def test_traffic_in_an_arm_of_weight_zero_goes_unseen() -> None:
    """One participant there is a leak, however many are where they should be."""
    found = analyze(counts((10, 500), (0, 1), weights=[100, 0]))["srm"]
    assert (found["leaked"], found["detected"]) == (True, True)


def test_everything_is_hidden_until_there_is_enough() -> None:
    """One impression is told, with the reason beside what cannot be said of it."""
    b = analyze(counts((0, 1), (1, 1), decision="welch"))["variants"][1]
    assert (b["impressions"], b["conversions"], b["conversionRate"]) == (1, 1, 1.0)
    assert b["differenceInterval"] is None
    assert b["reasons"]["differenceInterval"] == "TOO_FEW_PARTICIPANTS"


def test_outcomes_that_repeat_within_a_host_count_as_many() -> None:
    """The host is the witness: a hundred times its impressions narrow nothing, and how alike they are is told."""
    rows = [[[10, c] for c in arm] for arm in ((1, 2, 3, 8, 9), (2, 4, 5, 9, 9))]
    many = [[[100 * m, 100 * c] for m, c in arm] for arm in rows]
    one, hundred = (
        analyze(
            {
                "control": "a",
                "variants": [{"key": k, "participants": r} for k, r in zip("ab", arms, strict=True)],
            }
        )["variants"][1]
        for arms in (rows, many)
    )
    assert hundred["differenceInterval"] == pytest.approx(one["differenceInterval"], rel=1e-12)
    assert hundred["pValue"] == pytest.approx(one["pValue"], rel=1e-12)
    assert hundred["designEffect"] == pytest.approx(100 * one["designEffect"])
    assert hundred["icc"] > 0.3


def test_power_tools_ignore_clusters() -> None:
    """What hosts can tell has an end: 13.2 points with 150 impressions each, 13.0 with any number."""
    found = size(
        parse(SampleSize, {"baseline": 0.25, "impressionsEach": 150, "icc": 0.15, "participants": 30})
    )
    assert found.detectable == pytest.approx(0.132, abs=0.0005)
    assert found.detectable_at_most == pytest.approx(0.130, abs=0.0005)
    assert found.design_effect == pytest.approx(1 + 149 * 0.15)


def test_probabilities_differ_from_call_to_call() -> None:
    """No draws: of two arms the digits are those of Miller's sum, and whoever asks again gets the same bytes."""
    asked = counts((45, 250), (67, 250))
    one, other = analyze(asked), analyze(asked)
    assert json.dumps(one) == json.dumps(other)
    a, b, c, d = 46, 206, 68, 184
    wanted = math.fsum(
        math.exp(betaln(a + i, b + d) - math.log(d + i) - betaln(1 + i, d) - betaln(a, b)) for i in range(c)
    )
    assert one["variants"][1]["chanceToWin"] == pytest.approx(wanted, rel=1e-11)


def test_a_negative_baseline_turns_the_sign() -> None:
    """From -10 to -5 is a lift of a half, upwards."""
    rows = [[-10.5, -9.5, -10.0, -10.2], [-5.5, -4.5, -5.0, -4.8]]
    asked = {"control": "a", "variants": [{"key": k, "values": r} for k, r in zip("ab", rows, strict=True)]}
    b = analyze(asked)["variants"][1]
    assert b["lift"] == pytest.approx(0.5, abs=0.02)
    assert 0 < b["liftInterval"]["low"] < b["lift"] < b["liftInterval"]["high"]


@pytest.mark.parametrize("decided_by", ["welch", "path_test"])
def test_large_offsets_lose_all_digits(decided_by: str) -> None:
    """A thousand million added to every value changes neither p nor interval; nor does another unit."""
    rows = [[0.5, 1.25, 2.0, 2.75, 1.0, 0.25], [2.5, 1.75, 3.0, 3.5, 2.25, 3.25]]

    def answered(offset: float, unit: float = 1.0) -> Any:
        variants = [
            {"key": k, "values": [unit * (y + offset) for y in r]} for k, r in zip("ab", rows, strict=True)
        ]
        return analyze({"control": "a", "variants": variants, "decision": decided_by})["variants"][1]

    plain, far, scaled = answered(0.0), answered(2.0**30), answered(0.0, 1e-6)
    assert far["pValue"] == pytest.approx(plain["pValue"], rel=1e-9)
    # The path test's whole numbers have fifteen digits of the largest value.
    digits = 1e-9 if decided_by == "welch" else 1e-5
    assert far["difference"] == pytest.approx(plain["difference"], rel=digits)
    assert scaled["pValue"] == pytest.approx(plain["pValue"], rel=1e-9)
    for end in ("low", "high"):
        assert scaled["differenceInterval"][end] == pytest.approx(
            1e-6 * plain["differenceInterval"][end], rel=1e-6
        )


def test_conversions_above_impressions_are_computed_on() -> None:
    """In results they are told and nothing is believed of them; `analyze` refuses them (test_analyze)."""
    arms = [
        ArmSums(key="a", trials=[10, 10], successes=[2, 3]),
        ArmSums(key="b", trials=[5, 5], successes=[9, 3]),
    ]
    b = summarise(arms, control="a").arms[1]
    assert (b.impressions, b.conversions) == (10, 12)
    assert b.probability_to_be_best is None
    assert b.reasons["probability_to_be_best"] == "CONVERSIONS_EXCEED_IMPRESSIONS"


def test_an_arm_without_conversions_has_p_one() -> None:
    """Nobody of 40 against 12 of 40, as counts and as hosts: apart, with an interval and a believable chance."""
    b = analyze(counts((0, 40), (12, 40)))["variants"][1]
    assert b["pValue"] < 0.001
    assert excludes(b["differenceInterval"])
    assert 0.99 < b["chanceToWin"] < 1
    hosts = [[[40, 0]] * 4, [[40, c] for c in (11, 12, 13, 12)]]
    asked = {
        "control": "a",
        "variants": [{"key": k, "participants": r} for k, r in zip("ab", hosts, strict=True)],
    }
    b = analyze({**asked, "decision": "path_test"})["variants"][1]
    assert b["pValue"] == pytest.approx(2 / math.comb(8, 4))
    assert excludes(b["differenceInterval"])
