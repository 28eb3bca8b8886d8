"""Files of hosts that are connected to another replica.

Hides the way there and back: the question is a row that the replica with the host's session finds, by a hint at once
and else at its slow poll; it asks the host as it would for itself, and the answer comes back in the row, sealed so that
only the process that asked can read it. The row is gone once somebody has the answer, or nobody waits for it any more.
"""

import asyncio
import json
from collections.abc import Callable

from control_plane.api.reads import ANSWER_SECONDS, MAX_WAITING
from control_plane.api.sealed import Opener, seal
from control_plane.api.sessions import Sessions
from control_plane.domain.fleet import Presence
from control_plane.services.work import Question, Services
from control_plane.store.database import Tx
from control_plane.store.questions import Asked
from control_plane.store.store import Store
from shared import logs
from shared.errors import Error, FailedPrecondition, PermissionDenied, ResourceExhausted, Unavailable

_log = logs.get(__name__)

LOOK_SECONDS = 0.5
"""How often the answer is looked for where its hint does not come."""

_CONTENT, _NOTHING, _REFUSED = b"c", b"n", b"e"
_KINDS = {kind.code.value: kind for kind in (FailedPrecondition, PermissionDenied, ResourceExhausted)}


class Elsewhere:
    """The questions that go to other replicas, and those of others that are answered here.

    `ask` tells the replicas that there is one for an agent, `tell` that a question has its answer.
    """

    def __init__(
        self, sessions: Sessions, *, ask: Callable[[bytes], None], tell: Callable[[bytes], None]
    ) -> None:
        self._sessions, self._ask, self._tell = sessions, ask, tell
        self._services: Services | None = None
        self._waiting: dict[bytes, asyncio.Event] = {}
        self._answering: dict[bytes, asyncio.Task[None]] = {}

    def begin(self, services: Services) -> None:
        """Questions can be asked and answered from now on."""
        self._services = services

    # -- who asks (services.work.Hosts)

    async def read(self, question: Question) -> bytes | None:
        """What the host answers, wherever it is connected. As `Hosts` has it."""
        services = self._services
        if services is None or self._sessions.reaches(question.agent_uid):
            return await self._sessions.reads.read(question)
        now = services.clock.now()
        agent = await services.database.read(lambda tx: Store(tx).fleet.agent(question.agent_uid))
        if agent is None or agent.presence(now) is not Presence.CONNECTED:
            return await self._sessions.reads.read(question)  # says that it is not connected
        return await self._forwarded(services, question)

    async def _forwarded(self, services: Services, question: Question) -> bytes | None:
        opener, told = Opener(), asyncio.Event()
        asked = Asked(
            id=services.new_id(),
            agent_uid=question.agent_uid,
            participant=question.participant,
            path=question.path,
            seal_for=opener.for_whom,
        )
        if len(self._waiting) >= MAX_WAITING:
            message = (
                f"{MAX_WAITING} files are being read from hosts at other replicas; read again in a moment"
            )
            raise ResourceExhausted(message, reason="TOO_MANY_READS")
        self._waiting[asked.id] = told
        now = services.clock.now()
        try:
            await services.database.write(lambda tx: Store(tx).questions.ask(asked, now=now))
            self._ask(question.agent_uid)
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await self._answer(services, asked.id, told)
            return _opened(opener.open(answer, about=asked.id))
        except TimeoutError:
            raise Unavailable(
                f"the host of {question.participant} is connected to another server, which did not answer in time;"
                " read again",
                reason="NO_ANSWER",
            ) from None
        finally:
            del self._waiting[asked.id]
            forgotten = services.database.write(lambda tx: Store(tx).questions.forget(asked.id))
            await asyncio.shield(asyncio.ensure_future(forgotten))

    async def _answer(self, services: Services, question_id: bytes, told: asyncio.Event) -> bytes:
        while True:
            answer = await services.database.read(lambda tx: Store(tx).questions.answer(question_id))
            if answer is not None:
                return answer
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await told.wait()
            except TimeoutError:
                pass
            told.clear()

    def answered(self, question_id: bytes) -> None:
        """The question has its answer; nothing happens where this process did not ask it."""
        if question_id in self._waiting:
            self._waiting[question_id].set()

    # -- who answers

    async def look(self) -> None:
        """Hosts connected here are asked what other replicas want to know of them."""
        services = self._services
        if services is None:
            return
        for asked in await services.database.read(lambda tx: Store(tx).questions.open()):
            if asked.id not in self._answering and self._sessions.reaches(asked.agent_uid):
                task = asyncio.create_task(self._serve(services, asked), name="question-elsewhere")
                self._answering[asked.id] = task

    async def _serve(self, services: Services, asked: Asked) -> None:
        question = Question(agent_uid=asked.agent_uid, participant=asked.participant, path=asked.path)
        try:
            content = await self._sessions.reads.read(question)
            body = _NOTHING if content is None else _CONTENT + content
        except Error as error:
            body = _REFUSED + json.dumps([error.code.value, error.reason, error.message]).encode()
        sealed = seal(body, for_whom=asked.seal_for, about=asked.id)

        def store(tx: Tx) -> None:
            Store(tx).questions.settle(asked.id, sealed)

        try:
            await services.database.write(store)
        except Error as error:
            _log.warning("question.not_answered", agent=asked.agent_uid.hex(), error=error.message)
        finally:
            del self._answering[asked.id]
        self._tell(asked.id)


def _opened(body: bytes) -> bytes | None:
    kind, rest = body[:1], body[1:]
    if kind == _REFUSED:
        code, reason, message = json.loads(rest)
        raise _KINDS.get(code, Unavailable)(message, reason=reason)
    return rest if kind == _CONTENT else None
