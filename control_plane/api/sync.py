"""What an enrolled agent calls: the stream of its session, content, spool batches, its next certificate.

Hides who may call and how a session travels. Every write to a stream has a deadline, so an agent that does not
read costs nothing and is cut; what is said in a session is decided in `control_plane.api.sessions`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from functools import lru_cache
from typing import Any, NoReturn

import grpc

from control_plane.api import errors
from control_plane.api.admission import Turnstile
from control_plane.api.polls import Polls
from control_plane.api.reads import ANSWER_SECONDS
from control_plane.api.sessions import BUSY_WINDOW_MS, Session, Sessions, report_to_pb
from control_plane.api.welcome import Origin, welcome
from control_plane.services import enrollment
from control_plane.services.sessions import DUPLICATE_SESSION, Opened, open_session, require_speaker
from control_plane.services.work import Services
from control_plane.store.database import Tx
from control_plane.store.store import Store
from shared import logs, tls, wire
from shared.errors import Invalid, NotFound, PermissionDenied, ResourceExhausted
from shared.model import Hello
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc

_log = logs.get(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

WRITE_DEADLINE_SECONDS = 20.0
HELLO_DEADLINE_SECONDS = 10.0
CHUNK_BYTES = 256 * 1024
MAX_STREAMS, MAX_REPORTS, MAX_FETCHES = 64, 4, 16
"""Calls of one agent at once; one that behaves has two streams while one takes the place of the other, one batch under
way, and fetches for eight files. The end of a stream waits behind what its agent does not read."""


class _Stream:
    """A session on one Sync call.

    What is heard is answered by whoever hears it, what others have to say by `run`; writes may not overlap, so
    whoever writes has the turn. One timer a heartbeat looks after everything that may take too long.
    """

    def __init__(self, session: Session, context: Context) -> None:
        self._session, self._context = session, context
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._writing: tuple[asyncio.Task[Any], float] | None = None
        self._late = False

    async def run(self, greeting: pb.Welcome, messages: AsyncIterator[pb.SyncRequest]) -> None:
        """Says the greeting; returns when the agent has left, was silent for three heartbeats, or has to go."""
        session = self._session
        self._timer = self._loop.call_later(session.spacing.heartbeat, self._check)
        try:
            await errors.can_end(self._context)
            await self._write(pb.SyncResponse(welcome=greeting))
            reader = asyncio.create_task(self._read(messages))
            try:
                while not session.over:
                    await session.look()
                    await self._say()
                    if session.quiet and not session.over:
                        await session.told()
            finally:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
        finally:
            self._timer.cancel()
        if not reader.cancelled() and (failure := reader.exception()):
            raise failure

    async def _read(self, messages: AsyncIterator[pb.SyncRequest]) -> None:
        session = self._session
        try:
            async for message in messages:
                session.heard(message)
                if session.owing:
                    session.owes()
                if session.answers:
                    if self._turn.locked():
                        session.stir()
                    else:
                        await self._say()
                await session.turn()
        finally:
            session.end()

    async def _say(self) -> None:
        async with self._turn:
            for message in self._session.sayings():
                await self._write(message)
        if self._session.owing:
            self._session.owes()

    async def _write(self, message: pb.SyncResponse) -> None:
        """The transport has it. Raises TimeoutError where it does not take it within WRITE_DEADLINE_SECONDS."""
        if self._late:  # the transport may still be at the write that was given up, and takes one at a time
            raise TimeoutError
        task = asyncio.current_task()
        assert task is not None
        self._writing = task, self._loop.time()
        try:
            await self._context.write(message)
        except asyncio.CancelledError:
            if not self._late:
                raise
            task.uncancel()
            raise TimeoutError from None
        finally:
            self._writing = None

    def _check(self) -> None:
        """Whoever is silent or does not read is cut, whoever has lasted is asked to take turns; once a heartbeat."""
        session = self._session
        self._timer = self._loop.call_later(session.spacing.heartbeat, self._check)
        session.grow_old()
        if session.miss_heartbeat() and not session.over:
            _log.info("session.silent", agent=session.agent_uid.hex())
            session.end()
        if self._writing is not None:
            task, since = self._writing
            if not self._late and self._loop.time() - since > WRITE_DEADLINE_SECONDS:
                self._late = True
                task.cancel()


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """What an enrolled agent calls."""

    def __init__(
        self, services: Services, sessions: Sessions, own: Origin, authority: tls.Authorities
    ) -> None:
        self._services = services
        self._sessions = sessions
        self._own = own
        self._authority = authority
        self._polls = Polls(services, sessions, own)
        self._streams, self._reports, self._fetches = (
            Turnstile(most=most) for most in (MAX_STREAMS, MAX_REPORTS, MAX_FETCHES)
        )

    async def UploadContent(
        self, request_iterator: AsyncIterator[pb.UploadContentRequest], context: Context
    ) -> pb.UploadContentResponse:
        """The file that the agent was asked for."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._sessions.reads.upload(_agent_uid(context), request_iterator)
        except TimeoutError:
            await errors.abort(context, ResourceExhausted("the upload was too slow", reason="DEADLINE"))
        except Exception as failure:
            await errors.abort(
                context, errors.explain(failure, "AgentService.UploadContent", peer=context.peer())
            )
        return pb.UploadContentResponse()

    async def Sync(  # type: ignore[override]  # writes to the context instead of yielding
        self, request_iterator: AsyncIterator[pb.SyncRequest], context: Context
    ) -> None:
        """Control: one session."""
        with ExitStack() as place:
            try:
                uid = _agent_uid(context)
                place.enter_context(self._streams.enter(uid))
                await self._sync(uid, request_iterator, context)
            except TimeoutError:
                _log.info("session.cut", peer=context.peer(), reason="deadline")
                await errors.abort(context, ResourceExhausted("the stream was too slow", reason="DEADLINE"))
            except Exception as failure:
                await errors.abort(context, errors.explain(failure, "AgentService.Sync", peer=context.peer()))

    async def _sync(self, uid: bytes, messages: AsyncIterator[pb.SyncRequest], context: Context) -> None:
        """Raises TimeoutError where the agent says or takes nothing for too long."""
        hello = await _first_hello(messages)
        async with self._sessions.opening(uid, now=self._services.clock.monotonic()) as admitted:
            session = await self._opened(uid, wire.hello_from_pb(hello)) if admitted else None
        del hello  # as large as the host has slots, and not needed for as long as the session lasts
        if session is None:
            await errors.can_end(context)
            async with asyncio.timeout(WRITE_DEADLINE_SECONDS):
                await context.write(pb.SyncResponse(busy=pb.Busy(retry_window_ms=BUSY_WINDOW_MS)))
            return
        await self._converse(session, messages, context)

    async def _opened(self, uid: bytes, hello: Hello) -> Session:
        """The agent's session, which others know of. Raises PermissionDenied for an agent that may not speak."""
        now, new_id, own = self._services.clock.now(), self._services.new_id, self._own

        def opening(tx: Tx) -> Opened:
            return open_session(Store(tx), uid, hello, terms=own.terms, new_id=new_id, now=now)

        opened = await self._services.database.write(opening)
        if opened.quarantined:
            _log.error("agent.quarantined", agent=uid.hex(), reason=DUPLICATE_SESSION)
            self._services.wake(uid)  # the other process is to hear of it too
            await self._services.database.read(lambda tx: require_speaker(Store(tx), uid))
        session = Session(self._services, self._sessions, opened, hello)
        if opened.took_over:
            self._services.wake(uid)  # the one before may be another replica's
        self._sessions.enter(session)
        _log.info(
            "session.opened", agent=uid.hex(), participants=len(hello.participants), taken=list(opened.taken)
        )
        return session

    async def _converse(
        self, session: Session, messages: AsyncIterator[pb.SyncRequest], context: Context
    ) -> None:
        uid = session.agent_uid
        try:
            renew = self._is_former(context)
            greeting = welcome(
                self._own, session.id, spacing=session.spacing, findings=session.findings, renew=renew
            )
            await _Stream(session, context).run(greeting, messages)
        finally:
            self._sessions.leave(session)
            end = self._services.clock.now()
            _log.info("session.ended", agent=uid.hex(), goodbye=session.said_goodbye)
            with suppress(Exception):
                await self._services.database.write(
                    lambda tx: Store(tx).fleet.end_session(uid, session.id, now=end)
                )

    def _is_former(self, context: Context) -> bool:
        """The agent's certificate is of the authority that is about to be retired."""
        if self._authority.second is None:
            return False
        certificate = next(iter(context.auth_context()["x509_pem_cert"]))
        return not self._authority.second.issued(tls.pem_to_der(certificate))

    async def Exchange(self, request: pb.ExchangeRequest, context: Context) -> pb.ExchangeResponse:
        """Control: one poll of a session."""
        try:
            renew = self._is_former(context)
            answer = await self._polls.answer(_agent_uid(context), request, renew=renew)
        except Exception as failure:
            await errors.abort(context, errors.explain(failure, "AgentService.Exchange", peer=context.peer()))
        return answer

    async def ReportSpool(self, request: pb.ReportSpoolRequest, context: Context) -> pb.ReportSpoolResponse:
        """One batch, durable and counted once."""
        try:
            uid = _agent_uid(context)
            batch = wire.batch_from_pb(request)
            with self._reports.enter(uid):
                report = await self._sessions.reports.report(self._services.database, uid, batch)
        except Exception as failure:
            await errors.abort(
                context, errors.explain(failure, "AgentService.ReportSpool", peer=context.peer())
            )
        self._sessions.records.inc(len(batch.records))
        return report_to_pb(report)

    async def RenewCertificate(
        self, request: pb.RenewCertificateRequest, context: Context
    ) -> pb.RenewCertificateResponse:
        """The next certificate of the agent that asks."""
        try:
            uid, now = _agent_uid(context), self._services.clock.now()
            wanted = request.signing_request
            done = await self._services.database.write(
                lambda tx: enrollment.renew(Store(tx), self._authority, uid, wanted, now=now)
            )
        except Exception as failure:
            await errors.abort(
                context, errors.explain(failure, "AgentService.RenewCertificate", peer=context.peer())
            )
        _log.info("certificate.renewed", agent=uid.hex(), serial=done.serial)
        return pb.RenewCertificateResponse(
            certificate=tls.pem_to_der(done.certificate), ca_certificates=self._authority.ders
        )

    async def FetchContent(
        self, request: pb.FetchContentRequest, context: Context
    ) -> AsyncIterator[pb.FetchContentResponse]:
        """Content of the caller's own slots and open preflights, by digest, in chunks."""
        body = b""
        with ExitStack() as place:
            try:
                uid = _agent_uid(context)
                place.enter_context(self._fetches.enter(uid))
                asked = self._sessions.preflights.opened(uid, request.digest)
                body = await self._services.database.read(
                    lambda tx: _content(Store(tx), uid, request.digest, asked=asked)
                )
            except Exception as failure:
                await errors.abort(
                    context, errors.explain(failure, "AgentService.FetchContent", peer=context.peer())
                )
            for start in range(request.offset, len(body), CHUNK_BYTES):
                yield pb.FetchContentResponse(chunk=body[start : start + CHUNK_BYTES])


