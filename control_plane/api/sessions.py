"""The sessions agents hold: what each is to be told, and what becomes of what it says.

A session says to its agent what each slot should hold and stores what the agent reports. Its mailbox has one
place per slot, newest wins. How messages travel is not known here: a stream or a poll hands in what it heard
and takes out what there is to say. Nothing here is needed to go on after a loss: the next Hello tells
everything again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge

from control_plane.api.admission import Bucket, Entrance, lasts
from control_plane.api.leases import Leases
from control_plane.api.preflights import Preflights
from control_plane.api.reads import Reads
from control_plane.api.spacing import Spacing
from control_plane.api.together import Looks, Owed, Recorded, Recorder, Reports
from control_plane.api.welcome import STREAM_BATCH_BYTES
from control_plane.domain.fleet import Telemetry
from control_plane.services import spools
from control_plane.services.sessions import Opened
from control_plane.services.work import Services
from control_plane.store.offers import Wanted
from shared import logs, wire
from shared.clock import Clock
from shared.errors import Error
from shared.ids import NewId
from shared.model import (
    ACKS_RIDE,
    PREFLIGHT,
    Hello,
    Offer,
    OfferAction,
    Outcome,
    Result,
)
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2 as pb

_log = logs.get(__name__)

MISSED_HEARTBEATS = 3
"""Without a word of the agent in any of them, until its session ends."""
OPENING_AT_ONCE, PATIENCE_SECONDS = 16, 10.0
"""Sessions that are being opened, which bounds what an operator waits for meanwhile; the others wait for so long, which
has to be less than agents wait for their Welcome."""
SESSIONS_PER_SECOND, SESSIONS_AT_ONCE = 2.0, 50.0
"""Of one agent; above that it is told to come back later."""
MESSAGES_PER_SECOND, MESSAGES_AT_ONCE = 500.0, 20_000.0
"""Of one session; what comes faster waits in the transport."""
PAUSE_SECONDS = 0.05
MOST_RIDING = 256
"""Acknowledgements that wait for something to be said; the next is said by itself, with them."""
MAX_OUTCOMES = 20_000
"""Not stored yet, of one session; nothing more is read until some are."""
DRAIN_WINDOW_SECONDS, DRAINED_PER_SECOND = 0.5, 200.0
"""At least so long, and at most so many agents a second are asked to leave."""
DRAIN_SECONDS = 2.0
TURN_WINDOW_MS = 60_000
BUSY_WINDOW_MS = 5_000
MOST_SKEW = 100 * 365 * 86_400 * SECOND


class Sessions:
    """The live sessions of this process."""

    def __init__(self, registry: CollectorRegistry, *, new_id: NewId, clock: Clock) -> None:
        self._live: dict[bytes, Session] = {}
        self._polling: dict[bytes, float] = {}
        self.came: Callable[[bytes], None] = lambda _: None
        """Told of agents whose session was another replica's before; whoever tells the others sets it."""
        self.reads = Reads(new_id=new_id, reach=self._reach)
        self.preflights = Preflights(new_id=new_id, clock=clock, reach=self._reach)
        self.looks = Looks()
        self.recorder = Recorder(new_id=new_id, clock=clock)
        self.reports = Reports(clock=clock)
        self._leases = Leases(clock=clock)
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = self.closed = False
        self._entrance = Entrance(at_once=OPENING_AT_ONCE, patience=PATIENCE_SECONDS)
        self._own_admission: dict[bytes, Bucket] = {}  # one agent never takes what is for the others
        self.connected = Gauge("variantd_sessions", "agents connected to this process", registry=registry)
        self.outcomes = Counter(
            "variantd_outcomes",
            "outcomes stored, by how the attempt stands: applied, refused, rolled_back, stuck, …",
            ["result"],
            registry=registry,
        )
        for result in Result:  # to Prometheus, what begins at 1 has not increased
            self.outcomes.labels(result=result.value)
        self.records = Counter(
            "variantd_spool_records", "spool records stored, repeats included", registry=registry
        )

    def wake(self, agent_uid: bytes) -> None:
        """The agent's session, if it has one here, looks again at what its slots should hold."""
        session = self._live.get(agent_uid)
        if session:
            session.wake()

    @property
    def spacing(self) -> Spacing:
        """What is fair for as many hosts as there are."""
        return Spacing.of(self._hosts)

    @property
    def present(self) -> "list[Session]":
        """Every live session."""
        return list(self._live.values())

    def reaches(self, agent_uid: bytes) -> bool:
        """The agent is connected here."""
        return agent_uid in self._live or agent_uid in self._polling

    def _reach(self, agent_uid: bytes) -> bool:
        session = self._live.get(agent_uid)
        if session:
            session.stir()
        return self.reaches(agent_uid)

    @asynccontextmanager
    async def opening(self, agent_uid: bytes, *, now: float) -> AsyncIterator[bool]:
        """Whether the agent may open its session, which it does within; monotonic seconds.

        Returns once it is its turn. One that polls waits for its first poll only.
        """
        if self._polling.get(agent_uid, now) > now:
            yield not self._ends
            return
        own = self._own_admission.setdefault(
            agent_uid, Bucket(rate=SESSIONS_PER_SECOND, burst=SESSIONS_AT_ONCE)
        )
        if self._ends or not own.take(now):
            yield False
            return
        async with self._entrance.enter() as entered:
            yield entered and not self._ends

    @property
    def _ends(self) -> bool:
        return self.draining or self.closed

    def enter(self, session: "Session") -> None:
        """The session is the agent's; an older one of the same agent ends."""
        older = self._live.get(session.agent_uid)
        if older:
            _log.info("session.superseded", agent=session.agent_uid.hex())
            older.end()
        elif session.was_there and session.agent_uid not in self._polling:
            self.came(session.agent_uid)
        self._polling.pop(session.agent_uid, None)
        self._live[session.agent_uid] = session
        if not session.goes_on:
            self.preflights.forget(session.agent_uid)
            self.preflights.stir()
        self._empty.clear()
        self._count()

    def leave(self, session: "Session", *, polls_until: float = 0.0) -> None:
        """The session is gone; or, where the agent polls, is expected back until that time, monotonic seconds."""
        if self._live.get(session.agent_uid) is session:
            del self._live[session.agent_uid]
            if polls_until:
                self._polling[session.agent_uid] = polls_until
            else:
                self.preflights.forget(session.agent_uid)
        if not self._live:
            self._empty.set()
        self._count()

    def went(self, agent_uid: bytes) -> None:
        """The agent's polls go to another replica: none is expected here, and nothing is asked of it."""
        if self._polling.pop(agent_uid, None) is not None:
            self.preflights.forget(agent_uid)
            self._count()

    def polls(self, agent_uid: bytes) -> bool:
        """The agent's last session here was a poll, not long ago."""
        return agent_uid in self._polling

    def _count(self) -> None:
        self.connected.set(self._hosts)

    @property
    def _hosts(self) -> int:
        return len(self._live) + len(self._polling)  # nobody is in both

    async def keep_leases(self, services: Services) -> None:
        """Presence is on record for as long as there are sessions; hosts that poll are forgotten in time."""

        def present() -> list[Session]:
            self._forget_polls(services.clock.monotonic())
            return self.present

        await self._leases.keep(services.database, present)

    def _forget_polls(self, now: float) -> None:
        for uid in [uid for uid, until in self._polling.items() if until <= now]:
            del self._polling[uid]
            self.preflights.forget(uid)
            _log.info("session.ended", agent=uid.hex(), goodbye=False)
        self._count()

    async def drain(self, *, hand_over: bool = False) -> None:
        """Every agent was asked to leave, and had a moment to; with `hand_over` each opens its next session first.

        That is for where another replica takes it. Agents leave spread over a window, as fast as others admit them.
        """
        self.draining = True
        window = max(DRAIN_WINDOW_SECONDS, len(self._live) / DRAINED_PER_SECOND)
        for session in list(self._live.values()):
            session.drain(window, keep_old=hand_over)
        with suppress(TimeoutError):
            async with asyncio.timeout(window + DRAIN_SECONDS):
                await self._empty.wait()
        for session in list(self._live.values()):
            session.end()


