"""Presence: which agents this process has, written for many of them together and no more often than it says something.

A lease is the word of the server that holds the session. Whether the host is still there is for the session to find
out, by heartbeats and by the transport; it ends then, and the lease with it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from control_plane.domain.fleet import Telemetry
from control_plane.services.sessions import LEASE
from control_plane.store.database import Database, Tx
from control_plane.store.store import Store
from shared import logs
from shared.clock import Clock

_log = logs.get(__name__)

LOOK_SECONDS = 5.0
AT_ONCE = 250
"""Sessions that are looked at in one go; of more, each part has its share of LOOK_SECONDS. Nobody waits behind the
thousands of a large fleet then, neither for this process nor for the database."""
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
        # By session: last seen, and when that was written (monotonic).
        self._written: WeakKeyDictionary[Present, tuple[int, float]] = WeakKeyDictionary()

    async def keep(self, database: Database, present: Callable[[], Sequence[Present]]) -> None:
        """Every session that is present is looked at once in LOOK_SECONDS, for ever."""
        sessions: Sequence[Present] = ()
        part, parts = 0, 1
        while True:
            await self._clock.sleep(LOOK_SECONDS / parts)
            if part == 0:
                sessions = present()
                parts = max(1, -(-len(sessions) // AT_ONCE))
            there = set(map(id, present()))  # who ended meanwhile is on record as lost, and stays that
            await self.write(database, [one for one in sessions[part::parts] if id(one) in there])
            part = (part + 1) % parts

    async def write(self, database: Database, sessions: Sequence[Present]) -> None:
        """The leases of `sessions` are good for a while; on record is when each was heard last, with its telemetry.

        Where that cannot be written it is logged, and is due again the next time; telemetry is lost then.
        """
        moment, until = self._clock.monotonic(), self._clock.now() + LEASE
        observed = [(one.agent_uid, taken) for one in sessions if (taken := one.take_observation())]
        due = [one for one in sessions if self._is_due(one, moment)]
        leases = [(one.agent_uid, one.id, one.last_seen, one.clock_skew) for one in due]
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
            for one, (_, _, seen, _) in zip(due, leases, strict=True):
                self._written[one] = (seen, moment)

    def _is_due(self, one: Present, moment: float) -> bool:
        seen, at = self._written.get(one, (0, float("-inf")))
        return seen != one.last_seen or moment - at >= WRITTEN_SECONDS
