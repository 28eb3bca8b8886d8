"""The numbers of the results: against exact arithmetic, independent implementations and simulation."""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from itertools import permutations
from math import isfinite, log, sqrt

import mpmath
import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from control_plane.domain.statistics.bayes import Beliefs, beliefs, overdispersion
from control_plane.domain.statistics.posterior import Beta, credible_interval
from control_plane.domain.statistics.proportions import (
    ArmSums,
    Undefined,
    difference,
    icc,
    log_two_sided_p,
    rate,
)
from control_plane.domain.statistics.summary import ArmSummary, Summary, summarise
from shared.errors import Invalid


def arm(key: str, *rows: tuple[int, int]) -> ArmSums:
    return ArmSums(key=key, trials=[m for m, _ in rows], successes=[c for _, c in rows])


def once_each(key: str, successes: int, trials: int) -> ArmSums:
    """An arm whose participants have one impression each."""
    return arm(key, *[(1, 1)] * successes, *[(1, 0)] * (trials - successes))


SKEWED_A = arm("a", (400, 60), (12, 1), (90, 20), (3, 0), (55, 9), (7, 3))
SKEWED_B = arm("b", (20, 8), (310, 50), (41, 11), (5, 0), (150, 60))


# Rates and differences


def test_jackknife_is_what_leaving_each_participant_out_gives() -> None:
    """The closed form equals the definition, computed by leaving out one after another."""
    rows = SKEWED_A.with_data()
    total, hits, n = sum(m for m, _ in rows), sum(c for _, c in rows), len(rows)
    left_out = [(hits - c) / (total - m) for m, c in rows]
    expected = (n - 1) / n * sum((r - hits / total) ** 2 for r in left_out)
    found = rate(SKEWED_A)
    assert found.variance == pytest.approx(expected, rel=1e-12)
    assert found.rate == hits / total
    squares = sum(m * m for m, _ in rows)
    assert found.degrees_of_freedom == pytest.approx(total**2 / squares - 1, rel=1e-12)
    naive = hits / total * (1 - hits / total) / total
    assert found.design_effect == pytest.approx(expected / naive, rel=1e-12)


def test_delta_is_cluster_robust_regression() -> None:
    """The delta variance is statsmodels' cluster-robust one of an intercept, times n/(n-1)."""
    outcomes, clusters = [], []
    for index, (m, c) in enumerate(SKEWED_A.with_data()):
        outcomes += [1.0] * c + [0.0] * (m - c)
        clusters += [index] * m
    fitted = sm.OLS(outcomes, np.ones(len(outcomes))).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(clusters), "use_correction": False}
    )
    n = len(SKEWED_A.trials)
    found = rate(SKEWED_A, variance="delta")
    assert found.variance == pytest.approx(float(fitted.cov_params()[0, 0]) * n / (n - 1), rel=1e-10)
    assert found.degrees_of_freedom == n - 1


@pytest.mark.parametrize("variance", ["jackknife", "delta"])
def test_equal_traffic_is_welchs_t_test(variance: str) -> None:
    """With as many impressions everywhere, both variances give Welch's test of the participants' rates."""
    control, treatment = [3, 5, 8, 2, 4, 6, 5], [9, 4, 7, 12, 8]
    welch = stats.ttest_ind([c / 20 for c in treatment], [c / 20 for c in control], equal_var=False)
    found = difference(
        arm("t", *[(20, c) for c in treatment]),
        arm("c", *[(20, c) for c in control]),
        alpha=0.1,
        variance=variance,
    )
    interval = welch.confidence_interval(0.9)
    assert found.degrees_of_freedom == pytest.approx(welch.df, rel=1e-10)
    assert found.p_value == pytest.approx(welch.pvalue, rel=1e-10)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.reasons == {}


def test_interval_and_p_value_never_contradict_each_other() -> None:
    """At any level, the interval excludes 0 exactly where p is below that level."""
    chance = np.random.default_rng(11)
    met = set()
    for _ in range(300):
        alpha = float(chance.choice([0.01, 0.05, 0.2]))
        rows = [
            [(int(m), int(chance.binomial(m, p))) for m in chance.integers(1, 80, 8)] for p in (0.2, 0.35)
        ]
        found = difference(arm("t", *rows[0]), arm("c", *rows[1]), alpha=alpha)
        assert found.interval is not None
        assert found.p_value is not None
        excludes = found.interval.low > 0 or found.interval.high < 0
        assert excludes == (found.p_value < alpha)
        met.add(excludes)
    assert met == {True, False}


