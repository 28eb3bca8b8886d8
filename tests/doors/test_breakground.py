"""The door for clients of BreakGround: every call and rule of its reference, over HTTP."""

from typing import Any

import pytest

from control_plane.api.doors import breakground
from control_plane.api.doors.mapping import How
from tests.support.tenant import Tenant

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT = "/api/experiments"
PEOPLE = ["p", "q", "r", "s"]
DRAFT: dict[str, Any] = {
    "name": "Onboarding flow",
    "description": "Which first step works?",
    "type": "ab_test",
    "variants": [
        {"name": "Long", "splitPercentage": 50, "flowId": "flow-1", "config": {"colour": "red"}},
        {"name": "Short", "splitPercentage": 50, "flowId": "flow-2", "config": {}},
    ],
}
SHAPE = {"statusCode", "error", "message", "details"}


def with_files(**fields: Any) -> dict[str, Any]:
    """A draft that can start."""
    variants = [
        {**item, "config": {**item["config"], "targetFile": "soul.md", "content": item["name"]}}
        for item in DRAFT["variants"]
    ]
    return {**DRAFT, "variants": variants, "participantIds": PEOPLE, **fields}


async def made(tenant: Tenant, asked: dict[str, Any]) -> Any:
    """What was created."""
    return (await tenant.ok("POST", AT, asked, status=201))["data"]


async def running(tenant: Tenant, **fields: Any) -> Any:
    """A running experiment."""
    found = await made(tenant, with_files(**fields))
    await tenant.ok("PATCH", f"/v1/experiments/{found['id']}", {"exposureCriteria": {"settleSeconds": 0}})
    return (await tenant.ok("POST", f"{AT}/{found['id']}/start"))["data"]


async def test_a_draft_and_every_field(tenant: Tenant) -> None:
    """Creation answers the draft as the list and the read do; the first variant is the control."""
    found = await made(tenant, {**DRAFT, "audienceId": "aud-1", "hypothesis": "Short wins"})
    assert set(found) == {item.name for item in breakground.EXPERIMENT.fields if not item.unshown}
    assert (found["type"], found["status"], found["audienceId"]) == ("ab_test", "draft", "aud-1")
    assert (found["hypothesis"], found["_count"]) == ("Short wins", {"assignments": 0})
    for item, sent in zip(found["variants"], DRAFT["variants"], strict=True):
        assert {**item, **sent} == item
    assert (await tenant.ok("GET", f"{AT}/{found['id']}"))["data"] == found
    assert (await tenant.ok("GET", AT))["data"] == [found]
    native = await tenant.ok("GET", f"/v1/experiments/{found['id']}")
    assert [variant["isControl"] for variant in native["variants"]] == [True, False]
    assert [variant["weight"] for variant in native["variants"]] == [50, 50]
    assert native["variants"][0]["config"] == {"colour": "red"}


