"""Moments: microseconds since 1970-01-01 UTC, the unit of everything stored or sent. Pure; knows no clock."""

from datetime import UTC, datetime

SECOND = 1_000_000


def to_rfc3339(moment: int) -> str:
    """`moment` (microseconds) as RFC 3339 UTC with milliseconds."""
    whole = datetime.fromtimestamp(moment // SECOND, UTC).replace(tzinfo=None)
    return f"{whole.isoformat()}.{moment % SECOND // 1000:03d}Z"  # strftime writes the year 500 with three digits


def from_rfc3339(text: str) -> int:
    """Microseconds of an RFC 3339 moment. Raises ValueError without an offset or where malformed."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no offset; write it as 2026-01-31T12:00:00Z")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * SECOND + delta.microseconds


def utc_day(moment: int) -> int:
    """The UTC calendar day of a moment, in days since 1970-01-01."""
    return moment // (86_400 * SECOND)
