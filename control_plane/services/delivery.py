"""What slots should hold: the one place where use cases change it.

A slot is one experiment's place on one participant. Each change is a deployment with a revision of its own;
the agents concerned are woken after the commit. Nothing here decides who gets which variant.
"""

from collections.abc import Iterable, Sequence

from control_plane.domain.deployment import DeploymentFile, Origin
from control_plane.domain.experiment import Experiment, Variant
from control_plane.services.work import Work
from control_plane.store.deployments import NewDeployment, Place, Slot
from shared.model import OfferAction


def write(
    work: Work,
    experiment: Experiment,
    variant: Variant,
    participant_ids: Iterable[bytes],
    *,
    origin: Origin,
    overwrite_drift: bool = False,
    retry: bool = False,
) -> list[bytes]:
    """Every one of the participants should hold the variant; returns the deployments, in their order.

    `overwrite_drift` and `retry` ask the hosts to overlook a file that somebody changed, and that the content
    failed there before.
    """
    files = [DeploymentFile(path=file.path, desired=file.digest, size=file.size) for file in variant.files]
    ids = list(participant_ids)
    made = [work.new_id() for _ in ids]
    for deployment_id, participant_id in zip(made, ids, strict=True):
        work.store.deployments.desire(
            NewDeployment(
                id=deployment_id,
                project_id=work.project_id,
                experiment_id=experiment.id,
                variant_id=variant.id,
                phase_id=experiment.phase.id if experiment.phase else None,
                participant_id=participant_id,
                slot_id=experiment.id,
                origin=origin,
                action=OfferAction.WRITE,
                files=files,
                requested_by=work.caller.actor,
                overwrite_drift=overwrite_drift,
                retry=retry,
            ),
            now=work.now,
        )
    work.touch(ids)
    return made


def restore(work: Work, experiment: Experiment, slots: Sequence[Slot], *, origin: Origin) -> None:
    """Every one of the slots should be what was there before, byte for byte."""
    _empty(work, experiment, slots, origin=origin, action=OfferAction.RESTORE)


def put_back(work: Work, experiment: Experiment, place: Place, paths: Iterable[str]) -> None:
    """The slot should hold the very bytes it should have held before, by a newer revision.

    Where that was nothing, the `paths` are what was there before; of a slot that no host can know, nothing is asked.
    """
    if place.action is None and not place.told:
        work.store.deployments.empty(place.participant_id, experiment.id, now=work.now)
    else:
        untouched = [DeploymentFile(path=path, desired=None, size=0) for path in paths]
        work.store.deployments.desire(
            NewDeployment(
                id=work.new_id(),
                project_id=work.project_id,
                experiment_id=experiment.id,
                variant_id=place.variant_id,
                phase_id=experiment.phase.id if experiment.phase else None,
                participant_id=place.participant_id,
                slot_id=experiment.id,
                origin=Origin.ROLLBACK,
                action=place.action or OfferAction.RESTORE,
                files=list(place.files) or untouched,
                requested_by=work.caller.actor,
            ),
            now=work.now,
        )
    work.touch([place.participant_id])


def close(work: Work, experiment: Experiment, slots: Sequence[Slot]) -> None:
    """What is on disk stays and is the host's own: nobody watches or repairs it any more."""
    _empty(work, experiment, slots, origin=Origin.CLOSE, action=OfferAction.CLOSE)


def _empty(
    work: Work, experiment: Experiment, slots: Sequence[Slot], *, origin: Origin, action: OfferAction
) -> None:
    for slot in slots:
        work.store.deployments.desire(
            NewDeployment(
                id=work.new_id(),
                project_id=work.project_id,
                experiment_id=experiment.id,
                variant_id=None,
                phase_id=experiment.phase.id if experiment.phase else None,
                participant_id=slot.participant_id,
                slot_id=experiment.id,
                origin=origin,
                action=action,
                files=[DeploymentFile(path=path, desired=None, size=0) for path in slot.paths],
                requested_by=work.caller.actor,
            ),
            now=work.now,
        )
    work.touch(slot.participant_id for slot in slots)
