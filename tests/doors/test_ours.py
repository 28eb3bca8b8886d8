"""The door for clients of Ours Privacy: every call and rule of its reference, over HTTP."""

from typing import Any

import pytest

from control_plane.api.doors import ours, ours_fields
from control_plane.api.doors.mapping import How
from tests.support.tenant import Tenant
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT = "/rest/v1/experiments"
VARIANTS = "/rest/v1/experiment-variants"
SETTINGS = "/rest/v1/experiment-settings"
PEOPLE = ["p", "q", "r", "s"]
DAY = 86_400


async def settings_id(tenant: Tenant) -> str:
    """The id of the one settings record, as a client finds it."""
    return str((await tenant.ok("GET", SETTINGS))["entities"][0]["id"])


async def draft(tenant: Tenant, **fields: Any) -> Any:
    """A draft."""
    asked = {"experimentSettingsId": await settings_id(tenant), "name": "Hero headline", **fields}
    return await tenant.ok("POST", AT, asked, status=201)


async def whole(tenant: Tenant, **fields: Any) -> Any:
    """A draft that can start: file, contents, participants, a metric."""
    said = {
        "targetFile": "soul.md",
        "participantIds": PEOPLE,
        "metrics": {"primary": {"eventName": "signup"}},
        **fields,
    }
    made = await draft(tenant, **{name: value for name, value in said.items() if value is not None})
    control = made["variants"][0]["id"]
    await tenant.ok("PATCH", f"{VARIANTS}/{control}", {"content": "plain"})
    asked = {"experimentId": made["id"], "name": "Bold", "weight": 50, "content": "bold"}
    await tenant.ok("POST", VARIANTS, asked, status=201)
    return await tenant.ok("GET", f"{AT}/{made['id']}")


async def running(tenant: Tenant, **fields: Any) -> Any:
    """A running experiment."""
    made = await whole(tenant, **fields)
    await tenant.ok("PATCH", f"/v1/experiments/{made['key']}", {"exposureCriteria": {"settleSeconds": 0}})
    return (await tenant.ok("POST", f"{AT}/{made['id']}/start"))["experiment"]


async def report(tenant: Tenant, key: str, impressions: int, conversions: dict[str, int]) -> dict[str, str]:
    """So many impressions of each participant, and conversions by name; which variant each has."""
    tenant.clock.jump(1)
    found = await tenant.ok("GET", f"/v1/experiments/{key}/assignments?limit=100")
    events = []
    for item in found["entities"]:
        who = {"participantId": item["participantId"]}
        events += [{**who, "kind": "impression"} for _ in range(impressions)]
        for name, count in conversions.items():
            events += [{**who, "kind": "conversion", "eventName": name} for _ in range(count)]
    unique = tenant.clock.now()
    numbered = [{**event, "eventId": f"{unique}-{n}"} for n, event in enumerate(events)]
    await tenant.ok("POST", "/v1/events:batch", {"events": numbered})
    return {item["participantId"]: item["variantId"] for item in found["entities"]}


# -- experiments


async def test_a_draft_has_its_control_and_every_field(tenant: Tenant) -> None:
    """Creation answers the experiment with an automatic control of weight 100; the key is made of the name."""
    made = await draft(tenant, description="Bolder is better", includeQueryString=True)
    assert set(made) == {*(item.name for item in ours.EXPERIMENT.fields if not item.unshown), "variants"}
    assert made["id"].startswith("exp_")
    assert (made["key"], made["type"], made["status"]) == ("hero-headline", "ab", "draft")
    assert (made["trafficAllocation"], made["startedAt"], made["winnerVariantId"]) == (100, None, None)
    (control,) = made["variants"]
    assert (control["isControl"], control["weight"], control["experimentId"]) == (True, 100, made["id"])
    assert await tenant.ok("GET", f"{AT}/{made['id']}") == made
    other = await draft(tenant, name="B", key="own-key", controlWeight=30)
    assert (other["key"], other["variants"][0]["weight"]) == ("own-key", 30)


@pytest.mark.parametrize("where", ["Experiment", "Variant", "Settings"])
async def test_what_means_nothing_for_files_is_kept_and_echoed(tenant: Tenant, where: str) -> None:
    """Every field of the table that is kept comes back as it was sent, and is the default until then."""
    made = await draft(tenant)
    at = {
        "Experiment": f"{AT}/{made['id']}",
        "Variant": f"{VARIANTS}/{made['variants'][0]['id']}",
        "Settings": f"{SETTINGS}/{await settings_id(tenant)}",
    }[where]
    found = await tenant.ok("GET", at)
    for name, field in ours.DOOR.shapes[where].listed():
        if field.how is How.KEPT and "." not in name:
            assert found[name] == field.default
            await tenant.ok("PATCH", at, {name: field.example})
            assert (await tenant.ok("GET", at))[name] == field.example
    if where == "Experiment":
        kept = {f.name: f.example for f in ours_fields.TARGETING.fields if f.how is How.KEPT}
        answered = await tenant.ok("PATCH", at, {"targetingRules": kept})
        assert {**answered["targetingRules"], **kept} == answered["targetingRules"]
        replaced = await tenant.ok("PATCH", at, {"targetingRules": {"urlPatterns": ["/x"]}})
        assert replaced["targetingRules"]["visitorStatus"] is None
    wrong = {"Experiment": "includeQueryString", "Variant": "domModifications", "Settings": "cookieName"}[
        where
    ]
    refused = await tenant.ask("PATCH", at, {wrong: 7.5})
    assert (refused.status, refused.body["details"][0]["field"]) == (400, wrong)


