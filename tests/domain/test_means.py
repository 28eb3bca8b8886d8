"""Means, ratios and small proportions: against scipy, statsmodels, high precision, and gbstats's figures."""

import json
import sys
from math import isfinite
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from control_plane.domain.statistics import newcombe
from control_plane.domain.statistics.means import Moments, RatioSums, mean, merged, moments, ratio
from control_plane.domain.statistics.newcombe import Counts, Small
from control_plane.domain.statistics.proportions import (
    ArmSums,
    Estimate,
    Interval,
    Undefined,
    compared,
    counted,
    difference,
    rate,
)
from control_plane.domain.statistics.sequence import always_valid
from shared.errors import Invalid

GBSTATS = json.loads((Path(__file__).parent.parent / "vectors" / "gbstats-0.8.0.json").read_text())
"""Figures of gbstats 0.8.0, recorded: it needs an older numpy than this suite runs on.

Made once on Python 3.11 with numpy 1.26: SampleMeanStatistic of n, sum and sum of squares of `a` (37 lognormal
values, three decimals) and `b` (24), RatioStatistic of the [impressions, conversions] rows; TwoSidedTTest and
SequentialTwoSidedTTest with difference_type="absolute", and compute_result()'s expected, p_value and ci.
"""

values = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)


def of(key: str, sample: list[float]) -> Estimate:
    return mean(key, moments(sample))


# -- means


def test_two_means_are_welchs_test() -> None:
    """Difference, interval, p and degrees of freedom against scipy's."""
    rng = np.random.default_rng(4)
    t, c = list(rng.lognormal(0.4, 1, 37)), list(rng.lognormal(0, 1.3, 21))
    welch = stats.ttest_ind(t, c, equal_var=False)
    found = compared(of("t", t), of("c", c), alpha=0.1)
    ends = welch.confidence_interval(0.9)
    assert found.estimate == pytest.approx(float(np.mean(t) - np.mean(c)), rel=1e-12)
    assert found.degrees_of_freedom == pytest.approx(welch.df, rel=1e-10)
    assert found.p_value == pytest.approx(welch.pvalue, rel=1e-9)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert found.reasons == {}


def test_a_large_offset_costs_no_digits() -> None:
    """Values around 10⁹ that differ in the third decimal have the variance of their differences."""
    away = [0.001, 0.004, 0.002, 0.009, 0.003, 0.007]
    shifted = of("t", [1e9 + x for x in away])
    with mpmath.workdps(40):
        exact = [mpmath.mpf(1e9 + x) for x in away]
        centre = mpmath.fsum(exact) / 6
        expected = float(mpmath.fsum((x - centre) ** 2 for x in exact) / 5 / 6)
    assert shifted.variance == pytest.approx(expected, rel=1e-9)


@given(values, values, st.integers(1, 4))
@example([0.0, 0.0], [1e-162, 0.0], 3)
def test_moments_can_be_merged_in_any_parts(one: list[float], other: list[float], parts: int) -> None:
    """Chan's formula over slices is the two-pass answer over everything."""
    whole = [*one, *other]
    found = merged(moments(whole[at::parts]) for at in range(parts))
    direct = moments(whole)
    scale = max(abs(value) for value in whole)
    least = sys.float_info.min  # below which a number has fewer digits than others
    assert found.count == direct.count
    assert found.mean == pytest.approx(direct.mean, abs=max(1e-12 * scale, least))
    assert found.squares == pytest.approx(direct.squares, rel=1e-9, abs=max(1e-12 * scale**2, least))


@given(values, values, st.floats(-1e3, 1e3), st.floats(0.5, 50))
def test_shifting_and_scaling(one: list[float], other: list[float], shift: float, scale: float) -> None:
    """A shift of all values changes nothing but the means; a scale multiplies difference and interval alone."""
    if min(np.std(one), np.std(other)) < 1:
        return
    plain = compared(of("t", one), of("c", other), alpha=0.05)
    moved = compared(
        of("t", [shift + scale * y for y in one]), of("c", [shift + scale * y for y in other]), alpha=0.05
    )
    assert plain.interval is not None
    assert moved.interval is not None
    reach = scale * (plain.interval.high - plain.interval.low)
    assert moved.p_value == pytest.approx(plain.p_value, rel=1e-6)
    assert moved.interval.low == pytest.approx(scale * plain.interval.low, abs=1e-7 * reach)
    assert moved.interval.high == pytest.approx(scale * plain.interval.high, abs=1e-7 * reach)


