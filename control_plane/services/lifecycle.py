"""Use cases of an experiment's life: start, pause, resume, stop, complete."""

from collections.abc import Sequence
from dataclasses import replace

from control_plane.domain import requests
from control_plane.domain.assignment import ALGORITHM, Arm, assign
from control_plane.domain.deployment import DeploymentFile, Origin
from control_plane.domain.experiment import (
    Assignment,
    Experiment,
    Phase,
    Readiness,
    Status,
    Variant,
    Verb,
    after,
    faults_at_start,
    verb_towards,
)
from control_plane.domain.fleet import Participant
from control_plane.services.experiments import (
    View,
    candidates,
    design_warnings,
    find,
    find_variant,
    selected,
    view_of,
)
from control_plane.services.results import summarise_phase
from control_plane.services.work import Work
from control_plane.store.deployments import NewDeployment
from shared.errors import FailedPrecondition
from shared.model import OfferAction


def start(work: Work, request: requests.ById) -> View:
    """Assignments are fixed, claims taken, and every participant's slot should hold its variant.

    Raises FailedPrecondition with every fault by field where the experiment is not ready.
    """
    experiment = find(work, request.id)
    status = after(experiment.status, Verb.START)
    participants = selected(work, experiment.selector)
    ids = {participant.public_id: participant.id for participant in participants}
    store = work.store.experiments
    conflicts = store.conflicts(experiment.id, list(ids.values()), experiment.target_files)
    faults = faults_at_start(experiment, Readiness(participants=len(participants), conflicts=conflicts))
    if faults:
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise FailedPrecondition(f"the experiment is not ready: {listed}", reason="NOT_READY", faults=faults)
    store.claim(experiment.id, ids.values(), experiment.target_files, now=work.now)
    phase = Phase(
        id=work.new_id(),
        number=1,
        algorithm=ALGORITHM,
        seed=experiment.seed,
        weights={variant.id: variant.weight for variant in experiment.variants},
        traffic_allocation=100,
        opened_at=work.now,
        closed_at=None,
    )
    store.add_phase(experiment.id, experiment.run, phase)
    _assign(work, experiment, phase, participants)
    store.save(replace(experiment, status=status, phase=phase, started_at=work.now, updated_at=work.now))
    view = view_of(work, store.get(experiment.id))
    return replace(view, warnings=design_warnings(view))


def _assign(work: Work, experiment: Experiment, phase: Phase, participants: Sequence[Participant]) -> None:
    by_key = {variant.key: variant for variant in experiment.variants}
    by_name = {participant.public_id: participant for participant in participants}
    arms = [Arm(key=variant.key, weight=variant.weight) for variant in experiment.variants]
    rows = []
    for placement in assign(candidates(participants), arms, seed=phase.seed):
        participant, variant = by_name[placement.participant], by_key[placement.arm]
        assignment = Assignment(
            id=work.new_id(),
            experiment_id=experiment.id,
            phase_id=phase.id,
            participant=placement.participant,
            variant_id=variant.id,
            block=placement.block,
            stratum=placement.stratum,
            position=placement.position,
            from_at=work.now,
        )
        rows.append((assignment, participant.id, participant.labels))
        work.store.deployments.desire(
            NewDeployment(
                id=work.new_id(),
                project_id=work.project_id,
                experiment_id=experiment.id,
                variant_id=variant.id,
                phase_id=phase.id,
                participant_id=participant.id,
                slot_id=experiment.id,
                origin=Origin.START,
                action=OfferAction.WRITE,
                files=files_of(variant),
                requested_by=work.caller.actor,
            ),
            now=work.now,
        )
    work.store.experiments.add_assignments(rows)
    work.touch(participant_id for _, participant_id, _ in rows)


def files_of(variant: Variant) -> list[DeploymentFile]:
    """What a slot holds once it holds the variant."""
    return [DeploymentFile(path=file.path, desired=file.digest, size=file.size) for file in variant.files]


def pause(work: Work, request: requests.ById) -> View:
    """Intake is closed; files stay and are measured."""
    return _move(work, request.id, Verb.PAUSE, paused_at=work.now)


def resume(work: Work, request: requests.ById) -> View:
    """Intake is open again; every participant keeps its variant."""
    return _move(work, request.id, Verb.RESUME, paused_at=None)


def stop(work: Work, request: requests.ById) -> View:
    """Intake is closed for good; files stay and are measured."""
    return _move(work, request.id, Verb.STOP, paused_at=None, stopped_at=work.now)


def _move(work: Work, id_or_key: str, verb: Verb, **moments: int | None) -> View:
    experiment = find(work, id_or_key)
    moved = replace(experiment, status=after(experiment.status, verb), updated_at=work.now, **moments)  # type: ignore[arg-type]  # only the optional moments are given
    work.store.experiments.save(moved)
    return view_of(work, work.store.experiments.get(experiment.id))


def complete(work: Work, request: requests.Complete) -> View:
    """The experiment has ended: results frozen, claims released, files kept or restored exactly."""
    experiment = find(work, request.id)
    status = after(experiment.status, Verb.COMPLETE)
    winner = find_variant(experiment, request.winner_variant_id) if request.winner_variant_id else None
    store = work.store.experiments
    store.keep_snapshot(experiment.id, summarise_phase(work, experiment))
    if experiment.phase:
        store.close_phase(experiment.phase.id, now=work.now)
    restore = request.then == "restore"
    slots = work.store.deployments.slots_of(experiment.id)
    for participant_id, slot_id, paths, is_open in slots:
        if not is_open:
            continue
        work.store.deployments.desire(
            NewDeployment(
                id=work.new_id(),
                project_id=work.project_id,
                experiment_id=experiment.id,
                variant_id=None,
                phase_id=experiment.phase.id if experiment.phase else None,
                participant_id=participant_id,
                slot_id=slot_id,
                origin=Origin.RESTORE if restore else Origin.CLOSE,
                action=OfferAction.RESTORE if restore else OfferAction.CLOSE,
                files=[DeploymentFile(path=path, desired=None, size=0) for path in paths],
                requested_by=work.caller.actor,
            ),
            now=work.now,
        )
    work.touch(participant_id for participant_id, _, _, is_open in slots if is_open)
    store.release(experiment.id)
    store.save(
        replace(
            experiment,
            status=status,
            winner_variant_id=winner.id if winner else None,
            conclusion=request.conclusion,
            conclusion_comment=request.conclusion_comment,
            paused_at=None,
            completed_at=work.now,
            updated_at=work.now,
        )
    )
    return view_of(work, store.get(experiment.id))


def transition(work: Work, request: requests.Transition) -> View:
    """The experiment is running, paused or completed; asking for where it is changes nothing."""
    experiment = find(work, request.id)
    verb = verb_towards(experiment.status, Status(request.status))
    by_id = requests.ById(id=request.id)
    if verb is None:
        return view_of(work, experiment)
    if verb is Verb.COMPLETE:
        return complete(work, requests.Complete(id=request.id))
    return {Verb.START: start, Verb.PAUSE: pause, Verb.RESUME: resume}[verb](work, by_id)
