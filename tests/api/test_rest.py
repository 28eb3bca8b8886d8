"""REST as an operator meets it: the ten Stamn calls, the lifecycle, and every refusal."""

from typing import Any

import pytest

from tests.support.plane import Plane

STAMN_EXAMPLE = {
    "name": "Personality A/B test",
    "description": "Is a friendly tone better?",
    "targetFile": "config/soul.md",
    "variants": [{"name": "Friendly", "content": "You are friendly.", "weight": 50, "isControl": True}],
    "participantIds": ["6b1f1a52-8c0e-4f0e-9d1f-0d7c7a1f5f11"],
}
CONCISE = {"name": "Concise", "content": "Be concise.", "weight": 50}


async def started(plane: Plane, **fields: Any) -> dict[str, Any]:
    """A running experiment on participants that nobody has seen."""
    values = {**STAMN_EXAMPLE, "variants": [*STAMN_EXAMPLE["variants"], CONCISE], **fields}  # type: ignore[misc]
    made: dict[str, Any] = await plane.made("/v1/experiments", values)
    await plane.made(f"/v1/experiments/{made['id']}/start", None)
    return made


async def test_the_ten_calls_of_the_reference(plane: Plane) -> None:
    """Every Stamn call works as its reference says, its one-variant example is accepted as a draft."""
    created = await plane.rest("POST", "/v1/experiments", STAMN_EXAMPLE)
    assert created.status == 201
    assert created.headers["Location"] == f"/v1/experiments/{created.body['id']}"
    assert created.body["status"] == "draft"
    assert [item["planned"] for item in created.body["assignments"]] == [True]
    at = f"/v1/experiments/{created.body['id']}"

    added = await plane.rest("POST", f"{at}/variants", CONCISE)
    assert (added.status, added.body["key"]) == (201, "concise")
    changed = await plane.rest("PATCH", f"{at}/variants/{added.body['id']}", {"content": "Be brief."})
    assert (changed.status, changed.body["content"]) == (200, "Be brief.")
    extra = await plane.made(f"{at}/variants", {"name": "Third"})
    gone = await plane.rest("DELETE", f"{at}/variants/{extra['id']}")
    assert (gone.status, gone.body) == (204, "")

    renamed = await plane.rest("PATCH", at, {"name": "Tone"})
    assert (renamed.status, renamed.body["name"]) == (200, "Tone")
    assert (await plane.rest("PATCH", at, {})).status == 200
    listed = await plane.rest("GET", "/v1/experiments")
    assert [item["name"] for item in listed.body["entities"]] == ["Tone"]
    got = await plane.rest("GET", at)
    assert [variant["name"] for variant in got.body["variants"]] == ["Friendly", "Concise"]

    for status in ("running", "paused", "running", "completed"):
        moved = await plane.rest("PATCH", f"{at}/status", {"status": status})
        assert (moved.status, moved.body["status"]) == (200, status)
        if status == "paused":
            participant = STAMN_EXAMPLE["participantIds"][0]
            asked = {"participantId": participant, "variantId": added.body["id"]}
            deployed = await plane.rest("POST", f"{at}/deployments", asked)
            assert (deployed.status, deployed.body["state"]) == (201, "pending")

    assert (await plane.rest("DELETE", at)).status == 204
    assert (await plane.rest("GET", at)).body["archived"] is True
    assert (await plane.rest("GET", "/v1/experiments")).body["entities"] == []
    draft = await plane.made("/v1/experiments", STAMN_EXAMPLE)
    assert (await plane.rest("DELETE", f"/v1/experiments/{draft['key']}")).status == 204
    assert (await plane.rest("GET", f"/v1/experiments/{draft['id']}")).status == 404


async def test_a_start_lists_every_fault_by_field(plane: Plane) -> None:
    """Weights, two controls, no participants and a claim conflict are told in one answer."""
    holder = await started(plane, name="Holder", participantIds=["bot-1"])
    variants = [
        {"name": "A", "content": "a", "weight": 50, "isControl": True},
        {"name": "B", "content": "b", "weight": 60, "isControl": True},
        {"name": "C", "weight": 0},
    ]
    values = {**STAMN_EXAMPLE, "name": "Wrong", "variants": variants, "participantIds": ["bot-1"]}
    await plane.made("/v1/experiments", values)
    answer = await plane.rest("POST", "/v1/experiments/wrong/start")
    assert (answer.status, answer.body["reason"]) == (409, "NOT_READY")
    faults = {fault["field"]: fault for fault in answer.body["errors"]}
    assert set(faults) == {"variants.isControl", "variants.weight", "variants.c.files", "targetFile"}
    assert "110" in faults["variants.weight"]["message"]
    assert holder["key"] in faults["targetFile"]["message"]
    assert all(fault["remedy"] for fault in answer.body["errors"])
    assert (await plane.rest("GET", "/v1/experiments/wrong")).body["status"] == "draft"


