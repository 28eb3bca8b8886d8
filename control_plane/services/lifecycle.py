"""Use cases of an experiment's life: start, pause, resume, stop, complete, ship, reset, archive."""

from collections.abc import Sequence
from dataclasses import replace

from control_plane.domain import requests
from control_plane.domain.deployment import Origin
from control_plane.domain.design import Type
from control_plane.domain.experiment import (
    UNTOLD,
    Experiment,
    Phase,
    Variant,
    normalised,
    plan,
    rules_of,
    whole_plan,
)
from control_plane.domain.intake import algorithm_for
from control_plane.domain.lifecycle import Status, Verb, verb_towards
from control_plane.domain.readiness import Readiness, faults_at_start
from control_plane.services import delivery, metrics, phases, preflight, settings, switching, timers
from control_plane.services.experiments import (
    View,
    design_warnings,
    find,
    find_variant,
    require_unused,
    view_of,
)
from control_plane.services.results import summarise_phase
from control_plane.services.seating import (
    assignments_of,
    eligible,
    seat_all,
    selected,
    unclustered,
)
from control_plane.services.work import Work
from control_plane.store.deployments import Slot
from shared.errors import FailedPrecondition, Fault, Invalid
from shared.ids import new_secret


def begin(work: Work, request: requests.Start) -> View:
    """The experiment is started, its weights first put right where that was asked for."""
    if request.normalize:
        experiment = find(work, request.id)
        experiment.after(Verb.START)
        weights = normalised([variant.weight for variant in experiment.arms])
        for variant, weight in zip(experiment.arms, weights, strict=True):
            work.store.experiments.put_variant(replace(variant, weight=weight, updated_at=work.now))
    return start(work, request)


def start(work: Work, request: requests.ById) -> View:
    """Assignments are fixed, claims taken, and every participant's slot should hold its variant.

    Whoever's host is known to refuse the content of any variant takes part in none.

    Raises FailedPrecondition with every fault by field where the experiment is not ready.
    """
    experiment = find(work, request.id)
    status = experiment.after(Verb.START)
    chosen = selected(work, experiment.selector)
    participants = {item.public_id: item.id for item in chosen}
    found = eligible(work, experiment, chosen)
    applying = found.applying
    planned = list(assignments_of(experiment, plan(experiment, applying), applying))
    ids = [participants[item.participant] for item in planned if item.variant_id is not None]
    store = work.store.experiments
    conflicts = store.conflicts(experiment.id, ids, experiment.target_files)
    ready = Readiness(
        participants=len(ids),
        conflicts=conflicts,
        unclustered=unclustered(experiment, applying),
        kept_out=len(found.kept_out),
        end_missed=timers.is_end_missed(work, experiment),
    )
    faults = faults_at_start(experiment, ready)
    faults += settings.faults(work, experiment)
    if faults:
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise FailedPrecondition(f"the experiment is not ready: {listed}", reason="NOT_READY", faults=faults)
    store.claim(experiment.id, ids, experiment.target_files, now=work.now)
    seats = whole_plan(experiment, applying)
    planned = list(assignments_of(experiment, seats, applying))
    phase = Phase(
        id=work.new_id(),
        number=1,
        algorithm=algorithm_for(len(applying), rules_of(experiment, seed=experiment.seed)),
        seed=experiment.seed,
        weights=experiment.weights,
        traffic_allocation=experiment.design.traffic_allocation,
        opened_at=work.now,
        closed_at=None,
    )
    store.add_phase(experiment.id, experiment.run, phase)
    started = replace(
        experiment,
        status=status,
        phase=phase,
        metrics=metrics.by_value(work, experiment.metrics),
        started_at=work.now,
        updated_at=work.now,
    )
    started = replace(started, analysis_fingerprint=started.fingerprint())
    seat_all(work, started, planned, participants, origin=Origin.START)
    work.store.preflights.keep_out(
        experiment.id,
        experiment.run,
        ((participants[name], found.judgements[name].refusals) for name in found.kept_out),
        now=work.now,
    )
    _save(work, started)
    view = view_of(work, store.get(experiment.id))
    seated = {item.participant for item in planned if item.variant_id is not None}
    return replace(view, warnings=(*preflight.warnings(found, seated), *design_warnings(view)))


def pause(work: Work, request: requests.Pause) -> View:
    """Intake is closed; files stay (`hold`) or hold what was there before until the resume (`revert`).

    Either way participants keep their variants on record and are measured. Not so in a switchback: its blocks
    are cut, and what happens meanwhile counts nowhere.
    """
    experiment = find(work, request.id)
    moved = _moved(work, experiment, Verb.PAUSE, paused_at=work.now)
    switching.cut(work, experiment, for_good=False)
    if request.on_pause == "revert":
        delivery.restore(work, experiment, _open(_slots(work, experiment)), origin=Origin.PAUSE)
    return moved