async def test_every_field_of_the_table(tenant: Tenant) -> None:
    """What is kept or ours comes back as it was sent; what is ours is in our own API where the table says."""
    found = await made(tenant, DRAFT)
    at = f"{AT}/{found['id']}"
    for name, field in breakground.EXPERIMENT.listed():
        if field.example is None or field.only or "." in name or "[" in name or field.how is How.REFUSED:
            continue
        await tenant.ok("PATCH", at, {name: field.example})
        if name in ("metrics", "participants", "participantIds"):
            native = await tenant.ok("GET", f"/v1/experiments/{found['id']}")
            shown = {"metrics": native["metrics"]["primary"]["eventName"]}
            assert shown["metrics"] == "resolved" or name != "metrics"
            continue
        assert (await tenant.ok("GET", at))["data"][name] == field.example
    first = found["variants"][0]
    fields = {f.name: f.example for f in breakground.VARIANT.fields if f.example is not None}
    pair = [{"id": first["id"], **fields}, {"name": "B", "splitPercentage": 50}]
    changed = (await tenant.ok("PATCH", at, {"variants": pair}))["data"]["variants"]
    assert {**changed[0], **fields} == changed[0]
    assert [item["name"] for item in changed] == ["Friendly", "B"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (
            {"variants": [{"name": "A", "splitPercentage": 50}, {"name": "B", "splitPercentage": 49}]},
            "variants",
        ),
        ({"variants": []}, "variants"),
        ({"variants": None}, "variants"),
        ({"variants": [{"name": "A", "splitPercentage": 33.3}]}, "variants.0.splitPercentage"),
        (
            {"variants": [{"name": n, "splitPercentage": s} for n, s in (("A", 33.5), ("B", 66.5))]},
            "variants.0.splitPercentage",
        ),
        ({"variants": [{"name": "A", "splitPercentage": "100"}]}, "variants.0.splitPercentage"),
        ({"variants": [{"name": "A"}]}, "variants.0.splitPercentage"),
        ({"variants": [{"name": "A", "splitPercentage": 100, "wat": 1}]}, "variants.0.wat"),
        ({"variants": [{"name": "A", "splitPercentage": 100, "config": 1}]}, "variants.0.config"),
        ({"variants": [{"name": "A", "splitPercentage": 100, "flowId": 1}]}, "variants.0.flowId"),
        (
            {"variants": [{"name": "A", "splitPercentage": 100, "config": {"content": "no file"}}]},
            "variants.0.config.content",
        ),
        ({"type": "bandit"}, "type"),
        ({"name": ""}, "name"),
        ({"status": "running"}, "status"),
        ({"wat": 1}, "wat"),
        ({"targetFile": "../x"}, "targetFile"),
    ],
)
async def test_what_is_wrong_is_told_by_field(tenant: Tenant, fields: dict[str, Any], field: str) -> None:
    """400 with this door's own field names, and nothing is created."""
    answer = await tenant.ask("POST", AT, {**DRAFT, **fields})
    assert (answer.status, set(answer.body)) == (400, SHAPE)
    assert field in [item["field"] for item in answer.body["details"]], answer.body
    assert (await tenant.ok("GET", AT))["meta"]["total"] == 0


async def test_pages(tenant: Tenant) -> None:
    """`page` and `limit` as strings, `meta` with totals; `status` filters; other paging is refused."""
    for letter in "abc":
        await made(tenant, {**DRAFT, "name": letter})
    found = await tenant.ok("GET", f"{AT}?page=2&limit=2")
    assert [item["name"] for item in found["data"]] == ["a"]
    assert found["meta"] == {"total": 3, "page": 2, "limit": 2, "totalPages": 2}
    assert (await tenant.ok("GET", AT))["meta"] == {"total": 3, "page": 1, "limit": 20, "totalPages": 1}
    assert (await tenant.ok("GET", f"{AT}?limit=0"))["meta"]["limit"] == 1
    assert (await tenant.ok("GET", f"{AT}?limit=101"))["meta"]["limit"] == 100
    for status, total in (("draft", 3), ("running", 0), ("stopped", 0), ("completed", 0)):
        assert (await tenant.ok("GET", f"{AT}?status={status}"))["meta"]["total"] == total
    for query in ("page=two", "status=done", "cursor=ab", "offset=1", "search=a"):
        answer = await tenant.ask("GET", f"{AT}?{query}")
        assert (answer.status, set(answer.body)) == (400, SHAPE), query


