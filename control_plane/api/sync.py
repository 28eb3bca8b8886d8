"""The agents' side of the control plane: sessions with their mailboxes, content, and spool batches.

A session says to its agent what each slot should hold and stores what the agent reports. Its mailbox has one
place per slot, newest wins, and every write has a deadline, so an agent that does not read costs nothing and
is cut. Nothing here is needed to go on after a loss: the next Hello tells everything again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge

from control_plane.api import errors
from control_plane.api.rpc import Bucket
from control_plane.services import enrollment, events, fleet
from control_plane.services.work import Services
from control_plane.store.access import Incarnation
from control_plane.store.database import Tx
from control_plane.store.deployments import Desired
from control_plane.store.store import Store
from shared import logs, tls, wire
from shared.errors import Invalid, NotFound, PermissionDenied, ResourceExhausted
from shared.model import MAX_INLINE_BYTES, Hello, Offer, OfferAction, Outcome
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc

_log = logs.get(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

HEARTBEAT_SECONDS = 10.0
LEASE_WRITES_SECONDS = 5.0
WRITE_DEADLINE_SECONDS = 20.0
HELLO_DEADLINE_SECONDS = 10.0
ADMISSIONS_PER_SECOND = 200.0
BUSY_WINDOW_MS = 5_000
DRAIN_WINDOW_MS = 500
DRAIN_SECONDS = 2.0
GATHER_SECONDS = 0.01
"""Outcomes of a session are gathered for so long into one transaction."""
CHUNK_BYTES = 256 * 1024
MAX_BATCH_BYTES = 2 * 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which life of the database this is, as agents are told."""

    incarnation: Incarnation
    signature: bytes


def origin(incarnation: Incarnation, authority: tls.Authority) -> Origin:
    """The incarnation, signed so that agents may adopt it by themselves."""
    message = b"variantd incarnation" + incarnation.id + incarnation.predecessor
    return Origin(incarnation=incarnation, signature=tls.sign(authority.key, message))


class Sessions:
    """The live sessions of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._live: dict[bytes, _Session] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False
        self.admission = Bucket(rate=ADMISSIONS_PER_SECOND, burst=ADMISSIONS_PER_SECOND)
        self.connected = Gauge("variantd_sessions", "Agents connected to this process", registry=registry)
        self.outcomes = Counter("variantd_outcomes", "Outcomes stored", ["result"], registry=registry)
        self.records = Counter("variantd_spool_records", "Spool records stored", registry=registry)

    def wake(self, agent_uid: bytes) -> None:
        """The agent's session, if it has one here, looks again at what its slots should hold."""
        session = self._live.get(agent_uid)
        if session:
            session.wake()

    def enter(self, session: "_Session") -> None:
        """The session is the agent's; an older one of the same agent ends."""
        older = self._live.get(session.agent_uid)
        if older:
            _log.info("session.superseded", agent=session.agent_uid.hex())
            older.end()
        self._live[session.agent_uid] = session
        self._empty.clear()
        self.connected.set(len(self._live))

    def leave(self, session: "_Session") -> None:
        """The session is gone."""
        if self._live.get(session.agent_uid) is session:
            del self._live[session.agent_uid]
        if not self._live:
            self._empty.set()
        self.connected.set(len(self._live))

    async def keep_leases(self, services: Services) -> None:
        """Presence is written for all sessions together, every few seconds, for ever."""
        while True:
            await services.clock.sleep(LEASE_WRITES_SECONDS)
            sessions = list(self._live.values())
            if sessions:
                await self._write_leases(services, sessions)

    async def _write_leases(self, services: Services, sessions: "list[_Session]") -> None:
        leases = [(s.agent_uid, s.id, s.last_seen) for s in sessions]
        observed = [(s.agent_uid, *taken) for s in sessions if (taken := s.take_observation())]

        def write(tx: Tx) -> None:
            store = Store(tx).fleet
            store.renew_leases(leases, lease=fleet.LEASE)
            for uid, spool, conditions in observed:
                store.observe(uid, spool=spool, conditions=conditions)

        try:
            await services.database.write(write)
        except Exception as failure:
            _log.warning("presence.not_written", error=str(failure))

    async def drain(self) -> None:
        """Every agent was asked to leave, and had a moment to do so."""
        self.draining = True
        for session in list(self._live.values()):
            session.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._empty.wait()
        for session in list(self._live.values()):
            session.end()


