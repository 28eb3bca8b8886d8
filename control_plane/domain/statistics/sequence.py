"""An interval that may be looked at at any time, for populations that are open or large, and for guardrails.

An asymptotic confidence sequence in information time (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas,
arXiv 2103.06476, after Robbins 1970): the boundary is wide while little is known and never crossed by a null
in more than alpha of experiments, however often one looks. On a fixed fleet of hosts time must be counted in
information, not in participants: counted in participants the boundary is flat and 7 to 10 % of nulls cross it
within a year of looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, isfinite, log, log1p, sqrt
from sys import float_info

import scipy

from control_plane.domain.statistics.proportions import Interval, check_alpha, log_two_sided_p
from shared.errors import Fault, Invalid

FEWEST_CONVERSIONS = 10
"""Conversions, and as many impressions without one, that arms of like size need together for a sequence to decide."""
FEWEST_PARTICIPANTS = 5
"""Participants that each arm needs for a sequence to decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Always:
    """What may be said of a difference now. `p_value` stays below alpha exactly while the interval excludes 0."""

    p_value: float
    interval: Interval
    boundary: float
    """How many errors the interval reaches to either side."""
    unspent: float
    """Share of alpha that is left for other data to come: min(1, E), for E is the capital of a fair bet, which is
    staked again as a whole (of E times the next E, no more than alpha ever reaches 1/alpha)."""

    @property
    def finite(self) -> bool:
        """Whether floats can hold the interval; where they cannot, hardly anything is known yet."""
        return isfinite(self.interval.low) and isfinite(self.interval.high)


def enough(
    speaking: Sequence[int],
    trials: Sequence[float],
    successes: Sequence[float],
    *,
    shares: bool,
    cells: Sequence[int] = (),
) -> bool:
    """Whether there is what the normal approximation needs to decide; `speaking`: each arm's participants with data.

    Conversions and impressions without one are needed k times as often as by arms of like size, k being how many
    whole times the larger arm is the smaller. Ten over 90 % and 10 % of all participants are one in the smaller
    arm: where nothing differs it has none of them in a third of experiments, and then no error either, so that up
    to 32 % are decided (3 % with ninety). Of what is no proportion (not `shares`) participants with a value are
    counted, unless most have one, and of unlike arms only. Where arms are compared within `cells`, of so many
    participants with data, it is the smallest of these that has to have some.
    """
    if min(speaking) < FEWEST_PARTICIPANTS:
        return False
    sizes = cells or speaking
    times = max(sizes) // min(sizes)
    if shares:
        hits = sum(successes)
        return min(hits, sum(trials) - hits) >= FEWEST_CONVERSIONS * times
    valued = sum(1 for value in successes if value)
    return times == 1 or valued >= min(FEWEST_CONVERSIONS * times, len(successes) - valued)


def information_target(*, alpha: float, power: float, effect: float) -> float:
    """I*, the information at which the boundary is tightest: (z₁₋α/₂ + z_power)² / (3 · effect²).

    `effect` is the smallest difference worth finding, in the metric's units. Frozen at the first look. Err
    low: a target 20 times too large costs nearly all power.
    """
    check_alpha(alpha)
    faults = []
    if not 0 < power < 1:
        faults.append(Fault(field="power", message="must be between 0 and 1"))
    if not effect > 0:
        faults.append(Fault(field="minimumDetectableEffect", message="must be above 0"))
    if faults:
        raise Invalid("; ".join(f"{fault.field} {fault.message}" for fault in faults), faults=faults)
    return float((scipy.special.ndtri(1 - alpha / 2) + scipy.special.ndtri(power)) ** 2 / (3 * effect**2))


def always_valid(
    *,
    estimate: float,
    standard_error: float,
    share: float,
    alpha: float,
    degrees_of_freedom: float | None = None,
) -> Always:
    """Interval and p of a difference at `share` of its target: I/I*, or N/N* with a tuning in participants.

    x = ρ₀² · share with ρ₀² = -2 ln α + ln(1 - 2 ln α); B² = (x+1)/x · ln((x+1)/α²);
    ln E = x z²/(2(x+1)) - ln(1+x)/2; p = min(1, exp(-ln E)). With `degrees_of_freedom` (small fleets) the
    boundary is q = -T⁻¹(Φ(-B)) and z = -Φ⁻¹(T(-|t|)), so that interval and p still agree; it may be infinite, while
    next to nothing is known. Raises Invalid for a `standard_error` or `share` that is not positive.
    """
    check_alpha(alpha)
    if not (standard_error > 0 and share > 0):
        raise Invalid(faults=[Fault(field="standardError", message="and share must be above 0")])
    rho = -2 * log(alpha) + log(1 - 2 * log(alpha))
    x = rho * share
    boundary = sqrt((x + 1) / x * log((x + 1) / alpha**2))
    statistic = abs(estimate) / standard_error
    if degrees_of_freedom is not None:
        statistic = _as_normal(statistic, degrees_of_freedom)
        reach = _as_t(boundary, degrees_of_freedom)
    else:
        reach = boundary
    log_evidence = x * statistic**2 / (2 * (x + 1)) - log1p(x) / 2
    return Always(
        p_value=min(1.0, exp(-log_evidence)),
        interval=Interval(low=estimate - reach * standard_error, high=estimate + reach * standard_error),
        boundary=reach,
        unspent=exp(min(log_evidence, 0.0)),
    )


def _as_normal(statistic: float, degrees_of_freedom: float) -> float:
    """The normal deviate with the same tail as a t of these degrees of freedom; tails in logarithms."""
    tail = float(scipy.special.stdtr(degrees_of_freedom, -statistic))
    if tail > 0:
        return float(-scipy.special.ndtri(tail))
    return float(-scipy.special.ndtri_exp(log_two_sided_p(statistic, degrees_of_freedom) - log(2)))


def _as_t(boundary: float, degrees_of_freedom: float) -> float:
    """The t of these degrees of freedom with the same tail as a normal deviate; infinite beyond what a float holds."""
    tail = float(scipy.special.ndtr(-boundary))
    if tail > 1e3 * float_info.min:
        found = -float(scipy.special.stdtrit(degrees_of_freedom, tail))
        return found if found > 0 else inf
    aim, farthest = float(scipy.special.log_ndtr(-boundary)), log(float_info.max) / 2

    def beyond(log_t: float) -> float:
        return log_two_sided_p(exp(log_t), degrees_of_freedom) - log(2) - aim

    if beyond(farthest) > 0:
        return inf
    return exp(float(scipy.optimize.brentq(beyond, log(boundary), farthest, xtol=1e-14, rtol=1e-14)))
