"""Time that stands still until a test moves it."""

import asyncio
import heapq
from itertools import count

from shared.moment import SECOND

SETTLE_TURNS = 20  # of the event loop: how far woken tasks get before time moves on


class FakeClock:
    """A `Clock` whose `sleep` parks; `advance` wakes the sleepers in the order of their deadlines."""

    def __init__(self, *, now: int = 1_800_000_000 * SECOND) -> None:
        self._now = now
        self._monotonic = 1_000.0
        self._order = count()
        self._parked: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._parked, (self._monotonic + seconds, next(self._order), future))
        await future

    @property
    def sleeping(self) -> tuple[float, ...]:
        """How long each sleeper still has, the shortest first."""
        left = [deadline - self._monotonic for deadline, _, future in self._parked if not future.done()]
        return tuple(sorted(left))

    def jump(self, seconds: float) -> None:
        """The wall clock is set; the monotonic one does not notice."""
        self._now += round(seconds * SECOND)

    async def advance(self, seconds: float) -> None:
        """Both clocks move on by `seconds`, stopping at every deadline on the way to let its sleeper run."""
        await self._settle()
        end = self._monotonic + seconds
        while self._parked and self._parked[0][0] <= end:
            deadline, _, future = heapq.heappop(self._parked)
            self._move(max(deadline, self._monotonic))
            if not future.done():
                future.set_result(None)
            await self._settle()
        self._move(end)

    def _move(self, monotonic: float) -> None:
        self._now += round((monotonic - self._monotonic) * SECOND)
        self._monotonic = monotonic

    async def _settle(self) -> None:
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)
