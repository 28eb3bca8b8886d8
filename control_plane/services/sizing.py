"""Use case of planning: how many participants a change needs. Nothing is read and nothing changed."""

from control_plane.domain.sizing import SampleSize, Sized, size
from control_plane.services.work import Work


def estimate(work: Work, request: SampleSize) -> Sized:
    """What each variant needs, and what those that are there can find."""
    return size(request)
