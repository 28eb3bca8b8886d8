"""Use cases of results: tallies and the ledger of looks in, the whole answer out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from control_plane.domain import pooling, requests
from control_plane.domain.design import Type
from control_plane.domain.evidence import Alternation, Beside, Evidence, Excluded, Json, Population, Sums
from control_plane.domain.experiment import Experiment, Phase
from control_plane.domain.metrics import counted_as, counted_below, shown
from control_plane.services import alternation, asked, evidence, findings, history
from control_plane.services.evidence import Seating, Seen
from control_plane.services.timers import Kind
from control_plane.services.work import Work
from control_plane.store.looks import LookRow
from shared.errors import NotFound
from shared.ids import show_id
from shared.moment import to_rfc3339, utc_day

POOLED = "pooled"
"""In place of a phase: all of the run."""
POPULATIONS: tuple[Population, ...] = get_args(Population)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What an answer about an experiment is made of, and whether that is to be in the answer."""

    experiment: Experiment
    evidence: Evidence
    with_inputs: bool = False


def get(work: Work, request: requests.GetResults) -> Results:
    """Results of a phase for one metric and population, from tallies and recorded looks only.

    With `as_of`, an inclusive UTC date, as the last look up to then saw it: what arrived later is not in it. Raises
    Invalid for a date to come and where it is unclear which conversion is meant, NotFound for a phase that there is
    not. Phase `pooled` is all phases of the run that began, as one.
    """
    experiment = work.store.experiments.find(work.project_id, request.id)
    if experiment is None or not work.caller.sees(experiment.labels):
        raise NotFound(f"there is no experiment {request.id!r}", reason="EXPERIMENT_NOT_FOUND")
    metric, role = asked.metric(work, experiment, named=request.metric, event_name=request.event_name)
    day = asked.day(work, request.as_of)
    past = day is not None and day < utc_day(work.now)
    beside = []
    if role in ("primary", "secondary") and experiment.type is not Type.SWITCHBACK:
        beside = asked.secondary(work, experiment)
    moment = _Moment(
        day=day if past else None, metric=metric, beside=tuple(beside), population=request.population
    )
    began = work.store.experiments.phases(experiment.id, experiment.run)
    if request.phase == POOLED and began and experiment.type is not Type.SWITCHBACK:
        return _pooled(work, experiment, request, role, [_known(work, experiment, x, moment) for x in began])
    phase = asked.phase(work, experiment, "" if request.phase == POOLED else request.phase)
    primary = role == "primary"
    known = _known(work, experiment, phase, moment)
    rows = known.rows
    other = next(item for item in POPULATIONS if item != request.population)
    inputs = request.include == "inputs"
    snapshots = []
    if inputs and phase is not None and known.seated.compared:
        kept = [evidence.remembered(item) for item in work.store.looks.snapshots(phase.id)[: len(rows)]]
        snapshots = [item.sums(known.seated.compared, metric, request.population) for item in kept]
    earlier = [
        moment.up_to(work.store.looks.all(item.id))
        for item in began
        if phase is not None and item.number < phase.number
    ]
    found = evidence.evidence(
        known.seated,
        metric,
        request.population,
        known.sums,
        primary=primary,
        about={
            **_about(work, experiment, request, [known], phase=phase),
            "metric": shown(metric, role),
            "groupBy": request.group_by or None,
            "groups": _groups(known.seated, known.sums, metric, request.group_by),
        },
        first=known.first,
        history=known.history,
        secondary=known.beside,
        unspent=evidence.unspent(earlier, metric, request.population) if primary else 1.0,
        looks=evidence.ledgered(rows, metric, request.population, snapshots) if primary else (),
        former_looks=evidence.former(phase, rows, metric, snapshots)
        if primary and phase and snapshots
        else (),
        other_looks=evidence.ledgered(rows, metric, other) if primary else (),
        exclusions=_exclusions(work, known),
        findings=() if past else _findings(work, request),
        next_look_at=None if past else _next_look(work, experiment),
        turns=_turns(work, experiment, known),
    )
    return Results(experiment=experiment, evidence=found, with_inputs=inputs)