@pytest.mark.parametrize("where", ["Experiment", "Variant"])
async def test_what_means_the_same_is_ours(tenant: Tenant, where: str) -> None:
    """Every field of the table that is ours is found where the table says, in our own API."""
    made = await draft(tenant)
    native = f"/v1/experiments/{made['key']}"
    at = f"{AT}/{made['id']}"
    if where == "Variant":
        at, native = f"{VARIANTS}/{made['variants'][0]['id']}", f"{native}/variants/control"
        await tenant.ok("PATCH", f"{AT}/{made['id']}", {"targetFile": "config/soul.md"})
    for name, field in ours.DOOR.shapes[where].listed():
        if (
            field.how is not How.OURS
            or field.example is None
            or field.only
            or "." in name
            or name == "weight"
        ):
            continue
        await tenant.ok("PATCH", at, {name: field.example})
        if name == "key":
            native = f"/v1/experiments/{field.example}"
        found = await tenant.ok("GET", native)
        if name in ("name", "key", "description", "trafficAllocation", "targetFile", "content"):
            assert found[field.native] == field.example
            assert (await tenant.ok("GET", at))[name] == field.example
        elif name == "metrics":
            assert found["metrics"]["primary"]["eventName"] == "resolved"
            assert (await tenant.ok("GET", at))["metrics"]["secondary"][0]["funnelId"] == "f1"
    if where == "Experiment":
        found = await tenant.ok("GET", native)
        assert found["participants"]["labels"] == ours.EXPERIMENT["participants"].example["labels"]


async def test_null_is_as_good_as_not_sent(tenant: Tenant) -> None:
    """Creation takes null for whatever may be left out, and lists, metrics and numbers are told whole."""
    names = ("key", "description", "type", "trafficAllocation", "controlWeight", "targetingRules", "metrics",
             "includeQueryString", "targetFile", "labels")  # fmt: skip
    made = await draft(tenant, **dict.fromkeys(names))
    plain = await draft(tenant)
    own = {"id", "key", "variants"}
    assert {k: v for k, v in made.items() if k not in own} == {k: v for k, v in plain.items() if k not in own}
    assert (made["targetingRules"]["queryParams"], made["variants"][0]["weight"]) == ([], 100)
    changed = await tenant.ok("PATCH", f"{AT}/{made['id']}", {"metrics": {"primary": {"eventName": "x"}}})
    assert (changed["metrics"]["primary"]["funnelId"], changed["metrics"]["secondary"]) == (None, [])


async def test_what_was_answered_may_be_sent_back(tenant: Tenant) -> None:
    """Whole, as it was read: nothing changes. Another status, type or id is refused."""
    made = await whole(tenant)
    at = f"{AT}/{made['id']}"
    shown = await tenant.ok("PATCH", at, {})
    assert await tenant.ok("PATCH", at, shown) == shown
    for name, value in (("status", "running"), ("type", "personalization"), ("id", "exp_1")):
        refused = await tenant.ask("PATCH", at, {**shown, name: value})
        assert (refused.status, refused.body["details"][0]["field"]) == (400, name)
    for item in made["variants"]:
        assert await tenant.ok("PATCH", f"{VARIANTS}/{item['id']}", item) == item


async def test_the_list_pages_filters_and_clamps(tenant: Tenant) -> None:
    """Cursor and limit, status, type and search together; the last changed first; without variants."""
    made = [await draft(tenant, name=f"Test {letter}") for letter in "abc"]
    tenant.clock.jump(1)
    await tenant.ok("PATCH", f"{AT}/{made[0]['id']}", {"description": "needle"})
    seen, cursor = [], ""
    while True:
        page = await tenant.ok("GET", f"{AT}?limit=0&cursor={cursor}")
        assert len(page["entities"]) == 1
        assert "variants" not in page["entities"][0]
        seen += [item["name"] for item in page["entities"]]
        cursor = page["pagination"]["nextCursor"]
        assert page["pagination"]["hasMore"] == bool(cursor)
        if not cursor:
            break
    assert seen == ["Test a", "Test c", "Test b"]
    assert len((await tenant.ok("GET", f"{AT}?limit=101"))["entities"]) == 3
    own = made[0]["id"]
    mixed = "search=test%20A&status=draft&type=ab"
    for query in ("search=NEEDLE", f"search={own}", f"search={own[24:].upper()}", mixed):
        assert [item["name"] for item in (await tenant.ok("GET", f"{AT}?{query}"))["entities"]] == ["Test a"]
    assert (await tenant.ok("GET", f"{AT}?status=running"))["entities"] == []
    for query in ("cursor=made-up", "status=stopped", "type=switchback", "limit=ten", "page=2", "offset=1"):
        refused = await tenant.ask("GET", f"{AT}?{query}")
        assert (refused.status, set(refused.body)) == (400, {"error", "details"}), query


async def test_a_page_has_25_unless_asked(tenant: Tenant) -> None:
    """And no more of the next page than there is."""
    asked = {"experimentSettingsId": await settings_id(tenant)}
    for number in range(26):
        await tenant.ok("POST", AT, {**asked, "name": f"Test {number}"}, status=201)
    page = await tenant.ok("GET", AT)
    assert (len(page["entities"]), page["pagination"]["hasMore"]) == (25, True)
    rest = await tenant.ok("GET", f"{AT}?cursor={page['pagination']['nextCursor']}")
    assert (len(rest["entities"]), rest["pagination"]) == (1, {"nextCursor": None, "hasMore": False})


