"""Who has which variant: as it would be, and put into force."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from control_plane.domain.deployment import Origin
from control_plane.domain.experiment import Assignment, Experiment, Phase, plan
from control_plane.domain.fleet import Participant, matches
from control_plane.domain.intake import Applicant, Seat
from control_plane.domain.preflight import Judgement, contents, judge
from control_plane.domain.targeting import visible
from control_plane.services import delivery
from control_plane.services.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Eligible:
    """Who may be seated, and what was known of everybody meant: judgements by public id.

    `kept_out` are those whose host keeps them out of every variant, `unknown` those that take part though nobody
    knows what theirs says.
    """

    applying: list[Applicant]
    judgements: Mapping[str, Judgement]
    kept_out: list[str]

    @property
    def unknown(self) -> list[str]:
        """Who may be seated although the host was not heard."""
        return [one.participant for one in self.applying if self.judgements[one.participant].unknown]


def eligible(work: Work, experiment: Experiment, participants: Collection[Participant]) -> Eligible:
    """Of the participants those who may take part: the rules mean them, and no host refuses any variant's content."""
    applying = applicants(experiment, participants)
    judgements = judged(work, experiment, participants)
    out = {one.participant for one in applying if judgements[one.participant].keeps_out(experiment)}
    return Eligible(
        applying=[one for one in applying if one.participant not in out],
        judgements=judgements,
        kept_out=sorted(out),
    )


def judged(work: Work, experiment: Experiment, participants: Iterable[Participant]) -> dict[str, Judgement]:
    """What is known by public id of what hosts say of the experiment's contents."""
    said = work.store.preflights.said(digest for _, digest in contents(experiment))
    return {item.public_id: judge(experiment, said.get(item.id, {})) for item in participants}


def planned(work: Work, experiment: Experiment) -> tuple[Assignment, ...]:
    """What a start would assign now; locks nothing."""
    applying = eligible(work, experiment, selected(work, experiment.selector)).applying
    return tuple(assignments_of(experiment, plan(experiment, applying), applying))


def assignments_of(
    experiment: Experiment, seats: Iterable[Seat], applying: Iterable[Applicant]
) -> Iterator[Assignment]:
    """The planned assignment of each seat."""
    ids = {variant.key: variant.id for variant in experiment.variants}
    labels = {applicant.participant: applicant.labels for applicant in applying}
    for seat in seats:
        yield Assignment(
            id=None,
            experiment_id=experiment.id,
            phase_id=None,
            participant=seat.participant,
            variant_id=None if seat.arm is None else ids[seat.arm],
            drawn=seat.method,
            block=seat.block,
            stratum=seat.stratum,
            position=seat.position,
            from_at=0,
            labels_used=labels.get(seat.participant, {}),
            time_block=seat.time_block,
            cluster=seat.cluster,
        )


def selected(work: Work, selector: dict[str, Any]) -> list[Participant]:
    """The live participants a selector names, or whose labels it matches, now; none whose host is retired."""
    return [item for item in meant(work, selector) if item.retired_at is None]


def latecomers(work: Work, experiment: Experiment, phase: Phase) -> list[Participant]:
    """The live participants that the experiment's labels mean by now and the phase does not have on record."""
    labels = experiment.selector.get("labels")
    if not labels:
        return []
    found = [
        item
        for item in work.store.fleet.off_record(work.project_id, phase.id)
        if item.retired_at is None and matches(item.labels, labels)
    ]
    # One that was deleted and is there again by the same name is on record by it.
    known = work.store.experiments.participant_ids(phase.id) if found else {}
    return [item for item in found if item.public_id not in known]


def meant(work: Work, selector: dict[str, Any]) -> list[Participant]:
    """The live participants a selector names, or whose labels it matches, now."""
    ids, labels = selector.get("ids", []), selector.get("labels", {})
    if ids:
        found = work.store.fleet.participants_named(work.project_id, ids)
        return [found[public_id] for public_id in ids if public_id in found]
    if not labels:
        return []
    everyone = work.store.fleet.participants(work.project_id)
    return [item for item in everyone if matches(item.labels, labels)]


def applicants(experiment: Experiment, participants: Iterable[Participant]) -> list[Applicant]:
    """The participants whom the targeting rules mean and the design does not exclude, each in its stratum.

    Without labels to stratify by, that is its agent: what is common to a host is common to its participants. Clusters
    are then of one stratum. One whose cluster is not known is by itself.
    """
    design = experiment.design
    left_out = set(design.analysis.excluded_participant_ids)
    found = []
    for participant in participants:
        if participant.public_id in left_out:
            continue
        labels = visible(
            participant.labels, participant.host_labels, allow_host_labels=design.allow_host_labels
        )
        if not design.targeting_rules.match(labels):
            continue
        agent = participant.agent_uid.hex() if participant.agent_uid else "never_seen"
        cluster = _cluster(experiment, participant, labels)
        own = agent if cluster is None else "all"
        stratum = ",".join(f"{name}={labels.get(name, '')}" for name in design.strata) or own
        found.append(
            Applicant(
                participant=participant.public_id, stratum=stratum, labels=labels, cluster=cluster or ""
            )
        )
    return found


def unclustered(experiment: Experiment, applying: Iterable[Applicant]) -> list[str]:
    """Whose cluster is not known, of an experiment that is drawn by clusters."""
    if experiment.design.analysis.cluster_by == "participant":
        return []
    return [applicant.participant for applicant in applying if not applicant.cluster]


def _cluster(experiment: Experiment, participant: Participant, labels: Mapping[str, str]) -> str | None:
    by = experiment.design.analysis.cluster_by
    if by == "host":
        return f"host:{participant.agent_uid.hex()}" if participant.agent_uid else None
    name = by.removeprefix("label:")
    return f"{by}={labels[name]}" if name != by and labels.get(name) else None


def seat_all(
    work: Work,
    experiment: Experiment,
    planned: Iterable[Assignment],
    participants: Mapping[str, bytes],
    *,
    origin: Origin,
    in_place: Collection[str] = (),
) -> None:
    """The planned assignments are in force in the present phase and every slot should hold its variant.

    Time blocks are on record from beginning to end, and only the one that begins now is deployed.
    Nothing is deployed to those `in_place`: their slots should hold it already.
    """
    assert experiment.phase is not None
    rows = []
    members: defaultdict[bytes | None, list[bytes]] = defaultdict(list)
    for item in planned:
        participant_id = participants[item.participant]
        begins, ends = work.now, None
        if item.time_block and experiment.calendar is not None:
            begins, ends = experiment.calendar.span(item.time_block)
        if item.participant not in in_place and begins <= work.now:
            members[item.variant_id].append(participant_id)
        fixed = replace(item, id=work.new_id(), phase_id=experiment.phase.id, from_at=begins, to_at=ends)
        rows.append((fixed, participant_id))
    work.store.experiments.add_assignments(rows)
    for variant in experiment.variants:
        delivery.write(work, experiment, variant, members[variant.id], origin=origin)
