"""How much is let in: token buckets, one for each API key, so many calls of each agent, so many sessions at once."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from shared.errors import ResourceExhausted


class Bucket:
    """A token bucket: `rate` a second, at most `burst` at once."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._at = burst, float("-inf")

    def take(self, moment: float) -> bool:
        """Whether there was one to take at `moment` (monotonic seconds)."""
        elapsed = moment - self._at if self._at != float("-inf") else 0.0
        self._level = min(self._burst, self._level + elapsed * self._rate)
        self._at = moment
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True

    @property
    def seconds_left(self) -> float:
        """How long after the last `take` there is one again."""
        return max(0.0, 1.0 - self._level) / self._rate


class Rates:
    """What each API key may ask for, on both transports together; `rate` 0 lets everything in.

    Keeps a bucket for every key that was used since the process began. That is some hundred bytes a key, and
    stops being cheap where keys are made by the million.
    """

    def __init__(self, *, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: dict[bytes, Bucket] = {}

    def admit(self, key_id: bytes, moment: float) -> None:
        """One request of the key is let in at `moment` (monotonic seconds).

        Raises ResourceExhausted RATE_LIMITED, with the whole seconds after which there is one again.
        """
        if not self._rate:
            return
        bucket = self._buckets.get(key_id)
        if bucket is None:
            bucket = self._buckets[key_id] = Bucket(rate=self._rate, burst=self._burst)
        if not bucket.take(moment):
            wait = max(1, math.ceil(bucket.seconds_left))
            raise ResourceExhausted(
                f"this caller may send {self._rate:g} requests a second; try again in {wait} s",
                reason="RATE_LIMITED",
                details={"retryAfterSeconds": wait},
            )


class Turnstile:
    """At most `most` calls of each caller at once."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._inside: Counter[bytes] = Counter()

    @contextmanager
    def enter(self, caller: bytes) -> Iterator[None]:
        """The call is one of its caller's. Raises ResourceExhausted TOO_MANY_CALLS where there are enough."""
        if self._inside[caller] >= self._most:
            raise ResourceExhausted(
                f"{self._most} calls of this agent are under way; send the next one when one ends",
                reason="TOO_MANY_CALLS",
            )
        self._inside[caller] += 1
        try:
            yield
        finally:
            self._inside[caller] -= 1
            if not self._inside[caller]:
                del self._inside[caller]


class Entrance:
    """At most `at_once` callers are inside; others wait in the order in which they came, for `patience` seconds.

    A fleet that returns is let in as fast as this machine can do it, whatever that is, and what it waits for costs
    nothing meanwhile: a host that is sent away comes back with all that it has to say.
    """

    def __init__(self, *, at_once: int, patience: float) -> None:
        self._places, self._patience = asyncio.Semaphore(at_once), patience

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[bool]:
        """Whether there was a place in time; it is the caller's until the end."""
        try:
            async with asyncio.timeout(self._patience):
                await self._places.acquire()
        except TimeoutError:
            yield False
            return
        try:
            yield True
        finally:
            self._places.release()


SESSION_SECONDS = 3600.0
"""What a session lasts before another one takes its place."""


def lasts(session_id: bytes) -> float:
    """Seconds that this session lasts: within a tenth of the same, so that a fleet's never end together."""
    return SESSION_SECONDS * (0.9 + 0.2 * int.from_bytes(session_id[-2:]) / 0xFFFF)
