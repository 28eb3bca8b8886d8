"""What connected hosts are asked about contents before anything is assigned, until they answer.

Hides when a host is asked (in the background while an experiment is drafted, and at once when somebody is about to
start it), that it is asked one thing per participant at a time, and which content it may fetch meanwhile. What
was answered is durable; everything else here is forgotten with the process, or with the session, and asked again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from control_plane.domain import requests
from control_plane.domain.preflight import Content
from control_plane.services import preflight
from control_plane.services.preflight import Wanted
from control_plane.services.work import Caller, Scope, Services, Work
from control_plane.store.database import Tx
from control_plane.store.store import Store
from shared import logs
from shared import preflight as messages
from shared.clock import Clock
from shared.errors import Error, Invalid, Unavailable
from shared.ids import NewId, show_id
from shared.model import (
    MAX_INLINE_BYTES,
    MAX_PREFLIGHT_FILES,
    OfferedFile,
    Preflight,
    PreflightResult,
)
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2 as pb

_log = logs.get(__name__)

LOOK_SECONDS = 1.0
"""How often it is seen that an experiment changed."""

SCAN_SECONDS = 60.0
"""Everything is gone through so often even if nothing was seen to change: participants may carry other labels."""

ASK_SECONDS = 180.0
"""A host that has not answered by then is asked again; its own limit is below that."""

REST_SECONDS = 60.0
"""A host that could not judge everything is left alone for so long."""

SETTLE_SECONDS = 10.0
"""Whoever is about to start waits no longer for connected hosts; for others not at all."""

GATHER_SECONDS = 0.02
"""What hosts answer is gathered for so long into one transaction."""

ELSEWHERE_SECONDS = 0.2
"""How often it is looked whether hosts at other replicas have answered."""

WARM = 7 * 86_400 * SECOND
"""Drafts nobody changed for so long, and that are not scheduled, are asked about only when somebody looks."""

MAX_INLINE_TOTAL = 1_048_576
ACTOR = "preflight"


class _Asked:
    """A question under way."""

    def __init__(self, wanted: Wanted, preflight: Preflight, *, until: float) -> None:
        self.wanted, self.preflight, self.until = wanted, preflight, until
        self.said = False
        self.closed = asyncio.Event()

    def covers(self, contents: Iterable[Content]) -> bool:
        """Nothing of these is left to be asked."""
        return set(contents) <= self.contents.keys()

    @property
    def contents(self) -> dict[Content, int]:
        """What is asked about, with sizes."""
        return {(file.path, file.digest or b""): file.size for file in self.preflight.files}


class Preflights:
    """The questions under way. `reach` answers whether an agent is connected, and has its session look here."""

    def __init__(self, *, new_id: NewId, clock: Clock, reach: Callable[[bytes], bool]) -> None:
        self._new_id, self._clock, self._reach = new_id, clock, reach
        self._open: defaultdict[bytes, dict[str, _Asked]] = defaultdict(dict)
        self._resting: dict[tuple[bytes, str], float] = {}
        self._answers: list[tuple[_Asked, pb.PreflightResult]] = []
        self._storing: asyncio.Task[None] | None = None
        self._stirred = asyncio.Event()
        self._services: Services | None = None

    # -- who asks

    async def run(self, services: Services) -> None:
        """Hosts are asked about whatever is drafted, and about who may join late; ends only by being cancelled."""
        self._services = services
        edition, scan_at = (-1, -1), 0.0
        while True:
            try:
                found = await services.database.read(lambda tx: Store(tx).preflights.edition())
                now = self._clock.monotonic()
                if found != edition or self._stirred.is_set() or now >= scan_at:
                    edition, scan_at = found, now + SCAN_SECONDS
                    self._stirred.clear()
                    await self._scan(services)
            except Error as error:
                _log.warning("preflight.not_asked", reason=error.reason, error=error.message)
            except Exception:
                # It costs what hosts could have said, never the server.
                _log.exception("preflight.broken")
            await self._clock.sleep(LOOK_SECONDS)

    async def _scan(self, services: Services) -> None:
        since = self._clock.now() - WARM
        found: list[Wanted] = []
        for project_id, experiment_id in await services.database.read(
            lambda tx: Store(tx).preflights.open_experiments(changed_since=since)
        ):
            caller = Caller(project_id=project_id, actor=ACTOR, scopes=frozenset({Scope.ADMIN}))
            request = requests.ById(id=show_id(experiment_id))
            found += await services.ask(caller, Scope.ADMIN, preflight.wanting, request, _as_it_is)
        now = self._clock.monotonic()
        self._resting = {key: until for key, until in self._resting.items() if until > now}
        rested = [one for one in found if (one.agent_uid, one.participant) not in self._resting]
        await self._ask(services, rested)

    async def settle_for(self, services: Services, project_id: bytes, experiment: str, *, since: int) -> None:
        """Hosts connected here are asked what another replica wants to know of the draft."""
        caller = Caller(project_id=project_id, actor=ACTOR, scopes=frozenset({Scope.ADMIN}))
        try:
            await self.settle(services, caller, experiment, since=since)
        except Error as error:
            _log.warning("preflight.not_asked", reason=error.reason, error=error.message)

    async def settle(
        self,
        services: Services,
        caller: Caller,
        experiment: str,
        *,
        since: int | None = None,
        others: Callable[[], None] | None = None,
    ) -> None:
        """Connected hosts said of the draft's contents what they say now, as far as they do in SETTLE_SECONDS.

        Of anything but a draft nobody is asked. With `others`, who are told, hosts that are connected elsewhere are
        waited for as well. Raises NotFound.
        """
        request, since = requests.ById(id=experiment), since or self._clock.now()
        wanting = partial(preflight.wanting, since=since)
        asking = replace(
            caller, scopes=frozenset({Scope.ADMIN})
        )  # whatever it may do, it may have this found out
        if not await services.ask(asking, Scope.ADMIN, preflight.drafted, request, _as_it_is):
            return
        if others is not None:
            others()
        given_up: set[str] = set()
        deadline = self._clock.monotonic() + SETTLE_SECONDS
        while (left := deadline - self._clock.monotonic()) > 0:
            found = await services.ask(asking, Scope.ADMIN, wanting, request, _as_it_is)
            asked = await self._ask(services, [one for one in found if one.participant not in given_up])
            if not asked:
                if others is None or all(self._reach(one.agent_uid) for one in found):
                    return
                await self._clock.sleep(min(left, ELSEWHERE_SECONDS))
                continue
            sleeping = asyncio.ensure_future(self._clock.sleep(left))
            everybody = asyncio.ensure_future(_closed(asked))
            try:
                await asyncio.wait((everybody, sleeping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (everybody, sleeping):
                    task.cancel()
                await asyncio.gather(everybody, sleeping, return_exceptions=True)
            given_up |= {
                one.wanted.participant
                for one in asked
                if (one.wanted.agent_uid, one.wanted.participant) in self._resting
            }
        _log.info("preflight.not_settled", experiment=experiment, seconds=SETTLE_SECONDS)

    async def _ask(self, services: Services, wanted: Iterable[Wanted]) -> list[_Asked]:
        """The questions that are open now about what is wanted of hosts that are connected here."""
        merged: dict[tuple[bytes, str], Wanted] = {}
        for one in wanted:
            key = (one.agent_uid, one.participant)
            if key in merged:
                merged[key].contents.update(one.contents)
            else:
                merged[key] = one
        now, asked, new = self._clock.monotonic(), [], []
        for one in merged.values():
            contents = dict(sorted(one.contents.items())[:MAX_PREFLIGHT_FILES])
            present = self._open[one.agent_uid].get(one.participant)
            if present is not None and present.until > now:
                if present.covers(contents):
                    asked.append(present)
                    continue
                contents = dict(list((present.contents | contents).items())[:MAX_PREFLIGHT_FILES])
            if self._reach(one.agent_uid):
                new.append((one, contents))
        digests = {
            (one.project_id, value): size
            for one, contents in new
            for (_, value), size in contents.items()
            if size <= MAX_INLINE_BYTES
        }
        bodies = await services.database.read(lambda tx: _bodies(tx, digests))
        for one, contents in new:
            question = _question(self._new_id(), one, contents, bodies)
            older = self._open[one.agent_uid].get(one.participant)
            made = _Asked(one, question, until=now + ASK_SECONDS)
            self._open[one.agent_uid][one.participant] = made
            if older is not None:
                older.closed.set()
            if self._reach(one.agent_uid):  # it may have left meanwhile
                asked.append(made)
            else:
                self.forget(one.agent_uid)
        return asked

    # -- what a session asks and tells

    def stir(self) -> None:
        """Somebody may have something to say who could not before."""
        self._stirred.set()

    def unsaid(self, uid: bytes) -> Iterator[pb.SyncResponse]:
        """What is to be said to the agent, each taken when it is asked for."""
        for asked in list(self._open.get(uid, {}).values()):
            if not asked.said:
                asked.said = True
                yield pb.SyncResponse(preflight=messages.to_pb(asked.preflight))

    def waits(self, uid: bytes) -> bool:
        """Something is to be said to the agent."""
        return any(not asked.said for asked in self._open.get(uid, {}).values())

    def opened(self, uid: bytes, digest: bytes) -> bytes | None:
        """The project whose content the agent may read under this digest; None where no open question has it."""
        for asked in self._open.get(uid, {}).values():
            if any(file.digest == digest for file in asked.preflight.files):
                return asked.wanted.project_id
        return None

    def forget(self, uid: bytes) -> None:
        """The agent's session is gone, and with it whatever it was asked."""
        for asked in self._open.pop(uid, {}).values():
            asked.closed.set()

    def answered(self, uid: bytes, message: pb.PreflightResult) -> None:
        """The agent answered in its session; what nobody asked it for is dropped."""
        asked = next(
            (
                one
                for one in self._open.get(uid, {}).values()
                if one.preflight.request_id == message.request_id
            ),
            None,
        )
        if asked is None or self._services is None:
            _log.info("preflight.unasked_answer", agent=uid.hex(), request=message.request_id[:16].hex())
            return
        self._answers.append((asked, message))
        if self._storing is None:
            self._storing = asyncio.create_task(self._store_answers(self._services), name="preflight-answers")

    async def _store_answers(self, services: Services) -> None:
        """Everything that was answered is durable: a whole fleet is asked at once, and answers within moments."""
        try:
            while self._answers:
                await asyncio.sleep(GATHER_SECONDS)
                answers, self._answers = self._answers, []
                await self._store(services, answers)
        finally:
            self._storing = None

    async def _store(self, services: Services, answers: Sequence[tuple[_Asked, pb.PreflightResult]]) -> None:
        """The verdicts are durable; a question that was not answered whole rests for a while."""
        results: list[tuple[_Asked, PreflightResult]] = []
        judged: dict[_Asked, int] = {}
        try:
            for asked, message in answers:
                try:
                    results.append((asked, _of_the_asked(asked, messages.result_from_pb(message))))
                except Invalid as error:  # of a later version, or of nobody's
                    agent = asked.wanted.agent_uid.hex()
                    _log.warning("preflight.bad_answer", agent=agent, error=error.message)
            for asked, files in await self._stored(services, results):
                judged[asked] = files
        finally:
            for asked, _ in answers:
                self._close(asked, judged.get(asked, 0))
            self.stir()
        _log.info("preflight.stored", participants=len(judged), files=sum(judged.values()))

    async def _stored(
        self, services: Services, results: Sequence[tuple[_Asked, PreflightResult]]
    ) -> list[tuple[_Asked, int]]:
        """How many verdicts of each are durable, in one transaction; what cannot be stored costs the others nothing."""
        now = self._clock.now()

        def store(tx: Tx) -> list[tuple[_Asked, int]]:
            preflights = Store(tx).preflights
            found = []
            for asked, result in results:
                whose, uid = asked.wanted.participant_id, asked.wanted.agent_uid
                known = preflights.record(whose, uid, result, now=now)
                found.append((asked, len(result.verdicts) if known else 0))
            return found

        try:
            return await services.database.write(store) if results else []
        except Exception as failure:
            if len(results) > 1 and not isinstance(failure, Unavailable):
                return [one for result in results for one in await self._stored(services, [result])]
            _log.warning("preflight.not_stored", participants=len(results), error=str(failure))
            return []

    def _close(self, asked: _Asked, judged: int) -> None:
        """The question is over; it rests where fewer files were judged than were asked about."""
        wanted = asked.wanted
        if judged < len(asked.preflight.files):
            until = self._clock.monotonic() + REST_SECONDS
            self._resting[wanted.agent_uid, wanted.participant] = until
        mine = self._open.get(wanted.agent_uid, {})
        if mine.get(wanted.participant) is asked:
            del mine[wanted.participant]
        asked.closed.set()


