"""An agent that lies, against the real control plane: who it is stays in its certificate, and others do not notice."""

import asyncio
import time
from dataclasses import replace
from uuid import UUID

import grpc
import pytest

from shared import wire
from shared.ids import new_id
from shared.model import CHAIN_START, FileState, Result, SlotState, SpoolState, Step, digest
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from tests.support.builders import Spooled, make_hello
from tests.support.hostile import lying
from tests.support.plane import Identity, Plane
from tests.support.stream import make_outcome, session
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.fault(52)

PAIR = [
    {"name": "A", "content": "a", "weight": 50, "isControl": True},
    {"name": "B", "content": "b", "weight": 50},
]


async def pair(plane: Plane) -> tuple[Identity, Identity]:
    """An honest agent and one that is not."""
    return await plane.enroll(await plane.token()), await plane.enroll(await plane.token())


async def started(plane: Plane, *participants: str) -> str:
    """The path of a running experiment."""
    values = {"name": "Tone", "targetFile": "soul.md", "variants": PAIR, "participantIds": participants}
    made = await plane.made("/v1/experiments", values)
    await plane.made(f"/v1/experiments/{made['id']}/start", None)
    return f"/v1/experiments/{made['id']}"


async def agents(plane: Plane) -> dict[bytes, dict[str, object]]:
    """Every agent as it is shown, by uid."""
    found = (await plane.rest("GET", "/v1/agents")).body["entities"]
    return {UUID(item["id"]).bytes: item for item in found}


async def test_malformed_hellos_are_refused_by_field(plane: Plane) -> None:
    """Huge, impossible or of another kind: each stream ends with INVALID_ARGUMENT, none is stored."""
    honest, liar = await pair(plane)
    good = wire.hello_to_pb(make_hello("p"))
    lies = []
    for change in (
        {"session_epoch": 2**64 - 1},
        {"incarnation": b"x" * 1000},
        {"agent_version": "v" * 1000},
        {"capabilities": ["c"] * 1000},
        {"capabilities": ["c" * 10_000]},
        {"labels": {str(number): "x" for number in range(1000)}},
        {"labels": {"a": "x" * 100_000}},
        {"hostname": "h" * 1000},
        {"platform": pb.Platform(os="o" * 10_000)},
        {"participants": [pb.ParticipantState(participant_id=f"p{n}") for n in range(10_001)]},
        {"participants": [pb.ParticipantState(participant_id="x" * 1000, drift_policy=1, exposure=1)]},
        {"slots": [pb.SlotState(participant_id="p", slot_id=b"short")]},
        {
            "slots": [
                pb.SlotState(participant_id="p", slot_id=bytes(16), revision=2**64 - 1, step=1, result=1)
            ]
        },
        {"spool": pb.SpoolState(epoch=b"x" * 1000)},
        {"spool": pb.SpoolState(depth=2**64 - 1)},
    ):
        lie = pb.Hello()
        lie.CopyFrom(good)
        for name in change:
            lie.ClearField(name)  # type: ignore[arg-type]
        lie.MergeFrom(pb.Hello(**change))  # type: ignore[arg-type]
        lies.append(lie)
    async with lying(liar) as kit:
        for lie in lies:
            heard, code = await kit.hello(lie)
            assert (heard, code) == ([], grpc.StatusCode.INVALID_ARGUMENT), lie
        assert await kit.said(pb.SyncRequest(goodbye=pb.Goodbye())) == ([], grpc.StatusCode.INVALID_ARGUMENT)
    assert (await agents(plane))[liar.uid]["presence"] == "never_seen"
    async with session(honest, make_hello("p")):
        pass