class _Session:
    """One agent's stream."""

    def __init__(
        self, services: Services, sessions: Sessions, opened: fleet.Session, hello: Hello, context: Context
    ) -> None:
        self._services = services
        self._sessions = sessions
        self._context = context
        self._taken = frozenset(opened.taken)
        self._declared = frozenset(state.participant for state in hello.participants)
        self._asked_full = False
        self._known = {(slot.participant, slot.slot_id): slot.revision for slot in hello.slots}
        self._mailbox: dict[tuple[str, bytes], Offer] = {}
        self._replies: list[pb.SyncResponse] = []
        self._outcomes: list[Outcome] = []
        self._observation: tuple[tuple[int, int, int], list[dict[str, Any]]] | None = None
        self._signal = asyncio.Event()
        self._outcome_signal = asyncio.Event()
        self._look = True
        self._over = False
        self.said_goodbye = False
        self.id = opened.id
        self.agent_uid = opened.agent_uid
        self.last_seen = services.clock.now()
        self._heard_at = services.clock.monotonic()

    # -- what others tell the session

    def wake(self) -> None:
        self._look = True
        self._signal.set()

    def end(self) -> None:
        self._over = True
        self._signal.set()

    def drain(self) -> None:
        self._reply(pb.SyncResponse(drain=pb.Drain(window_ms=DRAIN_WINDOW_MS)))

    def take_observation(self) -> tuple[tuple[int, int, int], list[dict[str, Any]]] | None:
        taken, self._observation = self._observation, None
        return taken

    def _reply(self, message: pb.SyncResponse) -> None:
        self._replies.append(message)
        self._signal.set()

    # -- the stream

    async def run(self, messages: AsyncIterator[pb.SyncRequest]) -> None:
        """Returns when the agent has left, was silent for three heartbeats, or has to go."""
        reader = asyncio.create_task(self._read(messages))
        recorder = asyncio.create_task(self._record())
        try:
            while not self._over:
                if self._look:
                    self._look = False
                    await self._refresh()
                await self._write_out()
                if not self._look and not self._replies and not self._over:
                    await self._wait()
        finally:
            reader.cancel()
            recorder.cancel()
            await asyncio.gather(reader, recorder, return_exceptions=True)
        if not reader.cancelled() and (failure := reader.exception()):
            raise failure

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await self._signal.wait()
        self._signal.clear()
        if self._services.clock.monotonic() - self._heard_at > 3 * HEARTBEAT_SECONDS:
            _log.info("session.silent", agent=self.agent_uid.hex())
            self._over = True

    async def _read(self, messages: AsyncIterator[pb.SyncRequest]) -> None:
        try:
            async for message in messages:
                self.last_seen = self._services.clock.now()
                self._heard_at = self._services.clock.monotonic()
                self._heard(message)
        finally:
            self.end()

    def _heard(self, message: pb.SyncRequest) -> None:
        kind = message.WhichOneof("message")
        if kind == "heartbeat":
            ack = pb.HeartbeatAck(sequence=message.heartbeat.sequence, server_time_us=self.last_seen)
            self._reply(pb.SyncResponse(heartbeat_ack=ack))
        elif kind == "outcome":
            self._outcomes.append(wire.outcome_from_pb(message.outcome))
            self._outcome_signal.set()
        elif kind == "observation":
            spool = wire.spool_state_from_pb(message.observation.spool)
            conditions = [
                {"code": c.code, "severity": c.severity, "sinceAt": c.since_at, "message": c.message}
                for c in wire.conditions_from_pb(message.observation.conditions)
            ]
            conditions += fleet.taken_conditions(sorted(self._taken), now=self.last_seen)
            self._observation = ((spool.depth, spool.size, spool.oldest_at), conditions)
        elif kind == "goodbye":
            self.said_goodbye = True
            self.end()

    async def _record(self) -> None:
        """Outcomes are stored, then acknowledged."""
        while True:
            await self._outcome_signal.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._outcome_signal.clear()
            batch, self._outcomes = self._outcomes, []
            try:
                states = await self._services.database.write(lambda tx, batch=batch: self._store(tx, batch))  # type: ignore[misc]
            except Exception as failure:
                _log.warning("outcomes.not_stored", agent=self.agent_uid.hex(), error=str(failure))
                self.end()
                return
            for outcome, state in zip(batch, states, strict=True):
                self._tell(outcome, state)
                self._reply(pb.SyncResponse(outcome_ack=wire.outcome_ack_to_pb(outcome.key)))

    def _store(self, tx: Tx, batch: list[Outcome]) -> list[str | None]:
        store = Store(tx).deployments
        now = self._services.clock.now()
        new_id = self._services.new_id
        return [store.record(self.agent_uid, o, outcome_id=new_id(), now=now) for o in batch]

    def _tell(self, outcome: Outcome, state: str | None) -> None:
        if state is None:
            return
        self._sessions.outcomes.labels(result=outcome.result.value).inc()
        _log.info(
            "deployment.reported",
            agent=self.agent_uid.hex(),
            participant=outcome.participant,
            revision=outcome.revision,
            state=state,
            reason=outcome.reason.code.value if outcome.reason else None,
        )

    async def _refresh(self) -> None:
        """The mailbox holds every slot whose desired revision the agent does not know."""
        wanted, bound = await self._services.database.read(self._wanted)
        if bound is None:
            raise PermissionDenied("this agent is banned", reason="BANNED")
        if self._declared - bound != self._taken and not self._asked_full:
            # A participant moved to or from this agent: a new Hello binds what is its own now.
            self._asked_full = True
            self._reply(pb.SyncResponse(ask_full=pb.AskFull()))
        for offer in wanted:
            key = (offer.participant, offer.slot_id)
            self._known[key] = offer.revision
            self._mailbox[key] = offer

    def _wanted(self, tx: Tx) -> tuple[list[Offer], frozenset[str] | None]:
        """(offers that are news, public ids bound to the agent); None for the latter where it is banned."""
        store = Store(tx)
        project_id = store.fleet.may_speak(self.agent_uid)
        if project_id is None:
            return [], None
        bound = frozenset(store.events.participants_of(self.agent_uid))
        if store.fleet.frozen_at(project_id) is not None:
            return [], bound
        desired = store.deployments.desired(self.agent_uid)
        return [_with_content(store, item) for item in desired if self._is_news(item)], bound

    def _is_news(self, item: Desired) -> bool:
        offer = item.offer
        if offer.participant in self._taken:
            return False
        known = self._known.get((offer.participant, offer.slot_id))
        if known is None and offer.action is not OfferAction.WRITE and item.ended:
            return False  # closed long ago, and the host holds nothing of it
        return known is None or offer.revision > known

    async def _write_out(self) -> None:
        replies, self._replies = self._replies, []
        for reply in replies:
            await self._write(reply)
        offered = []
        while self._mailbox:
            key = next(iter(self._mailbox))
            offer = self._mailbox.pop(key)
            await self._write(pb.SyncResponse(offer=wire.offer_to_pb(offer)))
            offered.append(offer.deployment_id)
        if offered:
            now = self._services.clock.now()
            await self._services.database.write(lambda tx: Store(tx).deployments.offered(offered, now=now))

    async def _write(self, message: pb.SyncResponse) -> None:
        async with asyncio.timeout(WRITE_DEADLINE_SECONDS):
            await self._context.write(message)


