"""What replicas over one database tell each other about their agents, and what each finds out without being told.

A deployment, a ban or a session opened at one replica concerns an agent that is connected to another. The truth is
in the database: an agent's generation grows with every change it has to hear of, its row names its present session.
Every replica compares its own sessions with that every `POLL_SECONDS`. Hints make it quick and nothing more: they are
sent after the commit, gathered, and may be lost. Of a database that only one process can have there is nothing to
compare and nobody to tell.
"""

import asyncio
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from control_plane.api.sessions import Sessions
from control_plane.services.changes import Changes
from control_plane.services.replicas import Replica
from control_plane.services.work import Services
from control_plane.store.database import HINT_BYTES, Hints
from control_plane.store.store import Store
from shared import logs
from shared.errors import Error

_log = logs.get(__name__)

POLL_SECONDS = 5.0
"""So late a replica hears of what concerns its agents where the hint is lost."""

GATHER_SECONDS = 0.02
"""At most so often hints are sent."""

WAKE = "wake"


class Replication:
    """The hints this process sends and hears, and its look at what it was not told."""

    def __init__(
        self,
        hints: Hints,
        replica: Replica,
        *,
        sessions: Sessions,
        changes: Changes,
        registry: CollectorRegistry,
    ) -> None:
        self._hints, self._sessions, self._changes = hints, sessions, changes
        self._woken: set[bytes] = set()
        self._to_send = asyncio.Event()
        self._to_look = asyncio.Event()
        self._count = Counter(
            "variantd_hints", "hints between replicas, sent and heard", ["way"], registry=registry
        )
        for name, told, value in (
            ("variantd_leads", "1 where this process does what is due by itself", lambda: replica.leads),
            ("variantd_other_replicas", "other processes alive over the database", lambda: replica.others),
            ("variantd_fenced_writes", "writes refused because another led by then", lambda: replica.refused),
        ):
            Gauge(name, told, registry=registry).set_function(value)

    def wake(self, agent_uid: bytes) -> None:
        """The agent's session looks again, whichever replica has it; at another one soon, or within POLL_SECONDS."""
        self._sessions.wake(agent_uid)
        self._woken.add(agent_uid)
        self._to_send.set()

    async def run(self, services: Services) -> None:
        """Sends, hears and compares; ends only by being cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send())
            group.create_task(self._hints.listen(self._told))
            group.create_task(self._compare(services))

    async def _send(self) -> None:
        while True:
            await self._to_send.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._to_send.clear()
            woken, self._woken = self._woken, set()
            try:
                await self._hints.hint(_woken_to_text(woken))
                self._count.labels("sent").inc()
            except Error as error:  # the others look by themselves
                _log.warning("hints.not_sent", error=error.message)

    def _told(self, text: str) -> None:
        self._count.labels("heard").inc()
        word, *uids = text.split() or [WAKE]
        if word != WAKE:
            return  # of a later version
        for uid in uids:
            self._sessions.wake(bytes.fromhex(uid))
        if not uids:
            self._to_look.set()
        self._changes.happened()

    async def _compare(self, services: Services) -> None:
        while True:
            try:
                await self._look(services)
            except Error as error:
                _log.warning("replication.not_compared", reason=error.reason, error=error.message)
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._to_look.wait()
            except TimeoutError:
                pass
            self._to_look.clear()

    async def _look(self, services: Services) -> None:
        # Taken before the reading: what a later session wrote is no news to one that is there now.
        present = self._sessions.present
        if not present:
            return
        uids = [session.agent_uid for session in present]
        standing = await services.database.read(lambda tx: Store(tx).fleet.standing(uids))
        for session in present:
            if session.agent_uid in standing:
                session.compare(*standing[session.agent_uid])


def _woken_to_text(uids: Iterable[bytes]) -> str:
    """The hint for these agents; for more than find room, one that means everybody."""
    text = " ".join([WAKE, *sorted(uid.hex() for uid in uids)])
    return text if len(text) <= HINT_BYTES else WAKE
