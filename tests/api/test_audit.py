"""The audit log: one entry for each change, found again by what it was, and nothing in it that is a secret.

What writes is taken from the table of operations, so that an operation is held to it as soon as it is there.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from control_plane.api.examples import EXAMPLES
from control_plane.api.operations import OPERATIONS, Operation
from control_plane.api.witness import NOT_SHOWN
from control_plane.services.record import BYTES_KEPT
from shared.clock import SystemClock
from shared.moment import SECOND, to_rfc3339
from tests.support.clock import FakeClock
from tests.support.plane import Plane, running_plane
from tests.support.story import HOST_FILE, Story
from tests.support.twins import asked, by_grpc, by_rest

BY_RPC = {operation.rpc: operation for operation in OPERATIONS}


def kept(plane: Plane) -> list[dict[str, Any]]:
    """Every entry of a caller as it is in the database, oldest first; what timers do meanwhile is theirs."""
    with closing(sqlite3.connect(plane.data / "variantd.db")) as seen:
        seen.row_factory = sqlite3.Row
        return [dict(row) for row in seen.execute("select * from audit where actor <> 'timer' order by id")]


def contents(value: Any) -> Iterator[str]:
    """Every content in a request."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name in ("content", "contentBase64"):
                yield item
            else:
                yield from contents(item)
    elif isinstance(value, list):
        for item in value:
            yield from contents(item)


async def test_every_change_leaves_one_entry_with_digests_and_no_secret(plane: Plane) -> None:
    """Of each operation that changes or asks a host exactly one, with who and which key; of a read or a repeat none."""
    story = Story(plane, await plane.enroll(await plane.token()))
    await story.begin()
    [own] = (await plane.rest("GET", "/v1/api-keys")).body["entities"]
    for rpc in EXAMPLES:
        operation = BY_RPC[rpc]
        before = len(kept(plane))
        answer = await story.tell(rpc, request_id=f"of {rpc}" if operation.changes else "")
        assert answer.status == operation.status, (rpc, answer.body)
        added = kept(plane)[before:]
        assert len(added) == int(operation.changes or operation.asks_host), (rpc, added)
        for entry in added:
            assert (entry["operation"], entry["actor"]) == (rpc, "api_key:operator")
            assert entry["api_key_id"].hex() == own["id"].replace("-", "")
            assert entry["resource_id"] or not operation.named, rpc
            held_to_its_states(operation, entry)
        if operation.changes:
            await story.tell(rpc, request_id=f"of {rpc}")
            assert len(kept(plane)) == before + 1, rpc

    columns = ("request", "before", "after")
    log = json.dumps([[entry[name] for name in columns] for entry in kept(plane)], ensure_ascii=False)
    said = [*contents(EXAMPLES), HOST_FILE.decode().strip()]
    assert len(said) > 4
    for text in said:
        assert text not in log
    for text in [*contents(EXAMPLES), HOST_FILE.decode()]:
        assert f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" in log, text
    assert len(story.secrets) >= 2
    for secret in [*story.secrets, plane.key]:
        assert secret not in log


def held_to_its_states(operation: Operation, entry: dict[str, Any]) -> None:
    """An entry shows what it was about: before and after, or only after, or (with a reason) not at all."""
    before, after = (json.loads(entry[name] or "null") for name in ("before", "after"))
    if operation.rpc in NOT_SHOWN:
        assert (before, after) == (None, None), operation.rpc
    elif operation.rpc in MAKES:
        assert before is None, operation.rpc
        assert after["id"], operation.rpc
    else:
        assert before, operation.rpc
        assert (after is None) is (operation.rpc in UNMAKES), operation.rpc
        same = {"version", "updatedAt", "lastSeenAt"}
        changed = [name for name in {**(after or {})} if before[name] != after[name] and name not in same]
        assert changed or after is None or operation.rpc in MAY_CHANGE_NOTHING, operation.rpc


MAKES = frozenset(
    operation.rpc
    for operation in OPERATIONS
    if operation.status == 201
    and operation.rpc != "ExperimentService.OpenPhase"  # which changes its experiment
)
UNMAKES = frozenset(
    operation.rpc
    for operation in OPERATIONS
    if operation.method == "DELETE" and operation.rpc != "AccessService.RevokeApiKey"  # which stays on record
)
MAY_CHANGE_NOTHING = frozenset(
    {
        "FleetService.MoveParticipant",  # the story's participant is on that host already
        "AssignmentService.ForceAssignment",  # the draw may have given what is forced
        "AssignmentService.UnforceAssignment",
        "FleetService.ReleaseWithdrawals",  # nothing is held back in the story
        "FleetService.ReleaseAgent",  # nor is anybody kept out
    }
)


