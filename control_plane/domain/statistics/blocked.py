"""Differences with the strata taken out: what balanced assignment needs, or its balance is thrown away.

Three strata of eight at 20, 40 and 60 per cent find +8 points in 1.5 % of experiments without this and in
54 % with it. Two things are here: the studentised score that the randomisation test permutes, for strata of
any size, and the estimate that is reported where every stratum holds two of each arm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

from control_plane.domain.statistics.proportions import ArmSums, Undefined, Variance
from shared.errors import Fault, Invalid

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StratifiedArm:
    """An arm's sums with the stratum of each participant, in the same order."""

    sums: ArmSums
    strata: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.strata) != len(self.sums.trials):
            fault = Fault(field="strata", message="must have one entry for each participant")
            raise Invalid(f"{self.sums.key}: {fault.field} {fault.message}", faults=[fault])


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """Treatment minus control, strata taken out; rates are the weighted ones the estimate is made of."""

    estimate: float
    variance: float
    treatment_variance: float
    degrees_of_freedom: float
    treatment_rate: float
    control_rate: float
    strata: int
    """How many were told apart, after those with fewer than two of an arm were put together."""


def scores(
    trials: Sequence[float] | Floats, successes: Sequence[float] | Floats, strata: Sequence[str]
) -> Floats:
    """Each participant's e = (c - r̄ m)/m̄ minus the mean of its stratum; r̄ and m̄ pooled over everybody given.

    Strata of one participant form one stratum together. Participants without data score as their stratum's
    mean says, for they were assigned too. All zero where nobody has data.
    """
    m, c = np.asarray(trials, dtype=np.float64), np.asarray(successes, dtype=np.float64)
    total = m.sum()
    if not total:
        return np.zeros(len(m))
    e = (c - c.sum() / total * m) / (total / len(m))
    names, index = np.unique(np.asarray(strata, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(index, minlength=len(names))
    index = np.where(sizes[index] == 1, len(names), index)
    sums = np.bincount(index, weights=e, minlength=len(names) + 1)
    counts = np.bincount(index, minlength=len(names) + 1)
    centred: Floats = e - sums[index] / counts[index]
    return centred


def statistic(treated: Floats, untreated: Floats) -> float:
    """|mean difference| of two groups of scores over its Welch error; 0 where both are the same constant.

    Infinite where the groups differ and nothing varies. Studentised, because the raw difference rejects
    18 % of true nulls where one arm spreads twice as much as the other.
    """
    if len(treated) < 2 or len(untreated) < 2:
        return 0.0
    apart = abs(float(treated.mean() - untreated.mean()))
    error = sqrt(float(treated.var(ddof=1)) / len(treated) + float(untreated.var(ddof=1)) / len(untreated))
    scale = max(float(np.abs(treated).max()), float(np.abs(untreated).max()))
    if error <= 1e-14 * scale:
        return 0.0 if apart <= 1e-14 * scale else float("inf")
    return apart / error


def difference(
    treatment: StratifiedArm, control: StratifiedArm, *, variance: Variance = "delta"
) -> Blocked | Undefined:
    """The estimate that weighs every stratum by its size, with its variance.

    With N_s participants in a stratum and n_ks of them in arm k, each weighs w = N_s/n_ks; r_k = Σwc/Σwm.
    delta: u = w(c - r_k m)/Σwm, v_k = Σ_s n/(n-1) Σ(u - ū_s)² (post-stratification of a ratio: Särndal,
    Swensson, Wretman 1992), which is what is on record of looks.
    jackknife: v_k = Σ_s (n-1)/n Σ(r_k₍₋ᵢ₎ - r_k)², where the others of its stratum weigh N_s/(n-1) (Shao and Tu
    1995, 6.2). Of 8 + 8 participants in two strata with lognormal traffic (sigma 1.5) it calls 2 % of the
    differences real that are none, of 30 + 30 5 %, and delta 17 and 14 %. Both agree where all m are equal.
    Degrees of freedom after Satterthwaite over the cells; with the jackknife over the arms, each of which has its
    effective number of participants (Kish 1965) less the strata, one at the least. Strata with fewer than two of
    an arm are put together, into the smallest of the others if need be.
    """
    cells = _cells(treatment, control)
    if isinstance(cells, Undefined):
        return cells
    sizes = {name: sum(len(arm) for arm in pair) for name, pair in cells.items()}
    rates: list[float] = []
    variances: list[float] = []
    parts: list[tuple[float, float]] = []
    for arm in (0, 1):
        weighed = [(sizes[name] / len(pair[arm]), m, c) for name, pair in cells.items() for m, c in pair[arm]]
        total = fsum(w * m for w, m, _ in weighed)
        if not total:
            return Undefined.NO_IMPRESSIONS
        share = fsum(w * c for w, _, c in weighed) / total
        spread = 0.0
        for name, pair in cells.items():
            own = _spread(pair[arm], sizes[name], total=total, share=share, variance=variance)
            if not isfinite(own):  # without one of them nobody has data
                return Undefined.TOO_FEW_PARTICIPANTS
            spread += own
            if variance == "delta":
                parts.append((own, len(pair[arm]) - 1.0))
        if variance == "jackknife":
            effective = total**2 / fsum((w * m) ** 2 for w, m, _ in weighed)
            parts.append((spread, max(1.0, effective - len(cells))))
        rates.append(share)
        variances.append(spread)
    whole = sum(variances)
    if not whole:
        return Undefined.NO_VARIATION
    return Blocked(
        estimate=rates[0] - rates[1],
        variance=whole,
        treatment_variance=variances[0],
        degrees_of_freedom=1 / fsum((own / whole) ** 2 / freedom for own, freedom in parts),
        treatment_rate=rates[0],
        control_rate=rates[1],
        strata=len(cells),
    )


def _spread(
    rows: Sequence[tuple[int, int]], size: int, *, total: float, share: float, variance: Variance
) -> float:
    """What one arm's (m, c) in a stratum of `size` add to the variance of its rate; not finite without an answer."""
    n = len(rows)
    m, c = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    if variance == "delta":
        return n * float((size / n * (c - share * m) / total).var(ddof=1))
    # Σw(c - r m) is 0 over all of the arm, so that what is left without one is what its stratum changes by.
    off, grown = c - share * m, size / (n - 1)
    left = total - size / n * m.sum() + grown * (m.sum() - m)
    away = grown * (off.sum() - off) - size / n * off.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return (n - 1) / n * float(np.square(away / np.where(left > 1e-12 * total, left, 0.0)).sum())


Cell = tuple[list[tuple[int, int]], list[tuple[int, int]]]


def _cells(treatment: StratifiedArm, control: StratifiedArm) -> dict[str, Cell] | Undefined:
    """(treatment's, control's) participants by stratum, each with at least two of both."""
    cells: dict[str, Cell] = {}
    for place, arm in enumerate((treatment, control)):
        for m, c, name in zip(arm.sums.trials, arm.sums.successes, arm.strata, strict=True):
            cells.setdefault(name, ([], []))[place].append((int(m), int(c)))
    if any(sum(len(pair[place]) for pair in cells.values()) < 2 for place in (0, 1)):
        return Undefined.TOO_FEW_PARTICIPANTS
    while True:
        short = sorted(name for name, pair in cells.items() if min(map(len, pair)) < 2)
        if not short:
            return cells
        others = sorted(set(cells) - set(short), key=lambda name: (sum(map(len, cells[name])), name))
        merged = short if len(short) > 1 else [*short, *others[:1]]
        pooled: Cell = ([], [])
        for name in merged:
            pair = cells.pop(name)
            pooled[0].extend(pair[0])
            pooled[1].extend(pair[1])
        cells["+".join(merged)] = pooled
