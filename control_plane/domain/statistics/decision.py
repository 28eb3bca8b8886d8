"""What a look decides: one function of the plan and the snapshots so far, so that anybody can simulate it.

A plan is fixed before the first look. By it, either the path test decides (a closed list of participants) or
an always-valid sequence in information time (an open or large population); both at alpha/(K-1) for each of the
K-1 comparisons with the control, so that intervals, p-values and decisions say the same (Bonferroni). A crossing
stands: later looks never take it back. After the horizon nothing is decided any more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Literal

from control_plane.domain.statistics import blocked, path, proportions
from control_plane.domain.statistics.lift import fieller, lift
from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.proportions import ArmSums, Interval, Undefined, Variance, check_alpha
from control_plane.domain.statistics.sequence import Always, always_valid, information_target
from shared.errors import Fault, Invalid

Method = Literal["path_test", "sequence"]

FEWEST_CONVERSIONS = 10
"""Conversions, and as many impressions without one, that both arms need together for a sequence to decide."""
FEWEST_PARTICIPANTS = 5
"""Participants that each arm needs for a sequence to decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What was drawn, a participant or a cluster of them: its arm, and the block and stratum of the draw."""

    arm: str
    block: str
    stratum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was fixed before the first look.

    `effect` is the smallest relative change worth finding (0.1: 10 % of the control's rate). `tuning` is a number
    of participants: the sequence then counts time in participants, N/N*, instead of information. `shares` says
    that successes cannot be more than trials, as of a proportion. Raises Invalid where the control is no arm or an
    arm is there twice.
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
        return self.alpha * self.unspent / self.divisor

    @property
    def divisor(self) -> int:
        """Among how many comparisons alpha is divided."""
        return self.comparisons or len(self.arms) - 1

    @property
    def treatments(self) -> tuple[str, ...]:
        """The arms that are compared with the control."""
        return tuple(arm for arm in self.arms if arm != self.control)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One arm against the control at a look; `reasons` names every field that is None.

    `interval` and `lift_interval` are at the level of the comparison and exclude 0 exactly where this look
    crosses. `p_value` of a path test is of all looks together and computed for the last one only; of a sequence it
    is of this look. `p_adjusted`, min(1, (K-1) p) over the share of alpha that was left, is at most alpha exactly
    where it is decided (sequence: where this look crosses). `decided` stays once it is. `unspent` is the share of
    the level that is left should another phase follow.
    """

    arm: str
    statistic: float | None
    critical: float | None
    alpha_spent: float | None
    estimate: float | None
    interval: Interval | None
    lift: float | None
    lift_interval: Interval | None
    p_value: float | None
    p_adjusted: float | None
    crossed: bool
    decided: bool
    reasons: Mapping[str, Undefined] = field(default_factory=dict)
    unspent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was known `day` days after the start; without comparisons after the horizon."""

    day: float
    comparisons: tuple[Comparison, ...]


def looks(plan: Plan, snapshots: Sequence[Snapshot]) -> tuple[Look, ...]:
    """Every look, in order. Raises Invalid for snapshots out of order or of another size than the plan."""
    deciding = list(_until_horizon(plan, snapshots))
    found = {arm: _of_arm(plan, arm, deciding) for arm in plan.treatments}
    return tuple(
        Look(
            day=snapshot.day,
            comparisons=tuple(found[arm][at] for arm in plan.treatments) if at < len(deciding) else (),
        )
        for at, snapshot in enumerate(snapshots)
    )


def _until_horizon(plan: Plan, snapshots: Sequence[Snapshot]) -> Iterator[Snapshot]:
    for snapshot in snapshots:
        yield snapshot
        if snapshot.day >= plan.horizon:
            return


def _of_arm(plan: Plan, arm: str, snapshots: Sequence[Snapshot]) -> list[Comparison]:
    index = [at for at, unit in enumerate(plan.units) if unit.arm in (arm, plan.control)]
    own = [
        Snapshot(
            day=snapshot.day,
            trials=[snapshot.trials[at] for at in index],
            successes=[snapshot.successes[at] for at in index],
        )
        for snapshot in _of_size(plan, snapshots)
    ]
    units = [plan.units[at] for at in index]
    if not plan.level:
        return [_without_alpha(plan, arm, units, snapshot) for snapshot in own]
    return (
        _by_path(plan, arm, units, own) if plan.method == "path_test" else _by_sequence(plan, arm, units, own)
    )


def _of_size(plan: Plan, snapshots: Sequence[Snapshot]) -> Iterator[Snapshot]:
    for at, snapshot in enumerate(snapshots):
        if not len(snapshot.trials) == len(snapshot.successes) == len(plan.units):
            fault = Fault(field=f"looks[{at}]", message="must have the sums of every participant of the plan")
            raise Invalid(f"{fault.field} {fault.message}", faults=[fault])
        yield snapshot


def _without_alpha(plan: Plan, arm: str, units: Sequence[Unit], snapshot: Snapshot) -> Comparison:
    """What differs, of which nothing may be said: earlier phases have spent all of alpha."""
    now = _difference(plan, arm, units, snapshot)
    if isinstance(now, Undefined):
        return _comparison(plan, arm, decided=False, reasons=dict.fromkeys(_COMPARED, now), crossed=False)
    reasons = dict.fromkeys((*_INFERRED, "alpha_spent"), Undefined.ALPHA_SPENT)
    relative = _lift(now.treatment, now.control)
    return _comparison(
        plan, arm, estimate=now.estimate, decided=False, reasons=reasons, crossed=False, relative=relative
    )


def _by_path(plan: Plan, arm: str, units: Sequence[Unit], snapshots: Sequence[Snapshot]) -> list[Comparison]:
    design = path.Design(
        treated=[unit.arm == arm for unit in units],
        blocks=[unit.block for unit in units],
        strata=[unit.stratum for unit in units],
        # Each comparison draws its own rows: they share no participants but the control's.
        seed=plan.seed + arm.encode(),
        alpha=plan.level,
        horizon=plan.horizon,
    )
    found = []
    for at, look in enumerate(path.looks(design, snapshots)):
        silent = not any(snapshots[at].trials)
        last = at == len(snapshots) - 1
        p = path.p_value(design, snapshots) if last and not silent else None
        reasons = {} if last else dict.fromkeys(("p_value", "p_adjusted"), Undefined.EARLIER_LOOK)
        if silent:
            reasons |= dict.fromkeys(_COMPARED, Undefined.NO_IMPRESSIONS)
        elif look.interval is None:
            reasons |= dict.fromkeys(("interval", "lift_interval"), _why_no_interval(look))
        relative = _lift(look.treatment, look.control)
        around = _lift_interval(
            look.treatment, look.control, None if look.interval is None else look.critical
        )
        found.append(
            _comparison(
                plan,
                arm,
                statistic=None if silent else look.statistic,
                critical=None if silent else look.critical,
                alpha_spent=look.alpha_spent,
                estimate=None if silent else look.estimate,
                interval=None if silent else look.interval,
                relative=relative,
                around=around,
                p=p,
                crossed=look.crossed,
                decided=look.decided,
                reasons=reasons,
                unspent=max(1 - look.alpha_spent / plan.level, 0.0),
            )
        )
    return found


def _why_no_interval(look: path.Look) -> Undefined:
    return Undefined.NO_ALPHA_YET if look.critical is None else Undefined.NO_VARIATION


@dataclass(frozen=True, slots=True)
class Apart:
    """A difference with its error, and the two rates it is of."""

    estimate: float
    error: float
    freedom: float | None
    treatment: path.Side
    control: path.Side


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a sequence sees at a look: the difference or why there is none, and of how many participants it is.

    `enough`: there is what its normal approximation needs to decide.
    """

    apart: Apart | Undefined
    participants: int
    enough: bool