@given(values, values, st.sampled_from([0.001, 0.05, 0.3]))
def test_the_interval_excludes_zero_exactly_when_p_is_below_alpha(
    one: list[float], other: list[float], alpha: float
) -> None:
    """For means too, at any level."""
    found = compared(of("t", one), of("c", other), alpha=alpha)
    if found.p_value is None or found.interval is None:
        assert found.reasons["p_value"] in (Undefined.NO_VARIATION, Undefined.OUT_OF_RANGE)
    elif abs(found.p_value - alpha) > 1e-9:
        assert (found.interval.low > 0 or found.interval.high < 0) == (found.p_value < alpha)


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ([], Undefined.NO_IMPRESSIONS),
        ([3.0], Undefined.TOO_FEW_PARTICIPANTS),
        ([1e308, 1e308, -1e308], Undefined.OUT_OF_RANGE),
        ([1e200, -1e200], Undefined.OUT_OF_RANGE),
        ([1e-200, 3e-200], Undefined.OUT_OF_RANGE),
    ],
)
def test_what_a_mean_cannot_say_has_a_reason(sample: list[float], reason: Undefined) -> None:
    """Neither NaN nor infinity, nor a variance that underflowed to 0."""
    found = compared(of("t", sample), of("c", [1.0, 2.0, 4.0]), alpha=0.05)
    assert (found.interval, found.p_value) == (None, None)
    assert found.reasons["p_value"] == reason


def test_equal_values_have_no_variation() -> None:
    """Three times 0.1 has variance 0 exactly, and two such arms no p-value."""
    assert moments([0.1, 0.1, 0.1]) == Moments(count=3, mean=0.1, squares=0.0)
    found = compared(of("t", [0.1] * 3), of("c", [0.3] * 7), alpha=0.05)
    assert found.estimate == pytest.approx(-0.2)
    assert found.reasons["interval"] == Undefined.NO_VARIATION


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_no_number_is_refused_by_its_place(bad: float) -> None:
    """The entry is named."""
    with pytest.raises(Invalid, match=r"values\[1\]"):
        moments([1.0, bad])
    with pytest.raises(Invalid, match="finite"):
        RatioSums(key="a", trials=[1.0], successes=[bad])


# -- ratios

amounts = st.lists(st.tuples(st.floats(0.125, 1e4), st.floats(-1e5, 1e5)), min_size=3, max_size=12)


@given(amounts, st.sampled_from(["jackknife", "delta"]))
def test_a_ratio_is_its_definition(rows: list[tuple[float, float]], variance: str) -> None:
    """Value and variance against the definitions in 50 digits."""
    sums = RatioSums(key="a", trials=[m for m, _ in rows], successes=[y for _, y in rows])
    found = ratio(sums, variance=variance)  # type: ignore[arg-type]
    with mpmath.workdps(50):
        m, y = [mpmath.mpf(m) for m, _ in rows], [mpmath.mpf(y) for _, y in rows]
        n, total, hits = len(rows), mpmath.fsum(m), mpmath.fsum(y)
        r = hits / total
        if variance == "delta":
            spread = mpmath.fsum((b - r * a) ** 2 for a, b in zip(m, y, strict=True))
            expected = n * spread / ((n - 1) * total**2)
        else:
            left_out = [(hits - b) / (total - a) for a, b in zip(m, y, strict=True)]
            expected = mpmath.mpf(n - 1) / n * mpmath.fsum((one - r) ** 2 for one in left_out)
        assert found.value == pytest.approx(float(r), rel=1e-12)
        if found.variance is not None:
            assert found.variance == pytest.approx(float(expected), rel=1e-9)
        else:
            assert found.reasons["variance"] is Undefined.OUT_OF_RANGE


def test_a_ratio_of_counts_is_the_rate_and_of_ones_the_mean() -> None:
    """One computation behind three kinds of metric."""
    rows = [(40, 11), (12, 1), (90, 20), (3, 0)]
    own = ratio(RatioSums(key="a", trials=[m for m, _ in rows], successes=[c for _, c in rows]))
    expected = rate(ArmSums(key="a", trials=[m for m, _ in rows], successes=[c for _, c in rows])).estimate()
    assert own == expected
    sample = [0.1, 2.7, -3.3, 8.125]
    ones, plain = ratio(RatioSums(key="a", trials=[1] * 4, successes=sample)), of("a", sample)
    assert ones.value == pytest.approx(plain.value, rel=1e-14)
    assert ones.variance == pytest.approx(plain.variance, rel=1e-12)
    assert ones.degrees_of_freedom == plain.degrees_of_freedom