async def test_a_hello_larger_than_a_message_may_be_is_not_read(plane: Plane) -> None:
    """Five megabytes end at the transport."""
    liar = await plane.enroll(await plane.token())
    async with lying(liar) as kit:
        lie = wire.hello_to_pb(make_hello("p"))
        lie.labels["a"] = "x" * 5_000_000
        assert (await kit.hello(lie))[1] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_nobody_speaks_for_another(plane: Plane) -> None:
    """Participants, outcomes, events, contents and answers of another agent: claimed, and none of it taken."""
    honest, liar = await pair(plane)
    async with session(honest, make_hello("p")) as stream:
        at = await started(plane, "p")
        offer = await stream.offer()
        slot = SlotState(
            participant="p",
            slot_id=offer.slot_id,
            revision=99,
            files=(FileState(path="soul.md", digest=digest(b"z")),),
            step=Step.SWAPPED,
            result=Result.APPLIED,
        )
        async with session(liar, make_hello("p", "q", slots=(slot,))) as other:
            await other.send(outcome=wire.outcome_to_pb(make_outcome(offer, Result.STUCK)))
            await other.receive("outcome_ack")
            await other.send(file_content=pb.FileContent(request_id=new_id(), content=b"forged"))
            spool = Spooled(epoch=new_id())
            async with lying(liar) as kit:
                record = pb.SpoolRecord(
                    id=new_id(), event=pb.Event(participant_id="p", kind=1, occurred_at_us=1, source=1)
                )
                answer = await kit.report(
                    epoch=spool.epoch,
                    first_seq=1,
                    chain=CHAIN_START,
                    records=[record.SerializeToString()],
                    tail_seq=1,
                )
                assert isinstance(answer, pb.ReportSpoolResponse)
            async with liar.channel() as channel:
                stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await anext(
                        aiter(stub.FetchContent(pb.FetchContentRequest(digest=offer.files[0].digest)))
                    )
                assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        shown = await agents(plane)
        assert [c["code"] for c in shown[liar.uid]["conditions"]] == ["PARTICIPANT_TAKEN"]  # type: ignore[attr-defined]
        assert shown[honest.uid]["conditions"] == []
        deployment = (await plane.rest("GET", f"{at}/deployments")).body["entities"][0]
        assert (deployment["state"], deployment["revision"]) == ("offered", "1")
        events = (await plane.rest("GET", "/v1/events")).body["entities"]
        assert {event["reason"] for event in events} <= {"PARTICIPANT_NOT_BOUND"}
        await stream.report(offer, Result.APPLIED)


async def test_jumps_in_a_spool_cost_only_who_jumps(plane: Plane) -> None:
    """Beyond every integer: refused. Ahead: a loss of its own, with the exact count. Another story: EPOCH_DIVERGED."""
    _, liar = await pair(plane)
    epoch = new_id()
    record = pb.SpoolRecord(
        id=new_id(), event=pb.Event(participant_id="p", kind=1, occurred_at_us=1, source=1)
    ).SerializeToString()
    async with session(liar, make_hello("p")), lying(liar) as kit:
        for lie in (
            {"first_seq": 2**64 - 1},
            {"first_seq": 0},
            {"epoch": b"short"},
            {"chain": b"short"},
            {"tail_seq": 2**64 - 1},
        ):
            values = {
                "epoch": epoch,
                "first_seq": 1,
                "chain": CHAIN_START,
                "records": [record],
                "tail_seq": 1,
            }
            assert await kit.report(**{**values, **lie}) is grpc.StatusCode.INVALID_ARGUMENT
        many = await kit.report(
            epoch=epoch, first_seq=1, chain=CHAIN_START, records=[record] * 1001, tail_seq=1
        )
        assert many is grpc.StatusCode.RESOURCE_EXHAUSTED
        ahead = await kit.report(
            epoch=epoch, first_seq=1001, chain=bytes(32), records=[record], tail_seq=1001
        )
        assert isinstance(ahead, pb.ReportSpoolResponse)
        assert ahead.through_seq == 1001
        other = await kit.report(
            epoch=epoch, first_seq=1002, chain=bytes(32), records=[record], tail_seq=1002
        )
        assert isinstance(other, pb.ReportSpoolResponse)
        assert other.verdict == pb.SPOOL_VERDICT_EPOCH_DIVERGED
        garbage = await kit.report(
            epoch=new_id(), first_seq=1, chain=bytes(32), records=[b"\xff" * 99], tail_seq=1
        )
        assert isinstance(garbage, pb.ReportSpoolResponse)
    shown = (await agents(plane))[liar.uid]["spool"]
    assert shown["lost"] == 1001  # type: ignore[index]


