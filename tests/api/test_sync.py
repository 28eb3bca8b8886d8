"""The agents' listener over real mutual TLS: who gets in, what is offered, what is stored."""

import asyncio
import itertools
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest

from agent.channel import OPTIONS
from control_plane.api import sync
from control_plane.api.sessions import clock_skew
from shared import tls, wire
from shared.clock import SystemClock
from shared.model import OfferAction, Reason, ReasonCode, Result, SlotState, Step, digest
from shared.moment import SECOND
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from shared.pb.variantd.agent.v1 import agent_pb2_grpc
from shared.ticket import ticket_from_token, ticket_to_token
from tests.support.builders import Spooled, make_hello
from tests.support.plane import Identity, Plane, running_plane
from tests.support.stream import Stream, make_outcome, session
from tests.support.waiting import PATIENCE, eventually

PAIR = [
    {"name": "A", "content": "a", "weight": 50, "isControl": True},
    {"name": "B", "content": "b", "weight": 50},
]


async def started(plane: Plane, *participants: str, **fields: object) -> str:
    """The path of a running experiment."""
    values = {"name": "Tone", "targetFile": "soul.md", "variants": PAIR, "participantIds": participants}
    made = await plane.made("/v1/experiments", {**values, **fields})
    await plane.made(f"/v1/experiments/{made['id']}/start", None)
    return f"/v1/experiments/{made['id']}"


async def refused(identity: Identity) -> grpc.StatusCode:
    """With which status the stream is refused."""
    async with identity.channel() as channel:
        call = agent_pb2_grpc.AgentServiceStub(channel).Sync()  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            async with asyncio.timeout(PATIENCE):
                await call.write(pb.SyncRequest(hello=wire.hello_to_pb(make_hello("p"))))
                while await call.read() is not grpc.aio.EOF:
                    pass
                await call
        code: grpc.StatusCode = failure.value.code()
        return code


async def enroll_refused(plane: Plane, token: str, *, name: str = "host") -> grpc.StatusCode:
    """With which status enrollment is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await plane.enroll(token, name=name)
    code: grpc.StatusCode = failure.value.code()
    return code


# -- how often it is heard


async def test_a_large_fleet_is_asked_to_beat_less_often(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many heartbeats a second as one process takes up easily: ten seconds for the first, and thirty at the most."""
    monkeypatch.setattr("control_plane.api.spacing.HEARTBEATS_PER_SECOND", 0.08)
    token = await plane.token(maxUses=5)
    seconds, streams = [], []
    async with AsyncExitStack() as stack:
        for number in range(5):
            identity = await plane.enroll(token, name=f"host-{number}")
            stream = await stack.enter_async_context(session(identity, make_hello(f"p-{number}")))
            assert stream.welcome is not None
            seconds.append(stream.welcome.heartbeat_interval_ms / 1000)
            streams.append(stream)
        assert seconds == [10, 12.5, 25, 30, 30]
        for asked in ([30, 30, 30, 0, 0], [0] * 5):  # whoever came early as the others; and nobody twice
            for stream in streams:
                await stream.send(heartbeat=pb.Heartbeat(sequence=1))
            answers = [await stream.receive("heartbeat_ack") for stream in streams]
            assert [answer.heartbeat_interval_ms / 1000 for answer in answers] == asked


