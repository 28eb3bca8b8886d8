"""Raw events do not stay for ever: what is over is forgotten in small steps, and every sum stays as it is.

Results read sums; the events behind them are there to be exported, to be checked against the sums, and to count late
arrivals rightly: a report that comes late may change how others of its unit stand. So the events of a phase stay as
long as it counts, and for a time after it is over. When that has passed, the phase counts nothing more, from one
transaction on, and only then are its events deleted; a report that comes later still is kept with a reason. Events that
count nowhere go when they are as old.

What is due follows from rows, so nothing is lost by a crash. Of several replicas the one that leads does it.
"""

from dataclasses import dataclass

from control_plane.services.replicas import Fence, Fenced, Lead
from control_plane.store.database import Database, Tx
from control_plane.store.store import Store
from shared import logs
from shared.clock import Clock
from shared.errors import Error
from shared.ids import show_id
from shared.moment import SECOND

_log = logs.get(__name__)

DAY = 86_400 * SECOND
KEY_DAYS = 30
"""For so long an application's own event id is known again, and the answer that was given under an idempotency key."""
BATCH = 500
"""Rows in one transaction: other writers wait for no more."""
PAUSE_SECONDS = 0.2  # between two of them
LOOK_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What one step did."""

    closed: list[bytes]
    """Phases that count nothing more."""
    rows: int
    """Deleted, about; 0: nothing was left to do."""


def step(tx: Tx, *, now: int, keep_days: int) -> Forgotten:
    """Some of what is old enough is gone; `keep_days` 0 keeps every event."""
    store = Store(tx).retention
    long_ago = now - KEY_DAYS * DAY
    rows = store.drop_keys(before=long_ago, limit=BATCH) + store.drop_answers(before=long_ago, limit=BATCH)
    if not keep_days:
        return Forgotten(closed=[], rows=rows)
    before = now - keep_days * DAY
    closed = store.close(before=before, now=now)
    # What was closed by this very transaction is cleared by the next: a reader sees it closed first.
    rows += 1 if closed else store.clear(BATCH) or store.drop_uncounted(before=before, limit=BATCH)
    return Forgotten(closed=closed, rows=rows)


class Retention:
    """Forgets what is old enough, as long as it runs and this process leads; every write of it is fenced."""

    def __init__(self, database: Database, clock: Clock, lead: Lead, *, keep_days: int) -> None:
        self._database, self._clock, self._lead, self._keep_days = database, clock, lead, keep_days

    async def run(self) -> None:
        """Step by step, then looks again every minute; ends only by being cancelled."""
        while True:
            more = False
            try:
                if (fence := self._lead.fence()) is not None:
                    more = await self._step(fence)
            except Fenced:
                self._lead.fenced()
            except Error as error:
                if not error.code.retryable:
                    raise
                _log.warning("retention.put_off", reason=error.reason, error=error.message)
            await self._clock.sleep(PAUSE_SECONDS if more else LOOK_SECONDS)

    async def _step(self, fence: Fence) -> bool:
        """Some of it is gone; whether there may be more. Raises Fenced where another leads."""
        now = self._clock.now()

        def work(tx: Tx) -> Forgotten:
            fence(Store(tx))
            return step(tx, now=now, keep_days=self._keep_days)

        done = await self._database.write(work)
        for phase_id in done.closed:
            _log.info("phase.events_gone", phase=show_id(phase_id))
        return done.rows > 0