def _content(store: Store, uid: bytes, digest: bytes, *, asked: bytes | None) -> bytes:
    require_speaker(store, uid)
    project_id = store.offers.may_fetch(uid, digest) or asked
    body = store.experiments.content(project_id, digest) if project_id else None
    if body is None:
        raise NotFound("no slot or open preflight of this agent has that content", reason="CONTENT_NOT_FOUND")
    return body


def _agent_uid(context: Context) -> bytes:
    """Who the peer is, from its certificate only. Raises PermissionDenied where that is no agent's."""
    certificates = list(context.auth_context().get("x509_pem_cert", ()))
    uid = _agent_of(certificates[0]) if certificates else None
    if uid is None:
        _refuse()
    return uid


@lru_cache(maxsize=16_384)
def _agent_of(certificate: bytes) -> bytes | None:
    """What is in a certificate never changes, and each of its agent's calls brings it along."""
    identity = tls.identity(certificate)
    return identity.agent_uid if identity else None


def _refuse() -> NoReturn:
    raise PermissionDenied("the client certificate is not an agent's", reason="NOT_AN_AGENT")


async def _first_hello(messages: AsyncIterator[pb.SyncRequest]) -> pb.Hello:
    async with asyncio.timeout(HELLO_DEADLINE_SECONDS):
        try:
            message = await anext(messages)
        except StopAsyncIteration:
            raise Invalid("a session begins with Hello", reason="NO_HELLO") from None
    if message.WhichOneof("message") != "hello":
        raise Invalid("a session begins with Hello", reason="NO_HELLO")
    return message.hello
