"""Which arm is probably best, and what choosing it would cost if it is not: shown, never a stopping rule.

Whoever stops as soon as such a probability passes 95 %, looking daily, declares a winner in 47 % of
experiments without any difference. The module hides the integrals: they are computed on one grid for all
arms, without random draws, so the same sums give the same digits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import expm1, fsum, inf, isfinite, log, sqrt
from sys import float_info
from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from control_plane.domain.statistics.posterior import (
    INTEGRATED,
    Beta,
    Normal,
    Posterior,
    credible_interval,
    integrated,
    joined,
    mass,
    nodes,
    tails,
    total,
)
from control_plane.domain.statistics.proportions import ArmSums, Estimate, Interval, Undefined, check_alpha
from shared.errors import Fault, Invalid

Floats = NDArray[np.float64]
Goal = Literal["increase", "decrease"]
DesignEffect = Literal["shared", "per_arm"]

_NARROWEST = 1e-10
"""An arm's error relative to the widest one's and to how far apart they are: nodes within it would coincide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What is believed of one arm; losses and intervals in the metric's units (rates: shares of 1), the interval
    on the value itself.

    `chance_to_win` is the probability to be better than the control; None without control and for it.
    """

    key: str
    posterior: Posterior
    probability_to_be_best: float
    expected_loss: float
    credible_interval: Interval
    chance_to_win: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beliefs:
    """All arms, in the order given; `overdispersion` is the D that every arm's counts were divided by.

    None where each arm has its own, and of means and ratios, which have none.
    """

    overdispersion: float | None
    arms: tuple[Belief, ...]


def beliefs(
    arms: Sequence[ArmSums],
    *,
    control: str | None,
    alpha: float,
    prior: Beta | None = None,
    goal: Goal = "increase",
    design_effect: DesignEffect = "shared",
) -> Beliefs | Undefined:
    """What the arms' sums say of their rates, or why they say nothing.

    θ_k ~ Beta(a₀ + C/D, b₀ + (M - C)/D), prior Beta(1, 1) unless given, one D for all arms because an arm's
    own is too noisy: `per_arm`, for comparison, makes five hosts at 2 % look decisive in most A/A runs.
    Probabilities are exact to about 10⁻¹² (with a prior below 1, to 10⁻⁶ for arms without data); those of
    all arms sum to 1. With goal `decrease` better is lower. Undefined where an arm has more conversions than
    impressions.
    Raises Invalid for an `alpha` outside (0, 1) or a prior that is not positive.
    """
    check_alpha(alpha)
    start = prior or Beta(a=1.0, b=1.0)
    if not (start.a > 0 and start.b > 0):
        raise Invalid(faults=[Fault(field="prior", message="must have a and b above 0")])
    sums = [(sum(m for m, _ in rows), sum(c for _, c in rows)) for rows in (arm.with_data() for arm in arms)]
    if any(hits > trials for trials, hits in sums):
        return Undefined.CONVERSIONS_EXCEED_IMPRESSIONS
    shared_d = overdispersion(arms) if design_effect == "shared" else None
    divisors = [overdispersion([arm]) if shared_d is None else shared_d for arm in arms]
    posteriors = [
        Beta(a=start.a + hits / d, b=start.b + (trials - hits) / d)
        for (trials, hits), d in zip(sums, divisors, strict=True)
    ]
    found = believed([arm.key for arm in arms], posteriors, control=control, alpha=alpha, goal=goal)
    return Beliefs(overdispersion=shared_d, arms=found)


def beliefs_of_values(
    arms: Sequence[Estimate], *, control: str | None, alpha: float, goal: Goal = "increase"
) -> Beliefs | Undefined:
    """What means or ratios say, θ_k ~ Normal(r, v), or why they say nothing: an arm's own reason.

    A flat prior and v taken as known: with a handful of participants in an arm it is too sure. Undefined, too,
    where an arm shows no variation, or all but none beside the others. Raises Invalid for an `alpha` outside (0, 1).
    """
    check_alpha(alpha)
    posteriors = []
    for arm in arms:
        if arm.value is None or arm.variance is None:
            return arm.reasons["variance"]
        if not arm.variance:
            return Undefined.NO_VARIATION
        posteriors.append(Normal(mean=arm.value, variance=arm.variance))
    if not posteriors:
        return Beliefs(overdispersion=None, arms=())
    # In units of the widest arm about the first, so that neither large nor tiny units leave a float's range.
    unit, origin = sqrt(max(one.variance for one in posteriors)), posteriors[0].mean
    scaled = []
    for one in posteriors:
        away, width = (one.mean - origin) / unit, sqrt(one.variance) / unit
        if not (isfinite(away) and width > _NARROWEST * max(1.0, abs(away))):
            return Undefined.OUT_OF_RANGE
        scaled.append(Normal(mean=away, variance=width**2))
    found = believed([arm.key for arm in arms], scaled, control=control, alpha=alpha, goal=goal)
    return Beliefs(
        overdispersion=None,
        arms=tuple(
            replace(
                belief,
                posterior=own,
                expected_loss=belief.expected_loss * unit,
                credible_interval=credible_interval(own, alpha=alpha),
            )
            for belief, own in zip(found, posteriors, strict=True)
        ),
    )


def believed(
    keys: Sequence[str], posteriors: Sequence[Posterior], *, control: str | None, alpha: float, goal: Goal
) -> tuple[Belief, ...]:
    """What these posteriors of the arms' values say of each arm, in the order given."""
    if not keys:
        return ()
    grid = _Grid([one.turned() for one in posteriors] if goal == "decrease" else posteriors)
    against = keys.index(control) if control in keys else None
    return tuple(
        Belief(
            key=key,
            posterior=posteriors[k],
            probability_to_be_best=grid.best(k, [j for j in range(len(keys)) if j != k]),
            expected_loss=grid.loss(k, [j for j in range(len(keys)) if j != k]),
            credible_interval=credible_interval(posteriors[k], alpha=alpha),
            chance_to_win=None if against is None or against == k else grid.best(k, [against]),
        )
        for k, key in enumerate(keys)
    )


