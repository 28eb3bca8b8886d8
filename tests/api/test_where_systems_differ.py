"""The questions to which experiment systems have different answers, each with the answer that is given here.

A question a test: what a user of another system would trip over is said, over REST, by name.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.model import Reason, ReasonCode, Result
from tests.support.builders import make_hello
from tests.support.clock import FakeClock
from tests.support.plane import Plane, running_plane
from tests.support.stream import make_outcome, session
from tests.support.waiting import eventually

PAIR = [
    {"name": "A", "content": "a", "weight": 50, "isControl": True},
    {"name": "B", "content": "b", "weight": 50},
]
AT = "/v1/experiments/tone"
FOUR = ["p", "q", "r", "s"]


async def draft(plane: Plane, **fields: Any) -> Any:
    """A draft with the key `tone`."""
    values = {"name": "Tone", "targetFile": "soul.md", "variants": PAIR, "participantIds": FOUR, **fields}
    return await plane.made("/v1/experiments", values)


async def running(plane: Plane, **fields: Any) -> Any:
    """It, started."""
    await draft(plane, **fields)
    return (await plane.made(f"{AT}/start", None))["experiment"]


async def seats(plane: Plane) -> dict[str, Any]:
    """The assignments by participant."""
    page = (await plane.rest("GET", f"{AT}/assignments?limit=100")).body
    return {item["participantId"]: item for item in page["entities"]}


async def held(plane: Plane) -> dict[str, str | None]:
    """Which variant each participant has."""
    return {name: item["variantId"] for name, item in (await seats(plane)).items()}


async def shown(plane: Plane) -> Any:
    """The experiment now."""
    return (await plane.rest("GET", AT)).body


async def reported(plane: Plane, *events: dict[str, Any]) -> None:
    """Events are counted."""
    await plane.made("/v1/events:batch", {"events": [{"eventId": str(n), **e} for n, e in enumerate(events)]})


async def arms(plane: Plane, population: str = "assigned") -> dict[str, Any]:
    """The results of each variant."""
    body = (await plane.rest("GET", f"{AT}/results?eventName=done&population={population}")).body
    return {arm["key"]: arm for arm in body["variants"]}


def at(seconds: float) -> str:
    """A moment from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


async def test_1_assigned_at_create_or_at_start(plane: Plane) -> None:
    """Both: creation answers the plan, the start makes it fact; whoever joins late is assigned on joining."""
    made = await draft(plane)
    assert {item["planned"] for item in made["assignments"]} == {True}
    planned = {item["participantId"]: item["variantId"] for item in made["assignments"]}
    await plane.made(f"{AT}/start", None)
    assert await held(plane) == planned
    assert {item["planned"] for item in (await seats(plane)).values()} == {False}


async def test_1_late_joiners(plane: Plane) -> None:
    """Whoever comes to carry the labels gets a variant then; the others keep theirs."""
    for name in FOUR:
        await plane.made("/v1/participants", {"id": name, "labels": {"role": "x"}})
    values = {
        "name": "Tone",
        "targetFile": "soul.md",
        "variants": PAIR,
        "participants": {"labels": {"role": "x"}},
    }
    await plane.made("/v1/experiments", values)
    await plane.made(f"{AT}/start", None)
    before = await held(plane)
    await plane.made("/v1/participants", {"id": "late", "labels": {"role": "x"}})

    async def joined() -> bool:
        return (await held(plane)).get("late") is not None

    await eventually(joined, what="the late joiner is in")
    assert {name: value for name, value in (await held(plane)).items() if name != "late"} == before


