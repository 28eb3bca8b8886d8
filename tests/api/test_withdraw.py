"""Taking back what was deployed by hand: what the slot is asked for then, and what cannot be taken back."""

from typing import Any

from shared.model import OfferAction, Result, digest
from tests.support.builders import make_hello
from tests.support.plane import Plane
from tests.support.stream import session

PAIR = [
    {"name": "A", "content": "a", "weight": 50, "isControl": True},
    {"name": "B", "content": "b", "weight": 50},
]
EXPERIMENT = "/v1/experiments/tone"


async def draft(plane: Plane, *participants: str) -> None:
    """A draft over these participants."""
    values = {"name": "Tone", "key": "tone", "targetFile": "soul.md", "variants": PAIR}
    await plane.made("/v1/experiments", {**values, "participantIds": list(participants)})


async def drawn(plane: Plane, participant: str) -> tuple[str, str]:
    """Key of the variant the participant was assigned, and of the other one."""
    variants = (await plane.rest("GET", f"{EXPERIMENT}/variants")).body["entities"]
    found = await assignment(plane, participant)
    [own] = [item["key"] for item in variants if item["id"] == found["variantId"]]
    return own, {"a": "b", "b": "a"}[own]


async def assignment(plane: Plane, participant: str) -> dict[str, Any]:
    """What the participant was assigned."""
    found = (await plane.rest("GET", f"{EXPERIMENT}/assignments")).body["entities"]
    return next(item for item in found if item["participantId"] == participant)


async def deployed(plane: Plane, participant: str, variant: str) -> str:
    """The path of a deployment by hand."""
    made = await plane.made(f"{EXPERIMENT}/deployments", {"participantId": participant, "variantId": variant})
    return f"/v1/deployments/{made['id']}"


async def deployments(plane: Plane) -> list[tuple[str, str]]:
    """Origin and state of every deployment of the experiment, newest first."""
    found = (await plane.rest("GET", f"{EXPERIMENT}/deployments")).body["entities"]
    return [(item["origin"], item["state"]) for item in found]


async def test_before_a_host_was_told(plane: Plane) -> None:
    """An offline host hears only of what it should hold: the drawn variant, by a newer revision; once, if repeated."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")):
        await draft(plane, "p", "q")
        await plane.made(f"{EXPERIMENT}/start", None)
    own, other = await drawn(plane, "p")
    path = await deployed(plane, "p", other)
    assert (await assignment(plane, "p"))["forcedBy"] == "api_key:operator"

    taken = await plane.made(f"{path}:withdraw", None)
    assert (taken["state"], taken["reason"]["code"]) == ("withdrawn", "WITHDRAWN")
    assert (await assignment(plane, "p"))["method"] == "randomized"
    assert await plane.made(f"{path}:withdraw", None) == taken
    assert (await deployments(plane))[:2] == [("rollback", "pending"), ("forced", "withdrawn")]
    assert len(await deployments(plane)) == 4

    async with session(identity, make_hello("p")) as stream:
        offer = await stream.offer()
        assert (offer.revision, offer.action, offer.files[0].digest) == (
            3,
            OfferAction.WRITE,
            digest(own.encode()),
        )
        await stream.report(offer, Result.APPLIED)
    assert (await deployments(plane))[0] == ("rollback", "applied")


async def test_after_a_host_was_told(plane: Plane) -> None:
    """The next offer is what it held before, by a newer revision; what it says of the withdrawn one changes nothing."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        await draft(plane, "p", "q")
        await plane.made(f"{EXPERIMENT}/start", None)
        _, other = await drawn(plane, "p")
        first = await stream.offer()
        await stream.report(first, Result.APPLIED)
        path = await deployed(plane, "p", other)
        wrong = await stream.offer()
        assert wrong.files[0].digest == digest(other.encode())

        await plane.made(f"{path}:withdraw", None)
        back = await stream.offer()
        assert back.files == first.files
        assert back.revision > wrong.revision > first.revision
        await stream.report(wrong, Result.APPLIED)
        assert (await plane.rest("GET", path)).body["state"] == "withdrawn"
        await stream.report(back, Result.APPLIED)
    newest = (await plane.rest("GET", f"{EXPERIMENT}/deployments")).body["entities"][0]
    assert (newest["origin"], newest["state"], newest["phaseId"] is None) == ("rollback", "applied", False)
    assert (await assignment(plane, "p"))["forcedBy"] is None


async def test_what_was_forced_before_stays_forced(plane: Plane) -> None:
    """Only what the withdrawn deployment did is undone: the one by hand before it stands again."""
    await draft(plane, "p", "q")
    await plane.made(f"{EXPERIMENT}/start", None)
    own, other = await drawn(plane, "p")
    await deployed(plane, "p", other)
    path = await deployed(plane, "p", own)
    await plane.made(f"{path}:withdraw", None)
    newest = (await plane.rest("GET", f"{EXPERIMENT}/deployments")).body["entities"][0]
    assert newest["files"][0]["desiredDigest"] == "sha256:" + digest(other.encode()).hex()
    assert (await assignment(plane, "p"))["forcedBy"] == "api_key:operator"


async def test_where_there_was_nothing_before(plane: Plane) -> None:
    """A host that may know restores; of a participant without a host nothing is asked, and its file is free again."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")):
        await draft(plane, "p", "q")
    for participant in ("p", "q"):
        path = await deployed(plane, participant, "a")
        assert (await plane.made(f"{path}:withdraw", None))["state"] == "withdrawn"
    assert await deployments(plane) == [
        ("manual", "withdrawn"),
        ("rollback", "pending"),
        ("manual", "withdrawn"),
    ]
    async with session(identity, make_hello("p")) as stream:
        offer = await stream.offer()
        assert (offer.action, offer.files[0].path) == (OfferAction.RESTORE, "soul.md")

    other = {
        "name": "Other",
        "key": "other",
        "targetFile": "soul.md",
        "variants": PAIR,
        "participantIds": ["q"],
    }
    await plane.made("/v1/experiments", other)
    made = await plane.rest(
        "POST", "/v1/experiments/other/deployments", {"participantId": "q", "variantId": "b"}
    )
    assert made.status == 201, made.body


async def test_what_cannot_be_taken_back(plane: Plane) -> None:
    """What the host is done with, what the experiment's own verbs deployed, and what is not there."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        await draft(plane, "p", "q")
        await plane.made(f"{EXPERIMENT}/start", None)
        await stream.offer()
        start = (await plane.rest("GET", f"{EXPERIMENT}/deployments")).body["entities"][0]["id"]
        own, _ = await drawn(plane, "p")
        path = await deployed(plane, "p", own)
        await stream.report(await stream.offer(), Result.APPLIED)
        before = await deployments(plane)
        told = []
        for refused in (path, f"/v1/deployments/{start}"):
            answer = await plane.rest("POST", f"{refused}:withdraw")
            assert (answer.status, answer.body["reason"]) == (409, "NOT_WITHDRAWABLE"), answer.body
            told.append((answer.body["origin"], answer.body["state"]))
        assert told[0] == ("manual", "applied")
        assert told[1][0] == "start"
        assert (await plane.rest("POST", "/v1/deployments/nothing:withdraw")).status == 404
        assert await deployments(plane) == before