def _by_sequence(
    plan: Plan, arm: str, units: Sequence[Unit], snapshots: Sequence[Snapshot]
) -> list[Comparison]:
    states = [
        State(
            apart=_difference(plan, arm, units, snapshot),
            participants=len(units),
            enough=_enough(plan, arm, units, snapshot),
        )
        for snapshot in snapshots
    ]
    return sequenced(plan, arm, states)


def sequenced(plan: Plan, arm: str, states: Sequence[State]) -> list[Comparison]:
    """The sequence's comparison at every look. What it aims at is frozen by the first look with a baseline."""
    target: float | None = None
    decided = False
    unspent = 1.0
    found = []
    for state in states:
        now = state.apart
        if isinstance(now, Undefined):
            found.append(
                _comparison(
                    plan, arm, decided=decided, reasons=dict.fromkeys(_COMPARED, now), crossed=False,
                    unspent=unspent,
                )
            )  # fmt: skip
            continue
        if target is None and now.control.rate and plan.tuning is None:
            effect = plan.effect * abs(now.control.rate)
            target = information_target(alpha=plan.level, power=plan.power, effect=effect)
        share = _share(plan, state.participants, now, target)
        if share is None or not state.enough:
            why = Undefined.NO_BASELINE if state.enough else Undefined.TOO_FEW_DATA
            reasons = dict.fromkeys(_INFERRED, why)
            found.append(
                _comparison(
                    plan, arm, estimate=now.estimate, decided=decided, reasons=reasons, crossed=False,
                    relative=_lift(now.treatment, now.control), unspent=unspent,
                )
            )  # fmt: skip
            continue
        always = always_valid(
            estimate=now.estimate,
            standard_error=now.error,
            share=share,
            alpha=plan.level,
            degrees_of_freedom=now.freedom,
        )
        crossed = not always.interval.low <= 0 <= always.interval.high
        decided = decided or crossed
        unspent = always.unspent
        found.append(_sequential(plan, arm, now, always, crossed=crossed, decided=decided))
    return found


