"""How a deployment stands by what its host says of it: progress, tries, health windows, and what is offered again."""

from dataclasses import replace
from typing import Any

import pytest

from shared import wire
from shared.model import (
    ACKS_RIDE,
    OfferAction,
    Outcome,
    OutcomeKey,
    Reason,
    ReasonCode,
    Result,
    SlotState,
    Step,
    digest,
    show_digest,
)
from shared.pb.variantd.agent.v1 import agent_pb2 as pb
from tests.support.builders import make_hello
from tests.support.plane import Plane
from tests.support.stream import Stream, make_outcome, session
from tests.support.waiting import eventually

PAIR = [
    {"name": "A", "content": "a", "weight": 50, "isControl": True},
    {"name": "B", "content": "b", "weight": 50},
]
EXPERIMENT = "/v1/experiments/tone"
FAILED = Reason(code=ReasonCode.NO_SPACE, message="no space", remedy="make room")


async def running(plane: Plane) -> None:
    values = {"name": "Tone", "key": "tone", "targetFile": "soul.md", "variants": PAIR}
    await plane.made("/v1/experiments", {**values, "participantIds": ["p"]})
    await plane.made(f"{EXPERIMENT}/start", None)


async def newest(plane: Plane) -> dict[str, Any]:
    """The newest deployment."""
    found: list[dict[str, Any]] = (await plane.rest("GET", f"{EXPERIMENT}/deployments")).body["entities"]
    return found[0]


async def history(plane: Plane) -> list[tuple[int, str, str]]:
    """(attempt, step, result) of what the host has reported of it."""
    found = (await plane.rest("GET", f"/v1/deployments/{(await newest(plane))['id']}/outcomes")).body[
        "entities"
    ]
    return [(item["attempt"], item["step"], item["result"]) for item in found]


async def tell(stream: Stream, outcome: Outcome) -> None:
    await stream.send(outcome=wire.outcome_to_pb(outcome))


async def test_progress_shows_and_gives_way_to_the_end(plane: Plane) -> None:
    """An end at the same step takes its place; progress is not acknowledged, and late progress is no news."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        await running(plane)
        offer = await stream.offer()
        end = make_outcome(offer, Result.REFUSED, reason=FAILED)
        progress = replace(end, result=Result.IN_PROGRESS, reason=None, files=())
        await tell(stream, progress)

        async def applying() -> bool:
            return (await newest(plane))["state"] == "applying"

        await eventually(applying)
        assert await history(plane) == [(1, "swapped", "in_progress")]
        await tell(stream, end)
        ack = await stream.receive("outcome_ack")  # the first: progress has none
        assert wire.outcome_ack_from_pb(ack) == end.key
        assert await history(plane) == [(1, "swapped", "refused")]
        await tell(stream, replace(progress, step=Step.FETCHED))
        await stream.report(offer, Result.REFUSED, reason=FAILED)  # told once more: stored before
        assert await history(plane) == [(1, "swapped", "refused"), (1, "fetched", "in_progress")]
        stands = await newest(plane)
        assert (stands["state"], stands["reason"]["code"]) == ("refused", "NO_SPACE")


async def test_tries_are_counted_and_an_older_one_changes_nothing(plane: Plane) -> None:
    """In progress with a reason until it is done or stuck; what was last tried is told with the reason."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        await running(plane)
        offer = await stream.offer()
        wanted = offer.files[0].digest
        tried = replace(make_outcome(offer, Result.IN_PROGRESS, reason=FAILED), step=Step.ALLOWED)
        failed = replace(
            tried, files=(replace(tried.files[0], running=digest(b"mine"), previous=digest(b"mine")),)
        )
        await tell(stream, failed)
        await tell(stream, replace(failed, attempt=2))
        stuck = replace(failed, attempt=3, result=Result.STUCK)
        await tell(stream, stuck)
        await stream.receive("outcome_ack")
        await tell(stream, replace(failed, attempt=1, step=Step.STAGED))
        await stream.report(offer, Result.STUCK)  # attempt 1 as well, and older
        stands = await newest(plane)
        assert (stands["state"], stands["attempts"], stands["reason"]["code"]) == ("stuck", 3, "NO_SPACE")
        [file] = stands["files"]
        assert file["runningDigest"] == show_digest(digest(b"mine"))
        assert file["lastAttemptedDigest"] == show_digest(wanted)
        shown = (await plane.rest("GET", "/v1/participants/p")).body["files"][0]
        assert shown["lastAttemptedDigest"] == show_digest(wanted)
        assert shown["reason"]["code"] == "NO_SPACE"


