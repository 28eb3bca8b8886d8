"""What a look decides: one function of the plan and the snapshots so far, so that anybody can simulate it.

A plan is fixed before the first look. By it, either the path test decides (a closed list of participants) or
an always-valid sequence in information time (an open or large population); both at alpha/(K-1) for each of the
K-1 comparisons with the control, so that intervals, p-values and decisions say the same (Bonferroni). A crossing
stands: later looks never take it back. After the horizon nothing is decided any more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

from control_plane.domain.statistics import blocked, cuped, path, proportions, switchback
from control_plane.domain.statistics.lift import fieller, lift
from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.plan import Plan, Unit, come
from control_plane.domain.statistics.proportions import ArmSums, Interval, Undefined
from control_plane.domain.statistics.sequence import Always, always_valid, enough, information_target
from shared.errors import Fault, Invalid


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
    baseline: float = 0.0
    """The control's rate that the estimate is against, where a sequence has an interval; 0: none is told."""


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


def decided(plan: Plan, snapshots: Sequence[Snapshot]) -> frozenset[str]:
    """The arms that the last of `looks` says are decided; of a path test in a fifth of the time, for simulations."""
    deciding = list(_until_horizon(plan, snapshots))
    if plan.method == "sequence" or plan.cycles or not plan.level:
        return frozenset(
            arm for arm in plan.treatments if any(x.decided for x in _of_arm(plan, arm, deciding))
        )
    found = set()
    for arm in plan.treatments:
        units, own = _of_two(plan, arm, deciding)
        if path.crosses(_design(plan, arm, units), own):
            found.add(arm)
    return frozenset(found)


def _until_horizon(plan: Plan, snapshots: Sequence[Snapshot]) -> Iterator[Snapshot]:
    for snapshot in snapshots:
        yield snapshot
        if snapshot.day >= plan.horizon:
            return


def _of_two(plan: Plan, arm: str, snapshots: Sequence[Snapshot]) -> tuple[list[Unit], list[Snapshot]]:
    """The units of the arm and the control, and their sums."""
    # What a block's mean is of, in a switchback, are all arms there are.
    index = [at for at, unit in enumerate(plan.units) if plan.cycles or unit.arm in (arm, plan.control)]
    own = [
        Snapshot(
            day=snapshot.day,
            trials=[snapshot.trials[at] for at in index],
            successes=[snapshot.successes[at] for at in index],
            there=[snapshot.there[at] for at in index] if snapshot.there else (),
        )
        for snapshot in _of_size(plan, snapshots)
    ]
    return [plan.units[at] for at in index], own


def _of_arm(plan: Plan, arm: str, snapshots: Sequence[Snapshot]) -> list[Comparison]:
    units, own = _of_two(plan, arm, snapshots)
    if not plan.level:
        return [_without_alpha(plan, arm, *come(units, snapshot)) for snapshot in own]
    if plan.method == "sequence":
        return _by_sequence(plan, arm, units, own)
    return _by_flips(plan, arm, own) if plan.cycles else _by_path(plan, arm, units, own)


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


def _design(plan: Plan, arm: str, units: Sequence[Unit]) -> path.Design:
    """What the path test of an arm against the control is fixed by."""
    return path.Design(
        treated=[unit.arm == arm for unit in units],
        blocks=[unit.block for unit in units],
        strata=[unit.stratum for unit in units],
        # Each comparison draws its own rows: they share no participants but the control's.
        seed=plan.seed + arm.encode(),
        alpha=plan.level,
        horizon=plan.horizon,
        before=_before(units),
    )


def _by_path(plan: Plan, arm: str, units: Sequence[Unit], snapshots: Sequence[Snapshot]) -> list[Comparison]:
    design = _design(plan, arm, units)
    found = []
    for at, look in enumerate(path.looks(design, snapshots)):
        silent = not any(snapshots[at].trials)
        last = at == len(snapshots) - 1
        p = path.p_value(design, snapshots) if last and not silent else None
        reasons = {} if last else dict.fromkeys(("p_value", "p_adjusted"), Undefined.EARLIER_LOOK)
        if silent:
            reasons |= dict.fromkeys(_COMPARED, Undefined.NO_IMPRESSIONS)
        found.append(_recorded(plan, arm, look, p=p, reasons=reasons))
    return found


def _recorded(
    plan: Plan, arm: str, look: path.Look, *, p: float | None, reasons: Mapping[str, Undefined]
) -> Comparison:
    """The look as a comparison, without what there are reasons for."""
    why = dict(reasons)
    if look.interval is None:
        lacking = Undefined.NO_ALPHA_YET if look.critical is None else Undefined.NO_VARIATION
        why = dict.fromkeys(("interval", "lift_interval"), lacking) | why
    around = _lift_interval(
        look.treatment, look.control, None if look.interval is None else look.critical, look.covariance
    )
    return _comparison(
        plan,
        arm,
        statistic=None if "statistic" in why else look.statistic,
        critical=None if "critical" in why else look.critical,
        alpha_spent=look.alpha_spent,
        estimate=None if "estimate" in why else look.estimate,
        interval=None if "interval" in why else look.interval,
        relative=_lift(look.treatment, look.control),
        around=around,
        p=None if "p_value" in why else p,
        crossed=look.crossed,
        decided=look.decided,
        reasons=why,
        unspent=max(1 - look.alpha_spent / plan.level, 0.0),
    )


