"""Gathers what an answer is made of: who was assigned, what they did, which looks are on record."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from control_plane.domain.assignment import ALGORITHM, replay
from control_plane.domain.assignment import Arm as Weighted
from control_plane.domain.design import Type
from control_plane.domain.evidence import (
    Alternation,
    Arm,
    Beside,
    Evidence,
    Excluded,
    Factor,
    Json,
    Ledgered,
    Measure,
    Member,
    Population,
    Settings,
    Stretch,
    Sums,
)
from control_plane.domain.experiment import (
    Assignment,
    Experiment,
    Phase,
    decision,
    drawn_placements,
    normalised,
)
from control_plane.domain.intake import HASHED, Method, late_blocks
from control_plane.domain.metrics import counted_as, counted_below
from control_plane.domain.statistics.proportions import Undefined
from control_plane.domain.switchback import SWITCHBACK
from control_plane.services import alternation
from control_plane.services.work import Work
from control_plane.store.looks import LookRow, Snapshot
from control_plane.store.tallies import Total
from shared.ids import show_id
from shared.moment import to_rfc3339

UNCOMPARED = {
    Type.PERSONALIZATION: Undefined.NOT_RANDOMIZED,
}
"""Types whose variants are not compared, and why."""
_FAILED = ("refused", "rolled_back", "stuck")
"""States of a deployment that leave a host without its variant."""


Whose = tuple[str, bytes] | tuple[str, bytes, int]
"""A member, (participant, variant id), or its turn in a time block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Sums of the members, whatever the metric: (count, units, value) by (participant, variant id) and event name.

    Of a switchback those of each turn besides, by (participant, variant id, time block).
    """

    totals: dict[Whose, dict[str, dict[str, tuple[int, int, int]]]]

    def sums(self, members: Sequence[Whose], metric: Json, population: str) -> Sums:
        """What a metric is computed from, in the order of the members, or turns."""
        rows = [self.totals.get(member, {}) for member in members]

        def column(name: str, place: int) -> tuple[int, ...]:
            return tuple(row.get(name, {}).get(population, (0, 0, 0))[place] for row in rows)

        event = counted_as(metric)
        denominator = counted_below(metric)
        return Sums(
            impressions=column("", 0),
            conversions=column(event, 0),
            values=column(event, 2),
            denominators=column(denominator, 0) if denominator else (0,) * len(rows),
            units=column("", 1) if metric.get("of") == "subjects" else (),
            converted=column(event, 1) if metric.get("of") == "subjects" else (),
        )


def seen(totals: Iterable[Total]) -> Seen:
    """Totals by whom and what."""
    found: dict[Whose, dict[str, dict[str, tuple[int, int, int]]]] = {}
    for item in totals:
        own = {"assigned": item.assigned, "delivered": item.delivered}
        if item.block:
            turn = (item.participant, item.variant_id, item.block)
            found.setdefault(turn, {})[item.event_name] = own
        of = found.setdefault((item.participant, item.variant_id), {})
        so_far = of.setdefault(item.event_name, dict.fromkeys(own, (0, 0, 0)))
        for name, (count, units, value) in own.items():
            before = so_far[name]
            so_far[name] = (before[0] + count, before[1] + units, before[2] + value)
    return Seen(totals=found)


def snapshot(found: Seen, seated: "Seating") -> Snapshot:
    """What a look keeps of it: everybody's sums, and those of every turn in which something was done."""
    members: list[Whose] = [*seated.members, *(turn for turn in seated.turn_keys if turn in found.totals)]
    names = sorted({name for member in members for name in found.totals.get(member, {})} | {""})
    return {
        "participants": [[member[0], member[1].hex(), *member[2:]] for member in members],
        "sums": {
            population: {
                name: [
                    list(found.totals.get(member, {}).get(name, {}).get(population, (0, 0, 0)))
                    for member in members
                ]
                for name in names
            }
            for population in ("assigned", "delivered")
        },
    }


