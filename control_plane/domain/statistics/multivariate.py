"""Main effects of several factors that vary at once, each as the mean of what it does within the others' cells.

Comparing the levels' pooled means instead compares other cells too, as soon as cells differ in size: 81 % false.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import fsum

import numpy as np

from control_plane.domain.statistics.means import RatioSums, ratio
from control_plane.domain.statistics.proportions import Estimate, Undefined
from shared.errors import Fault, Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A participant: its level of every factor, in the factors' order, and its sums."""

    levels: tuple[str, ...]
    trials: float
    successes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MainEffect:
    """What `level` does beside the factor's first level; `additive`: some cells were too small to stand alone."""

    factor: str
    level: str
    baseline: str
    effect: Estimate
    additive: bool


def main_effects(
    members: Sequence[Member], factors: Sequence[tuple[str, Sequence[str]]]
) -> tuple[MainEffect, ...]:
    """Every level against its factor's first, for `against_zero` at alpha over their number (Bonferroni).

    With Q cells of the other factors: the mean of the Q within-cell differences, v = Σv/Q², degrees of freedom
    after Satterthwaite. Where a cell has fewer than two participants: least squares of (c - r̄ m)/m̄ + r̄ on the
    levels, n less the columns as degrees of freedom; valid only as far as effects add up. Raises Invalid for a
    level that is none of its factor's.
    """
    _check(members, factors)
    cells = _cells(members, factors)
    additive = any(own.variance is None for own in cells.values())
    found = []
    for place, (factor, levels) in enumerate(factors):
        for level in levels[1:]:
            if additive:
                effect = _regressed(members, factors, place, level)
            else:
                others = [(cell[:place], cell[place + 1 :]) for cell in cells if cell[place] == levels[0]]
                effect = _averaged(
                    level,
                    [(cells[(*a, level, *b)], cells[(*a, levels[0], *b)]) for a, b in others],
                )
            found.append(
                MainEffect(factor=factor, level=level, baseline=levels[0], effect=effect, additive=additive)
            )
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """By how much two levels together do more than the sum of what each does beside its factor's first."""

    factors: tuple[str, str]
    levels: tuple[str, str]
    effect: Estimate


def interactions(
    members: Sequence[Member], factors: Sequence[tuple[str, Sequence[str]]]
) -> tuple[Interaction, ...]:
    """(y_ab - y_a0) - (y_0b - y_00) of every two levels, averaged over the cells of the further factors, v = Σv/Q².

    Empty where some cell has fewer than two participants. Raises Invalid as `main_effects` does.
    """
    _check(members, factors)
    cells = _cells(members, factors)
    if any(own.variance is None for own in cells.values()):
        return ()
    found = []
    for (p, (first, mine)), (q, (second, theirs)) in combinations(enumerate(factors), 2):
        for a, b in product(mine[1:], theirs[1:]):
            corners: list[tuple[Estimate, Estimate]] = []
            for cell in (cell for cell in cells if (cell[p], cell[q]) == (a, b)):
                own, left, right, neither = (
                    cells[(*cell[:p], one, *cell[p + 1 : q], other, *cell[q + 1 :])]
                    for one, other in ((a, b), (a, theirs[0]), (mine[0], b), (mine[0], theirs[0]))
                )
                corners += [(own, left), (neither, right)]
            # Two pairs a cell: their mean is half of the sum that is wanted.
            half = _averaged(b, corners)
            effect = replace(half, value=2 * (half.value or 0.0), variance=4 * (half.variance or 0.0))
            found.append(Interaction(factors=(first, second), levels=(a, b), effect=effect))
    return tuple(found)


def _check(members: Sequence[Member], factors: Sequence[tuple[str, Sequence[str]]]) -> None:
    known = [set(levels) for _, levels in factors]
    for index, one in enumerate(members):
        if len(one.levels) != len(known) or any(
            name not in of for name, of in zip(one.levels, known, strict=True)
        ):
            fault = Fault(field=f"members[{index}].levels", message="must have one level of every factor")
            raise Invalid(f"{fault.field} {fault.message}", faults=[fault])


def _cells(
    members: Sequence[Member], factors: Sequence[tuple[str, Sequence[str]]]
) -> dict[tuple[str, ...], Estimate]:
    """Each cell's own value, by its levels."""
    cells = {}
    for cell in product(*(levels for _, levels in factors)):
        rows = [one for one in members if one.levels == cell]
        sums = RatioSums(
            key="/".join(cell), trials=[r.trials for r in rows], successes=[r.successes for r in rows]
        )
        cells[cell] = ratio(sums)
    return cells


def _averaged(key: str, pairs: Sequence[tuple[Estimate, Estimate]]) -> Estimate:
    known = [
        (one.value, one.variance, one.degrees_of_freedom, sign)
        for pair in pairs
        for one, sign in zip(pair, (1, -1), strict=True)
        if one.value is not None and one.variance is not None and one.degrees_of_freedom is not None
    ]
    whole = fsum(v for _, v, _, _ in known)
    return Estimate(
        key=key,
        value=fsum(sign * value for value, _, _, sign in known) / len(pairs),
        variance=whole / len(pairs) ** 2,
        degrees_of_freedom=1 / fsum((v / whole) ** 2 / nu for _, v, nu, _ in known if v) if whole else 0.0,
    )


def _regressed(
    members: Sequence[Member], factors: Sequence[tuple[str, Sequence[str]]], place: int, level: str
) -> Estimate:
    rows = [one for one in members if one.trials]
    columns = [(at, name) for at, (_, levels) in enumerate(factors) for name in levels[1:]]
    freedom = len(rows) - len(columns) - 1
    x = np.array([[1.0, *(float(one.levels[at] == name) for at, name in columns)] for one in rows])
    if freedom < 1 or np.linalg.matrix_rank(x) < x.shape[1]:
        reasons = dict.fromkeys(("value", "variance", "degrees_of_freedom"), Undefined.TOO_FEW_PARTICIPANTS)
        return Estimate(key=level, value=None, variance=None, degrees_of_freedom=None, reasons=reasons)
    m, c = np.array([one.trials for one in rows]), np.array([one.successes for one in rows])
    y = (c - c.sum() / m.sum() * m) / m.mean()
    inverse = np.linalg.inv(x.T @ x)
    fitted = inverse @ (x.T @ y)
    at = 1 + columns.index((place, level))
    return Estimate(
        key=level,
        value=float(fitted[at]),
        variance=float(((y - x @ fitted) ** 2).sum()) / freedom * float(inverse[at, at]),
        degrees_of_freedom=float(freedom),
    )
