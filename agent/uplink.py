"""Carries the spool to the control plane: batches in order, one in flight, acknowledged before the next.

Hides gathering, back-off and what to do about a history the control plane does not share. A batch is sent
until it is acknowledged; exactly-once is the control plane's work, by position and by record id.
"""

from collections.abc import Awaitable, Callable
from random import Random

from agent.health import Conditions
from agent.spool import Receipt, Spool
from shared import logs
from shared.backoff import Backoff
from shared.clock import Clock
from shared.errors import Error
from shared.model import Batch, Condition

_log = logs.get(__name__)

BACKOFF = Backoff(base=0.5, factor=2.0, cap=60.0)
GATHER_SECONDS = 0.02  # what arrives within a moment goes up together
LIMITS = (500, 512 * 1024)


class Uplink:
    """`report` sends one batch and raises one of shared.errors where it could not; it may wait for long.

    `limits` gives (records, bytes) of a batch, asked each time.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        report: Callable[[Batch], Awaitable[Receipt]],
        clock: Clock,
        random: Random,
        limits: Callable[[], tuple[int, int]] = lambda: LIMITS,
    ) -> None:
        self._spool, self._report, self._clock, self._random = spool, report, clock, random
        self._limits = limits
        self._conditions = Conditions(clock)
        self._failures = 0
        self.acknowledged = 0  # records, since the start

    def conditions(self) -> tuple[Condition, ...]:
        """Why reports do not get up, where that is not the link's trouble."""
        return self._conditions.now()

    async def run(self) -> None:
        """Sends what the spool has until cancelled; a batch under way then is sent again next time."""
        while True:
            await self._spool.wait()
            await self._clock.sleep(GATHER_SECONDS)
            try:
                while self._spool.state().depth and await self._send():
                    self._failures = 0
                    self._conditions.end("REPORTS_REFUSED")
            except Error as error:
                await self._failed(error)

    async def _send(self) -> bool:
        """Whether there was a batch; it is dealt with."""
        batch = await self._spool.next_batch(*self._limits())
        if batch is None:
            return False
        receipt = await self._report(batch)
        last = batch.first_seq + len(batch.records) - 1
        if receipt.diverged or receipt.through_seq > last:
            # A mark beyond what this host ever sent: its state was restored from an older copy. Under a new
            # epoch nothing hides below that mark.
            _log.warning("uplink.diverged", epoch=batch.epoch.hex(), through_seq=receipt.through_seq)
            await self._spool.diverged(batch.epoch)
            return True
        await self._spool.acknowledge(batch.epoch, receipt.through_seq)
        if receipt.through_seq < batch.first_seq:
            raise Error("the control plane took nothing of a batch", reason="NO_PROGRESS")
        self.acknowledged += receipt.through_seq - batch.first_seq + 1
        return True

    async def _failed(self, error: Error) -> None:
        if not error.code.retryable:
            message = f"the control plane refuses reports ({error.message}); they are kept and tried again"
            if self._conditions.hold("REPORTS_REFUSED", "error", message):
                _log.error("uplink.refused", reason=error.reason, error=error.message)
        wait = BACKOFF.delay(self._failures, self._random)
        self._failures += 1
        await self._clock.sleep(wait)
