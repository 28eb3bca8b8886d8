"""What came out otherwise when it was added up again."""

from control_plane.api.resources.shown import Json, at, ident
from control_plane.domain.attribution import unwindowed
from control_plane.domain.series import date_of
from control_plane.services.doctor import Checked, Difference
from control_plane.services.work import Scope, Work
from shared.ids import show_id


def tally_check(work: Work, found: Checked) -> Json:
    """What was checked, and the differences."""
    return {
        "experimentId": show_id(found.experiment.id),
        "key": found.experiment.key,
        "phaseCount": found.phases,
        "gonePhaseCount": found.gone,
        "participantCount": found.participants,
        "eventCount": found.events,
        "differenceCount": found.count,
        "differences": [_difference(work, item) for item in found.differences],
    }


def _difference(work: Work, item: Difference) -> Json:
    show = at if item.table == "unit" else _number
    return {
        "table": item.table,
        "phaseId": show_id(item.phase_id),
        "population": item.population,
        "field": item.field,
        "stored": show(item.stored),
        "recomputed": show(item.recomputed),
        "variantId": ident(item.variant_id),
        "participantId": item.participant,
        "timeBlock": item.time_block,
        "subject": (item.subject or None) if work.caller.may(Scope.CONTENT_READ) else None,
        "eventName": _called(item.event_name),
        "date": None if item.day is None else date_of(item.day),
        "standing": item.standing,
    }


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)


def _called(name: str) -> str:
    own, window = unwindowed(name)
    return own if window is None else f"{own} within {window:g} s"
