"""Less spread by what participants did before the experiment (CUPED: Deng, Xu, Kohavi, Walker 2013).

What somebody did before cannot be the variant's doing, so taking out what it predicts changes no expectation,
only the error. Off unless asked for: it needs history. A period before that already had the variant in it
would take away the effect.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from control_plane.domain.statistics import blocked
from control_plane.domain.statistics.proportions import Estimate, Undefined
from shared.errors import Fault, Invalid

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One arm, an entry per participant: its sums now and before; trials are 1 each for a mean.

    `trials_before` of 0 says that there is no history.
    """

    key: str
    strata: Sequence[str]
    trials: Sequence[float]
    successes: Sequence[float]
    trials_before: Sequence[float]
    successes_before: Sequence[float]

    def __post_init__(self) -> None:
        columns = (self.strata, self.successes, self.trials_before, self.successes_before)
        if any(len(column) != len(self.trials) for column in columns):
            fault = Fault(field="trials", message="must have one entry in every list")
            raise Invalid(f"{self.key}: {fault.field} {fault.message}", faults=[fault])


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted:
    """The arms' adjusted estimates, for `compared`; participants without history stand for their stratum."""

    arms: tuple[Estimate, ...]
    theta: float
    without_history: int


def adjusted(arms: Sequence[History]) -> Adjusted | Undefined:
    """r_k - θ(x_k - x̄) with x_k the arm's ratio before, x̄ that of all arms, θ pooled within the arms.

    With u = (y - r_k m)/M_k and w likewise of before: θ = Σ_k n² cov(u, w)/Σ_k n² var(w),
    v_k = n/(n-1) Σ(u - θw)² (F + 1)/(F - 1), F = Σ(n_k - 1), which pays for having estimated θ (6.2 % false at
    15 + 15 without), n - 1 degrees of freedom. For means this is the textbook's formula otherwise. A missing
    history is its stratum's mean, of all arms together. Undefined without a history that varies, or with an arm
    of fewer than two participants.
    """
    filled = [_filled(arm, arms) for arm in arms]
    freedom = sum(len(arm.trials) - 1 for arm in arms)
    if freedom < 2 or any(len(arm.trials) < 2 or not sum(arm.trials) for arm in arms):
        return Undefined.TOO_FEW_PARTICIPANTS
    total = sum(float(m.sum()) for m, _ in filled)
    if not total or any(not float(m.sum()) for m, _ in filled):
        return Undefined.NO_VARIATION
    overall = sum(float(x.sum()) for _, x in filled) / total
    parts = []
    for arm, (m_before, x) in zip(arms, filled, strict=True):
        m, y = np.asarray(arm.trials, dtype=np.float64), np.asarray(arm.successes, dtype=np.float64)
        r, before = float(y.sum() / m.sum()), float(x.sum() / m_before.sum())
        parts.append((r, before, (y - r * m) / m.sum(), (x - before * m_before) / m_before.sum()))
    below = sum(len(w) ** 2 * float(w @ w) / (len(w) - 1) for _, _, _, w in parts)
    if not below:
        return Undefined.NO_VARIATION
    theta = sum(len(w) ** 2 * float(u @ w) / (len(w) - 1) for _, _, u, w in parts) / below
    paid = (freedom + 1) / (freedom - 1)
    return Adjusted(
        arms=tuple(
            Estimate(
                key=arm.key,
                value=r - theta * (before - overall),
                variance=paid * len(u) / (len(u) - 1) * float(((u - theta * w) ** 2).sum()),
                degrees_of_freedom=float(len(u) - 1),
            )
            for arm, (r, before, u, w) in zip(arms, parts, strict=True)
        ),
        theta=theta,
        without_history=sum(sum(1 for m in arm.trials_before if not m) for arm in arms),
    )


def residuals(scores: Floats, strata: Sequence[str], before: Sequence[tuple[float, float]]) -> Floats:
    """What `blocked.scores` are beyond what those of before predict, for a test that permutes who was treated.

    e - θx with x the scores of (trials, successes) before and θ = Σex/Σx², over both arms without regard to them, so
    that it is the same whoever was treated and the test stays exact. Who has no history has x = 0.
    """
    one = History(
        key="",
        strata=strata,
        trials=[1.0] * len(scores),
        successes=[0.0] * len(scores),
        trials_before=[m for m, _ in before],
        successes_before=[x for _, x in before],
    )
    covariate = blocked.scores(*_filled(one, [one]), strata)
    below = float(covariate @ covariate)
    return scores - float(scores @ covariate) / below * covariate if below else scores


def _filled(arm: History, arms: Sequence[History]) -> tuple[Floats, Floats]:
    """(trials, successes) before, those without history as the mean of their stratum, else of everybody."""
    sums: dict[str | None, list[tuple[float, float]]] = defaultdict(list)
    for one in arms:
        for name, m, x in zip(one.strata, one.trials_before, one.successes_before, strict=True):
            if m:
                sums[name].append((m, x))
                sums[None].append((m, x))
    means = {name: np.mean(rows, axis=0) for name, rows in sums.items()}
    nothing = np.zeros(2)
    rows = [
        (m, x) if m else tuple(means.get(name, means.get(None, nothing)))
        for name, m, x in zip(arm.strata, arm.trials_before, arm.successes_before, strict=True)
    ]
    columns = np.asarray(rows, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]
