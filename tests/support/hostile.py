"""Both sides gone bad, over real mutual TLS: a control plane that lies to a host, a host that lies to it.

What each tries is here by name, so that a test says in one line what was tried; whether it got through is the test's.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from shared import wire
from shared.ids import new_id
from shared.model import MAX_INLINE_BYTES, Hello, digest
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from tests.support.control_plane import Sync
from tests.support.plane import Identity
from tests.support.waiting import PATIENCE

BAIT = b"not yours\n"

# -- a control plane against a host


def offer(path: str = "SOUL.md", content: bytes = BAIT, **fields: Any) -> pb.Offer:
    """An offer of one file, right in every way that `fields` do not change."""
    file = pb.OfferedFile(path=path, digest=digest(content), size=len(content), inline_content=content)
    values: dict[str, Any] = {
        "deployment_id": new_id(),
        "participant_id": "bot-1",
        "slot_id": new_id(),
        "revision": 1,
        "action": pb.OFFER_ACTION_WRITE,
        "files": [file],
    }
    return pb.Offer(**{**values, **fields})


def lying_offers(outside: Path) -> Iterator[tuple[str, pb.Offer]]:
    """(what is tried, the offer): none of them may change any file."""
    for path in (
        "../outside.md",
        "a/../../outside.md",
        f"{outside}/outside.md",
        "//etc/passwd",
        ".",
        "..",
        "",
        "SOUL.md/",
        "./SOUL.md",
        "SOUL.md\x00.txt",
        "linked/outside.md",
        "link.md",
        "notes.md",
        "agent.toml",
        "\ud7ff" * 4096,
        "~/SOUL.md",
        "fifo.md",
        "directory.md",
    ):
        yield f"path {path[:20]!r}", offer(path)
    right = pb.OfferedFile(path="SOUL.md", digest=digest(BAIT), size=len(BAIT), inline_content=BAIT)

    def changed(**fields: Any) -> list[pb.OfferedFile]:
        file = pb.OfferedFile()
        file.CopyFrom(right)
        for name, value in fields.items():
            setattr(file, name, value)
        return [file]

    yield "a digest of something else", offer(files=changed(digest=bytes(32)))
    yield "half a digest", offer(files=changed(digest=b"short"))
    yield "no digest", offer(files=changed(digest=b""))
    yield "a size beyond every integer", offer(files=changed(size=2**64 - 1))
    yield "more inline than may be", offer(content=b"x" * (MAX_INLINE_BYTES + 1))
    yield "no file", offer(files=[])
    yield "the same file twice", offer(files=[right, right])
    yield "sixty-five files", offer(files=[pb.OfferedFile(path=f"{n}.md") for n in range(65)])
    yield "somebody else's participant", offer(participant_id="bot-2")
    yield "a participant that is a path", offer(participant_id="../bot-1")
    yield "a slot id of three bytes", offer(slot_id=b"abc")
    yield "a revision beyond every integer", offer(revision=2**64 - 1)
    yield "an action of the future", offer(action=99)  # type: ignore[arg-type]


async def ask_for_everything(sync: Sync, paths: list[str]) -> list[pb.FileContent]:
    """What a host answers to being asked for each of the paths."""
    asked = {}
    for path in paths:
        request = pb.ReadFile(request_id=new_id(), participant_id="bot-1", path=path)
        asked[request.request_id] = path
        await sync.send(read_file=request)
        answers = [m.file_content for m in sync.heard if m.HasField("file_content")]
        async with asyncio.timeout(PATIENCE):
            while len([a for a in answers if a.request_id in asked]) < len(asked):
                await asyncio.sleep(0.01)
                answers = [m.file_content for m in sync.heard if m.HasField("file_content")]
    return [m.file_content for m in sync.heard if m.HasField("file_content")]


async def flood(sync: Sync, messages: Iterator[pb.SyncResponse], *, seconds: float) -> int:
    """How many of the messages the host let through within that time; the session is over afterwards."""
    count = 0

    async def pour() -> None:
        nonlocal count
        for message in messages:
            await sync.write(message)
            count += 1

    pouring = asyncio.create_task(pour())
    await asyncio.wait((pouring,), timeout=seconds)
    pouring.cancel()
    await asyncio.gather(pouring, return_exceptions=True)
    return count


# -- an agent against a control plane


class Liar:
    """A client with a valid certificate and no manners."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def said(self, *messages: pb.SyncRequest) -> tuple[list[pb.SyncResponse], grpc.StatusCode]:
        """What a stream that says these answers until it ends, and with which status; all it says within a second."""
        call = self._stub.Sync()
        heard: list[pb.SyncResponse] = []
        try:
            for message in messages:
                await call.write(message)
            async with asyncio.timeout(5):
                while (answer := await call.read()) is not grpc.aio.EOF:
                    heard.append(answer)
        except (TimeoutError, asyncio.InvalidStateError):
            pass
        except grpc.aio.AioRpcError as error:
            return heard, error.code()
        call.cancel()
        with suppress(asyncio.CancelledError):
            return heard, await call.code()
        return heard, grpc.StatusCode.CANCELLED

    async def hello(self, hello: Hello | pb.Hello) -> tuple[list[pb.SyncResponse], grpc.StatusCode]:
        """What becomes of a session that begins like this."""
        message = hello if isinstance(hello, pb.Hello) else wire.hello_to_pb(hello)
        return await self.said(pb.SyncRequest(hello=message))

    async def report(self, **fields: Any) -> pb.ReportSpoolResponse | grpc.StatusCode:
        """What becomes of a batch."""
        try:
            answer: pb.ReportSpoolResponse = await self._stub.ReportSpool(
                pb.ReportSpoolRequest(**fields), timeout=20
            )
        except grpc.aio.AioRpcError as error:
            return error.code()
        return answer


@asynccontextmanager
async def lying(identity: Identity) -> AsyncIterator[Liar]:
    """A liar with the certificate of an agent."""
    async with identity.channel() as channel:
        yield Liar(agent_pb2_grpc.AgentServiceStub(channel))  # type: ignore[no-untyped-call]
