"""Rates of an arm and their differences, with the participant as the unit of analysis.

What was randomised is the participant, so its many impressions are one observation: errors come from the
spread between participants, never from the number of impressions. The module hides how: exact integer
arithmetic as far as zero must be told from nearly zero, floating point after that, tails in logarithms.

Inputs are integers (values of a ratio metric: in micro-units), rates are shares of 1, n always counts the
participants *with data*: one without trials and successes adds nothing to the ratio, and counting it
would only make the variance look smaller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from math import exp, fsum, inf, isfinite, log, log1p, sqrt
from sys import float_info
from typing import Literal

import numpy as np
import scipy

from shared.errors import Fault, Invalid

Variance = Literal["jackknife", "delta"]

_FEWEST_DEGREES = 0.1
"""Below it one participant has over 95 % of an arm's trials; an interval would be wider than 10¹² errors,
and scipy's quantile is silently wrong from 0.01 down."""


class Undefined(StrEnum):
    """Why a number is not defined; stands beside every None."""

    NO_IMPRESSIONS = "NO_IMPRESSIONS"
    TOO_FEW_PARTICIPANTS = "TOO_FEW_PARTICIPANTS"
    NO_VARIATION = "NO_VARIATION"
    ONE_IMPRESSION_EACH = "ONE_IMPRESSION_EACH"
    CONVERSIONS_EXCEED_IMPRESSIONS = "CONVERSIONS_EXCEED_IMPRESSIONS"
    NO_CONTROL = "NO_CONTROL"
    IS_CONTROL = "IS_CONTROL"
    NO_BASELINE = "NO_BASELINE"
    NOT_RANDOMIZED = "NOT_RANDOMIZED"
    ALTERNATING = "ALTERNATING"
    NO_CYCLE_YET = "NO_CYCLE_YET"
    TOO_FEW_CYCLES = "TOO_FEW_CYCLES"
    NO_CONTRAST = "NO_CONTRAST"
    NO_TUNING = "NO_TUNING"
    NO_LOOK_YET = "NO_LOOK_YET"
    NO_ALPHA_YET = "NO_ALPHA_YET"
    ALPHA_SPENT = "ALPHA_SPENT"
    EARLIER_LOOK = "EARLIER_LOOK"
    NOT_SPENT = "NOT_SPENT"
    TOO_FEW_DATA = "TOO_FEW_DATA"
    IS_A_PROPORTION = "IS_A_PROPORTION"
    NOT_OF_THIS_KIND = "NOT_OF_THIS_KIND"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    OF_ONE_PHASE = "OF_ONE_PHASE"
    NOT_GIVEN = "NOT_GIVEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSums:
    """The sums of one arm: entry i of `trials` and of `successes` belong to its i-th participant.

    Participants without data are in it, with zeros. `signed`: successes are values, which may be negative. Raises
    Invalid where the two differ in length or hold a negative count.
    """

    key: str
    trials: Sequence[int]
    successes: Sequence[int]
    signed: bool = False

    def __post_init__(self) -> None:
        if len(self.trials) != len(self.successes):
            fault = Fault(field="successes", message="must have one entry for each of trials")
        elif min(self.trials, default=0) < 0:
            fault = Fault(field="trials", message="must not be negative")
        elif not self.signed and min(self.successes, default=0) < 0:
            fault = Fault(field="successes", message="must not be negative")
        else:
            return
        raise Invalid(f"{self.key}: {fault.field} {fault.message}", faults=[fault])

    def with_data(self) -> list[tuple[int, int]]:
        """(trials, successes) of the participants that have any."""
        # int(): numpy's own integers would overflow silently in the products below.
        rows = ((int(m), int(c)) for m, c in zip(self.trials, self.successes, strict=True))
        return [(m, c) for m, c in rows if m or c]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One arm's value, whatever it is the value of, with its error; `reasons` names every field that is None.

    All that a comparison needs: `variance` is that of `value`, in its units squared.
    """

    key: str
    value: float | None
    variance: float | None
    degrees_of_freedom: float | None
    reasons: Mapping[str, Undefined] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One arm's ratio with its error; `reasons` names every field that is None.

    `variance` is that of `rate`; `design_effect` is it over what as many independent trials would have.
    """

    key: str
    participants: int
    trials: int
    successes: int
    rate: float | None
    variance: float | None
    degrees_of_freedom: float | None
    design_effect: float | None
    reasons: Mapping[str, Undefined] = field(default_factory=dict)

    def estimate(self) -> Estimate:
        """The rate as what can be compared."""
        names = {"rate": "value", "variance": "variance", "degrees_of_freedom": "degrees_of_freedom"}
        return Estimate(
            key=self.key,
            value=self.rate,
            variance=self.variance,
            degrees_of_freedom=self.degrees_of_freedom,
            reasons={names[name]: reason for name, reason in self.reasons.items() if name in names},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Treatment minus control; `reasons` names every field that is None.

    The interval has level 1 - `alpha` and excludes 0 exactly when `p_value` < `alpha`. A p-value below
    what a float can hold is given as the smallest normal one; `log_p_value` (natural) has it exactly.
    """

    treatment: str
    control: str
    alpha: float
    estimate: float | None = None
    standard_error: float | None = None
    degrees_of_freedom: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    log_p_value: float | None = None
    reasons: Mapping[str, Undefined] = field(default_factory=dict)


def rate(arm: ArmSums, *, variance: Variance = "jackknife") -> Rate:
    """An arm's r = C/M with its variance and degrees of freedom.

    jackknife: v = (n-1)/n · Σ (r₍₋ᵢ₎ - r)², r₍₋ᵢ₎ = (C - cᵢ)/(M - mᵢ) (Efron 1982), with M²/Σm² - 1 degrees
    of freedom, M²/Σm² being the effective number of participants (Kish 1965). Under skewed traffic it
    errs on the safe side.
    delta: v = n/(n-1) · Σ (cᵢ - r mᵢ)² / M² with n - 1 degrees of freedom (Deng, Knoblich, Lu 2018; the
    cluster-robust OLS of others), for comparison: where a few participants have most of the traffic it
    calls 18 % of the differences real that are none, at nominal 5 %. Both agree where all m are equal.

    Not valid, either of them, below about ten conversions in both arms together.
    """
    rows = arm.with_data()
    return _rate(
        quotient(arm.key, rows, variance=variance),
        participants=len(rows),
        trials=sum(m for m, _ in rows),
        successes=sum(c for _, c in rows),
    )


def counted(key: str, *, trials: int, successes: int) -> Rate:
    """The rate of `trials` participants with one impression each, from the two counts alone.

    What `rate` says of as many ones and zeros, in closed form: v = r(1 - r)/(M - 1) with M - 1 degrees of
    freedom. Raises Invalid for a negative count, or more successes than trials.
    """
    check_counts(trials=trials, successes=successes)
    found = Estimate(key=key, value=None, variance=None, degrees_of_freedom=None)
    if not trials:
        found = _unknown(found, Undefined.NO_IMPRESSIONS)
    elif trials == 1:
        found = _unknown(replace(found, value=float(successes)), Undefined.TOO_FEW_PARTICIPANTS)
    else:
        found = replace(
            found,
            value=successes / trials,
            variance=successes * (trials - successes) / (trials * trials * (trials - 1)),
            degrees_of_freedom=float(trials - 1),
        )
    return _rate(found, participants=trials, trials=trials, successes=successes)


def check_counts(*, trials: int, successes: int) -> None:
    """Raises Invalid unless 0 ≤ successes ≤ trials."""
    if not 0 <= successes <= trials:
        message = f"is {successes}, must be between 0 and the trials, {trials}"
        raise Invalid(f"successes {message}", faults=[Fault(field="successes", message=message)])


def quotient(key: str, rows: Sequence[tuple[int, int]], *, variance: Variance = "jackknife") -> Estimate:
    """ΣC/ΣM of (M, C) rows in integers of any size, exact until the last division; see `rate`.

    A number that a float cannot hold, or only as 0 where it is none, is None with OUT_OF_RANGE.
    """
    n, total, hits = len(rows), sum(m for m, _ in rows), sum(c for _, c in rows)
    found = Estimate(key=key, value=None, variance=None, degrees_of_freedom=None)
    if not total:
        return _unknown(found, Undefined.NO_IMPRESSIONS)
    try:
        found = replace(found, value=hits / total)
    except OverflowError:
        return _unknown(found, Undefined.OUT_OF_RANGE)
    if n < 2 or any(m == total for m, _ in rows):
        return _unknown(found, Undefined.TOO_FEW_PARTICIPANTS)
    away = [(c * total - hits * m, total - m) for m, c in rows]
    try:
        if variance == "delta":
            spread = n * sum(off * off for off, _ in away) / ((n - 1) * total**4)
            freedom = float(n - 1)
        else:
            spread = (n - 1) / n * fsum((off / (total * rest)) ** 2 for off, rest in away)
            squares = sum(m * m for m, _ in rows)
            freedom = (total * total - squares) / squares
    except OverflowError:
        return _unknown(found, Undefined.OUT_OF_RANGE)
    if not in_range(spread) and any(off for off, _ in away):
        return _unknown(found, Undefined.OUT_OF_RANGE)
    return replace(found, variance=spread, degrees_of_freedom=freedom)


def in_range(value: float) -> bool:
    """Whether a positive number is one that a float holds with all its digits."""
    return float_info.min <= value < inf


def _unknown(found: Estimate, reason: Undefined) -> Estimate:
    """`found` with `reason` beside everything that is None."""
    unknown = [item.name for item in fields(found) if getattr(found, item.name) is None]
    return replace(found, reasons=dict.fromkeys(unknown, reason))


def _rate(own: Estimate, *, participants: int, trials: int, successes: int) -> Rate:
    names = {"value": "rate"}
    reasons = {names.get(name, name): reason for name, reason in own.reasons.items()}
    effect = _design_effect(own.variance, successes, trials)
    if isinstance(effect, Undefined):
        reasons["design_effect"] = reasons.get("variance", effect)
    return Rate(
        key=own.key,
        participants=participants,
        trials=trials,
        successes=successes,
        rate=own.value,
        variance=own.variance,
        degrees_of_freedom=own.degrees_of_freedom,
        design_effect=None if isinstance(effect, Undefined) else effect,
        reasons=reasons,
    )


def _design_effect(spread: float | None, hits: int, total: int) -> float | Undefined:
    """v / (r (1 - r) / M) (Kish 1965)."""
    if spread is None:
        return Undefined.TOO_FEW_PARTICIPANTS
    if hits > total:
        return Undefined.CONVERSIONS_EXCEED_IMPRESSIONS
    if hits in (0, total):
        return Undefined.NO_VARIATION
    return spread * (total**3 / (hits * (total - hits)))


def difference(
    treatment: ArmSums, control: ArmSums, *, alpha: float, variance: Variance = "jackknife"
) -> Difference:
    """Treatment's rate minus control's, with interval and p.

    `compared` of the two rates. Valid as far as `rate`'s variances are; with a handful of participants in an arm the
    randomisation test is. Raises Invalid for an `alpha` outside (0, 1).
    """
    t, c = rate(treatment, variance=variance), rate(control, variance=variance)
    return compared(t.estimate(), c.estimate(), alpha=alpha)


def compared(treatment: Estimate, control: Estimate, *, alpha: float) -> Difference:
    """Treatment's value minus control's, of a rate, a mean or a ratio, with interval and p.

    SE² = v_t + v_c, degrees of freedom after Welch (1947) and Satterthwaite, p = 2 T(-|d|/SE) from the
    lower tail; the interval has level 1 - alpha. The estimates are of different participants. A reason an
    arm gives for what it does not know is the difference's. Raises Invalid for an `alpha` outside (0, 1).
    """
    check_alpha(alpha)
    found = Difference(treatment=treatment.key, control=control.key, alpha=alpha)
    if treatment.value is None or control.value is None:
        return _because(found, _reason("value", treatment, control))
    estimate = treatment.value - control.value
    if not isfinite(estimate):
        return _because(found, Undefined.OUT_OF_RANGE)
    found = replace(found, estimate=estimate)
    if treatment.variance is None or control.variance is None:
        return _because(found, _reason("variance", treatment, control))
    error, freedom = sqrt(treatment.variance + control.variance), _welch(treatment, control)
    return compared_by(
        treatment.key, control.key, estimate=estimate, error=error, freedom=freedom, alpha=alpha
    )


def compared_by(
    treatment: str, control: str, *, estimate: float, error: float, freedom: float | None, alpha: float
) -> Difference:
    """The difference of this size and standard error, however it was estimated, with interval and p.

    Student's with `freedom` degrees of freedom; without any there is no variation. Raises Invalid for an `alpha`
    outside (0, 1).
    """
    check_alpha(alpha)
    found = Difference(treatment=treatment, control=control, alpha=alpha, estimate=estimate)
    if not isfinite(error):
        return _because(found, Undefined.OUT_OF_RANGE)
    found = replace(found, standard_error=error, degrees_of_freedom=freedom)
    if freedom is None:
        return _because(found, Undefined.NO_VARIATION)
    reach = quantile(freedom, alpha) * error
    if freedom < _FEWEST_DEGREES or not isfinite(reach / error):
        return _because(found, Undefined.TOO_FEW_PARTICIPANTS)
    statistic = abs(estimate) / error
    if not all(map(isfinite, (estimate - reach, estimate + reach, statistic))):
        return _because(found, Undefined.OUT_OF_RANGE)
    log_p = log_two_sided_p(statistic, freedom)
    return replace(
        found,
        interval=Interval(low=estimate - reach, high=estimate + reach),
        p_value=max(exp(log_p), float_info.min),
        log_p_value=log_p,
    )


def against_zero(difference: Estimate, *, alpha: float) -> Difference:
    """Interval and p of an estimate that is a difference already: pooled phases, a main effect."""
    nothing = Estimate(key="", value=0.0, variance=0.0, degrees_of_freedom=None)
    return compared(difference, nothing, alpha=alpha)


def quantile(freedom: float, alpha: float) -> float:
    """How many errors a two-sided interval of level 1 - alpha reaches, with so many degrees of freedom."""
    return -float(scipy.special.stdtrit(freedom, alpha / 2))


def _reason(name: str, *arms: Estimate) -> Undefined:
    """Why the first arm that does not know `name` does not."""
    return next(arm.reasons[name] for arm in arms if name in arm.reasons)


def _because(found: Difference, reason: Undefined) -> Difference:
    """`found` with `reason` beside everything that is None."""
    unknown = [item.name for item in fields(found) if getattr(found, item.name) is None]
    return replace(found, reasons=dict.fromkeys(unknown, reason))


def check_alpha(alpha: float) -> None:
    """Raises Invalid for a level outside (0, 1)."""
    if not 0 < alpha < 1:
        message = "must be between 0 and 1"
        raise Invalid(f"alpha {message}", faults=[Fault(field="alpha", message=message)])


def _welch(treatment: Estimate, control: Estimate) -> float | None:
    """(v_t + v_c)² / (v_t²/ν_t + v_c²/ν_c); None where nothing varies."""
    parts = [
        (arm.variance, arm.degrees_of_freedom)
        for arm in (treatment, control)
        if arm.variance and arm.degrees_of_freedom
    ]
    whole = sum(v for v, _ in parts)
    return 1 / sum((v / whole) ** 2 / freedom for v, freedom in parts) if parts else None


def log_two_sided_p(statistic: float, freedom: float) -> float:
    """The natural logarithm of P(|T| ≥ statistic), at any size; statistic ≥ 0.

    Where the tail underflows: T's tail is the incomplete beta I_x(ν/2, 1/2) with x = ν/(ν + t²), by the
    series x^a (1-x)^b / (a B(a, b)) · Σ Π x (a + b + k)/(a + 1 + k) (DLMF 8.17.8), whose terms are positive
    and fall faster than x^k.
    """
    tail = 2 * float(scipy.special.stdtr(freedom, -statistic))
    if tail > float_info.min:
        return min(log(tail), 0.0)
    a, b = freedom / 2, 0.5
    ratio = statistic / sqrt(freedom) * (statistic / sqrt(freedom))
    # Beyond what a float holds of t²/ν, 1 + t²/ν is t²/ν.
    log_x = -log1p(ratio) if isfinite(ratio) else log(freedom) - 2 * log(statistic)
    x = 1 / (1 + ratio)
    steps = np.arange(int(-40 / log_x) + 2)
    series = 1 + float(np.cumprod(x * (a + b + steps) / (a + 1 + steps)).sum())
    return a * log_x - b * log1p(1 / ratio) - log(a) - float(scipy.special.betaln(a, b)) + log(series)


def icc(arms: Sequence[ArmSums]) -> float | Undefined:
    """How alike the trials of one participant are, 0 to 1, pooled within the arms.

    One-way analysis of variance of 0/1 trials: (MSB - MSW) / (MSB + (m₀ - 1) MSW) with
    m₀ = (M - Σ_k Σm²/M_k)/(n - K), clamped (Donner 1986). An estimate of little precision below some
    thirty participants.
    """
    groups = [rows for rows in ([row for row in arm.with_data() if row[0]] for arm in arms) if rows]
    sums = [(sum(m for m, _ in rows), sum(c for _, c in rows)) for rows in groups]
    n, total = sum(map(len, groups)), sum(trials for trials, _ in sums)
    if not total:
        return Undefined.NO_IMPRESSIONS
    if any(c > m for arm in arms for m, c in arm.with_data()):
        return Undefined.CONVERSIONS_EXCEED_IMPRESSIONS
    if n == len(groups):
        return Undefined.TOO_FEW_PARTICIPANTS
    if n == total:
        return Undefined.ONE_IMPRESSION_EACH
    within = fsum(c * (m - c) / m for rows in groups for m, c in rows) / (total - n)
    between = fsum(
        (c * trials - hits * m) ** 2 / (m * trials**2)
        for rows, (trials, hits) in zip(groups, sums, strict=True)
        for m, c in rows
    ) / (n - len(groups))
    if not within and not between:
        return Undefined.NO_VARIATION
    shares = fsum(m * m / trials for rows, (trials, _) in zip(groups, sums, strict=True) for m, _ in rows)
    size = (total - shares) / (n - len(groups))
    return min(max((between - within) / (between + (size - 1) * within), 0.0), 1.0)
