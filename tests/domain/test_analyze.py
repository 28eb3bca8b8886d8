"""Numbers at hand: what is answered, what is refused and by which name, and that it is what the parts say."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep

from control_plane.domain.analyze import analyze
from control_plane.domain.fields import parse
from control_plane.domain.sizing import SampleSize, size
from shared.errors import Invalid


def counts(*arms: tuple[int, int], **more: Any) -> dict[str, Any]:
    """Variants a, b, … as (conversions, impressions)."""
    variants = [{"key": chr(97 + at), "conversions": c, "impressions": m} for at, (c, m) in enumerate(arms)]
    return {"variants": variants, "control": "a", **more}


def people(*arms: list[list[int]], **more: Any) -> dict[str, Any]:
    """Variants a, b, … as participants."""
    return {
        "variants": [{"key": chr(97 + at), "participants": rows} for at, rows in enumerate(arms)],
        "control": "a",
        **more,
    }


def values(*arms: list[float], **more: Any) -> dict[str, Any]:
    """Variants a, b, … as values."""
    variants = [{"key": chr(97 + at), "values": row} for at, row in enumerate(arms)]
    return {"variants": variants, "control": "a", **more}


def test_counts_are_compared_with_exact_probabilities() -> None:
    """45 of 250 against 67 of 250, as the references have it; by Welch unless an arm is small or it is said."""
    a, b = analyze(counts((45, 250), (67, 250)))["variants"]
    ones = [[1.0] * c + [0.0] * (250 - c) for c in (67, 45)]
    welch = stats.ttest_ind(*ones, equal_var=False)
    assert b["pValue"] == pytest.approx(welch.pvalue, rel=1e-9)
    a, b = analyze(counts((45, 250), (67, 250), decision="newcombe"))["variants"]
    low, high = confint_proportions_2indep(67, 250, 45, 250, method="newcomb", compare="diff")
    assert (b["differenceInterval"]["low"], b["differenceInterval"]["high"]) == pytest.approx(
        (low, high), rel=1e-9
    )
    assert a["probabilityToBeBest"] == pytest.approx(0.009, abs=0.001)
    assert a["probabilityToBeBest"] + b["probabilityToBeBest"] == pytest.approx(1, abs=1e-12)
    assert b["chanceToWin"] == pytest.approx(b["probabilityToBeBest"], abs=1e-12)
    assert (a["conversionRate"], b["conversionRate"]) == (0.18, 0.268)


def test_a_small_arm_is_newcombe_s() -> None:
    """Nobody of twenty against eight: an interval, a p, and what was used is said."""
    found = analyze(counts((0, 20), (8, 20)))
    low, high = confint_proportions_2indep(8, 20, 0, 20, method="newcomb", compare="diff")
    b = found["variants"][1]
    assert tuple(b["differenceInterval"].values()) == pytest.approx((low, high), rel=1e-9)
    assert b["pValue"] < 0.01
    assert found["method"]["decision"] == "newcombe"
    assert analyze(counts((45, 250), (67, 250)))["method"]["decision"] == "welch"


def test_values_are_welch() -> None:
    """Interval, p and the sequence's share of a tuning."""
    chance = np.random.default_rng(2)
    one, other = list(chance.normal(3, 1, 30)), list(chance.normal(4, 2, 25))
    b = analyze(values(one, other, tuning=200))["variants"][1]
    welch = stats.ttest_ind(other, one, equal_var=False)
    ends = welch.confidence_interval(0.95)
    assert b["pValue"] == pytest.approx(welch.pvalue, rel=1e-9)
    assert tuple(b["differenceInterval"].values()) == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert b["sequential"]["pValue"] > b["pValue"]
    assert b["lift"] == pytest.approx(np.mean(other) / np.mean(one) - 1)


def test_what_may_be_said_at_any_moment_may_be_said_of_two_participants() -> None:
    """Looked at from two of each on, few nulls are ever crossed; as if errors were known, 15 % are."""
    chance, wrong, runs = np.random.default_rng(4), 0, 200
    for _ in range(runs):
        one, other = chance.normal(size=(2, 12)).tolist()
        looks = (analyze(values(one[:n], other[:n], tuning=10))["variants"][1] for n in range(2, 13))
        wrong += any(b["sequential"] is not None and b["sequential"]["pValue"] < 0.05 for b in looks)
    assert wrong <= 0.05 * runs
    hardly = analyze(values([0.0, 1.0], [5.0, 9.0], tuning=10**12))["variants"][1]
    assert (hardly["sequential"], hardly["reasons"]["sequential"]) == (None, "OUT_OF_RANGE")


