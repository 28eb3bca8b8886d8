"""Sequences, lifts, corrections, sample ratios and planning: against independent implementations."""

from math import exp, inf, log, sqrt

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower

from control_plane.domain.evidence import Arm, Evidence, Measure, Member, Settings, Sums
from control_plane.domain.inference import answer
from control_plane.domain.statistics import planning
from control_plane.domain.statistics.lift import fieller, lift
from control_plane.domain.statistics.multiple import adjusted
from control_plane.domain.statistics.proportions import Interval, Undefined
from control_plane.domain.statistics.sequence import always_valid, information_target
from control_plane.domain.statistics.srm import same_share, sample_ratio, worst_case
from shared.errors import Invalid

# -- the sequence


@given(
    st.floats(-3, 3),
    st.floats(0.05, 2),
    st.floats(0.01, 50),
    st.sampled_from([0.01, 0.05, 0.2]),
    st.sampled_from([None, 3.0, 14.0, 200.0]),
)
def test_interval_and_p_of_the_sequence_agree(
    estimate: float, error: float, share: float, alpha: float, freedom: float | None
) -> None:
    """The interval excludes 0 exactly while p is below alpha, with and without degrees of freedom."""
    found = always_valid(
        estimate=estimate, standard_error=error, share=share, alpha=alpha, degrees_of_freedom=freedom
    )
    if abs(found.p_value - alpha) > 1e-9:
        assert (found.interval.low > 0 or found.interval.high < 0) == (found.p_value < alpha)


def test_the_boundary_is_the_published_one() -> None:
    """With N/N*, half-width and p are those of the N-form of the literature, computed from its own formula."""
    alpha, tuning, n, spread = 0.05, 5_000.0, 1_200.0, 0.4
    rho2 = (-2 * log(alpha) + log(1 - 2 * log(alpha))) / tuning
    half = sqrt(spread) * sqrt(2 * (n * rho2 + 1) / (n * n * rho2) * log(sqrt(n * rho2 + 1) / alpha))
    found = always_valid(estimate=0.01, standard_error=sqrt(spread / n), share=n / tuning, alpha=alpha)
    assert found.interval.high - 0.01 == pytest.approx(half, rel=1e-12)
    statistic = 0.01 / sqrt(spread / n)
    evidence = exp(rho2 * n * statistic**2 / (2 * (1 + rho2 * n))) / sqrt(1 + rho2 * n)
    assert found.p_value == pytest.approx(min(1.0, 1 / evidence), rel=1e-12)


def test_small_fleets_have_heavier_tails() -> None:
    """At 14 degrees of freedom the boundary that is 3.035 for the normal is 3.69."""
    share = 1.0
    normal = always_valid(estimate=0, standard_error=1, share=share, alpha=0.05)
    small = always_valid(estimate=0, standard_error=1, share=share, alpha=0.05, degrees_of_freedom=14)
    assert normal.boundary == pytest.approx(3.035, abs=0.01)
    assert small.boundary == pytest.approx(3.69, abs=0.02)


def test_looking_at_any_time_is_no_error() -> None:
    """Of 800 nulls looked at after each of 400 observations, no more than alpha ever exclude 0."""
    rng = np.random.default_rng(3)
    runs, length, alpha = 800, 400, 0.05
    target = information_target(alpha=alpha, power=0.8, effect=0.3)
    values = rng.normal(size=(runs, length)).cumsum(axis=1)
    crossed = np.zeros(runs, dtype=bool)
    for n in range(1, length + 1):
        mean = values[:, n - 1] / n
        found = always_valid(estimate=0.0, standard_error=1 / sqrt(n), share=n / target, alpha=alpha)
        crossed |= np.abs(mean) > found.boundary / sqrt(n)
    assert crossed.mean() <= alpha + 3 * sqrt(alpha * (1 - alpha) / runs)


def test_an_enormous_effect_has_a_p_value() -> None:
    """Tails are taken in logarithms, so nothing underflows to nonsense on the way."""
    found = always_valid(estimate=30, standard_error=1, share=2, alpha=0.05, degrees_of_freedom=400)
    assert 0 <= found.p_value < 1e-50