def lift_interval(treatment: Posterior, control: Posterior, *, alpha: float) -> Interval | Undefined:
    """Where (θ_t - θ_c)/|θ_c| lies with probability 1 - alpha, alpha/2 left on either side, in shares of 1.

    The ends solve F(r) = alpha/2 and 1 - alpha/2 with F(r) = ∫ f_c(x) F_t(x + r|x|) dx, exact to about 10⁻⁹.
    Undefined where the normal posterior of a control cannot be told from 0, or an end is no number. Raises Invalid
    for an `alpha` outside (0, 1).
    """
    check_alpha(alpha)
    if isinstance(treatment, Normal) and isinstance(control, Normal):
        spread = sqrt(control.variance)
        if abs(control.mean) <= -float(scipy.special.ndtri(alpha / 2)) * spread:
            return Undefined.NO_BASELINE
        start = (treatment.mean - control.mean) / abs(control.mean)
        step = (sqrt(treatment.variance) + spread) / abs(control.mean)
        return _solved(
            lambda r, upper: _lift_tail(r, treatment, control, upper=upper),
            start=start,
            step=step,
            alpha=alpha,
        )
    if not (isinstance(treatment, Beta) and isinstance(control, Beta)):
        message = "must both be of rates, or both of values"
        raise Invalid(f"posteriors {message}", faults=[Fault(field="posteriors", message=message)])
    # In ln(1 + r), in which ratios of rates are about even.
    start = log(treatment.a / (treatment.a + treatment.b)) - log(control.a / (control.a + control.b))
    ends = _solved(
        lambda u, upper: _lift_tail_of_rates(u, treatment, control, upper=upper),
        start=start,
        step=0.1,
        alpha=alpha,
    )
    if isinstance(ends, Undefined) or ends.high > log(float_info.max):
        return Undefined.OUT_OF_RANGE
    return Interval(low=expm1(ends.low), high=expm1(ends.high))


_FARTHEST = 200
"""How often the search for an end goes further, twice as far each time: beyond it a float has no such number."""


def _solved(
    tail: Callable[[float, bool], float], *, start: float, step: float, alpha: float
) -> Interval | Undefined:
    """Where the lower tail is alpha/2, and where the upper one is; Undefined where no float is."""
    if not (isfinite(start) and isfinite(step)):
        return Undefined.OUT_OF_RANGE
    found = []
    for upper, way in ((False, -1.0), (True, 1.0)):
        near, reach = start, step
        # Back first, should the start itself lie beyond the end.
        for _ in range(_FARTHEST):
            if tail(near, upper) >= alpha / 2:
                break
            near, reach = near - way * reach, reach * 2
        far, reach = near + way * step, step
        for _ in range(_FARTHEST):
            if tail(far, upper) <= alpha / 2:
                break
            far, reach = far + way * reach, reach * 2
        if not tail(far, upper) <= alpha / 2 <= tail(near, upper):
            return Undefined.OUT_OF_RANGE
        low, high = sorted((near, far))

        def apart(x: float, side: bool = upper) -> float:  # noqa: FBT001  private
            return tail(x, side) - alpha / 2

        found.append(float(scipy.optimize.brentq(apart, low, high, xtol=1e-12, rtol=1e-12)))
    return Interval(low=found[0], high=found[1])


def _lift_tail(r: float, treatment: Normal, control: Normal, *, upper: bool) -> float:
    """P(lift ≤ r), or P(lift > r), on nodes between control's quantiles and where treatment's are met."""
    met, own = treatment.edges(), control.edges()
    edges = [own, np.zeros(1), *(met / (1 + side * r) for side in (1, -1) if side * r != -1)]
    t, weights = nodes(np.clip(np.concatenate(edges), own.min(), own.max()), rates=False)
    at = t + r * np.abs(t)
    return float(mass(control, t, weights) @ (treatment.above(at) if upper else treatment.below(at)))


