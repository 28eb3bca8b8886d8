"""An agent's end of a session, driven by hand: the Sync stream, and polls."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

from shared import wire
from shared.model import FileOutcome, Hello, Offer, Outcome, Reason, Result, Step, digest
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from tests.support.plane import Identity
from tests.support.waiting import PATIENCE


class Stream:
    """A session, message by message."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.welcome: pb.Welcome | None = None
        self._writing = asyncio.Lock()

    async def send(self, **message: Any) -> None:
        """The message is on its way."""
        async with self._writing:  # a call takes one write at a time
            await self.call.write(pb.SyncRequest(**message))

    async def receive(self, kind: str) -> Any:
        """The next message, which has to be of this kind."""
        message = await self.next()
        assert message.WhichOneof("message") == kind, message
        return getattr(message, kind)

    async def next(self) -> pb.SyncResponse:
        """The next message."""
        async with asyncio.timeout(PATIENCE):
            message = await self.call.read()
        assert message is not grpc.aio.EOF, "the stream ended"
        return message

    async def offer(self) -> Offer:
        """The next message, which has to be an offer."""
        return wire.offer_from_pb(await self.receive("offer"))

    async def report(self, offer: Offer, result: Result, *, reason: Reason | None = None) -> pb.OutcomeAck:
        """The outcome of an offer is stored; its acknowledgement."""
        await self.send(outcome=wire.outcome_to_pb(make_outcome(offer, result, reason=reason)))
        ack: pb.OutcomeAck = await self.receive("outcome_ack")
        return ack


def make_outcome(offer: Offer, result: Result, *, reason: Reason | None = None, attempt: int = 1) -> Outcome:
    """What a host reports of an offer."""
    return Outcome(
        participant=offer.participant,
        slot_id=offer.slot_id,
        revision=offer.revision,
        attempt=attempt,
        step=Step.SWAPPED,
        result=result,
        files=tuple(
            FileOutcome(path=f.path, desired=f.digest, running=f.digest, previous=None) for f in offer.files
        ),
        occurred_at=1_800_000_000_000_000,
        reason=reason,
    )


@asynccontextmanager
async def session(identity: Identity, hello: Hello) -> AsyncIterator[Stream]:
    """An admitted session."""
    async with identity.channel() as channel:
        stream = Stream(agent_pb2_grpc.AgentServiceStub(channel).Sync())  # type: ignore[no-untyped-call]
        await stream.send(hello=wire.hello_to_pb(hello))
        stream.welcome = await stream.receive("welcome")
        yield stream


@asynccontextmanager
async def sharing(
    identity: Identity, hello: Hello, files: Mapping[str, bytes | pb.FileContent]
) -> AsyncIterator[list[pb.ReadFile]]:
    """An admitted session that answers what it is asked to read, by path; yields what it was asked."""
    asked: list[pb.ReadFile] = []
    async with session(identity, hello) as stream:

        async def answer() -> None:
            while (message := await stream.call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") == "read_file":
                    asked.append(message.read_file)
                    await stream.send(file_content=_content(message.read_file, files))

        answering = asyncio.create_task(answer())
        try:
            yield asked
            await stream.send(goodbye=pb.Goodbye(reason="stop"))
            async with asyncio.timeout(PATIENCE):
                await answering
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)


def _content(asked: pb.ReadFile, files: Mapping[str, bytes | pb.FileContent]) -> pb.FileContent:
    found = files.get(asked.path)
    if isinstance(found, pb.FileContent):
        answer = pb.FileContent(request_id=asked.request_id)
        answer.MergeFrom(found)
        return answer
    if found is None:
        return pb.FileContent(request_id=asked.request_id, absent=True)
    return pb.FileContent(request_id=asked.request_id, content=found, digest=digest(found))


class Polls:
    """A session in polls, one by one."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def poll(self, hello: Hello, *messages: pb.SyncRequest) -> dict[str, list[Any]]:
        """The answer's messages by kind; Welcome or Busy comes first."""
        request = pb.ExchangeRequest(messages=[pb.SyncRequest(hello=wire.hello_to_pb(hello)), *messages])
        answer = await self._stub.Exchange(request, timeout=PATIENCE)
        assert 1000 <= answer.next_poll_ms <= 300_000
        kinds = [message.WhichOneof("message") for message in answer.messages]
        assert kinds[0] in ("welcome", "busy")
        return {kind: [getattr(m, kind) for m in answer.messages if m.HasField(kind)] for kind in kinds}


@asynccontextmanager
async def polling(identity: Identity) -> AsyncIterator[Polls]:
    """Polls over one channel."""
    async with identity.channel() as channel:
        yield Polls(agent_pb2_grpc.AgentServiceStub(channel))  # type: ignore[no-untyped-call]
