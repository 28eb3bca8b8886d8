"""What is to happen by itself: each experiment's timers follow from its design and its state."""

from enum import StrEnum

from control_plane.domain.experiment import Experiment
from control_plane.domain.lifecycle import Status
from control_plane.services.work import Work
from control_plane.store.timers import Timer
from shared.moment import SECOND, utc_day

_DAY = 86_400 * SECOND

ACTOR = "timer"
"""Who is on record for what happened by itself."""


class Kind(StrEnum):
    """What a timer brings about."""

    START = "start"
    STOP = "stop"
    SWITCH = "switch"
    LOOK = "look"


GRACE = 15 * 60 * SECOND
"""How long after the end of a UTC day its look is taken: reports that are on the way then are in it."""

_AHEAD = {
    Status.DRAFT: (Kind.START, Kind.STOP),
    Status.RUNNING: (Kind.STOP, Kind.SWITCH),
    Status.PAUSED: (Kind.STOP, Kind.SWITCH),
}
"""What may lie ahead of an experiment in each state."""


def schedule(work: Work, experiment: Experiment) -> None:
    """The experiment starts and stops by itself as its design says, and only so; call it when either changed."""
    wanted = experiment.design.schedule
    moments = {
        Kind.START: [wanted.start],
        Kind.STOP: [wanted.end],
        Kind.SWITCH: _switches(experiment),
        Kind.LOOK: [_next_look(work, experiment)],
    }
    kinds = () if experiment.archived else _AHEAD.get(experiment.status, ())
    kinds = (*kinds, Kind.LOOK)  # also of what is over: its last day is closed later
    due = {(kind.value, moment) for kind in kinds for moment in moments[kind] if moment is not None}
    timers = work.store.timers
    # A switch that was done stays done, also where the clock was set back before it.
    due -= {
        (kind, moment) for kind, moment in timers.done_since(experiment.id, work.now) if kind == Kind.SWITCH
    }
    # One that is overdue stays: its turn comes in this very second.
    present = [timer for timer in timers.ahead(experiment.id) if timer.kind in set(Kind)]
    timers.drop(timer for timer in present if (timer.kind, timer.due_at) not in due)
    timers.add(
        Timer(
            id=work.new_id(),
            project_id=experiment.project_id,
            experiment_id=experiment.id,
            kind=kind,
            due_at=moment,
        )
        for kind, moment in sorted(due - {(timer.kind, timer.due_at) for timer in present})
        if moment > work.now
    )


def is_end_missed(work: Work, experiment: Experiment) -> bool:
    """Whether the scheduled end is past and will not be made up for, as where it came while this was a draft."""
    end = experiment.design.schedule.end
    if end is None or end > work.now:
        return False
    return all(timer.kind != Kind.STOP for timer in work.store.timers.ahead(experiment.id))


def _switches(experiment: Experiment) -> list[int | None]:
    """When the blocks of a switchback end; while it is paused only the last one's end is of interest."""
    if experiment.calendar is None:
        return []
    moments: list[int | None] = list(experiment.calendar.switches())
    return moments if experiment.status is Status.RUNNING else moments[-1:]


def _next_look(work: Work, experiment: Experiment) -> int | None:
    """When the next look at the present phase is due; None where the last day it counted on has its look."""
    phase = experiment.phase
    if phase is None:
        return None
    last = work.store.looks.last_day(phase.id)
    day = utc_day(phase.opened_at) if last is None else last + 1
    if experiment.completed_at is not None and day > utc_day(experiment.completed_at):
        return None
    return (day + 1) * _DAY + GRACE


def pass_missed(work: Work, experiment: Experiment) -> None:
    """Switches that were due by now are done: what is current is in place."""
    for timer in work.store.timers.ahead(experiment.id):
        if timer.kind == Kind.SWITCH and timer.due_at <= work.now:
            work.store.timers.take(timer.id, now=work.now)
