"""What an operator should know about an experiment: pure rules over counts and facts.

Each rule says what it saw (evidence), what that does to the answer, and what to do. None changes anything.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from control_plane.domain.lifecycle import Status
from control_plane.domain.statistics.srm import SUPPRESS, WARN, same_share

QUIET_SECONDS = 3_600
"""An experiment without any exposure is worth a word after so long."""
CROSSED = 0.01
"""A share of participants with several variants' content above this is worth a warning."""


class Severity(StrEnum):
    """How much it matters: `error` makes the numbers wrong, `warning` may, `info` explains them."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing to know; `evidence` is JSON-shaped and never content."""

    code: str
    severity: Severity
    message: str
    evidence: Mapping[str, Any]
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seated:
    """What is known of one participant with a variant (its key) in the present phase."""

    participant: str
    arm: str
    agent: str | None
    forced: bool
    retired: bool
    impressions: int
    delivered: int
    """Impressions that met the assigned content."""
    state: str | None
    """Of its file, as last seen: applied, drifted, missing; None before a first word."""
    deployment: str | None
    """How its newest deployment stands."""
    contents: frozenset[str] = frozenset()
    """Keys of the variants whose content was on its file during the phase."""
    contested: bool = False
    """Its host reports that another tool keeps rewriting a target."""
    unit: str = ""
    """What it was drawn with, which falls silent or drifts as a whole; empty: it was drawn by itself."""
    unseen: tuple[str, ...] = ()
    """Why its host did not see every open of a target, where opens are its impressions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules look at."""

    status: Status
    compared: bool
    """Whether the type compares variants at all."""
    has_primary: bool
    running_seconds: float
    seated: Sequence[Seated]
    schedule_failures: Sequence[tuple[str, str]] = ()
    """(what was scheduled, why it failed)."""
    open_slots: int = 0
    """Slots that should hold a variant."""
    seed: bytes = b""
    plan_changed: bool = False
    """Its metrics are others than at the start."""
    alternating: bool = False
    """Everybody has every variant in turn, so there are no arms of participants to set against each other."""
    kept_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Participants whose hosts refuse content of some variant, with the reasons' codes."""
    by_arm: Mapping[str, list[Seated]] = field(init=False)

    def __post_init__(self) -> None:
        groups: defaultdict[str, list[Seated]] = defaultdict(list)
        for item in self.seated:
            groups[item.arm].append(item)
        object.__setattr__(self, "by_arm", dict(sorted(groups.items())))


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Everything there is to know, what matters most first."""
    order = list(Severity)[::-1]
    found = [item for rule in _RULES for item in rule(facts)]
    return tuple(sorted(found, key=lambda item: order.index(item.severity)))


def _some(names: Sequence[str]) -> list[str]:
    return sorted(names)[:20]


def _no_metric(facts: Facts) -> Iterator[Finding]:
    if facts.compared and not facts.has_primary:
        yield Finding(
            code="NO_PRIMARY_METRIC",
            severity=Severity.WARNING,
            message="there is no primary metric, so nothing says what a better variant is",
            evidence={},
            advice="set metrics.primary to the conversion that decides",
        )


def _plan_changed(facts: Facts) -> Iterator[Finding]:
    if facts.plan_changed:
        yield Finding(
            code="PLAN_CHANGED",
            severity=Severity.WARNING,
            message="the metrics were changed after the start, when numbers could already be seen",
            evidence={},
            advice="report the change beside the results; the audit log has who changed what, and when",
        )


def _zero_exposures(facts: Facts) -> Iterator[Finding]:
    quiet = facts.seated and not any(item.impressions for item in facts.seated)
    if facts.status is Status.RUNNING and quiet and facts.running_seconds >= QUIET_SECONDS:
        yield Finding(
            code="ZERO_EXPOSURES",
            severity=Severity.WARNING,
            message="nothing was reported since the start",
            evidence={"hours": round(facts.running_seconds / 3_600, 1), "participants": len(facts.seated)},
            advice="let the application report impressions, or look at the agents' spools with `agents get`",
        )


def _missing_by_arm(facts: Facts) -> Iterator[Finding]:
    yield from _unequal(
        facts,
        lambda item: item.impressions > 0,
        code="MISSING_EXPOSURE_BY_ARM",
        what="participants without any impression",
        advice="find out what the variant does to the hosts that are silent; the numbers compare survivors only",
        enough=any,
    )


def _excluded_by_arm(facts: Facts) -> Iterator[Finding]:
    exposed = [item for item in facts.seated if item.impressions]
    yield from _unequal(
        facts,
        lambda item: item.delivered == item.impressions,
        code="EXCLUSIONS_DIFFER_BY_ARM",
        what="participants with impressions on other content than the assigned",
        advice="look at why (refused, drifted, forced); decide on the population `assigned`",
        among=exposed,
    )


def _drift_by_arm(facts: Facts) -> Iterator[Finding]:
    drifted = [item for item in facts.seated if item.state in ("drifted", "missing")]
    if not drifted:
        return
    counts = Counter(item.arm for item in drifted)
    yield Finding(
        code="DRIFT",
        severity=Severity.WARNING,
        message=f"{len(drifted)} participants do not hold what was written there",
        evidence={"byVariant": dict(sorted(counts.items())), "participants": _some(_names(drifted))},
        advice="see who changed the file; deploy with --overwrite-drift, or let the host repair it",
    )
    yield from _unequal(
        facts,
        lambda item: item.state not in ("drifted", "missing"),
        code="DRIFT_BY_ARM",
        what="participants whose file drifted",
        advice="people may be undoing one variant; the populations `assigned` and `delivered` will disagree",
    )


def _contested(facts: Facts) -> Iterator[Finding]:
    found = [item for item in facts.seated if item.contested]
    if found:
        yield Finding(
            code="REWRITTEN_BY_ANOTHER_TOOL",
            severity=Severity.ERROR,
            message=f"on {len(found)} participants another tool keeps rewriting the target",
            evidence={"participants": _some(_names(found))},
            advice="take the file out of the other tool's hands, or the participant out of the experiment",
        )


def _opens_unseen(facts: Facts) -> Iterator[Finding]:
    found = [item for item in facts.seated if item.unseen]
    if found:
        reasons = Counter(reason for item in found for reason in item.unseen)
        yield Finding(
            code="OPENS_UNSEEN",
            severity=Severity.WARNING,
            message=f"on {len(found)} participants opens went uncounted for a while: impressions are a lower bound",
            evidence={"participants": _some(_names(found)), "reasons": dict(sorted(reasons.items()))},
            advice="compare participants or subjects rather than impressions, or have the application report them",
        )


def _not_delivered(facts: Facts) -> Iterator[Finding]:
    failed = [item for item in facts.seated if item.deployment in ("refused", "rolled_back", "stuck")]
    if failed and facts.status is not Status.COMPLETED:
        counts = Counter(item.arm for item in failed)
        yield Finding(
            code="NOT_DELIVERED",
            severity=Severity.WARNING,
            message=f"{len(failed)} hosts did not take their variant",
            evidence={"byVariant": dict(sorted(counts.items())), "participants": _some(_names(failed))},
            advice="`experiments deployments` has each host's reason and remedy",
        )


def _forced(facts: Facts) -> Iterator[Finding]:
    found = [item for item in facts.seated if item.forced]
    if found:
        yield Finding(
            code="FORCED_PARTICIPANTS",
            severity=Severity.INFO,
            message=f"{len(found)} participants hold another variant than the assigned, by hand",
            evidence={"participants": _some(_names(found))},
            advice="they stay in their assigned arm in `assigned` and leave `delivered`; `unforce` returns them",
        )


def _crossed(facts: Facts) -> Iterator[Finding]:
    found = [item for item in facts.seated if len(item.contents) > 1]
    if found and not facts.alternating and len(found) > CROSSED * len(facts.seated):
        yield Finding(
            code="SEVERAL_EXPOSURES",
            severity=Severity.WARNING,
            message=f"{len(found)} participants held the content of several variants in this phase",
            evidence={"participants": _some(_names(found)), "share": len(found) / len(facts.seated)},
            advice="whoever met several is out of `delivered`, as exposureCriteria.multipleVariants says;"
            " compare both populations",
        )


def _shared_hosts(facts: Facts) -> Iterator[Finding]:
    arms: defaultdict[str, set[str]] = defaultdict(set)
    for item in facts.seated:
        if item.agent is not None:
            arms[item.agent].add(item.arm)
    mixed = [agent for agent, found in arms.items() if len(found) > 1]
    if mixed and not facts.alternating:
        yield Finding(
            code="SEVERAL_ARMS_ON_ONE_HOST",
            severity=Severity.INFO,
            message=f"on {len(mixed)} hosts participants have different variants",
            evidence={"hosts": len(mixed)},
            advice="that is what balancing within hosts means; where participants of a host share what they"
            " learn, the difference is underestimated",
        )


def _retired(facts: Facts) -> Iterator[Finding]:
    found = [item for item in facts.seated if item.retired]
    if found:
        yield Finding(
            code="RETIRED_HOSTS",
            severity=Severity.INFO,
            message=f"the hosts of {len(found)} participants are retired",
            evidence={"participants": _some(_names(found))},
            advice="what they reported stays in `assigned`; nothing more comes",
        )


def _kept_out(facts: Facts) -> Iterator[Finding]:
    if facts.kept_out:
        reasons = Counter(code for codes in facts.kept_out.values() for code in set(codes))
        yield Finding(
            code="PREFLIGHT_REFUSED",
            severity=Severity.WARNING,
            message=f"{len(facts.kept_out)} participants take part in no variant: their hosts refuse some content",
            evidence={
                "participants": _some(list(facts.kept_out)),
                "byReason": dict(sorted(reasons.items())),
            },
            advice="what is found holds for hosts that take every variant; see a preview for which content is"
            " refused where, mend that before the start, or let who chooses by labels join late",
        )


def _schedule_failed(facts: Facts) -> Iterator[Finding]:
    for kind, why in facts.schedule_failures:
        yield Finding(
            code="SCHEDULE_FAILED",
            severity=Severity.ERROR,
            message=f"the scheduled {kind} failed: {why}",
            evidence={"kind": kind},
            advice="mend it and do it by hand, or set a new schedule",
        )


def _still_deployed(facts: Facts) -> Iterator[Finding]:
    if facts.status is Status.COMPLETED and facts.open_slots:
        yield Finding(
            code="COMPLETED_BUT_DEPLOYED",
            severity=Severity.INFO,
            message=f"{facts.open_slots} hosts still hold a variant and watch it, though the experiment has ended",
            evidence={"slots": facts.open_slots},
            advice="that is so after shipping; `experiments reset --then restore` puts the baselines back",
        )


def _unequal(
    facts: Facts,
    good: Callable[[Seated], bool],
    *,
    code: str,
    what: str,
    advice: str,
    among: Sequence[Seated] | None = None,
    enough: Callable[[Iterable[bool]], bool] = all,
) -> Iterator[Finding]:
    """A finding where the share of `good` participants differs between arms more than chance allows.

    What was drawn is counted: a cluster is good where `enough` of its participants are, all of them or any.
    """
    if not facts.compared or facts.alternating or len(facts.by_arm) < 2:
        return
    chosen = set(_names(facts.seated if among is None else among))
    arms = {
        key: [item for item in members if item.participant in chosen] for key, members in facts.by_arm.items()
    }
    units = [_by_unit(members, good) for members in arms.values()]
    p = same_share(
        [sum(map(enough, own.values())) for own in units], [len(own) for own in units], seed=facts.seed
    )
    if p >= WARN:
        return
    yield Finding(
        code=code,
        severity=Severity.ERROR if p < SUPPRESS else Severity.WARNING,
        message=f"{what} are not equally many in every variant (p = {p:.2g})",
        evidence={
            "pValue": p,
            "byVariant": {
                key: {"participants": len(members), "affected": sum(1 for item in members if not good(item))}
                for key, members in arms.items()
            },
        },
        advice=advice,
    )


def _by_unit(members: Sequence[Seated], good: Callable[[Seated], bool]) -> dict[str, list[bool]]:
    """Whether each is good, by what was drawn."""
    found: defaultdict[str, list[bool]] = defaultdict(list)
    for item in members:
        found[item.unit or item.participant].append(good(item))
    return found


def _names(found: Sequence[Seated]) -> list[str]:
    return [item.participant for item in found]


_RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _schedule_failed,
    _contested,
    _missing_by_arm,
    _excluded_by_arm,
    _drift_by_arm,
    _not_delivered,
    _opens_unseen,
    _crossed,
    _no_metric,
    _plan_changed,
    _zero_exposures,
    _forced,
    _retired,
    _shared_hosts,
    _still_deployed,
    _kept_out,
)
CODES: Mapping[str, str] = {
    "SCHEDULE_FAILED": "a start or stop that was scheduled could not be done",
    "REWRITTEN_BY_ANOTHER_TOOL": "a host reports that another tool keeps rewriting the target",
    "MISSING_EXPOSURE_BY_ARM": "more participants of one variant are silent than chance allows",
    "EXCLUSIONS_DIFFER_BY_ARM": "more participants of one variant met other content than chance allows",
    "DRIFT": "files do not hold what was written there",
    "DRIFT_BY_ARM": "more files of one variant drifted than chance allows",
    "NOT_DELIVERED": "hosts refused, rolled back or gave up their variant",
    "OPENS_UNSEEN": "opens that are impressions went uncounted for a while on a host",
    "SEVERAL_EXPOSURES": "over 1 % of participants held the content of several variants in the phase",
    "NO_PRIMARY_METRIC": "nothing says what a better variant is",
    "PLAN_CHANGED": "metrics were changed after the start",
    "ZERO_EXPOSURES": "nothing was reported in the first hour",
    "FORCED_PARTICIPANTS": "participants hold another variant than the assigned, by hand",
    "RETIRED_HOSTS": "hosts of participants are retired",
    "SEVERAL_ARMS_ON_ONE_HOST": "participants of one host have different variants",
    "PREFLIGHT_REFUSED": "hosts refuse content of some variant, so their participants get none",
    "COMPLETED_BUT_DEPLOYED": "the experiment has ended and hosts still hold a variant",
}
"""Every code a finding can have, and when it is there."""

OF_RESULTS: Mapping[str, str] = {
    "EXCLUSION_SENSITIVE": "assigned and delivered do not say the same",
    "HISTORY_MISSING": "history is to be taken out, and some participants have none",
    "ONE_PARTICIPANT_DOMINATES": "one participant has over a quarter of a variant's impressions",
    "IMPRESSIONS_DIFFER_BY_ARM": "participants of one variant are measured more often than chance allows",
    "CONVERSIONS_EXCEED_IMPRESSIONS": "a variant converted more often than it was met",
}
"""What stands beside the numbers it is about only: it follows from the very evidence of an answer."""
