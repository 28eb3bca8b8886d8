"""Presence: which agents this process has, written for all of them together and no more often than it says something.

A lease is the word of the server that holds the session. Whether the host is still there is for the session to find
out, by heartbeats and by the transport; it ends then, and the lease with it.
"""

from collections.abc import Sequence
from typing import Protocol

from control_plane.domain.fleet import Telemetry
from control_plane.services.sessions import LEASE
from control_plane.store.database import Database, Tx
from control_plane.store.store import Store
from shared import logs
from shared.clock import Clock

_log = logs.get(__name__)

WRITTEN_SECONDS = 10.0
"""How old a lease gets that has nothing new to say; a third of what it lasts."""


class Present(Protocol):
    """A session, as far as presence goes: of which agent, when that was heard last, how far its clock is off."""

    id: bytes
    agent_uid: bytes
    last_seen: int
    clock_skew: int | None

    def take_observation(self) -> Telemetry | None:
        """Telemetry that is not written yet."""


class Leases:
    """What was written of whom."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._written: dict[bytes, tuple[int, float]] = {}  # by session: last seen, and when (monotonic)

    async def write(self, database: Database, sessions: Sequence[Present]) -> None:
        """The leases of `sessions` are good for a while; on record is when each was heard last, with its telemetry.

        Where that cannot be written it is logged, and is due again the next time; telemetry is lost then.
        """
        moment, until = self._clock.monotonic(), self._clock.now() + LEASE
        self._written = {one.id: self._written[one.id] for one in sessions if one.id in self._written}
        observed = [(one.agent_uid, taken) for one in sessions if (taken := one.take_observation())]
        leases = [
            (one.agent_uid, one.id, one.last_seen, one.clock_skew)
            for one in sessions
            if self._is_due(one, moment)
        ]
        if not leases and not observed:
            return

        def write(tx: Tx) -> None:
            store = Store(tx).fleet
            store.renew_leases(leases, until=until)
            for uid, telemetry in observed:
                store.observe(uid, telemetry)

        try:
            await database.write(write)
        except Exception as failure:
            _log.warning("presence.not_written", error=str(failure))
        else:
            self._written.update({session: (seen, moment) for _, session, seen, _ in leases})

    def _is_due(self, one: Present, moment: float) -> bool:
        seen, at = self._written.get(one.id, (0, float("-inf")))
        return seen != one.last_seen or moment - at >= WRITTEN_SECONDS
