"""Hosts are asked about contents over real sessions: in the background, before a start, and never for long."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import Any

import grpc
import pytest

from control_plane.api import preflights
from shared import preflight as messages
from shared.model import (
    MAX_INLINE_BYTES,
    PREFLIGHT,
    Hello,
    OfferedFile,
    ParticipantState,
    Preflight,
    PreflightResult,
    Reason,
    ReasonCode,
    Verdict,
    digest,
)
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from tests.support.builders import make_hello
from tests.support.plane import Identity, Plane
from tests.support.stream import polling, session
from tests.support.waiting import eventually

POLICY = b"p" * 32
LARGE = "x" * (MAX_INLINE_BYTES + 1)
PAIR = [
    {"name": "A", "content": "a", "weight": 50, "isControl": True},
    {"name": "B", "content": LARGE, "weight": 50},
]
Judge = Callable[[OfferedFile], ReasonCode | None]


def hello(*names: str, policy: bytes = POLICY, **fields: Any) -> Hello:
    """A Hello of an agent that judges content."""
    states = tuple(ParticipantState(participant=name, targets=("*.md",), policy=policy) for name in names)
    return make_hello(participants=states, capabilities=(PREFLIGHT,), **fields)


def answer(asked: Preflight, judge: Judge, *, policy: bytes = POLICY) -> pb.SyncRequest:
    """What a host says that judges so."""
    verdicts = []
    for file in asked.files:
        code = judge(file)
        reason = None if code is None else Reason(code=code, message="no")
        verdicts.append(Verdict(path=file.path, digest=file.digest or b"", refused=reason))
    result = PreflightResult(request_id=asked.request_id, verdicts=tuple(verdicts), policy=policy)
    return pb.SyncRequest(preflight_result=messages.result_to_pb(result))


def takes_all(file: OfferedFile) -> ReasonCode | None:
    return None


def takes_small(file: OfferedFile) -> ReasonCode | None:
    return None if file.size <= MAX_INLINE_BYTES else ReasonCode.TOO_LARGE


@asynccontextmanager
async def judging(identity: Identity, said: Hello, judge: Judge) -> AsyncIterator[list[Preflight]]:
    """An admitted session that judges what it is asked; yields what it was asked."""
    asked: list[Preflight] = []
    async with session(identity, said) as stream:

        async def listen() -> None:
            while (message := await stream.call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") == "preflight":
                    asked.append(messages.from_pb(message.preflight))
                    told = answer(asked[-1], judge)
                    await stream.send(preflight_result=told.preflight_result)

        listening = asyncio.create_task(listen())
        try:
            yield asked
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def drafted(plane: Plane, *participants: str, **fields: Any) -> str:
    """The path of a draft."""
    values = {"name": "Tone", "targetFile": "soul.md", "variants": PAIR, "participantIds": participants}
    made = await plane.made("/v1/experiments", {**values, **fields})
    return f"/v1/experiments/{made['id']}"


async def findings(plane: Plane, path: str) -> dict[str, str]:
    """Codes by participant of a preview."""
    shown = await plane.made(f"{path}/assignments:preview", None)
    return {item["participantId"]: item["code"] for item in shown["findings"]}


async def test_a_start_hears_the_connected_hosts_first(plane: Plane) -> None:
    """Right after the draft was made, so that nothing was known: who refuses is out, the others are in."""
    one, other = [await plane.enroll(await plane.token(), name=name) for name in ("one", "other")]
    async with (
        judging(one, hello("bot-1"), takes_small) as asked,
        judging(other, hello("bot-2", "bot-3"), takes_all),
    ):
        path = await drafted(plane, "bot-1", "bot-2", "bot-3", "away")
        started = await plane.made(f"{path}/start", None)
        codes = [item["code"] for item in started["experiment"]["warnings"]]
        assert codes == ["PREFLIGHT_REFUSED", "PREFLIGHT_UNKNOWN", "DESIGN_CANNOT_DECIDE"]
        page = (await plane.rest("GET", f"{path}/assignments")).body["entities"]
        assert {item["participantId"] for item in page} == {"bot-2", "bot-3", "away"}
        [first] = asked
        assert (first.participant, len(first.request_id)) == ("bot-1", 16)
        assert {(f.path, f.digest, f.size, f.content) for f in first.files} == {
            ("soul.md", digest(b"a"), 1, b"a"),
            ("soul.md", digest(LARGE.encode()), len(LARGE), None),
        }


async def test_drafts_are_asked_about_in_the_background_and_once(plane: Plane) -> None:
    """Nobody has to look; a changed variant is asked about alone, what is known is not."""
    identity = await plane.enroll(await plane.token())
    path = await drafted(plane, "bot-1")
    async with judging(identity, hello("bot-1"), takes_all) as asked:
        await eventually(lambda: asked)
        assert len(asked[0].files) == 2
        assert await findings(plane, path) == {}
        changed = await plane.rest("PATCH", f"{path}/variants/b", {"content": "other"})
        assert changed.status == 200
        await eventually(lambda: len(asked) == 2)
        assert [file.digest for file in asked[1].files] == [digest(b"other")]
        assert await findings(plane, path) == {}
        assert len(asked) == 2


async def test_what_was_mended_on_the_host_is_seen_by_whoever_looks(plane: Plane) -> None:
    """A refusal is asked about again at each look; another policy makes everything unknown at once."""
    identity = await plane.enroll(await plane.token())
    refuses = [ReasonCode.SYMLINK_REFUSED]
    path = await drafted(plane, "bot-1")
    async with judging(identity, hello("bot-1"), lambda _: refuses[0] if refuses else None):
        assert await findings(plane, path) == {"bot-1": "PREFLIGHT_REFUSED"}
        refuses.clear()
        assert await findings(plane, path) == {}
        refuses.append(ReasonCode.CHECK_FAILED)
        assert await findings(plane, path) == {}, "what was taken is not asked about again so soon"
    other = hello("bot-1", policy=b"q" * 32, session_epoch=2)
    async with judging(identity, other, lambda _: refuses[0]) as asked:
        # Answers are taken by the fingerprint of this Hello only, and these tell the former one.
        assert await findings(plane, path) == {"bot-1": "PREFLIGHT_UNKNOWN"}
        assert asked


async def test_a_host_that_stays_silent_holds_a_start_up_for_seconds(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it goes by what is known, which is nothing; an agent of before is not waited for at all."""
    monkeypatch.setattr(preflights, "SETTLE_SECONDS", 0.3)
    identity, old = [await plane.enroll(await plane.token(), name=name) for name in ("a", "b")]
    async with session(identity, hello("bot-1")), session(old, make_hello("bot-2")) as stream:
        path = await drafted(plane, "bot-1", "bot-2")
        started = await plane.made(f"{path}/start", None)
        unheard = {item["code"]: item["message"] for item in started["experiment"]["warnings"]}
        assert unheard["PREFLIGHT_UNKNOWN"].startswith("bot-1, bot-2 take part")
        await stream.offer()  # and nothing else was said to it before