async def test_a_life(tenant: Tenant) -> None:
    """Started, it assigns by split; stopped, assignments remain; deleted, it is completed, archived and hidden."""
    found = await running(tenant)
    assert (found["status"], found["_count"]) == ("running", {"assignments": 4})
    assert found["startDate"] is not None
    at = f"{AT}/{found['id']}"
    for body in ({"name": "x"}, {"variants": []}, {}):
        refused = await tenant.ask("PATCH", at, body)
        assert (refused.status, set(refused.body), refused.body["statusCode"]) == (409, SHAPE, 409)
    stopped = (await tenant.ok("POST", f"{at}/stop"))["data"]
    assert (stopped["status"], stopped["_count"]) == ("stopped", {"assignments": 4})
    assert stopped["endDate"] is not None
    assert (await tenant.ok("GET", f"{AT}?status=stopped"))["meta"]["total"] == 1
    assert (await tenant.ask("POST", f"{at}/start")).status == 409
    gone = (await tenant.ok("DELETE", at))["data"]
    assert gone["status"] == "archived"
    assert (await tenant.ok("GET", AT))["data"] == []
    assert [item["id"] for item in (await tenant.ok("GET", f"{AT}?status=archived"))["data"]] == [found["id"]]
    native = await tenant.ok("GET", f"/v1/experiments/{found['id']}")
    assert (native["status"], native["archived"]) == ("completed", True)
    outcome = await tenant.ok("GET", f"/v1/experiments/{found['id']}/deployments?limit=100")
    assert "restore" not in {item["action"] for item in outcome["entities"]}
    draft = await made(tenant, DRAFT)
    assert (await tenant.ok("DELETE", f"{AT}/{draft['id']}"))["data"]["status"] == "archived"
    assert (await tenant.ask("DELETE", f"{AT}/{draft['id']}")).status == 409


async def test_a_start_without_files_says_what_is_missing(tenant: Tenant) -> None:
    """A draft of flows is kept; its start tells the file and the participants it lacks."""
    found = await made(tenant, DRAFT)
    refused = await tenant.ask("POST", f"{AT}/{found['id']}/start")
    assert refused.status == 409
    assert {item["field"] for item in refused.body["details"]} == {"participants", "targetFile"}
    assert (await tenant.ok("GET", f"{AT}/{found['id']}"))["data"]["status"] == "draft"


async def test_an_audience_takes_part(tenant: Tenant) -> None:
    """Who carries its label is assigned, nobody else."""
    for name, label in (("p", "a"), ("q", "a"), ("r", "b")):
        await tenant.ok("POST", "/v1/participants", {"id": name, "labels": {"audience": label}}, status=201)
    asked = {name: value for name, value in with_files().items() if name != "participantIds"}
    found = await made(tenant, {**asked, "audienceId": "a"})
    started = (await tenant.ok("POST", f"{AT}/{found['id']}/start"))["data"]
    assert started["_count"] == {"assignments": 2}


async def test_an_audience_changes_and_goes(tenant: Tenant) -> None:
    """Other rules stay, and who takes part follows the audience only where it was chosen by it."""
    found = await made(tenant, {**DRAFT, "audienceId": "a"})
    at, native = f"{AT}/{found['id']}", f"/v1/experiments/{found['id']}"
    rule = {"key": "tier", "operator": "exists"}
    before = (await tenant.ok("GET", native))["targetingRules"]["labels"]
    await tenant.ok("PATCH", native, {"targetingRules": {"labels": [*before, rule]}})
    for audience in ("b", None, "c"):
        changed = (await tenant.ok("PATCH", at, {"audienceId": audience}))["data"]
        assert changed["audienceId"] == audience
        there = await tenant.ok("GET", native)
        assert [r["key"] for r in there["targetingRules"]["labels"]] == ["audience"] * bool(audience) + [
            "tier"
        ]
        assert there["participants"]["labels"] == ({"audience": audience} if audience else {})
    await tenant.ok("PATCH", native, {"participants": {"labels": {"role": "support"}}})
    await tenant.ok("PATCH", at, {"audienceId": "d"})
    assert (await tenant.ok("GET", native))["participants"]["labels"] == {"role": "support"}


async def test_a_change_may_send_the_type_there_is(tenant: Tenant) -> None:
    """Whoever sends back what was read changes nothing; another type is refused."""
    found = await made(tenant, DRAFT)
    at = f"{AT}/{found['id']}"
    assert (await tenant.ok("PATCH", at, {"type": "ab_test", "name": "N"}))["data"]["name"] == "N"
    refused = await tenant.ask("PATCH", at, {"type": "switchback"})
    assert (refused.status, refused.body["details"][0]["field"]) == (400, "type")
    shown = (await tenant.ok("GET", at))["data"]
    again = (await tenant.ok("PATCH", at, shown))["data"]
    assert again == {**shown, "updatedAt": again["updatedAt"]}
    fraction = [{"name": n, "splitPercentage": s} for n, s in (("A", 33.33), ("B", 66.67))]
    refused = await tenant.ask("PATCH", at, {"variants": fraction})
    assert (refused.status, "no whole number of per cent" in refused.body["message"]) == (400, True)


