"""Use cases of phases: another split from now on, who joins late, and who is forced no more."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from control_plane.domain import requests
from control_plane.domain.deployment import Origin
from control_plane.domain.experiment import (
    Assignment,
    Conflict,
    Experiment,
    Phase,
    Variant,
    refuse_phase,
    rules_of,
)
from control_plane.domain.fleet import Participant
from control_plane.domain.intake import (
    STICKY,
    Applicant,
    Method,
    Seat,
    algorithm_for,
    late_blocks,
    late_seat,
    late_turns,
    reseat,
    seats,
)
from control_plane.domain.lifecycle import Status, Verb
from control_plane.services import delivery, preflight
from control_plane.services.experiments import View, design_warnings, find, find_variant, view_of
from control_plane.services.seating import (
    applicants,
    assignments_of,
    eligible,
    latecomers,
    seat_all,
    unclustered,
)
from control_plane.services.work import Work
from shared.errors import Fault, Invalid, NotFound


def list_phases(work: Work, request: requests.ById) -> tuple[Experiment, list[Phase]]:
    """Every phase of the present run, in order."""
    experiment = find(work, request.id)
    return experiment, work.store.experiments.phases(experiment.id, experiment.run)


def open_phase(work: Work, request: requests.OpenPhase) -> tuple[View, Phase]:
    """From now on participants are split otherwise, and results are counted anew.

    With the seed as it is, everybody keeps the variant, except as few as the new weights need; a raised
    allocation lets further ones in, a lowered one puts nobody out. Another seed deals everything out again, and
    whoever is then outside the allocation gets back what was there before.
    Who cannot come in because another experiment holds the file, or because the host is retired, stays outside;
    whoever was deleted is not on record any more. Forced participants get their variant back.
    """
    experiment = find(work, request.id)
    experiment.after(Verb.OPEN_PHASE)
    refuse_phase(experiment)
    former = experiment.phase
    assert former is not None
    variants = _with_weights(experiment, request.weights)
    seed = bytes.fromhex(request.seed) if request.seed else former.seed
    allocation = (
        former.traffic_allocation if request.traffic_allocation is None else request.traffic_allocation
    )
    weights = replace(experiment, variants=variants).weights
    if (weights, allocation, seed) == (dict(former.weights), former.traffic_allocation, former.seed):
        raise Invalid(
            "nothing would change; send weights, trafficAllocation or seed that differ from the present phase",
            reason="INVALID_FIELDS",
        )
    design = experiment.design.model_copy(update={"traffic_allocation": allocation})
    changed = replace(experiment, variants=variants, design=design)
    present = [i for i in work.store.experiments.present(former.id, now=work.now) if not i.deleted]
    rules = rules_of(changed, seed=seed)
    if request.seed:
        applying = [_applicant(item) for item in present if not item.retired]
        found, algorithm = seats(applying, rules), algorithm_for(len(applying), rules)
    else:
        waiting = [item for item in present if item.retired and item.variant_id is None]
        others = [item for item in present if not item.retired or item.variant_id is not None]
        again = reseat(_seats(experiment, others), rules, number=former.number + 1)
        found, algorithm = (*again, *_seats(experiment, waiting)), STICKY
    phase = Phase(
        id=work.new_id(),
        number=former.number + 1,
        algorithm=algorithm,
        seed=seed,
        weights=weights,
        traffic_allocation=allocation,
        opened_at=work.now,
        closed_at=None,
    )
    opened = replace(changed, phase=phase, updated_at=work.now)
    view = _seat_again(work, opened, former, found, present)
    return view, phase


def _with_weights(experiment: Experiment, wanted: Mapping[str, int] | None) -> tuple[Variant, ...]:
    """The variants with the weights asked for, by id or key. Raises Invalid where they do not fit."""
    if wanted is None:
        return experiment.variants
    named = {find_variant(experiment, name).id: weight for name, weight in wanted.items()}
    missing = [variant.key for variant in experiment.arms if variant.id not in named]
    faults = [
        Fault(
            field=f"weights.{variant.key}",
            message="is of a variant that analysis.excludedVariantIds leaves out",
            remedy="leave it out here too",
        )
        for variant in experiment.variants
        if variant not in experiment.arms and named.get(variant.id)
    ]
    if missing:
        faults.append(
            Fault(
                field="weights",
                message=f"says nothing of {', '.join(missing)}",
                remedy="give every variant its weight, 0 for one that nobody gets",
            )
        )
    if sum(named.values()) != 100:
        faults.append(
            Fault(
                field="weights",
                message=f"sum to {sum(named.values())}, not to 100",
                remedy="change the weights so that they sum to 100",
            )
        )
    if faults:
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise Invalid(listed, reason="INVALID_FIELDS", faults=faults)
    return tuple(
        replace(variant, weight=named.get(variant.id, variant.weight)) for variant in experiment.variants
    )


def _seats(experiment: Experiment, present: list[Assignment]) -> list[Seat]:
    keys = {variant.id: variant.key for variant in experiment.variants}
    return [
        Seat(
            participant=item.participant,
            arm=None if item.variant_id is None else keys[item.variant_id],
            method=item.drawn,
            stratum=item.stratum,
            block=item.block,
            position=item.position,
            cluster=item.cluster,
        )
        for item in present
    ]


def _applicant(item: Assignment) -> Applicant:
    return Applicant(
        participant=item.participant, stratum=item.stratum, labels=item.labels_used, cluster=item.cluster
    )


def _seat_again(
    work: Work,
    opened: Experiment,
    former: Phase,
    found: Sequence[Seat],
    present: Sequence[Assignment],
) -> View:
    """The former phase is closed, the seats are in force, and every slot that holds something else is told.

    A retired host is told nothing, and holds nothing: its participants only stay on record.
    """
    assert opened.phase is not None
    store = work.store.experiments
    ids = store.participant_ids(former.id)
    retired = {item.participant for item in present if item.retired}
    found, kept_out = _claimed(work, opened, found, ids, retired)
    store.close_phase(former.id, now=work.now)
    store.add_phase(opened.id, opened.run, opened.phase)
    for variant in opened.variants:
        store.put_variant(variant)
    store.save(opened)
    slots = work.store.deployments.slots_of(opened.id)
    holding = {slot.participant_id: slot.written for slot in slots if slot.open}
    planned = list(assignments_of(opened, found, [_applicant(item) for item in present]))
    in_place = retired | {
        item.participant for item in planned if holding.get(ids[item.participant]) == item.variant_id
    }
    seat_all(work, opened, planned, ids, origin=Origin.PHASE, in_place=in_place)
    staying = {ids[item.participant] for item in planned if item.variant_id is not None}
    leaving = [slot for slot in slots if slot.open and slot.participant_id not in staying]
    delivery.restore(work, opened, leaving, origin=Origin.PHASE)
    store.release_of(opened.id, [slot.participant_id for slot in leaving], now=work.now)
    view = view_of(work, store.get(opened.id))
    warnings = tuple(
        (
            "CLAIM_CONFLICT",
            f"{conflict.participant} stays outside: {conflict.path} is held by {conflict.holder}",
        )
        for conflict in kept_out
    )
    return replace(view, warnings=(*warnings, *design_warnings(view)))


def _claimed(
    work: Work,
    opened: Experiment,
    found: Sequence[Seat],
    ids: Mapping[str, bytes],
    retired: Collection[str],
) -> tuple[list[Seat], list[Conflict]]:
    """The seats, their files claimed; whoever is new and whose file another experiment holds stays outside."""
    store = work.store.experiments
    seated = [
        ids[seat.participant] for seat in found if seat.arm is not None and seat.participant not in retired
    ]
    conflicts = store.conflicts(opened.id, seated, opened.target_files)
    kept_out = {conflict.participant for conflict in conflicts}
    seats_now = [
        replace(seat, arm=None, block="outside") if seat.participant in kept_out else seat for seat in found
    ]
    free = [
        ids[seat.participant]
        for seat in seats_now
        if seat.arm is not None and seat.participant not in retired
    ]
    store.claim(opened.id, free, opened.target_files, now=work.now)
    return seats_now, conflicts


# -- late joiners


def newcomers(work: Work, request: requests.ById) -> list[Participant]:
    """Whom the experiment's labels mean by now, who is not on record, and whose files nobody else holds.

    Where clusters are drawn, nobody comes in whose cluster is not known. Nor does anybody whose host refuses the
    content of some variant; one that could say and has not yet is waited for.

    Only a running experiment that chooses participants by labels takes anybody in late.
    """
    experiment = find(work, request.id)
    phase = experiment.phase
    if experiment.status is not Status.RUNNING or phase is None or not experiment.selector.get("labels"):
        return []
    calendar = experiment.calendar
    if calendar is not None and calendar.next_cycle(work.now, len(experiment.arms)) is None:
        return []  # nobody could be measured in every variant any more
    found = latecomers(work, experiment, phase)
    if not found:
        return []
    conflicts = work.store.experiments.conflicts(
        experiment.id, [item.id for item in found], experiment.target_files
    )
    held = {conflict.participant for conflict in conflicts}
    may = eligible(work, experiment, found)
    asked = {item.public_id for item in found if preflight.can_say(item, now=work.now)}
    meant = {item.participant for item in may.applying} - set(unclustered(experiment, may.applying))
    meant -= asked & set(may.unknown)
    return [item for item in found if item.public_id in meant - held]


def admit(work: Work, request: requests.ById) -> list[str]:
    """Every newcomer has a seat; returns who they are."""
    experiment = find(work, request.id)
    phase = experiment.phase
    found = newcomers(work, request)
    if phase is None or not found:
        return []
    store = work.store.experiments
    ids = {item.public_id: item.id for item in found}
    rules = rules_of(experiment, seed=phase.seed)
    drawn = [item.algorithm for item in store.phases(experiment.id, experiment.run)]
    algorithm = next(name for name in reversed(drawn) if name != STICKY)
    late = late_blocks(phase.number)
    present = _seats(experiment, store.present(phase.id, now=work.now))
    earlier = Counter(
        stratum for stratum, _ in {(s.stratum, s.unit) for s in present if s.block.startswith(late)}
    )
    clusters = {seat.cluster: seat for seat in present if seat.cluster and seat.method is Method.RANDOMIZED}
    applying = applicants(experiment, found)
    seated = []
    calendar = experiment.calendar
    first = calendar.next_cycle(work.now, len(experiment.arms)) if calendar else None
    for applicant in applying:
        own = clusters.get(applicant.cluster)
        if first is not None:
            found_seats = late_turns(applicant, rules, first=first, cluster=own)
        else:
            number = earlier[applicant.stratum]
            seat = late_seat(
                applicant, rules, algorithm=algorithm, phase=phase.number, earlier=number, cluster=own
            )
            earlier[applicant.stratum] += own is None and seat.block.startswith(late)
            found_seats = [seat]
        seated += found_seats
        if applicant.cluster and found_seats[0].method is Method.RANDOMIZED:
            clusters.setdefault(applicant.cluster, found_seats[0])
    joined = sorted({ids[seat.participant] for seat in seated if seat.arm is not None})
    store.claim(experiment.id, joined, experiment.target_files, now=work.now)
    seat_all(work, experiment, assignments_of(experiment, seated, applying), ids, origin=Origin.LATE_JOIN)
    return list(dict.fromkeys(seat.participant for seat in seated))


# -- forced participants


def get_assignment(work: Work, request: requests.OfAssignment) -> Assignment:
    """What a participant has in the present phase. Raises NotFound."""
    return _assigned(work, find(work, request.id), request.participant_id)[1]


def _assigned(work: Work, experiment: Experiment, public_id: str) -> tuple[bytes, Assignment]:
    """Whom this name means (internal id), and what it has in the present phase. Raises NotFound."""
    participant = work.store.fleet.participant(work.project_id, public_id)
    phase = experiment.phase
    found = None
    if participant is not None and phase is not None and work.caller.sees(participant.labels):
        found = work.store.experiments.assignment(phase.id, participant.id, now=work.now)
    if participant is None or found is None:
        raise NotFound(f"{public_id!r} is not assigned in {experiment.key}", reason="ASSIGNMENT_NOT_FOUND")
    return participant.id, found


def unforce(work: Work, request: requests.OfAssignment) -> Assignment:
    """The assignment is as it was drawn, and the participant should hold its variant; one not forced stays as it is."""
    experiment = find(work, request.id)
    experiment.after(Verb.DEPLOY)
    participant_id, found = _assigned(work, experiment, request.participant_id)
    variant = next((item for item in experiment.variants if item.id == found.variant_id), None)
    if found.forced_by is None or variant is None or found.id is None:
        return found
    work.store.experiments.unforce(found.id)
    delivery.write(work, experiment, variant, [participant_id], origin=Origin.UNFORCED)
    return replace(found, forced_by=None)