def _sequential(
    plan: Plan, arm: str, now: Apart, always: Always, *, crossed: bool, decided: bool
) -> Comparison:
    return _comparison(
        plan,
        arm,
        statistic=abs(now.estimate) / now.error,
        critical=always.boundary,
        estimate=now.estimate,
        interval=always.interval,
        relative=_lift(now.treatment, now.control),
        around=_lift_interval(now.treatment, now.control, always.boundary),
        p=always.p_value,
        crossed=crossed,
        decided=decided,
        reasons={},
        unspent=always.unspent,
    )


def _enough(plan: Plan, arm: str, units: Sequence[Unit], snapshot: Snapshot) -> bool:
    """What a sequence needs before its normal approximation may decide."""
    speaking = [
        sum(1 for unit, m in zip(units, snapshot.trials, strict=True) if unit.arm == key and m)
        for key in (arm, plan.control)
    ]
    hits = sum(snapshot.successes)
    return enough(speaking, hits, sum(snapshot.trials) - hits, shares=plan.shares)


def enough(speaking: Sequence[int], hits: int, misses: int, *, shares: bool) -> bool:
    """Whether the arms' participants with data, and of a proportion both outcomes, are enough to decide."""
    if min(speaking) < FEWEST_PARTICIPANTS:
        return False
    return not shares or min(hits, misses) >= FEWEST_CONVERSIONS


