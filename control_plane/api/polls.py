"""A session that travels in polls: the messages of the stream, in unary calls, for proxies that break streams.

A poll needs nothing from the one before: Hello comes first in each, complete, so another replica or a server
started anew answers it as well. What is remembered here between polls only spares log lines and admissions.
A poll is held open for a moment while there is nothing to say, so an offer does not wait for the next one.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from control_plane.api.sessions import (
    BUSY_WINDOW_MS,
    Session,
    Sessions,
    clock_skew,
    telemetry_of,
)
from control_plane.api.welcome import Origin, welcome
from control_plane.domain.fleet import Telemetry
from control_plane.services.sessions import LEASE, Opened, open_session, require_speaker
from control_plane.services.work import Services
from control_plane.store.database import Tx
from control_plane.store.store import Store
from shared import logs, wire
from shared.errors import Invalid, Unavailable
from shared.model import Hello, Result
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2 as pb

_log = logs.get(__name__)

MAX_MESSAGES = 256
FULL_BYTES = 2 * 1_048_576  # an answer of that size takes no further message
HOLD_SECONDS = 5.0
NEXT_POLL_MS = 1_000


class Polls:
    """Answers polls."""

    def __init__(self, services: Services, sessions: Sessions, own: Origin) -> None:
        self._services, self._sessions, self._own = services, sessions, own

    async def answer(
        self, uid: bytes, request: pb.ExchangeRequest, *, renew: bool = False
    ) -> pb.ExchangeResponse:
        """What there is to say to the agent, and whether it is to renew its certificate; what it reported is durable.

        Returns at once where the session is new, something is under way on the host or there is something to
        say, otherwise within a few seconds. Raises Invalid naming a malformed field, PermissionDenied for an
        agent that is banned, retired or not known, FailedPrecondition for a poll of a session older than the
        agent's present one.
        """
        hello, messages = _parts(request.messages)
        async with self._sessions.opening(uid, now=self._services.clock.monotonic()) as admitted:
            if not admitted:
                busy = pb.SyncResponse(busy=pb.Busy(retry_window_ms=BUSY_WINDOW_MS))
                return pb.ExchangeResponse(messages=[busy], next_poll_ms=BUSY_WINDOW_MS)
            known = self._sessions.polls(uid)
            opened = await self._open(uid, hello, messages)
        if opened.took_over:
            self._services.wake(uid)  # the session before may be another replica's
        session = Session(self._services, self._sessions, opened, hello)
        self._sessions.enter(session)
        if not known:
            _log.info("session.opened", agent=uid.hex(), participants=len(hello.participants), polls=True)
        expected = False
        try:
            for message in messages:
                if message.WhichOneof("message") not in ("heartbeat", "observation"):
                    session.heard(message)
            await session.store()
            if opened.goes_on and not _under_way(hello):
                await self._hold(session)
            answer = await self._say(session, messages, renew=renew)
            expected = not session.said_goodbye
        except asyncio.CancelledError:
            expected = not session.said_goodbye  # else the poll was given up, not the session
            raise
        finally:
            await self._leave(session, expected=expected)
        return answer

    async def _open(self, uid: bytes, hello: Hello, messages: Sequence[pb.SyncRequest]) -> Opened:
        told = [
            telemetry_of(message.observation)
            for message in messages
            if message.WhichOneof("message") == "observation"
        ]
        telemetry = told[-1] if told else Telemetry(spool=hello.spool)
        now, new_id, terms = self._services.clock.now(), self._services.new_id, self._own.terms
        beats = [message.heartbeat for message in messages if message.WhichOneof("message") == "heartbeat"]
        skew = clock_skew(beats[-1], now=now) if beats else None

        def opening(tx: Tx) -> Opened:
            store = Store(tx)
            opened = open_session(store, uid, hello, terms=terms, new_id=new_id, now=now, polled=telemetry)
            store.fleet.renew_leases([(uid, opened.id, now, skew)], until=now + LEASE)
            return opened

        opened = await self._services.database.write(opening)
        if opened.quarantined:
            self._services.wake(uid)
            await self._services.database.read(lambda tx: require_speaker(Store(tx), uid))
        return opened

    async def _hold(self, session: Session) -> None:
        clock = self._services.clock
        until = clock.monotonic() + HOLD_SECONDS
        await session.look()
        while session.quiet and not session.over and (left := until - clock.monotonic()) > 0:
            await session.wait(left)
            await session.look()

    async def _say(
        self, session: Session, messages: Sequence[pb.SyncRequest], *, renew: bool
    ) -> pb.ExchangeResponse:
        greeting = welcome(
            self._own, session.id, spacing=session.spacing, findings=session.findings, renew=renew
        )
        said = [pb.SyncResponse(welcome=greeting)]
        _, window = session.spacing.in_ms()
        for message in messages:
            if message.WhichOneof("message") == "heartbeat":
                now = self._services.clock.now()
                # A host hears the Welcome of its first poll only.
                ack = pb.HeartbeatAck(
                    sequence=message.heartbeat.sequence, server_time_us=now, reconnect_window_ms=window
                )
                said.append(pb.SyncResponse(heartbeat_ack=ack))
        if not session.over:
            await session.look()
        # What finds no room is said in a later poll: the next Hello does not know of it either.
        size, sayings = 0, session.sayings()
        while len(said) < MAX_MESSAGES and size < FULL_BYTES and (saying := next(sayings, None)) is not None:
            said.append(saying)
            size += saying.ByteSize()
        with suppress(Unavailable):  # noted with a later one: the agent has its offers all the same
            await session.store()
        return pb.ExchangeResponse(messages=said, next_poll_ms=NEXT_POLL_MS)

    async def _leave(self, session: Session, *, expected: bool) -> None:
        uid, clock = session.agent_uid, self._services.clock
        if expected:
            self._sessions.leave(session, polls_until=clock.monotonic() + LEASE / SECOND)
            return
        self._sessions.leave(session)
        _log.info("session.ended", agent=uid.hex(), goodbye=session.said_goodbye)
        if not session.said_goodbye:
            return
        with suppress(Exception):
            await self._services.database.write(
                lambda tx: Store(tx).fleet.end_session(uid, session.id, now=clock.now())
            )


def _under_way(hello: Hello) -> bool:
    """The host is busy with an offer, and will have an outcome to tell soon."""
    return any(slot.result is Result.IN_PROGRESS for slot in hello.slots)


def _parts(messages: Sequence[pb.SyncRequest]) -> tuple[Hello, Sequence[pb.SyncRequest]]:
    """(Hello, what follows it). Raises Invalid."""
    if len(messages) > MAX_MESSAGES:
        raise Invalid(f"messages: at most {MAX_MESSAGES}", reason="TOO_MANY_MESSAGES")
    kinds = [message.WhichOneof("message") for message in messages]
    if kinds[:1] != ["hello"] or "hello" in kinds[1:]:
        raise Invalid("a poll begins with Hello, and has one", reason="NO_HELLO")
    return wire.hello_from_pb(messages[0].hello), messages[1:]
