"""Follows what is on probation until its health window has ended, well or not.

Hides when is asked. A window is the slot's, on its journal: a restart goes on with what is left of it, and a newer
offer ends it by taking its place. Nothing is undone while the host is on hold; it is asked again until then.
"""

import asyncio
from collections.abc import Callable, Mapping

from agent import probe
from agent.apply import Applier
from agent.slots import Probation
from shared.clock import Clock
from shared.model import Outcome, Reason, ReasonCode
from shared.moment import SECOND


class Windows:
    """Asks on behalf of the slots of `appliers`, by participant; `locks` keep one thing at a time to each."""

    def __init__(
        self,
        *,
        appliers: Callable[[], Mapping[str, Applier]],
        locks: Mapping[str, asyncio.Lock],
        held: Callable[[], bool],
        report: Callable[[Outcome], None],
        clock: Clock,
    ) -> None:
        self._appliers, self._locks, self._held = appliers, locks, held
        self._report, self._clock = report, clock
        self._changed = asyncio.Event()
        self._followed: dict[tuple[str, bytes], Probation] = {}

    def look(self) -> None:
        """There may be a window to follow."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for participant, applier in self._appliers().items():
                    for slot in list(applier.slots.values()):
                        key = (participant, slot.slot_id)
                        if slot.probation is not None and self._followed.get(key) != slot.probation:
                            self._followed[key] = slot.probation
                            group.create_task(self._follow(participant, slot.slot_id, slot.probation))
                await self._changed.wait()

    async def _follow(self, participant: str, slot_id: bytes, probation: Probation) -> None:
        try:
            await self._ask_until_ended(participant, slot_id, probation)
        finally:
            if self._followed.get((participant, slot_id)) == probation:
                del self._followed[participant, slot_id]

    async def _ask_until_ended(self, participant: str, slot_id: bytes, probation: Probation) -> None:
        whole = probation.until - probation.since
        # By the wall clock over a restart, which may have been set meanwhile: never longer than the whole of it.
        left = min(max(0, probation.until - self._clock.now()), whole) / SECOND
        end = self._clock.monotonic() + left
        failures = 0
        while True:
            applier = self._appliers().get(participant)
            slot = applier.slots.get(slot_id) if applier is not None else None
            if applier is None or slot is None or slot.probation != probation:
                return  # something newer took its place
            rule = applier.config.probe
            if rule is None:
                async with self._locks[participant]:
                    await applier.endings.drop_window(slot_id, probation)
                return
            fault = await probe.ask(rule.http, self._clock)
            failures = failures + 1 if fault else 0
            failed = failures >= probe.FAILURES and not self._held()
            if failed or (not fault and self._clock.monotonic() >= end):
                async with self._locks[participant]:
                    if self._appliers().get(participant) is not applier or (failed and self._held()):
                        continue  # other rules, or a hold, came while it waited
                    outcome = await applier.endings.end_window(
                        slot_id, probation, _reason(participant, fault) if failed else None
                    )
                if outcome is not None:
                    self._report(outcome)
                return
            pause = probe.interval(whole / SECOND)
            until_end = end - self._clock.monotonic()
            await self._clock.sleep(min(pause, until_end) if until_end > 0 else pause)


def _reason(participant: str, fault: str) -> Reason:
    return Reason(
        code=ReasonCode.PROBE_FAILED,
        message=f"the health probe of {participant} {fault}, {probe.FAILURES} times in a row",
        remedy="correct the content, or look at what else ails the application; then deploy again with retry",
    )