async def test_a_large_fleet_is_asked_to_come_back_over_longer(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many a second as one process takes up beside its other work; a small fleet as its hosts do by themselves."""
    monkeypatch.setattr("control_plane.api.spacing.RETURNS_PER_SECOND", 0.125)
    token = await plane.token(maxUses=4)
    async with AsyncExitStack() as stack:
        streams = []
        for number, asked in enumerate([0, 0, 16, 24]):  # by as many as were there before
            identity = await plane.enroll(token, name=f"host-{number}")
            stream = await stack.enter_async_context(session(identity, make_hello(f"p-{number}")))
            assert stream.welcome is not None
            assert stream.welcome.reconnect_window_ms / 1000 == asked
            streams.append(stream)
        for later in ([32] * 4, [0] * 4):  # whoever came early as the others; and nobody twice
            for stream in streams:
                await stream.send(heartbeat=pb.Heartbeat(sequence=1))
            answers = [await stream.receive("heartbeat_ack") for stream in streams]
            assert [answer.reconnect_window_ms / 1000 for answer in answers] == later


async def test_nobody_is_asked_to_beat_more_often(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host is in a pause as long as it was asked for, and would be taken for silent."""
    monkeypatch.setattr("control_plane.api.spacing.HEARTBEATS_PER_SECOND", 0.08)
    stays, leaves = [await plane.enroll(await plane.token(), name=name) for name in ("stays", "leaves")]

    async def gone() -> bool:
        return bool((await plane.rest("GET", "/v1/participants/leaves")).body["presence"] == "lost")

    async def asked(stream: Stream) -> int:
        await stream.send(heartbeat=pb.Heartbeat(sequence=1))
        return int((await stream.receive("heartbeat_ack")).heartbeat_interval_ms)

    async with session(stays, make_hello("stays")) as stream:
        async with session(leaves, make_hello("leaves")):
            assert await asked(stream) == 25_000
        await eventually(gone)
        assert await asked(stream) == 0
        async with session(leaves, make_hello("leaves")):
            assert await asked(stream) == 0  # it has been at that all the while


async def test_a_process_that_could_not_read_takes_nobody_for_silent(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop stood still for longer than a host may be silent: what the host said meanwhile is read first."""
    monkeypatch.setattr("control_plane.api.spacing.HEARTBEAT_SECONDS", 0.2)
    async with session(await plane.enroll(await plane.token()), make_hello("p")) as stream:
        for sequence in range(1, 4):
            time.sleep(1.0)  # noqa: ASYNC251  # nothing of this process runs
            await stream.send(heartbeat=pb.Heartbeat(sequence=sequence))
            assert (await stream.receive("heartbeat_ack")).sequence == sequence


@pytest.mark.fault(30)
async def test_a_write_that_came_too_late_is_the_last(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be said while an answer does not get through ends with it, told as what it is: too slow."""
    monkeypatch.setattr("control_plane.api.spacing.HEARTBEAT_SECONDS", 2.0)
    monkeypatch.setattr("control_plane.api.sync.WRITE_DEADLINE_SECONDS", 3.0)
    async with session(await plane.enroll(await plane.token()), make_hello("p")) as stream:
        for sequence in range(
            12_000
        ):  # unread answers fill the way to the host, 64 KiB, before the last is heard
            await stream.send(heartbeat=pb.Heartbeat(sequence=sequence))
        for number in itertools.count():  # what is said by others meanwhile, until it is over
            await started(plane, "p", targetFile=f"{number}.md")
            if (await plane.rest("GET", "/v1/participants/p")).body["presence"] == "lost":
                break
        with suppress(grpc.aio.AioRpcError):  # the status comes after what was not read
            while await stream.call.read() is not grpc.aio.EOF:
                pass
        assert await stream.call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.fault(30)
async def test_who_does_not_even_read_its_welcome_is_cut(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not connected for as long as its connection lasts, nor has it more streams than an agent may."""
    monkeypatch.setattr("control_plane.api.spacing.HEARTBEAT_SECONDS", 0.5)
    monkeypatch.setattr("control_plane.api.sync.WRITE_DEADLINE_SECONDS", 1.0)
    deaf = await plane.enroll(await plane.token())
    few = [
        *OPTIONS,
        ("grpc.http2.lookahead_bytes", 5),
    ]  # what the control plane may send before anything is read
    credentials = grpc.ssl_channel_credentials(deaf.ca, deaf.key, deaf.certificate)
    async with grpc.aio.secure_channel(deaf.address, credentials, options=few) as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]

        async def call() -> Any:
            opened = stub.Sync()
            await opened.write(pb.SyncRequest(hello=wire.hello_to_pb(make_hello("p"))))
            return opened

        async def is_lost() -> bool:
            [agent] = (await plane.rest("GET", "/v1/agents")).body["entities"]
            return agent["presence"] == "lost"

        first = await call()
        await eventually(is_lost, what="its session was opened and has ended")
        waiting = [await call() for _ in range(sync.MAX_STREAMS - 1)]
        async with asyncio.timeout(PATIENCE):
            one_more = await call()
            assert "calls of this agent are under way" in await one_more.details()
            assert (await first.read()).HasField("welcome")
            assert "too slow" in await first.details()
        for one in waiting:
            one.cancel()


# -- who gets in


@pytest.mark.fault(42)
async def test_a_token_is_spent(plane: Plane) -> None:
    """A replayed token is refused; with maxUses 2, two hosts that race get in and a third does not."""
    once = await plane.token()
    await plane.enroll(once)
    assert await enroll_refused(plane, once) is grpc.StatusCode.UNAUTHENTICATED
    twice = await plane.token(maxUses=2)
    raced = await asyncio.gather(*(plane.enroll(twice) for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(item, Identity) for item in raced) == 2


@pytest.mark.fault(42)
async def test_an_expired_token_is_refused(plane: Plane) -> None:
    """One second after its end a token is worth nothing."""
    token = await plane.token(ttl="PT1S")
    ends = (await plane.rest("GET", "/v1/enrollment-tokens")).body["entities"][0]["expiresAt"]

    async def expired() -> bool:
        fresh = await plane.made("/v1/enrollment-tokens", {})
        return bool(fresh["createdAt"] > ends)

    await eventually(expired)
    assert await enroll_refused(plane, token) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_host_is_named_by_what_it_says(plane: Plane) -> None:
    """Also where a certificate has no room for it; a name that is none is the control plane's to refuse."""
    await plane.enroll(await plane.token(), name="ä" * 40)
    agents = (await plane.rest("GET", "/v1/agents")).body["entities"]
    assert [agent["name"] for agent in agents] == ["ä" * 40]
    with pytest.raises(grpc.aio.AioRpcError, match="1 to 128 characters"):
        await plane.enroll(await plane.token(), name="")


async def test_a_foreign_or_unfitting_token_is_refused(plane: Plane) -> None:
    """A made-up secret and a name outside the pattern are refused alike."""
    ticket = ticket_from_token(await plane.token())
    forged = ticket_to_token(replace(ticket, secret=bytes(32)))
    assert await enroll_refused(plane, forged) is grpc.StatusCode.UNAUTHENTICATED
    named = await plane.token(namePattern="web-*")
    assert await enroll_refused(plane, named, name="db-1") is grpc.StatusCode.UNAUTHENTICATED
    assert (await plane.enroll(named, name="web-1")).uid


async def test_a_foreign_certificate_does_not_get_in(plane: Plane) -> None:
    """A certificate of another authority ends at the handshake; a server's certificate is no agent's."""
    identity = await plane.enroll(await plane.token())
    foreign = tls.new_authority("other", now=SystemClock().now())
    key = tls.new_key()
    certificate = foreign.issue_agent(
        tls.new_signing_request(key, "x"),
        project_id=bytes(16),
        agent_uid=identity.uid,
        now=SystemClock().now(),
    )
    stranger = replace(identity, key=tls.key_to_pem(key), certificate=certificate)
    assert await refused(stranger) is grpc.StatusCode.UNAVAILABLE


async def test_enrolling_again_with_the_old_key_keeps_the_uid(plane: Plane) -> None:
    """Proof of the old key keeps the identity; a signature by another key makes a new agent."""
    identity = await plane.enroll(await plane.token())
    for proof, kept in ((tls.key_from_pem(identity.key), True), (tls.new_key(), False)):
        ticket = ticket_from_token(await plane.token())
        signing_request = tls.new_signing_request(tls.new_key(), "host")
        answer = await agent_pb2_grpc.EnrollmentServiceStub(plane.operator).Enroll(  # type: ignore[no-untyped-call, misc]
            pb.EnrollRequest(
                secret=ticket.secret,
                signing_request=signing_request,
                name="host",
                previous_certificate=tls.pem_to_der(identity.certificate),
                previous_signature=tls.sign(proof, signing_request),
            )
        )
        assert (answer.agent_uid == identity.uid) is kept


@pytest.mark.fault(41)
async def test_a_ban_cuts_the_stream_and_keeps_out(plane: Plane) -> None:
    """A banned agent's live session ends, its batches are refused, and it does not come back."""
    identity = await plane.enroll(await plane.token())
    agent = (await plane.rest("GET", "/v1/agents")).body["entities"][0]["id"]
    async with session(identity, make_hello("p")) as stream:
        await plane.made(f"/v1/agents/{agent}:ban", None)
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            async with asyncio.timeout(PATIENCE):
                await stream.call.read()
                await stream.call
        assert cut.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert await refused(identity) is grpc.StatusCode.PERMISSION_DENIED
    async with identity.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as batch:
            request = wire.batch_to_pb(Spooled(epoch=bytes(16)).batch())
            await agent_pb2_grpc.AgentServiceStub(channel).ReportSpool(request)  # type: ignore[no-untyped-call, misc]
        assert batch.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_retirement_cuts_the_stream_and_a_replacement_is_bound(plane: Plane) -> None:
    """The live session ends at once; another agent gets the participant, the host itself a new identity."""
    identity = await plane.enroll(await plane.token())
    agent = (await plane.rest("GET", "/v1/agents")).body["entities"][0]["id"]
    async with session(identity, make_hello("p")) as stream:
        shown = await plane.made(f"/v1/agents/{agent}:retire", None)
        assert (shown["presence"], shown["participantIds"], bool(shown["retiredAt"])) == ("retired", [], True)
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            async with asyncio.timeout(PATIENCE):
                await stream.call.read()
                await stream.call
        assert cut.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert await refused(identity) is grpc.StatusCode.PERMISSION_DENIED
    assert (await plane.rest("GET", "/v1/participants/p")).body["presence"] == "retired"
    entries = (await plane.rest("GET", "/v1/audit-log")).body["entities"]
    assert (entries[0]["operation"], entries[0]["resourceId"]) == ("FleetService.RetireAgent", agent)
    ticket = ticket_from_token(await plane.token())
    signing_request = tls.new_signing_request(tls.new_key(), "host")
    answer = await agent_pb2_grpc.EnrollmentServiceStub(plane.operator).Enroll(  # type: ignore[no-untyped-call, misc]
        pb.EnrollRequest(
            secret=ticket.secret,
            signing_request=signing_request,
            name="host",
            previous_certificate=tls.pem_to_der(identity.certificate),
            previous_signature=tls.sign(tls.key_from_pem(identity.key), signing_request),
        )
    )
    assert answer.agent_uid != identity.uid
    async with session(await plane.enroll(await plane.token()), make_hello("p")):
        assert (await plane.rest("GET", "/v1/participants/p")).body["presence"] == "connected"


# -- what is offered and stored


async def test_an_offer_its_outcome_and_the_acknowledgement(plane: Plane) -> None:
    """A start reaches the connected agent; its outcome is stored before it is acknowledged, once."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        at = await started(plane, "p")
        offer = await stream.offer()
        assert (offer.action, offer.revision, offer.files[0].path) == (OfferAction.WRITE, 1, "soul.md")
        assert digest(offer.files[0].content or b"") == offer.files[0].digest
        assert len(offer.experiment_digests) == 2
        for _ in range(2):
            ack = await stream.report(offer, Result.APPLIED)
            assert ack.revision == 1
        deployment = (await plane.rest("GET", f"{at}/deployments")).body["entities"][0]
        assert deployment["state"] == "applied"
        assert deployment["files"][0]["runningDigest"] == deployment["files"][0]["desiredDigest"]
        outcomes = (await plane.rest("GET", f"/v1/deployments/{deployment['id']}/outcomes")).body["entities"]
        assert [item["result"] for item in outcomes] == ["applied"]

        await plane.made(f"{at}/complete", {"then": "restore"})
        restore = await stream.offer()
        assert (restore.action, restore.revision, restore.applied_before) == (OfferAction.RESTORE, 2, True)


async def test_what_a_host_only_closed_it_has_no_content_of(plane: Plane) -> None:
    """It was away while the experiment ran, so what it holds when that runs again is the baseline."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")):
        at = await started(plane, "p")
    await plane.made(f"{at}/complete", {"then": "keep"})
    async with session(identity, make_hello("p", session_epoch=2)) as stream:
        close = await stream.offer()
        assert close.action is OfferAction.CLOSE
        await stream.report(close, Result.APPLIED)
        await plane.made(f"{at}/reset", None)
        await plane.made(f"{at}/start", None)
        offer = await stream.offer()
        assert (offer.action, offer.applied_before) == (OfferAction.WRITE, False)


async def test_a_refusal_is_visible_with_code_message_and_remedy(plane: Plane) -> None:
    """What the host says of a refusal is what the operator reads, in the deployment and its history."""
    identity = await plane.enroll(await plane.token())
    reason = Reason(code=ReasonCode.TARGET_NOT_ALLOWED, message="no glob allows it", remedy="add it")
    async with session(identity, make_hello("p")) as stream:
        at = await started(plane, "p")
        offer = await stream.offer()
        await stream.report(offer, Result.REFUSED, reason=reason)
        deployment = (await plane.rest("GET", f"{at}/deployments")).body["entities"][0]
        assert deployment["state"] == "refused"
        assert deployment["reason"] == {
            "code": "TARGET_NOT_ALLOWED",
            "message": "no glob allows it",
            "remedy": "add it",
        }


async def test_a_returning_agent_is_offered_only_what_it_does_not_know(plane: Plane) -> None:
    """Hello tells everything: known revisions are not offered again, a fresh host gets all of them."""
    identity = await plane.enroll(await plane.token())
    await started(plane, "p", "q")
    async with session(identity, make_hello("p", "q")) as stream:
        offers = [await stream.offer(), await stream.offer()]
    known = SlotState(
        participant=offers[0].participant,
        slot_id=offers[0].slot_id,
        revision=1,
        files=(),
        step=Step.SWAPPED,
        result=Result.APPLIED,
    )
    async with session(identity, make_hello("p", "q", session_epoch=2, slots=(known,))) as stream:
        assert (await stream.offer()).participant == offers[1].participant
        await stream.send(heartbeat=pb.Heartbeat(sequence=7))
        assert (await stream.receive("heartbeat_ack")).sequence == 7


async def test_the_newest_of_several_changes_is_offered(plane: Plane) -> None:
    """The mailbox has one place per slot: an agent that comes late gets the newest revision only."""
    identity = await plane.enroll(await plane.token())
    at = await started(plane, "p")
    for variant in ("a", "b", "a"):
        await plane.made(f"{at}/deployments", {"participantId": "p", "variantId": variant})
    async with session(identity, make_hello("p")) as stream:
        assert (await stream.offer()).revision == 4
        await stream.send(heartbeat=pb.Heartbeat(sequence=1))
        await stream.receive("heartbeat_ack")


async def test_the_clock_of_a_host_is_compared_with_every_heartbeat(plane: Plane) -> None:
    """In milliseconds; a host that does not say what its clock is has none."""
    identity = await plane.enroll(await plane.token())

    async def skew() -> int | None:
        (agent,) = (await plane.rest("GET", "/v1/agents")).body["entities"]
        return agent["clockSkewMs"]  # type: ignore[no-any-return]

    async with session(identity, make_hello("p")) as stream:
        await stream.send(heartbeat=pb.Heartbeat(sequence=1))
        await stream.receive("heartbeat_ack")
        assert await skew() is None
        await stream.send(heartbeat=pb.Heartbeat(sequence=2, sent_at_us=SystemClock().now() + 7200 * SECOND))
        assert 7_000_000 < int(await eventually(skew)) <= 7_200_000


async def test_what_a_host_measures_of_itself_is_shown(plane: Plane) -> None:
    """Its certificate's days by its own clock, and its disk; not of the session before, once another has begun."""
    identity = await plane.enroll(await plane.token())

    async def told() -> tuple[int | None, int | None]:
        (agent,) = (await plane.rest("GET", "/v1/agents")).body["entities"]
        assert agent["certificate"]["daysLeft"] in (29, 30)
        return agent["certificate"]["hostDaysLeft"], agent["stateFreeBytes"]

    async with session(identity, make_hello("p")) as stream:
        assert await told() == (None, None)
        most = 2**64 - 1
        await stream.send(observation=pb.Observation(certificate_days_left=-3, state_free_bytes=most))

        async def is_told() -> bool:
            return await told() == (-3, most)

        await eventually(is_told)
        (agent,) = (await plane.grpc("FleetService.ListAgents")).agents
        assert (agent.certificate.host_days_left, agent.state_free_bytes) == (-3, most)
    async with session(identity, make_hello("p", session_epoch=2)):
        assert await told() == (None, None)


def test_nonsense_of_a_clock_is_held_within_a_century() -> None:
    """Whatever 64 bits can say finds room in every store."""
    century = 100 * 365 * 86_400 * SECOND
    said = (-(2**63), -1, 1, 2**63 - 1)
    skews = [clock_skew(pb.Heartbeat(sent_at_us=at), now=10) for at in said]
    assert skews == [-century, -11, -9, century]


async def test_a_second_agent_does_not_take_a_participant(plane: Plane) -> None:
    """The first agent to declare a participant keeps it; the second sees a condition and gets no offer."""
    first, second = await plane.enroll(await plane.token()), await plane.enroll(await plane.token())
    async with session(first, make_hello("p")), session(second, make_hello("p")) as other:
        await started(plane, "p")
        await other.send(heartbeat=pb.Heartbeat(sequence=1))
        await other.receive("heartbeat_ack")
    agents = (await plane.rest("GET", "/v1/agents")).body["entities"]
    conditions = {item["id"]: [c["code"] for c in item["conditions"]] for item in agents}
    assert sorted(conditions.values()) == [[], ["PARTICIPANT_TAKEN"]]


@pytest.mark.fault(52)
async def test_an_agent_cannot_report_for_another(plane: Plane) -> None:
    """An outcome for a participant of another agent is acknowledged and changes nothing."""
    owner, other = await plane.enroll(await plane.token()), await plane.enroll(await plane.token())
    async with session(owner, make_hello("p")) as stream:
        at = await started(plane, "p")
        offer = await stream.offer()
        async with session(other, make_hello("q")) as liar:
            await liar.send(outcome=wire.outcome_to_pb(make_outcome(offer, Result.STUCK)))
            await liar.receive("outcome_ack")
        deployment = (await plane.rest("GET", f"{at}/deployments")).body["entities"][0]
        assert deployment["state"] == "offered"


async def test_content_is_fetched_by_digest_and_only_by_whom_it_concerns(plane: Plane) -> None:
    """Content above the inline limit comes by FetchContent; another agent does not get it."""
    owner, other = await plane.enroll(await plane.token()), await plane.enroll(await plane.token())
    large = "x" * 400_000
    variants = [{**PAIR[0], "content": large}, {**PAIR[1], "content": large + "y"}]
    async with session(owner, make_hello("p")) as stream:
        await started(plane, "p", variants=variants)
        file = (await stream.offer()).files[0]
        assert file.content is None
        request = pb.FetchContentRequest(digest=file.digest)
        async with owner.channel() as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
            body = b"".join([chunk.chunk async for chunk in stub.FetchContent(request)])
        assert digest(body) == file.digest
        async with other.channel() as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await anext(aiter(stub.FetchContent(request)))
            assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_presence_follows_the_session(plane: Plane) -> None:
    """Connected while the stream lives, lost after it, never seen before it."""
    identity = await plane.enroll(await plane.token())

    async def presence() -> str:
        return str((await plane.rest("GET", "/v1/agents")).body["entities"][0]["presence"])

    assert await presence() == "never_seen"
    async with session(identity, make_hello("p")) as stream:
        assert await presence() == "connected"
        await stream.send(goodbye=pb.Goodbye(reason="stop"))

    async def lost() -> bool:
        return await presence() == "lost"

    await eventually(lost)


@pytest.mark.fault(52)
async def test_a_malformed_message_ends_the_stream_with_its_field(plane: Plane) -> None:
    """A peer that breaks the protocol is told which field, and the server goes on."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        await stream.send(outcome=pb.Outcome(participant_id="p", slot_id=b"short"))
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            async with asyncio.timeout(PATIENCE):
                await stream.call.read()
                await stream.call
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "slot_id" in (failure.value.details() or "")
    async with session(identity, make_hello("p", session_epoch=2)):
        pass


async def test_stopping_asks_agents_to_leave(tmp_path: Path) -> None:
    """A stopping server drains: the agent gets Drain before its stream ends."""
    async with running_plane(tmp_path / "data") as plane:
        identity = await plane.enroll(await plane.token())
        channel = identity.channel()
        stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Sync()
        await call.write(pb.SyncRequest(hello=wire.hello_to_pb(make_hello("p"))))
        assert (await call.read()).WhichOneof("message") == "welcome"
        reading = asyncio.create_task(call.read())
    message = await reading
    assert message.WhichOneof("message") == "drain"
    await channel.close()


async def test_agents_whose_turn_does_not_come_are_told_when_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Busy names a window; the operator's API answers meanwhile."""
    monkeypatch.setattr("control_plane.api.sessions.OPENING_AT_ONCE", 0)
    monkeypatch.setattr("control_plane.api.sessions.PATIENCE_SECONDS", 0.0)
    async with running_plane(tmp_path / "data") as plane:
        identity = await plane.enroll(await plane.token())
        async with identity.channel() as channel:
            call = agent_pb2_grpc.AgentServiceStub(channel).Sync()  # type: ignore[no-untyped-call]
            await call.write(pb.SyncRequest(hello=wire.hello_to_pb(make_hello("p"))))
            message = await call.read()
            assert message.busy.retry_window_ms > 0
            assert await call.read() is grpc.aio.EOF
        assert (await plane.rest("GET", "/v1/experiments")).status == 200


async def test_agents_that_come_together_wait_for_their_turn_and_are_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is sent away to come back with another Hello, where one session is opened at a time."""
    monkeypatch.setattr("control_plane.api.sessions.OPENING_AT_ONCE", 1)
    async with running_plane(tmp_path / "data") as plane:
        token = await plane.token(maxUses=6)
        identities = [await plane.enroll(token, name=f"host-{number}") for number in range(6)]

        async def first(number: int, identity: Identity) -> str | None:
            async with identity.channel() as channel:
                call = agent_pb2_grpc.AgentServiceStub(channel).Sync()  # type: ignore[no-untyped-call]
                await call.write(pb.SyncRequest(hello=wire.hello_to_pb(make_hello(f"p-{number}"))))
                return (await call.read()).WhichOneof("message")

        said = await asyncio.gather(*(first(number, one) for number, one in enumerate(identities)))
        assert said == ["welcome"] * 6


async def test_a_frozen_fleet_gets_no_offers_until_it_thaws(plane: Plane) -> None:
    """While frozen nothing new goes out; afterwards the newest of each slot does."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        frozen = await plane.made("/v1/fleet:freeze", None)
        assert (await plane.made("/v1/fleet:freeze", None)) == frozen
        at = await started(plane, "p")
        await plane.made(f"{at}/deployments", {"participantId": "p", "variantId": "a"})
        await stream.send(heartbeat=pb.Heartbeat(sequence=1))
        await stream.receive("heartbeat_ack")
        assert (await plane.made("/v1/fleet:unfreeze", None)) == {"frozenAt": None, "withdrawalsHeld": 0}
        assert (await stream.offer()).revision == 2


async def test_a_moved_participant_belongs_to_the_other_agent(plane: Plane) -> None:
    """Both agents are asked for a new Hello; then the new one gets the offer and the old one a condition."""
    former, latter = await plane.enroll(await plane.token()), await plane.enroll(await plane.token())
    async with session(former, make_hello("p")) as old:
        await started(plane, "p")
        await old.offer()
        async with session(latter, make_hello("p")) as new:
            to = str(UUID(bytes=latter.uid))
            moved = await plane.made("/v1/participants/p:move", {"agentId": to})
            assert (moved["agentId"], moved["bindingGeneration"]) == (to, 2)
            await old.receive("ask_full")
            await new.receive("ask_full")
        async with session(latter, make_hello("p", session_epoch=2)) as again:
            assert (await again.offer()).participant == "p"
    async with session(former, make_hello("p", session_epoch=2)):
        agents = (await plane.rest("GET", "/v1/agents")).body["entities"]
        codes = {agent["id"]: [item["code"] for item in agent["conditions"]] for agent in agents}
        assert codes == {str(UUID(bytes=former.uid)): ["PARTICIPANT_TAKEN"], to: []}
    refused_move = await plane.rest("POST", "/v1/participants/p:move", {"agentId": "nobody"})
    assert refused_move.status == 404
