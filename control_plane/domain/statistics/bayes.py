"""Which arm is probably best, and what choosing it would cost if it is not: shown, never a stopping rule.

Whoever stops as soon as such a probability passes 95 %, looking daily, declares a winner in 47 % of
experiments without any difference. The module hides the integrals: they are computed on one grid for all
arms, without random draws, so the same sums give the same digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from control_plane.domain.statistics.proportions import ArmSums, Interval, Undefined, check_alpha
from shared.errors import Fault, Invalid

Floats = NDArray[np.float64]
Goal = Literal["increase", "decrease"]

_NODES, _WEIGHTS = (np.asarray(part) for part in np.polynomial.legendre.leggauss(20))
_TAIL = 10.0 ** np.array([-18, -16, -14, -12, -10, -8, -7, -6, -5, -4, -3, -2, -1])
_BODY = np.array([0.2, 0.3, 0.5])
_LEVELS = np.concatenate([_TAIL, _BODY])


@dataclass(frozen=True, slots=True, kw_only=True)
class Beta:
    """A Beta distribution of a rate: `a` successes and `b` failures, prior included; both above 0."""

    a: float
    b: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What is believed of one arm; losses and intervals in shares of 1, the interval on the rate itself.

    `chance_to_win` is the probability to be better than the control; None without control and for it.
    """

    key: str
    posterior: Beta
    probability_to_be_best: float
    expected_loss: float
    credible_interval: Interval
    chance_to_win: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beliefs:
    """All arms, in the order given; `overdispersion` is the D that every arm's counts were divided by."""

    overdispersion: float
    arms: tuple[Belief, ...]


def beliefs(
    arms: Sequence[ArmSums],
    *,
    control: str | None,
    alpha: float,
    prior: Beta | None = None,
    goal: Goal = "increase",
) -> Beliefs | Undefined:
    """What the arms' sums say of their rates, or why they say nothing.

    θ_k ~ Beta(a₀ + C/D, b₀ + (M - C)/D), prior Beta(1, 1) unless given, one D for all arms because an arm's
    own is too noisy. Probabilities are exact to about 10⁻¹² (with a prior below 1, to 10⁻⁶ for arms without
    data); those of all arms sum to 1. With goal `decrease` better is lower. Undefined where an arm has more
    conversions than impressions.
    Raises Invalid for an `alpha` outside (0, 1) or a prior that is not positive.
    """
    check_alpha(alpha)
    start = prior or Beta(a=1.0, b=1.0)
    if not (start.a > 0 and start.b > 0):
        raise Invalid(faults=[Fault(field="prior", message="must have a and b above 0")])
    sums = [(sum(m for m, _ in rows), sum(c for _, c in rows)) for rows in (arm.with_data() for arm in arms)]
    if any(hits > trials for trials, hits in sums):
        return Undefined.CONVERSIONS_EXCEED_IMPRESSIONS
    shared_d = overdispersion(arms)
    posteriors = [
        Beta(a=start.a + hits / shared_d, b=start.b + (trials - hits) / shared_d) for trials, hits in sums
    ]
    turned = [Beta(a=one.b, b=one.a) for one in posteriors] if goal == "decrease" else posteriors
    grid = _Grid(turned)
    keys = [arm.key for arm in arms]
    against = keys.index(control) if control in keys else None
    return Beliefs(
        overdispersion=shared_d,
        arms=tuple(
            Belief(
                key=key,
                posterior=posteriors[k],
                probability_to_be_best=grid.best(k, [j for j in range(len(keys)) if j != k]),
                expected_loss=grid.loss(k, [j for j in range(len(keys)) if j != k]),
                credible_interval=credible_interval(posteriors[k], alpha=alpha),
                chance_to_win=None if against is None or against == k else grid.best(k, [against]),
            )
            for k, key in enumerate(keys)
        ),
    )


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


def credible_interval(posterior: Beta, *, alpha: float) -> Interval:
    """The interval that leaves alpha/2 of the posterior on either side."""
    return Interval(
        low=float(special.betaincinv(posterior.a, posterior.b, alpha / 2)),
        high=float(special.betainccinv(posterior.a, posterior.b, alpha / 2)),
    )


class _Grid:
    """Composite Gauss-Legendre nodes between the quantiles of all arms, with each arm's values at them.

    Between neighbouring quantiles every integrand is smooth, however narrow an arm or far apart two are.
    """

    def __init__(self, arms: Sequence[Beta]) -> None:
        edges = np.unique(np.concatenate([[0.0, 1.0], *map(_quantiles, arms)]))
        half = np.diff(edges) / 2
        x = (edges[:-1, None] + half[:, None] * (1 + _NODES)).ravel()
        x = np.clip(x, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))
        self._weights: Floats = (half[:, None] * _WEIGHTS).ravel()
        self._below = [np.asarray(special.betainc(arm.a, arm.b, x)) for arm in arms]
        above = [np.asarray(special.betaincc(arm.a, arm.b, x)) for arm in arms]
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

    def _density(self, arm: Beta, x: Floats) -> Floats:
        """The probability at each node; densities are relative to the mean's: large counts lose no digits."""
        mean, rest = arm.a / (arm.a + arm.b), arm.b / (arm.a + arm.b)
        away = x - mean
        with np.errstate(divide="ignore"):
            log_x = np.where(x < mean / 2, np.log(x / mean), np.log1p(away / mean))
            log_rest = np.where(1 - x < rest / 2, np.log((1 - x) / rest), np.log1p(-away / rest))
        mass: Floats = self._weights * np.exp((arm.a - 1) * log_x + (arm.b - 1) * log_rest)
        mass /= mass.sum()
        return mass


def _quantiles(arm: Beta) -> Floats:
    lower = special.betaincinv(arm.a, arm.b, _LEVELS)
    upper = special.betainccinv(arm.a, arm.b, _LEVELS)
    both: Floats = np.concatenate([lower, upper])
    return both[np.isfinite(both)]
