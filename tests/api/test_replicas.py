"""Several control planes over one database are one: whichever an agent or an operator comes to."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from control_plane.services.sessions import LEASE
from control_plane.store.questions import QuestionStore
from shared import wire
from shared.model import PREFLIGHT, ParticipantState, Reason, ReasonCode, Result, digest
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.api.test_preflights import judging
from tests.support import postgres
from tests.support.builders import make_hello
from tests.support.plane import Plane
from tests.support.replicas import at, replicated
from tests.support.stream import Stream, polling, session, sharing
from tests.support.waiting import PATIENCE, eventually

BODY = b"You are friendly.\n"
QUIET = 60.0
"""A poll that comes in no test's time: whatever happens is a hint's doing."""


async def started(plane: Plane, *participants: str) -> Any:
    """The experiment `test`, running, everybody in its one arm that has weight."""
    variants = [
        {"name": key, "key": key, "content": key, "weight": weight, "isControl": key == "a"}
        for key, weight in (("a", 100), ("b", 0))
    ]
    values = {"name": "Test", "targetFile": "soul.md", "variants": variants, "participantIds": participants}
    made = await plane.made("/v1/experiments", values)
    await plane.made("/v1/experiments/test/start", None)
    return made


async def order(plane: Plane, experiment: Any, participant: str, key: str) -> None:
    """The participant is to hold that variant."""
    variant = next(item["id"] for item in experiment["variants"] if item["key"] == key)
    await plane.made("/v1/experiments/test/deployments", {"participantId": participant, "variantId": variant})


async def ended(stream: Stream) -> grpc.StatusCode:
    """With which status the control plane ends the session."""
    async with asyncio.timeout(PATIENCE):
        with suppress(grpc.aio.AioRpcError):
            while await stream.call.read() is not grpc.aio.EOF:
                pass
        code: grpc.StatusCode = await stream.call.code()
        return code


async def test_an_order_at_one_replica_reaches_an_agent_at_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, by a hint; its outcome is everywhere, and so is who is connected, and who is banned."""
    monkeypatch.setattr("control_plane.api.replication.POLL_SECONDS", QUIET)
    async with replicated(tmp_path, "a", "b") as (a, b):
        identity = await a.enroll(await b.token())
        async with session(at(identity, b), make_hello("bot-1")) as stream:
            for plane in (a, b):
                answer = await plane.rest("GET", "/v1/participants/bot-1")
                assert answer.body["presence"] == "connected"
            experiment = await started(a, "bot-1")
            await stream.report(await stream.offer(), Result.APPLIED)
            await order(a, experiment, "bot-1", "b")
            offer = await stream.offer()
            assert offer.files[0].content == b"b"
            await stream.report(offer, Result.APPLIED)
            page = (await a.rest("GET", "/v1/experiments/test/deployments")).body
            assert [item["state"] for item in page["entities"]] == ["applied", "applied"]
            agent = (await a.rest("GET", "/v1/agents")).body["entities"][0]
            await a.made(f"/v1/agents/{agent['id']}:ban", None)
            assert await ended(stream) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.fault(10)
async def test_without_any_hint_the_slow_poll_finds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders, an end of a freeze, a session that went elsewhere: each is found by comparing with what is stored."""
    monkeypatch.setattr("control_plane.api.replication.POLL_SECONDS", 0.2)
    monkeypatch.setattr("control_plane.api.replication.Replication._told", lambda *_: None)
    async with replicated(tmp_path, "a", "b") as (a, b):
        identity = await a.enroll(await a.token())
        async with session(at(identity, b), make_hello("bot-1")) as stream:
            await a.made("/v1/fleet:freeze", None)
            experiment = await started(a, "bot-1")
            await a.made("/v1/fleet:unfreeze", None)
            await stream.report(await stream.offer(), Result.APPLIED)
            await order(a, experiment, "bot-1", "b")
            await stream.report(await stream.offer(), Result.APPLIED)
            async with session(at(identity, a), make_hello("bot-1", session_epoch=2)):
                assert await ended(stream) is grpc.StatusCode.OK
                await eventually(lambda: present(a, "bot-1", "connected"))


async def test_a_file_is_read_from_a_host_at_another_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content, that there is none, its refusal; nothing of it is kept, and nothing is readable on its way."""
    monkeypatch.setattr("control_plane.api.replication.POLL_SECONDS", QUIET)
    monkeypatch.setattr("control_plane.api.elsewhere.LOOK_SECONDS", QUIET)
    sealed: list[bytes] = []
    settled = QuestionStore.settle

    def settle(store: QuestionStore, question_id: bytes, answer: bytes) -> None:
        sealed.append(answer)
        settled(store, question_id, answer)

    monkeypatch.setattr(QuestionStore, "settle", settle)
    reason = Reason(code=ReasonCode.NOT_SHARED, message="not shared")
    files = {"soul.md": BODY, "other.md": pb.FileContent(refused=wire.reason_to_pb(reason))}
    async with replicated(tmp_path, "a", "b") as (a, b):
        identity = await a.enroll(await a.token())
        async with sharing(at(identity, b), make_hello("bot-1"), files):
            answer = await a.rest("GET", "/v1/participants/bot-1/files/soul.md")
            assert (answer.status, answer.body["content"]) == (200, BODY.decode())
            answer = await a.rest("GET", "/v1/participants/bot-1/files/none.md")
            assert (answer.status, answer.body["absent"]) == (200, True)
            answer = await a.rest("GET", "/v1/participants/bot-1/files/other.md")
            assert (answer.status, answer.body["reason"]) == (403, "NOT_SHARED")
        assert len(sealed) == 3
        assert all(BODY.strip() not in one for one in sealed)
        with psycopg.connect(postgres.url_of(tmp_path)) as database:
            assert database.execute("select count(*) from question").fetchone() == (0,)
        answer = await a.rest("GET", "/v1/participants/bot-1/files/soul.md")
        assert (answer.status, answer.body["reason"]) == (409, "NOT_CONNECTED")