def test_exchanging_the_arms_turns_the_sign() -> None:
    """Treatment and control are treated alike."""
    one, other = difference(SKEWED_A, SKEWED_B, alpha=0.05), difference(SKEWED_B, SKEWED_A, alpha=0.05)
    assert one.estimate is not None
    assert one.estimate == -(other.estimate or 0)
    assert one.p_value == other.p_value


@pytest.mark.parametrize(
    ("freedom", "statistic"),
    [
        (0.7, 3.0),
        (3, 0.0),
        (3, 10.0),
        (14, 1e60),
        (30, 1e12),
        (1000, 37.0),
        (1000, 300.0),
        (1e5, 45.0),
        (1e6, 60.0),
    ],
)
def test_tails_keep_their_digits(freedom: float, statistic: float) -> None:
    """The logarithm of p agrees with 60-digit arithmetic, also far below what a float can hold."""
    with mpmath.workdps(60):
        x = mpmath.mpf(freedom) / (freedom + mpmath.mpf(statistic) ** 2)
        exact = float(mpmath.log(mpmath.betainc(mpmath.mpf(freedom) / 2, 0.5, 0, x, regularized=True)))
    assert log_two_sided_p(statistic, freedom) == pytest.approx(exact, rel=1e-11, abs=1e-11)


def test_an_enormous_effect_has_a_p_value() -> None:
    """Where p underflows it is the smallest normal float, and its logarithm says how small it is."""
    treatment = arm("t", *[(10_000, 9_000 + i % 2) for i in range(400)])
    control = arm("c", *[(10_000, 10 + i % 2) for i in range(400)])
    found = difference(treatment, control, alpha=0.05)
    assert found.p_value is not None
    assert 0 < found.p_value < 1e-300
    assert found.log_p_value is not None
    assert found.log_p_value < log(1e-308)


def test_participants_without_data_change_nothing() -> None:
    """Zeros are no observations: with and without them all numbers are the same."""
    silent = replace(SKEWED_A, trials=[*SKEWED_A.trials, 0, 0], successes=[*SKEWED_A.successes, 0, 0])
    for variance in ("jackknife", "delta"):
        assert rate(silent, variance=variance) == rate(SKEWED_A, variance=variance)
    assert icc([silent]) == icc([SKEWED_A])


@pytest.mark.parametrize("variance", ["jackknife", "delta"])
def test_equal_rates_have_no_variance_at_all(variance: str) -> None:
    """Thirds, which no float holds, still give variance 0 and not a rounding error taken for precision."""
    constant = arm("t", (3, 1), (30, 10), (333, 111))
    assert rate(constant, variance=variance).variance == 0
    found = difference(constant, arm("c", (4, 1), (40, 10)), alpha=0.05, variance=variance)
    assert found.estimate == pytest.approx(1 / 12)
    assert (found.interval, found.p_value) == (None, None)
    assert found.reasons["p_value"] == found.reasons["interval"] == Undefined.NO_VARIATION


def test_one_arm_without_conversions_is_still_compared() -> None:
    """A variance of 0 on one side leaves error and degrees of freedom of the other."""
    varied = arm("c", (10, 3), (10, 5), (10, 4))
    found = difference(arm("t", (10, 0), (10, 0)), varied, alpha=0.05)
    assert found.degrees_of_freedom == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(sqrt(rate(varied).variance or 0))
    assert found.p_value is not None


@pytest.mark.parametrize(
    ("treatment", "reasons"),
    [
        (arm("t"), {"estimate": Undefined.NO_IMPRESSIONS, "p_value": Undefined.NO_IMPRESSIONS}),
        (arm("t", (0, 0)), {"interval": Undefined.NO_IMPRESSIONS}),
        (arm("t", (0, 3)), {"estimate": Undefined.NO_IMPRESSIONS}),
        (arm("t", (9, 3)), {"interval": Undefined.TOO_FEW_PARTICIPANTS}),
        (arm("t", (9, 3), (0, 1)), {"interval": Undefined.TOO_FEW_PARTICIPANTS}),
        (arm("t", (10**9, 3), (1, 1)), {"interval": Undefined.TOO_FEW_PARTICIPANTS}),
    ],
)
def test_what_is_not_defined_has_a_reason(treatment: ArmSums, reasons: dict[str, Undefined]) -> None:
    """A None is named with its reason, and nothing that is defined is."""
    found = difference(treatment, SKEWED_A, alpha=0.05)
    assert reasons.items() <= found.reasons.items()
    assert set(found.reasons) == {item.name for item in fields(found) if getattr(found, item.name) is None}
    own = rate(treatment)
    assert set(own.reasons) == {item.name for item in fields(own) if getattr(own, item.name) is None}