async def test_a_life(tenant: Tenant) -> None:
    """start, pause, resume, stop with a winner: the envelope each time, dates, and what is final."""
    made = await whole(tenant)
    variants = {item["name"]: item["id"] for item in made["variants"]}
    started = await tenant.ok("POST", f"{AT}/{made['id']}/start", {})
    assert set(started) == {"publishStatus", "concurrentVersionChanges", "experiment"}
    assert (started["publishStatus"], started["concurrentVersionChanges"]) == ("published", 1)
    assert started["experiment"]["status"] == "running"
    began = started["experiment"]["startedAt"]
    tenant.clock.jump(60)
    paused = await tenant.ok("POST", f"{AT}/{made['id']}/pause", {"publishAfterPause": True})
    assert paused["experiment"]["status"] == "paused"
    resumed = await tenant.ok("POST", f"{AT}/{made['id']}/resume")
    assert resumed["experiment"]["startedAt"] > began
    stopped = await tenant.ok("POST", f"{AT}/{made['id']}/stop", {"winnerVariantId": variants["Bold"]})
    found = stopped["experiment"]
    assert (found["status"], found["winnerVariantId"]) == ("completed", variants["Bold"])
    assert found["stoppedAt"] is not None
    for verb in ("start", "pause", "resume", "stop"):
        again = await tenant.ask("POST", f"{AT}/{made['id']}/{verb}")
        assert (again.status, set(again.body)) == (409, {"error", "details"})
    edited = await tenant.ask("PATCH", f"{AT}/{made['id']}", {"name": "No"})
    assert (edited.status, "completed" in edited.body["error"]) == (409, True)


async def test_what_is_not_published_is_noted(tenant: Tenant) -> None:
    """With publishAfter… false nothing is live: the next verb that is published does what was noted first."""
    made = await whole(tenant)
    at = f"{AT}/{made['id']}"
    noted = await tenant.ok("POST", f"{at}/start", {"publishAfterStart": False})
    assert (noted["publishStatus"], noted["concurrentVersionChanges"]) == ("pending_publish", 1)
    assert (noted["experiment"]["status"], noted["experiment"]["startedAt"]) == ("draft", None)
    assert (await tenant.ask("POST", f"{at}/start", {"publishAfterStart": False})).status == 409
    assert (await tenant.ask("POST", f"{at}/resume", {"publishAfterResume": False})).status == 409
    assert (await tenant.ok("GET", f"/v1/experiments/{made['key']}/deployments?limit=1"))["entities"] == []
    started = await tenant.ok("POST", f"{at}/start", {"publishAfterStart": True})
    assert (started["publishStatus"], started["concurrentVersionChanges"]) == ("published", 1)
    assert started["experiment"]["status"] == "running"
    noted = await tenant.ok("POST", f"{at}/pause", {"publishAfterPause": False})
    assert (noted["publishStatus"], noted["experiment"]["status"]) == ("pending_publish", "running")
    resumed = await tenant.ok("POST", f"{at}/resume")
    assert (resumed["publishStatus"], resumed["concurrentVersionChanges"]) == ("published", 2)
    assert resumed["experiment"]["status"] == "running"
    await tenant.ok("POST", f"{at}/pause", {"publishAfterPause": False})
    stopped = await tenant.ok("POST", f"{at}/stop")
    assert (stopped["concurrentVersionChanges"], stopped["experiment"]["status"]) == (2, "completed")
    refused = await tenant.ask("POST", f"{at}/start", {"publishAfterStart": "no"})
    assert (refused.status, refused.body["details"][0]["field"]) == (400, "publishAfterStart")


async def test_what_was_noted_is_of_one_run_of_one_experiment(tenant: Tenant) -> None:
    """A copy has nothing noted, and what our own API did meanwhile is not done again."""
    made = await whole(tenant)
    await tenant.ok("POST", f"{AT}/{made['id']}/start", {"publishAfterStart": False})
    copy = await tenant.ok("POST", f"/v1/experiments/{made['key']}/duplicate", status=201)
    assert (await tenant.ask("POST", f"{AT}/{copy['id']}/pause")).status == 409
    await tenant.ok("POST", f"/v1/experiments/{made['key']}/start")
    paused = await tenant.ok("POST", f"{AT}/{made['id']}/pause")
    assert (paused["concurrentVersionChanges"], paused["experiment"]["status"]) == (1, "paused")


async def test_what_a_start_needs(tenant: Tenant) -> None:
    """A primary metric, then everything that our own API needs, each told by this door's own field."""
    made = await draft(tenant)
    refused = await tenant.ask("POST", f"{AT}/{made['id']}/start")
    assert (refused.status, refused.body["details"][0]["field"]) == (409, "metrics.primary")
    await tenant.ok("PATCH", f"{AT}/{made['id']}", {"metrics": {"primary": {"eventName": "x"}}})
    refused = await tenant.ask("POST", f"{AT}/{made['id']}/start")
    fields = {item["field"] for item in refused.body["details"]}
    assert (refused.status, fields) == (409, {"variants", "participants", "targetFile"})
    assert (await tenant.ok("GET", f"{AT}/{made['id']}"))["status"] == "draft"