def clock_skew(beat: pb.Heartbeat, *, now: int) -> int | None:
    """The host's clock less this one, the way here included; None where the host does not say.

    Microseconds within MOST_SKEW, so that nonsense finds room in every store.
    """
    return max(-MOST_SKEW, min(beat.sent_at_us - now, MOST_SKEW)) if beat.sent_at_us else None


class Session:
    """One agent's session."""

    def __init__(self, services: Services, sessions: Sessions, opened: Opened, hello: Hello) -> None:
        self._services = services
        self._sessions = sessions
        self.findings = opened.findings
        self._taken = frozenset(opened.taken)
        self._ahead = opened.ahead
        self._generation = opened.generation
        self._declared = frozenset(state.participant for state in hello.participants)
        self._asked_full = False
        self._judges = PREFLIGHT in hello.capabilities
        # What a host has begun and not ended is offered again: it may have lost the content of it.
        self._known = {
            (slot.participant, slot.slot_id): slot.revision
            for slot in hello.slots
            if slot.result is not Result.IN_PROGRESS
        }
        self._mailbox: dict[tuple[str, bytes], Offer] = {}
        self._told: list[bytes] = []
        self._replies: list[pb.SyncResponse] = []
        self._acks: list[pb.OutcomeAck] | None = [] if ACKS_RIDE in hello.capabilities else None
        self._beat: int | None = None  # the newest; one answer is as good as one each
        self._outcomes: list[Outcome] = []
        self._observation: Telemetry | None = None
        self._storing: asyncio.Future[spools.Report] | None = None  # the batch that came last
        self._pace = Bucket(rate=MESSAGES_PER_SECOND, burst=MESSAGES_AT_ONCE)
        self._signal = asyncio.Event()
        self._look = True
        self._over = False
        self.said_goodbye = False
        self.clock_skew: int | None = None
        self.id = opened.id
        self.agent_uid = opened.agent_uid
        self.goes_on, self.behind = opened.goes_on, opened.behind
        self.was_there = opened.goes_on or opened.took_over
        self.spacing = sessions.spacing
        self.last_seen = services.clock.now()
        self._unheard = 0  # heartbeats, since something was heard
        self._grown_at: float | None = services.clock.monotonic() + lasts(opened.id)

    # -- what others tell the session

    def wake(self) -> None:
        self._look = True
        self._signal.set()

    def stir(self) -> None:
        self._signal.set()

    def compare(self, generation: int, session_id: bytes | None) -> None:
        """The agent is at this generation and has that session: what changed unnoticed is looked at now."""
        if session_id != self.id:
            self._supersede()
        elif generation != self._generation:
            self.wake()

    def _supersede(self) -> None:
        if not self._over:
            _log.info("session.superseded", agent=self.agent_uid.hex())
            self.end()

    def end(self) -> None:
        self._over = True
        self._signal.set()

    def drain(self, window: float, *, keep_old: bool) -> None:
        self._reply(pb.SyncResponse(drain=pb.Drain(window_ms=round(window * 1000), keep_old=keep_old)))

    def take_observation(self) -> Telemetry | None:
        taken, self._observation = self._observation, None
        return taken

    def _reply(self, message: pb.SyncResponse) -> None:
        self._replies.append(message)
        self._signal.set()

    # -- what its way of travelling asks

    @property
    def over(self) -> bool:
        """The session has to go, or its agent has."""
        return self._over

    @property
    def quiet(self) -> bool:
        """There is nothing to look at and nothing to say."""
        return not (
            self._look
            or self._replies
            or self._beat is not None
            or self._mailbox
            or self._sessions.reads.waits(self.agent_uid)
            or (self._judges and self._sessions.preflights.waits(self.agent_uid))
        )

    @property
    def answers(self) -> bool:
        """What was heard last has an answer."""
        return self._beat is not None

    async def told(self) -> None:
        """Returns once somebody told the session something."""
        await self._signal.wait()
        self._signal.clear()

    async def wait(self, seconds: float) -> None:
        """Returns once somebody told the session something, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._signal.wait()
        self._signal.clear()

    def miss_heartbeat(self) -> bool:
        """A heartbeat has passed; whether nothing was heard of the agent for too many of them.

        They are counted by who asks and not by a clock: a process that was kept from reading for a minute takes nobody
        for silent, but reads first what was said meanwhile.
        """
        self._unheard += 1
        return self._unheard > MISSED_HEARTBEATS

    def grow_old(self) -> None:
        """Once it has lasted, its agent is asked, once, to open the next session before it leaves this one.

        Nothing is missed by that, and what only opening a stream renews is renewed, such as the way through a proxy.
        """
        if self._grown_at is not None and self._services.clock.monotonic() >= self._grown_at:
            self._grown_at = None
            self._reply(pb.SyncResponse(drain=pb.Drain(window_ms=TURN_WINDOW_MS, keep_old=True)))

    async def look(self) -> None:
        """The mailbox is up to date. Raises PermissionDenied for an agent that may not speak any more."""
        if self._look:
            self._look = False
            await self._refresh()

    def sayings(self) -> Iterator[pb.SyncResponse]:
        """What there is to say, each taken when it is asked for; which offers were, it owes to the record.

        What is durable meanwhile is acknowledged along with it, where the agent takes that.
        """
        for saying in self._sayings():
            if self._acks:
                saying.outcome_acks.extend(self._acks)
                self._acks.clear()
            yield saying

    def _sayings(self) -> Iterator[pb.SyncResponse]:
        replies, self._replies = self._replies, []
        yield from replies
        if self._beat is not None:
            before, self.spacing = self.spacing, self._sessions.spacing.wider(self.spacing)
            ack = pb.HeartbeatAck(sequence=self._beat, server_time_us=self.last_seen)
            if self.spacing != before:
                ack.heartbeat_interval_ms, ack.reconnect_window_ms = self.spacing.in_ms()
            self._beat = None
            yield pb.SyncResponse(heartbeat_ack=ack)
        yield from self._sessions.reads.unsaid(self.agent_uid)
        while self._mailbox:
            offer = self._mailbox.pop(next(iter(self._mailbox)))
            self._told.append(offer.deployment_id)
            yield pb.SyncResponse(offer=wire.offer_to_pb(offer))
        if self._judges:
            yield from self._sessions.preflights.unsaid(self.agent_uid)

    def heard(self, message: pb.SyncRequest) -> None:
        """The message is taken up. Raises Invalid naming the field of one that is malformed."""
        self.last_seen = self._services.clock.now()
        self._unheard = 0
        kind = message.WhichOneof("message")
        if kind == "heartbeat":
            self._beat = message.heartbeat.sequence
            self.clock_skew = clock_skew(message.heartbeat, now=self.last_seen)
        elif kind == "outcome":
            self._outcomes.append(wire.outcome_from_pb(message.outcome))
        elif kind == "observation":
            self._observation = telemetry_of(message.observation)
        elif kind == "file_content":
            self._sessions.reads.answered(self.agent_uid, message.file_content)
        elif kind == "preflight_result":
            self._sessions.preflights.answered(self.agent_uid, message.preflight_result)
        elif kind == "batch":
            self._store_batch(message.batch)
        elif kind == "goodbye":
            self.said_goodbye = True
            self.end()

    def _store_batch(self, request: pb.ReportSpoolRequest) -> None:
        """The batch is stored with those of others, and answered then; what cannot be is answered at once.

        Why it cannot be is said by ReportSpool, with a status for each reason.
        """
        if self._storing is None and request.ByteSize() <= STREAM_BATCH_BYTES:
            with suppress(Error):
                batch = wire.batch_from_pb(request)
                stored = self._sessions.reports.report(self._services.database, self.agent_uid, batch)
                self._storing = stored
                stored.add_done_callback(partial(self._batch_stored, request))
                return
        self._answer_batch(request, None)

    def _batch_stored(self, request: pb.ReportSpoolRequest, stored: "asyncio.Future[spools.Report]") -> None:
        self._storing = None
        if stored.cancelled():
            return
        if stored.exception() is None:
            self._sessions.records.inc(len(request.records))
            self._answer_batch(request, report_to_pb(stored.result()))
        else:
            self._answer_batch(request, None)

    def _answer_batch(self, request: pb.ReportSpoolRequest, stored: pb.ReportSpoolResponse | None) -> None:
        answer = pb.BatchAnswer(epoch=request.epoch, first_seq=request.first_seq, stored=stored)
        self._reply(pb.SyncResponse(batch_answer=answer))

    async def turn(self) -> None:
        """Returns when the next message may be read."""
        clock = self._services.clock
        # Nobody tells when time has passed, so there is nothing to wait for but time.
        while len(self._outcomes) >= MAX_OUTCOMES or not self._pace.take(clock.monotonic()):  # noqa: ASYNC110
            await asyncio.sleep(PAUSE_SECONDS)

    # -- what it has to record

    @property
    def owing(self) -> bool:
        """Something is to be recorded."""
        return bool(self._outcomes or self._told)

    def owes(self) -> None:
        """What it owes is recorded soon, together with what others do; its acknowledgements are said then."""
        self._sessions.recorder.owes(self._services.database, self)

    async def store(self) -> None:
        """The outcomes heard are durable, and their acknowledgements are to be said."""
        await self._sessions.recorder.record(self._services.database, [self])

    def take_owed(self) -> Owed:
        owed = Owed(outcomes=self._outcomes, told=self._told)
        self._outcomes, self._told = [], []
        return owed

    def give_back(self, owed: Owed) -> None:
        self._outcomes, self._told = owed.outcomes + self._outcomes, owed.told + self._told

    def recorded(self, owed: Owed, found: Recorded) -> None:
        for outcome, state in zip(owed.outcomes, found.states, strict=True):
            self._tell(outcome, state)
            if outcome.result is not Result.IN_PROGRESS:  # an end at the same step has the same key
                self._acknowledge(outcome)
                slot = (outcome.participant, outcome.slot_id)
                if state is not None:  # what Hello had as begun has ended since
                    self._known[slot] = max(outcome.revision, self._known.get(slot, 0))
        if found.beyond:
            self._ask_full()  # of a revision that was never made here: its Hello says how that can be

    def _acknowledge(self, outcome: Outcome) -> None:
        """The agent is told that it is durable: with whatever is said next, where that is soon enough for it."""
        ack = wire.outcome_ack_to_pb(outcome.key)
        if self._acks is not None and len(self._acks) < MOST_RIDING:
            self._acks.append(ack)
        else:
            self._reply(pb.SyncResponse(outcome_ack=ack))

    def _ask_full(self) -> None:
        if not self._asked_full:
            self._asked_full = True
            self._reply(pb.SyncResponse(ask_full=pb.AskFull()))

    def _tell(self, outcome: Outcome, state: str | None) -> None:
        if state is None:
            return
        self._sessions.outcomes.labels(result=outcome.result.value).inc()
        if outcome.result is Result.IN_PROGRESS:
            return
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
        found = await self._sessions.looks.look(self._services.database, self)
        if found is None:
            self._supersede()
            return
        self._generation = found.generation
        if self._declared - found.bound != self._taken:
            self._ask_full()  # a participant moved to or from this agent: a new Hello binds what is its own now
        for offer in found.offers:
            key = (offer.participant, offer.slot_id)
            self._known[key] = offer.revision
            self._mailbox[key] = offer

    def is_news(self, item: Wanted) -> bool:
        """The agent is to be told of that: its host does not know it yet, and may."""
        if self._ahead or item.participant in self._taken:
            return False
        known = self._known.get((item.participant, item.slot_id))
        if known is None and item.action is not OfferAction.WRITE and item.ended:
            return False  # closed long ago, and the host holds nothing of it
        return known is None or item.revision > known


def report_to_pb(report: spools.Report) -> pb.ReportSpoolResponse:
    """What became of a batch."""
    verdict = pb.SpoolVerdict.Value(f"SPOOL_VERDICT_{report.verdict.name}")
    return pb.ReportSpoolResponse(through_seq=report.through_seq, verdict=verdict)


def telemetry_of(observation: pb.Observation) -> Telemetry:
    """The observation as a value. Raises Invalid naming the field of what is malformed."""
    return Telemetry(
        spool=wire.spool_state_from_pb(observation.spool),
        conditions=tuple(wire.conditions_from_pb(observation.conditions)),
        certificate_days_left=observation.certificate_days_left,
        state_free_bytes=observation.state_free_bytes,
    )