async def test_2_is_stop_final(plane: Plane) -> None:
    """No: stopped takes in nobody and is still measured; complete is final, and a list finds both."""
    await running(plane)
    before = await held(plane)
    stopped = await plane.made(f"{AT}/stop", None)
    assert (stopped["experiment"]["status"], await held(plane)) == ("stopped", before)
    await reported(plane, {"kind": "impression", "participantId": "p", "occurredAt": at(120)})
    assert sum(arm["impressions"] for arm in (await arms(plane)).values()) == 1
    assert len((await plane.rest("GET", "/v1/experiments?status=stopped")).body["entities"]) == 1
    done = await plane.made(f"{AT}/complete", {})
    assert done["experiment"]["status"] == "completed"
    assert (await plane.rest("POST", f"{AT}/resume")).status == 409
    assert len((await plane.rest("GET", "/v1/experiments?status=completed")).body["entities"]) == 1


@pytest.mark.parametrize(
    ("asked", "written"), [({}, 0), ({"onPause": "hold"}, 0), ({"onPause": "revert"}, 4)]
)
async def test_3_what_is_pause(plane: Plane, asked: dict[str, str], written: int) -> None:
    """Files stay, unless asked to put them back."""
    await running(plane)
    await plane.made(f"{AT}/pause", asked)
    deployments = (await plane.rest("GET", f"{AT}/deployments?limit=100")).body["entities"]
    assert sum(item["action"] == "restore" for item in deployments) == written


@pytest.mark.parametrize("how", ["hold", "revert"])
async def test_4_resume_keeps_variants(plane: Plane, how: str) -> None:
    """Always."""
    await running(plane)
    before = await held(plane)
    await plane.made(f"{AT}/pause", {"onPause": how})
    await plane.made(f"{AT}/resume", None)
    assert await held(plane) == before


async def test_5_weights_sum_to_100_at_the_start(plane: Plane) -> None:
    """A draft may be incomplete; a start says what is wrong."""
    odd = [{**PAIR[0], "weight": 30}, {**PAIR[1], "weight": 30}]
    await draft(plane, variants=odd)
    refused = await plane.rest("POST", f"{AT}/start")
    assert (refused.status, "100" in str(refused.body["details"])) == (409, True)
    started = await plane.made(f"{AT}/start", {"normalize": True})
    assert [item["weight"] for item in started["experiment"]["variants"]] == [50, 50]


async def test_6_two_variants_at_the_start_not_at_create(plane: Plane) -> None:
    """One is a draft, as long as it is one."""
    await draft(plane, variants=[{**PAIR[0], "weight": 100}])
    refused = await plane.rest("POST", f"{AT}/start")
    assert (refused.status, "variants" in str(refused.body["details"])) == (409, True)


async def test_7_edits_after_launch(plane: Plane) -> None:
    """Name and labels always; variants never; weights open a phase."""
    started = await running(plane)
    assert (await plane.rest("PATCH", AT, {"name": "Other"})).status == 200
    assert (await plane.rest("PATCH", AT, {"targetFile": "x.md"})).status == 409
    variant = f"{AT}/variants/{started['variants'][0]['id']}"
    assert (await plane.rest("PATCH", variant, {"content": "c"})).status == 409
    assert (await plane.rest("PATCH", variant, {"weight": 10})).status == 409
    phase = await plane.made(f"{AT}/phases", {"weights": {"a": 25, "b": 75}})
    assert (phase["number"], (await shown(plane))["currentPhase"]["number"]) == (2, 2)


async def test_8_delete_removes_a_draft_and_archives_what_is_completed(plane: Plane) -> None:
    """Anything in between is refused, and told what to do first."""
    await draft(plane)
    assert (await plane.rest("DELETE", AT)).status == 204
    assert (await plane.rest("GET", AT)).status == 404
    await running(plane)
    refused = await plane.rest("DELETE", AT)
    assert (refused.status, "complete" in refused.body["allowedVerbs"]) == (409, True)
    await plane.made(f"{AT}/complete", {})
    assert (await plane.rest("DELETE", AT)).status == 204
    assert ((await shown(plane))["status"], (await shown(plane))["archived"]) == ("completed", True)