async def test_null_is_as_good_as_not_sent(tenant: Tenant) -> None:
    """Creation takes null for whatever may be left out, of variants too."""
    nothing = dict.fromkeys(("description", "hypothesis", "type", "audienceId", "targetFile", "metrics"))
    variants = [{**item, "flowId": None, "config": None, "description": None} for item in DRAFT["variants"]]
    found = await made(tenant, {"name": "Bare", **nothing, "variants": variants})
    assert (found["description"], found["type"], found["audienceId"]) == ("", "ab_test", None)
    assert [(item["flowId"], item["config"]) for item in found["variants"]] == [(None, {}), (None, {})]


async def test_files_stand_in_the_configuration(tenant: Tenant) -> None:
    """`content` and `targetFile`, or `files`; one file for all, shown only to who may read contents."""
    found = await made(tenant, with_files())
    assert found["targetFile"] == "soul.md"
    assert found["variants"][0]["config"] == {"colour": "red", "targetFile": "soul.md", "content": "Long"}
    blind = await tenant.limited("experiment:read")
    seen = (await tenant.ask("GET", f"{AT}/{found['id']}", key=blind)).body["data"]
    assert seen["variants"][0]["config"]["content"] is None
    two = with_files()
    two["variants"][1]["config"]["targetFile"] = "other.md"
    refused = await tenant.ask("POST", AT, two)
    assert (refused.status, "several target files" in refused.body["message"]) == (400, True)
    pair = [{"path": "a.md", "content": "1"}, {"path": "b.md", "content": "2"}]
    variants = [{"name": n, "splitPercentage": 50, "config": {"files": pair}} for n in "AB"]
    many = await made(tenant, {**DRAFT, "name": "Many", "variants": variants})
    shown = many["variants"][0]["config"]["files"]
    assert [item["path"] for item in shown] == ["a.md", "b.md"]
    await tenant.ok("PATCH", f"{AT}/{many['id']}", {"variants": many["variants"]})  # an echo changes nothing
    again = (await tenant.ok("GET", f"{AT}/{many['id']}"))["data"]
    assert {**again, "updatedAt": many["updatedAt"]} == many


async def test_results_and_computed_results(tenant: Tenant) -> None:
    """Users counted once, conversions of users, rates unrounded: 45 of 250 is 0.18, 67 of 250 is 0.268."""
    found = await running(tenant)
    tenant.clock.jump(1)
    seats = await tenant.ok("GET", f"/v1/experiments/{found['id']}/assignments?limit=100")
    holders: dict[str, list[str]] = {}
    for item in seats["entities"]:
        holders.setdefault(item["variantId"], []).append(item["participantId"])
    long, short = (item["id"] for item in found["variants"])
    for variant, converting in ((long, 45), (short, 67)):
        events = []
        for user in range(250):
            who = {"participantId": holders[variant][user % 2], "subject": f"u{user}"}
            events += [{**who, "kind": "impression"}] * (2 if user < 10 else 1)
            if user < converting:
                events += [{**who, "kind": "conversion", "eventName": "conversion"}] * (2 if user < 5 else 1)
        numbered = [{**event, "eventId": f"{variant}-{n}"} for n, event in enumerate(events)]
        await tenant.ok("POST", "/v1/events:batch", {"events": numbered})
    at = f"{AT}/{found['id']}"
    computed = (await tenant.ok("POST", f"{at}/compute-results"))["data"]
    assert set(computed) == {"variants"}
    assert computed["variants"] == [
        {
            "variantId": long,
            "variantName": "Long",
            "sampleSize": 250,
            "conversions": 45,
            "conversionRate": 0.18,
        },
        {
            "variantId": short,
            "variantName": "Short",
            "sampleSize": 250,
            "conversions": 67,
            "conversionRate": 0.268,
        },
    ]
    raw = (await tenant.ok("GET", f"{at}/results"))["data"]
    assert set(raw) == {"experimentId", "name", "status", "startDate", "endDate", "variants"}
    assert (raw["experimentId"], raw["name"], raw["status"]) == (found["id"], found["name"], "running")
    assert (raw["startDate"], raw["endDate"]) == (found["startDate"], None)
    arm = raw["variants"][0]
    assert set(arm) == {"variantId", "variantName", "splitPercentage", "participants", "results"}
    assert (arm["participants"], arm["splitPercentage"]) == (250, 50)
    assert arm["results"] == [
        {
            "eventName": "conversion",
            "role": "primary",
            "impressions": 260,
            "participants": 250,
            "conversions": 45,
            "conversionEvents": 50,
        }
    ]


