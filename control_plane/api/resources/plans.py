"""What experiments of a project share, holdouts and saved metrics; and the metrics of one."""

from control_plane.api.resources.shown import Json, at, page
from control_plane.domain.metrics import FIELDS, shown
from control_plane.services import metrics as saved
from control_plane.services.holdouts import View
from control_plane.services.work import Listing, Work
from shared.ids import show_id


def holdout(work: Work, view: View) -> Json:
    """A holdout."""
    return _holdout(view)


def holdouts(work: Work, listing: Listing) -> Json:
    """A page of holdouts."""
    return page(listing, _holdout)


def _holdout(view: View) -> Json:
    item = view.holdout
    return {
        "id": show_id(item.id),
        "key": item.key,
        "name": item.name,
        "description": item.description,
        "share": item.rule.share,
        "experiments": list(view.experiments),
        "createdAt": at(item.created_at),
        "updatedAt": at(item.updated_at),
    }


def saved_metric(work: Work, view: saved.View) -> Json:
    """A saved metric."""
    return _saved(view)


def saved_metrics(work: Work, listing: Listing) -> Json:
    """A page of saved metrics."""
    return page(listing, _saved)


def _saved(view: saved.View) -> Json:
    item = view.metric
    return {
        "id": show_id(item.id),
        "key": item.key,
        "name": item.name,
        **{name: item.definition.get(name) for name in FIELDS},
        "experiments": list(view.experiments),
        "createdAt": at(item.created_at),
        "updatedAt": at(item.updated_at),
    }


def metrics(stored: Json) -> Json:
    """The metrics of an experiment."""
    primary = stored.get("primary")
    return {
        "primary": shown(primary, "primary") if primary else None,
        "secondary": [shown(item, "secondary") for item in stored.get("secondary", [])],
        "guardrail": [shown(item, "guardrail") for item in stored.get("guardrail", [])],
    }
