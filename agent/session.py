"""One Sync stream: from Hello to its end, whoever ends it.

Hides what grpc.aio asks for: reads in a task that enqueues (a read under a timeout would end the call),
writes in one task (they may not overlap, and cancelling one ends the call), liveness by a watchdog that
cancels the call once, cancellation never swallowed, a leave that is told by Goodbye.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any, Protocol

import grpc

from agent.sharing import Answer, Wish
from shared import logs, wire
from shared import preflight as preflights
from shared.clock import Clock
from shared.errors import Invalid
from shared.model import Hello, Offer, Outcome, OutcomeKey, Preflight, PreflightResult
from shared.pb.variantd.agent.v1 import agent_pb2 as pb

_log = logs.get(__name__)

OPENING_SECONDS = 30.0  # for connection, Hello and Welcome together
RATE, BURST = (
    500.0,
    4_000.0,
)  # messages a second that are taken up, and at once: a flood costs no more than that
INBOX_BYTES = 16 * 1_048_576
PAUSE_SECONDS = 0.05  # that long, and then as many as came due meanwhile
OUTBOX = 4_096  # messages; what is owed beyond them a later session tells
PATIENCE = 3  # heartbeats without answer
REPORT_SECONDS = 60.0  # for the answer to a batch
LEAVE_SECONDS = 5.0  # for Goodbye to be taken
INBOX = 256  # messages read ahead; a control plane that floods is slowed down by its own transport
OBSERVE_EVERY = 3  # heartbeats
HEARTBEAT_MS = (100, 60_000)  # what an interval is held within, whatever the control plane asks for
WINDOW_MS = 300_000  # the longest anybody is kept waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a session ended.

    `planned`: it was asked for, so the next one may be opened after `wait` seconds without suspicion.
    Otherwise `code` and `detail` say what happened. `at`: when that was noticed, monotonic seconds; None: just now.
    """

    planned: bool = False
    at: float | None = None
    wait: float = 0.0
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    detail: str = ""


class Party(Protocol):
    """The agent, as one session sees it."""

    async def welcomed(self, welcome: pb.Welcome) -> bool:
        """The session is open; whether this control plane may be trusted with offers and reports."""

    def found(self, welcome: pb.Welcome) -> None:
        """What the control plane says is wrong with this host, now as well as when the session was opened."""

    def offered(self, offer: Offer) -> None:
        """A trusted control plane says what a slot should hold."""

    def wished(self, wish: Wish) -> None:
        """A trusted control plane wishes to see a file; the session's `answer` shows it."""

    def drained(self) -> None:
        """It is time for another session, while this one is still open: the new one is to take its place."""

    def asked(self, preflight: Preflight) -> None:
        """A trusted control plane asks what the host says of content; the session's `judged` tells it."""

    def acknowledged(self, key: OutcomeKey) -> None:
        """An outcome is durable there."""

    def unacknowledged(self) -> tuple[Outcome, ...]:
        """Outcomes to tell again."""

    async def alive(self, ack: pb.HeartbeatAck) -> None:
        """The control plane answered a heartbeat."""

    def observation(self) -> pb.Observation:
        """Telemetry of this moment."""


class _Signal(Enum):
    ENDED = "the call has ended, or a task of the session has failed"
    LEAVE = "it is time to leave"


class _Room:
    """What was read ahead: at most INBOX messages, and INBOX_BYTES unless one alone has more."""

    def __init__(self) -> None:
        self._messages = self._bytes = 0
        self._given = asyncio.Event()

    async def take(self, size: int) -> None:
        """Returns once there is room for a message of this size."""
        while self._messages and (self._messages >= INBOX or self._bytes + size > INBOX_BYTES):
            self._given.clear()
            await self._given.wait()
        self._messages += 1
        self._bytes += size

    def give(self, size: int) -> None:
        """A message of this size is not kept any more."""
        self._messages -= 1
        self._bytes -= size
        self._given.set()


Call = grpc.aio.StreamStreamCall[pb.SyncRequest, pb.SyncResponse]
_Answer = asyncio.Future[pb.ReportSpoolResponse | None]


