"""How many participants an experiment needs, or what it can find with those it has.

Two proportions, normal approximation with separate variances under the alternative (Fleiss, Levin, Paik 2003;
the formula of R's power.prop.test). Impressions are worth 1/deff of what they are in number, deff =
1 + (Σm²/M - 1) ICC, so more of them per host cannot help beyond n/ICC.
"""

from collections.abc import Callable
from math import ceil, inf, sqrt

import scipy

from control_plane.domain.statistics.proportions import check_alpha
from shared.errors import Fault, Invalid

Boundary = Callable[[float, float], float]
"""How many errors away from 0 a difference has to be, by the control's independent trials and by its variance."""


def design_effect(*, impressions_each: float, icc: float) -> float:
    """1 + (m - 1) ICC for m impressions on each participant (Kish 1965), at least 1."""
    return 1 + max(impressions_each - 1, 0.0) * icc


def power(
    *, baseline: float, effect: float, per_arm: float, alpha: float = 0.05, comparisons: int = 1
) -> float:
    """The chance to find `effect` (absolute, shares of 1) with `per_arm` independent trials in each arm.

    Two-sided at alpha/comparisons; the chance to find it on the wrong side is left out.
    """
    _check(baseline, alpha, comparisons)
    first, second = baseline, baseline + effect
    if not 0 <= second <= 1:
        _fault("effect", "takes the rate out of 0 … 1")
    pooled = (first + second) / 2
    z = float(scipy.special.ndtri(1 - alpha / comparisons / 2))
    apart = sqrt(per_arm) * abs(effect) - z * sqrt(2 * pooled * (1 - pooled))
    spread = sqrt(first * (1 - first) + second * (1 - second))
    if not spread:
        return 1.0 if apart > 0 else 0.0
    return float(scipy.special.ndtr(apart / spread))


def trials_per_arm(
    *,
    baseline: float,
    effect: float,
    wanted: float = 0.8,
    alpha: float = 0.05,
    comparisons: int = 1,
    ratio: float = 1.0,
) -> float:
    """How many independent trials the control needs for this power, the other arm having `ratio` times as many.

    A fraction, round up: n = (z₁₋α/₂ √((1 + 1/ratio) p̄ q̄) + z_power √(p₁q₁ + p₂q₂/ratio))² / effect², p̄ over both arms.
    Raises Invalid by field for an effect of 0 or one that leaves 0 … 1.
    """
    _check(baseline, alpha, comparisons)
    if not 0 < wanted < 1:
        _fault("power", "must be between 0 and 1")
    first, second = baseline, baseline + effect
    if not effect or not 0 <= second <= 1:
        _fault("effect", "must not be 0 nor take the rate out of 0 … 1")
    pooled = (first + ratio * second) / (1 + ratio)
    z_alpha = float(scipy.special.ndtri(1 - alpha / comparisons / 2))
    z_power = float(scipy.special.ndtri(wanted))
    spread = z_alpha * sqrt((1 + 1 / ratio) * pooled * (1 - pooled))
    spread += z_power * sqrt(first * (1 - first) + second * (1 - second) / ratio)
    return (spread / effect) ** 2


def participants_per_arm(
    *,
    baseline: float,
    effect: float,
    impressions_each: float,
    icc: float,
    wanted: float = 0.8,
    alpha: float = 0.05,
    comparisons: int = 1,
    boundary: Boundary | None = None,
) -> int:
    """How many participants each arm needs where each has so many impressions, this much alike.

    With a `boundary` as many as are beyond it with this power.
    """
    trials = trials_per_arm(
        baseline=baseline, effect=effect, wanted=wanted, alpha=alpha, comparisons=comparisons
    )
    if boundary is not None:
        low = high = trials
        while not _beyond(boundary, baseline, effect, wanted=wanted, trials=high, ratio=1.0):
            low, high = high, 2 * high
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            enough = _beyond(boundary, baseline, effect, wanted=wanted, trials=middle, ratio=1.0)
            low, high = (low, middle) if enough else (middle, high)
        trials = high
    return ceil(trials * design_effect(impressions_each=impressions_each, icc=icc) / impressions_each)


def _beyond(
    boundary: Boundary, baseline: float, effect: float, *, wanted: float, trials: float, ratio: float
) -> bool:
    """Whether a difference as large is beyond the boundary with this power: by boundary + z_power errors or more."""
    second = baseline + effect
    variance = (baseline * (1 - baseline) + second * (1 - second) / ratio) / trials
    errors = boundary(trials, variance) + float(scipy.special.ndtri(wanted))
    return abs(effect) >= errors * sqrt(variance)


def detectable(
    *,
    baseline: float,
    participants: int,
    impressions_each: float = inf,
    icc: float,
    wanted: float = 0.8,
    alpha: float = 0.05,
    comparisons: int = 1,
    ratio: float = 1.0,
    boundary: Boundary | None = None,
) -> float | None:
    """The smallest increase (absolute) that so many participants per arm find; None where there is none.

    Of the other arm there are `ratio` times as many. `impressions_each` may be infinite: what is found then is all
    that more impressions could ever find. With a `boundary` it is found beyond that.
    """
    _check(baseline, alpha, comparisons)
    if impressions_each == inf:
        effective = participants / icc if icc else inf
    else:
        effective = (
            participants * impressions_each / design_effect(impressions_each=impressions_each, icc=icc)
        )

    def missing(effect: float) -> float:
        if boundary is not None:
            found = _beyond(boundary, baseline, effect, wanted=wanted, trials=effective, ratio=ratio)
            return -1.0 if found else 1.0
        return (
            trials_per_arm(
                baseline=baseline,
                effect=effect,
                wanted=wanted,
                alpha=alpha,
                comparisons=comparisons,
                ratio=ratio,
            )
            - effective
        )

    largest = 1 - baseline
    if effective == inf:
        return 0.0
    if largest <= 0 or missing(largest) > 0:
        return None
    return float(scipy.optimize.brentq(missing, 1e-9, largest, xtol=1e-12, rtol=1e-12))


def errors_apart(*, alpha: float, wanted: float) -> float:
    """How many standard errors an effect is away from 0 that is found with this power: z₁₋α/₂ + z_power."""
    check_alpha(alpha)
    return float(scipy.special.ndtri(1 - alpha / 2) + scipy.special.ndtri(wanted))


def _check(baseline: float, alpha: float, comparisons: int) -> None:
    check_alpha(alpha)
    if not 0 <= baseline <= 1:
        _fault("baseline", "must be between 0 and 1")
    if comparisons < 1:
        _fault("comparisons", "must be at least 1")


def _fault(field: str, message: str) -> None:
    raise Invalid(f"{field} {message}", faults=[Fault(field=field, message=message)])
