"""Which arm is probably best, and what choosing it would cost if it is not: shown, never a stopping rule.

Whoever stops as soon as such a probability passes 95 %, looking daily, declares a winner in 47 % of
experiments without any difference. The module hides the integrals: they are computed on one grid for all
arms, without random draws, so the same sums give the same digits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import expm1, fsum, isfinite, log, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from control_plane.domain.statistics.proportions import ArmSums, Estimate, Interval, Undefined, check_alpha
from shared.errors import Fault, Invalid

Floats = NDArray[np.float64]
Goal = Literal["increase", "decrease"]
DesignEffect = Literal["shared", "per_arm"]

_NODES, _WEIGHTS = (np.asarray(part) for part in np.polynomial.legendre.leggauss(20))
_TAIL = 10.0 ** np.array([-18, -16, -14, -12, -10, -8, -7, -6, -5, -4, -3, -2, -1])
_BODY = np.array([0.2, 0.3, 0.5])
_LEVELS = np.concatenate([_TAIL, _BODY])
_NARROWEST = 1e-10
"""An arm's error relative to the widest one's and to how far apart they are: nodes within it would coincide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beta:
    """A Beta distribution of a rate: `a` successes and `b` failures, prior included; both above 0."""

    a: float
    b: float

    def turned(self) -> "Beta":
        """What is believed of 1 - θ, which is better where less is better."""
        return Beta(a=self.b, b=self.a)

    def below(self, x: Floats) -> Floats:
        """P(θ ≤ x)."""
        return np.asarray(special.betainc(self.a, self.b, x))

    def above(self, x: Floats) -> Floats:
        """P(θ > x), small ones too to 10⁻¹¹ of themselves."""
        # Of 1 - θ: `betaincc` of scipy 1.17 and older takes fifteen times as long.
        return np.asarray(special.betainc(self.b, self.a, 1 - x))

    def quantiles(self, levels: Floats) -> tuple[Floats, Floats]:
        """What leaves so much below, and what leaves so much above."""
        low, high = (inverse(self.a, self.b, levels) for inverse in (special.betaincinv, special.betainccinv))
        return np.asarray(low), np.asarray(high)

    def log_density(self, x: Floats) -> Floats:
        """Relative to the mean's: large counts lose no digits."""
        mean, rest = self.a / (self.a + self.b), self.b / (self.a + self.b)
        away = x - mean
        with np.errstate(divide="ignore"):
            log_x = np.where(x < mean / 2, np.log(x / mean), np.log1p(away / mean))
            log_rest = np.where(1 - x < rest / 2, np.log((1 - x) / rest), np.log1p(-away / rest))
        found: Floats = (self.a - 1) * log_x + (self.b - 1) * log_rest
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """A normal distribution of a mean or a ratio, in its units; `variance` above 0."""

    mean: float
    variance: float

    def turned(self) -> "Normal":
        """What is believed of -θ."""
        return Normal(mean=-self.mean, variance=self.variance)

    def below(self, x: Floats) -> Floats:
        """P(θ ≤ x)."""
        return np.asarray(special.ndtr((x - self.mean) / sqrt(self.variance)))

    def above(self, x: Floats) -> Floats:
        """P(θ > x), with all its digits."""
        return np.asarray(special.ndtr((self.mean - x) / sqrt(self.variance)))

    def quantiles(self, levels: Floats) -> tuple[Floats, Floats]:
        """What leaves so much below, and what leaves so much above."""
        away = special.ndtri(levels) * sqrt(self.variance)
        return np.asarray(self.mean + away), np.asarray(self.mean - away)

    def log_density(self, x: Floats) -> Floats:
        """Relative to the mean's."""
        found: Floats = -((x - self.mean) ** 2) / self.variance / 2
        return found


