"""Use cases of deployments: a variant onto a participant by hand, and what became of it."""

from collections.abc import Sequence
from dataclasses import replace

from control_plane.domain import requests
from control_plane.domain.deployment import Deployment, DeploymentFile, Origin, State
from control_plane.domain.experiment import Assignment, Experiment
from control_plane.domain.fleet import Presence
from control_plane.domain.lifecycle import Status, Verb
from control_plane.services import delivery
from control_plane.services.experiments import find, find_variant
from control_plane.services.lifecycle import refuse_held
from control_plane.services.work import Listing, Work, cursor_id, hex_of, listing, page_size
from control_plane.store.deployments import Place
from shared.errors import FailedPrecondition, NotFound
from shared.ids import parse_id, show_id
from shared.model import OfferAction


def create(work: Work, request: requests.CreateDeployment) -> Deployment:
    """The participant's slot should hold the variant from now on, whether its agent is connected or not.

    Another variant than the assigned one makes the assignment `forced`. Raises FailedPrecondition naming the
    holder where another experiment holds the file, or, with `requireConnected`, where no agent is connected.
    """
    experiment = find(work, request.id)
    variant = find_variant(experiment, request.variant_id)
    experiment.after(Verb.DEPLOY)
    participant = work.store.fleet.participant(work.project_id, request.participant_id)
    if participant is None or not work.caller.sees(participant.labels):
        raise NotFound(
            f"there is no participant {request.participant_id!r}; `variantctl agents list` shows who is served",
            reason="PARTICIPANT_NOT_FOUND",
        )
    if request.require_connected and participant.presence(work.now) is not Presence.CONNECTED:
        raise FailedPrecondition(
            f"the agent of {participant.public_id} is not connected; leave requireConnected out to deploy once it is",
            reason="NOT_CONNECTED",
        )
    _require_files(variant.files, experiment.key)
    refuse_held(work, experiment, [participant.id])
    work.store.experiments.claim(experiment.id, [participant.id], experiment.target_files, now=work.now)
    phase = experiment.phase
    forced = phase is not None and work.store.experiments.force(
        phase.id, participant.id, variant.id, actor=work.caller.actor, now=work.now
    )
    [deployment_id] = delivery.write(
        work,
        experiment,
        variant,
        [participant.id],
        origin=Origin.FORCED if forced else Origin.MANUAL,
        overwrite_drift=request.overwrite_drift,
        retry=request.retry,
    )
    return _get(work, deployment_id)


_WITHDRAWN = {
    "code": "WITHDRAWN",
    "message": "somebody took it back before the host was done with it",
    "remedy": "deploy again",
}


def withdraw(work: Work, request: requests.ById) -> Deployment:
    """What was deployed by hand is not asked for any more; its slot should hold what it should have held before it.

    That is a newer revision with the old digests, because the host may have been told meanwhile; where nothing was
    asked of the slot before, it is restored. An assignment that was forced by it is as it was drawn. Where a resume or
    a phase has found it in place meanwhile, the slot should hold what is assigned now. Repeated, it changes nothing.
    Raises FailedPrecondition for one that the host is done with, and for one that a verb of the experiment made.
    """
    deployment = get(work, request)
    experiment = find(work, show_id(deployment.experiment_id))
    if deployment.state is State.WITHDRAWN:
        return deployment
    _require_withdrawable(deployment)
    experiment.after(Verb.DEPLOY)
    place = work.store.deployments.withdraw_one(deployment.id, _WITHDRAWN, now=work.now)
    phase = experiment.phase
    of = work.store.experiments.assignment
    assigned = of(phase.id, place.participant_id, now=work.now) if phase else None
    place = _as_it_is_by_now(experiment, deployment, place, assigned)
    delivery.put_back(work, experiment, place, [file.path for file in deployment.files])
    if assigned and assigned.id is not None and place.variant_id in (None, assigned.variant_id):
        work.store.experiments.unforce(assigned.id)
    if phase is None and place.action is None and not place.told:
        work.store.experiments.release_of(experiment.id, [place.participant_id], now=work.now)
    return _get(work, deployment.id)


