"""Keeps this host's certificate alive: renewed long before its end, recovered after it, without a person.

Hides when, by which proof, and that a certificate is given up only for one that was seen to be accepted.
All of it goes by this host's own clock: the transport calls an expired certificate unreachable and says no
more. Nothing here stops the host's work; without a valid certificate files stay and reports wait.
"""

import asyncio
from pathlib import Path
from random import Random

from agent import identity as identities
from agent.health import Conditions
from agent.identity import Identity
from agent.link import Link
from shared import logs
from shared.backoff import Backoff
from shared.clock import Clock
from shared.errors import Error
from shared.model import Condition
from shared.moment import SECOND, to_rfc3339

_log = logs.get(__name__)

DAY = 86_400 * SECOND
DUE = 2 / 3  # of a certificate's life
SPREAD = 1 / 30  # of a life: hosts that enrolled together do not renew together
LOOK_SECONDS = 60.0  # the wall clock may be set
SESSION_SECONDS = 5.0  # between looks for the session that a renewal needs
BACKOFF = Backoff(base=2.0, factor=2.0, cap=300.0)
REFUSED_SECONDS = 3600.0
RECOVERABLE_DAYS = 30  # the control plane's own limit
WARNING_DAYS = 7
REMEDY = "enroll again with a token of `variantctl agents token`; the agent keeps its identity"


class Renewal:
    """Looks after the certificate the link speaks with; `run` it as long as the agent lives."""

    def __init__(self, *, link: Link, state_dir: Path, clock: Clock, random: Random) -> None:
        self._link, self._state_dir, self._clock, self._random = link, state_dir, clock, random
        self._conditions = Conditions(clock)
        self._spread = random.uniform(0.0, SPREAD)
        self._failures = 0
        self._trouble = ""
        self._refused = False

    def conditions(self) -> tuple[Condition, ...]:
        """How the certificate stands now, where that needs attention."""
        identity = self._link.enrolled
        left = identity.not_after - self._clock.now() if identity else WARNING_DAYS * DAY
        if left >= 0:
            self._conditions.end("CERTIFICATE_EXPIRED")
        if left < 0 or left >= WARNING_DAYS * DAY:
            self._conditions.end("CERTIFICATE_EXPIRES_SOON")
        why = f" ({self._trouble})" if self._trouble else ""
        if identity and left < 0:
            message = f"the agent's certificate has ended; {self._outlook(identity)}{why}"
            self._conditions.hold("CERTIFICATE_EXPIRED", "error", message)
        elif left < WARNING_DAYS * DAY:
            message = (
                f"the agent's certificate ends in {left // DAY} days and is not renewed yet{why}; "
                "the agent goes on trying while it has a session"
            )
            self._conditions.hold("CERTIFICATE_EXPIRES_SOON", "warning", message)
        return self._conditions.now()

    def _outlook(self, identity: Identity) -> str:
        """What becomes of a host whose certificate has ended."""
        last = identity.not_after + RECOVERABLE_DAYS * DAY
        if self._refused or not identity.operators or self._clock.now() > last:
            return REMEDY
        return f"the agent asks for another by itself, until {to_rfc3339(last)}"

    async def run(self) -> None:
        """The certificate is looked after until this is cancelled."""
        while True:
            await self._until_due(await self._look())

    async def _until_due(self, seconds: float) -> None:
        """Returns after `seconds`, or a moment after the control plane wishes for a renewal."""
        wished = asyncio.create_task(self._link.nudged.wait())
        waits = (asyncio.create_task(self._clock.sleep(seconds)), wished)
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if self._link.nudged.is_set():
            self._link.nudged.clear()
            await self._clock.sleep(self._random.uniform(0.0, self._link.jitter))

    async def _look(self) -> float:
        """What is due is done, or was tried; seconds until the next look."""
        identity = self._link.enrolled
        if identity is None or not self._due(identity):
            return LOOK_SECONDS
        expired = self._clock.now() >= identity.not_after
        if not expired and not self._link.trusted:
            return SESSION_SECONDS
        try:
            fresh = await (self._renewed(identity) if self._link.trusted else self._recovered(identity))
            await self._link.move(fresh)
        except Error as error:
            return self._failed(error.message, refused=not error.code.retryable)
        except OSError as error:
            return self._failed(f"{self._state_dir}: {error.strerror}", refused=False)
        _log.info("certificate.replaced", expired=expired, not_after=to_rfc3339(fresh.not_after))
        self._trouble, self._refused = "", False
        self._link.renewal_wished = False  # until the next session says otherwise
        if self._due(fresh):  # by a clock that is far ahead; not a reason to ask again and again
            return REFUSED_SECONDS
        self._failures = 0
        return LOOK_SECONDS

    def _due(self, identity: Identity) -> bool:
        if self._link.renewal_wished and self._link.trusted:
            return True
        life = identity.not_after - identity.not_before
        return self._clock.now() >= identity.not_before + round(life * (DUE + self._spread))

    async def _renewed(self, identity: Identity) -> Identity:
        """Another key and certificate, staged, and seen to be accepted on a connection of their own."""
        from agent.enrollment import renew  # with `cryptography`, which a daemon at rest does without

        fresh = await renew(identity, self._link.calls.renew)
        await asyncio.to_thread(identities.stage, self._state_dir, fresh)
        await self._link.prove(fresh)
        return fresh

    async def _recovered(self, identity: Identity) -> Identity:
        """Another certificate for the same key, staged; what it replaces is worth nothing any more."""
        from agent.enrollment import recover

        fresh = await recover(identity)
        await asyncio.to_thread(identities.stage, self._state_dir, fresh)
        return fresh

    def _failed(self, why: str, *, refused: bool) -> float:
        """Seconds until the next attempt."""
        self._trouble, self._refused = why, refused
        _log.warning("certificate.not_replaced", refused=refused, error=why, failures=self._failures)
        if refused:
            return self._random.uniform(REFUSED_SECONDS / 2, REFUSED_SECONDS)
        self._failures += 1
        return BACKOFF.delay(self._failures - 1, self._random)