def _with_content(store: Store, item: Desired) -> Offer:
    files = [
        replace(file, content=store.experiments.content(item.project_id, file.digest))
        if file.digest is not None and file.size <= MAX_INLINE_BYTES
        else file
        for file in item.offer.files
    ]
    return replace(item.offer, files=tuple(files))


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """What an enrolled agent calls."""

    def __init__(self, services: Services, sessions: Sessions, own: Origin, authority: tls.Authority) -> None:
        self._services = services
        self._sessions = sessions
        self._own = own
        self._authority = authority

    Exchange = staticmethod(errors.not_served)

    async def UploadContent(self, request_iterator: object, context: Context) -> Any:
        """Not served by this version."""
        return await errors.not_served(request_iterator, context)

    async def Sync(  # type: ignore[override]  # writes to the context instead of yielding
        self, request_iterator: AsyncIterator[pb.SyncRequest], context: Context
    ) -> None:
        """Control: one session."""
        try:
            uid = _agent_uid(context)
            hello = await _first_hello(request_iterator)
            if self._sessions.draining or not self._sessions.admission.take(self._services.clock.monotonic()):
                await context.write(pb.SyncResponse(busy=pb.Busy(retry_window_ms=BUSY_WINDOW_MS)))
                return
            await self._session(uid, hello, request_iterator, context)
        except TimeoutError:
            _log.info("session.cut", peer=context.peer(), reason="deadline")
            await errors.abort(context, ResourceExhausted("the stream was too slow", reason="DEADLINE"))
        except Exception as failure:
            await errors.abort(context, errors.explain(failure, "AgentService.Sync", peer=context.peer()))

    async def _session(
        self, uid: bytes, hello: Hello, messages: AsyncIterator[pb.SyncRequest], context: Context
    ) -> None:
        now, new_id, own = self._services.clock.now(), self._services.new_id, self._own

        def opening(tx: Tx) -> fleet.Session:
            predecessor = own.incarnation.predecessor
            return fleet.open_session(Store(tx), uid, hello, predecessor=predecessor, new_id=new_id, now=now)

        opened = await self._services.database.write(opening)
        session = _Session(self._services, self._sessions, opened, hello, context)
        self._sessions.enter(session)
        _log.info(
            "session.opened", agent=uid.hex(), participants=len(hello.participants), taken=list(opened.taken)
        )
        try:
            await context.write(pb.SyncResponse(welcome=_welcome(own, opened.id)))
            await session.run(messages)
        finally:
            self._sessions.leave(session)
            end = self._services.clock.now()
            _log.info("session.ended", agent=uid.hex(), goodbye=session.said_goodbye)
            with suppress(Exception):
                await self._services.database.write(
                    lambda tx: Store(tx).fleet.end_session(uid, opened.id, now=end)
                )

    async def ReportSpool(self, request: pb.ReportSpoolRequest, context: Context) -> pb.ReportSpoolResponse:
        """One batch, durable and counted once."""
        try:
            uid = _agent_uid(context)
            batch = wire.batch_from_pb(request)
            now = self._services.clock.now()

            def store(tx: Tx) -> events.Report:
                nouns = Store(tx)
                project_id = nouns.fleet.may_speak(uid)
                if project_id is None:
                    raise PermissionDenied("this agent is banned or not known", reason="BANNED")
                source = events.Source(project_id=project_id, agent_uid=uid, now=now)
                return events.report(nouns.events, source, batch)

            report = await self._services.database.write(store)
        except Exception as failure:
            await errors.abort(
                context, errors.explain(failure, "AgentService.ReportSpool", peer=context.peer())
            )
        self._sessions.records.inc(len(batch.records))
        verdict = pb.SpoolVerdict.Value(f"SPOOL_VERDICT_{report.verdict.name}")
        return pb.ReportSpoolResponse(through_seq=report.through_seq, verdict=verdict)

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
            certificate=tls.pem_to_der(done.certificate), ca_certificates=[self._authority.der]
        )

    async def FetchContent(
        self, request: pb.FetchContentRequest, context: Context
    ) -> AsyncIterator[pb.FetchContentResponse]:
        """Content of the caller's own slots, by digest, in chunks."""
        body = b""
        try:
            uid = _agent_uid(context)
            body = await self._services.database.read(lambda tx: _content(Store(tx), uid, request.digest))
        except Exception as failure:
            await errors.abort(
                context, errors.explain(failure, "AgentService.FetchContent", peer=context.peer())
            )
        for start in range(request.offset, len(body), CHUNK_BYTES):
            yield pb.FetchContentResponse(chunk=body[start : start + CHUNK_BYTES])