def test_sums_of_numpy_integers_do_not_overflow() -> None:
    """Billions of impressions in numpy's 64 bits give what Python's integers give."""
    rows = [(4_000_000_001, 900_000_007), (3_000_000_019, 600_000_001), (5_000_000_021, 1_200_000_003)]
    plain = arm("t", *rows)
    fixed = ArmSums(key="t", trials=np.array(plain.trials), successes=np.array(plain.successes))
    for variance in ("jackknife", "delta"):
        assert rate(fixed, variance=variance) == rate(plain, variance=variance)


def test_icc_is_the_analysis_of_variance() -> None:
    """It equals MSB and MSW computed from the single trials of all arms."""
    arms = [SKEWED_A, SKEWED_B]
    between = within = 0.0
    n = sum(len(one.trials) for one in arms)
    total = sum(sum(one.trials) for one in arms)
    for one in arms:
        mean = sum(one.successes) / sum(one.trials)
        for m, c in one.with_data():
            trials = np.array([1.0] * c + [0.0] * (m - c))
            between += m * (trials.mean() - mean) ** 2
            within += float(((trials - trials.mean()) ** 2).sum())
    msb, msw = between / (n - 2), within / (total - n)
    size = (total - sum(sum(m * m for m in one.trials) / sum(one.trials) for one in arms)) / (n - 2)
    assert icc(arms) == pytest.approx((msb - msw) / (msb + (size - 1) * msw), rel=1e-10)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (arm("a", (10, 10), (20, 0), (5, 5)), 1.0),
        (arm("a", (10, 5), (20, 10), (4, 2)), 0.0),
        (arm("a", (10, 0), (20, 0)), Undefined.NO_VARIATION),
        (once_each("a", 2, 5), Undefined.ONE_IMPRESSION_EACH),
        (arm("a", (10, 3)), Undefined.TOO_FEW_PARTICIPANTS),
        (arm("a", (10, 11), (9, 1)), Undefined.CONVERSIONS_EXCEED_IMPRESSIONS),
        (arm("a", (0, 0)), Undefined.NO_IMPRESSIONS),
    ],
)
def test_icc_at_its_ends(one: ArmSums, expected: float | Undefined) -> None:
    """All alike is 1, less than chance is 0, and what cannot be computed says why."""
    assert icc([one]) == expected


@pytest.mark.parametrize(("trials", "successes"), [([1, 2], [1]), ([-1], [0]), ([1], [-1])])
def test_sums_that_cannot_be_are_refused(trials: list[int], successes: list[int]) -> None:
    """Lengths that differ and negative counts name the field."""
    with pytest.raises(Invalid) as refused:
        ArmSums(key="a", trials=trials, successes=successes)
    assert refused.value.faults[0].field in ("trials", "successes")


def test_no_false_positives_beyond_the_level_under_skewed_traffic() -> None:
    """8 + 8 alike hosts, lognormal traffic: the default errs in at most 5 %, the delta method in more."""
    runs, hosts, spread, share, alike = 2_000, 8, 1.5, 0.25, 0.15
    chance = np.random.default_rng(20_240)
    wrong = {"jackknife": 0, "delta": 0}
    scale = (1 - alike) / alike
    for _ in range(runs):
        trials = np.maximum(1, np.rint(chance.lognormal(4.0, spread, (2, hosts)))).astype(int)
        hits = chance.binomial(trials, chance.beta(share * scale, (1 - share) * scale, trials.shape))
        sides = [ArmSums(key=str(k), trials=trials[k], successes=hits[k]) for k in range(2)]
        wrong["jackknife"] += (difference(*sides, alpha=0.05).p_value or 1) < 0.05
        wrong["delta"] += (difference(*sides, alpha=0.05, variance="delta").p_value or 1) < 0.05
    assert wrong["jackknife"] / runs <= 0.05 + 3 * sqrt(0.05 * 0.95 / runs)
    # What the default is for: if this fails, the simulation has lost the skew that it is about.
    assert wrong["delta"] / runs > 0.10


# Bayesian numbers


def believed(*arms: ArmSums, control: str | None = None, **options: object) -> Beliefs:
    found = beliefs(arms, control=control, alpha=0.05, **options)  # type: ignore[arg-type]
    assert isinstance(found, Beliefs)
    return found


