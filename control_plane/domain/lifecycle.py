"""How an experiment lives: its states, its verbs, and the one table that says which verb fits which state."""

from collections.abc import Mapping
from enum import StrEnum

from shared.errors import FailedPrecondition


class Status(StrEnum):
    """Where an experiment is in its life."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    COMPLETED = "completed"


class Verb(StrEnum):
    """What can be done to an experiment."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    COMPLETE = "complete"
    SHIP = "ship"
    RESET = "reset"
    OPEN_PHASE = "openPhase"
    DEPLOY = "deploy"
    EDIT = "edit"
    ARCHIVE = "archive"
    UNARCHIVE = "unarchive"
    DELETE = "delete"


_ENDING = {
    Verb.COMPLETE: Status.COMPLETED,
    Verb.SHIP: Status.COMPLETED,
    Verb.RESET: Status.DRAFT,
}

TRANSITIONS: Mapping[Status, Mapping[Verb, Status]] = {
    Status.DRAFT: {
        Verb.START: Status.RUNNING,
        Verb.DEPLOY: Status.DRAFT,
        Verb.EDIT: Status.DRAFT,
        Verb.ARCHIVE: Status.DRAFT,
        Verb.DELETE: Status.DRAFT,
    },
    Status.RUNNING: {
        Verb.PAUSE: Status.PAUSED,
        Verb.STOP: Status.STOPPED,
        Verb.DEPLOY: Status.RUNNING,
        Verb.OPEN_PHASE: Status.RUNNING,
        **_ENDING,
    },
    Status.PAUSED: {
        Verb.RESUME: Status.RUNNING,
        Verb.STOP: Status.STOPPED,
        Verb.DEPLOY: Status.PAUSED,
        **_ENDING,
    },
    Status.STOPPED: {Verb.DEPLOY: Status.STOPPED, **_ENDING},
    Status.COMPLETED: {
        Verb.SHIP: Status.COMPLETED,
        Verb.RESET: Status.DRAFT,
        Verb.ARCHIVE: Status.COMPLETED,
        Verb.DELETE: Status.COMPLETED,
    },
}
"""state × verb: the state that follows; a verb that is not listed is a conflict. Duplicating fits always."""

ARCHIVED = (Verb.UNARCHIVE, Verb.DELETE)
"""The verbs of what is archived: a draft or a completed experiment that is put away does nothing else."""


def allowed(status: Status, *, archived: bool) -> tuple[Verb, ...]:
    """The verbs that fit."""
    return ARCHIVED if archived else tuple(TRANSITIONS[status])


def after(status: Status, verb: Verb, *, archived: bool = False) -> Status:
    """The status that follows. Raises FailedPrecondition naming the state and the verbs it allows."""
    fitting = allowed(status, archived=archived)
    if verb in fitting:
        return TRANSITIONS[status].get(verb, status)
    state = "archived" if archived else status.value
    names = [item.value for item in fitting]
    remedy = "; complete it first" if verb is Verb.DELETE else ""
    raise FailedPrecondition(
        f"{'an' if archived else 'a'} {state} experiment cannot {verb}{remedy}; allowed now: {', '.join(names)}",
        reason="WRONG_STATE",
        details={"state": state, "allowedVerbs": names},
    )


def verb_towards(status: Status, target: Status) -> Verb | None:
    """The verb that leads from `status` to running, paused or completed; None where it is there already."""
    if status is target:
        return None
    if target is Status.RUNNING:
        return Verb.RESUME if status is Status.PAUSED else Verb.START
    return Verb.PAUSE if target is Status.PAUSED else Verb.COMPLETE