async def test_a_file_is_read_from_a_host_whose_polls_went_to_another_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that had the last poll before knows that none is to be expected any more, and asks the other one."""
    monkeypatch.setattr("control_plane.api.replication.POLL_SECONDS", QUIET)
    hello = make_hello("bot-1")
    async with replicated(tmp_path, "a", "b") as (a, b):
        identity = await a.enroll(await a.token())
        async with polling(at(identity, a)) as before, polling(at(identity, b)) as now:
            (first,) = (await before.poll(hello))["welcome"]
            (second,) = (await now.poll(hello))["welcome"]
            assert first.session_id == second.session_id

            async def is_gone() -> bool:
                async with a.http.get(f"http://{a.addresses['http']}/metrics") as told:
                    return "\nvariantd_sessions 0.0\n" in await told.text()

            await eventually(is_gone, within=LEASE / SECOND / 2, what="the first replica hears of it")
            reading = asyncio.create_task(a.rest("GET", "/v1/participants/bot-1/files/soul.md"))
            while not (asked := (await now.poll(hello)).get("read_file")):
                pass
            said = pb.FileContent(request_id=asked[0].request_id, content=BODY, digest=digest(BODY))
            await now.poll(hello, pb.SyncRequest(file_content=said))
            answer = await reading
    assert (answer.status, answer.body["content"]) == (200, BODY.decode())


async def test_a_start_waits_for_what_hosts_at_another_replica_say(tmp_path: Path) -> None:
    """Who is connected there is asked there, and kept out for what its host refuses."""
    states = (ParticipantState(participant="bot-1", targets=("*.md",), policy=b"p" * 32),)
    hello = make_hello(participants=states, capabilities=(PREFLIGHT,))
    async with replicated(tmp_path, "a", "b") as (a, b):
        identity = await a.enroll(await a.token())
        async with judging(at(identity, b), hello, lambda file: ReasonCode.TOO_LARGE):
            variants = [
                {"name": key, "key": key, "content": key, "weight": 50, "isControl": key == "a"}
                for key in ("a", "b")
            ]
            values = {"name": "Test", "targetFile": "soul.md", "variants": variants}
            await a.made("/v1/experiments", {**values, "participantIds": ["bot-1", "bot-2"]})
            begun = await a.made("/v1/experiments/test/start", None)
            assert "PREFLIGHT_REFUSED" in {item["code"] for item in begun["experiment"]["warnings"]}


async def present(plane: Plane, participant: str, presence: str) -> bool:
    """Whether the participant is shown so."""
    return bool((await plane.rest("GET", f"/v1/participants/{participant}")).body["presence"] == presence)


async def test_the_newest_session_is_the_one_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that came to another replica has left the first, which hears of it at once and changes nothing."""
    monkeypatch.setattr("control_plane.api.replication.POLL_SECONDS", QUIET)
    async with replicated(tmp_path, "a", "b") as (a, b):
        identity = await a.enroll(await a.token())
        async with (
            session(at(identity, a), make_hello("bot-1")) as first,
            session(at(identity, b), make_hello("bot-1", session_epoch=2)) as second,
        ):
            assert await ended(first) is grpc.StatusCode.OK
            with psycopg.connect(postgres.url_of(tmp_path), autocommit=True) as database:
                for hint in ("x", "x wake zz", "x ask", "x settle 00", "x of a later version"):
                    database.execute("select pg_notify('variantd', %s)", (hint,))
            await started(a, "bot-1")
            await second.report(await second.offer(), Result.APPLIED)
            assert await present(a, "bot-1", "connected")
