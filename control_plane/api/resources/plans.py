"""What experiments of a project share: holdouts."""

from control_plane.api.resources.shown import Json, at, page
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