async def test_an_audience_is_a_label(tenant: Tenant) -> None:
    """Whoever has the label `audience` takes part where nobody is named."""
    for name in PEOPLE:
        await tenant.ok("POST", "/v1/participants", {"id": name, "labels": {"audience": "a7"}}, status=201)
    rules = {"urlPatterns": ["/"], "audienceId": "a7"}
    asked = {"targetFile": "soul.md", "targetingRules": rules, "metrics": {"primary": {"eventName": "x"}}}
    made = await draft(tenant, **asked)
    assert made["targetingRules"]["audienceId"] == "a7"
    shown = await tenant.ok("GET", f"/v1/experiments/{made['key']}")
    assert shown["participants"] == {"ids": [], "labels": {"audience": "a7"}}
    more = await tenant.ok(
        "PATCH",
        f"{AT}/{made['id']}",
        {"targetingRules": {**rules, "labels": [{"key": "tier", "operator": "exists"}]}},
    )
    native = (await tenant.ok("GET", f"/v1/experiments/{made['key']}"))["targetingRules"]["labels"]
    assert {rule["key"] for rule in native} == {"audience", "tier"}
    assert [rule["key"] for rule in more["targetingRules"]["labels"]] == ["tier"]


async def test_an_audience_changes(tenant: Tenant) -> None:
    """In draft and under way: who is in stays, who carries the new audience's label may come in."""
    for name, label in (("p", "a"), ("q", "a"), ("r", "b")):
        await tenant.ok("POST", "/v1/participants", {"id": name, "labels": {"audience": label}}, status=201)
    made = await draft(tenant, targetFile="soul.md", metrics={"primary": {"eventName": "x"}},
                       targetingRules={"audienceId": "b"})  # fmt: skip
    at, native = f"{AT}/{made['id']}", f"/v1/experiments/{made['key']}"
    await tenant.ok("PATCH", f"{VARIANTS}/{made['variants'][0]['id']}", {"content": "plain"})
    asked = {"experimentId": made["id"], "name": "Bold", "weight": 50, "content": "bold"}
    await tenant.ok("POST", VARIANTS, asked, status=201)
    await tenant.ok("PATCH", at, {"targetingRules": {"audienceId": "a"}})
    assert (await tenant.ok("GET", native))["participants"]["labels"] == {"audience": "a"}
    await tenant.ok("POST", f"{at}/start")
    for verb in ("start", "pause"):
        if verb == "pause":
            await tenant.ok("POST", f"{at}/pause")
        rules = {"audienceId": "b", "labels": [{"key": "tier", "operator": "not_equals", "value": verb}]}
        changed = await tenant.ok("PATCH", at, {"targetingRules": rules})
        assert changed["targetingRules"]["audienceId"] == "b"
        assert await tenant.ok("PATCH", at, {"targetingRules": rules}) == changed  # an echo changes nothing
        found = await tenant.ok("GET", native)
        assert {rule["value"] for rule in found["targetingRules"]["labels"]} == {"b", verb}
        assert found["participants"]["labels"] == {"audience": "b"}
        taking_part = (await tenant.ok("GET", f"{native}/assignments"))["entities"]
        assert {item["participantId"] for item in taking_part} == {"p", "q"}
    wrong = {"targetingRules": {"labels": [{"key": "a", "operator": "like", "value": "b"}]}}
    refused = await tenant.ask("PATCH", at, wrong)
    assert (refused.status, refused.body["details"][0]["field"]) == (400, "targetingRules.labels.0.operator")


async def test_a_new_audience_comes_in(tenant: Tenant) -> None:
    """Who carries the label of an audience that was set under way takes part before long, besides who does already."""
    for name, label in (("p", "a"), ("q", "a"), ("r", "b")):
        await tenant.ok("POST", "/v1/participants", {"id": name, "labels": {"audience": label}}, status=201)
    made = await running(tenant, participantIds=None, targetingRules={"audienceId": "a"})
    await tenant.ok("PATCH", f"{AT}/{made['id']}", {"targetingRules": {"audienceId": "b"}})
    at = f"/v1/experiments/{made['key']}/assignments"

    async def there() -> bool:
        await tenant.clock.advance(60)
        return {item["participantId"] for item in (await tenant.ok("GET", at))["entities"]} == {"p", "q", "r"}

    await eventually(there, what="the new audience takes part")


async def test_what_can_be_edited_when(tenant: Tenant) -> None:
    """While it runs: name, metrics, what is kept, allocation as a new phase; the variant set is locked."""
    made = await running(tenant)
    at = f"{AT}/{made['id']}"
    asked = {
        "name": "Renamed",
        "trafficAllocation": 50,
        "targetingRules": {"urlPatterns": ["/b"]},
        "includeQueryString": False,
        "metrics": {"primary": {"eventName": "other"}},
    }
    changed = await tenant.ok("PATCH", at, asked)
    assert "variants" not in changed
    assert (changed["name"], changed["trafficAllocation"]) == ("Renamed", 50)
    assert changed["metrics"]["secondary"] == []
    phases = await tenant.ok("GET", f"/v1/experiments/{made['key']}/phases")
    assert [phase["trafficAllocation"] for phase in phases["entities"]] == [100, 50]
    assert (await tenant.ok("PATCH", at, {"trafficAllocation": 50, "key": made["key"]}))["name"] == "Renamed"
    variant = made["variants"][1]["id"]
    assert (await tenant.ok("PATCH", f"{VARIANTS}/{variant}", {"name": "Bolder"}))["name"] == "Bolder"
    for method, path, body in (
        ("POST", VARIANTS, {"experimentId": made["id"], "name": "C", "weight": 10}),
        ("PATCH", f"{VARIANTS}/{variant}", {"weight": 10}),
        ("DELETE", f"{VARIANTS}/{variant}", None),
    ):
        refused = await tenant.ask(method, path, body)
        assert (refused.status, set(refused.body)) == (409, {"error", "details"}), (method, path)
    for name in ("type", "status", "winnerVariantId", "experimentSettingsId", "wat"):
        refused = await tenant.ask("PATCH", at, {name: "personalization"})
        assert (refused.status, refused.body["details"][0]["field"]) == (400, name)


