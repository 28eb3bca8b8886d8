"""What many hosts need of the database at the same moment: one reading, and one transaction, for all of them.

A change to a fleet wakes every session at once, and within moments every host has an outcome to report, and a view of
what its files hold; what they would do one by one then costs several times as much. Hides gathering, what becomes of it
while the database takes nothing, and that trouble with what one host says is no trouble of the others.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, takewhile
from typing import Any, Generic, Protocol, TypeVar

from control_plane.services import spools
from control_plane.services.sessions import refusal
from control_plane.store.database import Database, Tx
from control_plane.store.offers import Wanted
from control_plane.store.store import Store
from shared import logs
from shared.clock import Clock
from shared.errors import PermissionDenied, Unavailable
from shared.ids import NewId
from shared.model import MAX_INLINE_BYTES, Batch, Offer, Outcome

_log = logs.get(__name__)

MOST_LOOKS = 256
"""Sessions that look in one reading."""

GATHER_SECONDS, LONGEST_GATHER_SECONDS = 0.02, 0.16
"""What hosts have to record is gathered for up to so long into one transaction, at first and at most."""

MOST_RECORDS, ENOUGH_RECORDS = 1_000, 100
"""Of spools: those that fill a unit of work, and those that are worth one at once."""
REPORTS_UNDER_WAY = 4
"""Units of work, in the order in which they came; the database commits together what waits for it anyway."""

MOST_OUTCOMES = 512
"""In one transaction, unless one session alone has more."""

STORE_AGAIN_SECONDS = 1.0

Q = TypeVar("Q")
A = TypeVar("A")


class Pace:
    """How long others are waited for: twice as long each time several came meanwhile, as a fleet's hosts do one by one.

    Who is alone waits for a moment only, the first time after many for the longest there is. Until the next multiple of
    that time, so that whatever is gathered, of whatever kind, comes to the database at the same moments, and is
    committed together there.
    """

    def __init__(self) -> None:
        self.seconds = GATHER_SECONDS

    def until(self, now: float) -> float:
        """When it has been long enough, by the same clock as `now`, in seconds."""
        return (now // self.seconds + 1) * self.seconds

    def gathered(self, number: int) -> None:
        """So many came within the last of these times."""
        self.seconds = min(2 * self.seconds, LONGEST_GATHER_SECONDS) if number > 1 else GATHER_SECONDS


class _Together(Generic[Q, A]):
    """What is asked within the same turn of the loop, or while as many answers as may be are under way, goes together.

    `answer` is a unit of work; where it fails, everybody is answered alone. By what `size` says of each question,
    `most` fill one unit of work, and while there is less than `enough`, others are waited for, at the pace they come.
    """

    def __init__(
        self,
        answer: Callable[[Database, Sequence[Q]], Coroutine[Any, Any, Sequence[A | Exception]]],
        *,
        most: int,
        under_way: int = 1,
        enough: int = 0,
        size: Callable[[Q], int] = lambda _: 1,
    ) -> None:
        self._answer, self._size, self._most, self._enough = answer, size, most, enough
        self._asked: list[tuple[Q, asyncio.Future[A]]] = []
        self._pace, self._sufficient = Pace(), asyncio.Event()
        self._places = asyncio.Semaphore(under_way)
        self._answering: set[asyncio.Task[None]] = set()
        self._gathering: asyncio.Task[None] | None = None

    def ask(self, database: Database, question: Q) -> "asyncio.Future[A]":
        """The answer, when there is one. Raises what it is, where that is an exception, and what the database does."""
        asked: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._asked.append((question, asked))
        if not self._sufficient.is_set() and self._is_enough():
            self._sufficient.set()
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._gather(database), name="together")
        return asked

    async def _gather(self, database: Database) -> None:
        try:
            while self._asked:
                await self._places.acquire()
                await self._others()
                taken = self._taken()
                if not self._is_enough():
                    self._sufficient.clear()
                answering = asyncio.create_task(self._settle(database, taken), name="answering")
                self._answering.add(answering)
                answering.add_done_callback(self._answering.discard)
        finally:
            self._gathering = None

    async def _others(self) -> None:
        """Whoever was woken together with the first has asked, or there is enough, or it has been long enough."""
        if self._sufficient.is_set():
            await asyncio.sleep(0)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._pace.until(asyncio.get_running_loop().time())):
                await self._sufficient.wait()
        self._pace.gathered(len(self._asked))

    def _is_enough(self) -> bool:
        return sum(self._size(question) for question, _ in self._asked) >= self._enough

    async def _settle(self, database: Database, asked: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            found = await self._answers(database, [question for question, _ in asked])
        finally:
            self._places.release()
        for (_, future), answer in zip(asked, found, strict=True):
            if future.done():
                continue  # whoever asked is gone
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _taken(self) -> list[tuple[Q, asyncio.Future[A]]]:
        """The first of those who ask, as many as go together."""
        sizes = accumulate(self._size(question) for question, _ in self._asked)
        number = 1 + sum(1 for _ in takewhile(lambda size: size < self._most, sizes))
        taken, self._asked = self._asked[:number], self._asked[number:]
        return taken

    async def _answers(self, database: Database, questions: Sequence[Q]) -> Sequence[A | Exception]:
        try:
            return await self._answer(database, questions)
        except Exception as failure:
            if len(questions) == 1 or isinstance(failure, Unavailable):
                return [failure] * len(questions)
        return [one for question in questions for one in await self._answers(database, [question])]


# -- looking


class Looking(Protocol):
    """A session that wants to know what its slots should hold."""

    id: bytes
    agent_uid: bytes
    behind: bool
    """Its host has an earlier revision of what it was done with."""

    def is_news(self, item: Wanted) -> bool:
        """Its agent is to be told of that; asked in a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a session found: its agent's generation, what is news, and the public ids that are bound to the agent."""

    generation: int
    offers: list[Offer]
    bound: frozenset[str]