async def test_content_can_be_fetched_while_it_is_asked_about_and_not_after(plane: Plane) -> None:
    """Only what is asked about, and only by the agent that is asked."""
    one, other = [await plane.enroll(await plane.token(), name=name) for name in ("one", "other")]
    await drafted(plane, "bot-1")

    async def fetched(identity: Identity, text: str) -> bytes | grpc.StatusCode:
        async with identity.channel() as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
            found = b""
            try:
                async for piece in stub.FetchContent(pb.FetchContentRequest(digest=digest(text.encode()))):
                    found += piece.chunk
            except grpc.aio.AioRpcError as error:
                code: grpc.StatusCode = error.code()
                return code
            return found

    assert await fetched(one, LARGE) is grpc.StatusCode.NOT_FOUND
    async with session(one, hello("bot-1")) as stream, session(other, hello("bot-2")):
        asked = messages.from_pb(await stream.receive("preflight"))
        assert await fetched(one, LARGE) == LARGE.encode()
        assert await fetched(one, "something else") is grpc.StatusCode.NOT_FOUND
        assert await fetched(other, LARGE) is grpc.StatusCode.NOT_FOUND
        await stream.send(preflight_result=answer(asked, takes_all).preflight_result)

        async def closed() -> bool:
            return await fetched(one, LARGE) is grpc.StatusCode.NOT_FOUND

        await eventually(closed)


async def test_an_answer_that_nobody_asked_for_changes_nothing(plane: Plane) -> None:
    """Nor does one about other contents, of another participant's question, or by a policy that is not the host's."""
    one, other = [await plane.enroll(await plane.token(), name=name) for name in ("one", "other")]
    path = await drafted(plane, "bot-1", "bot-2")
    async with (
        session(one, hello("bot-1")) as mine,
        session(other, hello("bot-2")) as theirs,
    ):
        asked = messages.from_pb(await mine.receive("preflight"))
        await theirs.receive("preflight")
        refuses = answer(asked, lambda _: ReasonCode.TOO_LARGE)
        await theirs.send(preflight_result=refuses.preflight_result)  # somebody else's question
        forged = replace(asked, request_id=bytes(16))
        await mine.send(preflight_result=answer(forged, takes_small).preflight_result)
        elsewhere = replace(
            asked, files=(OfferedFile(path="other.md", digest=digest(b"?"), size=1), asked.files[0])
        )
        stale = answer(elsewhere, takes_all, policy=b"old")
        await mine.send(preflight_result=stale.preflight_result)
        await mine.send(heartbeat=pb.Heartbeat(sequence=1))
        await mine.receive("heartbeat_ack")
        shown = (await plane.rest("GET", path)).body
        assert shown["participantCount"] == 2
    with sqlite3.connect(plane.data / "variantd.db") as database:
        assert database.execute("select count(*) from preflight").fetchone() == (0,)