@pytest.mark.parametrize(("share", "freedom"), [(1e-3, 14.0), (4e-4, 400.0), (2e-4, 30.0), (1e-4, 200.0)])
def test_next_to_nothing_known_has_an_interval_as_wide(share: float, freedom: float) -> None:
    """Where the boundary's tail is below any float its t is found in logarithms; beyond any float it is told."""
    found = always_valid(estimate=0, standard_error=1, share=share, alpha=0.05, degrees_of_freedom=freedom)
    normal = always_valid(estimate=0, standard_error=1, share=share, alpha=0.05)
    with mpmath.workdps(60):
        x = freedom / (freedom + mpmath.mpf(found.boundary) ** 2)
        tail = mpmath.betainc(freedom / 2, 0.5, 0, x, regularized=True) / 2
        wanted = mpmath.erfc(normal.boundary / mpmath.sqrt(2)) / 2
        assert float(mpmath.log(tail) / mpmath.log(wanted)) == pytest.approx(1, rel=1e-12)
    assert found.finite
    assert found.p_value == 1
    assert not always_valid(estimate=0, standard_error=1, share=1e-6, alpha=0.05, degrees_of_freedom=3).finite


# -- lifts


@given(st.floats(0.05, 0.9), st.floats(0.05, 0.9), st.floats(1e-6, 1e-3), st.floats(1e-6, 1e-3))
def test_the_lift_s_interval_excludes_zero_with_the_difference_s(
    treatment: float, control: float, v_t: float, v_c: float
) -> None:
    """R = 1 solves the equation exactly where the difference is q errors from 0."""
    q = 2.1
    found = fieller(treatment, control, treatment_variance=v_t, control_variance=v_c, quantile=q)
    if isinstance(found, Undefined):
        assert control**2 <= q * q * v_c
        return
    edge = abs(treatment - control) - q * sqrt(v_t + v_c)
    if abs(edge) > 1e-9:
        assert (found.low > 0 or found.high < 0) == (edge > 0)
    assert found.low <= treatment / control - 1 + 1e-9
    assert found.high >= treatment / control - 1 - 1e-9


@pytest.mark.parametrize("control", [0.4, -0.4])
def test_the_ends_of_the_lift_solve_its_equation(control: float) -> None:
    """At 50 digits, each end is where the squared difference is q² times its variance; the sign is the treatment's."""
    treatment, v_t, v_c, v_tc, q = 0.55, 0.002, 0.003, 0.0005, 1.96
    found = fieller(
        treatment, control, treatment_variance=v_t, control_variance=v_c, covariance=v_tc, quantile=q
    )
    assert isinstance(found, Interval)
    with mpmath.workdps(50):
        for end in (found.low, found.high):
            ratio = mpmath.mpf(end) * (1 if control > 0 else -1) + 1
            left = (treatment - ratio * control) ** 2
            right = q**2 * (v_t - 2 * ratio * v_tc + ratio**2 * v_c)
            assert float(left / right) == pytest.approx(1, rel=1e-9)
    assert (lift(treatment, control) > 0) == (treatment > control)


def test_a_baseline_of_nothing_has_no_lift() -> None:
    """Neither the number nor the interval is invented."""
    assert lift(0.1, 0.0) is Undefined.NO_BASELINE
    found = fieller(0.1, 0.01, treatment_variance=1e-4, control_variance=1e-3, quantile=2)
    assert found is Undefined.NO_BASELINE


# -- corrections


@settings(max_examples=20)  # statsmodels takes 50 ms for each
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_are_statsmodels(values: list[float]) -> None:
    """Each correction against its independent implementation."""
    for ours, theirs in (("bonferroni", "bonferroni"), ("holm", "holm"), ("benjamini_hochberg", "fdr_bh")):
        expected = multipletests(values, method=theirs)[1]
        assert adjusted(values, ours) == pytest.approx(list(expected), rel=1e-9, abs=1e-300)  # type: ignore[arg-type]