@pytest.mark.parametrize("offset", [1e6, 1e9, -1e12])
def test_values_far_from_zero_are_compared_with_all_their_digits(offset: float) -> None:
    """Whatever is added to all of them, difference, p and probabilities are those without it."""
    one, other = [0.5, 1.25, 3.0, 2.125], [2.5, 1.75, 4.0, 3.875, 2.0]
    plain = analyze(values(one, other))["variants"][1]
    far = analyze(values([x + offset for x in one], [x + offset for x in other]))["variants"][1]
    for name in ("difference", "pValue", "chanceToWin", "probabilityToBeBest", "expectedLoss"):
        assert far[name] == pytest.approx(plain[name], rel=1e-9), name
    assert far["differenceInterval"] == pytest.approx(plain["differenceInterval"], rel=1e-9)
    assert far["credibleInterval"]["low"] == pytest.approx(plain["credibleInterval"]["low"] + offset)


def test_participants_are_the_unit() -> None:
    """Ten times the impressions of the same participants narrow nothing."""
    rows = [[[10, 2], [10, 4], [10, 1], [10, 3]], [[10, 5], [10, 3], [10, 6], [10, 4]]]
    more = [[[10 * m, 10 * c] for m, c in arm] for arm in rows]
    one, ten = (analyze(people(*arms))["variants"][1] for arms in (rows, more))
    for name in ("difference", "pValue", "lift"):
        assert one[name] == pytest.approx(ten[name], rel=1e-12)
    assert one["differenceInterval"] == pytest.approx(ten["differenceInterval"], rel=1e-12)
    assert ten["designEffect"] == pytest.approx(10 * one["designEffect"])


def test_the_path_test_is_the_exact_randomisation_test() -> None:
    """Five and five in one block: 252 draws, the most extreme with its twin is 2/252; with values alike."""
    low, high = [[40, c] for c in (8, 9, 10, 11, 12)], [[40, c] for c in (18, 19, 20, 21, 22)]
    b = analyze(people(low, high, decision="path_test"))["variants"][1]
    assert b["pValue"] == pytest.approx(2 / 252)
    assert b["differenceInterval"]["low"] > 0
    far = analyze(values([c for _, c in low], [c for _, c in high], decision="path_test"))["variants"][1]
    assert far["pValue"] == b["pValue"]
    assert far["difference"] == pytest.approx(10)
    negative = analyze(values([-1.5, -2.5, 0.25, -1], [2.5, 3.5, 4, 2.75], decision="path_test"))
    assert negative["variants"][1]["difference"] == pytest.approx(3.1875 + 1.1875)


def test_looks_are_told_one_by_one_and_a_crossing_stands() -> None:
    """Cumulative sums by day, alpha spent as they pass."""
    chance = np.random.default_rng(3)
    sums = {"a": np.zeros((8, 2), int), "b": np.zeros((8, 2), int)}
    looks = []
    for day in range(1, 15):
        for key, rate in (("a", 0.25), ("b", 0.5)):
            sums[key] += np.column_stack([np.full(8, 40), chance.binomial(40, rate, 8)])
        looks.append({"day": day, "participants": {key: rows.tolist() for key, rows in sums.items()}})
    found = analyze(people(sums["a"].tolist(), sums["b"].tolist(), looks=looks))
    told = [look["comparisons"][0] for look in found["looks"]]
    assert [look["day"] for look in found["looks"]] == list(range(1, 15))
    assert told[-1]["decided"]
    spent = [one["alphaSpent"] for one in told]
    assert spent == sorted(spent)
    assert spent[-1] <= 0.05