async def test_who_was_forced_is_shown(plane: Plane) -> None:
    """Forcing and unforcing show the assignment, with who forced it."""
    variants = [
        {"name": "A", "content": "a", "weight": 50, "isControl": True},
        {"name": "B", "content": "b", "weight": 50},
    ]
    draft = {
        "name": "T",
        "key": "t",
        "targetFile": "a.md",
        "variants": variants,
        "participantIds": ["p", "q"],
    }
    await plane.made("/v1/experiments", draft)
    await plane.made("/v1/experiments/t/start", {})
    assigned = (await plane.rest("GET", "/v1/experiments/t/assignments")).body["entities"]
    [drawn] = [item for item in assigned if item["participantId"] == "p"]
    [other] = {item["variantId"] for item in assigned} - {drawn["variantId"]}
    await plane.made("/v1/experiments/t/assignments/p:force", {"variantId": other})
    await plane.made("/v1/experiments/t/assignments/p:unforce", {})
    forced = {**drawn, "method": "forced", "forcedBy": "api_key:operator"}
    states = [(json.loads(entry["before"]), json.loads(entry["after"])) for entry in kept(plane)[-2:]]
    assert states == [(drawn, forced), (forced, drawn)]


def test_what_shows_nothing_is_an_operation_with_a_reason() -> None:
    """No name in the list is one that nothing is called."""
    written = {operation.rpc for operation in OPERATIONS if operation.changes or operation.asks_host}
    assert {name for name in NOT_SHOWN if not name.startswith("Admin.")} <= written
    assert all(NOT_SHOWN.values())


async def test_an_entry_shows_what_a_key_without_contents_sees(plane: Plane) -> None:
    """Before and after are the very resource, whoever changed it and whatever that one may read, on both transports."""
    draft = {
        "name": "Tone",
        "key": "tone",
        "targetFile": "a.md",
        "variants": [{"name": "A", "content": "be kind"}],
    }
    await plane.made("/v1/experiments", draft)
    reader = (await plane.made("/v1/api-keys", {"name": "r", "scopes": ["experiment:read"]}))["secret"]
    seen = [(await plane.rest("GET", "/v1/experiments/tone", key=reader)).body]
    for change in ({"description": "Kind wins."}, {"metadata": {"owner": {"team": "support"}}}):
        await plane.rest("PATCH", "/v1/experiments/tone", change)
        seen.append((await plane.rest("GET", "/v1/experiments/tone", key=reader)).body)
    assert (await plane.rest("DELETE", "/v1/experiments/tone")).status == 204

    entries = (await plane.rest("GET", f"/v1/audit-log?resourceId={seen[0]['id']}")).body["entities"]
    states = [(entry["before"], entry["after"]) for entry in reversed(entries)]
    assert states == [(None, seen[0]), (seen[0], seen[1]), (seen[1], seen[2]), (seen[2], None)]
    assert seen[0]["variants"][0]["files"][0]["digest"] == f"sha256:{hashlib.sha256(b'be kind').hexdigest()}"
    answer = await plane.grpc("AccessService.ListAuditLog", resource_id=seen[0]["id"])
    assert [item["description"] for item in (answer.entries[1].before, answer.entries[2].after)] == [
        "Kind wins."
    ] * 2
    assert not answer.entries[0].HasField("after")


async def test_an_entry_stays_small(plane: Plane) -> None:
    """What grows with a fleet gives way to its length and digest, which still tells whether it changed."""
    many = [f"bot-with-a-long-name-{number}" for number in range(400)]
    await plane.made("/v1/experiments", {"name": "Tone", "key": "tone", "participantIds": many})
    await plane.rest("PATCH", "/v1/experiments/tone", {"description": "x"})
    await plane.rest("PATCH", "/v1/experiments/tone", {"participantIds": many[1:]})
    entries = [entry for entry in kept(plane) if entry["operation"].startswith("ExperimentService.")]
    assert len(entries) == 3
    for entry in entries:
        for name in ("request", "before", "after"):
            assert len(entry[name] or "") <= BYTES_KEPT, (entry["operation"], name)
    made, described, chosen = (json.loads(entry["after"]) for entry in entries)
    assert made["key"] == "tone"
    assert made["participants"]["cut"]["bytes"] > BYTES_KEPT
    assert made["participants"] == described["participants"] != chosen["participants"]
    asked_for = json.loads(entries[0]["request"])
    assert asked_for["name"] == "Tone"
    assert asked_for["participantIds"]["cut"]["digest"].startswith("sha256:")


