"""What an answer about a switchback says besides: what was compared, what carried over, what its cycles can find.

Everything is of the blocks that were over at the moment of the question, of who was there when it began.
"""

from collections import defaultdict
from math import ceil, sqrt

from control_plane.domain.evidence import Alternation, Evidence, Json, plan_of, until_now
from control_plane.domain.statistics import decision, planning, srm, switchback
from control_plane.domain.statistics.switchback import Block, Design, Estimate


def said(evidence: Evidence, turns: Alternation) -> Json:
    """How it was compared, for `method`: the design, and as much of it as is over."""
    blocks = _blocks(evidence)
    seen = [switchback.witnesses(design, blocks).names for design in _designs(evidence)]
    own = {turn.cluster or turn.participant for turn in turns.turns}
    return {
        "cycles": turns.cycles,
        "blockDays": turns.block_days,
        "washoutSeconds": turns.washout,
        "participants": len(own),
        "witnesses": len(own) * turns.cycles,
        "witnessesOver": max((len(names) for names in seen), default=0),
        "calendarMeans": len(own) >= switchback.FEWEST_FOR_CALENDAR,
        "flips": "participant and cycle" if len(own) > 1 else "cycle",
    }


def carried_over(evidence: Evidence) -> list[Json]:
    """Each variant and the control by the variant that the participant had in the block before.

    Without carry-over the effect is the same after each; with it, it is smaller after the variant itself, and the whole
    comparison shows less than there is.
    """
    blocks, found = _blocks(evidence), []
    for design in _designs(evidence):
        for previous, after in switchback.by_previous(design, blocks).items():
            rates = [after.treatment, after.control]
            shown = [None if rate is None else rate * evidence.scale for rate in rates]
            found.append(
                {
                    "variant": design.treatment,
                    "previous": previous,
                    "blocks": after.blocks,
                    "rate": shown[0],
                    "controlRate": shown[1],
                    "difference": None if shown[0] is None or shown[1] is None else shown[0] - shown[1],
                    "reason": "NO_IMPRESSIONS" if None in shown else None,
                }
            )
    return found


def silent_alike(evidence: Evidence, turns: Alternation) -> float:
    """The exact p that a block without data is no matter of the variant; of several variants the smallest, corrected.

    Of pairs of blocks in a cycle of which one is silent, each is so with a half (McNemar); participants that are
    silent altogether say nothing.
    """
    control, others = evidence.control, {turn.arm for turn in turns.turns}
    heard: defaultdict[tuple[str, int], dict[str, bool]] = defaultdict(dict)
    for turn, m in zip(turns.turns, turns.sums.impressions, strict=True):
        if turn.over <= turns.day:
            own = heard[turn.cluster or turn.participant, turn.cycle]
            own[turn.arm] = own.get(turn.arm, False) or m > 0
    smallest = 1.0
    for arm in sorted(others - {control}):
        pairs = [(own[arm], own[control]) for own in heard.values() if arm in own and control in own]
        only = (sum(t and not c for t, c in pairs), sum(c and not t for t, c in pairs))
        smallest = min(smallest, srm.same_share_of_pairs(only))
    return min(1.0, smallest * max(len(others) - 1, 1))


def power(evidence: Evidence, turns: Alternation) -> Json | None:
    """What all cycles together will find, and how many participants the change worth finding needs in as many cycles.

    From the error so far, e, of w witnesses: e √(w/W) at the end of W, times z₁₋α/₂ + z_power. None before there is an
    error or a rate of the control.
    """
    blocks, told = _blocks(evidence), []
    for design in _designs(evidence):
        one = switchback.estimate(switchback.witnesses(design, blocks))
        if isinstance(one, Estimate) and one.error and one.control.rate:
            told.append((one.error * sqrt(one.witnesses), abs(one.control.rate), design.alpha))
    if not told:
        return None
    spread, baseline, level = max(told)
    quantiles = planning.errors_apart(alpha=level, wanted=evidence.settings.power)
    effect = baseline * (evidence.measure.effect or evidence.settings.effect)
    planned = len({turn.cluster or turn.participant for turn in turns.turns}) * turns.cycles
    return {
        "mde": quantiles * spread / sqrt(planned) * evidence.scale,
        "participantsNeeded": ceil((quantiles * spread / effect) ** 2 / turns.cycles),
        "assumes": {
            "baseline": baseline * evidence.scale,
            "spreadOfOneWitness": spread * evidence.scale,
            "cycles": turns.cycles,
            "effect": effect * evidence.scale,
        },
    }


def _designs(evidence: Evidence) -> list[Design]:
    plan = plan_of(evidence)
    return [decision.alternating(plan, arm) for arm in plan.treatments]


def _blocks(evidence: Evidence) -> list[Block]:
    return decision.blocks_over(plan_of(evidence), until_now(evidence)[-1])
