"""The relative difference, with an interval that excludes 0 exactly when the difference's does."""

from math import isfinite, sqrt

from control_plane.domain.statistics.proportions import Interval, Undefined


def lift(treatment: float, control: float) -> float | Undefined:
    """(r_t - r_c)/|r_c|: the absolute value, or the sign of a negative baseline would turn the answer round."""
    if control == 0:
        return Undefined.NO_BASELINE
    found = (treatment - control) / abs(control)
    return found if isfinite(found) else Undefined.OUT_OF_RANGE


def fieller(
    treatment: float,
    control: float,
    *,
    treatment_variance: float,
    control_variance: float,
    covariance: float = 0.0,
    quantile: float,
) -> Interval | Undefined:
    """All R - 1 with (r_t - R r_c)² ≤ q² (v_t - 2 R v_tc + R² v_c) (Fieller 1954), per |r_c|.

    `quantile` is the very one the decision uses (for the path test its critical value), so the interval
    excludes 0 exactly when the decision does. `covariance` is 0 unless participants are in both arms.
    Undefined where the control cannot be told from 0: the set is then not an interval.
    """
    if not control:
        return Undefined.NO_BASELINE
    # In units of the control, and solved for R - 1: neither large units nor tiny differences lose digits.
    q2, d = quantile**2, (treatment - control) / control
    v_t, v_c, v_tc = (one / control / control for one in (treatment_variance, control_variance, covariance))
    a = 1 - q2 * v_c
    if a <= 0:
        return Undefined.NO_BASELINE
    b = d + q2 * (v_c - v_tc)
    c = d * d - q2 * (v_t + v_c - 2 * v_tc)
    r = 1 + d
    inside = q2 * (v_t - 2 * r * v_tc + r * r * v_c - q2 * (v_t * v_c - v_tc * v_tc))
    root = sqrt(max(inside, 0.0))
    # The root without cancellation first, the other from the product of the two, c/a.
    far = (b + root if b >= 0 else b - root) / a
    near = c / a / far if far else 0.0
    low, high = sorted((far, near))
    if not (isfinite(low) and isfinite(high)):
        return Undefined.OUT_OF_RANGE
    return Interval(low=low, high=high) if control > 0 else Interval(low=-high, high=-low)