class Looks:
    """Sessions that look at the same moment, look together."""

    def __init__(self) -> None:
        self._together = _Together[Looking, Look | None](_look, most=MOST_LOOKS)

    async def look(self, database: Database, session: Looking) -> Look | None:
        """What there is for the session; None where its agent's session is another by now.

        Raises PermissionDenied where the agent may not speak.
        """
        return await self._together.ask(database, session)


async def _look(database: Database, sessions: Sequence[Looking]) -> list[Look | Exception | None]:
    return await database.read(partial(_looked, sessions))


def _looked(sessions: Sequence[Looking], tx: Tx) -> list[Look | Exception | None]:
    store = Store(tx)
    speakers = store.offers.speakers([one.agent_uid for one in sessions])
    present = {
        one.agent_uid: one
        for one in sessions
        if one.agent_uid in speakers and speakers[one.agent_uid].session_id == one.id
    }
    bound = store.offers.bound(present)
    awake = [uid for uid in present if not speakers[uid].frozen]
    wanted = [
        item
        for item in store.offers.wanted(awake, behind={uid for uid in awake if present[uid].behind})
        if present[item.agent_uid].is_news(item)
    ]
    offers: dict[bytes, list[Offer]] = {uid: [] for uid in present}
    for item, offer in zip(wanted, store.offers.offers(wanted, inline=MAX_INLINE_BYTES), strict=True):
        offers[item.agent_uid].append(offer)

    def of(session: Looking) -> Look | Exception | None:
        uid = session.agent_uid
        if uid not in speakers:
            return refusal(store.fleet.agent(uid)) or PermissionDenied()
        if present.get(uid) is not session:
            return None
        return Look(
            generation=speakers[uid].generation, offers=offers[uid], bound=frozenset(bound.get(uid, ()))
        )

    return [of(session) for session in sessions]


# -- reporting


class Reports:
    """Batches of spools that come at the same moment are stored together."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._together = _Together[tuple[bytes, Batch], spools.Report](
            self._store,
            most=MOST_RECORDS,
            under_way=REPORTS_UNDER_WAY,
            enough=ENOUGH_RECORDS,
            size=lambda asked: len(asked[1].records),
        )

    def report(self, database: Database, agent_uid: bytes, batch: Batch) -> "asyncio.Future[spools.Report]":
        """How far the agent's epoch is stored, when that is durable, or PermissionDenied where the agent may not speak.

        Raises ResourceExhausted for a batch that is too large.
        """
        spools.require_size(batch)
        return self._together.ask(database, (agent_uid, batch))

    async def _store(
        self, database: Database, asked: Sequence[tuple[bytes, Batch]]
    ) -> list[spools.Report | Exception]:
        return await database.write(partial(self._stored, asked))

    def _stored(self, asked: Sequence[tuple[bytes, Batch]], tx: Tx) -> list[spools.Report | Exception]:
        store = Store(tx)
        speakers = store.offers.speakers({uid for uid, _ in asked})
        sent = [
            spools.Sent(project_id=speakers[uid].project_id, agent_uid=uid, batch=batch)
            for uid, batch in asked
            if uid in speakers
        ]
        reports = iter(spools.report(store.events, sent, now=self._clock.now()))
        return [
            next(reports) if uid in speakers else refusal(store.fleet.agent(uid)) or PermissionDenied()
            for uid, _ in asked
        ]


# -- recording


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """What a session has to record: outcomes it heard, and the deployments its agent was told of."""

    outcomes: list[Outcome]
    told: list[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """How each outcome's deployment stands now; `beyond`: one is of a revision that was never made here."""

    states: list[str | None]
    beyond: bool