def _by_flips(plan: Plan, arm: str, snapshots: Sequence[Snapshot]) -> list[Comparison]:
    shots = [switchback.Snapshot(day=one.day, blocks=blocks_over(plan, one)) for one in snapshots]
    found = []
    for seen in switchback.looks(alternating(plan, arm), shots):
        reasons = {}
        if seen.over_looks is None:
            reasons = dict.fromkeys(("p_value", "p_adjusted"), Undefined.EARLIER_LOOK)
        if seen.undefined is not None:
            lacking = _INFERRED if seen.undefined is Undefined.TOO_FEW_CYCLES else _COMPARED
            reasons |= dict.fromkeys(lacking, seen.undefined)
        found.append(_recorded(plan, arm, seen.look, p=seen.over_looks, reasons=reasons))
    return found


def alternating(plan: Plan, arm: str) -> switchback.Design:
    """The plan of a switchback for one arm against the control."""
    return switchback.Design(
        treatment=arm,
        control=plan.control,
        participants=sorted({unit.turn.participant for unit in plan.units if unit.turn}),
        cycles=plan.cycles,
        together=False,
        seed=plan.seed + arm.encode(),
        alpha=plan.level,
        horizon=plan.horizon,
    )


def blocks_over(plan: Plan, snapshot: Snapshot) -> list[switchback.Block]:
    """The turns that were over at the snapshot."""
    return [
        unit.turn.block(unit.arm, trials=m, successes=c)
        for unit, m, c in zip(plan.units, snapshot.trials, snapshot.successes, strict=True)
        if unit.turn is not None and unit.turn.over <= snapshot.day
    ]


def _before(units: Sequence[Unit]) -> list[tuple[int, int]]:
    """What each did before; empty where nobody has a history."""
    return [unit.before or (0, 0) for unit in units] if any(unit.before for unit in units) else []


@dataclass(frozen=True, slots=True)
class Apart:
    """A difference with its error, and the two rates it is of."""

    estimate: float
    error: float
    freedom: float | None
    treatment: path.Side
    control: path.Side
    covariance: float = 0.0


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
    if plan.cycles:
        return sequenced(plan, arm, [_within_cycles(plan, arm, snapshot) for snapshot in snapshots])
    states = [
        State(
            apart=_difference(plan, arm, there, sums),
            participants=len(there),
            enough=_enough(plan, arm, there, sums),
        )
        for there, sums in (come(units, snapshot) for snapshot in snapshots)
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
        if not always.finite:
            found.append(
                _comparison(
                    plan, arm, estimate=now.estimate, decided=decided, crossed=False,
                    reasons=dict.fromkeys(_INFERRED, Undefined.OUT_OF_RANGE),
                    relative=_lift(now.treatment, now.control), unspent=always.unspent,
                )
            )  # fmt: skip
            continue
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
        around=_lift_interval(now.treatment, now.control, always.boundary, now.covariance),
        p=always.p_value,
        crossed=crossed,
        decided=decided,
        reasons={},
        unspent=always.unspent,
        baseline=now.control.rate,
    )


def _enough(plan: Plan, arm: str, units: Sequence[Unit], snapshot: Snapshot) -> bool:
    """What a sequence needs before its normal approximation may decide."""
    speaking = [
        sum(1 for unit, m in zip(units, snapshot.trials, strict=True) if unit.arm == key and m)
        for key in (arm, plan.control)
    ]
    return enough(speaking, snapshot.trials, snapshot.successes, shares=plan.shares)


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
    adjusted = _adjusted(plan, arm, units, snapshot) if _before(units) else None
    if adjusted is not None:
        return adjusted
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


def _within_cycles(plan: Plan, arm: str, snapshot: Snapshot) -> State:
    design, blocks = alternating(plan, arm), blocks_over(plan, snapshot)
    told = switchback.estimate(switchback.witnesses(design, blocks))
    if isinstance(told, Undefined):
        return State(apart=told, participants=0, enough=False)
    if not told.error:
        why = Undefined.TOO_FEW_CYCLES if told.error is None else Undefined.NO_VARIATION
        return State(apart=why, participants=told.witnesses, enough=False)
    own = [block for block in blocks if block.arm in (arm, plan.control)]
    return State(
        apart=Apart(
            told.difference, told.error, told.witnesses - 1, told.treatment, told.control, told.covariance
        ),
        participants=told.witnesses,
        enough=enough(
            [told.witnesses],
            [block.trials for block in own],
            [block.successes for block in own],
            shares=plan.shares,
        ),
    )


def _adjusted(plan: Plan, arm: str, units: Sequence[Unit], snapshot: Snapshot) -> Apart | None:
    """With what the history predicts taken out; None where it predicts nothing, or cannot be told."""
    arms = []
    for key in (arm, plan.control):
        index = [at for at, unit in enumerate(units) if unit.arm == key]
        history = [units[at].before or (0, 0) for at in index]
        arms.append(
            cuped.History(
                key=key,
                strata=[units[at].stratum for at in index],
                trials=[snapshot.trials[at] for at in index],
                successes=[snapshot.successes[at] for at in index],
                trials_before=[m for m, _ in history],
                successes_before=[x for _, x in history],
            )
        )
    found = cuped.adjusted(arms)
    if isinstance(found, Undefined):
        return None
    t, c = found.arms
    plain = proportions.compared(t, c, alpha=plan.alpha)
    if plain.estimate is None or not plain.standard_error or t.value is None or c.value is None:
        return None
    return Apart(
        plain.estimate,
        plain.standard_error,
        plain.degrees_of_freedom,
        path.Side(rate=t.value, variance=t.variance or 0.0),
        path.Side(rate=c.value, variance=c.variance or 0.0),
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
    treatment: path.Side | None, control: path.Side | None, critical: float | None, covariance: float
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
        covariance=covariance,
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
    baseline: float = 0.0,
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
        baseline=baseline,
    )
