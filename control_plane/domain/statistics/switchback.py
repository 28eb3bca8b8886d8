"""What a switchback says: every participant had both variants, so it is compared with itself.

A cycle holds every variant once, in an order each participant draws anew for each cycle; what is exchangeable
under the null is therefore the sign of one participant's difference within one cycle, and the test flips
exactly those. The module hides the calendar: what a weekday does to everybody is subtracted first.

Not valid where a variant's effect outlasts its block: carry-over makes the two alike, so effects come out too
small, and `by_previous` shows it. Blocks' first moments belong to the washout and must not be in the sums.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from control_plane.domain.statistics import path
from control_plane.domain.statistics.proportions import Interval, check_alpha
from shared.errors import Fault, Invalid

Floats = NDArray[np.float64]

_ROWS_AT_ONCE = 500
_FEWEST_FOR_CALENDAR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What one participant did in one block of time, washout left out; zeros where it did nothing."""

    participant: str
    cycle: int
    time_block: int
    arm: str
    trials: int
    successes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What was fixed before the first look; cycles count from 1, `horizon` in days is when alpha is spent.

    `together`: the whole fleet switched in one drawn order per cycle, so a cycle is one witness.
    """

    treatment: str
    control: str
    participants: Sequence[str]
    cycles: int
    together: bool
    seed: bytes
    alpha: float
    horizon: float

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not self.horizon > 0:
            raise Invalid(faults=[Fault(field="horizon", message="must be above 0 days")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The blocks that were over `day` days after the start, of all arms."""

    day: float
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnesses:
    """Differences that would as likely have had the other sign, and how much of an effect of 1 each shows."""

    names: Sequence[str]
    differences: Floats
    exposures: Floats


def looks(design: Design, snapshots: Sequence[Snapshot]) -> tuple[path.Look, ...]:
    """Every look, in order, by the spending and the critical values of `path.looks`.

    S = |mean D|/(s_D/√n) of the differences of `witnesses`; re-draws flip their signs, all ways if there are at
    most a hundred thousand, else 9,999 seeded by SHA-256(seed ‖ witness ‖ "redraw"), so the same design gives
    the same rows at every look. The estimate, in shares of 1, is Σ D over Σ of what an effect of 1 leaves of
    itself after the subtraction. Raises Invalid for looks that are out of order.
    """
    before = 0.0
    for index, shot in enumerate(snapshots):
        if shot.day <= before:
            fault = Fault(field=f"looks[{index}].day", message="must be after the look before")
            raise Invalid(f"{fault.field} {fault.message}", faults=[fault])
        before = shot.day
    found = [witnesses(design, shot.blocks) for shot in snapshots]
    values = _statistics(design, found)
    steps = path.course(values, [shot.day for shot in snapshots], design.alpha, design.horizon)
    decided = False
    answer = []
    for shot, seen, own, step in zip(snapshots, found, values, steps, strict=True):
        decided = decided or step.crossed
        exposed = float(seen.exposures.sum())
        estimate = float(seen.differences.sum()) / exposed if exposed else 0.0
        interval = None
        if step.critical is not None and 0 < own[0] < np.inf and np.isfinite(step.critical):
            reach = path.reach(step.critical) * abs(estimate) / float(own[0])
            interval = Interval(low=estimate - reach, high=estimate + reach)
        answer.append(
            path.Look(
                day=shot.day,
                statistic=float(own[0]),
                critical=step.critical,
                alpha_spent=step.used / len(own),
                decided=decided,
                crossed=step.crossed,
                estimate=estimate,
                interval=interval,
                p_value=float((own >= own[0] * (1 - path.TIE)).mean()),
            )
        )
    return tuple(answer)


def witnesses(design: Design, blocks: Sequence[Block]) -> Witnesses:
    """D of every (participant, cycle) whose two blocks are over, or their sum per cycle for `together`.

    D = e_treatment - e_control with e = (c - r̄ m)/m̄, r̄ and m̄ pooled over both arms. With three participants
    or more in a block, the mean of all there are (of any arm) is subtracted from each e of that block, unless
    the whole fleet switches together: it would take the effect away.
    """
    pair = [one for one in blocks if one.arm in (design.treatment, design.control)]
    total = sum(one.trials for one in pair)
    if not total:
        return Witnesses(names=[], differences=np.empty(0), exposures=np.empty(0))
    pooled, each = sum(one.successes for one in pair) / total, total / len(pair)
    scored = np.array([(one.successes - pooled * one.trials) / each for one in blocks])
    treated = np.array([one.trials / each if one.arm == design.treatment else 0.0 for one in blocks])
    if not design.together:
        _, index, sizes = np.unique(
            [one.time_block for one in blocks], return_inverse=True, return_counts=True
        )
        for column in (scored, treated):
            means = np.bincount(index, weights=column) / sizes
            column -= np.where(sizes[index] >= _FEWEST_FOR_CALENDAR, means[index], 0.0)
    cells: dict[str, dict[tuple[str, str], int]] = defaultdict(dict)
    for place, one in enumerate(blocks):
        cells[_name(design, one.participant, one.cycle)][one.participant, one.arm] = place
    names, differences, exposures = [], [], []
    for name in sorted(cells):
        places = [
            (cells[name][who, design.treatment], cells[name][who, design.control])
            for who in sorted({who for who, _ in cells[name]})
            if {(who, design.treatment), (who, design.control)} <= cells[name].keys()
        ]
        if places:
            names.append(name)
            differences.append(sum(scored[t] - scored[c] for t, c in places))
            exposures.append(sum(treated[t] - treated[c] for t, c in places))
    return Witnesses(names=names, differences=np.array(differences), exposures=np.array(exposures))


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """Pooled rates in blocks that followed a block of one arm, in shares of 1; None without trials."""

    treatment: float | None
    control: float | None
    blocks: int