async def _closed(asked: Iterable[_Asked]) -> None:
    for one in asked:
        await one.closed.wait()


def _of_the_asked(asked: _Asked, result: PreflightResult) -> PreflightResult:
    """The verdicts on what was asked, each once."""
    wanted = {(file.path, file.digest) for file in asked.preflight.files}
    found = {(one.path, one.digest): one for one in result.verdicts if (one.path, one.digest) in wanted}
    return PreflightResult(request_id=result.request_id, verdicts=tuple(found.values()), policy=result.policy)


def _bodies(tx: Tx, digests: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    store = Store(tx).experiments
    found = {value: store.content(project_id, value) for project_id, value in digests}
    return {value: body for value, body in found.items() if body is not None}


def _question(
    request_id: bytes, wanted: Wanted, contents: dict[Content, int], bodies: dict[bytes, bytes]
) -> Preflight:
    """The question about these contents: small ones inside, as long as they find room."""
    files, room = [], MAX_INLINE_TOTAL
    for (path, value), size in contents.items():
        body = bodies.get(value) if size <= room else None
        room -= 0 if body is None else size
        files.append(OfferedFile(path=path, digest=value, size=size, content=body))
    return Preflight(request_id=request_id, participant=wanted.participant, files=tuple(files))


def _as_it_is(work: Work, found: object) -> object:
    return found
