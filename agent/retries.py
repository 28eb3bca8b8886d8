"""Offers that failed in passing, until their next try is due.

Hides the back-off. What waits here is lost with the process: the journal knows that a try is due, and Hello says so.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from agent.failures import BACK_OFF
from shared.clock import Clock
from shared.model import Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Due:
    offer: Offer
    at: float


class Retries:
    """Calls `again` with each offer when its time has come, while `run` runs."""

    def __init__(self, *, clock: Clock, again: Callable[[Offer], None]) -> None:
        self._clock, self._again = clock, again
        self._waiting: dict[tuple[str, bytes], _Due] = {}
        self._changed = asyncio.Event()

    def put(self, offer: Offer, *, attempt: int) -> None:
        """The offer comes again after the back-off that follows this attempt."""
        wait = BACK_OFF[min(attempt, len(BACK_OFF)) - 1]
        key = (offer.participant, offer.slot_id)
        self._waiting[key] = _Due(offer=offer, at=self._clock.monotonic() + wait)
        self._changed.set()

    def waits(self, offer: Offer) -> bool:
        """The very same is waiting already: to be told of it once more is no reason to hurry."""
        due = self._waiting.get((offer.participant, offer.slot_id))
        return due is not None and due.offer.revision == offer.revision and not offer.retry

    def drop(self, participant: str, slot_id: bytes) -> None:
        """Nothing of the slot waits any more."""
        self._waiting.pop((participant, slot_id), None)

    def taken_from(self, participant: str) -> list[Offer]:
        """What waited for the participant, which it does no longer."""
        keys = [key for key in self._waiting if key[0] == participant]
        return [self._waiting.pop(key).offer for key in keys]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            now = self._clock.monotonic()
            for key, due in tuple(self._waiting.items()):
                if due.at <= now:
                    del self._waiting[key]
                    self._again(due.offer)
            waits: list[asyncio.Future[object]] = [asyncio.ensure_future(self._changed.wait())]
            if self._waiting:
                soonest = min(due.at for due in self._waiting.values())
                waits.append(asyncio.ensure_future(self._clock.sleep(soonest - now)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)