@pytest.mark.parametrize("moment", [-1, 253_402_300_800_000_000])
async def test_moments_that_no_calendar_has_are_shown_to_nobody(plane: Plane, moment: int) -> None:
    """Of conditions, the spool, outcomes and records: whatever is made of them, everything is still answered."""
    _, liar = await pair(plane)
    async with session(liar, make_hello("p")) as stream:
        at = await started(plane, "p")
        offer = await stream.offer()
        condition = pb.Condition(code="WATCH_DEGRADED", severity="warning", since_at_us=moment, message="m")
        await stream.send(observation=pb.Observation(conditions=[condition]))
        await stream.send(heartbeat=pb.Heartbeat(sequence=1, sent_at_us=moment))

        async def told() -> bool:
            conditions = (await agents(plane))[liar.uid]["conditions"]
            return [c["code"] for c in conditions] == ["WATCH_DEGRADED"]  # type: ignore[attr-defined]

        await eventually(told, what="the condition is shown")
        outcome = wire.outcome_to_pb(make_outcome(offer, Result.APPLIED))
        outcome.occurred_at_us = moment
        await stream.send(outcome=outcome)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while True:
                await stream.next()
        assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    async with lying(liar) as kit:
        aged = replace(make_hello("p"), spool=SpoolState(epoch=new_id(), depth=1, size=1, oldest_at=moment))
        assert await kit.hello(aged) == ([], grpc.StatusCode.INVALID_ARGUMENT)
        bodies = (
            {"event": pb.Event(participant_id="p", kind=1, occurred_at_us=moment, source=1)},
            {"view": pb.View(participant_id="p", path="soul.md", from_at_us=moment, state=1)},
            {"loaded": pb.Loaded(participant_id="p", path="soul.md", digest=bytes(32), loaded_at_us=moment)},
            {"unseen": pb.Unseen(participant_id="p", reason="overflow", from_at_us=moment, to_at_us=moment)},
        )
        records = [
            pb.SpoolRecord(id=new_id(), recorded_at_us=moment, **body).SerializeToString()  # type: ignore[arg-type]
            for body in bodies
        ]
        answer = await kit.report(
            epoch=new_id(), first_seq=1, chain=CHAIN_START, records=records, tail_seq=len(records)
        )
        assert isinstance(answer, pb.ReportSpoolResponse)
        assert answer.through_seq == len(records)
    deployment = (await plane.rest("GET", f"{at}/deployments")).body["entities"][0]
    for path in (
        "/v1/agents",
        "/v1/participants",
        "/v1/participants/p",
        "/v1/events",
        f"/v1/deployments/{deployment['id']}/outcomes",
        f"{at}/deployments",
        f"{at}/results",
    ):
        answered = await plane.rest("GET", path)
        assert answered.status == 200, (path, answered.body)


@pytest.mark.timeout(120)
async def test_a_flood_is_held_to_its_share_and_a_ban_ends_it(plane: Plane) -> None:
    """Hellos, heartbeats, outcomes, batches, all at once: an honest agent and the operator are answered meanwhile."""
    honest, liar = await pair(plane)
    async with session(honest, make_hello("p")) as stream:
        await started(plane, "p")
        offer = await stream.offer()
        async with lying(liar) as kit:
            hellos = [asyncio.create_task(kit.hello(make_hello("q", session_epoch=n))) for n in range(90)]
            reports = [asyncio.create_task(_reported(liar, kit, number)) for number in range(40)]
            stream_of_lies = asyncio.create_task(_pour(liar, offer.slot_id))
            slowest = 0.0
            for number in range(5):
                began = time.monotonic()
                await stream.send(heartbeat=pb.Heartbeat(sequence=number))
                await stream.receive("heartbeat_ack")
                assert (await plane.rest("GET", "/v1/experiments")).status == 200
                slowest = max(slowest, time.monotonic() - began)
            await stream.report(offer, Result.APPLIED)
            agent = str(UUID(bytes=liar.uid))
            await plane.made(f"/v1/agents/{agent}:ban", None)
            async with asyncio.timeout(PATIENCE):
                assert await stream_of_lies is not grpc.StatusCode.CANCELLED, "it was cut, it did not leave"
                answers = await asyncio.gather(*hellos, *reports)

            async def shut_out() -> bool:  # Busy is said before anybody is looked up
                return (await kit.hello(make_hello("q")))[1] is grpc.StatusCode.PERMISSION_DENIED

            await eventually(shut_out, what="a banned agent is told so")
        assert slowest < PATIENCE / 2, "an honest agent waited for a liar"
        codes = [code for code in answers if isinstance(code, grpc.StatusCode)]
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes, "as many batches at once as it likes"
        busy = [heard for heard, _ in (a for a in answers if isinstance(a, tuple)) if heard]
        assert any(message.HasField("busy") for message in (heard[0] for heard in busy))


