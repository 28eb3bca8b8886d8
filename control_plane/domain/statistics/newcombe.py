"""Two small proportions: an interval that has something to say of an arm without a single conversion.

Newcombe's hybrid of two Wilson intervals (1998, method 10). Only for one impression per participant: of
participants with many it takes each impression for a witness of its own, and rejects 61 % of true nulls with
an empty arm; the randomisation test is for those. The p-value and the lift's interval are the same equations
solved for other unknowns, so none of the three contradicts another.

How often a true null is rejected follows from counting all outcomes (alpha 0.05, shares from 0.01 to 0.5): at most
5.2 % with arms as large as each other, or one ten times as large as the other. Where one is a hundred times as
large, up to 9.4 %, and far from alpha p is no measure at all: a single conversion in the arm of 10 is its whole
difference, and no Wilson limit is below 0, so that 1 of 10 against 1 of 1,000 has a p of 1e-6 where Fisher's exact
test has 0.02.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, hypot, log, sqrt
from sys import float_info

import scipy

from control_plane.domain.statistics.proportions import Interval, Undefined, check_alpha, check_counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """So many participants, and how many of them converted. Raises Invalid for more than there are."""

    trials: int
    successes: int

    def __post_init__(self) -> None:
        check_counts(trials=self.trials, successes=self.successes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """Treatment minus control in shares of 1, and the lift's interval in shares of the control.

    Both intervals have level 1 - alpha and exclude 0 exactly when `p_value` < alpha. A p-value below what a
    float can hold is the smallest normal one.
    """

    estimate: float
    interval: Interval
    p_value: float
    lift_interval: Interval | Undefined


def wilson(arm: Counts, quantile: float) -> Interval:
    """Wilson's (1927) limits of a proportion, within 0 … 1: all π with (r - π)² ≤ q² π(1 - π)/n."""
    missed = arm.trials - arm.successes
    return Interval(
        low=_lower(arm.successes, arm.trials, quantile), high=1 - _lower(missed, arm.trials, quantile)
    )


def difference(treatment: Counts, control: Counts, *, alpha: float) -> Small | Undefined:
    """Treatment's share minus control's, or why there is none.

    With Wilson's limits l, u: from d - √((r_t - l_t)² + (u_c - r_c)²) to d + √((u_t - r_t)² + (r_c - l_c)²).
    p is the alpha at which an end is 0. The lift's ends solve (r_t - R r_c)² = (r_t - l_t)² + R²(u_c - r_c)²
    for R (Donner & Zou 2012), the upper with u_t and l_c. Raises Invalid for an `alpha` outside (0, 1).
    """
    check_alpha(alpha)
    if not (treatment.trials and control.trials):
        return Undefined.NO_IMPRESSIONS
    r_t, r_c = treatment.successes / treatment.trials, control.successes / control.trials
    apart = r_t - r_c

    def reaches(quantile: float) -> tuple[float, float]:
        w_t, w_c = wilson(treatment, quantile), wilson(control, quantile)
        return hypot(r_t - w_t.low, w_c.high - r_c), hypot(w_t.high - r_t, r_c - w_c.low)

    quantile = -float(scipy.special.ndtri(alpha / 2))
    below, above = reaches(quantile)
    limits = wilson(treatment, quantile), wilson(control, quantile)
    return Small(
        estimate=apart,
        interval=Interval(low=apart - below, high=apart + above),
        p_value=_p_value(abs(apart), lambda q: reaches(q)[0 if apart > 0 else 1]),
        lift_interval=_lift(r_t, r_c, *limits) if r_c else Undefined.NO_BASELINE,
    )


def _lower(successes: int, trials: int, quantile: float) -> float:
    """The smaller root from the product of the two, so that nothing cancels."""
    r, extra = successes / trials, quantile**2 / trials
    root = sqrt(extra * (4 * r * (1 - r) + extra))
    return 2 * r * r / (2 * r + extra + root) if successes else 0.0


def _p_value(apart: float, reach: Callable[[float], float]) -> float:
    """2Φ(-q) with reach(q) = apart; reach grows with q, and at last beyond any difference there can be."""
    if not apart:
        return 1.0
    high = 1.0
    while reach(high) < apart:
        high *= 2
    quantile = float(scipy.optimize.brentq(lambda q: reach(q) - apart, 0.0, high, xtol=1e-13, rtol=1e-14))
    return min(1.0, max(exp(log(2) + float(scipy.special.log_ndtr(-quantile))), float_info.min))


def _lift(r_t: float, r_c: float, w_t: Interval, w_c: Interval) -> Interval:
    """Each end from whichever form of the root of a R² - 2bR + c = 0 does not cancel; b² - ac is a sum."""
    b = r_t * r_c
    c = w_t.low * (2 * r_t - w_t.low)
    root = sqrt((r_c * (r_t - w_t.low)) ** 2 + c * (w_c.high - r_c) ** 2)
    low = c / (b + root) if c else 0.0
    a = w_c.low * (2 * r_c - w_c.low)
    root = sqrt(a * (w_t.high - r_t) ** 2 + (r_t * (r_c - w_c.low)) ** 2)
    return Interval(low=low - 1, high=(b + root) / a - 1)