Posterior = Beta | Normal


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
    Undefined where the normal posterior of a control cannot be told from 0. Raises Invalid for an `alpha`
    outside (0, 1).
    """
    check_alpha(alpha)
    if isinstance(treatment, Normal) and isinstance(control, Normal):
        spread = sqrt(control.variance)
        if abs(control.mean) <= -float(special.ndtri(alpha / 2)) * spread:
            return Undefined.NO_BASELINE
        start = (treatment.mean - control.mean) / abs(control.mean)
        step = (sqrt(treatment.variance) + spread) / abs(control.mean)
        ends = _solved(
            lambda r, upper: _lift_tail(r, treatment, control, upper=upper),
            start=start,
            step=step,
            alpha=alpha,
        )
        return Interval(low=ends[0], high=ends[1])
    if not (isinstance(treatment, Beta) and isinstance(control, Beta)):
        message = "must both be of rates, or both of values"
        raise Invalid(f"posteriors {message}", faults=[Fault(field="posteriors", message=message)])
    # In ln(1 + r), in which ratios of rates are about even.
    start = log(treatment.a / (treatment.a + treatment.b)) - log(control.a / (control.a + control.b))
    ends = _solved(
        lambda u, upper: _lift_tail(expm1(u), treatment, control, upper=upper),
        start=start,
        step=0.1,
        alpha=alpha,
    )
    return Interval(low=expm1(ends[0]), high=expm1(ends[1]))


def _solved(
    tail: Callable[[float, bool], float], *, start: float, step: float, alpha: float
) -> tuple[float, float]:
    """Where the lower tail is alpha/2, and where the upper one is."""
    found = []
    for upper, way in ((False, -1.0), (True, 1.0)):
        near, reach = start, step
        # Back first, should the start itself lie beyond the end.
        while tail(near, upper) < alpha / 2:
            near, reach = near - way * reach, reach * 2
        far, reach = near + way * step, step
        while tail(far, upper) > alpha / 2:
            far, reach = far + way * reach, reach * 2
        low, high = sorted((near, far))
        found.append(
            float(optimize.brentq(lambda x: tail(x, upper) - alpha / 2, low, high, xtol=1e-12, rtol=1e-12))  # noqa: B023
        )
    return found[0], found[1]


def _lift_tail(r: float, treatment: Posterior, control: Posterior, *, upper: bool) -> float:
    """P(lift ≤ r), or P(lift > r), on nodes between control's quantiles and where treatment's are met."""
    met = np.concatenate(treatment.quantiles(_LEVELS))
    own = np.concatenate(control.quantiles(_LEVELS))
    edges = [own]
    if isinstance(control, Beta):
        edges += [np.array([0.0, 1.0]), met / (1 + r) if r > -1 else met]
        edges = [np.clip(np.concatenate(edges), 0.0, 1.0)]
    else:
        edges += [np.zeros(1), *(met / (1 + side * r) for side in (1, -1) if side * r != -1)]
        edges = [np.clip(np.concatenate(edges), own.min(), own.max())]
    x, weights = _nodes(edges[0], inside=isinstance(control, Beta))
    mass = weights * np.exp(control.log_density(x))
    at = x + r * np.abs(x)
    if isinstance(treatment, Beta):
        at = np.clip(at, 0.0, 1.0)
    return float(mass @ (treatment.above(at) if upper else treatment.below(at)) / mass.sum())


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
    quantile = float(special.stdtrit(freedom, 0.975)) / float(special.ndtri(0.975))
    return max(1.0, effect) * quantile**2


def credible_interval(posterior: Posterior, *, alpha: float) -> Interval:
    """The interval that leaves alpha/2 of the posterior on either side."""
    low, high = posterior.quantiles(np.array([alpha / 2]))
    return Interval(low=float(low[0]), high=float(high[0]))


def _nodes(edges: Floats, *, inside: bool) -> tuple[Floats, Floats]:
    """Composite Gauss-Legendre nodes and weights; `inside` keeps nodes off 0 and 1."""
    edges = np.unique(edges)
    half = np.diff(edges) / 2
    x = (edges[:-1, None] + half[:, None] * (1 + _NODES)).ravel()
    if inside:
        x = np.clip(x, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))
    return x, (half[:, None] * _WEIGHTS).ravel()


class _Grid:
    """Composite Gauss-Legendre nodes between the quantiles of all arms, with each arm's values at them.

    Between neighbouring quantiles every integrand is smooth, however narrow an arm or far apart two are.
    """

    def __init__(self, arms: Sequence[Posterior]) -> None:
        rates = all(isinstance(arm, Beta) for arm in arms)
        x, self._weights = _nodes(
            np.concatenate([[0.0, 1.0] if rates else [], *map(_quantiles, arms)]), inside=rates
        )
        self._below = [arm.below(x) for arm in arms]
        above = [arm.above(x) for arm in arms]
        with np.errstate(divide="ignore"):
            # The logarithm of F from whichever tail has all its digits.
            self._log_below = [
                np.where(f < 0.5, np.log(f), np.log1p(-s)) for f, s in zip(self._below, above, strict=True)
            ]
        self._mass = [self._density(arm, x) for arm in arms]

    def best(self, k: int, others: Sequence[int]) -> float:
        """∫ f_k Π F_j."""
        return min(float(self._mass[k] @ np.exp(self._log_all_below(others))), 1.0)

    def loss(self, k: int, others: Sequence[int]) -> float:
        """∫ F_k (1 - Π F_j), the mean of what the best of the others has more than k; nothing cancels."""
        return max(0.0, float((self._weights * self._below[k]) @ -np.expm1(self._log_all_below(others))))

    def _log_all_below(self, others: Sequence[int]) -> Floats:
        logs = np.zeros_like(self._weights)
        for j in others:
            logs += self._log_below[j]
        return logs

    def _density(self, arm: Posterior, x: Floats) -> Floats:
        """The probability at each node."""
        mass: Floats = self._weights * np.exp(arm.log_density(x))
        mass /= mass.sum()
        return mass


def _quantiles(arm: Posterior) -> Floats:
    both: Floats = np.concatenate(arm.quantiles(_LEVELS))
    return both[np.isfinite(both)]