def _lift_tail_of_rates(u: float, treatment: Beta, control: Beta, *, upper: bool) -> float:
    """P(ln(1 + lift) ≤ u), or the rest: treatment's θ exp(-u) beside control's θ, both in control's log-odds."""
    own = control.edges()
    # Where exp(u) θ is a quantile of treatment's, and where it is 1.
    met = scipy.special.log_expit(np.append(treatment.edges(), inf)) - u
    with np.errstate(divide="ignore", invalid="ignore"):
        met = met - np.log(-np.expm1(met))
    met = met[np.isfinite(met)]
    large = treatment.a + treatment.b >= INTEGRATED
    span = np.concatenate([own, met])
    # Treatment's distribution is the integral over all below; else control's own range is enough.
    t, weights = nodes(span if large else np.clip(span, own.min(), own.max()), rates=True)
    log_at = scipy.special.log_expit(t) + u
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_rest = np.log(-np.expm1(log_at))
        at = np.where(log_at < 0, log_at - log_rest, inf)
        if large:
            log_mass = treatment.log_density(at) + scipy.special.log_expit(-t) - log_rest
            moved = np.where(log_at < 0, weights * np.exp(log_mass), 0.0)
            # Beyond 1 there is all of treatment, also where its nodes were too close to 1 to be told apart.
            below = np.where(log_at < 0, integrated(moved / total(treatment)), 1.0)
            tail = 1 - below if upper else below
        else:
            tail = treatment.above(at) if upper else treatment.below(at)
    return float(mass(control, t, weights) @ tail)


def overdispersion(arms: Sequence[ArmSums]) -> float:
    """The D by which counts of repeated impressions are too many; at least 1, the same for all arms.

    1 for one impression each. Otherwise max(1, Σ_k n/(n-1) Σ (c - r_k m)² / (M r̄ (1 - r̄))) times
    (t₀.₉₇₅,ν / z₀.₉₇₅)² with ν = Σ (n_k - 1), which pays for having estimated it. Where nothing can be
    estimated (r̄ 0 or 1, or one participant per arm) it is Σm²/M, as if a participant were one trial.
    """
    groups = [rows for rows in (arm.with_data() for arm in arms) if sum(m for m, _ in rows)]
    everybody = [row for rows in groups for row in rows]
    if all(m == 1 for m, _ in everybody):
        return 1.0
    total, hits = sum(m for m, _ in everybody), sum(c for _, c in everybody)
    freedom = sum(len(rows) - 1 for rows in groups)
    if not freedom or hits in (0, total):
        return max(1.0, sum(m * m for m, _ in everybody) / total)
    spread = []
    # An arm of one participant shows no spread; it is left out of numerator and denominator.
    for rows in (rows for rows in groups if len(rows) > 1):
        n, trials, successes = len(rows), sum(m for m, _ in rows), sum(c for _, c in rows)
        squares = sum((c * trials - successes * m) ** 2 for m, c in rows)
        spread.append(n * squares / ((n - 1) * trials**2))
    compared = sum(m for rows in groups if len(rows) > 1 for m, _ in rows)
    effect = fsum(spread) / (compared * (hits / total) * ((total - hits) / total))
    quantile = float(scipy.special.stdtrit(freedom, 0.975)) / float(scipy.special.ndtri(0.975))
    return max(1.0, effect) * quantile**2


class _Grid:
    """Composite Gauss-Legendre nodes between the quantiles of all arms, with each arm's values at them.

    Between neighbouring quantiles every integrand is smooth, however narrow an arm or far apart two are.
    """

    def __init__(self, arms: Sequence[Posterior]) -> None:
        t, weights = nodes(joined(arms), rates=any(isinstance(arm, Beta) for arm in arms))
        self._mass = [mass(arm, t, weights) for arm in arms]
        both = [tails(arm, t, own) for arm, own in zip(arms, self._mass, strict=True)]
        self._below = [below for below, _ in both]
        self._steps = weights * arms[0].slope(t)
        with np.errstate(divide="ignore"):
            # The logarithm of F from whichever tail has all its digits.
            self._log_below = [np.where(f < 0.5, np.log(f), np.log1p(-s)) for f, s in both]

    def best(self, k: int, others: Sequence[int]) -> float:
        """∫ f_k Π F_j."""
        return min(float(self._mass[k] @ np.exp(self._log_all_below(others))), 1.0)

    def loss(self, k: int, others: Sequence[int]) -> float:
        """∫ F_k (1 - Π F_j), the mean of what the best of the others has more than k; nothing cancels."""
        return max(0.0, float((self._steps * self._below[k]) @ -np.expm1(self._log_all_below(others))))

    def _log_all_below(self, others: Sequence[int]) -> Floats:
        logs = np.zeros_like(self._steps)
        for j in others:
            logs += self._log_below[j]
        return logs
