"""Reading a file from a host: an answer counts once, from the agent that was asked, and only if it is what it says."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from shared.model import digest
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from tests.support.builders import make_hello
from tests.support.plane import Answer, Identity, Plane
from tests.support.stream import Stream, session, sharing
from tests.support.waiting import PATIENCE, eventually

BODY = b"You are friendly.\n"
PATH = "/v1/participants/bot-1/files/config/soul.md"


@asynccontextmanager
async def asked(
    plane: Plane, identity: Identity
) -> AsyncIterator[tuple[Stream, pb.ReadFile, asyncio.Task[Answer]]]:
    """The session of bot-1's agent, which has just been asked for a file by an operator who waits."""
    async with session(identity, make_hello("bot-1")) as stream:
        waiting = asyncio.create_task(plane.rest("GET", PATH))
        try:
            yield stream, await stream.receive("read_file"), waiting
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


async def upload(identity: Identity, *pieces: pb.UploadContentRequest) -> grpc.StatusCode:
    """With which status an upload ends."""
    async with identity.channel() as channel:
        stub: Any = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            await stub.UploadContent(iter(pieces), timeout=PATIENCE)
        except grpc.aio.AioRpcError as failure:
            code: grpc.StatusCode = failure.code()
            return code
        return grpc.StatusCode.OK


def piece(request_id: bytes, chunk: bytes, *, of: bytes | None = None) -> pb.UploadContentRequest:
    """One piece of an upload of `of`, or of just this chunk."""
    return pb.UploadContentRequest(request_id=request_id, digest=digest(of or chunk), chunk=chunk)


async def test_the_answer_of_another_agent_does_not_count(plane: Plane) -> None:
    """Neither in its session nor as an upload; the one that was asked still answers."""
    owner = await plane.enroll(await plane.token())
    other = await plane.enroll(await plane.token(), name="other")
    async with asked(plane, owner) as (stream, question, waiting):
        forged = pb.FileContent(request_id=question.request_id, content=b"forged", digest=digest(b"forged"))
        async with session(other, make_hello("bot-2")) as foreign:
            await foreign.send(file_content=forged)
            await foreign.send(goodbye=pb.Goodbye(reason="stop"))
            assert await foreign.call.read() is grpc.aio.EOF
        assert await upload(other, piece(question.request_id, b"forged")) is grpc.StatusCode.NOT_FOUND
        assert not waiting.done()
        await stream.send(
            file_content=pb.FileContent(request_id=question.request_id, content=BODY, digest=digest(BODY))
        )
        answer = await waiting
        assert (answer.status, answer.body["content"]) == (200, BODY.decode())


async def test_an_answer_counts_once(plane: Plane) -> None:
    """What comes after the first answer is dropped, whichever way it comes."""
    owner = await plane.enroll(await plane.token())
    async with asked(plane, owner) as (stream, question, waiting):
        for body in (BODY, b"second thoughts"):
            await stream.send(
                file_content=pb.FileContent(request_id=question.request_id, content=body, digest=digest(body))
            )
        assert (await waiting).body["content"] == BODY.decode()
        assert await upload(owner, piece(question.request_id, b"third")) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("announced", [digest(b"another"), b"", digest(BODY)[:31]])
async def test_content_that_is_not_what_it_announces_is_no_answer(plane: Plane, announced: bytes) -> None:
    """The operator is told that the host's answer cannot be trusted, at once."""
    owner = await plane.enroll(await plane.token())
    async with asked(plane, owner) as (stream, question, waiting):
        await stream.send(
            file_content=pb.FileContent(request_id=question.request_id, content=BODY, digest=announced)
        )
        answer = await waiting
        assert (answer.status, answer.body["reason"]) == (503, "BAD_ANSWER")


