"""What an experiment says, in one word an operator can act on, and why.

The word follows from recorded looks and from the integrity of the comparison, never from the numbers of the
moment: it does not flicker, and late events cannot take it back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Any

from control_plane.domain.statistics.bayes import Goal
from control_plane.domain.statistics.decision import Comparison, Look, looks
from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.plan import Plan
from control_plane.domain.statistics.proportions import Interval
from control_plane.domain.statistics.srm import SUPPRESS, WARN


class Status(StrEnum):
    """The verdict."""

    INSUFFICIENT_DATA = "insufficient_data"
    UNDECIDED = "undecided"
    WINNER = "winner"
    LOSER = "loser"
    NO_DIFFERENCE = "no_difference"
    GUARDRAIL_FAILED = "guardrail_failed"
    INCONCLUSIVE_DESIGN = "inconclusive_design"
    INVALID = "invalid"


class Guard(StrEnum):
    """What is known of an arm's harm to a guardrail metric."""

    FAILED = "failed"
    UNPROVEN = "unproven"
    NON_INFERIOR = "non_inferior"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One fact behind a verdict: a code, a sentence, the formula it comes from, and what went into that."""

    code: str
    message: str
    formula: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`arm` is the one to act on; `winners` are all that won, the largest difference first."""

    status: Status
    arm: str | None
    winners: tuple[str, ...]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """An arm on a guardrail: `interval` is of the difference, `bound` the worst change that is accepted."""

    metric: str
    arm: str
    state: Guard
    interval: Interval | None
    bound: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """Whether the arms can be compared at all: p-values of "the arms lost alike", by what was lost.

    `replays`: the recorded procedure gives the record; None where nothing is to replay.
    """

    replays: bool | None
    ratio_p_value: float | None
    leaked: bool
    losses: Mapping[str, float]

    @property
    def broken(self) -> list[Reason]:
        """What makes a verdict impossible."""
        found = []
        if self.replays is False:
            found.append(
                Reason(
                    code="ASSIGNMENT_NOT_REPRODUCED",
                    message="the recorded draw does not give the recorded assignments; who got what was changed",
                )
            )
        if self.leaked:
            found.append(Reason(code="LEAK", message="somebody is in an arm of weight 0"))
        for name, p in self._tests():
            if p < SUPPRESS:
                found.append(_unequal(name, p))
        return found

    @property
    def doubtful(self) -> list[Reason]:
        """What should be looked into, though a verdict stands."""
        return [_unequal(name, p) for name, p in self._tests() if SUPPRESS <= p < WARN]

    def _tests(self) -> list[tuple[str, float]]:
        ratio = [] if self.ratio_p_value is None else [("sample_ratio", self.ratio_p_value)]
        return [*ratio, *sorted(self.losses.items())]


def _unequal(name: str, p: float) -> Reason:
    if name == "sample_ratio":
        message = "the arms are not as large as their weights say"
    else:
        message = f"the arms differ in who is {name.replace('_', ' ')}, so what is left cannot be compared"
    return Reason(
        code="SAMPLE_RATIO_MISMATCH",
        message=message,
        formula="chi-square against the weights"
        if name == "sample_ratio"
        else "Fisher's exact test (Freeman-Halton)",
        inputs={"test": name, "pValue": p, "suppressBelow": SUPPRESS, "warnBelow": WARN},
    )


def standing(found: Sequence[Look]) -> tuple[Comparison, ...]:
    """Each arm's comparison that stands: where it was decided that very one, else the last there is."""
    arms: dict[str, Comparison] = {}
    for look in found:
        for one in look.comparisons:
            if one.arm not in arms or not arms[one.arm].decided:
                arms[one.arm] = one
    return tuple(arms.values())