def test_looks_come_in_every_shape() -> None:
    """Counts are a sequence, values a path test; a look is told by what it is, or as variants with its day."""
    days = [((12 * n, 100 * n), (22 * n, 100 * n)) for n in (1, 2, 3)]
    plain = [{"conversions": {"a": a[0], "b": b[0]}, "impressions": {"a": a[1], "b": b[1]}} for a, b in days]
    told = [{"day": at + 1, "variants": counts(*day)["variants"]} for at, day in enumerate(days)]
    asked = {"control": "a", "variants": [{"key": "a"}, {"key": "b"}]}
    one, other = (analyze({**asked, "looks": looks}) for looks in (plain, told))
    assert one == other
    assert one["method"]["decision"] == "sequence"
    assert [look["day"] for look in one["looks"]] == [1, 2, 3]
    last = one["looks"][-1]["comparisons"][0]
    assert one["variants"][1]["pValue"] == last["pValue"]
    low = last["differenceInterval"]["low"]
    assert last["decided"] == (low > 0) == (last["pValue"] < 0.05)
    many = [{"values": {"a": [1.0, 2, 3, 4], "b": [5.0, 6, 7, 9]}}]
    b = analyze({**asked, "looks": many, "horizonDays": 1})["variants"][1]
    assert b["pValue"] == pytest.approx(2 / 70)
    assert b["difference"] == pytest.approx(4.25, rel=1e-12)


def test_what_stands_beside_variants_may_be_in_their_order() -> None:
    """Weights, strata and blocks by key or as a list; a stratum may be called 1, a prior be a pair."""
    rows = [[10, 2], [10, 3], [10, 7], [10, 8]], [[10, 3], [10, 4], [10, 8], [10, 9]]
    names, keyed = ([[1, 1, 2, 2]] * 2, {"a": ["1", "1", "2", "2"], "b": ["1", "1", "2", "2"]})
    one = analyze(people(*rows, strata=names, weights=[50, 50], prior=[2, 3]))
    assert one == analyze(people(*rows, strata=keyed, weights={"a": 50, "b": 50}, prior={"a": 2, "b": 3}))
    # Strata are taken out of values, too, and of their lift.
    of_values = analyze(values([0.2, 0.3, 0.7, 0.8], [0.3, 0.4, 0.8, 0.9], strata=names))
    for name in ("difference", "pValue", "lift"):
        assert of_values["variants"][1][name] == pytest.approx(one["variants"][1][name], rel=1e-9)
    assert of_values["variants"][1]["liftInterval"] == pytest.approx(one["variants"][1]["liftInterval"])


