"""What is to be known of who was measured how often: findings that stand beside the numbers they are about.

They follow from the very sums an answer is made of, so an exported answer has them as well.
"""

from collections import defaultdict

from control_plane.domain.evidence import Evidence, Json
from control_plane.domain.statistics.means import mean, moments
from control_plane.domain.statistics.proportions import Estimate, compared

LARGEST_SHARE = 0.25
"""Of an arm's impressions that one participant may have; beyond it most of the arm's error is that participant's."""
DIFFERENT = 0.001
"""p below which arms are measured unlike each other."""


def uneven(evidence: Evidence) -> list[Json]:
    """Findings about participants that outweigh their arm, arms measured unlike each other, and impossible rates.

    A switchback has everybody in every arm, and a personalization compares nothing: there is nothing to find.
    """
    if evidence.alternation is not None or evidence.uncompared is not None:
        return []
    found: dict[str, dict[str, list[int]]] = {arm.key: defaultdict(lambda: [0, 0]) for arm in evidence.arms}
    for member, m, c in zip(evidence.members, *evidence.sums.pair(evidence.measure), strict=True):
        own = found[member.arm][member.cluster or member.participant]
        own[0] += m
        own[1] += c
    arms = {key: {name: (m, c) for name, (m, c) in own.items()} for key, own in found.items()}
    return [*_dominated(evidence, arms), *_measured_unlike(evidence, arms), *_impossible(evidence, arms)]


Arms = dict[str, dict[str, tuple[int, int]]]
"""(m, c) of what was drawn, by arm."""


def _dominated(evidence: Evidence, arms: Arms) -> list[Json]:
    found: dict[str, Json] = {}
    for key, own in arms.items():
        total = sum(m for m, _ in own.values())
        if not total or evidence.measure.kind not in ("proportion", "ratio"):
            continue
        name, most = max(((name, m) for name, (m, _) in own.items()), key=lambda item: item[1])
        # Of three participants each has a third; twice what everybody would have alike is too much.
        if most / total > max(LARGEST_SHARE, 2 / len(own)):
            found[key] = {"participant": name, "share": most / total}
    if not found:
        return []
    listed = ", ".join(
        f"{one['participant']} has {100 * one['share']:.0f} % of {key}" for key, one in sorted(found.items())
    )
    return [
        {
            "code": "ONE_PARTICIPANT_DOMINATES",
            "severity": "warning",
            "message": f"one participant has over a quarter of a variant's impressions: {listed}",
            "evidence": found,
            "advice": "its rate is nearly the variant's; a proportion `of: participants` counts everybody once",
        }
    ]


def _measured_unlike(evidence: Evidence, arms: Arms) -> list[Json]:
    """Rates whose lower part is of the variants' own making: impressions by participant that differ by arm."""
    whole = evidence.measure.kind == "ratio" or (
        evidence.measure.kind == "proportion" and evidence.measure.of == "impressions"
    )
    control = arms.get(evidence.control or "")
    if not (whole and control):
        return []
    before = _often("control", control)
    told: dict[str, float] = {}
    others = [(key, own) for key, own in arms.items() if key != evidence.control and own]
    for key, own in others:
        p = compared(_often(key, own), before, alpha=DIFFERENT).p_value
        if p is not None and len(others) * p < DIFFERENT:
            told[key] = min(1.0, len(others) * p)
    if not told:
        return []
    return [
        {
            "code": "IMPRESSIONS_DIFFER_BY_ARM",
            "severity": "warning",
            "message": f"participants of {', '.join(sorted(told))} have more or fewer impressions than the control's",
            "evidence": {"pValues": told},
            "advice": "a variant that changes how often it is met changes what its rate is of; count participants",
        }
    ]


def _often(key: str, own: dict[str, tuple[int, int]]) -> Estimate:
    return mean(key, moments([m for m, _ in own.values()]))


def _impossible(evidence: Evidence, arms: Arms) -> list[Json]:
    told = {
        key: {"conversions": sum(c for _, c in own.values()), "impressions": sum(m for m, _ in own.values())}
        for key, own in arms.items()
    }
    told = {key: one for key, one in told.items() if one["conversions"] > one["impressions"]}
    if evidence.measure.kind != "proportion" or not told:
        return []
    return [
        {
            "code": "CONVERSIONS_EXCEED_IMPRESSIONS",
            "severity": "error",
            "message": f"{', '.join(sorted(told))} converted more often than met: the rate is no share",
            "evidence": told,
            "advice": "report an impression before what follows from it, or measure a `count`",
        }
    ]