def remembered(kept: Snapshot) -> Seen:
    """What a look saw."""
    found: dict[Whose, dict[str, dict[str, tuple[int, int, int]]]] = {}
    members = [(name, bytes.fromhex(variant), *block) for name, variant, *block in kept["participants"]]
    for population, names in kept["sums"].items():
        for name, rows in names.items():
            for member, row in zip(members, rows, strict=True):
                of = found.setdefault(member, {}).setdefault(name, {})
                of[population] = (row[0], row[1], row[2])
    return Seen(totals=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seating:
    """Who has which variant in a phase, each pair once, and what is known of the draw."""

    experiment: Experiment
    phase: Phase | None
    assignments: tuple[Assignment, ...]
    """The first of every pair of participant and variant."""
    turns: tuple[Assignment, ...] = ()
    """Of a switchback each time block once, of who was there when it began."""

    @property
    def members(self) -> list[tuple[str, bytes]]:
        """(participant, variant id)."""
        return [(item.participant, item.variant_id) for item in self.assignments if item.variant_id]

    def replace_members(self, assignments: Iterable[Assignment]) -> "Seating":
        """The same phase with these assignments only; turns are theirs."""
        kept = tuple(assignments)
        people = {item.participant for item in kept}
        turns = tuple(item for item in self.turns if item.participant in people)
        return replace(self, assignments=kept, turns=turns)

    @property
    def turn_keys(self) -> list[tuple[str, bytes, int]]:
        """(participant, variant id, time block)."""
        return [
            (item.participant, item.variant_id, item.time_block) for item in self.turns if item.variant_id
        ]

    @property
    def compared(self) -> Sequence[Whose]:
        """Whose sums looks compare: the members', or of a switchback the turns'."""
        return self.turn_keys if self.experiment.type is Type.SWITCHBACK else self.members


def seating(work: Work, experiment: Experiment, phase: Phase | None) -> Seating:
    """Everybody who has, had or will have a variant in the phase."""
    pairs: dict[tuple[str, bytes], Assignment] = {}
    rows = work.store.experiments.assignments(phase.id) if phase else []
    for item in rows:
        if item.variant_id is not None:
            pairs.setdefault((item.participant, item.variant_id), item)
    return Seating(
        experiment=experiment,
        phase=phase,
        assignments=tuple(pairs.values()),
        turns=alternation.turns_of(rows),
    )


def evidence(
    seated: Seating,
    metric: Json,
    population: Population,
    sums: Sums,
    *,
    primary: bool,
    about: Json,
    first: Sums | None = None,
    history: Sums | None = None,
    unspent: float = 1.0,
    secondary: Sequence[Beside] = (),
    looks: Sequence[Ledgered] = (),
    former_looks: Sequence[Ledgered] = (),
    other_looks: Sequence[Ledgered] = (),
    exclusions: Sequence[Excluded] = (),
    findings: Sequence[Json] = (),
    next_look_at: int | None = None,
    turns: Alternation | None = None,
) -> Evidence:
    """The evidence of one metric in one population."""
    experiment, phase = seated.experiment, seated.phase
    weights = phase.weights if phase else {variant.id: variant.weight for variant in experiment.variants}
    if experiment.type is Type.SWITCHBACK:
        shares = normalised([1] * len(experiment.arms))
        weights = {variant.id: share for variant, share in zip(experiment.arms, shares, strict=True)}
    reachable = decision(experiment, seated.turns or seated.assignments)
    uncompared = UNCOMPARED.get(experiment.type)
    return Evidence(
        about=about,
        measure=measure_of(metric, experiment),
        primary=primary,
        population=population,
        settings=settings_of(seated),
        seed=(phase.seed if phase else experiment.seed).hex(),
        arms=tuple(
            Arm(
                id=show_id(variant.id),
                key=variant.key,
                name=variant.name,
                is_control=variant.is_control,
                weight=weights.get(variant.id, 0),
                levels=dict(variant.levels) if experiment.factors else {},
            )
            for variant in experiment.arms
        ),
        factors=tuple(
            Factor(key=item.key, levels=tuple(level.key for level in item.levels))
            for item in experiment.factors
        ),
        secondary=tuple(secondary),
        members=members_of(seated),
        sums=sums,
        first=first,
        history=history,
        unspent=unspent,
        alternation=turns,
        looks=tuple(looks),
        former_looks=tuple(former_looks),
        other_looks=tuple(other_looks),
        next_look_at=None if next_look_at is None else to_rfc3339(next_look_at),
        replays=_replays(seated),
        hashed=phase is not None and phase.algorithm == HASHED,
        reachable=None if reachable is None else reachable.reachable,
        exclusions=tuple(exclusions),
        uncompared=None if uncompared is None else uncompared.value,
        findings=tuple(findings),
    )


def members_of(seated: Seating) -> tuple[Member, ...]:
    """Who is assigned, as evidence has them."""
    keys = {variant.id: variant.key for variant in seated.experiment.variants}
    grows = seated.experiment.type is not Type.SWITCHBACK and settings_of(seated).decision == "sequence"
    return tuple(
        Member(
            participant=item.participant,
            arm=keys[item.variant_id],
            block=item.block,
            stratum=item.stratum,
            planned=planned(item, seated.phase),
            joined=_joined(item, seated.phase) if grows else None,
            cluster=item.cluster,
        )
        for item in seated.assignments
        if item.variant_id is not None
    )


def _joined(item: Assignment, phase: Phase | None) -> float | None:
    """So many days after the phase began it came; None for who was there."""
    if phase is None or planned(item, phase):
        return None
    return max(item.from_at - phase.opened_at, 0) / alternation.DAY


def stretch(seated: Seating, sums: Sums, *, first: Sums | None) -> Stretch:
    """A phase of several, as evidence has it."""
    assert seated.phase is not None
    return Stretch(
        id=show_id(seated.phase.id),
        number=seated.phase.number,
        members=members_of(seated),
        sums=sums,
        first=first,
    )


def measure_of(metric: Json, experiment: Experiment) -> Measure:
    """What a metric of an experiment measures."""
    return Measure(
        name=metric["eventName"],
        kind=metric.get("kind", "proportion"),
        of=metric.get("of") or "impressions",
        goal=metric.get("goal", "increase"),
        margin=metric.get("margin"),
        effect=metric.get("minimumDetectableEffect"),
        winsorize_at=experiment.design.analysis.winsorize_at if metric.get("kind") == "mean" else None,
    )


def planned(item: Assignment, phase: Phase | None) -> bool:
    """It was there when the phase began."""
    return phase is None or (
        item.from_at <= phase.opened_at and not item.block.startswith(late_blocks(phase.number))
    )


def settings_of(seated: Seating) -> Settings:
    """How the phase is analysed: unless it says so, a closed list that was drawn in blocks by the path test."""
    analysis = seated.experiment.design.analysis
    hashed = seated.phase is not None and seated.phase.algorithm == HASHED
    default = "sequence" if hashed else seated.experiment.decided_by
    return Settings(
        alpha=analysis.alpha,
        decision=analysis.decision or ("path_test" if default == "path_test" else "sequence"),
        horizon_days=seated.experiment.horizon_days,
        power=analysis.power,
        effect=analysis.minimum_detectable_effect,
        tuning=analysis.tuning,
        # CUPED is the comparisons'; a variant's own rate has no other error for it.
        variance="jackknife" if analysis.variance == "cuped" else analysis.variance,
        history_days=analysis.history_days if analysis.variance == "cuped" else None,
        prior=(analysis.prior.a, analysis.prior.b),
        secondary_correction=analysis.secondary_correction,
        cluster_by=analysis.cluster_by,
    )


def _replays(seated: Seating) -> bool | None:
    """Whether the draw, repeated, gives the record; None where it is not one draw."""
    phase, experiment = seated.phase, seated.experiment
    if phase is not None and phase.algorithm == SWITCHBACK and seated.turns:
        return alternation.replays(experiment, phase, seated.turns)
    if phase is None or phase.algorithm != ALGORITHM:
        return None
    drawn = [item for item in seated.assignments if item.drawn is Method.RANDOMIZED and planned(item, phase)]
    placements = drawn_placements(experiment, drawn)
    # By the phase's weights: a later phase gives the variants others.
    arms = [Weighted(key=item.key, weight=phase.weights.get(item.id, 0)) for item in experiment.arms]
    return replay(placements, arms, seed=phase.seed)


def exclusions(work: Work, seated: Seating) -> tuple[Excluded, ...]:
    """Who of each arm is left out of `delivered`, as things stand, and why; everybody for one reason."""
    experiment, phase = seated.experiment, seated.phase
    if phase is None:
        return ()
    keys = {variant.id: variant.key for variant in experiment.variants}
    people: Counter[tuple[str, str]] = Counter()
    units: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    missed: Counter[tuple[str, str]] = Counter()
    for row in work.store.findings.seated(experiment.id, phase.id, now=work.now):
        reason = ""
        if row.forced:
            reason = "forced"
        elif row.deployment in _FAILED:
            reason = row.deployment
        elif row.impressions and not row.delivered:
            reason = "never_delivered"
        if reason:
            people[keys[row.variant_id], reason] += 1
            units[keys[row.variant_id], reason].add(row.unit)
            missed[keys[row.variant_id], reason] += row.impressions - row.delivered
    return tuple(
        Excluded(
            arm=arm,
            reason=reason,
            participants=count,
            impressions=missed[arm, reason],
            units=len(units[arm, reason]),
        )
        for (arm, reason), count in sorted(people.items())
    )


def ledgered(
    rows: Sequence[LookRow], metric: Json, population: str, snapshots: Sequence[Sums] = ()
) -> tuple[Ledgered, ...]:
    """The recorded looks of this metric, as far as they were taken of it; with the sums they saw, if given."""
    wanted = fingerprint(metric)
    found = []
    for at, row in enumerate(rows):
        primary = row.decisions.get("primary") or {}
        if primary.get("metric") != wanted:
            continue
        found.append(
            Ledgered(
                number=row.number,
                at=to_rfc3339(row.at),
                cut_off=to_rfc3339(row.cut_off),
                day=primary["day"],
                comparisons=tuple(primary[population]),
                guardrails=tuple(row.decisions.get("guardrails", ())),
                open=row.decisions.get("open", False),
                sums=snapshots[at] if snapshots else None,
            )
        )
    return tuple(found)


def former(
    phase: Phase, rows: Sequence[LookRow], metric: Json, snapshots: Sequence[Sums]
) -> tuple[Ledgered, ...]:
    """The recorded looks that were of no metric or another one, with what they saw of this one."""
    wanted = fingerprint(metric)
    return tuple(
        Ledgered(
            number=row.number,
            at=to_rfc3339(row.at),
            cut_off=to_rfc3339(row.cut_off),
            day=(row.cut_off - phase.opened_at) / alternation.DAY,
            open=row.decisions.get("open", False),
            sums=sums,
        )
        for row, sums in zip(rows, snapshots, strict=True)
        if (row.decisions.get("primary") or {}).get("metric") != wanted
    )


def unspent(earlier: Iterable[Sequence[LookRow]], metric: Json, population: str) -> float:
    """The share of alpha that the looks of earlier phases at this metric have left; of several arms, the least.

    `earlier` are the looks of each of the phases.
    """
    found = 1.0
    for rows in earlier:
        looks = [item for item in ledgered(rows, metric, population) if item.comparisons]
        left = [one.get("unspent") for one in looks[-1].comparisons] if looks else []
        found *= min((share for share in left if share is not None), default=1.0)
    return found


def fingerprint(metric: Json) -> dict[str, Any]:
    """What makes two metrics the same question."""
    defaults = {"kind": "proportion", "goal": "increase"}
    names = ("eventName", "kind", "goal", "denominatorEventName", "window")
    # Impressions are not said: looks from before anything else could be counted are of them.
    of = metric.get("of") or "impressions"
    return {name: metric.get(name) or defaults.get(name) for name in names} | (
        {} if of == "impressions" else {"of": of}
    )
