"""What every resource shows alike: moments, ids, pages."""

from collections.abc import Callable
from typing import Any

from control_plane.services.work import Listing
from shared.ids import show_id
from shared.moment import to_rfc3339

Json = dict[str, Any]


def at(moment: int | None) -> str | None:
    """A moment in RFC 3339, or null."""
    return None if moment is None else to_rfc3339(moment)


def ident(value: bytes | None) -> str | None:
    """An id as it is written, or null."""
    return None if value is None else show_id(value)


def page(listing: Listing, render: Callable[[Any], Json]) -> Json:
    """A page as REST shows it."""
    return {
        "entities": [render(item) for item in listing.items],
        "pagination": {
            "nextCursor": listing.next_cursor or None,
            "hasMore": bool(listing.next_cursor),
            "limit": listing.limit,
        },
    }
