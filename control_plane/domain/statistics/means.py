"""Means and ratios of values per participant, as estimates that `compared` compares like rates.

The module hides the arithmetic: a float is a whole number over a power of two, so sums and squares are taken
in integers of any size and rounded once. Values of 10⁹ that differ in the third decimal keep all digits,
where a sum of squares in floats says p = 1 of what is 0.049.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite, ulp
from typing import TypeVar

from control_plane.domain.statistics.proportions import Estimate, Undefined, Variance, in_range, quotient
from shared.errors import Fault, Invalid

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """How many values, their mean, and Σ(y - mean)² in `squares`.

    `squares` is 0 exactly when all values are equal, and infinite where a float cannot hold it.
    """

    count: int
    mean: float
    squares: float


def moments(values: Sequence[float]) -> Moments:
    """Count, mean and sum of squares about it, each rounded once. Raises Invalid for one that is not finite."""
    _check_finite("values", values)
    n = len(values)
    if not n:
        return Moments(count=0, mean=0.0, squares=0.0)
    whole, scale = _whole(values)
    total = sum(whole)
    spread = n * sum(one * one for one in whole) - total * total
    try:
        squares = spread / (n * scale * scale)
    except OverflowError:
        squares = inf
    # Nearly 0 is not 0: only equal values have no variation.
    return Moments(count=n, mean=total / (n * scale), squares=max(squares, ulp(0.0)) if spread else 0.0)


def merged(parts: Iterable[Moments]) -> Moments:
    """The moments of all values of the parts together (Chan, Golub, LeVeque 1983), whatever the parts."""
    found = Moments(count=0, mean=0.0, squares=0.0)
    for part in parts:
        if not found.count or not part.count:
            found = found if found.count else part
            continue
        n = found.count + part.count
        apart = part.mean - found.mean
        if isfinite(apart):
            mean = found.mean + apart * (part.count / n)
        else:
            mean = found.mean * (found.count / n) + part.mean * (part.count / n)
        between = apart * apart * (found.count / n * part.count)
        found = Moments(count=n, mean=mean, squares=found.squares + part.squares + between)
    return found


def mean(key: str, of: Moments) -> Estimate:
    """The mean with v = s²/n and n - 1 degrees of freedom, in the values' units (squared).

    Valid where the mean of n values is about normal: with skewed values and arms of unequal size it is not
    before some hundred participants, and the randomisation test or winsorised values are.
    """
    n, value = of.count, of.mean if of.count else None
    spread = of.squares / (n - 1) / n if n > 1 else None
    if not n:
        reasons = dict.fromkeys(("value", "variance", "degrees_of_freedom"), Undefined.NO_IMPRESSIONS)
    elif spread is None:
        reasons = dict.fromkeys(("variance", "degrees_of_freedom"), Undefined.TOO_FEW_PARTICIPANTS)
    elif of.squares and not in_range(spread):
        spread, reasons = None, dict.fromkeys(("variance", "degrees_of_freedom"), Undefined.OUT_OF_RANGE)
    else:
        reasons = {}
    freedom = None if spread is None else float(n - 1)
    return Estimate(key=key, value=value, variance=spread, degrees_of_freedom=freedom, reasons=reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioSums:
    """The sums of one arm: entry i of `trials` (below) and of `successes` (above) are its i-th participant's.

    Raises Invalid where the two differ in length, hold a number that is not finite, or trials are negative.
    """

    key: str
    trials: Sequence[float]
    successes: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.trials) != len(self.successes):
            fault = Fault(field="successes", message="must have one entry for each of trials")
            raise Invalid(f"{self.key}: {fault.field} {fault.message}", faults=[fault])
        _check_finite("trials", self.trials)
        _check_finite("successes", self.successes)
        if min(self.trials, default=0) < 0:
            fault = Fault(field="trials", message="must not be negative")
            raise Invalid(f"{self.key}: {fault.field} {fault.message}", faults=[fault])


def ratio(sums: RatioSums, *, variance: Variance = "jackknife") -> Estimate:
    """ΣY/ΣM with its error, in units of Y per unit of M; the very computation of `rate`.

    Whole numbers give the digits of `rate`, trials of 1 each those of `mean`. Participants with neither are
    not counted. Valid as `rate` is.
    """
    whole, _ = _whole([*sums.trials, *sums.successes])
    rows = zip(whole[: len(sums.trials)], whole[len(sums.trials) :], strict=True)
    return quotient(sums.key, [row for row in rows if any(row)], variance=variance)


def _whole(values: Sequence[float]) -> tuple[list[int], int]:
    """The values times one power of two, exactly, and that power."""
    parts = [float(value).as_integer_ratio() for value in values]
    scale = max((below for _, below in parts), default=1)
    return [above * (scale // below) for above, below in parts], scale


def _check_finite(name: str, values: Sequence[float]) -> None:
    faults = [
        Fault(field=f"{name}[{index}]", message=f"is {value}, must be a finite number")
        for index, value in enumerate(values)
        if not isfinite(value)
    ]
    if faults:
        raise Invalid("; ".join(f"{fault.field} {fault.message}" for fault in faults), faults=faults)


def winsorised(arms: Sequence[Sequence[N]], *, percentile: float) -> list[list[N]]:
    """Every arm's values with those above the percentile of all arms together set to it.

    For skewed values in arms of unequal size; the percentile is declared beforehand, or it is chosen by what
    it finds. What is compared then is the mean of the values so cut. Raises Invalid outside 50 … 100.
    """
    if not 50 <= percentile <= 100:
        message = f"is {percentile}, must be between 50 and 100"
        raise Invalid(f"percentile {message}", faults=[Fault(field="percentile", message=message)])
    everything = sorted(value for values in arms for value in values)
    if not everything:
        return [[] for _ in arms]
    # The smallest value with so many per cent at or below it: one that occurred, and no float between two.
    limit = everything[max(ceil(percentile / 100 * len(everything)), 1) - 1]
    return [[min(value, limit) for value in values] for values in arms]