def resume(work: Work, request: requests.ById) -> View:
    """Intake is open again; every participant keeps its variant, and gets it back where a pause took it.

    An allocation that was changed meanwhile is in force, as a phase.
    """
    experiment = find(work, request.id)
    moved = _moved(work, experiment, Verb.RESUME, paused_at=None, resumed_at=work.now)
    if experiment.type is Type.SWITCHBACK:
        switching.go_on(work, experiment)
        return view_of(work, work.store.experiments.get(experiment.id))
    taken = _taken(work, experiment)
    for variant in experiment.variants:
        ids = [participant_id for participant_id, wanted in taken.items() if wanted == variant.id]
        delivery.write(work, experiment, variant, ids, origin=Origin.RESUME)
    share = experiment.design.traffic_allocation
    if experiment.phase is not None and share != experiment.phase.traffic_allocation:
        asked = requests.OpenPhase(id=request.id, trafficAllocation=share)
        return phases.open_phase(work, asked)[0]
    return moved


def _taken(work: Work, experiment: Experiment) -> dict[bytes, bytes | None]:
    """What each participant whose variant was taken from its file is to have again.

    A pause took what the slot held; the withdrawal of what was deployed meanwhile leaves what was drawn.
    """
    store, phase = work.store.experiments, experiment.phase
    ids = store.participant_ids(phase.id) if phase else {}
    present = store.present(phase.id, now=work.now) if phase else []
    drawn = {ids[item.participant]: item.variant_id for item in present}
    return {
        slot.participant_id: slot.written if slot.origin is Origin.PAUSE else drawn.get(slot.participant_id)
        for slot in _slots(work, experiment)
        if not slot.open
    }


def stop(work: Work, request: requests.ById) -> View:
    """Intake is closed for good; files stay and are measured, but no time block is in force any more."""
    experiment = find(work, request.id)
    moved = _moved(work, experiment, Verb.STOP, paused_at=None, stopped_at=work.now)
    switching.cut(work, experiment, for_good=True)
    return moved


def switch(work: Work, request: requests.ById) -> View:
    """Every participant should hold the variant of the block that is current; after the last, the experiment stops.

    Whichever block it was due for: blocks that were missed are not made up for. Nothing happens where there
    is nothing to switch.
    """
    experiment = find(work, request.id)
    calendar = experiment.calendar
    if calendar is None or experiment.status not in (Status.RUNNING, Status.PAUSED):
        return view_of(work, experiment)
    if work.now >= calendar.end:
        return stop(work, request)
    if experiment.status is Status.RUNNING:
        switching.put_in_place(work, experiment, at=work.now, origin=Origin.SWITCHBACK)
    timers.pass_missed(work, experiment)
    return view_of(work, experiment)


def _moved(work: Work, experiment: Experiment, verb: Verb, **moments: int | None) -> View:
    moved = replace(experiment, status=experiment.after(verb), updated_at=work.now, **moments)  # type: ignore[arg-type]  # only the optional moments are given
    _save(work, moved)
    return view_of(work, work.store.experiments.get(experiment.id))


def _save(work: Work, moved: Experiment) -> None:
    work.store.experiments.save(moved)
    timers.schedule(work, moved)


def _slots(work: Work, experiment: Experiment) -> list[Slot]:
    return work.store.deployments.slots_of(experiment.id)


def _open(slots: Sequence[Slot]) -> list[Slot]:
    return [slot for slot in slots if slot.open]


def complete(work: Work, request: requests.Complete) -> View:
    """The experiment has ended: results frozen, claims released, files kept, restored exactly, or the winner's."""
    experiment = find(work, request.id)
    status = experiment.after(Verb.COMPLETE)
    winner = find_variant(experiment, request.winner_variant_id) if request.winner_variant_id else None
    if request.then == "ship":
        return _ship(work, experiment, status, _required(winner, "winnerVariantId"), request)
    _end(work, experiment)
    if request.then == "restore":
        delivery.restore(work, experiment, _open(_slots(work, experiment)), origin=Origin.RESTORE)
    else:
        delivery.close(work, experiment, _open(_slots(work, experiment)))
    return _concluded(work, experiment, status, winner, request)


def ship(work: Work, request: requests.Ship) -> View:
    """The experiment has ended and every participant should hold one variant, one deployment for each.

    The variant is the one named, or the winner on record. Raises FailedPrecondition naming the holder where
    another experiment holds a file by now.
    """
    experiment = find(work, request.id)
    status = experiment.after(Verb.SHIP)
    wanted = request.variant_id or next(
        (item.key for item in experiment.variants if item.id == experiment.winner_variant_id), None
    )
    winner = find_variant(experiment, wanted) if wanted else None
    return _ship(work, experiment, status, _required(winner, "variantId"), request)