async def test_a_malformed_answer_costs_the_answer_and_not_the_session(plane: Plane) -> None:
    """As one with a reason code of a later version."""
    identity = await plane.enroll(await plane.token())
    await drafted(plane, "bot-1")
    async with session(identity, hello("bot-1")) as stream:
        asked = await stream.receive("preflight")
        later = pb.PreflightVerdict(
            path="soul.md", digest=digest(b"a"), refused=pb.Reason(code="OF_TOMORROW")
        )
        await stream.send(
            preflight_result=pb.PreflightResult(request_id=asked.request_id, verdicts=[later], policy=POLICY)
        )
        await stream.send(heartbeat=pb.Heartbeat(sequence=1))
        await stream.receive("heartbeat_ack")


async def test_an_answer_that_cannot_be_stored_costs_no_other(plane: Plane) -> None:
    """Answers that come within moments share a transaction; the one host is not known to have said anything."""
    one, other = [await plane.enroll(await plane.token(), name=name) for name in ("one", "other")]
    async with judging(one, hello("bot-1"), takes_small), judging(other, hello("bot-2"), takes_small):
        with closing(sqlite3.connect(plane.data / "variantd.db")) as database:
            database.execute(
                "create trigger refuses before insert on preflight when new.participant_id ="
                " (select id from participant where public_id = 'bot-1') begin select raise(abort, 'no'); end"
            )
        path = await drafted(plane, "bot-1", "bot-2", "bot-3")
        started = await plane.made(f"{path}/start", None)
        codes = [item["code"] for item in started["experiment"]["warnings"]]
        assert codes == ["PREFLIGHT_REFUSED", "PREFLIGHT_UNKNOWN", "DESIGN_CANNOT_DECIDE"]
        page = (await plane.rest("GET", f"{path}/assignments")).body["entities"]
        assert {item["participantId"] for item in page} == {"bot-1", "bot-3"}


async def test_an_agent_that_polls_is_asked_too(plane: Plane) -> None:
    """In the answer to a poll, once; a poll of its tells the verdicts, and the start waits for that."""
    identity = await plane.enroll(await plane.token())
    said = hello("bot-1")
    async with polling(identity) as polls:
        await polls.poll(said)
        path = await drafted(plane, "bot-1", "away")
        found = await polls.poll(said)
        asked = messages.from_pb(found["preflight"][0])
        starting = asyncio.create_task(plane.made(f"{path}/start", None))

        async def go_on(tell: pb.SyncRequest) -> None:
            while True:  # whoever looks has refusals asked about again
                more = await polls.poll(said, tell)
                tell = pb.SyncRequest(heartbeat=pb.Heartbeat(sequence=1))
                for question in more.get("preflight", []):
                    tell = answer(messages.from_pb(question), takes_small)

        going_on = asyncio.create_task(go_on(answer(asked, takes_small)))
        started = await starting
        going_on.cancel()
        await asyncio.gather(going_on, return_exceptions=True)
    codes = [item["code"] for item in started["experiment"]["warnings"]]
    assert codes[0] == "PREFLIGHT_REFUSED"
    page = (await plane.rest("GET", f"{path}/assignments")).body["entities"]
    assert {item["participantId"] for item in page} == {"away"}


async def test_grpc_says_the_same(plane: Plane) -> None:
    """The start's warnings, the preview's findings and requirePreflight, which keeps out who was not heard."""
    identity = await plane.enroll(await plane.token())
    async with judging(identity, hello("bot-1", "bot-2", "bot-3"), takes_all):
        path = await drafted(plane, "bot-1", "bot-2", "bot-3", "away", requirePreflight=True)
        key = path.rpartition("/")[2]
        ahead = await plane.grpc("AssignmentService.PreviewAssignments", id=key)
        assert [(item.participant_id, item.code, item.severity) for item in ahead.findings] == [
            ("away", "PREFLIGHT_UNKNOWN", "warning")
        ]
        started = await plane.grpc("ExperimentService.StartExperiment", id=key)
        assert started.experiment.require_preflight
        assert started.experiment.participant_count == 3
        assert started.experiment.warnings[0].message == (
            "away take part in no variant: nobody knows whether their hosts take every one"
        )
