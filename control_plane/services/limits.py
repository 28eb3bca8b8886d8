"""Keys limited to labels: what they see, and what they may change.

What carries every label of the key is within; anything else answers as what is not there. An experiment reaches
participants, so changing one takes that whom it chooses is within as well: otherwise a key could reach out by an
experiment that others made, or by a schedule that nobody's key starts. Labels that hosts give themselves count
nowhere here.
"""

from collections.abc import Mapping, Sequence

from control_plane.domain.design import Selector
from control_plane.domain.experiment import Experiment
from control_plane.domain.fleet import Agent
from control_plane.services.work import Work
from shared.errors import Fault, NotFound, PermissionDenied


def narrowed(work: Work, wanted: Mapping[str, str]) -> dict[str, str] | None:
    """The labels to list by: those wanted and the key's; None where nothing can carry both."""
    own = work.caller.labels
    if any(wanted.get(name, value) != value for name, value in own.items()):
        return None
    return {**wanted, **own}


def require_labels(work: Work, labels: Mapping[str, str], *, field: str = "labels") -> None:
    """What is made or changed carries the key's labels. Raises PermissionDenied naming those it lacks."""
    lacking = [f"{name}={value}" for name, value in work.caller.labels.items() if labels.get(name) != value]
    if lacking:
        fault = Fault(
            field=field,
            message=f"lacks {', '.join(lacking)}, which this key is limited to",
            remedy="set them, or use another key",
        )
        raise PermissionDenied(f"{field}: {fault.message}", reason="OUTSIDE_LABELS", faults=[fault])


def require_choice(work: Work, selector: Selector) -> None:
    """The participants chosen are within: by labels that include the key's, or each by an id that it sees.

    Raises NotFound for an id that is outside or nobody's: a limited key makes no participants by naming them.
    """
    if not work.caller.labels:
        return
    hidden = unseen(work, selector.ids)
    if hidden:
        first = next(public_id for public_id in selector.ids if public_id in hidden)
        raise NotFound(f"there is no participant {first!r}", reason="PARTICIPANT_NOT_FOUND")
    if selector.labels:
        require_labels(work, selector.labels, field="participants.labels")


def require_confined(work: Work, experiment: Experiment) -> None:
    """The experiment chooses nobody outside the key's labels, as things stand now. Raises PermissionDenied."""
    if not work.caller.labels:
        return
    ids, labels = experiment.selector.get("ids", []), experiment.selector.get("labels", {})
    if _beyond(work, ids) or (labels and not work.caller.sees(labels)):
        raise PermissionDenied(
            f"{experiment.key} chooses participants beyond the labels this key is limited to",
            reason="OUTSIDE_LABELS",
        )


def require_served_within(work: Work, agent: Agent) -> None:
    """The agent serves nobody outside the key's labels. Raises PermissionDenied."""
    if not work.caller.labels:
        return
    if _beyond(work, agent.participants):
        raise PermissionDenied(
            f"{agent.name} serves participants beyond the labels this key is limited to",
            reason="OUTSIDE_LABELS",
        )


def unseen(work: Work, public_ids: Sequence[str]) -> set[str]:
    """Those of the participants that the key does not see."""
    if not work.caller.labels:
        return set()
    found = work.store.fleet.participants_named(work.project_id, public_ids)
    return {name for name in public_ids if name not in found or not work.caller.sees(found[name].labels)}


def _beyond(work: Work, public_ids: Sequence[str]) -> bool:
    """One of these participants is there, and the key does not see it."""
    found = work.store.fleet.participants_named(work.project_id, public_ids)
    return not all(work.caller.sees(item.labels) for item in found.values())
