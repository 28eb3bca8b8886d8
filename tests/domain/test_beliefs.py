"""What is believed of means and ratios, and of lifts: against closed forms, mpmath and a million draws."""

from math import sqrt

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from control_plane.domain.statistics.bayes import (
    Belief,
    Beliefs,
    beliefs,
    beliefs_of_values,
    lift_interval,
    overdispersion,
)
from control_plane.domain.statistics.posterior import Beta, Normal
from control_plane.domain.statistics.proportions import ArmSums, Estimate, Interval, Undefined

arms = st.lists(st.tuples(st.floats(-50, 50), st.floats(0.01, 20)), min_size=2, max_size=4)


def believed(rows: list[tuple[float, float]], goal: str = "increase") -> tuple[Belief, ...]:
    """The beliefs of arms with these values and errors; the first is the control."""
    found = beliefs_of_values(
        [
            Estimate(key=str(k), value=value, variance=error**2, degrees_of_freedom=9.0)
            for k, (value, error) in enumerate(rows)
        ],
        control="0",
        alpha=0.1,
        goal=goal,  # type: ignore[arg-type]
    )
    assert isinstance(found, Beliefs)
    assert found.overdispersion is None
    return found.arms


@given(arms, st.sampled_from([1e-150, 1.0, 1e120]))
def test_two_normal_arms_have_closed_forms(rows: list[tuple[float, float]], unit: float) -> None:
    """Chance to win Φ(d/s), loss s φ(d/s) - d Φ(-d/s), in any unit; the probabilities of all arms sum to 1."""
    found = believed([(value * unit, error * unit) for value, error in rows])
    assert sum(arm.probability_to_be_best for arm in found) == pytest.approx(1, abs=1e-11)
    (r_c, s_c), (r_t, s_t) = rows[:2]
    apart, spread = r_t - r_c, sqrt(s_t**2 + s_c**2)
    assert found[0].chance_to_win is None
    assert found[1].chance_to_win == pytest.approx(stats.norm.cdf(apart / spread), abs=1e-12)
    pair = believed([(value * unit, error * unit) for value, error in rows[:2]])
    expected = spread * stats.norm.pdf(apart / spread) - apart * stats.norm.sf(apart / spread)
    assert pair[1].expected_loss / unit == pytest.approx(expected, abs=1e-11 * spread)
    ends = stats.norm.interval(0.9, r_t, s_t)
    assert (found[1].credible_interval.low / unit, found[1].credible_interval.high / unit) == pytest.approx(
        ends
    )


@given(arms)
def test_less_is_better_is_the_mirror(rows: list[tuple[float, float]]) -> None:
    """A goal of less believes of θ what a goal of more believes of -θ; intervals stay on the value."""
    less, more = believed(rows, goal="decrease"), believed([(-value, error) for value, error in rows])
    for one, other in zip(less, more, strict=True):
        assert one.probability_to_be_best == pytest.approx(other.probability_to_be_best, abs=1e-12)
        assert one.expected_loss == pytest.approx(other.expected_loss, abs=1e-10)
        assert one.credible_interval.low == pytest.approx(-other.credible_interval.high)


def test_three_arms_are_their_integrals() -> None:
    """Probability and loss of each against mpmath's quadrature."""
    rows = [(1.0, 0.5), (1.4, 0.2), (1.1, 0.9)]
    found = believed(rows)
    with mpmath.workdps(30):
        for k, (value, error) in enumerate(rows):
            others = [row for j, row in enumerate(rows) if j != k]

            def best(x: mpmath.mpf, others: list[tuple[float, float]] = others) -> mpmath.mpf:
                return mpmath.fprod(mpmath.ncdf(x, *row) for row in others)

            points = [-8, -2, 0, 1, 2, 4, 10]
            chance = mpmath.quad(lambda x, v=value, e=error, b=best: mpmath.npdf(x, v, e) * b(x), points)
            loss = mpmath.quad(lambda x, v=value, e=error, b=best: mpmath.ncdf(x, v, e) * (1 - b(x)), points)
            assert found[k].probability_to_be_best == pytest.approx(float(chance), abs=1e-12)
            assert found[k].expected_loss == pytest.approx(float(loss), abs=1e-12)


def test_what_nothing_can_be_believed_of_has_the_arm_s_reason() -> None:
    """Without an error there is no posterior."""
    good = Estimate(key="a", value=1.0, variance=1.0, degrees_of_freedom=3.0)
    for bad, reason in (
        (
            Estimate(
                key="b",
                value=1.0,
                variance=None,
                degrees_of_freedom=None,
                reasons={"variance": Undefined.TOO_FEW_PARTICIPANTS},
            ),
            Undefined.TOO_FEW_PARTICIPANTS,
        ),
        (Estimate(key="b", value=1.0, variance=0.0, degrees_of_freedom=3.0), Undefined.NO_VARIATION),
        (Estimate(key="b", value=1e300, variance=1e-200, degrees_of_freedom=3.0), Undefined.OUT_OF_RANGE),
        (Estimate(key="b", value=1.0, variance=5e-324, degrees_of_freedom=3.0), Undefined.OUT_OF_RANGE),
    ):
        found = beliefs_of_values([good, bad], control="a", alpha=0.05)
        assert found is reason