def verdict(
    plan: Plan,
    found: Sequence[Look],
    *,
    goal: Goal,
    reachable: float | None,
    integrity: Integrity,
    guarded: Sequence[Guarded] = (),
    data: bool = True,
    mde: float | None = None,
) -> Verdict:
    """What the looks say, first what forbids a verdict, then what decides it.

    `reachable` is the smallest p the design can give any arm; `data`: somebody had an impression; `mde` is the smallest
    absolute change that would have been found with the power that was planned, told where nothing was.
    """
    notes = tuple(integrity.doubtful)
    if integrity.broken:
        return _of(Status.INVALID, [*integrity.broken, *notes])
    if reachable is not None and reachable > plan.level:
        return _of(Status.INCONCLUSIVE_DESIGN, [_too_small(plan, reachable), *notes])
    failed = [item for item in guarded if item.state is Guard.FAILED]
    if failed:
        return _of(Status.GUARDRAIL_FAILED, [*map(_failed, failed), *notes], arm=failed[0].arm)
    stand = standing(found)
    sign = -1 if goal == "decrease" else 1
    decided = sorted(
        (item for item in stand if item.decided and item.estimate is not None),
        key=lambda item: (-sign * (item.estimate or 0.0), item.arm),
    )
    won = [item for item in decided if sign * (item.estimate or 0.0) > 0]
    if won:
        more = [_best_untested(won)] if len(won) > 1 else []
        return _of(
            Status.WINNER, [*(_crossed(plan, item) for item in won), *more, *notes], arm=won[0].arm,
            winners=[item.arm for item in won],
        )  # fmt: skip
    if decided and len(decided) == len(stand):
        return _of(Status.LOSER, [*(_crossed(plan, item) for item in decided), *notes], arm=decided[-1].arm)
    if found and found[-1].day >= plan.horizon:
        if decided:
            return _of(
                Status.LOSER, [*(_crossed(plan, item) for item in decided), _over(plan, stand, mde), *notes],
                arm=decided[-1].arm,
            )  # fmt: skip
        return _of(
            Status.NO_DIFFERENCE if data else Status.INSUFFICIENT_DATA, [_over(plan, stand, mde), *notes]
        )
    lost = [_crossed(plan, item) for item in decided]
    if not data:
        return _of(Status.INSUFFICIENT_DATA, [_no_data(), *notes])
    return _of(Status.UNDECIDED, [*lost, _waiting(plan, found, stand), *notes])


def _of(
    status: Status, reasons: Sequence[Reason], *, arm: str | None = None, winners: Sequence[str] = ()
) -> Verdict:
    return Verdict(status=status, arm=arm, winners=tuple(winners), reasons=tuple(reasons))


def _too_small(plan: Plan, reachable: float) -> Reason:
    spent = "" if plan.unspent == 1 else ", for earlier phases have spent alpha; a reset begins anew"
    return Reason(
        code="DESIGN_CANNOT_DECIDE",
        message=f"no outcome could be significant: the smallest reachable p is {reachable:.2g},"
        f" a decision needs {plan.level:.2g}{spent}",
        formula="2 / 2ⁿ, n = participants times cycles"
        if plan.cycles
        else "2 / ∏ C(n_t + n_c, n_t) over the blocks of the draw; 1 / ∏ where a block is unequal",
        inputs={"smallestReachablePValue": reachable, "level": plan.level, "unspent": plan.unspent},
    )


def _failed(item: Guarded) -> Reason:
    return Reason(
        code="GUARDRAIL_FAILED",
        message=f"{item.arm} makes {item.metric} worse",
        formula="always-valid interval of the difference at alpha / (guardrails · (K - 1))",
        inputs={"metric": item.metric, "variant": item.arm, **_ends(item.interval)},
    )


def _crossed(plan: Plan, item: Comparison) -> Reason:
    return Reason(
        code="CROSSED",
        message=f"{item.arm} differs from {plan.control}: the statistic is beyond its critical value, and that stands",
        formula=_exceeds(plan),
        inputs={
            "variant": item.arm,
            "difference": item.estimate,
            **_ends(item.interval),
            "statistic": item.statistic,
            "critical": item.critical,
            "alphaSpent": item.alpha_spent,
            "level": plan.level,
            "unspent": plan.unspent,
            "pValue": item.p_value,
            "pValueAdjusted": item.p_adjusted,
        },
    )