def test_a_p_value_that_is_none_is_refused() -> None:
    """The entry is named."""
    with pytest.raises(Invalid, match=r"p_values\[1\]"):
        adjusted([0.1, float("nan")], "holm")


# -- sample ratio


def test_the_sample_ratio_is_pearson_s() -> None:
    """Against scipy, with uneven weights."""
    found = sample_ratio([480, 520, 1_050], [25, 25, 50])
    expected = stats.chisquare([480, 520, 1_050], np.array([0.25, 0.25, 0.5]) * 2_050)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.expected == pytest.approx((512.5, 512.5, 1_025.0))
    assert not found.leaked


def test_an_arm_of_weight_nothing_that_has_somebody_leaks() -> None:
    """It neither spoils the test of the others nor goes unseen."""
    found = sample_ratio([500, 500, 1], [50, 50, 0])
    assert found.leaked
    assert found.p_value == pytest.approx(1.0)
    with pytest.raises(Invalid, match="weights"):
        sample_ratio([1, 1], [0, 0])


@pytest.mark.parametrize(("having", "sizes"), [((3, 9), (10, 10)), ((0, 5), (8, 30)), ((7, 7), (7, 12))])
def test_two_arms_are_fisher_s_test(having: tuple[int, int], sizes: tuple[int, int]) -> None:
    """Against scipy's exact test."""
    table = [[having[0], sizes[0] - having[0]], [having[1], sizes[1] - having[1]]]
    assert same_share(having, sizes) == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-9)


def test_more_arms_are_counted_table_by_table() -> None:
    """Against plain enumeration of the multivariate hypergeometric; large ones agree with it by draws."""
    sizes, having = (6, 7, 8), (1, 5, 6)
    total = sum(having)
    law = stats.multivariate_hypergeom(list(sizes), total)
    chances = {
        (a, b, total - a - b): float(law.pmf([a, b, total - a - b]))
        for a in range(7)
        for b in range(8)
        if 0 <= total - a - b <= 8
    }
    seen = chances[having]
    expected = sum(p for p in chances.values() if p <= seen * (1 + 1e-7))
    assert same_share(having, sizes) == pytest.approx(expected, rel=1e-9)
    many = [200] * 8
    lost = [180, 182, 179, 183, 181, 180, 120, 184]
    assert same_share(lost, many, seed=b"x") == same_share(lost, many, seed=b"x") < 0.001
    assert same_share([180] * 8, many, seed=b"x") > 0.9


def test_the_worst_case_holds_every_possible_answer() -> None:
    """Silent participants that all converted, or none, are the bounds."""
    low, high = worst_case((0.5, 0.4), (2, 5), (10, 10))
    assert (low, high) == pytest.approx((0.5 * 0.8 - (0.4 * 0.5 + 0.5), 0.5 * 0.8 + 0.2 - 0.4 * 0.5))
    assert worst_case((0.5, 0.4), (0, 0), (10, 10)) == pytest.approx((0.1, 0.1))


# -- planning


def test_trials_are_those_of_power_prop_test() -> None:
    """R: power.prop.test(p1 = .50, p2 = .75, power = .90) needs 76.7 per group; (.1, .15, .8) needs 685.6."""
    assert planning.trials_per_arm(baseline=0.5, effect=0.25, wanted=0.9) == pytest.approx(76.7, abs=0.05)
    assert planning.trials_per_arm(baseline=0.1, effect=0.05) == pytest.approx(685.6, abs=0.1)


@given(st.floats(0.02, 0.9), st.floats(0.01, 0.09), st.floats(0.5, 0.99))
def test_trials_give_the_power_they_are_asked_for(baseline: float, effect: float, wanted: float) -> None:
    """The size put back into the power formula is the power."""
    n = planning.trials_per_arm(baseline=baseline, effect=effect, wanted=wanted)
    assert planning.power(baseline=baseline, effect=effect, per_arm=n) == pytest.approx(wanted, abs=1e-9)


def test_equal_variances_agree_with_the_normal_power_of_statsmodels() -> None:
    """Around one half both formulas are nearly the same."""
    n = planning.trials_per_arm(baseline=0.49, effect=0.02)
    theirs = NormalIndPower().solve_power(effect_size=0.02 / 0.5, alpha=0.05, power=0.8)
    assert n == pytest.approx(theirs, rel=2e-3)


