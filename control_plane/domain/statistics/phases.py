"""Several phases of one experiment as one difference, where participants may be in more than one of them.

Phases are weighed by what was fixed when they were drawn, never by estimated variances (a phase that happens
to vary little would count too much: 8 % false at nominal 5 %). A participant that stays is one witness: its
scores are summed over phases before anything is squared (as if it were several: 24.5 % false).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from control_plane.domain.statistics import blocked
from control_plane.domain.statistics.proportions import Estimate, Undefined
from shared.errors import Fault, Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """The participants of treatment and control in one phase; entry i of each list is one of them.

    Raises Invalid for lists of different lengths or a participant that is there twice.
    """

    participants: Sequence[str]
    treated: Sequence[bool]
    strata: Sequence[str]
    trials: Sequence[int]
    successes: Sequence[int]

    def __post_init__(self) -> None:
        columns = (self.treated, self.strata, self.trials, self.successes)
        if any(len(column) != len(self.participants) for column in columns):
            fault = Fault(field="participants", message="must have one entry in every list")
        elif len(set(self.participants)) < len(self.participants):
            fault = Fault(field="participants", message="must not be there twice")
        else:
            return
        raise Invalid(f"{fault.field} {fault.message}", faults=[fault])


def pooled(key: str, phases: Sequence[Phase]) -> Estimate:
    """Treatment minus control over all phases, in shares of 1, for `against_zero`.

    d = Σ W_p d_p/ΣW_p, W_p = n_t n_c/(n_t + n_c), d_p the mean difference of `blocked.scores`. With
    u_ip = ± √(n/(n-1)) W_p (e_ip - ē_kp)/(n_kp ΣW) and U_i = Σ_p u_ip, v = Σ U_i². Degrees of freedom: the
    participants there are less two per phase, or what the smallest phase alone has, whichever is more.
    Phases with fewer than two of an arm are left out; the scores have one mean per stratum, so d_p is in the
    units of the rate where strata are about equally divided.
    """
    usable = [phase for phase in phases if weight_of(phase)]
    if not usable:
        reasons = dict.fromkeys(("value", "variance", "degrees_of_freedom"), Undefined.TOO_FEW_PARTICIPANTS)
        return Estimate(key=key, value=None, variance=None, degrees_of_freedom=None, reasons=reasons)
    weights = [weight_of(phase) for phase in usable]
    whole, value = sum(weights), 0.0
    summed: dict[str, float] = defaultdict(float)
    for phase, weight in zip(usable, weights, strict=True):
        e = blocked.scores(phase.trials, phase.successes, phase.strata)
        treated = np.asarray(phase.treated, dtype=bool)
        for side, sign in ((treated, 1.0), (~treated, -1.0)):
            n = int(side.sum())
            value += sign * weight / whole * float(e[side].mean())
            away = sign * weight / whole * (e[side] - e[side].mean()) / n * np.sqrt(n / (n - 1))
            for index, own in zip(np.flatnonzero(side), away, strict=True):
                summed[phase.participants[int(index)]] += float(own)
    fewest = min(sum(_sizes(phase)) - 2 for phase in usable)
    return Estimate(
        key=key,
        value=value,
        variance=sum(own * own for own in summed.values()),
        degrees_of_freedom=float(max(len(summed) - 2 * len(usable), min(fewest, len(summed) - 2))),
    )


def weight_of(phase: Phase) -> float:
    """W = n_t n_c/(n_t + n_c); 0 for one that says nothing: fewer than two of an arm, or no data."""
    n_t, n_c = _sizes(phase)
    return n_t * n_c / (n_t + n_c) if min(n_t, n_c) > 1 and any(phase.trials) else 0.0


def _sizes(phase: Phase) -> tuple[int, int]:
    n = sum(1 for treated in phase.treated if treated)
    return n, len(phase.treated) - n