def _pooled(
    work: Work,
    experiment: Experiment,
    request: requests.GetResults,
    role: str | None,
    known: Sequence["_Known"],
) -> Results:
    """Every phase of the run as one; no look is of them together, so there is no verdict."""
    pooling.refuse_groups(request.group_by)
    metric, past = known[0].moment.metric, known[0].moment.day is not None
    nothing = known[-1].seated.replace_members(())
    found = evidence.evidence(
        nothing,
        metric,
        request.population,
        Sums(impressions=(), conversions=(), values=(), denominators=()),
        primary=False,
        about={
            **_about(work, experiment, request, known, phase=None),
            "metric": shown(metric, role),
            "groupBy": None,
            "groups": [],
        },
        findings=() if past else _findings(work, request),
    )
    stretches = [evidence.stretch(item.seated, item.sums, first=item.first) for item in known]
    return Results(
        experiment=experiment,
        evidence=found.model_copy(update={"pooled": tuple(stretches)}),
        with_inputs=request.include == "inputs",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """What is asked, and as of which closed UTC day; None: as things stand. `beside`: the secondary metrics."""

    day: int | None
    metric: Json
    beside: tuple[Json, ...]
    population: Population

    def up_to(self, rows: Sequence[LookRow]) -> list[LookRow]:
        """The looks that were there then."""
        return [row for row in rows if self.day is None or row.day <= self.day]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of a phase: its looks, who was assigned, and what they did; `first` as the first look saw it."""

    moment: _Moment
    phase: Phase | None
    rows: list[LookRow]
    seated: Seating
    seen: Seen
    sums: Sums
    first: Sums | None
    history: Sums | None = None
    beside: tuple[Beside, ...] = ()

    @property
    def last(self) -> LookRow | None:
        """The look that the past is seen with; None: it is the present, or there is none."""
        return self.rows[-1] if self.moment.day is not None and self.rows else None


def _known(work: Work, experiment: Experiment, phase: Phase | None, moment: _Moment) -> _Known:
    seated = evidence.seating(work, experiment, phase)
    rows = moment.up_to(work.store.looks.all(phase.id)) if phase else []
    seen = _seen(work, experiment, phase, [moment.metric, *moment.beside], rows, past=moment.day is not None)
    if moment.day is not None:
        there = set(seen.totals)
        seated = seated.replace_members(
            item for item in seated.assignments if (item.participant, item.variant_id) in there
        )
    kept = [work.store.looks.snapshot(phase.id, rows[0].number)] if phase is not None and rows else []
    opening = evidence.remembered(kept[0]) if kept else None

    def did(metric: Json) -> tuple[Sums, Sums | None]:
        compared = (
            seated.compared
        )  # nothing, of a switchback whose first blocks were cut before they took any time
        then = opening.sums(compared, metric, moment.population) if opening is not None and compared else None
        return seen.sums(seated.members, metric, moment.population), then

    sums, first = did(moment.metric)
    past = history.before(work, seated, kept)
    beside = []
    for metric in moment.beside:
        own, then = did(metric)
        beside.append(
            Beside(
                key=metric.get("key"),
                name=metric.get("name"),
                measure=evidence.measure_of(metric, experiment),
                sums=own,
                first=then,
                history=history.sums(past, seated, metric),
            )
        )
    return _Known(
        moment=moment,
        phase=phase,
        rows=rows,
        seated=seated,
        seen=seen,
        sums=sums,
        first=first,
        history=history.sums(past, seated, moment.metric),
        beside=tuple(beside),
    )


def _turns(work: Work, experiment: Experiment, known: _Known) -> Alternation | None:
    """What a switchback compares; up to the look that the past is seen with, or now, or the phase's end."""
    phase, rows = known.phase, known.rows
    closed = phase.closed_at if phase and phase.closed_at is not None else work.now
    return alternation.alternation(
        experiment,
        phase,
        known.seated.turns,
        known.seen.sums(known.seated.turn_keys, known.moment.metric, known.moment.population),
        at=known.last.cut_off if known.last else min(work.now, closed),
        first_at=rows[0].cut_off if rows else None,
    )


def _seen(
    work: Work,
    experiment: Experiment,
    phase: Phase | None,
    wanted: Sequence[Json],
    rows: list[LookRow],
    *,
    past: bool,
) -> Seen:
    """What the participants did: as the last of these looks saw it, or as it stands now."""
    if phase is None or (past and not rows):
        return evidence.seen([])
    if past:
        return evidence.remembered(work.store.looks.snapshot(phase.id, rows[-1].number))
    names = {""} | {name for item in wanted for name in (counted_as(item), counted_below(item))}
    tallied = work.store.turns if experiment.type is Type.SWITCHBACK else work.store.events
    return evidence.seen(tallied.totals(phase.id, sorted(name for name in names if name is not None)))


def _about(
    work: Work,
    experiment: Experiment,
    request: requests.GetResults,
    known: Sequence[_Known],
    *,
    phase: Phase | None,
) -> Json:
    """What the answer says of itself; `phase`: the one it is of."""
    standings: Counter[str] = Counter()
    lost = 0
    for item in known:
        if item.last is not None:
            standings.update(item.last.decisions["standings"][request.population])
            lost = max(lost, item.last.decisions["lost"])
        elif item.phase is not None and item.moment.day is None:
            standings.update(work.store.events.not_counted(item.phase.id, population=request.population))
            lost = work.store.events.lost(experiment.id)
    seen = [item.last.at for item in known if item.last is not None]
    return {
        "experimentId": show_id(experiment.id),
        "key": experiment.key,
        "status": experiment.status.value,
        "phaseId": show_id(phase.id) if phase else None,
        "phase": phase.number if phase else None,
        "asOf": request.as_of,
        "computedAt": to_rfc3339(max(seen, default=work.now)),
        "analysisFingerprint": experiment.analysis_fingerprint,
        "planChanged": experiment.plan_changed,
        "exposureEvidence": "loaded" if experiment.design.exposure_criteria.requires == "loaded" else "disk",
        "rejected": [{"reason": reason, "count": count} for reason, count in sorted(standings.items())],
        "lost": {"count": lost},
    }


def _exclusions(work: Work, known: _Known) -> tuple[Excluded, ...]:
    if known.last is not None:
        return tuple(requests.parse(Excluded, item) for item in known.last.decisions["exclusions"])
    return () if known.moment.day is not None else evidence.exclusions(work, known.seated)


def _findings(work: Work, request: requests.GetResults) -> tuple[Json, ...]:
    report = findings.get(work, requests.ById(id=request.id))
    return tuple(
        {
            "code": item.code,
            "severity": item.severity.value,
            "message": item.message,
            "evidence": dict(item.evidence),
            "advice": item.advice,
        }
        for item in report.findings
    )


def _next_look(work: Work, experiment: Experiment) -> int | None:
    ahead = [timer.due_at for timer in work.store.timers.ahead(experiment.id) if timer.kind == Kind.LOOK]
    return min(ahead, default=None)


def _groups(seated: Seating, sums: Sums, metric: Json, label: str) -> list[Json]:
    """Counts by the value of a label at assignment and by variant: a description, for nothing was drawn by it."""
    if not label:
        return []
    keys = {variant.id: variant.key for variant in seated.experiment.variants}
    ids = {variant.key: show_id(variant.id) for variant in seated.experiment.variants}
    found: dict[str | None, dict[str, list[int]]] = {}
    shares = zip(*sums.shares(evidence.measure_of(metric, seated.experiment)), strict=True)
    for item, m, c, share in zip(seated.assignments, sums.impressions, sums.conversions, shares, strict=True):
        if item.variant_id is None:
            continue
        arm = found.setdefault(item.labels_used.get(label), {}).setdefault(keys[item.variant_id], [0] * 5)
        for at, more in enumerate((1, m, c, *share)):
            arm[at] += more
    return [
        {
            "value": value,
            "variants": [
                {
                    "id": ids[key],
                    "key": key,
                    "participants": people,
                    "impressions": m,
                    "conversions": c,
                    "conversionRate": converted / units if units else None,
                }
                for key, (people, m, c, units, converted) in sorted(arms.items())
            ],
        }
        for value, arms in sorted(found.items(), key=lambda item: (item[0] is None, item[0] or ""))
    ]


def summarise_phase(work: Work, experiment: Experiment) -> list[dict[str, Any]]:
    """Every participant's sums in the present phase, as they stand now, JSON-shaped."""
    if experiment.phase is None:
        return []
    phase_id = experiment.phase.id
    return [
        {
            "eventName": name,
            "population": population,
            "variantId": show_id(item.variant_id),
            "participantId": item.participant,
            "impressions": item.impressions,
            "conversions": item.conversions,
        }
        for name in work.store.events.event_names(phase_id) or [""]
        for population in POPULATIONS
        for item in work.store.events.sums(phase_id, name, population=population)
    ]
