"""The path test: a randomisation test over the recorded draw that may be looked at every day.

The default for a closed list of up to a thousand participants. The labels of treatment and control are
permuted inside the recorded blocks, so it is exact whatever the data look like, from four hosts per arm on;
alpha is spent over the looks as time passes (Lan & DeMets 1983), so looking daily costs nothing. With 8 + 8
hosts and 14 looks it finds 25 against 50 % in 70 % of experiments where a boundary that is valid at any time
finds it in 32 %.

One stateless function of the design and the snapshots of the looks so far: anybody can simulate it, and a
look that was taken never changes, because its snapshot is kept.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, floor, sqrt

import numpy as np
from numpy.typing import NDArray

from control_plane.domain.statistics import blocked
from control_plane.domain.statistics.proportions import ArmSums, Interval, check_alpha
from shared.errors import Fault, Invalid

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]

REDRAWS = 9_999
EXHAUSTIVE = 100_000
"""Up to so many draws, all of them are looked at instead of a sample."""
TIE = 1e-12
"""Statistics this close, relatively, are equal: they differ only by the order of additions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What was fixed before the first look, for one arm against the control.

    `treated`, `blocks` and `strata` have an entry per participant of the two arms. `alpha` is the level for
    this comparison (already divided by the number of comparisons), `horizon` in days is when it is spent.
    Raises Invalid where the entries do not fit together.
    """

    treated: Sequence[bool]
    blocks: Sequence[str]
    strata: Sequence[str]
    seed: bytes
    alpha: float
    horizon: float

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not len(self.treated) == len(self.blocks) == len(self.strata):
            fault = Fault(field="blocks", message="and strata must have one entry for each participant")
            raise Invalid(f"{fault.field} {fault.message}", faults=[fault])
        if not self.horizon > 0:
            raise Invalid(faults=[Fault(field="horizon", message="must be above 0 days")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The sums of every participant, in the design's order, as they stood `day` days after the start."""

    day: float
    trials: Sequence[int]
    successes: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look said. `critical` is None where there was no alpha to spend yet.

    `decided` is of this look or an earlier one: a crossing stands. `estimate` is the difference in the
    metric's own units and `interval` excludes 0 exactly when this look crosses. `p_value` is of this look
    alone, as if it were the only one.
    """

    day: float
    statistic: float
    critical: float | None
    alpha_spent: float
    decided: bool
    crossed: bool
    estimate: float
    interval: Interval | None
    p_value: float


def looks(design: Design, snapshots: Sequence[Snapshot]) -> tuple[Look, ...]:
    """Every look, in order. Row 0 is the real draw; R re-draws permute labels inside blocks.

    At look j, room = ⌊a*(t_j)(R+1)⌋ - used with a*(t) = alpha · min(t/T, 1); with room, c_j is the (room+1)-th
    largest statistic among rows still alive, and rows above it have crossed, are used up and leave. Raises
    Invalid for snapshots that are out of order or of another size.
    """
    labels = draws(design)
    rows = len(labels)
    alive = np.ones(rows, dtype=bool)
    used, decided = 0, False
    found = []
    for snapshot in _in_order(design, snapshots):
        e = blocked.scores(snapshot.trials, snapshot.successes, design.strata)
        values = _statistics(labels, e)
        spent = design.alpha * min(snapshot.day / design.horizon, 1.0)
        room = floor(spent * rows + TIE) - used
        critical, crossed = None, False
        if room > 0 and alive.any():
            ordered = np.sort(values[alive])[::-1]
            critical = float(ordered[min(room, len(ordered) - 1)])
            over = values > critical * (1 + TIE)
            crossed = bool(over[0])
            above = alive & over
            used += int(above.sum())
            alive &= ~above
        decided = decided or crossed
        estimate, error = _estimate(design, snapshot, e, float(values[0]))
        found.append(
            Look(
                day=snapshot.day,
                statistic=float(values[0]),
                critical=critical,
                alpha_spent=used / rows,
                decided=decided,
                crossed=crossed,
                estimate=estimate,
                interval=_interval(estimate, error, critical),
                p_value=float((values >= values[0] * (1 - TIE)).mean()),
            )
        )
    return tuple(found)


def draws(design: Design) -> Labels:
    """Who is treated in each row: the real draw first, then all others if few, else a seeded sample.

    Re-draws are sorted random words of a generator per block, seeded by SHA-256(seed ‖ block ‖ "redraw"), so
    the same design gives the same rows everywhere. Rows are exchangeable with the real one.
    """
    treated = np.asarray(design.treated, dtype=bool)
    members = {name: np.flatnonzero(np.asarray(design.blocks) == name) for name in sorted(set(design.blocks))}
    count = 1
    for where in members.values():
        count *= comb(len(where), int(treated[where].sum()))
    if count <= EXHAUSTIVE:
        return _every(treated, list(members.values()))
    rows = np.empty((REDRAWS + 1, len(treated)), dtype=bool)
    rows[0] = treated
    for name, where in members.items():
        key = hashlib.sha256(design.seed + name.encode() + b"redraw").digest()
        words = np.random.PCG64(int.from_bytes(key, "big")).random_raw(REDRAWS * len(where))
        order = np.argsort(words.reshape(REDRAWS, len(where)), axis=1, kind="stable")
        rows[1:, where] = treated[where][order]
    return rows


def _every(treated: Labels, blocks: list[NDArray[np.intp]]) -> Labels:
    """Every way to hand out the blocks' labels, the real one first."""

    def ways(where: NDArray[np.intp]) -> Iterator[Labels]:
        for chosen in combinations(range(len(where)), int(treated[where].sum())):
            row = np.zeros(len(where), dtype=bool)
            row[list(chosen)] = True
            yield row

    columns = np.concatenate(blocks) if blocks else np.empty(0, dtype=np.intp)
    rows = np.array([np.concatenate(each) for each in product(*(list(ways(where)) for where in blocks))])
    whole = np.empty((len(rows), len(treated)), dtype=bool)
    whole[:, columns] = rows
    real = int(np.flatnonzero((whole == treated).all(axis=1))[0])
    whole[[0, real]] = whole[[real, 0]]
    return whole


