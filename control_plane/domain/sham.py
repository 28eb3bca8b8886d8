"""A/A on one's own past: how often would experiments without any difference have been decided?

The participants' real sums stay as they were, look by look; only who was in which arm is drawn again, inside the
recorded blocks, so that no variant can have done anything. What is decided nevertheless is wrong.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from control_plane.domain.evidence import Evidence, plan_of, snapshot_of
from control_plane.domain.statistics import decision, newcombe
from control_plane.domain.statistics.newcombe import Counts
from control_plane.domain.statistics.path import Snapshot
from control_plane.domain.statistics.plan import Plan, Unit
from control_plane.domain.statistics.proportions import ArmSums, Interval, difference
from shared.errors import Fault, Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Sham:
    """Of `runs` replays so many were decided, with a 95 % Wilson interval of the share.

    `peeking` is what a Welch test at every look, stopped at the first p below alpha, would have decided.
    """

    runs: int
    looks: int
    alpha: float
    decided: int
    share: Interval
    peeking: int


def replay(evidence: Evidence, *, runs: int, told: Callable[[int], None] = lambda _: None) -> Sham:
    """The experiment, `runs` times with arms drawn again; the same evidence gives the same answer.

    `told` is called after each run. Raises Invalid for evidence without looks, or without the sums they saw.
    """
    sums = [(look.day, look.day if look.open else None, look.sums) for look in evidence.looks]
    if not sums:
        raise Invalid("looks: there are none yet; come back when a UTC day is closed", faults=[
            Fault(field="looks", message="there are none yet")])  # fmt: skip
    shots = [snapshot_of(evidence, one, day=day, until=until) for day, until, one in sums if one is not None]
    if len(shots) < len(sums):
        raise Invalid("looks: their sums are missing; export with inputs", faults=[
            Fault(field="looks", message="their sums are missing")])  # fmt: skip
    plan = plan_of(evidence)
    decided = peeking = 0
    for run in range(1, runs + 1):
        drawn = replace(plan, units=_drawn_again(plan, run), seed=plan.seed + run.to_bytes(4))
        found = decision.looks(drawn, shots)
        decided += any(one.decided for look in found for one in look.comparisons)
        peeking += _peeked(drawn, shots)
        told(run)
    share = newcombe.wilson(Counts(trials=runs, successes=decided), 1.959963984540054)
    return Sham(runs=runs, looks=len(shots), alpha=plan.alpha, decided=decided, share=share, peeking=peeking)


def _drawn_again(plan: Plan, run: int) -> tuple[Unit, ...]:
    """The units, the arms of each block in another order: by SHA-256(seed ‖ "sham" ‖ run ‖ place)."""
    blocks: defaultdict[str, list[int]] = defaultdict(list)
    for at, unit in enumerate(plan.units):
        blocks[unit.block].append(at)
    found = list(plan.units)
    prefix = plan.seed + b"sham" + run.to_bytes(4)
    for places in blocks.values():
        order = sorted(places, key=lambda at: hashlib.sha256(prefix + at.to_bytes(4)).digest())
        for at, source in zip(places, order, strict=True):
            found[at] = replace(found[at], arm=plan.units[source].arm)
    return tuple(found)


def _peeked(plan: Plan, shots: list[Snapshot]) -> bool:
    """Whether a Welch test at some look would have had a p below the level."""
    for shot in shots:
        arms: dict[str, ArmSums] = {}
        for key in plan.arms:
            index = [at for at, unit in enumerate(plan.units) if unit.arm == key]
            arms[key] = ArmSums(
                key=key,
                trials=[shot.trials[at] for at in index],
                successes=[shot.successes[at] for at in index],
                signed=True,
            )
        for key in plan.treatments:
            p = difference(arms[key], arms[plan.control], alpha=plan.level).p_value
            if p is not None and p < plan.level:
                return True
    return False
