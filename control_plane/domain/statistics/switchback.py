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
from dataclasses import dataclass, replace
from itertools import product
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from control_plane.domain.statistics import path
from control_plane.domain.statistics.proportions import Interval, Undefined, check_alpha
from shared.errors import Fault, Invalid

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

_DRAWS_AT_ONCE = 64
"""Draws of signs that are taken together through all looks, a multiple of 8; few enough to stay near the processor."""
FEWEST_FOR_CALENDAR = 3
"""Participants in a block from which on its mean is subtracted."""


class Block(NamedTuple):
    """What one participant did in one block of time, washout left out; zeros where it did nothing.

    A tuple, because a long experiment has a hundred thousand of them at every look.
    """

    participant: str
    cycle: int
    time_block: int
    arm: str
    trials: int
    successes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Whose turn with an arm it is, in which cycle and block of time (from 1); `over` so many days after the start."""

    participant: str
    cycle: int
    time_block: int
    over: float

    def block(self, arm: str, *, trials: int, successes: int) -> Block:
        """With what was done in it."""
        return Block(
            participant=self.participant,
            cycle=self.cycle,
            time_block=self.time_block,
            arm=arm,
            trials=trials,
            successes=successes,
        )


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
    """Differences that would as likely have had the other sign, and how much of an effect of 1 each shows.

    `trials` and `successes` are what was done in the pairs of blocks compared, (treatment, control) of each witness;
    `shrunk` is how much of its variance the subtraction of means has left.
    """

    names: Sequence[str]
    differences: Floats
    exposures: Floats
    trials: Floats
    successes: Floats
    shrunk: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The effect and its error, in the metric's unit; `error` is None with a single witness.

    `treatment` and `control` are rates of the very same participants, so they have a `covariance`; with it the
    variance of their difference is the error's square.
    """

    difference: float
    error: float | None
    witnesses: int
    treatment: path.Side
    control: path.Side
    covariance: float

    def at(self, error: float) -> "Estimate":
        """The same with another error."""
        variance = self.treatment.variance - (self.error or 0.0) ** 2 + error**2
        return replace(self, error=error, treatment=replace(self.treatment, variance=variance))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one look said; `over_looks` is the p of all looks together, of the last one only.

    `undefined` is why there is no estimate, or (TOO_FEW_CYCLES) one without an error.
    """

    look: path.Look
    over_looks: float | None
    undefined: Undefined | None = None


def looks(design: Design, snapshots: Sequence[Snapshot]) -> tuple[Seen, ...]:
    """Every look, in order, by the spending and the critical values of `path.looks`.

    S = |mean D|/(s_D/√n) of the differences of `witnesses`; re-draws flip their signs, all ways if there are at
    most a hundred thousand, else 9,999 seeded by SHA-256(seed ‖ witness ‖ "redraw"), so the same design gives
    the same rows at every look. The interval is of `estimate`, by the error that S implies: it excludes 0 exactly where
    the look crosses. Raises
    Invalid for looks that are out of order.
    """
    before = 0.0
    for index, shot in enumerate(snapshots):
        if shot.day <= before:
            fault = Fault(field=f"looks[{index}].day", message="must be after the look before")
            raise Invalid(f"{fault.field} {fault.message}", faults=[fault])
        before = shot.day
    found = [witnesses(design, shot.blocks) for shot in snapshots]
    values = _statistics(design, found)
    days = [shot.day for shot in snapshots]
    steps = path.course(values, days, design.alpha, design.horizon)
    decided = False
    answer = []
    for at, (seen, own, step) in enumerate(zip(found, values, steps, strict=True)):
        told, statistic = estimate(seen), float(own[0])
        if isinstance(told, Estimate) and told.error is not None and statistic:
            told = told.at(abs(told.difference) / statistic)
        # Where nothing is to be estimated the statistic is of noise; not to decide then errs on the safe side.
        crossed = step.crossed and isinstance(told, Estimate)
        decided = decided or crossed
        last = at == len(found) - 1
        look = path.Look(
            day=days[at],
            statistic=statistic,
            critical=step.critical,
            alpha_spent=step.used / len(own),
            decided=decided,
            crossed=crossed,
            estimate=0.0,
            interval=None,
            p_value=float((own >= own[0] * (1 - path.TIE)).mean()),
        )
        answer.append(
            Seen(
                look=_with(look, told) if isinstance(told, Estimate) else look,
                over_looks=path.over_looks(values, days, design.alpha, design.horizon) if last else None,
                undefined=told
                if isinstance(told, Undefined)
                else Undefined.TOO_FEW_CYCLES
                if told.error is None
                else None,
            )
        )
    return tuple(answer)


def _with(look: path.Look, told: Estimate) -> path.Look:
    """The look with its estimate; the interval reaches as many errors as the critical value."""
    interval = None
    if told.error is not None and look.critical is not None and np.isfinite(look.critical):
        half = path.reach(look.critical) * told.error
        interval = Interval(low=told.difference - half, high=told.difference + half)
    return replace(
        look,
        estimate=told.difference,
        interval=interval,
        treatment=told.treatment,
        control=told.control,
        covariance=told.covariance,
    )


def estimate(seen: Witnesses) -> Estimate | Undefined:
    """d = Σ D / Σ X, X being what an effect of 1 leaves of itself after the subtraction.

    Its variance is n/(n-1) Σ ((D - d X)/√shrunk)² / (Σ X)², that of a ratio (Cochran 1977). The control's rate is
    that of the same pairs of blocks; the treatment's is that plus the effect. Undefined before any cycle is over,
    where an arm has no trials, and where everybody always had the same arm at the same time.
    """
    n = len(seen.names)
    if not n:
        return Undefined.NO_CYCLE_YET
    if not seen.trials.sum(axis=0).all():
        return Undefined.NO_IMPRESSIONS
    exposed = float(seen.exposures.sum())
    if exposed <= 1e-9 * n:
        return Undefined.NO_CONTRAST
    effect = float(seen.differences.sum()) / exposed
    trials, successes = seen.trials[:, 1], seen.successes[:, 1]
    control = float(successes.sum() / trials.sum())
    error, spread, covariance = None, 0.0, 0.0
    if n > 1:
        apart = (seen.differences - effect * seen.exposures) / exposed / np.sqrt(seen.shrunk)
        own = (successes - control * trials) / trials.sum()
        own -= own.mean()
        scale = n / (n - 1)
        error = sqrt(float(apart @ apart) * scale)
        spread, covariance = float(own @ own) * scale, float(own @ apart) * scale
    return Estimate(
        difference=effect,
        error=error,
        witnesses=n,
        treatment=path.Side(rate=control + effect, variance=spread + 2 * covariance + (error or 0.0) ** 2),
        control=path.Side(rate=control, variance=spread),
        covariance=spread + covariance,
    )


def witnesses(design: Design, blocks: Sequence[Block]) -> Witnesses:
    """D of every (participant, cycle) whose two blocks are over, or their sum per cycle for `together`.

    D = e_treatment - e_control with e = (c - r̄ m)/m̄, r̄ and m̄ pooled over both arms. With three participants
    or more in a block, the mean of all there are (of any arm) is subtracted from each e of that block, unless
    the whole fleet switches together: it would take the effect away.
    """
    pair = [one for one in blocks if one.arm in (design.treatment, design.control)]
    total = sum(one.trials for one in pair)
    pooled = sum(one.successes for one in pair) / total if total else 0.0
    each = total / len(pair) if total else 1.0
    left = np.ones(len(blocks))
    scored = np.array([(one.successes - pooled * one.trials) / each for one in blocks])
    treated = np.array([one.trials / each if one.arm == design.treatment else 0.0 for one in blocks])
    if not design.together:
        _, index, sizes = np.unique(
            [one.time_block for one in blocks], return_inverse=True, return_counts=True
        )
        for column in (scored, treated):
            means = np.bincount(index, weights=column) / sizes
            column -= np.where(sizes[index] >= FEWEST_FOR_CALENDAR, means[index], 0.0)
        left = np.where(sizes >= FEWEST_FOR_CALENDAR, 1 - 1 / sizes, 1.0)[index]
    names, first, second, index = _pairs(design, blocks)
    size = len(names)

    def each_name(of: Floats) -> Floats:
        return np.asarray(np.bincount(index, weights=of, minlength=size), dtype=np.float64)

    counts = np.array([(one.trials, one.successes) for one in blocks], dtype=np.float64).reshape(-1, 2)
    sides = [
        np.stack([each_name(counts[side, place]) for side in (first, second)], axis=1) for place in (0, 1)
    ]
    return Witnesses(
        names=names,
        differences=each_name(scored[first] - scored[second]),
        exposures=each_name(treated[first] - treated[second]),
        trials=sides[0],
        successes=sides[1],
        shrunk=left[first[np.searchsorted(index, np.arange(size))]],
    )


def _pairs(design: Design, blocks: Sequence[Block]) -> tuple[list[str], Places, Places, Places]:
    """The names of witnesses, in order, and of every pair the places of its two blocks and of its name.

    A pair are the blocks with treatment and control of one participant in one cycle.
    """
    at: dict[str, dict[tuple[int, str], int]] = {design.treatment: {}, design.control: {}}
    for place, one in enumerate(blocks):
        if one.arm in at:
            at[one.arm][one.cycle, one.participant] = place
    treated, control = at[design.treatment], at[design.control]
    both = sorted((_name(design, who, cycle), who, cycle) for cycle, who in treated.keys() & control.keys())
    names = list(dict.fromkeys(name for name, _, _ in both))
    order = {name: place for place, name in enumerate(names)}
    first, second, index = (
        np.array(places, dtype=np.intp)
        for places in (
            [treated[cycle, who] for _, who, cycle in both],
            [control[cycle, who] for _, who, cycle in both],
            [order[name] for name, _, _ in both],
        )
    )
    return names, first, second, index


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
    differences = np.zeros((len(found), len(planned)))
    for row, seen in zip(differences, found, strict=True):
        row[[position[name] for name in seen.names]] = seen.differences
    scales = np.abs(differences).max(axis=1, initial=0.0)
    differences /= np.where(scales > 0, scales, 1.0)[:, None]
    whole, squares = differences.sum(axis=1), (differences * differences).sum(axis=1)
    chunks: list[list[Floats]] = [[] for _ in found]
    for flipped in _flips(design, planned):
        sums = whole[:, None] - 2 * (differences @ flipped)
        for chunk, own, square, seen in zip(chunks, sums, squares, found, strict=True):
            chunk.append(_studentised(own, float(square), len(seen.names)))
    return [np.concatenate(chunk) for chunk in chunks]


def _flips(design: Design, planned: Sequence[str]) -> Iterator[Floats]:
    """Which of the planned witnesses have the other sign (1) in a draw, a column each, some at a time; none first."""
    if 2 ** min(len(planned), 60) <= path.EXHAUSTIVE:
        rows = np.arange(2 ** len(planned))[None, :] >> np.arange(len(planned))[:, None]
        yield (rows & 1).astype(np.float64)
        return
    bits = np.empty((len(planned), path.REDRAWS // 8 + 1), dtype=np.uint8)
    for index, name in enumerate(planned):
        key = hashlib.sha256(design.seed + name.encode() + b"redraw").digest()
        words = np.random.PCG64(int.from_bytes(key, "big")).random_raw(path.REDRAWS // 64 + 1)
        bits[index] = words.astype("<u8").view(np.uint8)[: bits.shape[1]]
    yield np.zeros((len(planned), 1))
    for start in range(0, path.REDRAWS, _DRAWS_AT_ONCE):
        stop = min(start + _DRAWS_AT_ONCE, path.REDRAWS)
        some = np.unpackbits(bits[:, start // 8 : (stop + 7) // 8], axis=1)[:, : stop - start]
        yield some.astype(np.float64)


def _studentised(sums: Floats, squares: float, n: int) -> Floats:
    """|Σ ± D|/(s √n) of these sums of n differences, none above 1, whose squares add up to `squares`."""
    if n < 2 or not squares:
        return np.zeros(len(sums))
    error = np.sqrt(np.maximum(squares - sums**2 / n, 0.0) / (n - 1) * n)
    still = error <= 1e-9
    values: Floats = np.divide(np.abs(sums), error, out=np.zeros_like(sums), where=~still)
    values[still & (np.abs(sums) > 1e-9)] = np.inf
    return values
