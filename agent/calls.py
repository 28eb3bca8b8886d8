"""What an agent asks: in unary calls beside its session contents, its next certificate, and reports that the session
does not carry.

Hides that they wait until there is a control plane to be believed, and what a channel that was closed under a call
looks like. What a call raises is one of shared.errors.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import grpc

from agent.channel import failure, open_channel
from agent.identity import Identity
from agent.spool import Receipt
from shared import wire
from shared.errors import Invalid, Unavailable
from shared.model import Batch, Digest
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc

CALL_SECONDS = 60.0  # deadline of a unary call
UPLOAD_SECONDS = 15.0  # the control plane does not wait longer
NOBODYS_DIGEST = bytes(32)


Carried = Callable[[pb.ReportSpoolRequest], Awaitable[pb.ReportSpoolResponse | None]]
"""The way over the session: what became of a batch, or None where that way leads nowhere now."""


class Calls:
    """Calls over whatever `channel` is open, once `trusted` is set; `carried` is tried first with a batch."""

    def __init__(
        self, *, channel: Callable[[], grpc.aio.Channel], trusted: asyncio.Event, carried: Carried
    ) -> None:
        self._channel, self._trusted, self._carried = channel, trusted, carried

    async def report(self, batch: Batch) -> Receipt:
        """What the control plane says of `batch`; waits until there is one to ask. Raises shared.errors."""
        await self._trusted.wait()
        request = wire.batch_to_pb(batch)
        response = await self._carried(request)
        if response is None:  # a call says why
            async with self._stub() as stub:
                response = await stub.ReportSpool(request, timeout=CALL_SECONDS)
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

    async def upload(self, request_id: bytes, digest: Digest, pieces: Iterable[bytes]) -> None:
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

    @asynccontextmanager
    async def _stub(self) -> "AsyncIterator[agent_pb2_grpc.AgentServiceAsyncStub]":
        """For one call, once a session is open; what the call raises leaves as one of shared.errors."""
        await self._trusted.wait()
        try:
            yield agent_pb2_grpc.AgentServiceStub(self._channel())
        except grpc.aio.AioRpcError as error:
            raise failure(error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not this task: the call, because its channel was closed under it.
            raise Unavailable("the link went over to another connection meanwhile") from None


async def prove(address: str, candidate: Identity) -> None:
    """The control plane knows the candidate for an agent. Raises one of shared.errors where it does not.

    Shown by a question over a connection of its own: nobody but an accepted agent is told that there is
    no such content.
    """
    async with open_channel(address, ca=candidate.ca, identity=candidate) as channel:
        stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(channel)
        call = stub.FetchContent(pb.FetchContentRequest(digest=NOBODYS_DIGEST), timeout=CALL_SECONDS)
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise failure(error) from None
