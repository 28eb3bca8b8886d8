"""The way to the control plane: sessions one after the other, what rides beside them, when to try again.

Hides addresses, credentials, back-off that outlives the process, and which incarnation of the control plane
is trusted. Losing the link costs time only: files stay, reports wait in the spool, outcomes until they are
acknowledged. Lives in exactly one event loop, on one channel for as long as its address is the same.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import grpc

from agent import identity as identities
from agent import trust
from agent.calls import Calls, prove
from agent.channel import NOT_RETRIED_SOON, Way, first_line
from agent.config import AgentConfig
from agent.greeting import greeting
from agent.health import Conditions
from agent.identity import Identity
from agent.polls import Polls
from agent.preflight import Preflights
from agent.reconciler import Reconciler
from agent.session import Ended, Session, within_window
from agent.sharing import Answer, Sharing, Wish
from agent.threads import blocking
from agent.trust import Proposal, Standing, standing
from shared import logs, wire
from shared.backoff import Backoff
from shared.clock import Clock
from shared.errors import FailedPrecondition
from shared.ids import show_id
from shared.model import (
    Condition,
    Hello,
    Offer,
    Outcome,
    OutcomeKey,
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
FREE_TURNS = 10  # sessions that ended as asked for before they lasted, one after the other, at no cost
REMEMBERED = 4  # failures that are on disk at once: a fleet that loses its control plane leaves the disk alone at first
CUTS = 3  # streams that opened and did not last, one after the other: something on the way cuts them
RECONNECT_JITTER = 10.0
TRIES = 10  # within the time over which a fleet comes back, of who finds nobody: not one each second
BATCH_LIMITS = (500, 512 * 1024)  # records, bytes; the control plane may ask for less
SKEW_SECONDS = 60
RETIRE_SECONDS = 5.0  # for the calls under way on a channel that is given up
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
        self.jitter = reconnect_jitter
        self._identity = identities.load(state_dir)
        self._state = identities.load_session_state(state_dir, now=clock.now())
        self._conditions = Conditions(clock)
        self._way = Way(lambda: self._identity)
        self._session: Session | Polls | None = None
        self._cuts = 0
        self._turns = 0
        self._waited = 0.0  # seconds, since a session that lasted
        self._window = 0.0  # seconds, over which the fleet is asked to come back; 0: over our own
        self._proposal: Proposal | None = None
        self._drained = asyncio.Event()  # another session is to take the place of the open one
        self._trusted = asyncio.Event()  # a session is open with a control plane that may be believed
        self._moved = asyncio.Event()  # the channel is of an identity that was given up
        self._disk = asyncio.Lock()  # one write to the state directory at a time
        self._since = clock.now()
        self._opened_at = 0.0
        self._what = "waiting" if self._identity else "not_enrolled"
        self._session_id = ""
        self._last_error = ""
        self._skew = 0
        self.findings: tuple[Condition, ...] = ()  # what the control plane says is wrong with this host
        self.calls = Calls(channel=self._way.channel, trusted=self._trusted, carried=self._carried)
        self._sharing = Sharing(config, tell=self._answer, upload=self.calls.upload)
        self._preflights = Preflights(config, judge=reconciler.judge, tell=self._judged, clock=clock)
        self.limits = BATCH_LIMITS
        self.renewal_wished = False  # the certificate is of an authority that is about to be retired
        self.nudged = asyncio.Event()

    # -- what others ask and say -----------------------------------------------------------------

    def outcome(self, outcome: Outcome) -> None:
        """The outcome goes up now where a session is open; it is told again at the next one anyway."""
        if self._session is not None:
            self._session.tell(outcome)

    async def _carried(self, batch: pb.ReportSpoolRequest) -> pb.ReportSpoolResponse | None:
        return await self._session.report(batch) if isinstance(self._session, Session) else None

    async def prove(self, candidate: Identity) -> None:
        """The control plane knows the candidate for an agent. Raises one of shared.errors where it does not."""
        await prove(self._way.address, candidate)

    async def move(self, identity: Identity) -> None:
        """The identity staged last, this one, is committed, and the link speaks as it from now on.

        An open session says Goodbye `renew`; the next one follows at once. Raises OSError where it cannot be
        committed; then the present identity goes on.
        """
        assert self._identity is not None
        async with self._disk:
            await blocking(lambda: identities.commit(self._state_dir))
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
            "address": self._way.address if identity else None,
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
        self._waited = wait
        try:
            while True:
                await self._pause(wait)
                ended = await self._converse()
                at = self._clock.monotonic() if ended.at is None else ended.at
                # Of many hosts that share a machine and lose their sessions at once, the last is far behind by now.
                wait = at + await self._after(ended) - self._clock.monotonic()
        finally:
            self._now("stopped")
            await self._sharing.stop()
            await self._preflights.stop()
            await self._way.close()

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
        """One session, from the first packet to the last, with those that took its place while it was open."""
        self._now("connecting")
        while self._moved.is_set():
            self._moved.clear()
            await self._way.close(grace=RETIRE_SECONDS)
        stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(self._way.channel())
        self._opened_at = 0.0
        self._drained.clear()
        self._session = self._open_session(stub)
        try:
            running = asyncio.create_task(self._session.run(self._next_hello), name="session")
            while (ended := await self._until_drained(running)) is None:
                running = await self._hand_over(running)
            return ended
        except Exception as error:
            # A message nobody foresaw, or a fault of ours: it costs this session, never the host's own work.
            _log.error("link.session_failed", exc_info=error)
            return Ended(code=grpc.StatusCode.INTERNAL, detail=f"the session failed here: {error!r}")
        finally:
            self._session = None
            self._session_id = ""
            self._preflights.drop()
            self._trusted.clear()
            await self._way.give_up()

    async def _next_hello(self, *, resumes: bool = False) -> Hello:
        await self._save(replace(self._state, epoch=self._state.epoch + 1))
        return await asyncio.to_thread(lambda: self._hello(resumes=resumes))

    async def _until_drained(self, running: "asyncio.Task[Ended]") -> Ended | None:
        """How the session ended; None where another is to take its place first. Cancelled, it says Goodbye."""
        drained = asyncio.create_task(self._drained.wait())
        try:
            await asyncio.wait((running, drained), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            raise
        finally:
            drained.cancel()
        self._drained.clear()
        return running.result() if running.done() else None

    async def _hand_over(self, old: "asyncio.Task[Ended]") -> "asyncio.Task[Ended]":
        """A session over a connection of its own has taken the place of `old`, which has left; else `old` leaves."""
        assert isinstance(self._session, Session)
        leaving, channel = self._session, self._way.another()
        config = self._config
        gone: grpc.aio.Channel | None = channel
        stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(channel)
        session = Session(call=stub.Sync(), party=self, clock=self._clock, random=self._random)
        hello = partial(self._next_hello, resumes=True)
        running = asyncio.create_task(session.run(hello), name="session")
        opened = asyncio.create_task(session.opened.wait())
        try:
            await asyncio.wait((running, opened), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                leaving.leave("drain")
                return old
            self._session, gone = session, self._way.take(channel)
            leaving.leave("drain")
            if self._config is not config or self._moved.is_set():
                session.leave("reload")  # what came meanwhile was said to the one that leaves
            await asyncio.wait((old,))
        except asyncio.CancelledError:
            for task in (running, old):
                task.cancel()
            await asyncio.gather(running, old, return_exceptions=True)
            raise
        finally:
            opened.cancel()
            if gone is not None:
                await gone.close(None if gone is channel else RETIRE_SECONDS)
        _log.info("link.handed_over", session=self._session_id)
        return running

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
        """Seconds from the end of one session until the next may be opened."""
        opened = bool(self._opened_at)
        lasted = opened and self._clock.monotonic() - self._opened_at >= LASTED_SECONDS
        attempt = 0 if lasted else self._state.attempt
        if lasted:
            self._turns, self._waited = 0, 0.0
        self._now("waiting")
        _log.info(
            "link.session_ended",
            planned=ended.planned,
            opened=opened,
            code=ended.code.name,
            detail=ended.detail,
            attempt=attempt,
        )
        if ended.planned:
            await self._save(replace(self._state, attempt=attempt))
            self._turns += 1
            wait = ended.wait or self._random.uniform(0.0, min(1.0, self.jitter))
            # Whoever asks again and again for another session is not followed at that pace.
            more = self._turns - FREE_TURNS
            return wait + (BACKOFF.delay(more, self._random) if more > 0 else 0.0)
        failed = replace(self._state, attempt=attempt + 1)
        if failed.attempt < REMEMBERED:
            self._state = failed  # on disk with the next Hello
        else:
            await self._save(failed)
        self._last_error = f"{ended.code.name}: {first_line(ended.detail)}"
        if ended.code in NOT_RETRIED_SOON:
            message = f"the control plane refuses this host: {first_line(ended.detail) or ended.code.name}"
            self._conditions.hold("REFUSED", "error", message)
            return self._random.uniform(BACKOFF.cap / 2, BACKOFF.cap)
        self._conditions.hold("UNREACHABLE", "warning", f"no control plane: {self._last_error}")
        if opened:
            self._count_cut()
        if opened and not attempt:
            wait = self._random.uniform(0.0, max(self.jitter, self._window))
        else:
            await self._way.try_next()
            # Failures that happened to follow each other quickly are no reason to be away for longer than it was.
            backoff = replace(BACKOFF, base=max(BACKOFF.base, self._window / TRIES))
            wait = backoff.delay(attempt, self._random, most=self._waited)
        self._waited += wait
        return wait

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

    def _hello(self, *, resumes: bool = False) -> Hello:
        assert self._identity is not None
        return greeting(
            self._config,
            session_epoch=self._state.epoch,
            incarnation=self._identity.incarnation,
            slots=self._reconciler.slots(),
            spool=self._spool(),
            resumes=resumes,
        )

    # -- what a session tells (session.Party) ----------------------------------------------------

    async def welcomed(self, welcome: pb.Welcome) -> bool:
        """The session is open; whether its incarnation is, or now became, the one this host follows."""
        assert self._identity is not None
        self._opened_at = self._clock.monotonic()
        self.renewal_wished = welcome.renew_certificate
        if welcome.renew_certificate:
            self.nudged.set()
        self._window = within_window(welcome.reconnect_window_ms)
        self._session_id = show_id(welcome.session_id) if len(welcome.session_id) == 16 else ""
        self._last_error = ""
        self._now("connected")
        self._conditions.end("UNREACHABLE")
        self._conditions.end("REFUSED")
        if welcome.limits.batch_records and welcome.limits.batch_bytes:
            records, size = BATCH_LIMITS
            self.limits = (min(records, welcome.limits.batch_records), min(size, welcome.limits.batch_bytes))
        if not await self._follow(welcome):
            self._trusted.clear()
            _log.error("link.incarnation_refused", incarnation=welcome.incarnation.hex())
            return False
        self._trusted.set()
        _log.info("link.connected", session=self._session_id, address=self._way.address)
        return True

    def found(self, welcome: pb.Welcome) -> None:
        self.findings = wire.conditions_from_pb(welcome.findings)

    async def _follow(self, welcome: pb.Welcome) -> bool:
        """Whether the incarnation is, or now became, the one this host follows; else a condition says why not."""
        assert self._identity is not None
        known = self._identity
        found = await standing(known, welcome)
        manual = self._config.adopt == "manual"
        if found is Standing.KNOWN or (found is Standing.SUCCESSOR and not manual):
            if welcome.incarnation != known.incarnation:
                await self._take(welcome.incarnation, found)
            for code in trust.CODES:
                self._conditions.end(code)
            self._proposal = None
            return True
        code, severity, message = trust.condition(found, manual=manual)
        for other in trust.CODES:
            if other != code:
                self._conditions.end(other)
        self._conditions.hold(code, severity, message)
        if found is not Standing.STRANGER:
            self._proposal = Proposal(
                incarnation=welcome.incarnation, known=known.incarnation, standing=found
            )
        return False

    async def _take(self, incarnation: bytes, found: Standing) -> None:
        assert self._identity is not None
        known = self._identity.incarnation
        self._identity = replace(self._identity, incarnation=incarnation)
        await self._stored(lambda: identities.adopt(self._state_dir, incarnation))
        _log.info(
            "link.incarnation_adopted",
            incarnation=incarnation.hex(),
            predecessor=known.hex(),
            standing=found.name,
        )

    @property
    def proposal(self) -> Proposal | None:
        """What the control plane's database proposes to be followed, and what only `adopt` takes."""
        return self._proposal

    async def adopt(self, incarnation: bytes) -> Proposal:
        """The proposed incarnation is followed, durably, from the next session on, which comes at once.

        Raises FailedPrecondition where it is not the one that is proposed, OSError where it cannot be stored.
        """
        proposal = self._proposal
        if proposal is None or proposal.incarnation != incarnation or self._identity is None:
            raise FailedPrecondition(
                "the control plane does not propose that incarnation; `variant-agent adopt` shows what it proposes",
                reason="NOT_PROPOSED",
            )
        async with self._disk:
            await blocking(lambda: identities.adopt(self._state_dir, incarnation))
        await self._take(incarnation, proposal.standing)
        self._proposal = None
        for code in trust.CODES:
            self._conditions.end(code)
        if self._session is not None:
            self._session.leave("reload")
        return proposal

    def drained(self) -> None:
        self._drained.set()

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

    async def alive(self, ack: pb.HeartbeatAck) -> None:
        """A heartbeat was answered: a session that lasts resets the back-off, clocks are compared."""
        if ack.reconnect_window_ms:
            self._window = within_window(ack.reconnect_window_ms)
        self._skew = self._clock.now() - ack.server_time_us
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
                await blocking(write)
            self._conditions.end("STATE_UNWRITABLE")
        except OSError as error:
            self._conditions.hold("STATE_UNWRITABLE", "error", f"{self._state_dir}: {error.strerror}")
