"""What is fixed before the first look: who was drawn how, and at which level it is decided by which method."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

from control_plane.domain.statistics import switchback
from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.proportions import Variance, check_alpha
from shared.errors import Fault, Invalid

Method = Literal["path_test", "sequence"]

_ROUNDING = 1e-12
"""A share of alpha below this is what rounding left of one that is spent; no quantile of it is a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What was drawn, a participant or a cluster of them: its arm, and the block and stratum of the draw.

    Of a switchback it is one turn: the order within its participant's cycle was drawn, so that is the block.
    """

    arm: str
    block: str
    stratum: str
    turn: switchback.Turn | None = None
    before: tuple[int, int] | None = None
    """Its trials and successes before, to be taken out; None: it has no history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was fixed before the first look.

    `effect` is the smallest relative change worth finding (0.1: 10 % of the control's rate). `tuning` is a number
    of participants: the sequence then counts time in participants, N/N*, instead of information (of a switchback in
    participants' cycles). `shares` says that successes cannot be more than trials, as of a proportion. With `cycles`
    it is a switchback of so many, and every unit a turn. Raises Invalid where the control is no arm or an arm is
    there twice.
    """

    method: Method
    arms: Sequence[str]
    control: str
    units: Sequence[Unit]
    seed: bytes
    alpha: float = 0.05
    horizon: float = 14.0
    power: float = 0.8
    effect: float = 0.1
    tuning: float | None = None
    variance: Variance = "jackknife"
    shares: bool = True
    cycles: int = 0
    comparisons: int = 0
    """Among how many alpha is divided; 0: the arms besides the control."""
    unspent: float = 1.0
    """Share of alpha that earlier phases of the run have left."""

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        faults = []
        if len(set(self.arms)) < len(self.arms):
            faults.append(Fault(field="arms", message="have a key that is there twice"))
        if self.control not in self.arms:
            faults.append(Fault(field="control", message=f"{self.control!r} is not one of the arms"))
        if not 0 <= self.unspent <= 1:
            faults.append(Fault(field="unspent", message="must be between 0 and 1"))
        if len(self.arms) < 2:
            faults.append(Fault(field="arms", message="are less than two, so there is nothing to compare"))
        strangers = sorted({unit.arm for unit in self.units} - set(self.arms))
        if strangers:
            faults.append(Fault(field="units", message=f"are in {', '.join(strangers)}, which is no arm"))
        if faults:
            raise Invalid("; ".join(f"{fault.field} {fault.message}" for fault in faults), faults=faults)

    @property
    def level(self) -> float:
        """The level of each comparison: what is left of alpha divided by their number; 0 where nothing is."""
        return self.alpha * self.unspent / self.divisor if self.unspent > _ROUNDING else 0.0

    @property
    def divisor(self) -> int:
        """Among how many comparisons alpha is divided."""
        return self.comparisons or len(self.arms) - 1

    @property
    def treatments(self) -> tuple[str, ...]:
        """The arms that are compared with the control."""
        return tuple(arm for arm in self.arms if arm != self.control)


def come(units: Sequence[Unit], snapshot: Snapshot) -> tuple[Sequence[Unit], Snapshot]:
    """Who had come by then, and their sums: who comes later counts in nothing that was looked at before."""
    if not snapshot.there:
        return units, snapshot
    return list(compress(units, snapshot.there)), Snapshot(
        day=snapshot.day,
        trials=list(compress(snapshot.trials, snapshot.there)),
        successes=list(compress(snapshot.successes, snapshot.there)),
    )