async def test_metrics_that_count_one_event_are_told_each_in_its_way(tenant: Tenant) -> None:
    """Of users, of impressions and by participant: what our own API says of each by its key."""
    own = [{"key": "each-time", "of": "impressions"}, {"key": "amount", "kind": "mean"}]
    found = await running(
        tenant,
        metrics={
            "primary": {"eventName": "resolved", "of": "subjects"},
            "secondary": [{"eventName": "resolved", **item} for item in own],
        },
    )
    tenant.clock.jump(1)
    events = [
        {"participantId": person, "subject": f"u{user}", "kind": kind, **more}
        for person in PEOPLE
        for user in range(3)
        for kind, more in (("impression", {}), ("impression", {}), ("conversion", {"eventName": "resolved"}))
    ]
    numbered = [{**event, "eventId": f"{found['id']}-{n}"} for n, event in enumerate(events)]
    await tenant.ok("POST", "/v1/events:batch", {"events": numbered})
    told = (await tenant.ok("GET", f"{AT}/{found['id']}/results"))["data"]["variants"][0]["results"]
    at = f"/v1/experiments/{found['id']}/results"
    ours = [(await tenant.ok("GET", at + query)) for query in ("", "?metric=each-time", "?metric=amount")]
    assert [(item["participants"], item["conversions"]) for item in told] == [
        (item["variants"][0]["units"], item["variants"][0]["convertedUnits"]) for item in ours
    ]
    assert [item["participants"] for item in told[:2]] == [6, 12]


@pytest.mark.parametrize(
    ("method", "path", "body", "key", "status"),
    [
        ("POST", AT, b"{", None, 400),
        ("POST", f"{AT}/x/stop", {"force": True}, None, 400),
        ("GET", AT, None, "", 401),
        ("GET", f"{AT}/00000000-0000-0000-0000-000000000000", None, None, 404),
        ("GET", f"{AT}/", None, None, 200),
        ("GET", f"{AT}/a/b/c", None, None, 404),
        ("PUT", AT, None, None, 405),
        ("POST", f"{AT}/x/pause", None, None, 404),
    ],
)
async def test_failures_have_this_doors_shape(
    tenant: Tenant, method: str, path: str, body: Any, key: str | None, status: int
) -> None:
    """`{statusCode, error, message, details}`, whatever fails and wherever."""
    headers = {"Content_Type": "application/json"} if isinstance(body, bytes) else {}
    answer = await tenant.ask(method, path, body, key=key, **headers)
    assert answer.status == status, answer.body
    if status >= 400:
        assert (set(answer.body), answer.body["statusCode"]) == (SHAPE, status)


async def test_another_project_and_the_audit_log(tenant: Tenant) -> None:
    """Nothing is found from elsewhere; the log names the door and the experiment."""
    found = await made(tenant, with_files())
    entry = await tenant.entry()
    assert (entry["operation"], entry["resourceId"]) == ("BreakGround.CreateExperiment", found["id"])
    assert entry["after"]["id"] == found["id"]
    reader = await tenant.limited("experiment:read")
    assert (await tenant.ask("POST", f"{AT}/{found['id']}/compute-results", key=reader)).status == 200
    refused = await tenant.ask("DELETE", f"{AT}/{found['id']}", key=reader)
    assert (refused.status, set(refused.body)) == (403, SHAPE)
    assert (await tenant.ask("GET", f"{AT}/{found['id']}", key=tenant.plane.key)).status == 404