VERBS = {
    "draft": {"start", "archive"},
    "running": {"pause", "stop", "complete", "ship", "reset"},
    "paused": {"resume", "stop", "complete", "ship", "reset"},
    "stopped": {"complete", "ship", "reset"},
    "completed": {"ship", "reset", "archive"},
}
WAY = {
    "draft": [],
    "running": ["start"],
    "paused": ["start", "pause"],
    "stopped": ["start", "stop"],
    "completed": ["start", "complete"],
}


@pytest.mark.parametrize("state", list(VERBS))
async def test_a_verb_in_the_wrong_state_names_state_and_verbs(plane: Plane, state: str) -> None:
    """Every verb that does not fit is a 409 that says where the experiment is and what is allowed."""
    values = {**STAMN_EXAMPLE, "variants": [*STAMN_EXAMPLE["variants"], CONCISE]}  # type: ignore[misc]
    made = await plane.made("/v1/experiments", values)
    for verb in WAY[state]:
        await plane.made(f"/v1/experiments/{made['id']}/{verb}", None)
    for verb in sorted(set.union(*VERBS.values(), {"unarchive"}) - VERBS[state]):
        answer = await plane.rest("POST", f"/v1/experiments/{made['id']}/{verb}")
        assert answer.status == 409, verb
        assert state in answer.body["detail"]
        assert set(answer.body["allowedVerbs"]) >= VERBS[state]
    removed = await plane.rest("DELETE", f"/v1/experiments/{made['id']}")
    assert removed.status == (204 if state in ("draft", "completed") else 409)
    if removed.status == 409:
        assert "complete" in removed.body["detail"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"wat": 1}, "wat"),
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"targetFile": "/etc/passwd"}, "targetFile"),
        ({"targetFile": "../soul.md"}, "targetFile"),
        ({"targetFile": "a//b"}, "targetFile"),
        ({"variants": [{"name": "A", "weight": 101}]}, "variants.0.weight"),
        ({"variants": [{"name": "A", "weight": "50"}]}, "variants.0.weight"),
        ({"variants": [{"name": "A", "contnet": "x"}]}, "variants.0.contnet"),
        ({"variants": [{"name": "A", "files": [{"path": "a"}]}]}, "variants.0.files.0"),
        ({"participantIds": ["a", "a"]}, "participantIds"),
        ({"participantIds": ["no spaces"]}, "participantIds.0"),
        ({"exposureCriteria": {"settleSeconds": -1}}, "exposureCriteria.settleSeconds"),
        ({"analysis": {"alpha": 2}}, "analysis.alpha"),
        ({"key": "Not A Key"}, "key"),
        ({"key": "stats"}, "key"),
        ({"labels": {"host.os": "x"}}, "labels"),
        ({"type": "bandit"}, "type"),
    ],
)
async def test_a_bad_field_is_named(plane: Plane, fields: dict[str, Any], field: str) -> None:
    """What is wrong with a request is told by field, with 400, and nothing is stored."""
    answer = await plane.rest("POST", "/v1/experiments", {**STAMN_EXAMPLE, **fields})
    assert answer.status == 400
    assert field in [fault["field"] for fault in answer.body["errors"]], answer.body
    assert (await plane.rest("GET", "/v1/experiments")).body["entities"] == []


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'"x"', b'{"name": NaN}', b'{"name": "a", "name": "b"}', b"[" * 100_000, b"\xff\xfe"],
)
async def test_a_body_that_is_no_json_object_is_refused(plane: Plane, body: bytes) -> None:
    """Whatever the bytes are, the answer is a 400 problem, never a 500."""
    answer = await plane.rest("POST", "/v1/experiments", body, Content_Type="application/json")
    assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (400, "application/problem+json")


@pytest.mark.parametrize("prefix", ["", "/stamn"])
async def test_a_write_says_everything_in_its_body(plane: Plane, prefix: str) -> None:
    """What stands in the query of a write is refused by name, and nothing is stored: it would go unheard."""
    answer = await plane.rest("POST", f"{prefix}/v1/experiments?validateOnly=true&name=B", STAMN_EXAMPLE)
    assert answer.status == 400
    listed = await plane.rest("GET", "/v1/experiments")
    assert listed.body["entities"] == []
    if not prefix:
        assert [fault["field"] for fault in answer.body["errors"]] == ["validateOnly", "name"]
        assert "body" in answer.body["errors"][0]["remedy"]


