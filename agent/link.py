"""The way to the control plane: sessions one after the other, what rides beside them, when to try again.

Hides addresses, credentials, back-off that outlives the process, and which incarnation of the control plane
is trusted. Losing the link costs time only: files stay, reports wait in the spool, outcomes until they are
acknowledged. Lives in exactly one event loop, on one channel for as long as its address is the same.
"""

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from socket import gethostname

import grpc

from agent import identity as identities
from agent.channel import NOT_RETRIED_SOON, failure, first_line, open_channel
from agent.config import AgentConfig
from agent.health import Conditions
from agent.identity import Identity
from agent.policy import fingerprint
from agent.polls import Polls
from agent.preflight import Preflights
from agent.reconciler import Reconciler
from agent.session import Ended, Session
from agent.sharing import Answer, Sharing, Wish
from agent.spool import Receipt
from shared import VERSION, logs, wire
from shared.backoff import Backoff
from shared.clock import Clock
from shared.errors import Invalid, Unavailable
from shared.ids import show_id
from shared.model import (
    PREFLIGHT,
    Batch,
    Condition,
    Digest,
    Hello,
    Offer,
    Outcome,
    OutcomeKey,
    ParticipantState,
    Platform,
    Preflight,
    PreflightResult,
    SpoolState,
)
from shared.moment import SECOND, to_rfc3339
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc

_log = logs.get(__name__)

BACKOFF = Backoff(base=1.0, factor=2.0, cap=300.0)
LASTED_SECONDS = 60.0  # a session that lived so long was a good one
CUTS = 3  # streams that opened and did not last, one after the other: something on the way cuts them
RECONNECT_JITTER = 10.0
CALL_SECONDS = 60.0  # deadline of a unary call
UPLOAD_SECONDS = 15.0  # the control plane does not wait longer
BATCH_LIMITS = (500, 512 * 1024)  # records, bytes; the control plane may ask for less
SKEW_SECONDS = 60
RETIRE_SECONDS = 5.0  # for the calls under way on a channel that is given up
NOBODYS_DIGEST = bytes(32)
DAY = 86_400 * SECOND