def _difference(plan: Plan, arm: str, units: Sequence[Unit], snapshot: Snapshot) -> Apart | Undefined:
    """With the strata taken out where the draw was balanced in more than one, else Welch's."""
    arms, strata = [], []
    for key in (arm, plan.control):
        index = [at for at, unit in enumerate(units) if unit.arm == key]
        sums = ArmSums(
            key=key,
            trials=[snapshot.trials[at] for at in index],
            successes=[snapshot.successes[at] for at in index],
            signed=not plan.shares,
        )
        if not any(sums.trials):
            return Undefined.NO_IMPRESSIONS
        arms.append(sums)
        strata.append([units[at].stratum for at in index])
    if len({*strata[0], *strata[1]}) > 1:
        found = blocked.difference(
            *(blocked.StratifiedArm(sums=sums, strata=of) for sums, of in zip(arms, strata, strict=True))
        )
        if isinstance(found, blocked.Blocked):
            return Apart(
                found.estimate,
                sqrt(found.variance),
                found.degrees_of_freedom,
                path.Side(rate=found.treatment_rate, variance=found.treatment_variance),
                path.Side(rate=found.control_rate, variance=found.variance - found.treatment_variance),
            )
    t, c = (proportions.rate(item, variance=plan.variance) for item in arms)
    plain = proportions.difference(*arms, alpha=plan.alpha, variance=plan.variance)
    if plain.estimate is None or plain.standard_error is None or t.rate is None or c.rate is None:
        return plain.reasons.get("standard_error", Undefined.TOO_FEW_PARTICIPANTS)
    if not plain.standard_error:
        return Undefined.NO_VARIATION
    return Apart(
        plain.estimate,
        plain.standard_error,
        plain.degrees_of_freedom,
        path.Side(rate=t.rate, variance=t.variance or 0.0),
        path.Side(rate=c.rate, variance=c.variance or 0.0),
    )


def _share(plan: Plan, participants: int, now: Apart, target: float | None) -> float | None:
    if plan.tuning is not None:
        return participants / plan.tuning
    return None if target is None else 1 / now.error**2 / target


_INFERRED = ("statistic", "critical", "interval", "lift_interval", "p_value", "p_adjusted")
_COMPARED = (
    "statistic",
    "critical",
    "estimate",
    "interval",
    "lift",
    "lift_interval",
    "p_value",
    "p_adjusted",
)


def _lift(treatment: path.Side | None, control: path.Side | None) -> float | Undefined:
    if treatment is None or control is None:
        return Undefined.NO_IMPRESSIONS
    return lift(treatment.rate, control.rate)


def _lift_interval(
    treatment: path.Side | None, control: path.Side | None, critical: float | None
) -> Interval | Undefined:
    if treatment is None or control is None:
        return Undefined.NO_IMPRESSIONS
    if critical is None:
        return Undefined.NO_ALPHA_YET
    return fieller(
        treatment.rate,
        control.rate,
        treatment_variance=treatment.variance,
        control_variance=control.variance,
        quantile=path.reach(critical),
    )


def _comparison(
    plan: Plan,
    arm: str,
    *,
    crossed: bool,
    decided: bool,
    reasons: Mapping[str, Undefined],
    statistic: float | None = None,
    critical: float | None = None,
    alpha_spent: float | None = None,
    estimate: float | None = None,
    interval: Interval | None = None,
    relative: float | Undefined = Undefined.NO_IMPRESSIONS,
    around: Interval | Undefined = Undefined.NO_IMPRESSIONS,
    p: float | None = None,
    unspent: float | None = None,
) -> Comparison:
    why = dict(reasons)
    if isinstance(relative, Undefined):
        why.setdefault("lift", relative)
    if isinstance(around, Undefined):
        why.setdefault("lift_interval", around)
    if statistic is not None and statistic == float("inf"):
        statistic = None
        why["statistic"] = Undefined.NO_VARIATION
    if critical is not None and critical == float("inf"):
        critical = None
        why["critical"] = Undefined.NO_VARIATION
    elif critical is None:
        why.setdefault("critical", Undefined.NO_ALPHA_YET)
    if alpha_spent is None:
        why.setdefault("alpha_spent", Undefined.NOT_SPENT)
    return Comparison(
        arm=arm,
        statistic=statistic,
        critical=critical,
        alpha_spent=alpha_spent,
        estimate=estimate,
        interval=interval,
        lift=None if isinstance(relative, Undefined) else relative,
        lift_interval=None if isinstance(around, Undefined) else around,
        p_value=p,
        p_adjusted=None if p is None else min(1.0, plan.divisor * p / plan.unspent),
        crossed=crossed,
        decided=decided,
        reasons=why,
        unspent=0.0 if not plan.level else unspent,
    )