async def test_an_allocation_set_while_paused_goes_on_with_the_resume(tenant: Tenant) -> None:
    """It is told at once and lets nobody in: the resume opens the phase. An echo of it changes nothing."""
    made = await running(tenant, trafficAllocation=50)
    at, native = f"{AT}/{made['id']}", f"/v1/experiments/{made['key']}"

    async def seated() -> int:
        found = (await tenant.ok("GET", f"{native}/assignments?limit=10"))["entities"]
        return sum(item["variantId"] is not None for item in found)

    assert await seated() == 2
    await tenant.ok("POST", f"{at}/pause")
    changed = await tenant.ok("PATCH", at, {"trafficAllocation": 100, "name": "Everybody"})
    assert (changed["trafficAllocation"], changed["status"]) == (100, "paused")
    assert (await tenant.ok("PATCH", at, {"trafficAllocation": 100}))["updatedAt"] == changed["updatedAt"]
    assert ((await tenant.ok("GET", native))["trafficAllocation"], await seated()) == (50, 2)
    resumed = (await tenant.ok("POST", f"{at}/resume"))["experiment"]
    assert (resumed["trafficAllocation"], resumed["status"], await seated()) == (100, "running", 4)
    phases = (await tenant.ok("GET", f"{native}/phases"))["entities"]
    assert [phase["trafficAllocation"] for phase in phases] == [50, 100]
    await tenant.ok("POST", f"{at}/pause")
    await tenant.ok("POST", f"{at}/resume")
    assert len((await tenant.ok("GET", f"{native}/phases"))["entities"]) == 2
    assert (await tenant.ok("PATCH", at, {"trafficAllocation": 0}))["trafficAllocation"] == 0
    assert (await tenant.ok("PATCH", at, {"trafficAllocation": None}))["trafficAllocation"] == 100
    await tenant.ok("POST", f"{native}/stop")
    assert (await tenant.ask("PATCH", at, {"trafficAllocation": 60})).status == 409


async def test_delete_answers_true(tenant: Tenant) -> None:
    """A draft is gone, one that has run archived, one that runs completed before: none is there for this door."""
    made = await draft(tenant)
    assert await tenant.ok("DELETE", f"{AT}/{made['id']}") is True
    assert (await tenant.ask("GET", f"/v1/experiments/{made['key']}")).status == 404
    ended = await running(tenant)
    await tenant.ok("POST", f"{AT}/{ended['id']}/stop")
    assert await tenant.ok("DELETE", f"{AT}/{ended['id']}") is True
    assert (await tenant.ok("GET", f"/v1/experiments/{ended['key']}"))["archived"] is True
    assert (await tenant.ask("GET", f"{AT}/{ended['id']}")).status == 404
    under_way = await running(tenant, name="Under way", targetFile="other.md")
    assert await tenant.ok("DELETE", f"{AT}/{under_way['id']}") is True
    native = await tenant.ok("GET", f"/v1/experiments/{under_way['key']}")
    assert (native["status"], native["archived"]) == ("completed", True)
    outcome = await tenant.ok("GET", f"/v1/experiments/{under_way['key']}/deployments?limit=100")
    assert "restore" not in {item["action"] for item in outcome["entities"]}
    assert (await tenant.ask("GET", f"{AT}/{under_way['id']}")).status == 404
    assert (await tenant.ok("GET", AT))["entities"] == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"trafficAllocation": 101}, "trafficAllocation"),
        ({"trafficAllocation": -1}, "trafficAllocation"),
        ({"controlWeight": 0}, "controlWeight"),
        ({"controlWeight": 101}, "controlWeight"),
        ({"type": "switchback"}, "type"),
        ({"targetingRules": {"urlPatterns": ["/"] * 201}}, "targetingRules.urlPatterns"),
        ({"targetingRules": {"urlPatterns": ["x" * 2_001]}}, "targetingRules.urlPatterns.0"),
        ({"targetingRules": {"queryParams": [{"key": "a", "operator": "like"}]}},
         "targetingRules.queryParams.0.operator"),
        ({"name": None}, "name"),
        ({"experimentSettingsId": None}, "experimentSettingsId"),
    ],
)  # fmt: skip
async def test_limits_of_fields(tenant: Tenant, fields: dict[str, Any], field: str) -> None:
    """Beyond them is 400 with the field, and nothing is created."""
    asked = {"experimentSettingsId": await settings_id(tenant), "name": "x", **fields}
    refused = await tenant.ask("POST", AT, asked)
    assert (refused.status, refused.body["details"][0]["field"]) == (400, field), refused.body
    assert (await tenant.ok("GET", AT))["entities"] == []


