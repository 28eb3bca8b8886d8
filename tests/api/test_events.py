"""Events as they come in: found by what they are, followed without a gap, and shown to whom they may be."""

from typing import Any

import pytest

from control_plane.api.operations import OPERATIONS
from tests.support.plane import Plane
from tests.support.twins import asked, by_grpc, by_rest

AT = "/v1/experiments/tone"
DRAFT = {
    "name": "Tone",
    "targetFile": "soul.md",
    "variants": [
        {"name": "A", "content": "a", "weight": 50, "isControl": True},
        {"name": "B", "content": "b", "weight": 50},
    ],
    "participantIds": ["p", "q"],
    "exposureCriteria": {"settleSeconds": 0},
}
[LIST] = [operation for operation in OPERATIONS if operation.rpc == "EventService.ListEvents"]


async def reported(plane: Plane, *events: tuple[str, str, str], **more: Any) -> None:
    """(application's id, participant, name of the conversion or nothing), counted."""
    batch = [
        {"eventId": key, "participantId": who, "kind": "conversion", "eventName": name, **more}
        if name
        else {"eventId": key, "participantId": who, "kind": "impression", **more}
        for key, who, name in events
    ]
    await plane.made("/v1/events:batch", {"events": batch})


async def seen(plane: Plane, key: str | None = None, **filters: Any) -> list[str]:
    """The applications' ids of what is listed, asked both ways."""
    shown = await by_rest(plane, LIST, filters, key=key)
    assert shown == await by_grpc(plane, LIST, asked(LIST, filters), key=key)
    assert isinstance(shown, dict), shown
    return [item["eventId"] for item in shown.get("events", [])]


@pytest.fixture
async def told(plane: Plane) -> Plane:
    """A running experiment of p and q; r is in none."""
    await plane.made("/v1/participants", {"id": "r", "labels": {"team": "x"}})
    await plane.made("/v1/experiments", DRAFT)
    await plane.made(f"{AT}/start", None)
    await reported(plane, ("1", "p", ""), ("2", "q", ""), ("3", "r", ""), ("4", "p", "done"))
    await reported(plane, ("5", "q", "left"), subject="Jane", properties={"n": 1})
    return plane


async def test_events_are_found_by_what_they_are(told: Plane) -> None:
    """The newest first; every filter leaves what it names; a page goes on where the last one ended."""
    assert await seen(told) == ["5", "4", "3", "2", "1"]
    assert await seen(told, experimentId="tone") == ["5", "4", "2", "1"]
    assert await seen(told, participantId="p") == ["4", "1"]
    assert await seen(told, kind="conversion", participantId="q") == ["5"]
    assert await seen(told, eventName="done") == ["4"]
    assert await seen(told, fromAt="2020-01-01T00:00:00Z", toAt="2021-01-01T00:00:00Z") == []
    assert await seen(told, toAt="2021-01-01T00:00:00Z") == []
    page = (await told.rest("GET", "/v1/events?limit=3")).body
    cursor = page["pagination"]["nextCursor"]
    assert await seen(told, limit=3, cursor=cursor) == ["2", "1"]
    for query, reason in (("experimentId=no", 404), ("kind=x", 400), ("after=x", 400), ("cursor=ff", 400)):
        assert (await told.rest("GET", f"/v1/events?{query}")).status == reason, query


async def test_what_comes_in_is_followed(told: Plane) -> None:
    """From a position on, the oldest first, in pages, whenever it happened."""
    position = (await told.rest("GET", "/v1/events?limit=1")).body["entities"][0]["position"]
    assert await seen(told, after=position) == []
    await reported(told, ("6", "p", ""), occurredAt="2026-01-31T12:00:00Z")
    await reported(told, ("7", "q", ""), ("8", "p", "done"))
    assert await seen(told, after=position) == ["6", "7", "8"]
    assert await seen(told, after=position, participantId="p") == ["6", "8"]
    page = (await told.rest("GET", f"/v1/events?after={position}&limit=2")).body
    assert await seen(told, after=position, cursor=page["pagination"]["nextCursor"]) == ["8"]
    assert await seen(told, after="0", limit=2) == ["1", "2"]


async def test_what_an_event_counts_for(told: Plane) -> None:
    """Per phase and population; why, where it counts nowhere."""
    found = {item["eventId"]: item for item in (await told.rest("GET", "/v1/events")).body["entities"]}
    [counted] = found["4"]["attributions"]
    experiment = (await told.rest("GET", AT)).body
    assert counted["experimentId"] == experiment["id"]
    assert counted["phaseId"] == experiment["currentPhase"]["id"]
    assert counted["variantId"] in {item["id"] for item in experiment["variants"]}
    assert counted["assigned"] == "counted"
    assert found["5"]["attributions"][0]["assigned"] == "pending"  # nobody called Jane was shown anything
    assert (found["3"]["attributions"], bool(found["3"]["reason"])) == ([], True)
    assert (found["4"]["source"], found["4"]["agentId"], found["4"]["value"]) == ("server", None, None)


async def test_who_sees_what(told: Plane) -> None:
    """Subjects and properties by `content:read`; a limited key its own participants; another scope nothing."""
    keys = {}
    for name, fields in {
        "reader": {"scopes": ["experiment:read"]},
        "private": {"scopes": ["experiment:read", "content:read"]},
        "limited": {"scopes": ["experiment:read"], "labels": {"team": "x"}},
        "other": {"scopes": ["fleet:read"]},
    }.items():
        keys[name] = (await told.made("/v1/api-keys", {"name": name, **fields}))["secret"]
    newest = [
        (await told.rest("GET", "/v1/events", key=keys[name])).body["entities"][0]
        for name in keys
        if name != "other"
    ]
    assert [(item["eventId"], item["subject"], item["properties"]) for item in newest] == [
        ("5", None, None),
        ("5", "Jane", {"n": 1}),
        ("3", None, None),
    ]
    assert await seen(told, keys["limited"]) == ["3"]
    assert (await told.rest("GET", "/v1/events?experimentId=tone", key=keys["limited"])).status == 404
    assert (await told.rest("GET", "/v1/events", key=keys["other"])).status == 403


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00.000Z", "0500-06-01T12:00:00.500Z", "1969-12-31T23:59:59.999Z"]
)
async def test_a_moment_of_any_year_is_told_as_it_was_sent(told: Plane, moment: str) -> None:
    """Four digits of a year, both ways, in what is stored and in what is asked for."""
    event = {"eventId": "old", "participantId": "p", "kind": "impression", "occurredAt": moment}
    await told.made("/v1/events:batch", {"events": [event]})
    found = (await told.rest("GET", f"/v1/events?toAt=1970-01-01T00:00:00Z&fromAt={moment}")).body["entities"]
    assert [(item["eventId"], item["occurredAt"]) for item in found] == [("old", moment)]
    key = await told.rest("POST", "/v1/api-keys", {"name": "k", "expiresAt": moment})
    assert (key.status, key.body["errors"][0]["field"]) == (400, "expiresAt")
