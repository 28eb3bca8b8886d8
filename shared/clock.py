"""The one source of time. Everything else is given a `Clock`."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol

SECOND = 1_000_000  # microseconds: the unit of every stored or sent moment


class Clock(Protocol):
    """Where a process gets its time from."""

    def now(self) -> int:
        """The wall clock, microseconds since 1970-01-01 UTC; may jump."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Returns once `monotonic` has advanced by `seconds`."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def to_rfc3339(moment: int) -> str:
    """`moment` (microseconds) as RFC 3339 UTC with milliseconds."""
    text = datetime.fromtimestamp(moment // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{moment % SECOND // 1000:03d}Z"


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