def by_previous(design: Design, blocks: Sequence[Block]) -> Mapping[str, After]:
    """The two arms' rates by the arm the participant had in the block before: alike without carry-over."""
    at = {(one.participant, one.time_block): one.arm for one in blocks}
    sums: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0, 0]))
    for one in blocks:
        previous = at.get((one.participant, one.time_block - 1))
        if previous is not None and one.arm in (design.treatment, design.control):
            cell = sums[previous][one.arm]
            for place, amount in enumerate((1, one.trials, one.successes)):
                cell[place] += amount
    found = {}
    for previous, arms in sorted(sums.items()):
        (n_t, m_t, c_t), (n_c, m_c, c_c) = arms[design.treatment], arms[design.control]
        found[previous] = After(
            treatment=c_t / m_t if m_t else None, control=c_c / m_c if m_c else None, blocks=n_t + n_c
        )
    return found


def _name(design: Design, participant: str, cycle: int) -> str:
    return f"{cycle}" if design.together else f"{cycle}/{participant}"


def _statistics(design: Design, found: Sequence[Witnesses]) -> list[Floats]:
    """The statistic of every row (the real signs first) at every look."""
    planned = [
        _name(design, who, cycle)
        for cycle, who in product(
            range(1, design.cycles + 1), [""] if design.together else sorted(design.participants)
        )
    ]
    position = {name: index for index, name in enumerate(planned)}
    chunks: list[list[Floats]] = [[] for _ in found]
    for signs in _signs(design, planned):
        for chunk, seen in zip(chunks, found, strict=True):
            columns = [position[name] for name in seen.names]
            chunk.append(_studentised(signs[:, columns], seen.differences))
    return [np.concatenate(chunk) for chunk in chunks]


def _signs(design: Design, planned: Sequence[str]) -> Iterator[Floats]:
    """Rows of ±1 for every planned witness, some at a time; the first row is all +1."""
    if 2 ** min(len(planned), 60) <= path.EXHAUSTIVE:
        rows = np.arange(2 ** len(planned))[:, None] >> np.arange(len(planned))
        yield 1.0 - 2.0 * (rows & 1).astype(np.float64)
        return
    bits = np.empty((len(planned), path.REDRAWS // 8 + 1), dtype=np.uint8)
    for index, name in enumerate(planned):
        key = hashlib.sha256(design.seed + name.encode() + b"redraw").digest()
        words = np.random.PCG64(int.from_bytes(key, "big")).random_raw(path.REDRAWS // 64 + 1)
        bits[index] = words.astype("<u8").view(np.uint8)[: bits.shape[1]]
    yield np.ones((1, len(planned)))
    for start in range(0, path.REDRAWS, _ROWS_AT_ONCE - _ROWS_AT_ONCE % 8):
        stop = min(start + _ROWS_AT_ONCE - _ROWS_AT_ONCE % 8, path.REDRAWS)
        some = np.unpackbits(bits[:, start // 8 : stop // 8 + 1], axis=1)[:, : stop - start]
        yield 1.0 - 2.0 * some.T.astype(np.float64)


def _studentised(signs: Floats, differences: Floats) -> Floats:
    n = len(differences)
    scale = float(np.abs(differences).max()) if n else 0.0
    if n < 2 or not scale:
        return np.zeros(len(signs))
    d = differences / scale
    sums = signs @ d
    error = np.sqrt(np.maximum(float(d @ d) - sums**2 / n, 0.0) / (n - 1) * n)
    still = error <= 1e-9
    values: Floats = np.divide(np.abs(sums), error, out=np.zeros_like(sums), where=~still)
    values[still & (np.abs(sums) > 1e-9)] = np.inf
    return values