async def test_whole_floats_are_whole_numbers(plane: Plane) -> None:
    """JSON has one kind of number: a weight of 50.0 is 50, a weight of 50.5 is refused."""
    variants = [{"name": "A", "content": "a", "weight": 50.0}]
    made = await plane.made("/v1/experiments", {**STAMN_EXAMPLE, "variants": variants})
    assert made["variants"][0]["weight"] == 50
    variants[0]["weight"] = 50.5
    assert (
        await plane.rest("POST", "/v1/experiments", {**STAMN_EXAMPLE, "variants": variants})
    ).status == 400


@pytest.mark.parametrize("key", ["", "sk_wrong", "nonsense", "sk_" + "A" * 43])
async def test_an_unknown_key_is_refused(plane: Plane, key: str) -> None:
    """No key and a wrong key are refused alike, and nothing is told."""
    answer = await plane.rest("GET", "/v1/experiments", key=key)
    assert answer.status == 401
    assert key not in answer.body["detail"] or not key


async def test_a_key_does_only_what_its_scopes_say(plane: Plane) -> None:
    """A key without the scope gets 403 that names it; without content:read, content is not shown."""
    await plane.made("/v1/experiments", STAMN_EXAMPLE)
    reader = await plane.made("/v1/api-keys", {"name": "reader", "scopes": ["experiment:read"]})
    refused = await plane.rest("POST", "/v1/experiments", STAMN_EXAMPLE, key=reader["secret"])
    assert (refused.status, refused.body["reason"]) == (403, "MISSING_SCOPE")
    assert "experiment:write" in refused.body["detail"]
    seen = await plane.rest("GET", "/v1/experiments/personality-a-b-test", key=reader["secret"])
    assert seen.body["variants"][0]["content"] is None
    assert seen.body["variants"][0]["files"][0]["digest"].startswith("sha256:")
    unknown = await plane.rest("POST", "/v1/api-keys", {"name": "x", "scopes": ["everything"]})
    assert unknown.status == 400


async def test_the_same_idempotency_key_answers_the_same(plane: Plane) -> None:
    """A repeated request changes nothing; the key with another request is a conflict; no secret is repeated."""
    first = await plane.rest("POST", "/v1/experiments", STAMN_EXAMPLE, Idempotency_Key="k1")
    again = await plane.rest("POST", "/v1/experiments", STAMN_EXAMPLE, Idempotency_Key="k1")
    assert again.body == first.body
    other = await plane.rest("POST", "/v1/experiments", {"name": "Other"}, Idempotency_Key="k1")
    assert (other.status, other.body["reason"]) == (409, "IDEMPOTENCY_KEY_REUSED")
    token = await plane.rest("POST", "/v1/enrollment-tokens", {}, Idempotency_Key="k2")
    repeat = await plane.rest("POST", "/v1/enrollment-tokens", {}, Idempotency_Key="k2")
    assert token.body["token"].startswith("vt1.")
    assert "token" not in repeat.body
    assert repeat.body["id"] == token.body["id"]


async def test_an_answer_that_is_repeated_shows_what_its_reader_may_read(plane: Plane) -> None:
    """What somebody with contents was answered under a key is repeated without them to who has none."""
    variants = [
        {"name": "A", "content": "secret words"},
        {"name": "B", "files": [{"path": "b", "contentBase64": "/w=="}]},
    ]
    await plane.made(
        "/v1/experiments", {"name": "Tone", "key": "tone", "targetFile": "a.md", "variants": variants}
    )
    scopes = ["experiment:read", "experiment:write"]
    blind = (await plane.made("/v1/api-keys", {"name": "blind", "scopes": scopes}))["secret"]
    for path in ("/v1/experiments/tone", "/api/projects/@current/experiments/tone"):
        seen = [
            await plane.rest("PATCH", path, {"name": "New"}, key=key, Idempotency_Key="1")
            for key in (plane.key, blind)
        ]
        assert [answer.status for answer in seen] == [200, 200]
        assert ["secret words" in str(answer.body) for answer in seen] == [True, False]
        assert "/w==" not in str(seen[1].body)
        if path.startswith("/v1"):
            assert seen[1].body == (await plane.rest("GET", path, key=blind)).body


async def test_pages_follow_one_another(plane: Plane) -> None:
    """The limit is clamped, the cursor leads through everything once, a made-up one is refused."""
    for index in range(3):
        await plane.made("/v1/participants", {"id": f"bot-{index}"})
    seen, cursor = [], ""
    for _ in range(3):
        answer = await plane.rest("GET", f"/v1/participants?limit=0&cursor={cursor}")
        seen += [item["id"] for item in answer.body["entities"]]
        cursor = answer.body["pagination"]["nextCursor"] or ""
    assert (seen, cursor) == (["bot-0", "bot-1", "bot-2"], "")
    assert (await plane.rest("GET", "/v1/participants?cursor=zz")).status == 400
    assert (await plane.rest("GET", "/v1/experiments?cursor=zz")).status == 400
    assert (await plane.rest("GET", "/v1/experiments?limit=ten")).status == 400
    assert (await plane.rest("GET", "/v1/experiments?wat=1")).status == 400