async def test_what_is_within_the_limits(tenant: Tenant) -> None:
    """An allocation of 0, 200 patterns of 2,000 characters, and each operator of a query's conditions."""
    operators = ("contains", "equals", "exists", "not_equals", "not_exists", "regex")
    rules = {
        "urlPatterns": ["x" * 2_000] * 200,
        "queryParams": [{"key": "a", "operator": name, "value": "b"} for name in operators],
    }
    made = await draft(tenant, trafficAllocation=0, targetingRules=rules)
    assert made["trafficAllocation"] == 0
    assert {**made["targetingRules"], **rules} == made["targetingRules"]


# -- variants


async def test_the_control_has_what_the_others_leave(tenant: Tenant) -> None:
    """As variants come, change and go, the control is 100 less their sum, never below 1."""
    made = await draft(tenant)
    control = made["variants"][0]["id"]

    async def weight() -> int:
        return int((await tenant.ok("GET", f"{VARIANTS}/{control}"))["weight"])

    asked = {"experimentId": made["id"], "name": "B", "weight": 30}
    added = await tenant.ok("POST", VARIANTS, asked, status=201)
    assert (added["id"][:4], added["isControl"], added["weight"], await weight()) == ("var_", False, 30, 70)
    await tenant.ok("POST", VARIANTS, {**asked, "name": "C"}, status=201)
    assert await weight() == 40
    await tenant.ok("PATCH", f"{VARIANTS}/{added['id']}", {"weight": 60})
    assert await weight() == 10
    for body in ({"weight": 70}, {"weight": 71}):
        refused = await tenant.ask("PATCH", f"{VARIANTS}/{added['id']}", body)
        assert (refused.status, refused.body["details"][0]["field"]) == (400, "weight")
    assert (await tenant.ask("PATCH", f"{VARIANTS}/{control}", {"weight": 50})).status == 400
    assert (await tenant.ask("DELETE", f"{VARIANTS}/{control}")).status == 409
    gone = await tenant.ok("DELETE", f"{VARIANTS}/{added['id']}")
    assert (gone["id"], gone["weight"], await weight()) == (added["id"], 60, 70)
    query = f"experimentId={made['id']}"
    (other,) = (
        item["id"]
        for item in (await tenant.ok("GET", f"{VARIANTS}?{query}"))["entities"]
        if not item["isControl"]
    )
    await tenant.ok("DELETE", f"{VARIANTS}/{other}")
    assert await weight() == 100
    assert (await tenant.ask("GET", f"{VARIANTS}/{added['id']}")).status == 404


async def test_there_is_one_control(tenant: Tenant) -> None:
    """The one made with the experiment; what is wrong with a variant is told by this door's own fields."""
    made = await draft(tenant)
    control = f"{VARIANTS}/{made['variants'][0]['id']}"
    asked = {"experimentId": made["id"], "name": "B", "weight": 30}
    added = await tenant.ok("POST", VARIANTS, {**asked, "isControl": False}, status=201)
    for method, path, body, field in (
        ("POST", VARIANTS, {**asked, "isControl": True}, "isControl"),
        ("PATCH", f"{VARIANTS}/{added['id']}", {"isControl": True}, "isControl"),
        ("PATCH", control, {"isControl": False}, "isControl"),
        ("PATCH", control, {"content": "no file yet"}, "content"),
        ("POST", VARIANTS, {**asked, "content": "no file yet"}, "content"),
        ("POST", VARIANTS, {**asked, "weight": 33.3}, "weight"),
    ):
        refused = await tenant.ask(method, path, body)
        assert (refused.status, refused.body["details"][0]["field"]) == (400, field), refused.body
    assert (await tenant.ok("GET", control))["weight"] == 70


async def test_the_list_of_variants(tenant: Tenant) -> None:
    """Needs the experiment's id; clamps its limit to 1 … 200 and pages."""
    made = await whole(tenant)
    missing = await tenant.ask("GET", VARIANTS)
    assert (missing.status, missing.body["details"][0]["field"]) == (400, "experimentId")
    every = await tenant.ok("GET", f"{VARIANTS}?experimentId={made['id']}&limit=900")
    assert every["entities"] == made["variants"]
    assert every["pagination"] == {"nextCursor": None, "hasMore": False}
    first = await tenant.ok("GET", f"{VARIANTS}?experimentId={made['id']}&limit=0")
    assert (len(first["entities"]), first["pagination"]["hasMore"]) == (1, True)
    query = f"experimentId={made['id']}&limit=1&cursor={first['pagination']['nextCursor']}"
    assert (await tenant.ok("GET", f"{VARIANTS}?{query}"))["entities"] == made["variants"][1:]


async def test_files_stand_behind_variants(tenant: Tenant) -> None:
    """`content` writes the target file, `files` any; without either the experiment is kept and cannot start."""
    made = await draft(tenant, participantIds=PEOPLE, metrics={"primary": {"eventName": "x"}})
    files = [{"path": "a.md", "content": "A"}]
    control = made["variants"][0]["id"]
    answered = await tenant.ok("PATCH", f"{VARIANTS}/{control}", {"files": files})
    again = await tenant.ok("PATCH", f"{VARIANTS}/{control}", {"files": answered["files"]})
    assert again["files"] == answered["files"]
    asked = {"experimentId": made["id"], "name": "B", "weight": 50}
    other = await tenant.ok("POST", VARIANTS, asked, status=201)
    refused = await tenant.ask("POST", f"{AT}/{made['id']}/start")
    assert refused.status == 409
    assert "has no content for a.md" in refused.body["error"]
    await tenant.ok("PATCH", f"{VARIANTS}/{other['id']}", {"files": [{"path": "a.md", "content": "B"}]})
    await tenant.ok("POST", f"{AT}/{made['id']}/start")
    blind = await tenant.limited("experiment:read")
    seen = await tenant.ask("GET", f"{VARIANTS}/{control}", key=blind)
    assert (seen.body["files"][0]["content"], seen.body["files"][0]["digest"][:7]) == (None, "sha256:")


