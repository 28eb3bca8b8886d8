"""What can be tested, what is reported of it, and how many experiments there are."""

from control_plane.api.resources.shown import Json, at, page
from control_plane.domain.globs import is_glob
from control_plane.services.survey import WINDOW_DAYS, Instrumentation, Pace, Signal, Target, Velocity
from control_plane.services.work import Listing, Work
from shared.ids import show_id


def eligible_targets(work: Work, listing: Listing) -> Json:
    """A page of targets."""
    return page(listing, _target)


def _target(item: Target) -> Json:
    return {
        "target": item.path,
        "glob": is_glob(item.path),
        "participantCount": item.participants,
        "availableCount": item.available,
        "heldBy": list(item.held_by),
    }


def instrumentation(work: Work, found: Instrumentation) -> Json:
    """What an experiment needs, and what of it was reported."""
    return {
        "experimentId": show_id(found.experiment.id),
        "key": found.experiment.key,
        "requiresInstrumentation": found.required,
        "participantCount": found.participants,
        "exposure": _signal(found.exposure),
        "metrics": [
            {"eventName": item.name, "role": item.role, "signal": _signal(item)} for item in found.metrics
        ],
        "targets": [{"target": item.name, "signal": _signal(item)} for item in found.targets],
    }


def _signal(item: Signal) -> Json:
    return {
        "reported": item.last_seen_at is not None,
        "reportingCount": item.reporting,
        "lastSeenAt": at(item.last_seen_at),
    }


def velocity(work: Work, found: Velocity) -> Json:
    """The pace of a project."""
    return {
        "asOf": at(found.as_of),
        "windowDays": WINDOW_DAYS,
        "launched": _pace(found.launched),
        "completed": _pace(found.completed),
        "running": found.running,
    }


def _pace(item: Pace) -> Json:
    return {"current": item.current, "previous": item.previous, "percentChange": item.percent_change}