def test_counts_of_any_size_keep_their_digits() -> None:
    """A million million impressions, equal or none converted: probabilities of what is so by symmetry, or exactly."""
    most = 10**12
    for hits in (0, 5, most // 2, most):
        for prior in (0.5, 1.0):
            arms = analyze(counts((hits, most), (hits, most), prior={"a": prior, "b": prior}))["variants"]
            assert [arm["probabilityToBeBest"] for arm in arms] == pytest.approx([0.5, 0.5], abs=1e-12)
            low, high = arms[1]["liftCredibleInterval"].values()
            assert (1 + low) * (1 + high) == pytest.approx(1, abs=1e-8)
    # Of Beta(1, n + 1) and Beta(6, n - 4) the second is larger unless all of 6 draws are: 1 - 1/64 in the limit.
    b = analyze(counts((0, most), (5, most)))["variants"][1]
    assert b["chanceToWin"] == pytest.approx(63 / 64, abs=1e-9)


@pytest.mark.parametrize("prior", [(1e9, 0.1), (0.1, 1e9), (1e9, 1e9)])
@pytest.mark.parametrize("sums", [((0, 0), (0, 0)), ((7, 7), (0, 9)), ((10**12, 10**12), (0, 10**12))])
def test_a_prior_that_leaves_no_doubt_has_an_end(
    prior: tuple[float, float], sums: tuple[tuple[int, int], ...]
) -> None:
    """Where floats are too coarse for an end of the lift it is said so; the search for it ends."""
    b = analyze(counts(*sums, prior=list(prior)))["variants"][1]
    if b["liftCredibleInterval"] is None:
        assert b["reasons"]["liftCredibleInterval"] == "OUT_OF_RANGE"
    else:
        assert b["liftCredibleInterval"]["low"] <= b["liftCredibleInterval"]["high"]


def test_weights_are_tested_with_the_leak_told() -> None:
    """Against the weights in force; somebody in an arm of weight 0 is told as such."""
    fair = analyze(counts((10, 500), (12, 520), weights={"a": 50, "b": 50}))["srm"]
    assert fair["pValue"] == pytest.approx(stats.chisquare([500, 520]).pvalue)
    assert not fair["detected"]
    assert analyze(counts((10, 500), (12, 300), weights={"a": 50, "b": 50}))["srm"]["detected"]
    assert analyze(counts((10, 500), (1, 3), weights={"a": 100, "b": 0}))["srm"]["detected"]


def test_corrections_and_goals() -> None:
    """Three variants at half the level each; whoever wants less is best at less."""
    found = analyze(counts((45, 250), (67, 250), (50, 250)))
    assert found["method"]["intervalLevel"] == 0.975
    b = found["variants"][1]
    assert b["pValueAdjusted"] == pytest.approx(2 * b["pValue"])
    less = analyze(counts((45, 250), (67, 250), goal="decrease"))["variants"]
    assert less[0]["probabilityToBeBest"] > 0.99
    holm = analyze({"p_values": [0.01, 0.04, 0.03], "correction": "holm"})
    assert holm["adjusted"] == {"holm": pytest.approx([0.03, 0.06, 0.06])}


def test_a_design_effect_widens_what_counts_say() -> None:
    """Both the interval and the posterior; 1 changes nothing but the method."""
    plain, wide = (analyze(counts((45, 250), (67, 250), designEffect=d))["variants"][1] for d in (1.0, 4.0))
    assert wide["standardError"] == pytest.approx(2 * plain["standardError"])
    assert wide["probabilityToBeBest"] < plain["probabilityToBeBest"]
    assert wide["pValue"] > plain["pValue"]


def test_variants_may_come_by_key_or_called_name() -> None:
    """The same answer, whichever of the ways they are written."""
    plain = counts((45, 250), (67, 250))
    numbers = {one["key"]: {name: v for name, v in one.items() if name != "key"} for one in plain["variants"]}
    by_name = [{"name": key, **rest} for key, rest in numbers.items()]
    assert analyze({**plain, "variants": numbers}) == analyze(plain)
    assert analyze({**plain, "variants": by_name}) == analyze(plain)
    for wrong in (None, 3, [3], {"a": 3}):
        with pytest.raises(Invalid, match="variants"):
            analyze({**plain, "variants": wrong})


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (counts((1, 10), (30, 20)), "variants.b.conversions"),
        (counts((-1, 10), (3, 20)), "variants.a.conversions"),
        (counts((1, 10), (2.5, 20)), "variants.b.conversions"),  # type: ignore[arg-type]
        (counts((1, 10), (math.nan, 20)), "variants.b.conversions"),  # type: ignore[arg-type]
        (counts((1, 10)), "variants"),
        ({**counts((1, 10), (2, 10)), "control": None}, "control"),
        (counts((1, 10), (2, 10), control="x"), "control"),
        (counts((1, 10), (2, 10), alpha=1.5), "alpha"),
        (counts((1, 10), (2, 10), nonsense=1), "nonsense"),
        (counts((1, 10), (2, 10), weights={"x": 1}), "weights"),
        (people([[10, 2]], [[10, 12]]), "variants.b.participants.0"),
        (people([[10, 2]], [[-1, 0]]), "variants.b.participants.0"),
        (people([[10, 2]], [[10, 1]], strata={"a": ["x", "y"], "b": ["x"]}), "variants.a.strata"),
        (values([1.0], [math.inf]), "variants.b.values.0"),
        ({"variants": [{"key": "a"}, {"key": "b", "values": [1.0]}], "control": "a"}, "variants.a"),
        (counts((True, 10), (2, 10)), "variants.a.conversions"),
        (counts((1, 10**400), (2, 10)), "variants.a.impressions"),
        (counts(), "variants"),
        ({"control": "a"}, "variants"),
        (people([[10, 2, 1]], [[10, 1]]), "variants.a.participants.0"),
        (people([[10, 2.5]], [[10, 1]]), "variants.a.participants.0"),
        (counts((1, 10), (2, 10), weights=[1]), "weights"),
        (counts((1, 10), (2, 10), weights=[0, 0]), "weights"),
        (counts((1, 10), (2, 10), weights=3), "weights"),
        (counts((1, 10), (2, 10), designEffect=0.5), "designEffect"),
        (counts((1, 10), (2, 10), decision="path_test"), "decision"),
        (
            counts(
                (1, 9), (2, 9), decision="welch", looks=[{"variants": counts((1, 9), (2, 9))["variants"]}]
            ),
            "decision",
        ),
        (people([[10, 1]], [[10, 2]], decision="newcombe"), "decision"),
        (people([[10, 2]], [[10, 1]], strata={"a": ["x"]}), "strata"),
        (people([[9, 2]], [[9, 1]], looks=[{"participants": {"a": [[10, 2]], "b": [[9, 1]]}}]), "looks.0.a"),
        (people([[9, 2]], [[9, 1]], looks=[{"participants": {"a": [[9, 2]]}}]), "looks.0.b"),
        (people([[9, 2]], [[9, 1]], looks=[{"participants": {"a": [[9, 2]], "c": [[9, 2]]}}]), "looks.0.c"),
        (
            counts(
                (1, 20),
                (2, 20),
                looks=[
                    {"day": 2, "variants": counts((1, 10), (2, 10))["variants"]},
                    {"day": 1, "variants": counts((1, 20), (2, 20))["variants"]},
                ],
            ),
            "looks.1.day",
        ),
        (
            {"variants": [{"key": k, "conversions": 1, "impressions": 2, "isControl": True} for k in "ab"]},
            "control",
        ),
        ({"p_values": [0.5, 1.5]}, "p_values[1]"),
        ({"p_values": [0.5, math.nan]}, "pValues.1"),
        ({"p_values": []}, None),
    ],
)
def test_what_cannot_be_is_refused_by_name(asked: dict[str, Any], named: str | None) -> None:
    """Never computed on; an empty list of p-values is nothing to adjust."""
    if named is None:
        assert analyze(asked)["adjusted"]["bonferroni"] == []
        return
    with pytest.raises(Invalid) as refused:
        analyze(asked)
    fields = {fault.field for fault in refused.value.faults}
    assert named in fields or named.replace("pValues", "p_values") in fields, fields