async def test_participants_live_their_life(plane: Plane) -> None:
    """A participant can be made, labelled, listed and removed, but not while an experiment holds it."""
    made = await plane.made("/v1/participants", {"id": "bot-1", "labels": {"role": "support"}})
    assert (made["presence"], made["labels"]) == ("never_seen", {"role": "support"})
    assert (await plane.rest("POST", "/v1/participants", {"id": "bot-1"})).status == 409
    changed = await plane.rest("PATCH", "/v1/participants/bot-1", {"labels": {"role": "sales"}})
    assert changed.body["labels"] == {"role": "sales"}
    experiment = await started(plane, participantIds=["bot-1"])
    refused = await plane.rest("DELETE", "/v1/participants/bot-1")
    assert refused.status == 409
    assert experiment["key"] in refused.body["detail"]
    await plane.made(f"/v1/experiments/{experiment['id']}/complete", {"then": "keep"})
    assert (await plane.rest("DELETE", "/v1/participants/bot-1")).status == 204
    assert (await plane.rest("GET", "/v1/participants/bot-1")).status == 404


async def test_deploying_another_variant_forces_the_assignment(plane: Plane) -> None:
    """By hand the assigned variant is a re-deploy; another one marks the assignment forced, and it says by whom."""
    experiment = await started(plane, participantIds=["bot-1"])
    at = f"/v1/experiments/{experiment['id']}"
    assignment = (await plane.rest("GET", f"{at}/assignments")).body["entities"][0]
    variants = {item["id"]: item for item in (await plane.rest("GET", at)).body["variants"]}
    same = {"participantId": "bot-1", "variantId": assignment["variantId"]}
    assert (await plane.made(f"{at}/deployments", same))["origin"] == "manual"
    other = next(key for key in variants if key != assignment["variantId"])
    forced = await plane.made(f"{at}/deployments", {"participantId": "bot-1", "variantId": other})
    assert (forced["origin"], forced["revision"]) == ("forced", "3")
    now = (await plane.rest("GET", f"{at}/assignments")).body["entities"][0]
    assert (now["method"], now["forcedBy"]) == ("forced", "api_key:operator")
    assert now["variantId"] == assignment["variantId"]
    states = [item["state"] for item in (await plane.rest("GET", f"{at}/deployments")).body["entities"]]
    assert states == ["pending", "superseded", "superseded"]
    need = {"participantId": "bot-1", "variantId": other, "requireConnected": True}
    assert (await plane.rest("POST", f"{at}/deployments", need)).body["reason"] == "NOT_CONNECTED"
    for wrong in ({"participantId": "nobody"}, {"variantId": "nothing"}):
        assert (await plane.rest("POST", f"{at}/deployments", {**same, **wrong})).status == 404


async def test_after_start_only_metadata_changes(plane: Plane) -> None:
    """Structure and content are locked by a start; names, descriptions and metadata are not."""
    experiment = await started(plane)
    at = f"/v1/experiments/{experiment['id']}"
    assert (await plane.rest("PATCH", at, {"description": "new"})).status == 200
    assert (await plane.rest("PATCH", at, {"targetFile": "b.md"})).status == 409
    variant = experiment["variants"][0]["id"]
    assert (await plane.rest("PATCH", f"{at}/variants/{variant}", {"metadata": {"a": 1}})).status == 200
    for change in ({"content": "x"}, {"weight": 10}, {"isControl": False}):
        assert (await plane.rest("PATCH", f"{at}/variants/{variant}", change)).status == 409
    assert (await plane.rest("POST", f"{at}/variants", CONCISE)).status == 409
    assert (await plane.rest("DELETE", f"{at}/variants/{variant}")).status == 409


async def test_the_audit_log_has_digests_and_no_content(plane: Plane) -> None:
    """Every change is on record, and no content of any variant is in the log."""
    await plane.made("/v1/experiments", STAMN_EXAMPLE)
    entry = (await plane.rest("GET", "/v1/audit-log")).body["entities"][0]
    assert (entry["actor"], entry["operation"]) == ("api_key:operator", "ExperimentService.CreateExperiment")


async def test_the_process_tells_how_it_is(plane: Plane) -> None:
    """Health, readiness and metrics need no key; a path that is not there is a 404 problem."""
    assert (await plane.rest("GET", "/healthz", key="")).status == 200
    assert (await plane.rest("GET", "/readyz", key="")).status == 200
    assert "variantd_sessions 0.0" in (await plane.rest("GET", "/metrics", key="")).body
    missing = await plane.rest("GET", "/v1/nothing")
    assert (missing.status, missing.body["title"]) == (404, "There is no such resource")
    assert (await plane.rest("PUT", "/v1/experiments")).status == 405