def _exceeds(plan: Plan) -> str:
    if plan.method == "sequence":
        return "|d| / SE > B, B² = (x+1)/x · ln((x+1)/a²), x = rho² · I/I*"
    if plan.cycles:
        return "|mean D| / (s_D / √n) > c, D by cycle and participant, c from flipped signs at the alpha spent so far"
    return "|d| / SE > c, c from the redrawn assignments at the alpha spent so far"


def _best_untested(won: Sequence[Comparison]) -> Reason:
    return Reason(
        code="BEST_OF_WINNERS_NOT_TESTED",
        message=f"{won[0].arm} has the largest difference of {len(won)} winners; that it is better than the other"
        " winners was not tested",
    )


def _over(plan: Plan, stand: Sequence[Comparison], mde: float | None) -> Reason:
    return Reason(
        code="HORIZON_OVER",
        message=f"{plan.horizon:g} days are over; going on is a new phase with the alpha that is left",
        formula=_exceeds(plan),
        inputs={
            "horizonDays": plan.horizon,
            "level": plan.level,
            "differences": _seen(stand),
            "smallestEffectFound": mde,
            "power": plan.power,
        },
    )


def _seen(stand: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [
        {
            "variant": item.arm,
            "difference": item.estimate,
            **_ends(item.interval),
            "statistic": item.statistic,
            "critical": item.critical,
        }
        for item in stand
    ]


def _no_data() -> Reason:
    return Reason(code="NO_IMPRESSIONS", message="nobody has had an impression yet")


def _waiting(plan: Plan, found: Sequence[Look], stand: Sequence[Comparison]) -> Reason:
    if not found:
        return Reason(code="NO_LOOK_YET", message="the first look is taken when the first UTC day is closed")
    return Reason(
        code="NOT_CROSSED",
        message="no difference is beyond its critical value yet",
        formula=_exceeds(plan),
        inputs={
            "day": found[-1].day,
            "horizonDays": plan.horizon,
            "alphaToSpend": plan.level * min(found[-1].day / plan.horizon, 1.0)
            if plan.method == "path_test"
            else plan.level,
            "differences": _seen(stand),
        },
    )


def _ends(interval: Interval | None) -> dict[str, Any]:
    return {"interval": None if interval is None else {"low": interval.low, "high": interval.high}}


def guard(
    plan: Plan, snapshots: Sequence[Snapshot], *, metric: str, goal: Goal, margin: float | None
) -> tuple[Guarded, ...]:
    """Each arm's state on a guardrail after these looks; `failed` is for good.

    `plan` is a sequence with `comparisons` = guardrails x arms besides the control. Failed: the interval of the
    difference lies wholly on the harmful side. Non-inferior: it lies wholly above `-margin` times the control's
    rate (below, where the goal is to decrease); without a margin, wholly on the harmless side of 0.
    """
    harm = 1 if goal == "decrease" else -1
    found: dict[str, Guarded] = {}
    # The horizon is the verdict's: what does harm is told for as long as it is measured.
    for look in looks(replace(plan, horizon=inf), snapshots):
        for one in look.comparisons:
            if one.arm in found and found[one.arm].state is Guard.FAILED:
                continue
            found[one.arm] = _guarded(metric, one, harm=harm, margin=margin)
    return tuple(found.values())


def _guarded(metric: str, one: Comparison, *, harm: int, margin: float | None) -> Guarded:
    bound: float | None = None
    state = Guard.UNPROVEN
    if one.baseline:
        bound = (margin or 0.0) * abs(one.baseline)
    elif one.estimate is not None and not margin:
        bound = 0.0
    if one.interval is not None:
        # In units of harm: the largest and the smallest harm that the data allow.
        least, most = sorted((harm * one.interval.low, harm * one.interval.high))
        if least > 0:
            state = Guard.FAILED
        elif bound is not None and most < bound:
            state = Guard.NON_INFERIOR
    return Guarded(metric=metric, arm=one.arm, state=state, interval=one.interval, bound=bound)