def test_what_the_table_says_changes_is_what_writes() -> None:
    """What is a read whatever its method is named here, so that nothing passes for one by accident."""
    reading = [
        operation.rpc for operation in OPERATIONS if operation.method != "GET" and not operation.changes
    ]
    assert reading == [
        "AssignmentService.PreviewAssignments",
        "ResultsService.ComputeResults",
        "ResultsService.CheckTallies",
    ]
    assert [operation.rpc for operation in OPERATIONS if operation.asks_host] == ["FleetService.ReadFile"]


async def test_what_is_refused_leaves_no_entry(plane: Plane) -> None:
    """Neither a bad request, nor one without the scope, nor one that says `validateOnly`."""
    made = await plane.made("/v1/api-keys", {"name": "r", "scopes": ["experiment:read"]})
    before = kept(plane)
    draft = {"name": "Tone", "targetFile": "a.md"}
    assert (await plane.rest("POST", "/v1/experiments", {"name": ""})).status == 400
    assert (await plane.rest("POST", "/v1/experiments", draft, key=made["secret"])).status == 403
    assert (await plane.rest("POST", "/v1/experiments", {**draft, "validateOnly": True})).status == 201
    assert (await plane.rest("DELETE", "/v1/experiments/nothing")).status == 404
    assert kept(plane) == before


LIST: Operation = BY_RPC["AccessService.ListAuditLog"]


async def listed(plane: Plane, **filters: Any) -> list[str]:
    """The operations that a filter finds, newest first, asked both ways."""
    shown = await by_rest(plane, LIST, filters)
    told = await by_grpc(plane, LIST, asked(LIST, filters))
    assert shown == told
    assert isinstance(shown, dict), shown
    return [item["operation"].partition(".")[2] for item in shown.get("entries", [])]


async def test_changes_are_found_by_what_they_were(tmp_path: Path) -> None:
    """By operation, by resource under whichever name, by who, with which key, and within a time."""
    now = SystemClock().now()  # certificates are of the present
    clock = FakeClock(now=now - now % SECOND)
    async with running_plane(tmp_path / "data", clock=clock) as plane:
        start = clock.now()
        key = await plane.made("/v1/api-keys", {"name": "ci", "scopes": ["experiment:write"]})
        await clock.advance(10)
        tone = {"name": "Tone", "key": "tone"}
        made = (await plane.rest("POST", "/v1/experiments", tone, key=key["secret"])).body
        await clock.advance(10)
        await plane.rest("PATCH", "/v1/experiments/tone", {"description": "x"})
        await plane.rest("PATCH", f"/v1/experiments/{made['id']}", {"description": "y"})
        await plane.made("/v1/participants", {"id": "bot-1"})
        changed = ["UpdateExperiment", "UpdateExperiment", "CreateExperiment"]

        assert await listed(plane) == ["CreateParticipant", *changed, "CreateApiKey"]
        assert await listed(plane, operation="FleetService.CreateParticipant") == ["CreateParticipant"]
        assert await listed(plane, operation="FleetService") == []
        assert await listed(plane, resourceId=made["id"]) == changed
        assert await listed(plane, resourceId="tone") == changed
        assert await listed(plane, resourceId="bot-1") == ["CreateParticipant"]
        assert await listed(plane, resourceId=key["id"]) == ["CreateApiKey"]
        assert await listed(plane, resourceId="bot") == []
        assert await listed(plane, actor="api_key:ci") == ["CreateExperiment"]
        assert await listed(plane, apiKeyId=key["id"]) == ["CreateExperiment"]
        assert await listed(plane, apiKeyId=key["id"], resourceId="bot-1") == []
        seconds = {offset: to_rfc3339(start + offset * SECOND) for offset in (0, 10, 20, 21)}
        assert await listed(plane, fromAt=seconds[10], toAt=seconds[20]) == ["CreateExperiment"]
        assert await listed(plane, toAt=seconds[10]) == ["CreateApiKey"]
        assert await listed(plane, fromAt=seconds[20]) == ["CreateParticipant", *changed[:2]]
        assert await listed(plane, fromAt=seconds[21]) == []

        first = (await plane.rest("GET", "/v1/audit-log?resourceId=tone&limit=2")).body
        cursor = first["pagination"]["nextCursor"]
        rest = (await plane.rest("GET", f"/v1/audit-log?resourceId=tone&cursor={cursor}")).body
        assert [item["actor"] for item in rest["entities"]] == ["api_key:ci"]

        await plane.rest("DELETE", "/v1/experiments/tone")
        assert await listed(plane, resourceId=made["id"]) == ["DeleteExperiment", *changed]
        for query, field in (("apiKeyId=x", "apiKeyId"), ("fromAt=now", "fromAt"), ("toAt=2026", "toAt")):
            answer = await plane.rest("GET", f"/v1/audit-log?{query}")
            assert (answer.status, answer.body["errors"][0]["field"]) == (400, field)