@pytest.mark.parametrize(
    ("hosts", "impressions", "expected"), [(30, 150, 0.132), (30, inf, 0.130), (100, 150, 0.0705)]
)
def test_more_impressions_per_host_cannot_help_for_ever(
    hosts: int, impressions: float, expected: float
) -> None:
    """30 + 30 hosts at 25 % and ICC 0.15 find 13.2 points with 150 impressions each, 13.0 with infinitely many."""
    found = planning.detectable(baseline=0.25, participants=hosts, impressions_each=impressions, icc=0.15)
    assert found == pytest.approx(expected, abs=0.0006)


def _evidence(control: int, treatment: int, *, rate: float, decision: str, unspent: float = 1.0) -> Evidence:
    """One impression each; the two variants' rates are alike."""
    members = [("c", control), ("t", treatment)]
    drawn = [
        Member(participant=f"{arm}{n}", arm=arm, block="b", stratum="")
        for arm, size in members
        for n in range(size)
    ]
    hits = tuple(int(n < rate * size) for _, size in members for n in range(size))
    ones = (1,) * len(hits)
    return Evidence(
        about={},
        measure=Measure(name="m"),
        primary=True,
        population="assigned",
        settings=Settings(alpha=0.05, decision=decision),
        seed="00",
        arms=tuple(Arm(id=key, key=key, name=key, is_control=key == "c", weight=50) for key in "ct"),
        members=tuple(drawn),
        sums=Sums(impressions=ones, conversions=hits, values=(0,) * len(hits), denominators=(0,) * len(hits)),
        unspent=unspent,
    )


def _found(sizes: tuple[int, int], effect: float, *, decision: str) -> float:
    """How often a difference as large is found at the end, by both arms' own errors."""
    chance, runs = np.random.default_rng(9), 2_000
    (n_c, n_t), base = sizes, 0.2
    control, treatment = (
        chance.binomial(n_c, base, runs) / n_c,
        chance.binomial(n_t, base + effect, runs) / n_t,
    )
    error = np.sqrt(control * (1 - control) / n_c + treatment * (1 - treatment) / n_t)
    if decision == "path_test":
        return float((np.abs(treatment - control) / error > 1.96).mean())
    target = information_target(alpha=0.05, power=0.8, effect=0.1 * base)
    p = [
        always_valid(estimate=d, standard_error=e, share=1 / e**2 / target, alpha=0.05).p_value
        for d, e in zip(treatment - control, error, strict=True)
    ]
    return float((np.array(p) < 0.05).mean())


@pytest.mark.parametrize("decision", ["path_test", "sequence"])
@pytest.mark.parametrize("sizes", [(400, 400), (720, 80), (80, 720)])
def test_what_is_said_to_be_found_is_found(sizes: tuple[int, int], decision: str) -> None:
    """About with the power that was planned, however unequal the variants are and whichever method decides."""
    told = answer(_evidence(*sizes, rate=0.2, decision=decision))["power"]
    assert _found(sizes, told["mde"], decision=decision) == pytest.approx(0.8, abs=0.08)
    needed = told["participantsNeeded"]
    assert _found((needed, needed), 0.02, decision=decision) == pytest.approx(0.8, abs=0.03)


def test_less_is_found_with_what_earlier_phases_have_left_of_alpha() -> None:
    """And nothing is told where they have left nothing."""
    whole, half, nothing = (
        answer(_evidence(200, 200, rate=0.2, decision="path_test", unspent=share))["power"]
        for share in (1.0, 0.5, 0.0)
    )
    assert whole["mde"] < half["mde"]
    assert nothing is None


def test_what_cannot_be_planned_is_said() -> None:
    """An effect out of range names its field; hosts too few find nothing."""
    with pytest.raises(Invalid, match="effect"):
        planning.trials_per_arm(baseline=0.9, effect=0.2)
    assert planning.detectable(baseline=0.5, participants=2, impressions_each=1, icc=0.0) is None