async def test_9_archived_is_not_completed(plane: Plane) -> None:
    """Two things, of which the one is taken back."""
    await running(plane)
    done = (await plane.made(f"{AT}/complete", {}))["experiment"]
    assert (done["status"], done["archived"], done["archivedAt"]) == ("completed", False, None)
    away = (await plane.made(f"{AT}/archive", None))["experiment"]
    assert away["archivedAt"] >= away["completedAt"] == away["intakeClosedAt"]
    assert (await plane.rest("GET", "/v1/experiments?archived=false")).body["entities"] == []
    back = (await plane.made(f"{AT}/unarchive", None))["experiment"]
    assert (back["status"], back["archived"], back["archivedAt"]) == ("completed", False, None)


async def test_10_repeating_a_verb(plane: Plane) -> None:
    """With the same idempotency key it is one; without, it is a conflict."""
    await draft(plane)
    once = await plane.rest("POST", f"{AT}/start", Idempotency_Key="k")
    again = await plane.rest("POST", f"{AT}/start", Idempotency_Key="k")
    assert (once.status, again.status, again.body) == (200, 200, once.body)
    assert (await plane.rest("POST", f"{AT}/start")).status == 409


async def test_11_what_an_illegal_transition_answers(plane: Plane) -> None:
    """409 with a reason, the state, and what would fit."""
    await draft(plane)
    refused = await plane.rest("POST", f"{AT}/pause")
    assert (refused.status, refused.body["reason"], refused.body["state"]) == (409, "WRONG_STATE", "draft")
    assert "start" in refused.body["allowedVerbs"]


async def test_12_pages_follow_a_cursor(plane: Plane) -> None:
    """Opaque, until there is no more."""
    for name in "abc":
        await draft(plane, name=name, key=f"key-{name}", participantIds=[name])
    seen, cursor = [], ""
    while True:
        page = (await plane.rest("GET", f"/v1/experiments?limit=2&cursor={cursor}")).body
        seen += [item["name"] for item in page["entities"]]
        cursor = page["pagination"]["nextCursor"]
        assert page["pagination"]["hasMore"] == bool(cursor)
        if not cursor:
            break
    assert sorted(seen) == ["a", "b", "c"]


@pytest.mark.parametrize(("limit", "size"), [("0", 1), ("-5", 1), ("101", 3), ("", 3)])
async def test_13_out_of_range_values(plane: Plane, limit: str, size: int) -> None:
    """A limit is clamped; a cursor that was never answered is refused."""
    for name in "abc":
        await draft(plane, name=name, key=f"key-{name}", participantIds=[name])
    page = await plane.rest("GET", "/v1/experiments" + (f"?limit={limit}" if limit else ""))
    assert len(page.body["entities"]) == size
    assert (await plane.rest("GET", "/v1/experiments?cursor=made-up")).status == 400


async def days(plane: Plane, query: str = "") -> Any:
    """Impressions by date."""
    body = (await plane.rest("GET", f"{AT}/results-time-series{query}")).body
    return {item["date"]: sum(arm["impressions"] for arm in item["variants"]) for item in body["days"]}


async def test_14_empty_days(tmp_path: Path) -> None:
    """Left out, unless they are asked for."""
    clock = FakeClock()
    async with running_plane(tmp_path / "data", clock=clock) as plane:
        await running(plane, exposureCriteria={"settleSeconds": 0})
        clock.jump(86_400)
        await reported(plane, {"kind": "impression", "participantId": "p"})
        clock.jump(86_400)
        assert await days(plane) == {"2027-01-16": 1}
        filled = await days(plane, "?fillGaps=true")
        assert filled == {"2027-01-15": 0, "2027-01-16": 1, "2027-01-17": 0}