# -- the lift

betas = st.builds(Beta, a=st.floats(1, 400), b=st.floats(1, 4000))


@settings(max_examples=25)
@given(betas, betas, st.sampled_from([0.01, 0.05, 0.3]))
def test_the_lift_of_two_rates_has_its_probability(treatment: Beta, control: Beta, alpha: float) -> None:
    """Draws by quantile (a fine even grid of both) fall outside either end as often as alpha / 2 says."""
    found = lift_interval(treatment, control, alpha=alpha)
    assert isinstance(found, Interval)
    # Integrating over treatment instead of control is the same probability by another road.
    levels = (np.arange(4_000) + 0.5) / 4_000
    x = stats.beta.ppf(levels, treatment.a, treatment.b)
    for end, tail in (
        (found.low, lambda r: stats.beta.sf(x / (1 + r), control.a, control.b).mean()),
        (found.high, lambda r: stats.beta.cdf(x / (1 + r), control.a, control.b).mean()),
    ):
        assert end > -1
        assert tail(end) == pytest.approx(alpha / 2, abs=1e-4)


def test_the_lift_of_two_rates_is_mpmaths() -> None:
    """F at both ends in high precision, of a wide arm against a narrow one and the other way round."""
    wide, narrow = Beta(a=3, b=12), Beta(a=40, b=70)
    for treatment, control in ((wide, narrow), (narrow, wide)):
        found = lift_interval(treatment, control, alpha=0.05)
        assert isinstance(found, Interval)
        for end, level in ((found.low, 0.025), (found.high, 0.975)):
            with mpmath.workdps(20):

                def density(x: mpmath.mpf, c: Beta = control) -> mpmath.mpf:
                    return x ** (c.a - 1) * (1 - x) ** (c.b - 1) / mpmath.beta(c.a, c.b)

                def below(x: mpmath.mpf, t: Beta = treatment, r: float = end) -> mpmath.mpf:
                    return mpmath.betainc(t.a, t.b, 0, min((1 + r) * x, mpmath.mpf(1)), regularized=True)

                edges = [0, *np.linspace(0.05, 0.8, 8), 1]
                whole = mpmath.quad(lambda x, f=density, g=below: f(x) * g(x), [mpmath.mpf(e) for e in edges])
            assert float(whole) == pytest.approx(level, abs=1e-9)


@given(
    st.floats(-30, 30), st.floats(0.05, 3), st.floats(3, 30), st.floats(0.05, 0.8), st.sampled_from([1, -1])
)
def test_the_lift_of_two_means_has_its_probability(
    r_t: float, s_t: float, r_c: float, s_c: float, sign: int
) -> None:
    """P(θ_t ≤ θ_c + r|θ_c|) is alpha/2 below the lower end and 1 - alpha/2 below the upper, on a fine grid."""
    control = Normal(mean=sign * r_c, variance=s_c**2)
    found = lift_interval(Normal(mean=r_t, variance=s_t**2), control, alpha=0.1)
    assert isinstance(found, Interval)
    x = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000, control.mean, s_c)
    for end, level in ((found.low, 0.05), (found.high, 0.95)):
        assert stats.norm.cdf(x + end * np.abs(x), r_t, s_t).mean() == pytest.approx(level, abs=3e-5)


def test_a_million_draws_agree() -> None:
    """The lift of a negative baseline, whose sign a division by the value would turn round."""
    rng = np.random.default_rng(11)
    control, treatment = Normal(mean=-4.0, variance=0.36), Normal(mean=-3.0, variance=0.25)
    c, t = rng.normal(-4.0, 0.6, 10**6), rng.normal(-3.0, 0.5, 10**6)
    found = lift_interval(treatment, control, alpha=0.05)
    assert isinstance(found, Interval)
    assert (found.low, found.high) == pytest.approx(np.quantile((t - c) / abs(c), [0.025, 0.975]), abs=2e-3)


def test_a_control_that_may_be_zero_has_no_lift() -> None:
    """Its lift would be as likely enormous as enormously negative."""
    found = lift_interval(Normal(mean=1, variance=1), Normal(mean=1.9, variance=1), alpha=0.05)
    assert found is Undefined.NO_BASELINE


# -- an arm's own design effect


def test_each_arm_may_have_its_own_design_effect() -> None:
    """Selected by name, each posterior is divided by what the arm alone says."""
    rows = [
        ArmSums(key="a", trials=[20] * 6, successes=[4, 5, 4, 3, 4, 4]),
        ArmSums(key="b", trials=[20] * 6, successes=[0, 15, 2, 11, 1, 3]),
    ]
    found = beliefs(rows, control="a", alpha=0.05, design_effect="per_arm")
    assert isinstance(found, Beliefs)
    assert found.overdispersion is None
    own = [overdispersion([row]) for row in rows]
    assert own[0] < own[1]
    for arm, row, divisor in zip(found.arms, rows, own, strict=True):
        assert arm.posterior == Beta(
            a=1 + sum(row.successes) / divisor, b=1 + (120 - sum(row.successes)) / divisor
        )
    shared = beliefs(rows, control="a", alpha=0.05)
    assert isinstance(shared, Beliefs)
    assert shared.overdispersion == overdispersion(rows)