class Link:
    """The host's link; `run` it as long as the agent lives.

    `conditions` are those of the whole agent, told to the control plane; the link's own are `conditions()`.
    """

    def __init__(
        self,
        *,
        config: AgentConfig,
        state_dir: Path,
        reconciler: Reconciler,
        spool: Callable[[], SpoolState],
        clock: Clock,
        random: Random,
        observed: Callable[[], tuple[Condition, ...]] = tuple,
        reconnect_jitter: float = RECONNECT_JITTER,
    ) -> None:
        self._config, self._state_dir, self._reconciler, self._spool = config, state_dir, reconciler, spool
        self._clock, self._random, self._observed = clock, random, observed
        self._jitter = reconnect_jitter
        self._identity = identities.load(state_dir)
        self._state = identities.load_session_state(state_dir, now=clock.now())
        self._conditions = Conditions(clock)
        self._address = 0
        self._channel: grpc.aio.Channel | None = None
        self._session: Session | Polls | None = None
        self._cuts = 0
        self._trusted = asyncio.Event()  # a session is open with a control plane that may be believed
        self._moved = asyncio.Event()  # the channel is of an identity that was given up
        self._disk = asyncio.Lock()  # one write to the state directory at a time
        self._since = clock.now()
        self._opened_at = 0.0
        self._what = "waiting" if self._identity else "not_enrolled"
        self._session_id = ""
        self._last_error = ""
        self._skew = 0
        self._sharing = Sharing(config, tell=self._answer, upload=self._upload)
        self._preflights = Preflights(config, judge=reconciler.judge, tell=self._judged, clock=clock)
        self.limits = BATCH_LIMITS

    # -- what others ask and say -----------------------------------------------------------------

    def outcome(self, outcome: Outcome) -> None:
        """The outcome goes up now where a session is open; it is told again at the next one anyway."""
        if self._session is not None:
            self._session.tell(outcome)

    async def report(self, batch: Batch) -> Receipt:
        """What the control plane says of `batch`; waits until there is one to ask. Raises shared.errors."""
        async with self._stub() as stub:
            response = await stub.ReportSpool(wire.batch_to_pb(batch), timeout=CALL_SECONDS)
        diverged = response.verdict == pb.SPOOL_VERDICT_EPOCH_DIVERGED
        return Receipt(through_seq=response.through_seq, diverged=diverged)

    async def fetch(self, digest: Digest, size: int) -> bytes:
        """At most `size` bytes the control plane has under `digest`; unchecked. Raises shared.errors.

        A stream that breaks is taken up where it broke, twice.
        """
        content = bytearray()
        for tries_left in (2, 1, 0):
            request = pb.FetchContentRequest(digest=digest, offset=len(content))
            try:
                async with self._stub() as stub:
                    call = stub.FetchContent(request, timeout=CALL_SECONDS)
                    async for piece in call:
                        content += piece.chunk
                        if len(content) > size:
                            call.cancel()
                            raise Invalid("the content is longer than the offer said", reason="TOO_LARGE")
                return bytes(content)
            except Unavailable:
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    async def _upload(self, request_id: bytes, digest: Digest, pieces: Iterable[bytes]) -> None:
        messages = [pb.UploadContentRequest(chunk=piece) for piece in pieces]
        messages[0].request_id, messages[0].digest = request_id, digest
        async with self._stub() as stub:
            await stub.UploadContent(iter(messages), timeout=UPLOAD_SECONDS)

    async def renew(self, signing_request: bytes) -> tuple[bytes, tuple[bytes, ...]]:
        """(certificate, authorities) in DER, to follow the present ones; unchecked. Raises shared.errors."""
        request = pb.RenewCertificateRequest(signing_request=signing_request)
        async with self._stub() as stub:
            response = await stub.RenewCertificate(request, timeout=CALL_SECONDS)
        return response.certificate, tuple(response.ca_certificates)

    async def prove(self, candidate: Identity) -> None:
        """The control plane knows the candidate for an agent. Raises one of shared.errors where it does not.

        Shown by a question over a connection of its own: nobody but an accepted agent is told that there is
        no such content.
        """
        async with open_channel(self._current_address(), ca=candidate.ca, identity=candidate) as channel:
            stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(channel)
            call = stub.FetchContent(pb.FetchContentRequest(digest=NOBODYS_DIGEST), timeout=CALL_SECONDS)
            try:
                await call.read()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise failure(error) from None

    async def move(self, identity: Identity) -> None:
        """The identity staged last, this one, is committed, and the link speaks as it from now on.

        An open session says Goodbye `renew`; the next one follows at once. Raises OSError where it cannot be
        committed; then the present identity goes on.
        """
        assert self._identity is not None
        async with self._disk:
            await asyncio.to_thread(identities.commit, self._state_dir)
            incarnation = self._identity.incarnation
            self._identity = replace(identity, incarnation=incarnation)
        if identity.incarnation != incarnation:  # another was adopted meanwhile
            await self._stored(lambda: identities.adopt(self._state_dir, incarnation))
        self._moved.set()
        if self._session is not None:
            self._session.leave("renew")

    def conditions(self) -> tuple[Condition, ...]:
        """What is wrong with the link now."""
        return self._conditions.now()

    @property
    def enrolled(self) -> Identity | None:
        """Who this host is to the control plane; None where it never enrolled."""
        return self._identity

    @property
    def trusted(self) -> bool:
        """A session is open with a control plane that may be believed: calls do not wait."""
        return self._trusted.is_set()

    @property
    def connected(self) -> bool:
        """A session is open."""
        return self._what == "connected"

    def status(self) -> dict[str, object]:
        """What an operator asks first about the link, in JSON."""
        identity = self._identity
        return {
            "state": self._what,
            "transport": self._config.transport,
            "sinceAt": to_rfc3339(self._since),
            "address": self._current_address() if identity else None,
            "sessionId": self._session_id or None,
            "sessionEpoch": self._state.epoch,
            "attempt": self._state.attempt,
            "lastError": self._last_error or None,
            "clockSkewMs": self._skew // 1000,
            "incarnation": show_id(identity.incarnation) if identity and identity.incarnation else None,
        }

    def identity(self) -> dict[str, object]:
        """Who this host is to the control plane, in JSON."""
        if self._identity is None:
            return {"enrolled": False, "agentId": None, "certificate": None}
        left = self._identity.not_after - self._clock.now()
        certificate = {"notAfterAt": to_rfc3339(self._identity.not_after), "daysLeft": left // DAY}
        return {"enrolled": True, "agentId": self._identity.uid, "certificate": certificate}

    def reconfigure(self, config: AgentConfig) -> None:
        """The control plane learns what this host serves now, by the Hello of a new session."""
        self._config = config
        self._sharing.reconfigure(config)
        self._preflights.reconfigure(config)
        if self._session is not None:
            self._session.leave("reload")

    # -- life ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps a session open until cancelled, then says Goodbye."""
        if self._identity is None:
            message = "this host never enrolled: `variant-agent enroll` with a token gives it an identity"
            self._conditions.hold("NOT_ENROLLED", "warning", message)
            _log.warning("link.not_enrolled", remedy="variant-agent enroll --token-file FILE")
            await asyncio.Event().wait()
        wait = BACKOFF.delay(self._state.attempt - 1, self._random) if self._state.attempt else 0.0
        try:
            while True:
                await self._pause(wait)
                wait = await self._after(await self._converse())
        finally:
            self._now("stopped")
            await self._sharing.stop()
            await self._preflights.stop()
            await self._close_channel()

    async def _pause(self, seconds: float) -> None:
        """Returns after `seconds`, or once there is another identity to try."""
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._moved.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _converse(self) -> Ended:
        """One session, from the first packet to the last."""
        self._now("connecting")
        await self._save(replace(self._state, epoch=self._state.epoch + 1))
        hello = await asyncio.to_thread(self._hello)
        while self._moved.is_set():
            self._moved.clear()
            await self._close_channel(grace=RETIRE_SECONDS)
        stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(self._open_channel())
        self._opened_at = 0.0
        self._session = self._open_session(stub)
        try:
            return await self._session.run(hello)
        except Exception as error:
            # A message nobody foresaw, or a fault of ours: it costs this session, never the host's own work.
            _log.error("link.session_failed", exc_info=error)
            return Ended(code=grpc.StatusCode.INTERNAL, detail=f"the session failed here: {error!r}")
        finally:
            self._session = None
            self._session_id = ""
            self._preflights.drop()
            self._trusted.clear()

    def _open_session(self, stub: "agent_pb2_grpc.AgentServiceAsyncStub") -> Session | Polls:
        if self._config.transport == "poll":
            self._conditions.end("STREAM_CUT")
            return Polls(
                exchange=stub.Exchange,
                hello=self._hello,
                party=self,
                clock=self._clock,
                random=self._random,
            )
        return Session(call=stub.Sync(), party=self, clock=self._clock, random=self._random)

    async def _after(self, ended: Ended) -> float:
        """Seconds until the next session may be opened."""
        opened = bool(self._opened_at)
        if opened and self._clock.monotonic() - self._opened_at >= LASTED_SECONDS:
            await self._save(replace(self._state, attempt=0))
        self._now("waiting")
        _log.info(
            "link.session_ended",
            planned=ended.planned,
            opened=opened,
            code=ended.code.name,
            detail=ended.detail,
            attempt=self._state.attempt,
        )
        if ended.planned:
            return ended.wait or self._random.uniform(0.0, min(1.0, self._jitter))
        attempt = self._state.attempt
        await self._save(replace(self._state, attempt=attempt + 1))
        self._last_error = f"{ended.code.name}: {first_line(ended.detail)}"
        if ended.code in NOT_RETRIED_SOON:
            message = f"the control plane refuses this host: {first_line(ended.detail) or ended.code.name}"
            self._conditions.hold("REFUSED", "error", message)
            return self._random.uniform(BACKOFF.cap / 2, BACKOFF.cap)
        self._conditions.hold("UNREACHABLE", "warning", f"no control plane: {self._last_error}")
        if opened:
            self._count_cut()
        if opened and not attempt:
            return self._random.uniform(0.0, self._jitter)
        await self._next_address()
        return BACKOFF.delay(attempt, self._random)

    def _count_cut(self) -> None:
        """Where streams open and end too early again and again, a condition says so, until one lasts."""
        lasted = self._clock.monotonic() - self._opened_at >= LASTED_SECONDS
        self._cuts = 0 if lasted or self._config.transport == "poll" else self._cuts + 1
        if self._cuts >= CUTS:
            message = (
                f"{self._cuts} streams to the control plane in a row ended soon after they opened; where it is "
                'up, a proxy on the way cuts them: let it pass gRPC streams, or set transport = "poll" in agent.toml'
            )
            self._conditions.hold("STREAM_CUT", "warning", message)

    def _hello(self) -> Hello:
        assert self._identity is not None
        system = platform.uname()
        return Hello(
            agent_version=VERSION,
            capabilities=(PREFLIGHT,),
            boot_id=_boot_id(),
            session_epoch=self._state.epoch,
            incarnation=self._identity.incarnation,
            hostname=gethostname()[:253],
            platform=Platform(os=system.system.lower(), kernel=system.release, arch=system.machine),
            labels=self._config.labels,
            participants=tuple(
                ParticipantState(
                    participant=participant.id,
                    labels=participant.labels,
                    targets=participant.targets,
                    drift=participant.drift,
                    exposure=participant.exposure,
                    policy=fingerprint(participant),
                )
                for participant in self._config.participants
            ),
            slots=self._reconciler.slots(),
            spool=self._spool(),
        )

    # -- what a session tells (session.Party) ----------------------------------------------------

    async def welcomed(self, welcome: pb.Welcome) -> bool:
        """The session is open; whether its incarnation is, or now became, the one this host follows."""
        assert self._identity is not None
        self._opened_at = self._clock.monotonic()
        self._session_id = show_id(welcome.session_id) if len(welcome.session_id) == 16 else ""
        self._last_error = ""
        self._now("connected")
        self._conditions.end("UNREACHABLE")
        self._conditions.end("REFUSED")
        if welcome.limits.batch_records and welcome.limits.batch_bytes:
            records, size = BATCH_LIMITS
            self.limits = (min(records, welcome.limits.batch_records), min(size, welcome.limits.batch_bytes))
        if welcome.incarnation != self._identity.incarnation and not await self._follow(welcome):
            message = (
                "the control plane's database is another one than before and cannot prove to succeed it; "
                "offers are refused and reports kept: restore the right one, or enroll again to accept this one"
            )
            self._conditions.hold("INCARNATION_CHANGED", "error", message)
            _log.error("link.incarnation_refused", incarnation=welcome.incarnation.hex())
            return False
        self._conditions.end("INCARNATION_CHANGED")
        self._trusted.set()
        _log.info("link.connected", session=self._session_id, address=self._current_address())
        return True

    async def _follow(self, welcome: pb.Welcome) -> bool:
        """Whether the incarnation is adopted: the first one, or a successor signed by the authority."""
        assert self._identity is not None
        known = self._identity.incarnation
        if known and (
            welcome.predecessor != known or not await asyncio.to_thread(_is_signed, self._identity, welcome)
        ):
            return False
        self._identity = replace(self._identity, incarnation=welcome.incarnation)
        await self._stored(lambda: identities.adopt(self._state_dir, welcome.incarnation))
        _log.info("link.incarnation_adopted", incarnation=welcome.incarnation.hex(), predecessor=known.hex())
        return True

    def offered(self, offer: Offer) -> None:
        self._reconciler.offer(offer)

    def wished(self, wish: Wish) -> None:
        self._sharing.wish(wish)

    def asked(self, preflight: Preflight) -> None:
        self._preflights.ask(preflight)

    def _judged(self, result: PreflightResult) -> None:
        if self._session is not None:
            self._session.judged(result)

    def _answer(self, answer: Answer) -> None:
        if self._session is not None:
            self._session.answer(answer)

    def acknowledged(self, key: OutcomeKey) -> None:
        self._reconciler.acknowledged(key)

    def unacknowledged(self) -> tuple[Outcome, ...]:
        return self._reconciler.unacknowledged()

    async def alive(self, server_time: int) -> None:
        """A heartbeat was answered: a session that lasts resets the back-off, clocks are compared."""
        self._skew = self._clock.now() - server_time
        if abs(self._skew) > SKEW_SECONDS * SECOND:
            message = f"this host's clock differs from the control plane's by {self._skew // SECOND} s"
            self._conditions.hold("CLOCK_SKEW", "warning", message)
        else:
            self._conditions.end("CLOCK_SKEW")
        if self._clock.monotonic() - self._opened_at >= LASTED_SECONDS:
            self._cuts = 0
            self._conditions.end("STREAM_CUT")
            await self._save(replace(self._state, attempt=0))

    def observation(self) -> pb.Observation:
        try:
            disk = os.statvfs(self._state_dir)
            free = disk.f_bavail * disk.f_frsize
        except OSError:
            free = 0
        left = self._identity.not_after - self._clock.now() if self._identity else 0
        return pb.Observation(
            state_free_bytes=free,
            certificate_days_left=left // DAY,
            spool=wire.spool_state_to_pb(self._spool()),
            conditions=wire.conditions_to_pb(self._observed()),
        )

    # -- the channel -----------------------------------------------------------------------------

    def _current_address(self) -> str:
        assert self._identity is not None
        return self._identity.addresses[self._address % len(self._identity.addresses)]

    def _open_channel(self) -> grpc.aio.Channel:
        assert self._identity is not None
        if self._channel is None:
            self._channel = open_channel(
                self._current_address(), ca=self._identity.ca, identity=self._identity
            )
        return self._channel

    async def _close_channel(self, *, grace: float | None = None) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(grace)

    async def _next_address(self) -> None:
        if self._identity and len(self._identity.addresses) > 1:
            self._address += 1
            await self._close_channel()

    @asynccontextmanager
    async def _stub(self) -> "AsyncIterator[agent_pb2_grpc.AgentServiceAsyncStub]":
        """For one call, once a session is open; what the call raises leaves as one of shared.errors."""
        await self._trusted.wait()
        try:
            yield agent_pb2_grpc.AgentServiceStub(self._open_channel())
        except grpc.aio.AioRpcError as error:
            raise failure(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not this task: the call, because its channel was closed under it.
            raise Unavailable("the link went over to another connection meanwhile") from None

    # -- state -----------------------------------------------------------------------------------

    def _now(self, what: str) -> None:
        self._what, self._since = what, self._clock.now()

    async def _save(self, state: identities.SessionState) -> None:
        if state == self._state:
            return
        self._state = state
        await self._stored(lambda: identities.save_session_state(self._state_dir, state))

    async def _stored(self, write: Callable[[], None]) -> None:
        """`write` was done, or is a condition: a full disk must not cost the link, memory goes on."""
        try:
            async with self._disk:
                await asyncio.to_thread(write)
            self._conditions.end("STATE_UNWRITABLE")
        except OSError as error:
            self._conditions.hold("STATE_UNWRITABLE", "error", f"{self._state_dir}: {error.strerror}")


def _is_signed(identity: Identity, welcome: pb.Welcome) -> bool:
    from shared import tls

    message = b"variantd incarnation" + welcome.incarnation + welcome.predecessor
    return any(
        tls.signed_by(authority, welcome.incarnation_signature, message) for authority in identity.authorities
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