async def test_15_day_boundary(tmp_path: Path) -> None:
    """Midnight UTC of when it happened, wherever it was reported from and whenever it arrived."""
    clock = FakeClock()
    async with running_plane(tmp_path / "data", clock=clock) as plane:
        await running(plane, exposureCriteria={"settleSeconds": 0})
        clock.jump(3 * 86_400)
        met = {"kind": "impression", "participantId": "p"}
        await reported(
            plane,
            {**met, "occurredAt": "2027-01-15T23:59:59.999Z"},
            {**met, "occurredAt": "2027-01-16T00:00:00Z"},
            {**met, "occurredAt": "2027-01-16T23:30:00-05:00"},
        )
        assert await days(plane) == {"2027-01-15": 1, "2027-01-16": 1, "2027-01-17": 1}


async def test_16_impressions_and_participants_are_both_told(plane: Plane) -> None:
    """Three impressions of one participant are three and one."""
    await running(plane)
    await reported(plane, *[{"kind": "impression", "participantId": "p", "occurredAt": at(120)}] * 3)
    found = await arms(plane)
    assert sum(arm["impressions"] for arm in found.values()) == 3
    assert sum(arm["participantsExposed"] for arm in found.values()) == 1


async def test_17_a_conversion_without_an_impression_or_before_it(plane: Plane) -> None:
    """Neither counts; both are kept, and said to be."""
    await running(plane)
    done = {"kind": "conversion", "eventName": "done"}
    await reported(
        plane,
        {**done, "participantId": "p", "occurredAt": at(100)},
        {**done, "participantId": "q", "occurredAt": at(100)},
        {"kind": "impression", "participantId": "q", "occurredAt": at(120)},
    )
    body = (await plane.rest("GET", f"{AT}/results?eventName=done")).body
    assert [arm["conversions"] for arm in body["variants"]] == [0, 0]
    assert sum(item["count"] for item in body["rejected"]) == 2
    await reported(plane, {**done, "participantId": "q", "occurredAt": at(130), "eventId": "after"})
    assert sum(arm["conversions"] for arm in (await arms(plane)).values()) == 1


async def test_18_unassigned_is_not_control(plane: Plane) -> None:
    """Whoever is outside the allocation has no variant, and counts nowhere."""
    started = await running(plane, trafficAllocation=50)
    outside = [name for name, variant in (await held(plane)).items() if variant is None]
    assert len(outside) == 2
    assert sum(started["assignmentCounts"].values()) == 2
    await reported(
        plane, *({"kind": "impression", "participantId": n, "occurredAt": at(120)} for n in outside)
    )
    assert [arm["impressions"] for arm in (await arms(plane)).values()] == [0, 0]


async def test_19_another_variant_by_hand(plane: Plane) -> None:
    """Allowed and shown as forced; the participant stays in its arm, until it is unforced."""
    started = await running(plane)
    before = (await seats(plane))["p"]
    other = next(v["id"] for v in started["variants"] if v["id"] != before["variantId"])
    await plane.made(f"{AT}/deployments", {"participantId": "p", "variantId": other})
    forced = (await seats(plane))["p"]
    assert (forced["method"], forced["variantId"]) == ("forced", before["variantId"])
    back = await plane.made(f"{AT}/assignments/p:unforce", None)
    assert (back["method"], back["variantId"]) == ("randomized", before["variantId"])


async def test_19_a_forced_participant_by_its_assignment(plane: Plane) -> None:
    """The same over the assignment; where there is none, there is nothing to force."""
    started = await running(plane)
    before = (await seats(plane))["p"]
    other = next(v for v in started["variants"] if v["id"] != before["variantId"])
    forced = await plane.made(f"{AT}/assignments/p:force", {"variantId": other["key"]})
    assert (forced["method"], forced["variantId"]) == ("forced", before["variantId"])
    newest = (await plane.rest("GET", f"{AT}/deployments?limit=1")).body["entities"][0]
    assert (newest["origin"], newest["variantId"]) == ("forced", other["id"])
    await plane.made("/v1/participants", {"id": "stranger"})
    nobody = await plane.rest("POST", f"{AT}/assignments/stranger:force", {"variantId": "a"})
    assert (nobody.status, nobody.body["reason"]) == (404, "ASSIGNMENT_NOT_FOUND")