def test_ratios_out_of_range_and_without_data_have_reasons() -> None:
    """What a float cannot hold, and what is divided by nothing."""
    for rows in ([(1e-300, 1e300), (1e-300, 2e300)], [(1e200, 1e-200), (1e200, 3e-200)]):
        found = ratio(RatioSums(key="a", trials=[m for m, _ in rows], successes=[y for _, y in rows]))
        assert found.variance is None
        assert found.reasons["variance"] is Undefined.OUT_OF_RANGE
    nothing = ratio(RatioSums(key="a", trials=[0.0, 0.0], successes=[0.0, 1.0]))
    assert nothing.reasons["value"] is Undefined.NO_IMPRESSIONS
    with pytest.raises(Invalid, match="negative"):
        RatioSums(key="a", trials=[-1.0], successes=[0.0])


# -- another system's figures


def test_gbstats_says_the_same_of_two_means() -> None:
    """Where it claims the same model (absolute differences, Welch), to nine digits."""
    found = compared(of("b", GBSTATS["b"]), of("a", GBSTATS["a"]), alpha=0.05)
    theirs = GBSTATS["welch"]
    assert found.interval is not None
    assert found.estimate == pytest.approx(theirs["estimate"], rel=1e-9)
    assert found.p_value == pytest.approx(theirs["pValue"], rel=1e-9)
    assert (found.interval.low, found.interval.high) == pytest.approx(theirs["interval"], rel=1e-9)


def test_gbstats_says_the_same_of_a_sequence() -> None:
    """The N form with tuning N*, over the participants of both arms."""
    plain = compared(of("b", GBSTATS["b"]), of("a", GBSTATS["a"]), alpha=0.05)
    theirs = GBSTATS["sequential"]
    assert plain.estimate is not None
    assert plain.standard_error is not None
    found = always_valid(
        estimate=plain.estimate,
        standard_error=plain.standard_error,
        share=(len(GBSTATS["a"]) + len(GBSTATS["b"])) / theirs["tuning"],
        alpha=0.05,
    )
    assert found.p_value == pytest.approx(theirs["pValue"], rel=1e-9)
    assert (found.interval.low, found.interval.high) == pytest.approx(theirs["interval"], rel=1e-9)


def test_gbstats_says_the_same_of_a_ratio() -> None:
    """With the delta variance; p loses digits in theirs, which takes it from 1 - cdf."""
    theirs = GBSTATS["ratio"]
    arms = [
        ArmSums(key=key, trials=[m for m, _ in theirs[key]], successes=[c for _, c in theirs[key]])
        for key in ("b", "a")
    ]
    found = difference(*arms, alpha=theirs["alpha"], variance="delta")
    assert found.interval is not None
    assert found.estimate == pytest.approx(theirs["estimate"], rel=1e-9)
    assert found.p_value == pytest.approx(theirs["pValue"], rel=1e-9)
    assert (found.interval.low, found.interval.high) == pytest.approx(theirs["interval"], rel=1e-9)


# -- proportions of one impression each


@given(st.integers(0, 60), st.integers(0, 60))
def test_counts_are_the_rate_of_that_many_participants(hits: int, others: int) -> None:
    """The closed form equals the list of ones and zeros."""
    total = hits + others
    found = counted("a", trials=total, successes=hits)
    listed = rate(ArmSums(key="a", trials=[1] * total, successes=[1] * hits + [0] * others))
    assert found.rate == listed.rate
    assert found.reasons == listed.reasons
    assert found.degrees_of_freedom == listed.degrees_of_freedom
    for own, expected in ((found.design_effect, listed.design_effect), (found.variance, listed.variance)):
        assert own == (None if expected is None else pytest.approx(expected, rel=1e-12))


def test_impossible_counts_are_refused() -> None:
    """More conversions than impressions is no rate."""
    for make in (lambda: counted("a", trials=3, successes=4), lambda: Counts(trials=3, successes=4)):
        with pytest.raises(Invalid, match="successes"):
            make()


counts = st.integers(1, 60).flatmap(
    lambda n: st.builds(Counts, trials=st.just(n), successes=st.integers(0, n))
)


@given(counts, st.sampled_from([0.01, 0.05, 0.2]))
def test_wilsons_limits_are_statsmodels(arm: Counts, alpha: float) -> None:
    """And never leave 0 … 1."""
    low, high = proportion_confint(arm.successes, arm.trials, alpha=alpha, method="wilson")
    found = newcombe.wilson(arm, float(stats.norm.isf(alpha / 2)))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-12)
    assert 0 <= found.low <= found.high <= 1