def exactly_better(one: Beta, other: Beta) -> float:
    """P(X > Y) for whole parameters in 60 digits, by the closed sum (Miller 2015)."""
    with mpmath.workdps(60):
        return float(
            mpmath.fsum(
                mpmath.beta(other.a + i, one.b + other.b)
                / ((one.b + i) * mpmath.beta(1 + i, one.b) * mpmath.beta(other.a, other.b))
                for i in range(int(one.a))
            )
        )


def test_45_of_250_against_67_of_250() -> None:
    """The vector of the reference: 0.009 and 0.991, here to twelve digits."""
    found = believed(once_each("control", 45, 250), once_each("b", 67, 250), control="control")
    control, treatment = found.arms
    exact = exactly_better(Beta(a=46, b=206), Beta(a=68, b=184))
    assert found.overdispersion == 1.0
    assert round(exact, 3) == 0.009
    assert control.probability_to_be_best == pytest.approx(exact, rel=1e-12)
    assert treatment.probability_to_be_best == pytest.approx(1 - exact, rel=1e-12)
    assert treatment.chance_to_win == pytest.approx(treatment.probability_to_be_best, rel=1e-12)
    assert control.chance_to_win is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 0), (0, 0)),
        ((0, 0), (0, 10)),
        ((0, 10), (10, 10)),
        ((10, 10), (10, 10)),
        ((0, 400), (1, 400)),
        ((2, 2_000), (9, 2_000)),
        ((100, 108), (100, 109)),
        ((500, 800), (300, 900)),
    ],
)
def test_two_arms_agree_with_the_closed_sum(one: tuple[int, int], other: tuple[int, int]) -> None:
    """From no data at all to nothing but conversions, both directions and the losses are right."""
    found = believed(once_each("a", *one), once_each("b", *other))
    a, b = found.arms
    exact = exactly_better(a.posterior, b.posterior)
    assert a.probability_to_be_best == pytest.approx(exact, rel=1e-9, abs=1e-15)
    assert a.probability_to_be_best + b.probability_to_be_best == pytest.approx(1, abs=1e-12)
    # E max(B - A, 0) - E max(A - B, 0) is the difference of the means.
    means = [x.posterior.a / (x.posterior.a + x.posterior.b) for x in (a, b)]
    assert a.expected_loss - b.expected_loss == pytest.approx(means[1] - means[0], abs=1e-14)
    assert min(a.expected_loss, b.expected_loss) >= 0


def test_expected_loss_against_high_precision_quadrature() -> None:
    """The mean of what is lost by choosing an arm, by its definition, in 30 digits."""
    found = believed(once_each("a", 30, 100), once_each("b", 42, 110))
    a, b = (one.posterior for one in found.arms)
    with mpmath.workdps(30):

        def below(beta: Beta, x: mpmath.mpf) -> mpmath.mpf:
            return mpmath.betainc(beta.a, beta.b, 0, x, regularized=True)

        exact = mpmath.quad(lambda x: below(b, x) * (1 - below(a, x)), [0, 0.2, 0.3, 0.4, 0.5, 1])
    assert found.arms[1].expected_loss == pytest.approx(float(exact), rel=1e-9)


def test_ten_arms_sum_to_one_and_follow_their_order() -> None:
    """Ten arms of very different size; exchanging arms exchanges their numbers and changes none."""
    chance = np.random.default_rng(5)
    sizes = [0, 1, 3, 10, 40, 100, 250, 600, 900, 1_500]
    arms = [once_each(f"arm-{i}", int(chance.binomial(n, 0.2)), n) for i, n in enumerate(sizes)]
    found = believed(*arms, control="arm-6")
    assert sum(one.probability_to_be_best for one in found.arms) == pytest.approx(1, abs=1e-12)
    turned = believed(*reversed(arms), control="arm-6")
    for one, same in zip(found.arms, reversed(turned.arms), strict=True):
        assert same.key == one.key
        assert same.probability_to_be_best == pytest.approx(one.probability_to_be_best, rel=1e-10)
        assert same.expected_loss == pytest.approx(one.expected_loss, rel=1e-10)
        assert (one.chance_to_win is None) == (one.key == "arm-6") == (same.chance_to_win is None)
        assert (same.chance_to_win or 0) == pytest.approx(one.chance_to_win or 0, rel=1e-10)