@pytest.mark.parametrize(
    ("rule", "first", "counted"),
    [("exclude", "own", 0), ("first_seen", "own", 2), ("first_seen", "other", 0)],
)
async def test_20_a_unit_exposed_to_several_variants(
    plane: Plane, rule: str, first: str, counted: int
) -> None:
    """Excluded from `delivered`, or kept where its own came first, as is asked; others do not notice."""
    criteria = {"settleSeconds": 0, "multipleVariants": rule}
    started = await running(plane, exposureCriteria=criteria)
    digests = {item["id"]: item["files"][0]["digest"] for item in started["variants"]}
    own = (await held(plane))["p"]
    (other,) = set(digests) - {own}
    contents = [own, other, own] if first == "own" else [other, own, own]
    met = {"kind": "impression", "participantId": "p", "target": "soul.md"}
    several = [
        {**met, "subject": "s", "digest": digests[id_], "occurredAt": at(100 + n)}
        for n, id_ in enumerate(contents)
    ]
    once = {**met, "subject": "t", "digest": digests[own], "occurredAt": at(100)}
    await reported(plane, *several, once)
    body = (await plane.rest("GET", f"{AT}/results?eventName=done&population=delivered")).body
    assert sum(arm["impressions"] for arm in body["variants"]) == counted + 1
    told = {item["reason"]: item["count"] for item in body["rejected"]}
    assert told == {"other_variant": 1, **({"crossed": 2} if not counted else {})}
    assert sum(arm["impressions"] for arm in (await arms(plane)).values()) == 4


async def test_21_best_of_all_and_better_than_control(plane: Plane) -> None:
    """Both numbers are there under their own names; control has no chance to beat itself."""
    await running(plane, participantIds=[*FOUR, "t", "u"])
    for name in (*FOUR, "t", "u"):
        person = {"participantId": name, "occurredAt": at(100)}
        await plane.made(
            "/v1/events:batch",
            {"events": [{**person, "kind": "impression", "eventId": f"{name}-{n}"} for n in range(4)]},
        )
    found = await arms(plane)
    assert found["a"]["probabilityToBeBest"] + found["b"]["probabilityToBeBest"] == pytest.approx(1)
    assert found["a"]["chanceToWin"] is None


async def test_22_the_agent_is_offline(plane: Plane) -> None:
    """The deployment waits for it, unless a connected one was asked for."""
    started = await running(plane)
    asked = {"participantId": "p", "variantId": started["variants"][0]["id"]}
    waiting = await plane.made(f"{AT}/deployments", asked)
    assert (waiting["state"], waiting["connected"]) == ("pending", False)
    refused = await plane.rest("POST", f"{AT}/deployments", {**asked, "requireConnected": True})
    assert (refused.status, refused.body["reason"]) == (409, "NOT_CONNECTED")