class Owing(Protocol):
    """A session that has something to record."""

    agent_uid: bytes

    @property
    def over(self) -> bool: ...

    def take_owed(self) -> Owed:
        """What it owes, which is the caller's now."""

    def give_back(self, owed: Owed) -> None:
        """It could not be recorded."""

    def recorded(self, owed: Owed, found: Recorded) -> None:
        """It is durable."""

    def end(self) -> None:
        """The session has to go."""


class Recorder:
    """Records what sessions owe, together. What can never be recorded ends the session that said it."""

    def __init__(self, *, new_id: NewId, clock: Clock) -> None:
        self._new_id, self._clock = new_id, clock
        self._waiting: dict[Owing, None] = {}
        self._pace = Pace()
        self._recording: asyncio.Task[None] | None = None

    def owes(self, database: Database, session: Owing) -> None:
        """What the session owes is recorded soon; while the database takes nothing it waits, and nothing else does."""
        self._waiting[session] = None
        if self._recording is None:
            self._recording = asyncio.create_task(self._run(database), name="recording")

    async def _run(self, database: Database) -> None:
        try:
            while self._waiting:
                now = asyncio.get_running_loop().time()
                await asyncio.sleep(self._pace.until(now) - now)
                self._pace.gathered(len(self._waiting))
                sessions, self._waiting = list(self._waiting), {}
                try:
                    await self._some(database, sessions)
                except Unavailable as failure:
                    _log.warning("outcomes.not_stored", sessions=len(sessions), error=failure.message)
                    await asyncio.sleep(STORE_AGAIN_SECONDS)
                    # What an agent whose stream has ended is owed, it tells again.
                    self._waiting = {one: None for one in (*sessions, *self._waiting) if not one.over}
        finally:
            self._recording = None

    async def _some(self, database: Database, sessions: Sequence[Owing]) -> None:
        try:
            await self.record(database, sessions)
        except Unavailable:
            raise
        except Exception as failure:
            if len(sessions) > 1:
                for session in sessions:
                    await self._some(database, [session])
                return
            _log.warning("outcomes.not_stored", agent=sessions[0].agent_uid.hex(), error=str(failure))
            sessions[0].end()

    async def record(self, database: Database, sessions: Sequence[Owing]) -> None:
        """What these sessions owe is durable, and they know it.

        Raises what the database does; then they owe it still.
        """
        left = list(sessions)
        while left:
            taken: list[tuple[Owing, Owed]] = []
            size = 0
            while left and size < MOST_OUTCOMES:
                session = left.pop(0)
                owed = session.take_owed()
                if owed.outcomes or owed.told:
                    taken.append((session, owed))
                    size += len(owed.outcomes)
            if not taken:
                return
            try:
                found = await database.write(partial(self._store, taken))
            except BaseException:
                for session, owed in taken:
                    session.give_back(owed)
                raise
            for (session, owed), recorded in zip(taken, found, strict=True):
                session.recorded(owed, recorded)

    def _store(self, taken: Sequence[tuple[Owing, Owed]], tx: Tx) -> list[Recorded]:
        store = Store(tx)
        now = self._clock.now()
        store.offers.told((one for _, owed in taken for one in owed.told), now=now)
        reports = [(session.agent_uid, outcome) for session, owed in taken for outcome in owed.outcomes]
        states = iter(store.offers.record(reports, new_id=self._new_id, now=now))
        found = []
        for session, owed in taken:
            of_session = [next(states) for _ in owed.outcomes]
            beyond = None in of_session and _beyond(store, session.agent_uid, owed.outcomes)
            found.append(Recorded(states=of_session, beyond=beyond))
        return found


def _beyond(store: Store, agent_uid: bytes, outcomes: Sequence[Outcome]) -> bool:
    known = store.deployments.revisions(agent_uid)
    slots = [(known.get((one.participant, one.slot_id)), one.revision) for one in outcomes]
    return any(slot is not None and revision > slot.wanted for slot, revision in slots)