def test_equal_arms_are_equally_likely_best() -> None:
    """Four arms with the same sums have a quarter each, whatever their order."""
    same = [once_each(key, 12, 90) for key in "abcd"]
    for order in permutations(same, 4):
        for one in believed(*order).arms:
            assert one.probability_to_be_best == pytest.approx(0.25, abs=1e-13)


def test_millions_of_impressions_lose_no_digits() -> None:
    """With very large and lopsided posteriors the probabilities still sum to one and the losses fit."""
    big = arm("a", *[(1_000_000, 250_000 + i * 40) for i in range(30)])
    other = arm("b", *[(1_000_000, 250_300 + i * 37) for i in range(30)])
    rare = arm("c", *[(1_000_000, i) for i in range(30)])
    found = believed(big, other, rare)
    assert sum(one.probability_to_be_best for one in found.arms) == pytest.approx(1, abs=1e-11)
    assert found.arms[2].probability_to_be_best < 1e-30
    assert found.arms[0].expected_loss > found.arms[1].expected_loss > 0


def test_lower_is_better_where_the_goal_says_so() -> None:
    """With goal decrease two arms exchange their probabilities; the interval stays that of the rate."""
    arms = once_each("a", 10, 80), once_each("b", 20, 80)
    up, down = believed(*arms, control="a"), believed(*arms, control="a", goal="decrease")
    assert down.arms[0].probability_to_be_best == pytest.approx(up.arms[1].probability_to_be_best, abs=1e-13)
    assert down.arms[1].chance_to_win == pytest.approx(1 - (up.arms[1].chance_to_win or 0), abs=1e-13)
    assert down.arms[1].expected_loss == pytest.approx(up.arms[0].expected_loss, rel=1e-9)
    assert down.arms[0].credible_interval == up.arms[0].credible_interval


def test_credible_interval_leaves_half_of_alpha_on_either_side() -> None:
    """Its ends are quantiles of the posterior."""
    posterior = Beta(a=46, b=206)
    interval = credible_interval(posterior, alpha=0.1)
    assert stats.beta.cdf(interval.low, 46, 206) == pytest.approx(0.05, rel=1e-10)
    assert stats.beta.sf(interval.high, 46, 206) == pytest.approx(0.05, rel=1e-10)


def test_overdispersion_is_pooled_and_pays_for_its_estimation() -> None:
    """One D from the weighted design effects of all arms, times the square of t over z."""
    arms = [SKEWED_A, SKEWED_B]
    total = sum(sum(one.trials) for one in arms)
    pooled = sum(sum(one.successes) for one in arms) / total
    spread = sum((rate(one, variance="delta").variance or 0) * sum(one.trials) ** 2 for one in arms)
    freedom = sum(len(one.trials) - 1 for one in arms)
    quantile = stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)
    expected = max(1, spread / (total * pooled * (1 - pooled))) * quantile**2
    assert expected > 2
    assert overdispersion(arms) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        ([once_each("a", 3, 9), once_each("b", 9, 9)], 1.0),
        ([arm("a", (0, 0)), arm("b")], 1.0),
        ([arm("a", (10, 0), (30, 0)), arm("b", (20, 0))], 1400 / 60),
        ([arm("a", (10, 10), (30, 30))], 25.0),
        ([arm("a", (10, 4)), arm("b", (10, 7))], 10.0),
    ],
)
def test_overdispersion_where_nothing_can_be_estimated(arms: list[ArmSums], expected: float) -> None:
    """One impression each is 1; no variation or one participant per arm counts participants, not trials."""
    assert overdispersion(arms) == pytest.approx(expected, rel=1e-12)


def test_few_repeated_hosts_do_not_look_decisive() -> None:
    """5 + 5 alike hosts with 500 impressions each at 2 %: chance to win leaves 5–95 % in at most 12 %."""
    runs, scale = 200, (1 - 0.15) / 0.15
    chance = np.random.default_rng(77)
    decisive = 0
    for _ in range(runs):
        hits = chance.binomial(500, chance.beta(0.02 * scale, 0.98 * scale, (2, 5)))
        c, t = (ArmSums(key=key, trials=[500] * 5, successes=hits[k]) for k, key in enumerate("ct"))
        won = believed(c, t, control="c").arms[1].chance_to_win
        assert won is not None
        decisive += not 0.05 <= won <= 0.95
    assert decisive / runs <= 0.12


# The whole answer


def summary(*arms: ArmSums, control: str | None = "c") -> Summary:
    return summarise(arms, control=control)


