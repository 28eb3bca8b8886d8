"""Results as one function: evidence in, the whole answer out.

The server gathers the evidence and answers with it; whoever has the same evidence, exported, gets the same
answer, byte for byte, without a server. Two clocks run in an answer. Counts, rates and probabilities are of
the moment. Whatever compares variants and may be acted on (difference, interval, p, verdict) is of a recorded look:
the one that decided, else the last. Before the first look a comparison has no interval, and `sequential`, which is
valid at any moment, stands in for it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.domain import alternation, pooling
from control_plane.domain.effects import interactions, main_effects
from control_plane.domain.evidence import (
    Arm,
    Evidence,
    Excluded,
    Json,
    Ledgered,
    camel,
    clusters,
    document,
    ends,
    historied,
    interval_of,
    look,
    looked,
    now,
    plan_of,
    snapshot_of,
)
from control_plane.domain.history import forgotten
from control_plane.domain.integrity import integrity, shown
from control_plane.domain.secondary import secondary
from control_plane.domain.statistics import planning, sequence, srm
from control_plane.domain.statistics.bayes import beliefs_of_values
from control_plane.domain.statistics.decision import Comparison, Look
from control_plane.domain.statistics.posterior import Beta
from control_plane.domain.statistics.proportions import ArmSums, Interval, Rate, Undefined, rate
from control_plane.domain.statistics.summary import EXPLANATIONS, ArmSummary, counts_only, summarise
from control_plane.domain.statistics.verdict import (
    Guard,
    Guarded,
    Integrity,
    Reason,
    Verdict,
    standing,
    verdict,
)
from control_plane.domain.traffic import uneven
from shared.errors import Fault, Invalid


def answer(evidence: Evidence) -> Json:
    """The whole answer, JSON-shaped. Every number that is null has its reason beside it."""
    if evidence.pooled:
        return pooling.answer(evidence)
    arms = [_arm_sums(evidence, arm, evidence.sums.shares(evidence.measure)) for arm in evidence.arms]
    control = evidence.control
    why = evidence.uncompared
    summary = (
        summarise(
            arms,
            control=control,
            alpha=evidence.settings.alpha,
            variance=evidence.settings.variance,
            prior=Beta(a=evidence.settings.prior[0], b=evidence.settings.prior[1]),
            goal=evidence.measure.goal,
            idle=[arm.key for arm in evidence.arms if not arm.weight],
        )
        if why is None
        else counts_only(arms, alpha=evidence.settings.alpha, reason=Undefined(why))
    )
    found = looked(evidence.looks)
    numbers = _numbers(evidence, found)
    sound = integrity(evidence)
    guards = _guards(evidence.looks)
    power = _power(evidence)
    decided = _verdict(evidence, found, sound, guards, mde=power["mde"] if power else None)
    return {
        **evidence.about,
        "alpha": evidence.settings.alpha,
        "population": evidence.population,
        "method": _method(evidence) if why is None else None,
        "variants": [
            {
                "id": arm.id,
                "key": arm.key,
                "name": arm.name,
                "isControl": arm.is_control,
                "weight": arm.weight,
                **_shown(evidence, one, numbers.get(arm.key)),
            }
            for arm, one in zip(evidence.arms, summary.arms, strict=True)
        ],
        "looks": [
            {"number": item.number, "at": item.at, "cutOff": item.cut_off, "day": item.day,
             "comparisons": list(item.comparisons)}
            for item in evidence.looks
        ],
        "guardrails": [_guard_shown(item) for item in guards],
        "exclusions": [_excluded(evidence, item) for item in evidence.exclusions],
        "srm": shown(evidence, sound),
        "verdict": None if decided is None else _verdict_shown(evidence, decided),
        "power": power,
        "carryOver": alternation.carried_over(evidence) if evidence.alternation else [],
        "findings": [
            *evidence.findings, *_sensitive(evidence, found), *forgotten(evidence), *uneven(evidence),
        ],
        "phases": [],
        "secondary": secondary(evidence),
        "mainEffects": main_effects(evidence),
        "interactions": interactions(evidence),
        "explanations": dict(EXPLANATIONS),
        "inputs": None,
    }  # fmt: skip


def _arm_sums(evidence: Evidence, arm: Arm, pair: tuple[Sequence[int], Sequence[int]]) -> ArmSums:
    """The arm's sums by what was drawn, everybody who was assigned included."""
    found: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for member, m, c in zip(evidence.members, *pair, strict=True):
        if member.arm == arm.key:
            sums = found[member.cluster or member.participant]
            sums[0] += m
            sums[1] += c
    return ArmSums(
        key=arm.key,
        trials=[m for m, _ in found.values()],
        successes=[c for _, c in found.values()],
        signed=True,
    )


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What compares an arm with the control: of a look, or, where there is none, of the moment."""

    of_look: Comparison | None
    now: Comparison | None


def _numbers(evidence: Evidence, recorded: Sequence[Look]) -> dict[str, _Numbers]:
    if evidence.uncompared is not None or evidence.control is None:
        return {}
    stand = {one.arm: one for one in standing(recorded)}
    present = now(evidence)
    return {
        arm.key: _Numbers(stand.get(arm.key), present.get(arm.key))
        for arm in evidence.arms
        if not arm.is_control
    }


_OWN = (
    "conversion_rate",
    "probability_to_be_best",
    "expected_loss",
    "credible_interval",
    "design_effect",
    "icc",
    "chance_to_win",
)


def _shown(evidence: Evidence, one: ArmSummary, numbers: _Numbers | None) -> Json:
    exposed = [
        m for item, m in zip(evidence.members, evidence.sums.impressions, strict=True) if item.arm == one.key
    ]
    found: Json = {
        "participants": len(exposed),
        "participantsExposed": sum(1 for m in exposed if m),
        "impressions": sum(exposed),
        "conversions": sum(
            c
            for item, c in zip(evidence.members, evidence.sums.conversions, strict=True)
            if item.arm == one.key
        ),
        "units": one.impressions,
        "convertedUnits": one.conversions,
    }
    reasons: dict[str, str] = {}
    for name in _OWN:
        value = getattr(one, name)
        found[camel(name)] = ends(value, 1.0) if isinstance(value, Interval) else value
        if value is None:
            reasons[camel(name)] = one.reasons[name].value
    kind = evidence.measure.kind
    if kind == "proportion":
        found["mean"] = None
        reasons["mean"] = Undefined.IS_A_PROPORTION.value
    else:
        found |= dict.fromkeys(("designEffect", "icc"))
        reasons |= dict.fromkeys(("designEffect", "icc"), Undefined.NOT_OF_THIS_KIND.value)
        found |= _believed_of(evidence, one.key, reasons)
        own = _rate_of(evidence, one.key)
        found["mean"] = None if own.rate is None else own.rate * evidence.scale
        if own.rate is None:
            reasons["mean"] = own.reasons["rate"].value
    found |= _against(evidence, one, numbers, reasons)
    found["worstCase"] = _worst_case(evidence, one, reasons)
    return {**found, "reasons": dict(sorted(reasons.items()))}


def _rate_of(evidence: Evidence, key: str) -> Rate:
    """The arm's value, in the sums' unit."""
    arm = next(arm for arm in evidence.arms if arm.key == key)
    return rate(
        _arm_sums(evidence, arm, evidence.sums.pair(evidence.measure)),
        variance=evidence.settings.variance,
    )


def _believed_of(evidence: Evidence, key: str, reasons: dict[str, str]) -> Json:
    """What is believed of a metric that is no proportion, in place of what its conversions say."""
    own = [_rate_of(evidence, arm.key).estimate() for arm in evidence.arms if arm.weight]
    found = beliefs_of_values(
        own, control=evidence.control, alpha=evidence.settings.alpha, goal=evidence.measure.goal
    )
    told: Json = dict.fromkeys(("probabilityToBeBest", "expectedLoss", "credibleInterval", "chanceToWin"))
    if evidence.uncompared is not None:
        return told
    for name in told:
        reasons.pop(name, None)
    one = None if isinstance(found, Undefined) else next((x for x in found.arms if x.key == key), None)
    if one is None:
        why = found if isinstance(found, Undefined) else Undefined.NO_IMPRESSIONS
        reasons |= dict.fromkeys(told, why.value)
        return told
    if one.chance_to_win is None:
        if evidence.control is None:
            absent = Undefined.NO_CONTROL
        else:
            absent = Undefined.IS_CONTROL if key == evidence.control else Undefined.NO_IMPRESSIONS
        reasons["chanceToWin"] = absent.value
    return {
        "probabilityToBeBest": one.probability_to_be_best,
        "expectedLoss": one.expected_loss * evidence.scale,
        "credibleInterval": ends(one.credible_interval, evidence.scale),
        "chanceToWin": one.chance_to_win,
    }


def _worst_case(evidence: Evidence, one: ArmSummary, reasons: dict[str, str]) -> Json | None:
    """Where the difference would lie, had every silent participant never or always converted (Manski 1990)."""
    why = None
    if evidence.measure.kind != "proportion":
        why = Undefined.NOT_OF_THIS_KIND.value
    elif evidence.alternation is not None:
        why = Undefined.ALTERNATING.value
    elif evidence.uncompared is not None:
        why = evidence.uncompared
    elif evidence.control is None:
        why = Undefined.NO_CONTROL.value
    elif one.key == evidence.control:
        why = Undefined.IS_CONTROL.value
    sides = [_spoken(evidence, key) for key in (one.key, evidence.control)]
    if why is None and any(size == silent or converted > 1 for converted, silent, size in sides):
        why = Undefined.NO_IMPRESSIONS.value
    if why is not None:
        reasons["worstCase"] = why
        return None
    (t, t_silent, t_size), (c, c_silent, c_size) = sides
    low, high = srm.worst_case((t, c), (t_silent, c_silent), (t_size, c_size))
    return {"low": low, "high": high}


def _spoken(evidence: Evidence, key: str | None) -> tuple[float, int, int]:
    """(rate of who has data, how many have none, how many there are)."""
    rows = zip(evidence.members, *evidence.sums.shares(evidence.measure), strict=True)
    own = [(m, c) for member, m, c in rows if member.arm == key]
    trials = sum(m for m, _ in own)
    return (
        sum(c for _, c in own) / trials if trials else 0.0,
        sum(1 for m, _ in own if not m),
        len(own),
    )


_COMPARING = ("difference", "differenceInterval", "lift", "liftInterval", "pValue", "pValueAdjusted")


def _against(evidence: Evidence, one: ArmSummary, numbers: _Numbers | None, reasons: dict[str, str]) -> Json:
    """What compares the arm: decided at looks for the primary metric, valid at any moment for every other."""
    absent = dict.fromkeys((*_COMPARING, "sequential"))
    if numbers is None or (numbers.now is None and numbers.of_look is None):
        why = one.reasons.get("difference", Undefined.NO_CONTROL).value
        reasons |= dict.fromkeys(absent, why)
        return absent
    now = None if numbers.now is None else document(numbers.now, evidence.scale)
    shown = now
    if evidence.primary:
        # A recorded look is in the metric's own unit already.
        shown = None if numbers.of_look is None else document(numbers.of_look, 1.0)
    found: Json = {}
    if shown is not None:
        found = {
            "difference": shown["difference"],
            "differenceInterval": shown["interval"],
            **{name: shown[name] for name in ("lift", "liftInterval", "pValue", "pValueAdjusted")},
        }
        codes = dict(shown["reasons"])
        codes |= {"differenceInterval": codes.get("interval"), "difference": codes.get("estimate")}
        reasons |= {
            name: codes.get(name) or Undefined.NO_IMPRESSIONS.value for name, v in found.items() if v is None
        }
    else:
        found = dict.fromkeys(_COMPARING)
        reasons |= dict.fromkeys(_COMPARING, Undefined.NO_LOOK_YET.value)
        if now is not None:
            for name, source in (("difference", "estimate"), ("lift", "lift")):
                found[name] = now[name]
                reasons.pop(name)
                if now[name] is None:
                    reasons[name] = now["reasons"].get(source, Undefined.NO_IMPRESSIONS.value)
    found["sequential"] = now and {"pValue": now["pValue"], "differenceInterval": now["interval"]}
    if now is not None and now["interval"] is None:
        found["sequential"] = None
        reasons["sequential"] = now["reasons"].get("interval", Undefined.NO_IMPRESSIONS.value)
    return found


def _method(evidence: Evidence) -> Json:
    settings = evidence.settings
    return {
        "decision": settings.decision,
        "clusterBy": settings.cluster_by,
        "variance": settings.variance if settings.history_days is None else "cuped",
        "horizonDays": settings.horizon_days,
        "power": settings.power,
        "minimumDetectableEffect": evidence.measure.effect or settings.effect,
        "tuning": settings.tuning,
        "prior": {"a": settings.prior[0], "b": settings.prior[1]},
        "correction": "bonferroni",
        "alphaUnspent": evidence.unspent,
        "historyDays": settings.history_days,
        "withoutHistory": None if evidence.history is None else len(clusters(evidence)) - historied(evidence),
        "winsorizeAt": evidence.measure.winsorize_at,
        "strata": len({member.stratum for member in evidence.members}),
        "comparedAt": evidence.looks[-1].cut_off if evidence.looks and evidence.primary else None,
        "switchback": alternation.said(evidence, evidence.alternation) if evidence.alternation else None,
    }


def _guards(ledger: Sequence[Ledgered]) -> list[Guarded]:
    if not ledger:
        return []
    return [
        Guarded(
            metric=item["metric"],
            arm=item["variant"],
            state=Guard(item["state"]),
            interval=interval_of(item["interval"]),
            bound=item["bound"],
        )
        for item in ledger[-1].guardrails
    ]


def _guard_shown(item: Guarded) -> Json:
    return {
        "metric": item.metric,
        "variant": item.arm,
        "state": item.state.value,
        "interval": ends(item.interval, 1.0),
        "bound": item.bound,
    }


def _verdict(
    evidence: Evidence,
    recorded: Sequence[Look],
    sound: Integrity,
    guards: Sequence[Guarded],
    *,
    mde: float | None,
) -> Verdict | None:
    """Only of the primary metric, in the population of everybody who was assigned."""
    comparable = evidence.uncompared is None and evidence.comparable
    if not (evidence.primary and evidence.population == "assigned" and comparable):
        return None
    return verdict(
        plan_of(evidence),
        recorded,
        goal=evidence.measure.goal,
        reachable=evidence.reachable,
        integrity=sound,
        guarded=guards,
        data=any(evidence.sums.impressions),
        mde=mde,
    )


def _verdict_shown(evidence: Evidence, found: Verdict) -> Json:
    ids = {arm.key: arm.id for arm in evidence.arms}
    return {
        "status": found.status.value,
        "variantId": None if found.arm is None else ids[found.arm],
        "variant": found.arm,
        "winners": list(found.winners),
        "reasons": [_reason(item) for item in found.reasons],
        "smallestReachablePValue": evidence.reachable,
        "decidableAt": evidence.next_look_at,
    }


def _reason(item: Reason) -> Json:
    return {
        "code": item.code,
        "message": item.message,
        "formula": item.formula,
        "inputs": dict(item.inputs),
    }


def _power(evidence: Evidence) -> Json | None:
    """What can be found with who takes part, and how many the change worth finding would need; of proportions."""
    if evidence.alternation is not None:
        return alternation.power(evidence, evidence.alternation)
    control = next((arm for arm in evidence.arms if arm.is_control), None)
    if control is None or evidence.measure.kind != "proportion" or evidence.uncompared is not None:
        return None
    own = _arm_sums(evidence, control, evidence.sums.shares(evidence.measure))
    shown = summarise([own], control=None)
    base, alike = shown.arms[0].conversion_rate, shown.arms[0].icc
    rows = own.with_data()
    others = [arm for arm in evidence.arms if arm.weight and arm is not control]
    level = plan_of(evidence).level if others and control.weight else 0.0
    if not base or base >= 1 or not rows or not level:
        return None
    fewest = min(len(_exposed(evidence, arm)) for arm in others)
    effect = base * (evidence.measure.effect or evidence.settings.effect)
    total = sum(m for m, _ in rows)
    each = sum(m * m for m, _ in rows) / total
    deff = planning.design_effect(impressions_each=each, icc=alike or 0.0)
    common: Json = {
        "baseline": base,
        "impressions_each": each,
        "icc": alike or 0.0,
        "wanted": evidence.settings.power,
        "alpha": level,
        "boundary": _boundary(evidence, effect=effect, level=level, each=each / deff),
    }
    needed = planning.participants_per_arm(effect=effect, **common) if base + effect <= 1 else None
    found = None
    if fewest:
        found = planning.detectable(participants=len(rows), ratio=fewest / len(rows), **common)
    return {
        "mde": found,
        "participantsNeeded": needed,
        "assumes": {"baseline": base, "icc": alike, "effect": effect},
    }


def _exposed(evidence: Evidence, arm: Arm) -> list[tuple[int, int]]:
    """The sums of what was drawn into the arm and has any."""
    return _arm_sums(evidence, arm, evidence.sums.shares(evidence.measure)).with_data()


def _boundary(evidence: Evidence, *, effect: float, level: float, each: float) -> planning.Boundary | None:
    """How far away a sequence decides, with participants worth so many trials each; None where it does not decide."""
    if evidence.settings.decision != "sequence":
        return None
    target = sequence.information_target(alpha=level, power=evidence.settings.power, effect=effect)
    tuning = evidence.settings.tuning

    def boundary(trials: float, variance: float) -> float:
        both = 2 * trials / each
        return sequence.always_valid(
            estimate=0.0,
            standard_error=1.0,
            share=1 / variance / target if tuning is None else both / tuning,
            alpha=level,
            degrees_of_freedom=max(both - 2, 1.0),
        ).boundary

    return boundary


def _excluded(evidence: Evidence, item: Excluded) -> Json:
    ids = {arm.key: arm.id for arm in evidence.arms}
    return {
        "variantId": ids.get(item.arm),
        "variant": item.arm,
        "reason": item.reason,
        "participants": item.participants,
        "impressions": item.impressions,
    }


def _sensitive(evidence: Evidence, recorded: Sequence[Look]) -> list[Json]:
    """A finding where the answer depends on who is left out."""
    theirs = {one.arm: one for one in standing(looked(evidence.other_looks))}
    differing = []
    for one in standing(recorded):
        other = theirs.get(one.arm)
        if other is None or one.estimate is None or other.estimate is None:
            continue
        turned = one.estimate * other.estimate < 0 and (one.decided or other.decided)
        if turned or one.decided != other.decided:
            differing.append(one.arm)
    if not differing:
        return []
    return [
        {
            "code": "EXCLUSION_SENSITIVE",
            "severity": "warning",
            "message": f"assigned and delivered do not say the same of {', '.join(differing)}",
            "evidence": {"variants": differing},
            "advice": "trust `assigned`; find out why hosts did not have their variant, by arm, in `exclusions`",
        }
    ]


def differing_looks(evidence: Evidence) -> list[int]:
    """Numbers of the looks whose record does not follow from the sums they saw; raises Invalid where sums are missing.

    p-values are of the looks up to each, so each is computed as if it were the last; up to each are also those that
    were of another metric, which say nothing of this one and have nothing to differ in.
    """
    shots = []
    found = []
    former = {item.day for item in evidence.former_looks}
    for item in sorted([*evidence.looks, *evidence.former_looks], key=lambda one: one.day):
        if item.sums is None:
            message = "has no sums; export it with include=inputs"
            raise Invalid(f"looks.{item.number}: {message}", faults=[Fault(field="looks", message=message)])
        until = item.day if item.open else None
        shots.append(snapshot_of(evidence, item.sums, day=item.day, until=until))
        if item.day in former:
            continue
        again = look(evidence, shots)
        # What an older record does not say cannot differ.
        same = len(again) == len(item.comparisons) and all(
            {name: one[name] for name in kept} == kept
            for one, kept in zip(again, item.comparisons, strict=True)
        )
        if not same:
            found.append(item.number)
    return found
