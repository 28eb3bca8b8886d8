"""A session in polls, against a real control plane: what a stream does, without a stream."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest

from shared import wire
from shared.clock import SystemClock
from shared.model import Condition, Hello, OfferAction, Result, SlotState, Step, digest
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from tests.support.builders import make_hello
from tests.support.plane import Plane, running_plane
from tests.support.stream import Polls, make_outcome, polling, session
from tests.support.waiting import PATIENCE, eventually

VARIANTS = [
    {"name": "A", "content": "a", "weight": 50, "isControl": True},
    {"name": "B", "content": "b", "weight": 50},
]


async def started(plane: Plane, *participants: str, **fields: object) -> str:
    """The path of a running experiment."""
    values = {"name": "Tone", "targetFile": "soul.md", "variants": VARIANTS, "participantIds": participants}
    made = await plane.made("/v1/experiments", {**values, **fields})
    await plane.made(f"/v1/experiments/{made['id']}/start", None)
    return f"/v1/experiments/{made['id']}"


async def the_agent(plane: Plane) -> Any:
    """The only agent, as REST shows it."""
    (agent,) = (await plane.rest("GET", "/v1/agents")).body["entities"]
    return agent


def known(offer: pb.Offer, *, result: Result = Result.APPLIED) -> SlotState:
    """What a host's Hello says of an offer it took up."""
    return SlotState(
        participant=offer.participant_id,
        slot_id=offer.slot_id,
        revision=offer.revision,
        files=(),
        step=Step.SWAPPED,
        result=result,
    )


def outcome(offer: pb.Offer) -> pb.SyncRequest:
    """The report that the offer was applied."""
    return pb.SyncRequest(outcome=wire.outcome_to_pb(make_outcome(wire.offer_from_pb(offer), Result.APPLIED)))


@asynccontextmanager
async def held(
    plane: Plane, polls: Polls, hello: Hello
) -> AsyncIterator["asyncio.Task[dict[str, list[Any]]]"]:
    """A poll of an open session, which the control plane has taken up, and holds where it has nothing to say."""
    if (await the_agent(plane))["presence"] != "connected":
        assert (await polls.poll(hello)).keys() == {"welcome"}
    before = (await the_agent(plane))["lastSeenAt"]
    waiting = asyncio.create_task(polls.poll(hello))

    async def seen() -> bool:
        return bool((await the_agent(plane))["lastSeenAt"] != before)

    await eventually(seen)
    try:
        yield waiting
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def refused(polls: Polls, *messages: pb.SyncRequest, **hello: Any) -> tuple[grpc.StatusCode, str]:
    """(status, text) with which the poll is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await polls.poll(make_hello("p", **hello), *messages)
    return failure.value.code(), failure.value.details() or ""


async def test_a_host_that_polls_hears_how_its_fleet_has_grown(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes up the Welcome of its first poll only, and the answers to its heartbeats."""
    monkeypatch.setattr("control_plane.api.spacing.RETURNS_PER_SECOND", 0.08)
    polls_itself, other = [await plane.enroll(await plane.token(), name=name) for name in ("polls", "other")]
    async with polling(polls_itself) as polls:
        (first,) = (await polls.poll(make_hello("p")))["welcome"]
        assert first.reconnect_window_ms == 0
        async with session(other, make_hello("q")):
            answer = await polls.poll(make_hello("p"), pb.SyncRequest(heartbeat=pb.Heartbeat(sequence=1)))
            assert answer["heartbeat_ack"][0].reconnect_window_ms == 25_000


async def test_polls_carry_a_session(plane: Plane) -> None:
    """Offers, outcomes, acknowledgements and telemetry; the slot's revision in Hello ends the offering."""
    identity = await plane.enroll(await plane.token())
    at = await started(plane, "p")
    async with polling(identity) as polls:
        first = await polls.poll(make_hello("p"))
        (offer,) = first["offer"]
        assert digest(offer.files[0].inline_content) == offer.files[0].digest
        again = await polls.poll(make_hello("p"))
        assert again["offer"] == [offer]
        condition = Condition(code="WATCH_DEGRADED", severity="warning", since_at=1, message="m")
        taken_up = make_hello("p", slots=(known(offer, result=Result.IN_PROGRESS),))
        answer = await polls.poll(
            taken_up,
            pb.SyncRequest(
                observation=pb.Observation(
                    certificate_days_left=3, conditions=wire.conditions_to_pb([condition])
                )
            ),
            pb.SyncRequest(
                heartbeat=pb.Heartbeat(sequence=7, sent_at_us=SystemClock().now() - 3600 * SECOND)
            ),
            outcome(offer),
        )
        assert answer.keys() == {"welcome", "heartbeat_ack", "outcome_ack"}
        assert (answer["heartbeat_ack"][0].sequence, answer["outcome_ack"][0].revision) == (7, 1)
        assert {w.session_id for w in (*first["welcome"], *again["welcome"])} == {
            answer["welcome"][0].session_id
        }
        shown = await the_agent(plane)
        assert [c["code"] for c in shown["conditions"]] == ["WATCH_DEGRADED"]
        assert shown["certificate"]["hostDaysLeft"] == 3
        assert -3_610_000 < shown["clockSkewMs"] < -3_590_000
        deployment = (await plane.rest("GET", f"{at}/deployments")).body["entities"][0]
        assert deployment["state"] == "applied"


