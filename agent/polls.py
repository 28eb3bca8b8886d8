"""A session in polls, for hosts behind a proxy that breaks streams: what a session does, in unary calls.

Every poll begins with the whole Hello, so the control plane needs no memory of the one before; what is owed is
told again until it is acknowledged. Hides the pace, and the rest of what `agent.session` hides for a stream.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import TypeVar

import grpc

from agent.session import (
    LEAVE_SECONDS,
    OPENING_SECONDS,
    WINDOW_MS,
    Ended,
    Party,
    content_to_pb,
    wish_from_pb,
    within_window,
)
from agent.sharing import Answer
from shared import logs, wire
from shared import preflight as preflights
from shared.clock import Clock
from shared.errors import Invalid
from shared.model import Hello, Offer, Outcome, PreflightResult, Result, SlotState, Step
from shared.pb.variantd.agent.v1 import agent_pb2 as pb

_log = logs.get(__name__)

MAX_MESSAGES = 256
MAX_ANSWERS = 200  # in one poll, which has room for outcomes besides
PAUSE_MS = (100, WINDOW_MS)  # what a pause is held within, whatever the control plane asks for

Exchange = grpc.aio.UnaryUnaryMultiCallable[pb.ExchangeRequest, pb.ExchangeResponse]
T = TypeVar("T")


class Polls:
    """A session on one channel; `run` it once. `hello` is the host's state of the moment it is called."""

    def __init__(
        self, *, exchange: Exchange, hello: Callable[[], Hello], party: Party, clock: Clock, random: Random
    ) -> None:
        self._exchange, self._hello, self._party = exchange, hello, party
        self._clock, self._random = clock, random
        self._offered: dict[tuple[str, bytes], SlotState] = {}
        self._answers: list[pb.SyncRequest] = []
        self._admitted: tuple[bytes, bytes] | None = None
        self._trusted = False
        self._polls = 0
        self._pause = 0.0
        self._reason = ""
        self._leaving = asyncio.Event()

    def tell(self, outcome: Outcome) -> None:
        """The next poll tells the outcome, as it tells every one that is owed."""
        slot = self._offered.get((outcome.participant, outcome.slot_id))
        if slot is not None and slot.revision == outcome.revision:
            self._offered[outcome.participant, outcome.slot_id] = replace(slot, result=outcome.result)

    def answer(self, answer: Answer) -> None:
        """The next poll tells the answer, once; where that is lost, whoever asked asks again."""
        self._answers.append(pb.SyncRequest(file_content=content_to_pb(answer)))

    def judged(self, result: PreflightResult) -> None:
        """The next poll tells the verdicts, once; where that is lost, they are asked for again."""
        self._answers.append(pb.SyncRequest(preflight_result=preflights.result_to_pb(result)))

    def leave(self, reason: str) -> None:
        """The session says Goodbye for this reason and ends as planned; a poll that is held open is given up."""
        self._reason = reason
        self._leaving.set()

    async def run(self, hello: Callable[[], Awaitable[Hello]]) -> Ended:
        """How the session ended. Cancelled, it says Goodbye first."""
        known = await hello()
        try:
            while True:
                call = self._exchange(self._request(known), timeout=OPENING_SECONDS)
                answer = await self._unless_leaving(call)
                if answer is not None and (ended := await self._heard(answer)):
                    return ended
                await self._unless_leaving(self._clock.sleep(self._pause))
                if self._leaving.is_set():
                    await self._goodbye(self._reason)
                    return Ended(planned=True, detail=f"left to {self._reason}")
                known = await asyncio.to_thread(self._hello)
        except grpc.aio.AioRpcError as error:
            return Ended(code=error.code(), detail=error.details() or "")
        except asyncio.CancelledError:
            await self._goodbye("stop")
            raise

    async def _unless_leaving(self, work: Awaitable[T]) -> T | None:
        """What `work` returns; None, and it is cancelled, where it is time to leave before."""
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    # -- what goes up ----------------------------------------------------------------------------

    def _request(self, hello: Hello, *last: pb.SyncRequest) -> pb.ExchangeRequest:
        self._polls += 1
        beat = pb.Heartbeat(sequence=self._polls, sent_at_us=self._clock.now())
        messages = [
            pb.SyncRequest(hello=wire.hello_to_pb(self._with_offered(hello))),
            pb.SyncRequest(observation=self._party.observation()),
            pb.SyncRequest(heartbeat=beat),
        ]
        if self._trusted:
            answers, self._answers = self._answers[:MAX_ANSWERS], self._answers[MAX_ANSWERS:]
            messages += answers
            room = MAX_MESSAGES - len(messages) - len(last)
            owed = self._party.unacknowledged()[:room]
            messages += [pb.SyncRequest(outcome=wire.outcome_to_pb(outcome)) for outcome in owed]
        return pb.ExchangeRequest(messages=[*messages, *last])

    def _with_offered(self, hello: Hello) -> Hello:
        """Offers of this session that the host has not on record, or refused without one, are known too.

        Else the control plane, which goes by Hello alone, would offer them with every poll.
        """
        unknown = dict(self._offered)
        for slot in hello.slots:
            offered = unknown.get((slot.participant, slot.slot_id))
            if offered is not None and offered.revision <= slot.revision:
                del unknown[slot.participant, slot.slot_id]
        recorded = tuple(slot for slot in hello.slots if (slot.participant, slot.slot_id) not in unknown)
        return replace(hello, slots=(*recorded, *unknown.values()))

    async def _goodbye(self, reason: str) -> None:
        """Goodbye is told, as far as the other side takes it in time; never raises for its sake.

        Also where no poll was answered yet: the session may be open without the host having heard of it.
        """
        if not self._polls:
            return
        goodbye = pb.SyncRequest(goodbye=pb.Goodbye(reason=reason))
        with suppress(grpc.aio.AioRpcError, OSError):
            hello = await asyncio.to_thread(self._hello)
            await self._exchange(self._request(hello, goodbye), timeout=LEAVE_SECONDS)

    # -- what comes down -------------------------------------------------------------------------

    async def _heard(self, answer: pb.ExchangeResponse) -> Ended | None:
        """How the answer ends the session, where it does."""
        least, most = PAUSE_MS
        self._pause = min(max(answer.next_poll_ms, least), most) / 1000
        first = answer.messages[0].WhichOneof("message") if answer.messages else None
        if first == "busy":
            window = answer.messages[0].busy.retry_window_ms
            return Ended(planned=True, wait=self._within(window), detail="busy")
        if first != "welcome":
            return Ended(code=grpc.StatusCode.INTERNAL, detail="a poll was answered without Welcome")
        for message in answer.messages:
            try:
                await self._take(message)
            except Invalid as error:
                _log.warning("session.message_refused", reason=error.reason, error=error.message)
        return None

    async def _take(self, message: pb.SyncResponse) -> None:
        kind = message.WhichOneof("message")
        if kind == "welcome":
            admitted = (message.welcome.session_id, message.welcome.incarnation)
            if admitted != self._admitted:
                self._admitted = admitted
                self._trusted = await self._party.welcomed(message.welcome)
            self._party.found(message.welcome)
        elif kind == "offer" and self._trusted:
            self._take_offer(wire.offer_from_pb(message.offer))
        elif kind == "read_file" and self._trusted:
            self._party.wished(wish_from_pb(message.read_file))
        elif kind == "preflight" and self._trusted:
            self._party.asked(preflights.from_pb(message.preflight))
        elif kind == "outcome_ack" and self._trusted:
            self._party.acknowledged(wire.outcome_ack_from_pb(message.outcome_ack))
        elif kind == "heartbeat_ack":
            await self._party.alive(message.heartbeat_ack)
        elif kind == "drain":
            self._pause = max(self._pause, self._within(message.drain.window_ms))
        elif kind != "ask_full":  # every poll tells everything
            _log.debug("session.message_ignored", kind=kind, trusted=self._trusted)

    def _take_offer(self, offer: Offer) -> None:
        self._offered[offer.participant, offer.slot_id] = SlotState(
            participant=offer.participant,
            slot_id=offer.slot_id,
            revision=offer.revision,
            files=(),
            step=Step.RECEIVED,
            result=Result.IN_PROGRESS,
        )
        self._party.offered(offer)

    def _within(self, window_ms: int) -> float:
        return self._random.uniform(0.0, within_window(window_ms))
