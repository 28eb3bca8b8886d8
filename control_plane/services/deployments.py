"""Use cases of deployments: a variant onto a participant by hand, and what became of it."""

from collections.abc import Sequence

from control_plane.domain import requests
from control_plane.domain.deployment import Deployment, Origin
from control_plane.domain.experiment import Assignment
from control_plane.domain.fleet import Presence
from control_plane.domain.lifecycle import Verb
from control_plane.services import delivery
from control_plane.services.experiments import find, find_variant
from control_plane.services.lifecycle import refuse_held
from control_plane.services.work import Listing, Work, cursor_id, hex_of, listing, page_size
from shared.errors import FailedPrecondition, NotFound
from shared.ids import parse_id


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


def list_page(work: Work, request: requests.PageOf) -> Listing:
    """A page of an experiment's deployments, newest first."""
    experiment = find(work, request.id)
    size = page_size(request.limit)
    found = work.store.deployments.of_experiment(
        experiment.id, before=cursor_id(request.cursor), limit=size + 1, now=work.now
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