@given(counts, counts, st.sampled_from([0.01, 0.05, 0.2]))
def test_newcombes_interval_is_statsmodels_and_never_contradicts_its_p(
    treatment: Counts, control: Counts, alpha: float
) -> None:
    """The difference's interval, its p and the lift's interval say the same about 0."""
    found = newcombe.difference(treatment, control, alpha=alpha)
    assert isinstance(found, Small)
    expected = confint_proportions_2indep(
        treatment.successes,
        treatment.trials,
        control.successes,
        control.trials,
        method="newcomb",
        compare="diff",
        alpha=alpha,
    )
    assert (found.interval.low, found.interval.high) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if abs(found.p_value - alpha) < 1e-9:
        return
    excludes = found.interval.low > 0 or found.interval.high < 0
    assert excludes == (found.p_value < alpha)
    lift = found.lift_interval
    if isinstance(lift, Interval):
        assert (lift.low > 0 or lift.high < 0) == excludes
    else:
        assert control.successes == 0


def test_the_lift_s_ends_solve_their_equation() -> None:
    """(r_t - R r_c)² is the sum of what the two rates may be off, at 50 digits."""
    t, c, alpha = Counts(trials=40, successes=3), Counts(trials=35, successes=9), 0.05
    found = newcombe.difference(t, c, alpha=alpha)
    assert isinstance(found, Small)
    assert isinstance(found.lift_interval, Interval)
    w_t, w_c = (newcombe.wilson(arm, float(stats.norm.isf(alpha / 2))) for arm in (t, c))
    with mpmath.workdps(50):
        r_t, r_c = mpmath.mpf(3) / 40, mpmath.mpf(9) / 35
        for end, own, other in (
            (found.lift_interval.low, w_t.low, w_c.high),
            (found.lift_interval.high, w_t.high, w_c.low),
        ):
            r = mpmath.mpf(end) + 1
            right = (r_t - own) ** 2 + r**2 * (r_c - other) ** 2
            assert float((r_t - r * r_c) ** 2 / right) == pytest.approx(1, rel=1e-9)


def test_an_empty_arm_has_an_answer() -> None:
    """No conversions of 8 against 8 of 8 differ; none against none do not, and both have an interval."""
    apart = newcombe.difference(Counts(trials=8, successes=0), Counts(trials=8, successes=8), alpha=0.05)
    alike = newcombe.difference(Counts(trials=8, successes=0), Counts(trials=8, successes=0), alpha=0.05)
    assert isinstance(apart, Small)
    assert isinstance(alike, Small)
    assert apart.interval.high < 0
    assert apart.p_value < 1e-4
    assert (alike.estimate, alike.p_value) == (0.0, 1.0)
    assert alike.interval.low < 0 < alike.interval.high
    assert alike.lift_interval is Undefined.NO_BASELINE
    nobody = newcombe.difference(Counts(trials=0, successes=0), Counts(trials=8, successes=1), alpha=0.05)
    assert nobody is Undefined.NO_IMPRESSIONS


@pytest.mark.parametrize(
    ("sizes", "at_most"), [((10, 10), 0.053), ((30, 30), 0.053), ((20, 200), 0.053), ((10, 1000), 0.1)]
)
@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.3, 0.5])
def test_small_arms_that_are_alike_are_rejected_as_often_as_is_said(
    sizes: tuple[int, int], at_most: float, share: float
) -> None:
    """Every outcome of two arms with one and the same share, by its probability: no chance is in this."""
    chances = [stats.binom.pmf(range(size + 1), size, share) for size in sizes]
    rejected = seen = 0.0
    for s, t in np.argwhere(np.outer(*chances) > 1e-7):
        counts = [Counts(trials=size, successes=int(x)) for size, x in zip(sizes, (s, t), strict=True)]
        found = newcombe.difference(counts[0], counts[1], alpha=0.05)
        assert isinstance(found, Small)
        weight = float(chances[0][s] * chances[1][t])
        seen += weight
        if found.p_value < 0.05:
            rejected += weight
    assert seen == pytest.approx(1, abs=1e-3)
    assert rejected <= at_most


def test_enormous_counts_have_a_p_value() -> None:
    """Ten million against nothing: the smallest float, not 0, nor NaN."""
    found = newcombe.difference(
        Counts(trials=10**7, successes=10**7), Counts(trials=10**7, successes=0), alpha=0.05
    )
    assert isinstance(found, Small)
    assert 0 < found.p_value < 1e-300
    assert isfinite(found.interval.low)
