"""The relative difference, with an interval that excludes 0 exactly when the difference's does."""

from math import sqrt

from control_plane.domain.statistics.proportions import Interval, Undefined


def lift(treatment: float, control: float) -> float | Undefined:
    """(r_t - r_c)/|r_c|: the absolute value, or the sign of a negative baseline would turn the answer round."""
    if control == 0:
        return Undefined.NO_BASELINE
    return (treatment - control) / abs(control)


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
    q2 = quantile**2
    a = control**2 - q2 * control_variance
    if a <= 0:
        return Undefined.NO_BASELINE
    b = treatment * control - q2 * covariance
    c = treatment**2 - q2 * treatment_variance
    root = sqrt(max(b * b - a * c, 0.0))
    # The root without cancellation first, the other from the product of the two, c/a.
    far = (b + root if b >= 0 else b - root) / a
    near = c / a / far if far else 0.0
    low, high = sorted((far - 1, near - 1))
    return Interval(low=low, high=high) if control > 0 else Interval(low=-high, high=-low)