def _statistics(labels: Labels, e: Floats) -> Floats:
    """The studentised statistic of every row; what `blocked.statistic` says of one."""
    n = labels.shape[1]
    treated = int(labels[0].sum())
    untreated = n - treated
    if min(treated, untreated) < 2:
        return np.zeros(len(labels))
    scale = float(np.abs(e).max())
    if not scale:
        return np.zeros(len(labels))
    e = e / scale
    # Scores sum to 0 within strata, so sums of squares lose no digits here.
    sums = labels @ e
    squares = labels @ (e * e)
    rest, rest_squares = float(e.sum()) - sums, float((e * e).sum()) - squares
    apart = np.abs(sums / treated - rest / untreated)
    spread = np.maximum(squares - sums**2 / treated, 0.0) / (treated - 1) / treated
    spread += np.maximum(rest_squares - rest**2 / untreated, 0.0) / (untreated - 1) / untreated
    error = np.sqrt(spread)
    still = error <= 1e-9
    values: Floats = np.divide(apart, error, out=np.zeros_like(apart), where=~still)
    values[still & (apart > 1e-9)] = np.inf
    return values


def _estimate(design: Design, snapshot: Snapshot, e: Floats, value: float) -> tuple[float, float]:
    """(difference, error) with |difference| / error = the statistic, so that interval and decision agree.

    The difference is the stratified estimate where there is one of the statistic's sign, else the scores'
    own mean difference, which is in the same units.
    """
    treated = np.asarray(design.treated, dtype=bool)
    if min(treated.sum(), (~treated).sum()) < 1:
        return 0.0, 0.0
    own = float(e[treated].mean() - e[~treated].mean())
    arms = [
        blocked.StratifiedArm(
            sums=ArmSums(
                key=key,
                trials=[int(m) for m, t in zip(snapshot.trials, treated, strict=True) if t == side],
                successes=[int(c) for c, t in zip(snapshot.successes, treated, strict=True) if t == side],
            ),
            strata=[s for s, t in zip(design.strata, treated, strict=True) if t == side],
        )
        for key, side in (("treatment", True), ("control", False))
    ]
    better = blocked.difference(*arms)
    estimate = own
    if isinstance(better, blocked.Blocked) and better.estimate * own > 0:
        estimate = better.estimate
    if value and np.isfinite(value):
        return estimate, abs(estimate) / value
    spread = sum(
        float(group.var(ddof=1)) / len(group) for group in (e[treated], e[~treated]) if len(group) > 1
    )
    return estimate, 0.0 if value else sqrt(spread)


def _interval(estimate: float, error: float, critical: float | None) -> Interval | None:
    if critical is None or not np.isfinite(critical):
        return None
    reach = critical * (1 + 2 * TIE) * error  # what ties with the critical value does not cross
    return Interval(low=estimate - reach, high=estimate + reach)


def _in_order(design: Design, snapshots: Sequence[Snapshot]) -> Iterator[Snapshot]:
    before = 0.0
    for index, snapshot in enumerate(snapshots):
        where = f"looks[{index}]"
        if not len(snapshot.trials) == len(snapshot.successes) == len(design.treated):
            fault = Fault(field=where, message="must have the sums of every participant of the design")
        elif snapshot.day <= before:
            fault = Fault(field=f"{where}.day", message="must be after the look before")
        else:
            before = snapshot.day
            yield snapshot
            continue
        raise Invalid(f"{fault.field} {fault.message}", faults=[fault])