async def test_a_health_window_shows_until_it_has_ended(plane: Plane) -> None:
    """Applied and to be confirmed; then confirmed, and what is loaded meanwhile changes neither."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        await running(plane)
        applied = replace(make_outcome(await stream.offer(), Result.APPLIED), confirming=True)
        loaded = replace(applied, step=Step.LOADED)
        confirmed = replace(applied, step=Step.CONFIRMED, result=Result.CONFIRMED, confirming=False)
        for outcome, expected in (
            (applied, ("applied", True)),
            (loaded, ("applied", True)),
            (confirmed, ("confirmed", False)),
        ):
            await tell(stream, outcome)
            await stream.receive("outcome_ack")
            stands = await newest(plane)
            assert (stands["state"], stands["confirming"]) == expected
        assert (await plane.rest("GET", "/v1/participants/p")).body["files"][0]["reason"] is None


async def test_a_newer_deployment_ends_the_waiting_for_a_window(plane: Plane) -> None:
    """Nobody waits for it, whatever its host says of it later; that it was taken back is told all the same."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        await running(plane)
        applied = replace(make_outcome(await stream.offer(), Result.APPLIED), confirming=True)
        await tell(stream, applied)
        await stream.receive("outcome_ack")
        first = (await newest(plane))["id"]
        other = (
            "b" if (await newest(plane))["files"][0]["desiredDigest"] == show_digest(digest(b"a")) else "a"
        )
        await plane.made(f"{EXPERIMENT}/deployments", {"participantId": "p", "variantId": other})
        await stream.offer()
        shown = (await plane.rest("GET", f"/v1/deployments/{first}")).body
        assert (shown["state"], shown["confirming"]) == ("applied", False)
        reason = Reason(code=ReasonCode.PROBE_FAILED, message="unwell", remedy="")
        await tell(stream, replace(applied, step=Step.CONFIRMED, result=Result.ROLLED_BACK, reason=reason))
        await stream.receive("outcome_ack")
        shown = (await plane.rest("GET", f"/v1/deployments/{first}")).body
        assert (shown["state"], shown["reason"]["code"]) == ("rolled_back", "PROBE_FAILED")


async def test_what_a_host_has_not_ended_is_offered_again(plane: Plane) -> None:
    """It knows the revision and may have lost the content; what it has ended is not."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        await running(plane)
        offer = await stream.offer()
        await stream.report(offer, Result.REFUSED, reason=FAILED)
    slot = SlotState(
        participant="p",
        slot_id=offer.slot_id,
        revision=offer.revision,
        files=(),
        step=Step.ALLOWED,
        result=Result.IN_PROGRESS,
    )
    async with session(identity, make_hello("p", slots=(slot,), session_epoch=2)) as stream:
        assert (await stream.offer()).revision == offer.revision


@pytest.mark.parametrize("revision", [1, 2])
async def test_a_host_that_is_behind_what_it_reported_is_told_again(plane: Plane, revision: int) -> None:
    """As one whose state was put back: what it once closed is open there. Who has it closed is told nothing."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        await running(plane)
        first = await stream.offer()
        await stream.report(first, Result.APPLIED)
        await plane.made(f"{EXPERIMENT}/complete", {"then": "keep"})
        closing = await stream.offer()
        await stream.report(closing, Result.APPLIED)
    slot = SlotState(
        participant="p",
        slot_id=first.slot_id,
        revision=revision,
        files=(),
        step=Step.SWAPPED,
        result=Result.APPLIED,
        closed=revision == closing.revision,
    )
    async with session(identity, make_hello("p", slots=(slot,), session_epoch=2)) as stream:
        await stream.send(heartbeat=pb.Heartbeat(sequence=1, sent_at_us=1))
        said = [await stream.next() for _ in range(1 if slot.closed else 2)]
    offers = [wire.offer_from_pb(message.offer) for message in said if message.HasField("offer")]
    assert [(offer.action, offer.revision) for offer in offers] == (
        [] if slot.closed else [(OfferAction.CLOSE, closing.revision)]
    )


async def test_acknowledgements_ride_on_what_is_said_next(plane: Plane) -> None:
    """To an agent that says so: with the answer to its next heartbeat, and nothing is said for their sake alone."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p", capabilities=(ACKS_RIDE,))) as stream:
        await running(plane)
        offer = await stream.offer()
        end = make_outcome(offer, Result.APPLIED)
        await tell(stream, end)

        async def applied() -> bool:
            return (await newest(plane))["state"] == "applied"

        await eventually(applied)
        rode: list[OutcomeKey] = []
        for sequence in range(1, 100):
            await stream.send(heartbeat=pb.Heartbeat(sequence=sequence))
            answer = await stream.next()
            assert answer.heartbeat_ack.sequence == sequence
            rode += [wire.outcome_ack_from_pb(ack) for ack in answer.outcome_acks]
            if rode:
                break
        assert rode == [end.key]