async def test_23_who_owns_the_file(plane: Plane) -> None:
    """The host: where its file was changed locally a new offer is refused with DRIFTED, and it is not overwritten
    until the operator says so."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        started = await running(plane, participantIds=["p", "q"])
        offer = await stream.offer()
        reason = Reason(code=ReasonCode.DRIFTED, message="the file was changed here", remedy="overwriteDrift")
        await stream.report(offer, Result.REFUSED, reason=reason)
        found = (await plane.rest("GET", f"{AT}/deployments?limit=100")).body["entities"]
        told = next(item for item in found if item["participantId"] == "p")
        assert (told["state"], told["reason"]["code"]) == ("refused", "DRIFTED")
        mine = (await seats(plane))["p"]["variantId"]
        assert mine in {item["id"] for item in started["variants"]}
        asked = {"participantId": "p", "variantId": mine, "overwriteDrift": True}
        await plane.made(f"{AT}/deployments", asked)
        assert (offer.overwrite_drift, (await stream.offer()).overwrite_drift) == (False, True)


async def test_24_the_status_after_a_rollback(plane: Plane) -> None:
    """What runs and what was tried last are told apart, with the reason."""
    identity = await plane.enroll(await plane.token())
    async with session(identity, make_hello("p")) as stream:
        await running(plane, participantIds=["p", "q"])
        offer = await stream.offer()
        reason = Reason(code=ReasonCode.RELOAD_FAILED, message="the reload hook failed", remedy="see its log")
        tried = make_outcome(offer, Result.ROLLED_BACK, reason=reason)
        await stream.report(offer, Result.ROLLED_BACK, reason=reason)
        found = (await plane.rest("GET", f"{AT}/deployments?limit=100")).body["entities"]
        told = next(item for item in found if item["participantId"] == "p")
        assert (told["state"], told["reason"]["code"]) == ("rolled_back", "RELOAD_FAILED")
        assert told["files"][0]["lastAttemptedDigest"] == f"sha256:{tried.files[0].desired.hex()}"
        outcomes = (await plane.rest("GET", f"/v1/deployments/{told['id']}/outcomes")).body["entities"]
        assert [item["result"] for item in outcomes] == ["rolled_back"]


async def test_25_nothing_else_is_published_along(plane: Plane) -> None:
    """A verb is in force once it is answered, and it carries nobody else's changes."""
    await draft(plane)
    answer = await plane.made(f"{AT}/start", None)
    assert (answer["publishStatus"], answer["concurrentVersionChanges"]) == ("published", 0)


async def test_26_a_variant_with_assignments(plane: Plane) -> None:
    """It is not deleted; a phase gives it nothing from now on."""
    started = await running(plane)
    variant = started["variants"][1]
    assert (await plane.rest("DELETE", f"{AT}/variants/{variant['id']}")).status == 409
    await plane.made(f"{AT}/phases", {"weights": {"a": 100, "b": 0}})
    assert (await shown(plane))["currentPhase"]["weights"][variant["id"]] == 0


async def test_27_a_metric_changed_mid_run(plane: Plane) -> None:
    """Allowed and told: the fingerprint of the start stays, and whatever shows numbers says the plan is another one."""

    async def replanned(event_name: str) -> tuple[Any, Any, list[str]]:
        metrics = {"primary": {"eventName": event_name, "goal": "increase"}}
        assert (await plane.rest("PATCH", AT, {"metrics": metrics})).status == 200
        results = (await plane.rest("GET", f"{AT}/results")).body
        findings = (await plane.rest("GET", f"{AT}/findings")).body["findings"]
        return await shown(plane), results["planChanged"], [item["code"] for item in findings]

    started = await running(plane, metrics={"primary": {"eventName": "resolved", "goal": "increase"}})
    assert (len(started["analysisFingerprint"]), started["planChanged"]) == (64, False)
    changed, told, codes = await replanned("escalated")
    assert changed["analysisFingerprint"] == started["analysisFingerprint"]
    assert (changed["planChanged"], told, "PLAN_CHANGED" in codes) == (True, True, True)
    planned, told, codes = await replanned("resolved")
    assert (planned["planChanged"], told, "PLAN_CHANGED" in codes) == (False, False, False)


@pytest.mark.parametrize(("kind", "status"), [("ab", 409), ("personalization", 200)])
async def test_28_an_experiment_without_control(plane: Plane, kind: str, status: int) -> None:
    """Needed where arms are compared; personalization compares nothing."""
    rules = {"labels": [{"key": "role", "operator": "equals", "value": "x"}]}
    await plane.made("/v1/participants", {"id": "p", "labels": {"role": "x"}})
    one = {"name": "A", "content": "a", "weight": 50, "isControl": False}
    other = {"name": "B", "content": "b", "weight": 50}
    if kind == "personalization":
        one, other = ({k: v for k, v in item.items() if k != "weight"} for item in (one, other))
        one["targetingRules"] = rules
    await draft(plane, type=kind, variants=[one, other], participantIds=["p"])
    assert (await plane.rest("POST", f"{AT}/start")).status == status
