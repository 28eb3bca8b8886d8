"""Views that the spool does not take just now: a disk that is full must not stop a host from keeping its files.

Hides that they wait in memory, in their order, and are offered to the spool until it takes them.
"""

import asyncio
from collections import deque
from threading import Lock

from agent.spool import Spool
from shared import logs
from shared.clock import Clock
from shared.errors import ResourceExhausted, Unavailable
from shared.model import View

_log = logs.get(__name__)

MAX_OWED = 10_000  # beyond that the oldest are forgotten
OWED_SECONDS = 1.0


class Owed:
    """The way of views into the spool; made in the event loop that `run` is in."""

    def __init__(self, spool: Spool, *, clock: Clock, most: int = MAX_OWED) -> None:
        self._spool, self._clock = spool, clock
        self._views: deque[View] = deque(maxlen=most)
        self._loop, self._some = asyncio.get_running_loop(), asyncio.Event()
        self._lock = Lock()

    def record(self, view: View) -> None:
        """The view is durable, or owed until the spool takes it; none overtakes another. Blocks."""
        if not self._views:
            try:
                self._spool.record(view)
                return
            except (ResourceExhausted, Unavailable) as error:
                _log.error("agent.view_owed", participant=view.participant, reason=error.reason)
        with self._lock:
            self._views.append(view)
        self._loop.call_soon_threadsafe(self._some.set)

    async def run(self) -> None:
        """What is owed is recorded as soon as there is room, until cancelled."""
        while True:
            await self._some.wait()
            while self._views:
                view = self._views[0]
                try:
                    await self._spool.append(view)
                    with self._lock:
                        if self._views[0] is view:  # else it was forgotten on its way
                            self._views.popleft()
                except (ResourceExhausted, Unavailable):
                    await self._clock.sleep(OWED_SECONDS)
            self._some.clear()