few = settings(max_examples=25)
pairs = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda x: (min(x), max(x)))
arms = st.lists(pairs, min_size=2, max_size=4)


@few
@given(arms)
def test_every_number_is_finite_or_has_its_reason(given: list[tuple[int, int]]) -> None:
    """Whatever the counts, impossible ones aside."""
    found = analyze(counts(*given))
    assert sum(arm["probabilityToBeBest"] for arm in found["variants"]) == pytest.approx(1, abs=1e-9)
    for arm in found["variants"]:
        for name, value in arm.items():
            if name == "reasons":
                continue
            assert (value is None) == (name in arm["reasons"]), (name, arm)
            if isinstance(value, float):
                assert math.isfinite(value)


@few
@given(arms, st.randoms())
def test_the_order_of_the_arms_changes_nothing(given: list[tuple[int, int]], chance: Any) -> None:
    """Permuted arms have permuted answers."""
    asked = counts(*given)
    shuffled = {**asked, "variants": chance.sample(asked["variants"], len(given))}
    one, other = ({arm["key"]: arm for arm in analyze(x)["variants"]} for x in (asked, shuffled))
    for key, arm in one.items():
        for name in ("probabilityToBeBest", "expectedLoss", "difference", "pValue"):
            assert arm[name] == pytest.approx(other[key][name], abs=1e-12), name


def test_planning_is_fleiss_and_ends_at_what_hosts_can_tell() -> None:
    """As R's power.prop.test; 30 hosts an arm at ICC 0.15 never find less than 13 points."""
    plain = size(SampleSize(baseline=0.25, minimumDetectableEffect=1.0))
    assert plain.participants == 58  # power.prop.test(p1 = .25, p2 = .5, power = .8): 57.67
    hosts = size(SampleSize(baseline=0.25, impressionsEach=150, icc=0.15, participants=30))
    assert hosts.detectable == pytest.approx(0.132, abs=0.001)
    assert hosts.detectable_at_most == pytest.approx(0.130, abs=0.001)
    many = size(SampleSize(baseline=0.25, impressionsEach=150, icc=0.15, participants=100))
    assert many.detectable == pytest.approx(0.0705, abs=0.0005)
    with pytest.raises(Invalid, match="out of 0"):
        size(SampleSize(baseline=0.6, minimumDetectableEffect=1.0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("minimumDetectableEffect", 0.0), ("minimumDetectableEffect", 1e-300), ("baseline", 1e-300),
     ("baseline", 1.0), ("power", 1.0), ("icc", 1.5), ("variants", 1), ("participants", 0)],
)  # fmt: skip
def test_a_plan_that_no_number_answers_is_refused_by_field(field: str, value: float) -> None:
    """Before anything is computed; the smallest that are taken have an answer."""
    with pytest.raises(Invalid) as refused:
        parse(SampleSize, {"baseline": 0.25, field: value})
    assert [fault.field for fault in refused.value.faults] == [field]
    assert size(SampleSize(baseline=1e-9, minimumDetectableEffect=1e-6, power=0.999999)).participants > 0