def _content(store: Store, uid: bytes, digest: bytes) -> bytes:
    project_id = store.deployments.may_fetch(uid, digest)
    body = store.experiments.content(project_id, digest) if project_id else None
    if body is None:
        raise NotFound("no slot of this agent holds that content", reason="CONTENT_NOT_FOUND")
    return body


def _welcome(own: Origin, session_id: bytes) -> pb.Welcome:
    return pb.Welcome(
        session_id=session_id,
        incarnation=own.incarnation.id,
        predecessor=own.incarnation.predecessor,
        incarnation_signature=own.signature,
        heartbeat_interval_ms=int(HEARTBEAT_SECONDS * 1000),
        limits=pb.Limits(
            inline_bytes=MAX_INLINE_BYTES, batch_records=events.MAX_RECORDS, batch_bytes=MAX_BATCH_BYTES
        ),
    )


def _agent_uid(context: Context) -> bytes:
    """Who the peer is, from its certificate only. Raises PermissionDenied where that is no agent's."""
    certificates = list(context.auth_context().get("x509_pem_cert", ()))
    identity = tls.identity(certificates[0]) if certificates else None
    if identity is None:
        _refuse()
    return identity.agent_uid


def _refuse() -> NoReturn:
    raise PermissionDenied("the client certificate is not an agent's", reason="NOT_AN_AGENT")


async def _first_hello(messages: AsyncIterator[pb.SyncRequest]) -> Hello:
    async with asyncio.timeout(HELLO_DEADLINE_SECONDS):
        try:
            message = await anext(messages)
        except StopAsyncIteration:
            raise Invalid("a session begins with Hello", reason="NO_HELLO") from None
    if message.WhichOneof("message") != "hello":
        raise Invalid("a session begins with Hello", reason="NO_HELLO")
    return wire.hello_from_pb(message.hello)