class Session:
    """A session on one call; `run` it once."""

    def __init__(self, *, call: Call, party: Party, clock: Clock, random: Random) -> None:
        self._call, self._party, self._clock, self._random = call, party, clock, random
        self._inbox: asyncio.Queue[pb.SyncResponse | _Signal] = asyncio.Queue()
        self._room = _Room()
        self._level, self._level_at = BURST, clock.monotonic()
        self.opened = asyncio.Event()
        self._outbox: asyncio.Queue[pb.SyncRequest | None] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._trusted = False
        self._carries = 0  # bytes of a batch
        self._reporting: tuple[pb.ReportSpoolRequest, _Answer] | None = None
        self._interval = _seconds(0)
        self._unanswered = 0
        self._cut = ""
        self._reason = ""
        self._ended_at: float | None = None

    def tell(self, outcome: Outcome) -> None:
        """The outcome goes up on this stream, where the other side is trusted; else a later one tells it."""
        if self._trusted and self._outbox.qsize() < OUTBOX:
            self._outbox.put_nowait(pb.SyncRequest(outcome=wire.outcome_to_pb(outcome)))

    def answer(self, answer: Answer) -> None:
        """The answer goes up on this stream."""
        if self._trusted and self._outbox.qsize() < OUTBOX:
            self._outbox.put_nowait(pb.SyncRequest(file_content=content_to_pb(answer)))

    def judged(self, result: PreflightResult) -> None:
        """The verdicts go up on this stream."""
        if self._trusted and self._outbox.qsize() < OUTBOX:
            self._outbox.put_nowait(pb.SyncRequest(preflight_result=preflights.result_to_pb(result)))

    async def report(self, batch: pb.ReportSpoolRequest) -> pb.ReportSpoolResponse | None:
        """What became of the batch; None where it was nothing, or the stream is not for it, or ended before the answer.

        One at a time, and small ones: a batch keeps nothing waiting for long.
        """
        if not self._trusted or batch.ByteSize() > self._carries:
            return None
        answered: _Answer = asyncio.get_running_loop().create_future()
        self._reporting = batch, answered
        self._outbox.put_nowait(pb.SyncRequest(batch=batch))
        try:
            async with asyncio.timeout(REPORT_SECONDS):
                return await answered
        except TimeoutError:
            return None
        finally:
            self._reporting = None

    def _batch_answered(self, answer: pb.BatchAnswer | None) -> None:
        """The batch that waits for an answer has it, if this one is for it; or there will be none."""
        if self._reporting is None:
            return
        batch, answered = self._reporting
        mine = answer is None or (answer.epoch, answer.first_seq) == (batch.epoch, batch.first_seq)
        if mine and not answered.done():
            answered.set_result(answer.stored if answer is not None and answer.HasField("stored") else None)

    def leave(self, reason: str) -> None:
        """The session says Goodbye for this reason and ends as planned."""
        self._reason = reason
        self._inbox.put_nowait(_Signal.LEAVE)

    async def run(self, hello: Callable[[], Awaitable[Hello]]) -> Ended:
        """How the session ended. Cancelled, it says Goodbye first.

        `hello` is made once somebody is there to hear it: an attempt that reaches nobody is no session.
        """
        self._start("write", self._write(hello))
        self._start("read", self._read())
        self._start("watch", self._watch_opening())
        try:
            return await self._converse()
        except asyncio.CancelledError:
            await self._leave("stop")
            raise
        finally:
            self._carries = 0
            self._batch_answered(None)
            self._call.cancel()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        previous = self._tasks.get(name)
        if previous is not None:
            previous.cancel()
        self._tasks[name] = asyncio.create_task(work, name=f"session-{name}")

        def done(task: asyncio.Task[None]) -> None:
            if name == "read" or (not task.cancelled() and task.exception()):
                self._ended_at = self._clock.monotonic()
                self._inbox.put_nowait(_Signal.ENDED)

        self._tasks[name].add_done_callback(done)

    # -- what comes in ---------------------------------------------------------------------------

    async def _converse(self) -> Ended:
        while True:
            message = await self._inbox.get()
            if message is _Signal.ENDED:
                return await self._lost()
            if isinstance(message, _Signal):
                await self._leave(self._reason)
                return Ended(planned=True, detail=f"left to {self._reason}")
            self._room.give(message.ByteSize())
            await self._turn()
            if message.WhichOneof("message") == "busy":
                return Ended(planned=True, wait=self._within(message.busy.retry_window_ms), detail="busy")
            if message.WhichOneof("message") == "ask_full":
                await self._leave("reload")
                return Ended(planned=True, detail="asked for a whole Hello")
            try:
                await self._heard(message)
            except Invalid as error:
                _log.warning("session.message_refused", reason=error.reason, error=error.message)

    async def _heard(self, message: pb.SyncResponse) -> None:
        if self._trusted:
            for ack in message.outcome_acks:
                self._party.acknowledged(wire.outcome_ack_from_pb(ack))
        kind = message.WhichOneof("message")
        if kind == "welcome":
            await self._open(message.welcome)
        elif kind == "offer" and self._trusted:
            self._party.offered(wire.offer_from_pb(message.offer))
        elif kind == "read_file" and self._trusted:
            self._party.wished(wish_from_pb(message.read_file))
        elif kind == "preflight" and self._trusted:
            self._party.asked(preflights.from_pb(message.preflight))
        elif kind == "outcome_ack" and self._trusted:
            self._party.acknowledged(wire.outcome_ack_from_pb(message.outcome_ack))
        elif kind == "batch_answer" and self._trusted:
            self._batch_answered(message.batch_answer)
        elif kind == "heartbeat_ack":
            self._unanswered = 0
            if message.heartbeat_ack.heartbeat_interval_ms:
                self._interval = _seconds(message.heartbeat_ack.heartbeat_interval_ms)
            await self._party.alive(message.heartbeat_ack)
        elif kind == "drain":
            window = self._within(message.drain.window_ms)
            self._start("drain", self._drain(window, keeps=message.drain.keep_old))
        else:  # a request this version does not serve, or a message of a later one
            _log.debug("session.message_ignored", kind=kind, trusted=self._trusted)

    async def _open(self, welcome: pb.Welcome) -> None:
        self._carries = welcome.limits.stream_batch_bytes
        self._trusted = await self._party.welcomed(welcome)
        self._party.found(welcome)
        self._unanswered = 0
        self._interval = _seconds(welcome.heartbeat_interval_ms)
        self._start("watch", self._watch())
        for outcome in self._party.unacknowledged():
            self.tell(outcome)
        self.opened.set()

    async def _lost(self) -> Ended:
        """The call has ended on its own, or was cut: its status says why."""
        for task in self._tasks.values():
            if task.done() and not task.cancelled() and (failure := task.exception()):
                raise failure
        code, detail = await self._call.code(), await self._call.details()
        if self._cut:
            return Ended(at=self._ended_at, code=grpc.StatusCode.DEADLINE_EXCEEDED, detail=self._cut)
        return Ended(at=self._ended_at, code=code, detail=detail or "the control plane ended the session")

    def _within(self, window_ms: int) -> float:
        return self._random.uniform(0.0, within_window(window_ms))

    # -- the tasks -------------------------------------------------------------------------------

    async def _read(self) -> None:
        with suppress(grpc.aio.AioRpcError):  # `_lost` asks for the status
            while (message := await self._call.read()) is not grpc.aio.EOF:
                await self._room.take(message.ByteSize())  # type: ignore[attr-defined]
                self._inbox.put_nowait(message)  # type: ignore[arg-type]

    async def _write(self, hello: Callable[[], Awaitable[Hello]]) -> None:
        # The call may end between any two writes; the reader notices.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.wait_for_connection()
            await self._call.write(pb.SyncRequest(hello=wire.hello_to_pb(await hello())))
            while (message := await self._outbox.get()) is not None:
                await self._call.write(message)
            await self._call.done_writing()

    async def _watch_opening(self) -> None:
        await self._clock.sleep(OPENING_SECONDS)
        self._cut_off("no answer to Hello")

    async def _watch(self) -> None:
        """A heartbeat goes up at every interval; the call is cut after three without answer."""
        sequence = 0
        while True:
            if sequence % OBSERVE_EVERY == 0:
                self._outbox.put_nowait(pb.SyncRequest(observation=self._party.observation()))
            await self._clock.sleep(self._interval)
            if self._unanswered >= PATIENCE:
                self._cut_off("heartbeats stayed without answer")
                return
            sequence += 1
            self._unanswered += 1
            beat = pb.Heartbeat(sequence=sequence, sent_at_us=self._clock.now())
            self._outbox.put_nowait(pb.SyncRequest(heartbeat=beat))

    def _cut_off(self, why: str) -> None:
        self._cut = why
        self._call.cancel()

    async def _drain(self, wait: float, *, keeps: bool) -> None:
        await self._clock.sleep(wait)
        if keeps:
            self._party.drained()
        else:
            self.leave("drain")

    async def _turn(self) -> None:
        """Returns when the next message may be taken up; what comes faster waits in the transport."""
        now = self._clock.monotonic()
        self._level = min(BURST, self._level + (now - self._level_at) * RATE)
        self._level_at = now
        if self._level < 1.0:
            await self._clock.sleep(PAUSE_SECONDS)
        self._level -= 1.0

    async def _leave(self, reason: str) -> None:
        """Goodbye is told, as far as the other side takes it in time; never raises for its sake."""
        self._outbox.put_nowait(pb.SyncRequest(goodbye=pb.Goodbye(reason=reason)))
        self._outbox.put_nowait(None)
        await asyncio.wait([self._tasks["write"], self._tasks["read"]], timeout=LEAVE_SECONDS)


def within_window(window_ms: int) -> float:
    """Seconds of a window that the control plane asks for, within what a host agrees to."""
    return min(window_ms, WINDOW_MS) / 1000


def _seconds(heartbeat_interval_ms: int) -> float:
    least, most = HEARTBEAT_MS
    return min(max(heartbeat_interval_ms, least), most) / 1000


def wish_from_pb(message: pb.ReadFile) -> Wish:
    """The wish of a message; what is wrong with it is found when it is answered."""
    return Wish(
        request_id=message.request_id,
        participant=message.participant_id,
        path=message.path,
        max_bytes=message.max_bytes,
    )


def content_to_pb(answer: Answer) -> pb.FileContent:
    """The message of an answer."""
    absent = answer.digest is None and answer.refused is None
    return pb.FileContent(
        request_id=answer.request_id,
        content=answer.content,
        digest=answer.digest or b"",
        refused=wire.reason_to_pb(answer.refused),
        absent=absent,
    )
