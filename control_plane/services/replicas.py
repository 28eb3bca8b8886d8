"""This process among those that serve one database: who else is alive, and who does what is due by itself.

Hides how that is known without trusting anybody's clock. Everybody gives signs of life in the database, and takes for
gone whoever gave none for `LEASE_SECONDS` of its own monotonic clock. One leads: it holds the lead's token, which grows
whenever the lead changes hands. That alone would not keep a leader that stood still from writing afterwards, so every
write it makes as the leader proves the token in its own transaction (the fence): who leads no more changes nothing.

A database in one process's own file has none of this: `Alone` leads it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from control_plane.store.database import Database, Tx
from control_plane.store.replicas import Leader
from control_plane.store.store import Store
from shared import logs
from shared.clock import Clock
from shared.errors import Error, FailedPrecondition
from shared.ids import show_id

_log = logs.get(__name__)

BEAT_SECONDS = 2.0
LEASE_SECONDS = 10.0
"""Who gave no sign of life for so long is gone; its lead is another's then."""

FORGOTTEN_SECONDS = 86_400.0
ABANDONED_SECONDS = 300.0
"""A question to another replica that nobody took back by then was asked by a process that ended."""

Fence = Callable[[Store], None]
"""Proves within a transaction that it is the leader's. Raises Fenced."""


class Fenced(Exception):
    """Another replica leads by now: this write is not made."""


class Lead(Protocol):
    """Who may do what is due by itself."""

    def fence(self) -> Fence | None:
        """What every write of the leader has to prove first; None where this process does not lead."""

    def fenced(self) -> None:
        """A write was refused by its fence."""


class Alone:
    """The one process that its database can have."""

    def fence(self) -> Fence | None:
        return _pass

    def fenced(self) -> None:
        """Never happens."""


def _pass(store: Store) -> None:
    """Nobody else could lead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What a sign of life found: everybody's signs, what is asked, the leader, the token where that is this process."""

    beats: dict[bytes, int]
    asked: frozenset[bytes]
    leader: Leader
    token: int | None


class Replica:
    """This process, as one of several."""

    def __init__(
        self, database: Database, *, clock: Clock, replica_id: bytes, name: str, incarnation: bytes
    ) -> None:
        self._database, self._clock, self._name, self._incarnation = database, clock, name, incarnation
        self.id = replica_id
        self._started_at = clock.now()
        self._token: int | None = None
        self._known: dict[bytes, tuple[int, float]] = {}
        self._asked: dict[bytes, float] = {}
        self._leader: tuple[Leader, float] | None = None
        self._beaten_at = self._heard_at = clock.monotonic()
        self.refused = 0
        """Writes as the leader that its fence refused."""

    async def run(self) -> None:
        """Gives signs of life, and leads where nobody else does; ends only by being cancelled.

        Raises FailedPrecondition once the database is another incarnation than this process began with.
        """
        tasks = [asyncio.ensure_future(self._always(does)) for does in (self.beat, self.hear)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _always(self, does: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await does()
            except FailedPrecondition:
                raise
            except Error as error:
                _log.warning("replica.no_sign_of_life", reason=error.reason, error=error.message)
            await self._clock.sleep(BEAT_SECONDS)

    async def hear(self) -> None:
        """The database answered a reading. Raises Unavailable where it does not."""
        at = self._clock.monotonic()
        await self._database.read(lambda tx: Store(tx).replicas.leader())
        self._heard_at = at

    async def beat(self) -> None:
        """One sign of life is given. Raises as `run`, and Unavailable where the database takes nothing."""
        at = self._clock.monotonic()
        gone = self._leader is not None and at - self._leader[1] >= LEASE_SECONDS
        expired = self._leader[0] if self._leader is not None and gone else None
        led = self._token
        silent = {
            uid: count for uid, (count, since) in self._known.items() if at - since >= FORGOTTEN_SECONDS
        }
        abandoned = [uid for uid, since in self._asked.items() if at - since >= ABANDONED_SECONDS]
        seen = await self._database.write(lambda tx: self._beat(tx, expired, silent, abandoned))
        self._beaten_at = self._heard_at = at
        known, self._known = self._known, {}
        for uid, count in seen.beats.items():
            before = known.get(uid)
            self._known[uid] = before if before is not None and before[0] == count else (count, at)
        self._asked = {uid: self._asked.get(uid, at) for uid in seen.asked}
        if self._leader is None or self._leader[0] != seen.leader:
            self._leader = seen.leader, at
        self._token = seen.token
        if seen.token != led:
            word = "replica.leads" if seen.token is not None else "replica.leads_no_more"
            _log.info(word, replica=show_id(self.id), token=seen.token if seen.token is not None else led)

    def _beat(
        self, tx: Tx, expired: Leader | None, silent: Mapping[bytes, int], abandoned: Sequence[bytes]
    ) -> _Seen:
        store = Store(tx)
        incarnation = store.access.incarnation()
        if incarnation is None or incarnation.id != self._incarnation:
            raise FailedPrecondition(
                "the database is another incarnation than this server began with; start it again",
                reason="INCARNATION_CHANGED",
            )
        store.replicas.beat(self.id, self._name, started_at=self._started_at, now=self._clock.now())
        store.replicas.forget(silent)
        for question_id in abandoned:
            store.questions.forget(question_id)
        found, token = store.replicas.leader(), None
        if self._token is not None and store.replicas.hold_lead(self.id, self._token):
            token = self._token
        elif found.replica_id is None or found == expired:
            token = store.replicas.take_lead(self.id, found)
        return _Seen(
            beats=store.replicas.beats(),
            asked=store.questions.ids(),
            leader=store.replicas.leader(),
            token=token,
        )

    async def leave(self) -> None:
        """The others know at once that this process serves no more; where the database takes nothing, later."""
        self._token = None
        try:
            await self._database.write(lambda tx: Store(tx).replicas.leave(self.id))
        except Error as error:
            _log.warning("replica.left_without_a_word", error=error.message)

    # -- what others ask

    @property
    def leads(self) -> bool:
        """It led at its last sign of life, and that is not long ago."""
        return self._token is not None and self._clock.monotonic() - self._beaten_at < LEASE_SECONDS

    @property
    def cut_off(self) -> bool:
        """The database answered nothing for the length of a lease.

        One that answers readings and takes no write is not away: another process may be at its turn, and stand still.
        """
        return self._clock.monotonic() - self._heard_at >= LEASE_SECONDS

    @property
    def others(self) -> int:
        """How many other replicas were alive at the last sign of life."""
        at = self._beaten_at
        return sum(
            uid != self.id and at - seen_at < LEASE_SECONDS for uid, (_, seen_at) in self._known.items()
        )

    def fence(self) -> Fence | None:
        """Also where it has been lost meanwhile: whether it leads is the fence's to say, not a clock's."""
        token = self._token
        if token is None:
            return None

        def prove(store: Store) -> None:
            if not store.replicas.hold_lead(self.id, token):
                raise Fenced

        return prove

    def fenced(self) -> None:
        """Counts it, and leads no more."""
        self.refused += 1
        self._token = None
        _log.warning("replica.fenced", replica=show_id(self.id))