async def _reported(liar: Identity, kit: object, number: int) -> object:
    record = pb.SpoolRecord(
        id=new_id(), event=pb.Event(participant_id="q", kind=1, occurred_at_us=number + 1, source=1)
    )
    raw = [record.SerializeToString()] * 1000
    return await kit.report(epoch=new_id(), first_seq=1, chain=bytes(32), records=raw, tail_seq=1000)  # type: ignore[attr-defined]


async def _pour(liar: Identity, slot_id: bytes) -> grpc.StatusCode:
    """A session that says outcomes and heartbeats as fast as they are taken, and reads nothing; how it ended."""
    async with liar.channel() as channel:
        call = agent_pb2_grpc.AgentServiceStub(channel).Sync()  # type: ignore[no-untyped-call]
        hello = make_hello("q", session_epoch=1000, spool=SpoolState(epoch=bytes(16)))
        await call.write(pb.SyncRequest(hello=wire.hello_to_pb(hello)))
        outcome = pb.Outcome(participant_id="q", slot_id=slot_id, revision=1, attempt=1, step=1, result=1)
        number = 0
        while not call.done():
            number += 1
            try:
                await call.write(pb.SyncRequest(outcome=outcome))
                await call.write(pb.SyncRequest(heartbeat=pb.Heartbeat(sequence=number)))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                break
        code: grpc.StatusCode = await call.code()
        return code


@pytest.mark.fault(42)
async def test_one_token_two_hosts_at_the_same_moment(plane: Plane) -> None:
    """Exactly one of them wins, every time."""
    for _ in range(5):
        token = await plane.token()
        raced = await asyncio.gather(*(plane.enroll(token) for _ in range(2)), return_exceptions=True)
        assert sorted(isinstance(item, Identity) for item in raced) == [False, True]


@pytest.mark.fault(41)
async def test_a_ban_cuts_within_a_second(plane: Plane) -> None:
    """The live session, and every call after it: reports, contents, the next certificate.

    A machine with other work may take longer for any one of them; what waits for a heartbeat or a lease takes
    longer for every one.
    """
    for number in range(5):
        liar = await plane.enroll(await plane.token(), name=f"liar-{number}")
        async with session(liar, make_hello(f"p-{number}")) as stream:
            await started(plane, f"p-{number}")
            offer = await stream.offer()
            began = time.monotonic()
            await plane.made(f"/v1/agents/{UUID(bytes=liar.uid)}:ban", None)
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                async with asyncio.timeout(PATIENCE):
                    await stream.call.read()
                    await stream.call
            took = time.monotonic() - began
            assert cut.value.code() is grpc.StatusCode.PERMISSION_DENIED
        if took < 1.0:
            break
    assert took < 1.0
    async with liar.channel() as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as fetch:
            await anext(aiter(stub.FetchContent(pb.FetchContentRequest(digest=offer.files[0].digest))))
        with pytest.raises(grpc.aio.AioRpcError) as renewal:
            await stub.RenewCertificate(pb.RenewCertificateRequest(signing_request=b"x"))
    assert {fetch.value.code(), renewal.value.code()} == {grpc.StatusCode.PERMISSION_DENIED}
