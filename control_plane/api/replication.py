"""What replicas over one database tell each other about their agents, and what each finds out without being told.

A deployment, a ban or a session opened at one replica concerns an agent that is connected to another. The truth is
in the database: an agent's generation grows with every change it has to hear of, its row names its present session.
Every replica compares its own sessions with that every `POLL_SECONDS`. Hints make it quick and nothing more: they are
sent after the commit, gathered, and may be lost. Of a database that only one process can have there is nothing to
compare and nobody to tell.

A replica that is cut off from the database cannot serve its agents while others can, so it sends them there. Where it
saw no others it keeps them: then the database is away for everybody.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge

from control_plane.api.elsewhere import Elsewhere
from control_plane.api.sessions import Sessions
from control_plane.services.changes import Changes
from control_plane.services.replicas import Replica
from control_plane.services.work import Caller, Services
from control_plane.store.database import HINT_BYTES, Hints
from control_plane.store.store import Store
from shared import logs
from shared.errors import Error

_log = logs.get(__name__)

POLL_SECONDS = 5.0
"""So late a replica hears of what concerns its agents where the hint is lost."""

GATHER_SECONDS = 0.02
"""At most so often hints are sent."""

CUT_OFF_LOOK_SECONDS = 0.5

WAKE, ASK, TELL, SETTLE, CAME = "wake", "ask", "tell", "settle", "came"

CAME_AT_ONCE = 100
"""Agents in one hint."""


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
        self._hints, self._replica, self._sessions, self._changes = hints, replica, sessions, changes
        self._own = replica.id.hex()
        self._woken: set[bytes] = set()
        self._came: set[bytes] = set()
        sessions.came = self._note_came
        self._unsent: list[str] = []
        self._to_send = asyncio.Event()
        self._to_look = asyncio.Event()
        self._to_ask = asyncio.Event()
        self._settling: set[asyncio.Task[None]] = set()
        self.elsewhere = Elsewhere(
            sessions,
            ask=lambda uid: self._say(f"{ASK} {uid.hex()}"),
            tell=lambda question: self._say(f"{TELL} {question.hex()}"),
        )
        self._count = Counter(
            "variantd_hints", "hints between replicas, sent and heard", ["way"], registry=registry
        )
        for name, told, value in (
            ("variantd_leads", "1 where this process does what is due by itself", lambda: replica.leads),
            ("variantd_other_replicas", "other processes alive over the database", lambda: replica.others),
            ("variantd_fenced_writes", "writes refused because another led by then", lambda: replica.refused),
        ):
            Gauge(name, told, registry=registry).set_function(value)

    # -- what is said

    def wake(self, agent_uid: bytes) -> None:
        """The agent's session looks again, whichever replica has it; at another one soon, or within POLL_SECONDS."""
        self._sessions.wake(agent_uid)
        self._woken.add(agent_uid)
        self._to_send.set()

    async def settle(self, services: Services, caller: Caller, experiment: str) -> None:
        """As `services.work.Settle` has it, of hosts at any replica. A host whose hint is lost counts as silent."""
        since = services.clock.now()

        def others() -> None:
            self._say(f"{SETTLE} {caller.project_id.hex()} {experiment} {since}")

        await self._sessions.preflights.settle(services, caller, experiment, since=since, others=others)

    def _note_came(self, agent_uid: bytes) -> None:
        """It polls here now; a replica that is not told expects it for as long as a lease lasts."""
        self._came.add(agent_uid)
        self._to_send.set()

    def _say(self, text: str) -> None:
        self._unsent.append(text)
        self._to_send.set()

    # -- life

    async def run(self, services: Services) -> None:
        """Sends, hears and compares; ends only by being cancelled."""
        self.elsewhere.begin(services)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send())
            group.create_task(self._hints.listen(lambda text: self._told(services, text)))
            group.create_task(self._compare(services))
            group.create_task(self._questions())
            group.create_task(self._mind(services))

    async def _send(self) -> None:
        while True:
            await self._to_send.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._to_send.clear()
            woken, self._woken = self._woken, set()
            came, self._came = sorted(self._came), set()
            texts, self._unsent = self._unsent, []
            for first in range(0, len(came), CAME_AT_ONCE):
                some = came[first : first + CAME_AT_ONCE]
                texts.append(" ".join([CAME, *(uid.hex() for uid in some)]))
            if woken:
                texts.append(_woken_to_text(woken))
            try:
                for text in texts:
                    await self._hints.hint(f"{self._own} {text}")
                    self._count.labels("sent").inc()
            except Error as error:  # the others look by themselves
                _log.warning("hints.not_sent", error=error.message)

    def _told(self, services: Services, text: str) -> None:
        try:
            sender, word, *rest = (text or f"- {WAKE}").split()
            if sender != self._own:
                self._count.labels("heard").inc()
                self._hear(services, word, rest)
        except (ValueError, IndexError):
            _log.warning("hints.not_understood", hint=text[:40])

    def _hear(self, services: Services, word: str, rest: list[str]) -> None:
        if word == WAKE:
            for uid in rest:
                self._sessions.wake(bytes.fromhex(uid))
            if not rest:
                self._to_look.set()
                self._to_ask.set()
            self._changes.happened()
        elif word == CAME:
            for uid in rest:
                self._sessions.went(bytes.fromhex(uid))
        elif word == ASK:
            if self._sessions.reaches(bytes.fromhex(rest[0])):
                self._to_ask.set()
        elif word == TELL:
            self.elsewhere.answered(bytes.fromhex(rest[0]))
        elif word == SETTLE:
            project_id, experiment, since = rest
            found = self._sessions.preflights.settle_for(
                services, bytes.fromhex(project_id), experiment, since=int(since)
            )
            task = asyncio.create_task(found, name="settle-for-another")
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)

    # -- what is found without a hint

    async def _compare(self, services: Services) -> None:
        while True:
            try:
                await self._look(services)
            except Error as error:
                _log.warning("replication.not_compared", reason=error.reason, error=error.message)
            await _wait(self._to_look, POLL_SECONDS)

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

    async def _questions(self) -> None:
        while True:
            try:
                await self.elsewhere.look()
            except Error as error:
                _log.warning("questions.not_looked_at", reason=error.reason, error=error.message)
            await _wait(self._to_ask, POLL_SECONDS)

    async def _mind(self, services: Services) -> None:
        """While this process is cut off from the database and others are not known to be, agents go to the others."""
        while True:
            sends_away = self._replica.cut_off and self._replica.others > 0
            if sends_away and not self._sessions.closed:
                _log.error("replica.cut_off", sessions=len(self._sessions.present))
            self._sessions.closed = sends_away
            if sends_away:
                for session in self._sessions.present:
                    session.end()
            await services.clock.sleep(CUT_OFF_LOOK_SECONDS)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()


def _woken_to_text(uids: Iterable[bytes]) -> str:
    """The hint for these agents; for more than find room, one that means everybody."""
    text = " ".join([WAKE, *sorted(uid.hex() for uid in uids)])
    return text if len(text) <= HINT_BYTES - 64 else WAKE