def check_complete(one: ArmSummary) -> None:
    """Every number is finite, and exactly the missing ones have a reason."""
    missing = {item.name for item in fields(one) if getattr(one, item.name) is None}
    assert set(one.reasons) == missing
    for value in asdict(one).values():
        for number in value.values() if isinstance(value, dict) else [value]:
            assert not isinstance(number, float) or isfinite(number)


def test_summary_of_an_ordinary_experiment() -> None:
    """Counts, rates, probabilities and the difference against control are the single functions' own."""
    control, treatment = replace(SKEWED_A, key="c"), replace(SKEWED_B, key="t")
    silent = replace(control, trials=[*control.trials, 0], successes=[*control.successes, 0])
    found = summary(silent, treatment)
    c, t = found.arms
    assert (c.participants, c.participants_exposed, c.impressions, c.conversions) == (7, 6, 567, 93)
    assert c.conversion_rate == 93 / 567
    against = difference(treatment, control, alpha=0.05)
    assert (t.difference, t.difference_interval, t.p_value) == (
        against.estimate,
        against.interval,
        against.p_value,
    )
    beliefs_of_both = believed(control, treatment, control="c")
    assert t.chance_to_win == beliefs_of_both.arms[1].chance_to_win
    assert found.overdispersion == beliefs_of_both.overdispersion
    assert t.icc == icc([treatment])
    assert t.reasons == {}
    assert dict(c.reasons) == dict.fromkeys(
        ("difference", "difference_interval", "p_value", "chance_to_win"), Undefined.IS_CONTROL
    )


@pytest.mark.parametrize(
    "arms",
    [
        [],
        [arm("c")],
        [arm("c"), arm("t")],
        [arm("c", (0, 0)), arm("t", (5, 0))],
        [arm("c", (5, 0), (7, 0)), arm("t", (5, 5), (9, 9))],
        [arm("c", (5, 9), (1, 0)), arm("t", (5, 5), (9, 1))],
        [arm("c", (0, 4)), arm("t", (5, 5))],
        [once_each("c", 45, 250), once_each("t", 67, 250), once_each("u", 0, 0)],
        [arm("c", (10**12, 10**6), (1, 1)), arm("t", (1, 0), (10**12, 3))],
        [arm("c", (3, 1), (30, 10)), arm("t", (3, 1), (30, 10))],
    ],
)
@pytest.mark.parametrize("with_control", [True, False])
def test_every_summary_is_complete(arms: Sequence[ArmSums], with_control: bool) -> None:
    """Whatever the sums are: no NaN, no infinity, no crash, a reason beside every None and only there."""
    found = summary(*arms, control="c" if with_control and arms else None)
    for one in found.arms:
        check_complete(one)


def test_conversions_above_impressions_are_reported_and_not_believed() -> None:
    """The counts stand, the participant-level difference too; what needs a proportion says why not."""
    found = summary(arm("c", (5, 9), (4, 2)), arm("t", (5, 5), (9, 1)))
    for one in found.arms:
        assert one.probability_to_be_best is None
        assert one.reasons["probability_to_be_best"] == Undefined.CONVERSIONS_EXCEED_IMPRESSIONS
    assert found.overdispersion is None
    assert found.arms[0].reasons["design_effect"] == Undefined.CONVERSIONS_EXCEED_IMPRESSIONS
    assert (found.arms[0].impressions, found.arms[0].conversions) == (9, 11)
    assert found.arms[1].difference == pytest.approx(6 / 14 - 11 / 9)


@pytest.mark.parametrize(
    ("arms", "control", "alpha", "field"),
    [
        ([SKEWED_A, SKEWED_A], "a", 0.05, "arms"),
        ([SKEWED_A], "b", 0.05, "control"),
        ([SKEWED_A], "a", 0.0, "alpha"),
        ([SKEWED_A], None, 1.0, "alpha"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    arms: list[ArmSums], control: str | None, alpha: float, field: str
) -> None:
    """The refusal names the field."""
    with pytest.raises(Invalid) as refused:
        summarise(arms, control=control, alpha=alpha)
    assert [fault.field for fault in refused.value.faults] == [field]


def test_a_prior_must_be_positive() -> None:
    """A prior of 0 is refused, one below 1 works."""
    with pytest.raises(Invalid) as refused:
        summarise([SKEWED_A], control=None, prior=Beta(a=0, b=1))
    assert refused.value.faults[0].field == "prior"
    found = summarise([SKEWED_A, SKEWED_B], control="a", prior=Beta(a=0.5, b=0.5))
    assert sum(one.probability_to_be_best or 0 for one in found.arms) == pytest.approx(1, abs=1e-9)
