"""A control plane that follows a script: agent.proto over real TLS, certificates of a real authority.

It admits, acknowledges and remembers by default; a test changes the attributes it cares about.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from shared import tls, wire
from shared.clock import SystemClock
from shared.ids import new_id, new_secret
from shared.model import ACKS_RIDE, Batch, Hello, Offer, Outcome, Record
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from shared.ticket import Ticket, ticket_to_token
from tests.support.waiting import eventually

Context = grpc.aio.ServicerContext[Any, Any]


class Sync:
    """One stream of an agent, as the control plane sees it."""

    def __init__(self, context: Context, hello: pb.Hello) -> None:
        self._context = context
        self.hello: Hello = wire.hello_from_pb(hello)
        self.certificate = next(iter(context.auth_context()["x509_pem_cert"]))
        self.heard: list[pb.SyncRequest] = []
        self.outcomes: list[Outcome] = []
        self.batches: list[Batch] = []
        self.ended = asyncio.Event()
        self.goodbye: str | None = None
        self._to_end: tuple[grpc.StatusCode, str] | None = None
        self._stop = asyncio.Event()
        self._writing = asyncio.Lock()

    async def send(self, **message: Any) -> None:
        """One SyncResponse, by the name of its field."""
        await self.write(pb.SyncResponse(**message))

    async def write(self, message: pb.SyncResponse) -> None:
        """One SyncResponse."""
        async with self._writing:  # a call takes one write at a time
            await self._context.write(message)

    async def offer(self, offer: Offer) -> None:
        await self.send(offer=wire.offer_to_pb(offer))

    def end(self, code: grpc.StatusCode = grpc.StatusCode.OK, detail: str = "") -> None:
        """The stream ends with this status."""
        self._to_end = (code, detail)
        self._stop.set()

    def kinds(self) -> list[str]:
        return [str(message.WhichOneof("message")) for message in self.heard]


class ScriptedControlPlane(agent_pb2_grpc.AgentServiceServicer, agent_pb2_grpc.EnrollmentServiceServicer):
    """Start it with `running()`."""

    def __init__(self, *, authority: tls.Authority | None = None) -> None:
        self.clock = SystemClock()
        self.authority = authority or tls.new_authority("test", now=self.clock.now())
        self.project_id, self.incarnation, self.predecessor = new_id(), new_id(), b""
        self.signer: tls.Authority = self.authority
        self.signature: bytes | None = None  # None: a right one by `signer`
        self.lineage: list[pb.Succession] = []
        self.wishes_renewal = False
        self.server_certificate: tuple[bytes, bytes] | None = None  # None: a right one
        self.secrets: dict[bytes, bool] = {}  # whether still to be used
        self.uids: list[bytes] = []
        self.enrolled: list[pb.EnrollRequest] = []
        self.renewals: list[pb.RenewCertificateRequest] = []
        self.recoveries: list[pb.RecoverRequest] = []
        self.certify: list[bytes | tuple[grpc.StatusCode, str]] = []  # DER, for the next of both, in place of
        self.streams = 0  # attempts, admitted or not
        self.syncs: list[Sync] = []
        self.instead: list[pb.SyncResponse | tuple[grpc.StatusCode, str]] = []  # for the next streams
        self.polls: list[pb.ExchangeRequest] = []  # attempts, admitted or not
        self.polled_session = new_id()
        self.polled_outcomes: list[Outcome] = []
        self.to_poll: list[pb.SyncResponse] = []  # for the next poll
        self.answers_polls = asyncio.Event()
        self.answers_polls.set()
        self.heartbeat_ms = 60_000
        self.next_heartbeat_ms = 0
        self.reconnect_window_ms = self.next_reconnect_window_ms = 0
        self.answers_heartbeats = True
        self.acknowledges_late = False
        self.welcomes = True
        self.batches: list[Batch] = []
        self.batches_asked = 0
        self.answers_batches = asyncio.Event()
        self.answers_batches.set()
        self.replies: list[pb.ReportSpoolResponse | tuple[grpc.StatusCode, str]] = []  # for the next batches
        self.stream_batch_bytes = 0
        self.stream_replies: list[pb.ReportSpoolResponse | None] = []  # for the next batches on a stream
        self.contents: dict[bytes, bytes] = {}
        self.fetches: list[pb.FetchContentRequest] = []
        self.uploads: list[list[pb.UploadContentRequest]] = []
        self.break_fetch_after: list[int] = []  # bytes, for the next fetches
        self.agents = self.operator = ""
        self._server: grpc.aio.Server | None = None

    # -- life

    @asynccontextmanager
    async def running(self) -> "AsyncIterator[ScriptedControlPlane]":
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        """Listening; on the same ports as before, where it was started before."""
        certificate, key = self.server_certificate or self.authority.issue_server(
            ["127.0.0.1", "localhost"], now=self.clock.now()
        )
        mutual = grpc.ssl_server_credentials([(key, certificate)], self.authority.certificate, True)
        plain = grpc.ssl_server_credentials([(key, certificate)])
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        agent_pb2_grpc.add_EnrollmentServiceServicer_to_server(self, self._server)
        agents = self._server.add_secure_port(self.agents or "127.0.0.1:0", mutual)
        operator = self._server.add_secure_port(self.operator or "127.0.0.1:0", plain)
        await self._server.start()
        self.agents, self.operator = f"127.0.0.1:{agents}", f"127.0.0.1:{operator}"

    async def stop(self) -> None:
        """As a crash: nobody is told."""
        server, self._server = self._server, None
        if server:
            await server.stop(None)

    def token(self) -> str:
        """A fresh enrollment token, good for one use."""
        secret = new_secret()
        self.secrets[secret] = True
        ticket = Ticket(secret=secret, addresses=(self.operator,), ca_certificate=self.authority.der)
        return ticket_to_token(ticket)

    def restored(self) -> None:
        """As after a restore: another incarnation that names and signs all those before it."""
        older, newer = self.incarnation, new_id()
        if self.predecessor:
            signature = tls.sign(self.authority.key, b"variantd incarnation" + older + self.predecessor)
            step = pb.Succession(incarnation=older, predecessor=self.predecessor, signature=signature)
            self.lineage.insert(0, step)
        self.predecessor, self.incarnation = older, newer

    async def session(self, number: int = 1) -> Sync:
        """The session of that number, once it is open."""
        await eventually(lambda: len(self.syncs) >= number, what=f"session {number}")
        return self.syncs[number - 1]

    @property
    def records(self) -> list[Record]:
        """Everything reported, each record id once."""
        found: dict[bytes, Record] = {}
        for batch in self.batches:
            for raw in batch.records:
                record = wire.record_from_bytes(raw)
                found.setdefault(record.id, record)
        return list(found.values())

    # -- EnrollmentService

    async def Enroll(self, request: pb.EnrollRequest, context: Context) -> pb.EnrollResponse:  # type: ignore[override]
        if not self.secrets.pop(request.secret, False):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is unknown, expired or used up")
        self.enrolled.append(request)
        uid = new_id()
        if request.previous_certificate:
            assert self.authority.issued(request.previous_certificate)
            assert tls.signed_by(
                request.previous_certificate, request.previous_signature, request.signing_request
            )
            known = tls.identity(tls.der_to_pem(request.previous_certificate))
            assert known is not None
            uid = known.agent_uid
        self.uids.append(uid)
        certificate = self.authority.issue_agent(
            request.signing_request, project_id=self.project_id, agent_uid=uid, now=self.clock.now()
        )
        return pb.EnrollResponse(
            agent_uid=uid,
            certificate=tls.pem_to_der(certificate),
            ca_certificates=[self.authority.der],
            addresses=[self.agents],
            incarnation=self.incarnation,
        )

    async def Recover(self, request: pb.RecoverRequest, context: Context) -> pb.RecoverResponse:  # type: ignore[override]
        self.recoveries.append(request)
        assert tls.requested_by(request.certificate, request.signing_request)
        known = tls.identity(tls.der_to_pem(request.certificate))
        assert known is not None
        certificate = await self._certified(request.signing_request, known.agent_uid, context)
        return pb.RecoverResponse(certificate=certificate, ca_certificates=[self.authority.der])

    async def _certified(self, signing_request: bytes, uid: bytes, context: Context) -> bytes:
        scripted = self.certify.pop(0) if self.certify else None
        if isinstance(scripted, tuple):
            await context.abort(*scripted)
        if scripted is not None:
            return scripted
        certificate = self.authority.issue_agent(
            signing_request, project_id=self.project_id, agent_uid=uid, now=self.clock.now()
        )
        return tls.pem_to_der(certificate)

    # -- AgentService

    async def Sync(self, messages: AsyncIterator[pb.SyncRequest], context: Context) -> None:  # type: ignore[override]
        self.streams += 1
        first = await anext(messages)
        assert first.WhichOneof("message") == "hello"
        instead = self.instead.pop(0) if self.instead else None
        if isinstance(instead, tuple):
            await context.abort(*instead)
        if instead is not None:
            await context.write(instead)
            return
        sync = Sync(context, first.hello)
        if self.welcomes:
            await context.write(pb.SyncResponse(welcome=self._welcome()))
        self.syncs.append(sync)
        reader = asyncio.create_task(self._listen(sync, messages))
        stopper = asyncio.create_task(sync._stop.wait())
        try:
            await asyncio.wait((reader, stopper), return_when=asyncio.FIRST_COMPLETED)
            if sync._to_end and sync._to_end[0] is not grpc.StatusCode.OK:
                await context.abort(*sync._to_end)
        finally:
            for task in (reader, stopper):
                task.cancel()
            await asyncio.gather(reader, stopper, return_exceptions=True)
            sync.ended.set()

    def _welcome(self, session_id: bytes | None = None) -> pb.Welcome:
        message = b"variantd incarnation" + self.incarnation + self.predecessor
        return pb.Welcome(
            session_id=session_id or new_id(),
            incarnation=self.incarnation,
            predecessor=self.predecessor,
            incarnation_signature=self.signature or tls.sign(self.signer.key, message),
            lineage=self.lineage,
            renew_certificate=self.wishes_renewal,
            heartbeat_interval_ms=self.heartbeat_ms,
            reconnect_window_ms=self.reconnect_window_ms,
            limits=pb.Limits(
                inline_bytes=32_768,
                batch_records=1000,
                batch_bytes=2_000_000,
                stream_batch_bytes=self.stream_batch_bytes,
            ),
        )

    async def _listen(self, sync: Sync, messages: AsyncIterator[pb.SyncRequest]) -> None:
        riding: list[pb.OutcomeAck] = []
        async for message in messages:
            sync.heard.append(message)
            kind = message.WhichOneof("message")
            if kind == "heartbeat" and self.answers_heartbeats:
                ack = pb.HeartbeatAck(
                    sequence=message.heartbeat.sequence,
                    server_time_us=self.clock.now(),
                    heartbeat_interval_ms=self.next_heartbeat_ms,
                    reconnect_window_ms=self.next_reconnect_window_ms,
                )
                await sync.send(heartbeat_ack=ack, outcome_acks=riding)
                riding = []
            elif kind == "outcome":
                outcome = wire.outcome_from_pb(message.outcome)
                sync.outcomes.append(outcome)
                ack_of = wire.outcome_ack_to_pb(outcome.key)
                if self.acknowledges_late and ACKS_RIDE in sync.hello.capabilities:
                    riding.append(ack_of)
                else:
                    await sync.send(outcome_ack=ack_of)
            elif kind == "batch":
                await self._take_batch(sync, message.batch)
            elif kind == "goodbye":
                sync.goodbye = message.goodbye.reason
                return

    async def _take_batch(self, sync: Sync, request: pb.ReportSpoolRequest) -> None:
        batch = wire.batch_from_pb(request)
        sync.batches.append(batch)
        await self.answers_batches.wait()
        through = batch.first_seq + len(batch.records) - 1
        stored: pb.ReportSpoolResponse | None = pb.ReportSpoolResponse(
            through_seq=through, verdict=pb.SPOOL_VERDICT_OK
        )
        if self.stream_replies:
            stored = self.stream_replies.pop(0)
        else:
            self.batches.append(batch)
        await sync.send(
            batch_answer=pb.BatchAnswer(epoch=batch.epoch, first_seq=batch.first_seq, stored=stored)
        )

    async def ReportSpool(self, request: pb.ReportSpoolRequest, context: Context) -> pb.ReportSpoolResponse:  # type: ignore[override]
        batch = wire.batch_from_pb(request)
        self.batches_asked += 1
        await self.answers_batches.wait()
        reply = self.replies.pop(0) if self.replies else None
        if isinstance(reply, tuple):
            await context.abort(*reply)
        if reply is not None:
            return reply
        self.batches.append(batch)
        through = batch.first_seq + len(batch.records) - 1
        return pb.ReportSpoolResponse(through_seq=through, verdict=pb.SPOOL_VERDICT_OK)

    async def FetchContent(  # type: ignore[override]
        self, request: pb.FetchContentRequest, context: Context
    ) -> AsyncIterator[pb.FetchContentResponse]:
        self.fetches.append(request)
        content = self.contents.get(request.digest)
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no slot of this agent holds that content")
        limit = self.break_fetch_after.pop(0) if self.break_fetch_after else None
        for start in range(request.offset, len(content), 1000):
            if limit is not None and start - request.offset >= limit:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            yield pb.FetchContentResponse(chunk=content[start : start + 1000])

    async def Exchange(self, request: pb.ExchangeRequest, context: Context) -> pb.ExchangeResponse:  # type: ignore[override]
        assert request.messages[0].WhichOneof("message") == "hello"
        self.polls.append(request)
        instead = self.instead.pop(0) if self.instead else None
        if isinstance(instead, tuple):
            await context.abort(*instead)
        if instead is not None:
            return pb.ExchangeResponse(messages=[instead], next_poll_ms=100)
        if not request.messages[-1].HasField("goodbye"):
            await self.answers_polls.wait()
        answers = [pb.SyncResponse(welcome=self._welcome(self.polled_session))]
        for message in request.messages:
            if message.HasField("outcome"):
                outcome = wire.outcome_from_pb(message.outcome)
                self.polled_outcomes.append(outcome)
                answers.append(pb.SyncResponse(outcome_ack=wire.outcome_ack_to_pb(outcome.key)))
        answers, self.to_poll = answers + self.to_poll, []
        return pb.ExchangeResponse(messages=answers, next_poll_ms=100)

    async def UploadContent(  # type: ignore[override]
        self, messages: AsyncIterator[pb.UploadContentRequest], context: Context
    ) -> pb.UploadContentResponse:
        self.uploads.append([message async for message in messages])
        return pb.UploadContentResponse()

    async def RenewCertificate(  # type: ignore[override]
        self, request: pb.RenewCertificateRequest, context: Context
    ) -> pb.RenewCertificateResponse:
        self.renewals.append(request)
        known = self._peer(context)
        certificate = await self._certified(request.signing_request, known.agent_uid, context)
        return pb.RenewCertificateResponse(certificate=certificate, ca_certificates=[self.authority.der])

    def _peer(self, context: Context) -> tls.Identity:
        known = tls.identity(next(iter(context.auth_context()["x509_pem_cert"])))
        assert known is not None
        return known


@asynccontextmanager
async def in_background(work: Any) -> AsyncIterator["asyncio.Task[Any]"]:
    """`work` runs meanwhile and is cancelled at the end; what it raises before that fails the test."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task