async def test_an_upload_in_pieces_is_put_together(plane: Plane) -> None:
    """Content above the inline limit comes as an upload and is shown whole."""
    owner = await plane.enroll(await plane.token())
    body = bytes(range(256)) * 2048
    async with asked(plane, owner) as (_, question, waiting):
        half = len(body) // 2
        pieces = (piece(question.request_id, part, of=body) for part in (body[:half], body[half:]))
        assert await upload(owner, *pieces) is grpc.StatusCode.OK
        answer = await waiting
        assert (answer.status, answer.body["size"], answer.body["digest"]) == (
            200,
            len(body),
            f"sha256:{digest(body).hex()}",
        )


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param((), id="nothing"),
        pytest.param((b"x" * (256 * 1024 + 1),), id="a chunk too large"),
        pytest.param((b"x" * (256 * 1024),) * 5, id="too much in all"),
        pytest.param((b"half",), id="not what was announced"),
    ],
)
async def test_a_broken_upload_is_refused(plane: Plane, pieces: tuple[bytes, ...]) -> None:
    """The agent is told so, and so is the operator; only an upload that never named its question leaves it open."""
    owner = await plane.enroll(await plane.token())
    async with asked(plane, owner) as (stream, question, waiting):
        sent = (piece(question.request_id, part, of=b"all of it") for part in pieces)
        assert await upload(owner, *sent) is grpc.StatusCode.INVALID_ARGUMENT
        if not pieces:
            await stream.send(
                file_content=pb.FileContent(request_id=question.request_id, content=BODY, digest=digest(BODY))
            )
        answer = await waiting
        assert answer.status == (503 if pieces else 200)
        if pieces:
            assert answer.body["reason"] == "BAD_ANSWER"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("NOT_SHARED", 403), ("TARGET_NOT_ALLOWED", 403), ("PATH_ESCAPES_ROOT", 403), ("TOO_LARGE", 409)],
)
async def test_a_host_says_why_not(plane: Plane, reason: str, status: int) -> None:
    """Its reason is the operator's."""
    owner = await plane.enroll(await plane.token())
    said = pb.FileContent(refused=pb.Reason(code=reason, message="the host says no", remedy="ask it nicely"))
    async with sharing(owner, make_hello("bot-1"), {"config/soul.md": said}):
        answer = await plane.rest("GET", PATH)
    assert (answer.status, answer.body["reason"]) == (status, reason)
    assert "ask it nicely" in answer.body["detail"]


async def test_reading_needs_its_scope_and_leaves_a_digest(plane: Plane) -> None:
    """Without content:read nothing is asked; with it the audit log holds who read what, not what it was."""
    owner = await plane.enroll(await plane.token())
    seeing = (await plane.made("/v1/api-keys", {"name": "sees", "scopes": ["fleet:read"]}))["secret"]
    async with sharing(owner, make_hello("bot-1"), {"config/soul.md": BODY}) as questions:
        refused = await plane.rest("GET", PATH, key=seeing)
        assert (refused.status, questions) == (403, [])
        assert (await plane.rest("GET", PATH)).body["content"] == BODY.decode()
        assert len(questions) == 1
    with sqlite3.connect(f"file:{plane.data / 'variantd.db'}?mode=ro", uri=True) as database:
        kept = database.execute("select resource_id, request from audit where operation like '%ReadFile'")
        told = kept.fetchall()
        assert [row[0] for row in told] == ["bot-1"]
        assert digest(BODY).hex() in told[0][1]
        assert not [line for line in database.iterdump() if "friendly" in line or BODY.hex().upper() in line]


async def test_a_host_that_is_away_is_said_to_be(plane: Plane) -> None:
    """Nobody waits for a host that is not there."""
    owner = await plane.enroll(await plane.token())
    async with sharing(owner, make_hello("bot-1"), {}):
        absent = await plane.rest("GET", PATH)
        assert (absent.status, absent.body["absent"], absent.body["content"]) == (200, True, None)

    async def gone() -> bool:
        answer = await plane.rest("GET", PATH)
        return (answer.status, answer.body.get("reason")) == (409, "NOT_CONNECTED")

    await eventually(gone, what="the host is not connected")
    unknown = await plane.rest("GET", PATH.replace("bot-1", "nobody"))
    assert unknown.status == 404


async def test_who_goes_away_is_no_failure_of_ours(plane: Plane) -> None:
    """An operator who presses Ctrl-C while a host is asked: an alert rests on what is counted as internal."""
    owner = await plane.enroll(await plane.token())
    async with session(owner, make_hello("bot-1")) as stream:
        asking = asyncio.create_task(plane.grpc("FleetService.ReadFile", id="bot-1", path="config/soul.md"))
        await stream.receive("read_file")
        asking.cancel()

        async def counted() -> list[str]:
            metrics: str = (await plane.rest("GET", "/metrics")).body
            found = [line for line in metrics.splitlines() if 'operation="FleetService.ReadFile"' in line]
            ended = [line for line in found if line.startswith("variantd_operations_total")]
            return ended if any(line.endswith(" 1.0") for line in ended) else []

        of = 'variantd_operations_total{code="%s",operation="FleetService.ReadFile"} %s'
        assert sorted(await eventually(counted)) == [of % ("cancelled", "1.0"), of % ("internal", "0.0")]