def _as_it_is_by_now(
    experiment: Experiment, deployment: Deployment, place: Place, assigned: Assignment | None
) -> Place:
    """The place with the assigned variant, where the one before the deployment is not what is wanted any more."""
    variants = [item for item in experiment.variants if assigned and item.id == assigned.variant_id]
    taken = experiment.status is Status.RUNNING and place.action is not OfferAction.WRITE
    if not assigned or not variants or not (taken or assigned.from_at > deployment.created_at):
        return place
    files = [
        DeploymentFile(path=item.path, desired=item.digest, size=item.size) for item in variants[0].files
    ]
    return replace(place, variant_id=variants[0].id, action=OfferAction.WRITE, files=tuple(files))


def _require_withdrawable(deployment: Deployment) -> None:
    state = deployment.state
    if not deployment.by_hand:
        why = f"it was not deployed by hand (its origin is {deployment.origin.value})"
        remedy = "use the verbs of the experiment"
    elif state.ended:
        why, remedy = f"the host is done with it ({state.value})", "deploy another variant, or unforce"
    else:
        return
    raise FailedPrecondition(
        f"it cannot be withdrawn: {why}; {remedy}",
        reason="NOT_WITHDRAWABLE",
        details={"state": state.value, "origin": deployment.origin.value},
    )


def force(work: Work, request: requests.ForceAssignment) -> Assignment:
    """The participant should hold this variant, whatever was drawn; it stays in its arm, marked `forced`.

    Forcing the variant that was drawn deploys it again and marks nothing. Raises NotFound where the participant is
    not assigned in the present phase.
    """
    experiment = find(work, request.id)
    experiment.after(Verb.DEPLOY)
    participant = work.store.fleet.participant(work.project_id, request.participant_id)
    phase = experiment.phase
    assigned = work.store.experiments.assignment
    if participant is None or phase is None or assigned(phase.id, participant.id, now=work.now) is None:
        raise NotFound(
            f"{request.participant_id!r} is not assigned in {experiment.key}", reason="ASSIGNMENT_NOT_FOUND"
        )
    create(
        work,
        requests.CreateDeployment(
            id=request.id, participantId=request.participant_id, variantId=request.variant_id
        ),
    )
    found = assigned(phase.id, participant.id, now=work.now)
    assert found is not None
    return found


def _require_files(files: Sequence[object], key: str) -> None:
    if not files:
        raise FailedPrecondition(
            f"the variant has no content to deploy; set targetFile and content on {key}", reason="NO_CONTENT"
        )


def get(work: Work, request: requests.ById) -> Deployment:
    """One deployment."""
    deployment_id = parse_id(request.id)
    if deployment_id is None:
        raise NotFound(f"there is no deployment {request.id!r}", reason="DEPLOYMENT_NOT_FOUND")
    return _get(work, deployment_id)


def _get(work: Work, deployment_id: bytes) -> Deployment:
    deployment = work.store.deployments.get(work.project_id, deployment_id, now=work.now)
    if deployment is None or not _seen(work, deployment.experiment_id):
        raise NotFound("there is no such deployment", reason="DEPLOYMENT_NOT_FOUND")
    return deployment


def _seen(work: Work, experiment_id: bytes) -> bool:
    return not work.caller.labels or work.caller.sees(work.store.experiments.get(experiment_id).labels)


def list_page(work: Work, request: requests.ListDeployments) -> Listing:
    """A page of an experiment's deployments that are so, newest first."""
    experiment = find(work, request.id)
    size = page_size(request.limit)
    found = work.store.deployments.of_experiment(
        experiment.id,
        state=request.state,
        current=request.current,
        settled=request.settled,
        before=cursor_id(request.cursor),
        limit=size + 1,
        now=work.now,
    )
    return listing(found, size, lambda item: hex_of(item.id))


def list_current(work: Work, request: requests.Page) -> Listing:
    """A page of the newest deployment of every slot of the project, the newest first."""
    size = page_size(request.limit)
    found = work.store.deployments.current(
        work.project_id,
        labels=work.caller.labels,
        before=cursor_id(request.cursor),
        limit=size + 1,
        now=work.now,
    )
    return listing(found, size, lambda item: hex_of(item.id))


def list_outcomes(work: Work, request: requests.PageOf) -> Listing:
    """A page of what the host reported about a deployment, oldest first."""
    deployment = get(work, requests.ById(id=request.id))
    size = page_size(request.limit)
    found = work.store.deployments.outcomes(deployment.id, after=cursor_id(request.cursor), limit=size + 1)
    return listing(found, size, lambda item: hex_of(item.id))