async def test_a_poll_is_held_until_there_is_something_to_say(plane: Plane) -> None:
    """An offer made meanwhile goes out with the answer, and so does the thaw of a frozen fleet."""
    identity = await plane.enroll(await plane.token())
    async with polling(identity) as polls:
        async with held(plane, polls, make_hello("p")) as waiting:
            at = await started(plane, "p")
            (offer,) = (await waiting)["offer"]
        hello = make_hello("p", slots=(known(offer),))
        async with held(plane, polls, hello) as waiting:
            await plane.made("/v1/fleet:freeze", None)
            await plane.made(f"{at}/complete", {"then": "restore"})
            assert not waiting.done()
            await plane.made("/v1/fleet:unfreeze", None)
            (restore,) = (await waiting)["offer"]
        assert wire.offer_from_pb(restore).action is OfferAction.RESTORE


async def test_a_poll_with_nothing_to_say_ends_by_itself(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded time, with Welcome alone."""
    monkeypatch.setattr("control_plane.api.polls.HOLD_SECONDS", 0.05)
    identity = await plane.enroll(await plane.token())
    async with polling(identity) as polls:
        assert (await polls.poll(make_hello("p"))).keys() == {"welcome"}


async def test_an_agent_that_polls_is_connected_until_it_says_goodbye(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between polls too, so `requireConnected` is content; after Goodbye it is lost at once."""
    monkeypatch.setattr("control_plane.api.polls.HOLD_SECONDS", 0.05)
    identity = await plane.enroll(await plane.token())
    async with polling(identity) as polls:
        await polls.poll(make_hello("p"))
        first = await the_agent(plane)
        assert first["presence"] == "connected"
        await polls.poll(make_hello("p"))
        second = await the_agent(plane)
        assert (second["connectedAt"], second["sessionEpoch"]) == (first["connectedAt"], 1)
        at = await started(plane, "p")
        demand = {"participantId": "p", "variantId": "b", "requireConnected": True}
        await plane.made(f"{at}/deployments", demand)
        await polls.poll(make_hello("p"), pb.SyncRequest(goodbye=pb.Goodbye(reason="stop")))
        assert (await the_agent(plane))["presence"] == "lost"
        answer = await plane.rest("POST", f"{at}/deployments", demand)
        assert answer.body["reason"] == "NOT_CONNECTED"


async def test_a_poll_needs_nothing_from_the_one_before(tmp_path: Path) -> None:
    """Another server over the same database goes on where the first was, in the same session."""
    async with running_plane(tmp_path / "data") as plane:
        identity = await plane.enroll(await plane.token())
        await started(plane, "p")
        async with polling(identity) as polls:
            first = await polls.poll(make_hello("p"))
    async with running_plane(tmp_path / "data") as plane:
        identity = replace(identity, address=plane.addresses["agents"])
        async with polling(identity) as polls:
            second = await polls.poll(make_hello("p"), outcome(first["offer"][0]))
            assert second["welcome"][0].session_id == first["welcome"][0].session_id
            assert len(second["outcome_ack"]) == 1


async def test_the_newest_session_wins_between_stream_and_polls(plane: Plane) -> None:
    """A poll ends the older stream, a stream the older poll; a late poll of an older session is refused."""
    identity = await plane.enroll(await plane.token())
    async with (
        polling(identity) as polls,
        session(identity, make_hello("p")) as stream,
        held(plane, polls, make_hello("p", session_epoch=2)) as waiting,
    ):
        async with asyncio.timeout(PATIENCE):
            assert await stream.call.read() is grpc.aio.EOF
        async with session(identity, make_hello("p", session_epoch=3)) as newer:
            assert (await waiting).keys() == {"welcome"}
            code, _ = await refused(polls, session_epoch=2)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            await newer.send(heartbeat=pb.Heartbeat(sequence=1))
            await newer.receive("heartbeat_ack")
        await eventually(lambda: lost(plane))
        assert (await polls.poll(make_hello("p", session_epoch=2)))["welcome"]


async def lost(plane: Plane) -> bool:
    """Whether the agent is gone."""
    return bool((await the_agent(plane))["presence"] == "lost")


@pytest.mark.fault(41)
async def test_a_ban_ends_a_poll_and_keeps_out(plane: Plane) -> None:
    """Held or not; a participant of another agent stays that agent's."""
    identity = await plane.enroll(await plane.token())
    async with polling(identity) as polls:
        async with held(plane, polls, make_hello("p")) as waiting:
            agent = await the_agent(plane)
            await plane.made(f"/v1/agents/{agent['id']}:ban", None)
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                await waiting
            assert cut.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert (await refused(polls))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_what_two_agents_declare_stays_with_the_first(plane: Plane) -> None:
    """Polls bind as streams do: the second sees a condition, and no offer."""
    first, second = await plane.enroll(await plane.token()), await plane.enroll(await plane.token())
    async with polling(first) as polls, polling(second) as others:
        await started(plane, "p")
        assert (await polls.poll(make_hello("p")))["offer"]
        assert (await others.poll(make_hello("p"))).keys() == {"welcome"}
        agent = str(UUID(bytes=second.uid))
        shown = (await plane.rest("GET", f"/v1/agents/{agent}")).body
        assert [c["code"] for c in shown["conditions"]] == ["PARTICIPANT_TAKEN"]
        waiting = asyncio.create_task(others.poll(make_hello("p")))
        await plane.made("/v1/participants/p:move", {"agentId": agent})
        answers = [await waiting, await others.poll(make_hello("p"))]
        assert any("offer" in answer for answer in answers)


async def test_more_than_fits_comes_with_the_next_poll(plane: Plane) -> None:
    """An answer is bounded in messages and bytes; what the next Hello does not know of is offered then."""
    identity = await plane.enroll(await plane.token())
    names = [f"p{number}" for number in range(130)]
    variants = [{**v, "content": str(v["content"]) * 30_000} for v in VARIANTS]
    await started(plane, *names, variants=variants)
    async with polling(identity) as polls:
        slots: tuple[SlotState, ...] = ()
        for _ in range(2):
            answer = await polls.poll(make_hello(*names, slots=slots))
            assert len(answer["offer"]) < 130
            slots += tuple(known(offer) for offer in answer["offer"])
        assert sorted(slot.participant for slot in slots) == sorted(names)


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "Hello"),
        ([pb.SyncRequest(heartbeat=pb.Heartbeat(sequence=1))], "Hello"),
        ([pb.SyncRequest(hello=wire.hello_to_pb(make_hello("p")))] * 2, "Hello"),
        ([pb.SyncRequest(hello=wire.hello_to_pb(make_hello("p"))), *[pb.SyncRequest()] * 256], "256"),
        (
            [
                pb.SyncRequest(hello=wire.hello_to_pb(make_hello("p"))),
                pb.SyncRequest(outcome=pb.Outcome(participant_id="p", slot_id=b"short")),
            ],
            "slot_id",
        ),
    ],
)
async def test_a_malformed_poll_is_refused_by_field(
    plane: Plane, messages: list[pb.SyncRequest], named: str
) -> None:
    """It is told what is wrong; the next one is answered."""
    identity = await plane.enroll(await plane.token())
    async with identity.channel() as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Exchange(pb.ExchangeRequest(messages=messages), timeout=PATIENCE)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert named in (refusal.value.details() or "")


async def test_a_stopping_server_asks_to_come_back(tmp_path: Path) -> None:
    """A held poll is answered with Drain at once."""
    async with AsyncExitStack() as stack:
        async with running_plane(tmp_path / "data") as plane:
            polls = await stack.enter_async_context(polling(await plane.enroll(await plane.token())))
            waiting = await stack.enter_async_context(held(plane, polls, make_hello("p")))
        assert (await waiting).keys() == {"welcome", "drain"}


async def test_only_a_first_poll_waits_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy names a window."""
    monkeypatch.setattr("control_plane.api.sessions.OPENING_AT_ONCE", 0)
    monkeypatch.setattr("control_plane.api.sessions.PATIENCE_SECONDS", 0.0)
    async with (
        running_plane(tmp_path / "data") as plane,
        polling(await plane.enroll(await plane.token())) as polls,
    ):
        (answer,) = (await polls.poll(make_hello("p")))["busy"]
        assert answer.retry_window_ms > 0