def _required(winner: Variant | None, field: str) -> Variant:
    if winner is None:
        fault = Fault(field=field, message="says which variant to ship", remedy=f"set {field}")
        raise Invalid(f"{fault.field}: {fault.message}", reason="INVALID_FIELDS", faults=[fault])
    return winner


def _ship(
    work: Work,
    experiment: Experiment,
    status: Status,
    winner: Variant,
    request: requests.Complete | requests.Ship,
) -> View:
    slots = _slots(work, experiment)
    assigned = work.store.experiments.participants_in(experiment.phase.id) if experiment.phase else []
    everyone = sorted({*assigned, *(slot.participant_id for slot in slots)})
    refuse_held(work, experiment, everyone)
    if experiment.status is not Status.COMPLETED:
        _end(work, experiment)
    delivery.write(work, experiment, winner, everyone, origin=Origin.SHIP)
    return _concluded(work, experiment, status, winner, request)


def refuse_held(work: Work, experiment: Experiment, participant_ids: Sequence[bytes]) -> None:
    """No other experiment holds the experiment's files there. Raises FailedPrecondition naming holders."""
    conflicts = work.store.experiments.conflicts(
        experiment.id, list(participant_ids), experiment.target_files
    )
    if not conflicts:
        return
    faults = [
        Fault(
            field="participantId",
            message=f"{conflict.path} of {conflict.participant} is held by experiment {conflict.holder}",
            remedy=f"complete {conflict.holder} first",
        )
        for conflict in conflicts
    ]
    raise FailedPrecondition(faults[0].message, reason="CLAIM_CONFLICT", faults=faults)


def _end(work: Work, experiment: Experiment) -> None:
    """The results are frozen, the phase is closed, and nothing is held any more."""
    store = work.store.experiments
    store.keep_snapshot(experiment.id, summarise_phase(work, experiment))
    if experiment.phase:
        store.close_phase(experiment.phase.id, now=work.now)
    store.release(experiment.id, now=work.now)


def _concluded(
    work: Work,
    experiment: Experiment,
    status: Status,
    winner: Variant | None,
    request: requests.Complete | requests.Ship,
) -> View:
    again = experiment.status is Status.COMPLETED
    _save(
        work,
        replace(
            experiment,
            status=status,
            winner_variant_id=winner.id if winner else None,
            conclusion=request.conclusion or (experiment.conclusion if again else None),
            conclusion_comment=request.conclusion_comment
            or (experiment.conclusion_comment if again else None),
            paused_at=None,
            completed_at=experiment.completed_at if again else work.now,
            updated_at=work.now,
        ),
    )
    return view_of(work, work.store.experiments.get(experiment.id))


def reset(work: Work, request: requests.Reset) -> View:
    """The experiment is a draft again, of the next run with a seed of its own; files are kept or restored.

    What was measured stays on record under its run and enters no further analysis.
    """
    experiment = find(work, request.id)
    status = experiment.after(Verb.RESET)
    if experiment.status is not Status.COMPLETED:
        _end(work, experiment)
    if request.then == "restore":
        slots = [slot for slot in _slots(work, experiment) if slot.open or slot.origin is Origin.CLOSE]
        delivery.restore(work, experiment, slots, origin=Origin.RESTORE)
    else:
        delivery.close(work, experiment, _open(_slots(work, experiment)))
    _save(
        work,
        replace(
            experiment,
            status=status,
            archived=False,
            run=experiment.run + 1,
            seed=new_secret(),
            phase=None,
            updated_at=work.now,
            **UNTOLD,
        ),
    )
    return view_of(work, work.store.experiments.get(experiment.id))


def archive(work: Work, request: requests.ById) -> View:
    """The experiment is in no list unless archived ones are asked for; nothing else about it changes."""
    return _put_away(work, request.id, Verb.ARCHIVE)


def unarchive(work: Work, request: requests.ById) -> View:
    """The experiment is in the lists again."""
    return _put_away(work, request.id, Verb.UNARCHIVE)


def _put_away(work: Work, id_or_key: str, verb: Verb) -> View:
    experiment = find(work, id_or_key)
    experiment.after(verb)
    put_away = verb is Verb.ARCHIVE
    if put_away:
        require_unused(work, experiment)
    archived_at = work.now if put_away else None
    moved = replace(experiment, archived=put_away, archived_at=archived_at, updated_at=work.now)
    _save(work, moved)
    return view_of(work, work.store.experiments.get(experiment.id))


def transition(work: Work, request: requests.Transition) -> View:
    """The experiment is running, paused or completed; asking for where it is changes nothing."""
    experiment = find(work, request.id)
    verb = verb_towards(experiment.status, Status(request.status))
    if verb is None:
        return view_of(work, experiment)
    if verb is Verb.COMPLETE:
        return complete(work, requests.Complete(id=request.id))
    if verb is Verb.PAUSE:
        return pause(work, requests.Pause(id=request.id))
    return {Verb.START: start, Verb.RESUME: resume}[verb](work, requests.ById(id=request.id))