async def test_every_type_has_its_control(tenant: Tenant) -> None:
    """Made with the experiment, and what the others leave; of factors, the first combination."""
    for kind in ("ab", "multivariate", "personalization"):
        made = await draft(tenant, name=kind, type=kind, controlWeight=90)
        (control,) = made["variants"]
        assert (made["type"], control["isControl"], control["weight"]) == (kind, True, 90)
        asked = {"experimentId": made["id"], "name": "B", "weight": 30}
        await tenant.ok("POST", VARIANTS, asked, status=201)
        assert (await tenant.ok("GET", f"{VARIANTS}/{control['id']}"))["weight"] == 70
    levels = [{"key": "a", "content": "A"}, {"key": "b", "content": "B"}]
    factors = [{"key": "tone", "targetFile": "tone.md", "levels": levels}]
    full = await draft(tenant, name="F", type="multivariate", factors=factors)
    assert [item["isControl"] for item in full["variants"]] == [True, False]
    for kind, names in (("ab", {"ab"}), ("multivariate", {"multivariate", "F"}),
                        ("personalization", {"personalization"})):  # fmt: skip
        listed = (await tenant.ok("GET", f"{AT}?type={kind}"))["entities"]
        assert ({item["name"] for item in listed}, {item["type"] for item in listed}) == (names, {kind})


async def test_a_multivariate_one_without_factors_runs(tenant: Tenant) -> None:
    """Its variants are as they are sent, one by one: in our own API it is ab."""
    made = await running(tenant, type="multivariate")
    assert (made["type"], made["status"]) == ("multivariate", "running")
    native = await tenant.ok("GET", f"/v1/experiments/{made['key']}")
    assert (native["type"], native["assignmentCounts"].keys()) == (
        "ab",
        {v["id"] for v in native["variants"]},
    )
    copy = await tenant.ok("POST", f"/v1/experiments/{made['key']}/duplicate", status=201)
    assert (await tenant.ok("GET", f"{AT}/{copy['id']}"))["type"] == "multivariate"


async def test_a_personalization_runs(tenant: Tenant) -> None:
    """Rules choose, and whom none of them fits has the control, whenever it was made."""
    for name, plan in (("p", "pro"), ("q", "free")):
        await tenant.ok("POST", "/v1/participants", {"id": name, "labels": {"plan": plan}}, status=201)
    made = await draft(tenant, type="personalization", targetFile="soul.md", participantIds=["p", "q"])
    control = made["variants"][0]["id"]
    await tenant.ok("PATCH", f"{VARIANTS}/{control}", {"content": "plain"})
    rules = {"labels": [{"key": "plan", "operator": "equals", "value": "pro"}]}
    asked = {"experimentId": made["id"], "name": "Pro", "targetingRules": rules, "content": "pro"}
    added = await tenant.ok("POST", VARIANTS, asked, status=201)
    assert added["targetingRules"] == rules
    await tenant.ok("POST", f"{AT}/{made['id']}/start")
    found = await tenant.ok("GET", f"/v1/experiments/{made['key']}/assignments?limit=10")
    named = {item["participantId"]: "var_" + item["variantId"].replace("-", "") for item in found["entities"]}
    assert named == {"p": added["id"], "q": control}


# -- results


async def test_results(tenant: Tenant) -> None:
    """Impressions, conversions, rates to four decimals, and the probability to be best of all variants."""
    made = await running(tenant)
    holders = await report(tenant, made["key"], 7, {"signup": 1, "other": 2})
    assert set(holders) == set(PEOPLE)
    found = await tenant.ok("GET", f"{AT}/{made['id']}/results")
    assert set(found) == {"variants"}
    for arm in found["variants"]:
        assert set(arm) == {
            "id", "name", "isControl", "impressions", "conversions", "conversionRate", "probabilityToBeBest",
        }  # fmt: skip
        assert (arm["impressions"], arm["conversions"], arm["conversionRate"]) == (14, 2, 0.1429)
    assert [arm["isControl"] for arm in found["variants"]] == [True, False]
    assert sum(arm["probabilityToBeBest"] for arm in found["variants"]) == pytest.approx(1)
    other = await tenant.ok("GET", f"{AT}/{made['id']}/results?eventName=other")
    assert [arm["conversionRate"] for arm in other["variants"]] == [0.2857, 0.2857]
    assert (await tenant.ask("GET", f"{AT}/{made['id']}/results?event=other")).status == 400


async def test_a_rate_has_four_decimals() -> None:
    """213 of 1842 is 0.1156."""
    assert ours._rate(213 / 1842) == 0.1156
    assert ours._rate(None) == 0.0


async def test_days(tenant: Tenant) -> None:
    """The oldest first, days without impressions left out, the window clamped, at most 366 days."""
    made = await running(tenant)
    at = f"{AT}/{made['id']}/results-time-series"
    assert await tenant.ok("GET", at) == {"days": []}
    await report(tenant, made["key"], 3, {"signup": 1})
    first = made["startedAt"][:10]
    tenant.clock.jump(2 * DAY)
    await report(tenant, made["key"], 1, {})
    found = (await tenant.ok("GET", at))["days"]
    assert len(found) == 2
    assert found[0]["date"] == first
    assert [set(arm) for arm in found[0]["variants"]] == [
        {"id", "impressions", "conversions", "conversionRate"}
    ] * 2
    assert [arm["conversionRate"] for arm in found[0]["variants"]] == [0.3333, 0.3333]
    clamped = await tenant.ok("GET", f"{at}?startDate=2020-01-01&endDate=2020-12-31")
    assert clamped == {"days": []}
    assert (await tenant.ok("GET", f"{at}?endDate={first}"))["days"] == found[:1]
    assert (await tenant.ok("GET", f"{at}?startDate=2027-01-01&endDate=2028-01-01"))["days"] == found
    for query in ("startDate=2027-01-01&endDate=2028-01-02", "startDate=yesterday", "fillGaps=true"):
        refused = await tenant.ask("GET", f"{at}?{query}")
        assert (refused.status, set(refused.body)) == (400, {"error", "details"}), query


# -- the settings record


async def test_the_settings_record(tenant: Tenant) -> None:
    """There is one; it is created once, changed, and gone again only without experiments."""
    (found,) = (await tenant.ok("GET", SETTINGS))["entities"]
    assert (found["name"], found["cookieName"], found["accountId"]) == (
        "Experiment Settings", "_cord_exp", tenant.project,
    )  # fmt: skip
    at = f"{SETTINGS}/{found['id']}"
    made = await tenant.ok("POST", SETTINGS, {"name": "Main", "whitelistDomains": ["a.example"]}, status=201)
    assert (made["id"], made["name"], made["whitelistDomains"]) == (found["id"], "Main", ["a.example"])
    assert made["createdAt"] is not None
    assert (await tenant.ask("POST", SETTINGS, {})).status == 409
    changed = await tenant.ok("PATCH", at, {"targetAllowList": ["config/*.md"]})
    assert (changed["name"], changed["targetAllowList"]) == ("Main", ["config/*.md"])
    assert (await tenant.ok("GET", "/v1/settings"))["targetAllowList"] == ["config/*.md"]
    refused = await tenant.ask("POST", AT, {"experimentSettingsId": "settings_1", "name": "x"})
    assert (refused.status, refused.body["details"][0]["field"]) == (400, "experimentSettingsId")
    made = await draft(tenant)
    assert (await tenant.ask("DELETE", at)).status == 409
    await tenant.ok("DELETE", f"{AT}/{made['id']}")
    assert (await tenant.ok("DELETE", at))["name"] == "Main"
    assert (await tenant.ok("GET", at))["name"] == "Experiment Settings"
    assert (await tenant.ask("GET", f"{SETTINGS}/settings_{'0' * 32}")).status == 404


# -- who may, and how failures are told


@pytest.mark.parametrize(
    ("method", "path", "body", "key", "status"),
    [
        ("POST", AT, b"{", None, 400),
        ("POST", AT, {}, None, 400),
        ("GET", AT, None, "", 401),
        ("GET", AT, None, "sk_wrong", 401),
        ("GET", f"{AT}/exp_{'0' * 32}", None, None, 404),
        ("GET", f"{AT}/", None, None, 200),
        ("GET", "/rest/v1/nothing", None, None, 404),
        ("PUT", AT, None, None, 405),
        ("DELETE", f"{AT}/x/start", None, None, 405),
    ],
)
async def test_failures_have_this_doors_shape(
    tenant: Tenant, method: str, path: str, body: Any, key: str | None, status: int
) -> None:
    """`{error, details}`, whatever fails and wherever; a slash at the end is none of it."""
    headers = {"Content_Type": "application/json"} if isinstance(body, bytes) else {}
    answer = await tenant.ask(method, path, body, key=key, **headers)
    assert answer.status == status
    assert answer.headers["Content-Type"].startswith("application/json")
    if status >= 400:
        assert set(answer.body) == {"error", "details"}
        assert answer.body["error"]
        assert isinstance(answer.body["details"], list)


async def test_scopes_and_the_audit_log(tenant: Tenant) -> None:
    """Reading needs experiment:read, writing experiment:write; the log says which door, and holds no content."""
    made = await whole(tenant)
    reader = await tenant.limited("experiment:read")
    assert (await tenant.ask("GET", AT, key=reader)).status == 200
    refused = await tenant.ask("PATCH", f"{AT}/{made['id']}", {"name": "x"}, key=reader)
    assert (refused.status, set(refused.body)) == (403, {"error", "details"})
    await tenant.ok("PATCH", f"{VARIANTS}/{made['variants'][0]['id']}", {"content": "a secret prompt"})
    entry = await tenant.entry()
    assert entry["operation"] == "OursPrivacy.UpdateVariant"
    shown = await tenant.ok("GET", f"/v1/experiments/{made['key']}")
    assert entry["resourceId"] == shown["id"]
    assert entry["before"]["key"] == entry["after"]["key"] == made["key"]
    assert "a secret prompt" not in str(entry)


async def test_the_same_request_twice(tenant: Tenant) -> None:
    """With one idempotency key it is done once."""
    body = {"experimentSettingsId": await settings_id(tenant), "name": "Once"}
    first = await tenant.ok("POST", AT, body, status=201, Idempotency_Key="k")
    assert await tenant.ok("POST", AT, body, status=201, Idempotency_Key="k") == first
    assert len((await tenant.ok("GET", AT))["entities"]) == 1
    other = await tenant.ask("POST", AT, {**body, "name": "Other"}, Idempotency_Key="k")
    assert other.status == 409
