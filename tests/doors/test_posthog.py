"""The door for clients of PostHog's experiments: every call and rule of its reference, over HTTP."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from control_plane.api.doors import posthog, posthog_fields, posthog_reading
from control_plane.api.doors.mapping import How
from shared.moment import SECOND
from tests.support.tenant import Tenant
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

BASE = "/api/projects/17"
AT = f"{BASE}/experiments"
PEOPLE = ["p", "q", "r", "s"]
MEAN = {
    "kind": "ExperimentMetric",
    "uuid": "0a6d0ff0-1111-4222-8333-444455556666",
    "metric_type": "mean",
    "name": "Resolved",
    "goal": "increase",
    "source": {"kind": "EventsNode", "event": "resolved"},
}
FUNNEL = {
    "kind": "ExperimentMetric",
    "uuid": "1b6d0ff0-1111-4222-8333-444455556666",
    "metric_type": "funnel",
    "series": [{"kind": "EventsNode", "event": "opened"}, {"kind": "EventsNode", "event": "closed"}],
    "conversion_window": 3,
    "conversion_window_unit": "hour",
}
RATIO = {
    "uuid": "2c6d0ff0-1111-4222-8333-444455556666",
    "metric_type": "ratio",
    "goal": "decrease",
    "numerator": {"event": "refunded"},
    "denominator": {"event": "sold"},
}


def with_files(**fields: Any) -> dict[str, Any]:
    """What makes an experiment that can be launched."""
    variants = [
        {"key": key, "split_percent": 50, "payload": {"targetFile": "soul.md", "content": f"I am {key}."}}
        for key in ("control", "test")
    ]
    return {
        "name": "Tone",
        "feature_flag_key": "tone",
        "parameters": {"feature_flag_variants": variants},
        "metrics": [MEAN],
        "participant_ids": PEOPLE,
        **fields,
    }


def pair(key: str, percent: int) -> list[dict[str, Any]]:
    """Two variants, one of them so."""
    return [{"key": "a", "split_percent": 50}, {"key": key, "split_percent": percent}]


async def made(tenant: Tenant, **fields: Any) -> Any:
    """A draft without files."""
    asked = {"name": "Checkout", "feature_flag_key": "checkout", **fields}
    return await tenant.ok("POST", f"{AT}/", asked, status=201)


async def draft(tenant: Tenant, **fields: Any) -> Any:
    """A draft that can be launched."""
    return await tenant.ok("POST", f"{AT}/", with_files(**fields), status=201)


async def running(tenant: Tenant, **fields: Any) -> Any:
    """A launched one."""
    found = await draft(tenant, **fields)
    return await tenant.ok("POST", f"{AT}/{found['id']}/launch/")


def moment(tenant: Tenant, **ahead: float) -> str:
    """A moment from now, as clients write it."""
    now = datetime.fromtimestamp(tenant.clock.now() / SECOND, UTC)
    return (now + timedelta(**ahead)).isoformat().replace("+00:00", "Z")


async def refused(tenant: Tenant, method: str, path: str, body: Any = None, status: int = 400) -> Any:
    """The body of a refusal, which has this door's shape."""
    answer = await tenant.ask(method, path, body)
    assert answer.status == status, answer.body
    assert set(answer.body) - {"extra"} == {"type", "code", "detail", "attr"}
    return answer.body


# -- fields


async def test_a_draft_and_every_field(tenant: Tenant) -> None:
    """Integer ids, a flag that is the key, the usual two variants, the status of a draft."""
    found = await made(tenant, description=None, holdout_id=None, start_date=None, saved_metrics_ids=[])
    shown = {f.name for f in posthog.EXPERIMENT.fields if not f.unshown and f.how is not How.REFUSED}
    assert set(found) == shown
    assert isinstance(found["id"], int)
    assert (found["status"], found["start_date"], found["end_date"]) == ("draft", None, None)
    assert (found["archived"], found["deleted"], found["type"]) == (False, False, "product")
    variants = found["parameters"]["feature_flag_variants"]
    assert [(item["key"], item["split_percent"], item["rollout_percentage"]) for item in variants] == [
        ("control", 50, 50),
        ("test", 50, 50),
    ]
    flag = found["feature_flag"]
    assert (flag["key"], flag["active"], flag["id"]) == ("checkout", False, found["id"])
    for name in (found["id"], "checkout"):
        assert await tenant.ok("GET", f"{AT}/{name}/") == found
    assert await tenant.ok("GET", f"/api/environments/@current/experiments/{found['id']}") == found
    native = await tenant.ok("GET", f"/v1/experiments/{found['id']}")
    assert [(v["key"], v["isControl"]) for v in native["variants"]] == [("control", True), ("test", False)]


async def test_what_means_nothing_for_files_is_kept_and_echoed(tenant: Tenant) -> None:
    """Every field of the table that is kept comes back as it was sent; what has no place is refused with its reason."""
    found = await made(tenant)
    at = f"{AT}/{found['id']}/"
    for name, field in posthog.EXPERIMENT.listed():
        if field.how is How.KEPT and "." not in name and not field.unshown:
            assert found[name] == field.default
            await tenant.ok("PATCH", at, {name: field.example})
            assert (await tenant.ok("GET", at))[name] == field.example
    kept = {f.name: f.example for f in posthog_fields.PARAMETERS.fields if f.how is How.KEPT}
    await tenant.ok("PATCH", at, {"parameters": {**kept, "rollout_percentage": 80}, "_create_in_folder": "x"})
    parameters = (await tenant.ok("GET", at))["parameters"]
    assert {**parameters, **kept, "rollout_percentage": 80} == parameters
    replaced = (await tenant.ok("PATCH", at, {"parameters": {"minimum_detectable_effect": 5}}))["parameters"]
    assert (replaced["minimum_detectable_effect"], replaced["recommended_sample_size"]) == (5, None)
    assert (replaced["rollout_percentage"], len(replaced["feature_flag_variants"])) == (100, 2)
    for field in posthog_fields.PARAMETERS.fields:
        if field.how is How.REFUSED:
            body = await refused(tenant, "PATCH", at, {"parameters": {field.name: field.example}})
            assert (body["attr"], body["detail"]) == (
                f"parameters.{field.name}", f"parameters.{field.name}: {field.says}",
            )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "attr"),
    [
        ({"wat": 1}, "wat"),
        ({"name": ""}, "name"),
        ({"name": "x" * 401}, "name"),
        ({"description": "x" * 3001}, "description"),
        ({"id": 7}, "id"),
        ({"conclusion": "won"}, "conclusion"),
        ({"type": "mobile"}, "type"),
        ({"holdout_id": 99}, "holdout_id"),
        ({"start_date": "soon"}, "start_date"),
        ({"parameters": []}, "parameters"),
        ({"parameters": {"feature_flag_variants": [{"key": "control", "split_percent": 100}]}},
         "parameters.feature_flag_variants"),
        ({"parameters": {"feature_flag_variants": [{"key": f"v{n}", "split_percent": 5} for n in range(21)]}},
         "parameters.feature_flag_variants"),
        ({"parameters": {"feature_flag_variants": pair("b", 49)}},
         "parameters.feature_flag_variants"),
        ({"parameters": {"feature_flag_variants": pair("A", 50)}},
         "parameters.feature_flag_variants"),
        ({"parameters": {"feature_flag_variants": [{"key": "a", "wat": 50}, {"key": "b"}]}},
         "parameters.feature_flag_variants.0.wat"),
        ({"parameters": {"feature_flag_variants": [{"key": "a", "split_percent": 50, "payload": {"content": "no file"}},
                                                   {"key": "b", "split_percent": 50}]}},
         "parameters.feature_flag_variants.0.payload.content"),
        ({"metrics": [{"metric_type": "retention"}]}, "metrics.0.metric_type"),
        ({"metrics": [{"kind": "ExperimentTrendsQuery"}]}, "metrics.0.kind"),
        ({"metrics": [{**MEAN, "source": {"kind": "ActionsNode", "id": 1}}]}, "metrics.0.source.kind"),
        ({"metrics": [{**MEAN, "source": {"kind": "ExperimentDataWarehouseNode"}}]}, "metrics.0.source.kind"),
        ({"metrics": [{**MEAN, "source": {"event": None}}]}, "metrics.0.source.event"),
        ({"metrics": [{**MEAN, "source": {"event": "x", "math": "median"}}]}, "metrics.0.source.math"),
        ({"metrics": [{**MEAN, "source": {"event": "x", "math": "dau"}}]}, "metrics.0.source.math"),
        ({"metrics": [{**MEAN, "source": "x"}]}, "metrics.0.source"),
        ({"metrics": [{**MEAN, "source": {"math": "sum"}}]}, "metrics.0.source.event"),
        ({"metrics": [{"metric_type": "mean"}]}, "metrics.0.source"),
        ({"metrics": [{"name": "x"}]}, "metrics.0.metric_type"),
        ({"metrics": [{**MEAN, "goal": "up"}]}, "metrics.0.goal"),
        ({"metrics": [{**MEAN, "upper_bound_percentile": 0.9}]}, "metrics.0.upper_bound_percentile"),
        ({"metrics": [{**MEAN, "breakdownFilter": {"breakdowns": []}}]}, "metrics.0.breakdownFilter"),
        ({"metrics": [{**MEAN, "wat": 1}]}, "metrics.0.wat"),
        ({"metrics": [{**FUNNEL, "series": []}]}, "metrics.0.series"),
        ({"metrics": [{**FUNNEL, "series": [{"event": "x"}, {"event": ""}]}]}, "metrics.0.series.1.event"),
        ({"metrics": [{**RATIO, "denominator": None}]}, "metrics.0.denominator"),
        ({"metrics": [{**MEAN, "source": {"event": "x", "properties": [{"key": "a"}]}}]},
         "metrics.0.source.properties"),
        ({"metrics": [MEAN], "primary_metrics_ordered_uuids": []}, "primary_metrics_ordered_uuids"),
        ({"saved_metrics_ids": [{"id": 4}]}, "saved_metrics_ids.0"),
        ({"stats_config": {"method": "guess"}}, "stats_config.method"),
        ({"stats_config": {"baseline_variant_key": "nobody"}}, "stats_config.baseline_variant_key"),
        ({"exposure_criteria": {"exposure_config": {"event": "$pageview"}}}, "exposure_criteria.exposure_config"),
        ({"target_file": "/etc/passwd"}, "target_file"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_told_by_field(tenant: Tenant, fields: dict[str, Any], attr: str) -> None:
    """400 with `attr`, and nothing is created."""
    body = await refused(tenant, "POST", f"{AT}/", {"name": "X", "feature_flag_key": "x", **fields})
    assert (body["type"], body["attr"]) == ("validation_error", attr), body
    assert (await tenant.ok("GET", AT))["count"] == 0


async def test_what_was_answered_may_be_sent_back(tenant: Tenant) -> None:
    """Whole, as it was read, draft or launched: nothing changes. Another status, key or id is refused."""
    found = await draft(tenant)
    at = f"{AT}/{found['id']}"
    for verb in ("", "launch", "end"):
        shown = await tenant.ok("POST", f"{at}/{verb}") if verb else await tenant.ok("GET", at)
        again = await tenant.ok("PATCH", at, shown)
        assert again == {**shown, "updated_at": again["updated_at"]}, verb
        for name, value in (("status", "paused"), ("feature_flag_key", "other"), ("id", 99)):
            assert (await refused(tenant, "PATCH", at, {name: value}))["attr"] == name
    bare = dict.fromkeys(f.name for f in posthog.EXPERIMENT.fields if f.how is not How.SHOWN)
    bare |= {"name": "Bare", "feature_flag_key": "bare", "update_feature_flag_params": False}
    assert (await tenant.ok("POST", AT, bare, status=201))["type"] == "product"


async def test_keys_of_all_kinds(tenant: Tenant) -> None:
    """Capitals and underscores are kept for this door; our own key has none; a key that is taken is refused."""
    variants = [{"key": "control", "split_percent": 50}, {"key": "New_Look", "split_percent": 50}]
    found = await made(
        tenant, feature_flag_key="My_Flag", parameters={"feature_flag_variants": variants},
        stats_config={"baseline_variant_key": "New_Look"},
    )  # fmt: skip
    assert (found["feature_flag_key"], found["feature_flag"]["key"]) == ("My_Flag", "My_Flag")
    assert [v["key"] for v in found["parameters"]["feature_flag_variants"]] == ["control", "New_Look"]
    native = await tenant.ok("GET", "/v1/experiments/my-flag")
    assert [(v["key"], v["isControl"]) for v in native["variants"]] == [
        ("control", False),
        ("new-look", True),
    ]
    body = await refused(tenant, "POST", AT, {"name": "B", "feature_flag_key": "my_flag"})
    assert (body["type"], body["code"]) == ("validation_error", "unique")


async def test_metrics_of_every_type(tenant: Tenant) -> None:
    """The first is our primary, each keeps its uuid, its order, and becomes what our own API calls it."""
    found = await made(tenant, metrics=[MEAN, FUNNEL], metrics_secondary=[RATIO])
    assert (found["metrics"], found["metrics_secondary"]) == ([MEAN, FUNNEL], [RATIO])
    assert found["primary_metrics_ordered_uuids"] == [MEAN["uuid"], FUNNEL["uuid"]]
    native = (await tenant.ok("GET", f"/v1/experiments/{found['id']}"))["metrics"]
    assert (native["primary"]["eventName"], native["primary"]["kind"]) == ("resolved", "count")
    funnel, ratio = native["secondary"]
    assert (funnel["eventName"], funnel["kind"], funnel["of"], funnel["window"]) == (
        "closed", "proportion", "subjects", "PT3H",
    )  # fmt: skip
    assert (ratio["denominatorEventName"], ratio["goal"]) == ("sold", "decrease")
    at = f"{AT}/{found['id']}"
    turned = await tenant.ok("PATCH", at, {"primary_metrics_ordered_uuids": [FUNNEL["uuid"], MEAN["uuid"]]})
    assert turned["primary_metrics_ordered_uuids"] == [FUNNEL["uuid"], MEAN["uuid"]]
    fewer = await tenant.ok("PATCH", at, {"metrics": [{**MEAN, "source": {"event": "sold", "math": "sum"}}]})
    assert fewer["primary_metrics_ordered_uuids"] == [MEAN["uuid"]]
    native = (await tenant.ok("GET", f"/v1/experiments/{found['id']}"))["metrics"]
    assert (native["primary"]["kind"], len(native["secondary"])) == ("mean", 1)
    changed = {"metrics": {"primary": {"eventName": "elsewhere"}}}
    await tenant.ok("PATCH", f"/v1/experiments/{found['id']}", changed)
    await tenant.ok("PATCH", at, {"metrics_secondary": [RATIO]})
    native = (await tenant.ok("GET", f"/v1/experiments/{found['id']}"))["metrics"]
    assert (native["primary"]["eventName"], native["secondary"][0]["eventName"]) == ("elsewhere", "refunded")
    (metric,) = (await tenant.ok("GET", at))["metrics"]
    assert (metric["metric_type"], metric["series"][0]["event"]) == ("funnel", "elsewhere")


async def test_statistics_exposure_holdouts_and_exclusion(tenant: Tenant) -> None:
    """ci_level and alpha are our level, several variants, a holdout by number, variants left out."""
    held = await tenant.ok(
        "POST", f"{BASE}/experiment_holdouts/",
        {"name": "Never", "filters": [{"properties": [], "rollout_percentage": 10}]}, status=201,
    )  # fmt: skip
    variants = [{"key": k, "split_percent": w} for k, w in (("control", 40), ("a", 30), ("b", 30))]
    found = await made(
        tenant,
        stats_config={"method": "bayesian", "bayesian": {"ci_level": 0.9}},
        exposure_criteria={"filterTestAccounts": False, "multiple_variant_handling": "first_seen"},
        holdout_id=held["id"],
        parameters={"feature_flag_variants": variants, "excluded_variants": ["b"]},
    )
    assert found["stats_config"] == {"method": "bayesian", "bayesian": {"ci_level": 0.9}}
    assert found["exposure_criteria"] == {
        "filterTestAccounts": False,
        "multiple_variant_handling": "first_seen",
    }
    assert (found["holdout_id"], found["holdout"]["name"]) == (held["id"], "Never")
    assert found["parameters"]["excluded_variants"] == ["b"]
    native = await tenant.ok("GET", f"/v1/experiments/{found['id']}")
    assert native["analysis"]["alpha"] == 0.1
    assert native["exposureCriteria"]["multipleVariants"] == "first_seen"
    assert len(native["analysis"]["excludedVariantIds"]) == 1
    at = f"{AT}/{found['id']}"
    changed = await tenant.ok(
        "PATCH", at, {"stats_config": {"method": "frequentist", "frequentist": {"alpha": 0.01}}}
    )
    assert changed["stats_config"]["frequentist"] == {"alpha": 0.01}
    native = await tenant.ok("GET", f"/v1/experiments/{found['id']}")
    assert (native["analysis"]["alpha"], len(native["analysis"]["excludedVariantIds"])) == (0.01, 1)
    body = await refused(tenant, "PATCH", at, {"parameters": {"excluded_variants": ["nobody"]}})
    assert "nobody" in body["detail"]
    assert (await tenant.ok("PATCH", at, {"holdout_id": None}))["holdout"] is None


# -- lists


async def test_lists(tenant: Tenant) -> None:
    """`limit` and `offset` with neighbours' addresses; status, archived, search, event, order; else 400."""
    for letter in "abc":
        await made(tenant, name=f"T{letter}", feature_flag_key=f"flag-{letter}", metrics=[MEAN])
        tenant.clock.jump(1)
    first = await tenant.ok("GET", f"{AT}/?limit=2")
    assert (first["count"], [e["name"] for e in first["results"]]) == (3, ["Tc", "Tb"])
    assert first["previous"] is None
    rest = await tenant.ok("GET", first["next"].partition(tenant.plane.addresses["http"])[2])
    assert ([e["name"] for e in rest["results"]], rest["next"]) == (["Ta"], None)
    assert "offset=0" in rest["previous"]
    names = {
        "order=name": ["Ta", "Tb", "Tc"],
        "order=-name": ["Tc", "Tb", "Ta"],
        "order=-duration": ["Tc", "Tb", "Ta"],
        "search=TB": ["Tb"],
        "status=draft&event=resolved": ["Tc", "Tb", "Ta"],
        "event=nothing": [],
        "status=running": [],
        "status=complete": [],
        "archived=true": [],
        f"feature_flag_id={first['results'][0]['id']}": ["Tc"],
    }
    for query, wanted in names.items():
        found = await tenant.ok("GET", f"{AT}?{query}")
        assert [e["name"] for e in found["results"]] == wanted, query
    for query, why in (("created_by_id=1", "no numbers"), ("prompt_name=x", "no prompts")):
        body = await refused(tenant, "GET", f"{AT}?{query}")
        assert (body["attr"], why in body["detail"]) == (query.partition("=")[0], True)
    for query in (
        "order=wat",
        "status=wat",
        "limit=ten",
        "offset=-1",
        "limit=1&limit=2",
        "page=2",
        "cursor=x",
        "prompt_name=x",
    ):
        await refused(tenant, "GET", f"{AT}?{query}")


# -- a life


@pytest.mark.parametrize("host", ["a b", "x:y:z"])
async def test_a_host_header_of_any_kind(tenant: Tenant, host: str) -> None:
    """Lists and reads are answered whatever name the client knows the server by."""
    found = await made(tenant)
    assert (await tenant.ok("GET", f"{AT}/{found['id']}/", Host=host))["id"] == found["id"]
    for name in ("Second", "Third"):
        await made(tenant, name=name, feature_flag_key=name)
    listed = await tenant.ok("GET", f"{AT}/?limit=1&offset=1", Host=host)
    assert listed["next"].endswith(f"{AT}/?limit=1&offset=2")
    assert listed["previous"].endswith(f"{AT}/?limit=1&offset=0")


async def test_a_life(tenant: Tenant) -> None:
    """launch, pause (files as before), resume, end with a conclusion, archive, unarchive, reset: dates and status."""
    found = await draft(tenant)
    at = f"{AT}/{found['id']}"
    for verb in ("pause", "resume", "end", "archive", "unarchive", "reset", "freeze_exposure"):
        body = await refused(tenant, "POST", f"{at}/{verb}/")
        assert "draft" in body["detail"] or "archived" in body["detail"], verb
    launched = await tenant.ok("POST", f"{at}/launch/")
    assert (launched["status"], launched["feature_flag"]["active"]) == ("running", True)
    assert launched["start_date"] is not None
    assert len(launched["metrics"][0]["fingerprint"]) == 64
    assert "running" in (await refused(tenant, "POST", f"{at}/launch/"))["detail"]
    paused = await tenant.ok("POST", f"{at}/pause/")
    assert (paused["status"], paused["feature_flag"]["active"]) == ("paused", False)
    deployed = await tenant.ok("GET", f"/v1/experiments/{found['id']}/deployments?limit=1")
    assert deployed["entities"][0]["action"] == "restore"
    assert (await tenant.ok("GET", f"{AT}?status=running"))["count"] == 0
    assert (await tenant.ok("GET", f"{AT}?status=paused"))["count"] == 1
    assert "paused" in (await refused(tenant, "POST", f"{at}/pause/"))["detail"]
    assert (await tenant.ok("POST", f"{at}/resume/"))["status"] == "running"
    ended = await tenant.ok("POST", f"{at}/end/", {"conclusion": "won", "conclusion_comment": "Bold it is"})
    assert (ended["status"], ended["conclusion"]) == ("stopped", "won")
    assert ended["end_date"] is not None
    for verb in ("launch", "pause", "resume", "freeze_exposure", "unfreeze_exposure", "end", "unarchive"):
        assert "is stopped" in (await refused(tenant, "POST", f"{at}/{verb}/"))["detail"], verb
    assert (await refused(tenant, "POST", f"{at}/archive/", {"force": True}))["attr"] == "force"
    changed = await tenant.ok("PATCH", at, {"conclusion": "invalid"})
    assert (changed["conclusion"], changed["conclusion_comment"]) == ("invalid", "Bold it is")
    assert (await tenant.ok("POST", f"{at}/archive/"))["archived"] is True
    assert (await tenant.ok("GET", AT))["count"] == 0
    assert (await tenant.ok("GET", f"{AT}?archived=true"))["count"] == 1
    for verb in ("launch", "end", "archive", "ship_variant"):
        said = {"variant_key": "test"} if verb == "ship_variant" else None
        assert "is archived" in (await refused(tenant, "POST", f"{at}/{verb}/", said))["detail"], verb
    assert (await tenant.ok("POST", f"{at}/unarchive/"))["archived"] is False
    await tenant.ok("POST", f"{at}/archive/")
    again = await tenant.ok("POST", f"{at}/reset/")
    assert (again["status"], again["start_date"], again["conclusion"]) == ("draft", None, None)
    assert (again["archived"], again["end_date"]) == (False, None)


async def test_dates_launch_and_end(tenant: Tenant) -> None:
    """A start date launches, one ahead schedules; an end date ends; what is over is not opened again."""
    found = await draft(tenant)
    at = f"{AT}/{found['id']}"
    assert (await refused(tenant, "PATCH", at, {"end_date": moment(tenant)}))["attr"] == "end_date"
    soon = moment(tenant, days=2)
    ahead = await tenant.ok("PATCH", at, {"start_date": soon})
    assert (ahead["status"], ahead["start_date"][:19]) == ("draft", soon[:19])
    assert (await tenant.ok("GET", f"/v1/experiments/{found['id']}"))["schedule"]["startAt"] is not None
    assert (await tenant.ok("PATCH", at, {"start_date": None}))["start_date"] is None
    assert (await tenant.ok("GET", f"/v1/experiments/{found['id']}"))["schedule"]["startAt"] is None
    launched = await tenant.ok("PATCH", at, {"start_date": moment(tenant)})
    assert launched["status"] == "running"
    same = await tenant.ok("PATCH", at, {"start_date": launched["start_date"], "end_date": None})
    assert same["start_date"] == launched["start_date"]
    assert (await refused(tenant, "PATCH", at, {"start_date": None}))["attr"] == "start_date"
    swapped = {"start_date": launched["start_date"], "end_date": launched["start_date"]}
    assert (await refused(tenant, "PATCH", at, swapped))["attr"] == "end_date"
    assert (await refused(tenant, "PATCH", at, {"end_date": moment(tenant, days=-1)}))["attr"] == "end_date"
    tenant.clock.jump(60)
    ended = await tenant.ok("PATCH", at, {"end_date": moment(tenant), "conclusion": "lost"})
    assert (ended["status"], ended["conclusion"]) == ("stopped", "lost")
    assert (await refused(tenant, "PATCH", at, {"end_date": None}))["attr"] == "end_date"
    assert (await refused(tenant, "PATCH", at, {"conclusion": "maybe"}))["attr"] == "conclusion"
    both = await tenant.ok("PATCH", at, {"archived": True})
    assert both["archived"] is True
    now = await tenant.ok(
        "POST", AT, with_files(name="B", feature_flag_key="b", start_date=moment(tenant)), status=201
    )
    assert now["status"] == "running"
    await tenant.ok("POST", f"{AT}/{now['id']}/end")
    dates = {"start_date": moment(tenant), "end_date": moment(tenant, days=14)}
    both = await tenant.ok("POST", AT, with_files(name="C", feature_flag_key="c", **dates), status=201)
    assert (both["status"], both["end_date"][:19]) == ("running", dates["end_date"][:19])
    native = await tenant.ok("GET", f"/v1/experiments/{both['id']}")
    assert native["schedule"]["endAt"][:16] == dates["end_date"][:16]
    await tenant.ok("PATCH", f"{AT}/{both['id']}", {"end_date": moment(tenant, days=7)})
    assert (await tenant.ok("GET", f"/v1/experiments/{both['id']}"))["schedule"]["endAt"] < native[
        "schedule"
    ]["endAt"]
    assert (await tenant.ok("PATCH", f"{AT}/{both['id']}", {"end_date": None}))["end_date"] is None
    assert (await tenant.ok("GET", f"/v1/experiments/{both['id']}"))["schedule"]["endAt"] is None
    last = {"name": "D", "feature_flag_key": "d", "end_date": moment(tenant, days=7)}
    assert (await refused(tenant, "POST", AT, last))["attr"] == "end_date"


async def test_a_launch_needs_files(tenant: Tenant) -> None:
    """A flag alone is kept; launching it says what is missing, by this door's fields."""
    found = await made(tenant)
    body = await refused(tenant, "POST", f"{AT}/{found['id']}/launch/")
    assert {item["field"] for item in body["extra"]["errors"]} == {"participants", "target_file"}
    assert (await tenant.ok("GET", f"{AT}/{found['id']}"))["status"] == "draft"


async def test_files_stand_in_payloads(tenant: Tenant) -> None:
    """An object, a JSON text, or by variant key; shown with content only to who may read it; no content in the log."""
    import json

    text = json.dumps({"targetFile": "soul.md", "content": "secret words", "tone": 2})
    variants = [
        {"key": "control", "split_percent": 50, "payload": text},
        {"key": "test", "split_percent": 50},
    ]
    payloads = {"test": {"files": [{"path": "soul.md", "content": "other words"}]}}
    found = await made(
        tenant, parameters={"feature_flag_variants": variants, "feature_flag_payloads": payloads}
    )
    shown = [v["payload"] for v in found["parameters"]["feature_flag_variants"]]
    assert shown[0] == {"targetFile": "soul.md", "content": "secret words", "tone": 2}
    assert (shown[1]["targetFile"], shown[1]["content"]) == ("soul.md", "other words")
    assert (found["target_file"], found["feature_flag"]["filters"]["payloads"]["control"]) == (
        "soul.md",
        shown[0],
    )
    entry = await tenant.entry()
    assert entry["operation"] == "PostHog.CreateExperiment"
    assert "secret words" not in str(entry)
    blind = await tenant.limited("experiment:read")
    seen = (await tenant.ask("GET", f"{AT}/{found['id']}", key=blind)).body
    assert seen["parameters"]["feature_flag_variants"][0]["payload"]["content"] is None
    free = [{**variants[0], "payload": "plain"}, {**variants[1], "payload": [1, 2]}]
    changed = await tenant.ok("PATCH", f"{AT}/{found['id']}", {"parameters": {"feature_flag_variants": free}})
    assert changed["id"] == found["id"]


async def test_what_changes_after_the_launch(tenant: Tenant) -> None:
    """Keys and contents are for good, weights and share only with an explicit yes; metrics change any time."""
    found = await running(tenant)
    at = f"{AT}/{found['id']}"
    variants = found["parameters"]["feature_flag_variants"]
    same = await tenant.ok(
        "PATCH", at, {"parameters": found["parameters"] | {"feature_flag_variants": variants}}
    )
    assert same["parameters"]["feature_flag_variants"] == variants
    other = [{**variants[0], "split_percent": 80}, {**variants[1], "split_percent": 20}]
    for item in other:
        item.pop("rollout_percentage")
    asked = {"parameters": {"feature_flag_variants": other, "rollout_percentage": 100}}
    body = await refused(tenant, "PATCH", at, asked)
    assert "update_feature_flag_params" in body["detail"]
    moved = await tenant.ok("PATCH", at, {**asked, "update_feature_flag_params": True})
    assert [v["split_percent"] for v in moved["parameters"]["feature_flag_variants"]] == [80, 20]
    phases = await tenant.ok("GET", f"/v1/experiments/{found['id']}/phases")
    assert len(phases["entities"]) == 2
    renamed = [{**other[0], "key": "control"}, {**other[1], "key": "new"}]
    assert (
        "come or go"
        in (await refused(tenant, "PATCH", at, {"parameters": {"feature_flag_variants": renamed}}))["detail"]
    )
    rewritten = [other[0], {**other[1], "payload": {"content": "else", "targetFile": "soul.md"}}]
    assert (
        "write"
        in (await refused(tenant, "PATCH", at, {"parameters": {"feature_flag_variants": rewritten}}))[
            "detail"
        ]
    )
    for payload in (
        {"targetFile": "soul.md", "files": [{"path": "soul.md", "content": "else"}]},
        {"files": [{"path": "soul.md", "contentBase64": "ZWxzZQ=="}]},
        {"files": [{"path": "other.md", "content": "I am test."}]},
        {**variants[1]["payload"], "tone": 3},
        "else",
    ):
        said = {"parameters": {"feature_flag_variants": [other[0], {**other[1], "payload": payload}]}}
        body = await refused(tenant, "PATCH", at, said)
        assert body["attr"] == "parameters.feature_flag_variants.1.payload", (payload, body)
    for payload in (
        {"files": [{"path": "soul.md", "content": "I am test."}]},
        {"files": [{"path": "soul.md", "contentBase64": "SSBhbSB0ZXN0Lg=="}]},
        {"files": [{"path": "soul.md", "digest": "sha256:", "content": None}]},
    ):
        named = [other[0], {**other[1], "payload": payload, "name": f"{len(str(payload))}"}]
        changed = await tenant.ok("PATCH", at, {"parameters": {"feature_flag_variants": named}})
        told = changed["parameters"]["feature_flag_variants"]
        assert [told[0], {**told[1], "name": "test"}] == [
            {**variants[0], "split_percent": 80, "rollout_percentage": 80},
            {**variants[1], "split_percent": 20, "rollout_percentage": 20},
        ]
        assert told[1]["name"] == named[1]["name"]
    before = found["metrics"][0]["fingerprint"]
    changed = await tenant.ok("PATCH", at, {"metrics": [FUNNEL], "name": "Renamed"})
    assert (changed["name"], changed["metrics"][0]["uuid"]) == ("Renamed", FUNNEL["uuid"])
    assert changed["metrics"][0]["fingerprint"] != before
    assert "holdout_id" in str(await refused(tenant, "PATCH", at, {"holdout_id": 4}))


async def test_drafts_change_their_variants(tenant: Tenant) -> None:
    """The list is the whole set, by key."""
    found = await made(tenant)
    listed = [
        {"key": "test", "split_percent": 30},
        {"key": "control", "split_percent": 40, "name": "Base"},
        {"key": "third", "split_percent": 30},
    ]
    asked = {"parameters": {"feature_flag_variants": listed}}
    changed = await tenant.ok("PATCH", f"{AT}/{found['id']}", asked)
    assert {v["key"]: v["split_percent"] for v in changed["parameters"]["feature_flag_variants"]} == {
        "control": 40, "test": 30, "third": 30,
    }  # fmt: skip
    pair = {
        "parameters": {
            "feature_flag_variants": [
                {"key": "a", "rollout_percentage": 50},
                {"key": "b", "split_percent": 50},
            ]
        }
    }
    changed = await tenant.ok("PATCH", f"{AT}/{found['id']}", pair)
    native = await tenant.ok("GET", f"/v1/experiments/{found['id']}")
    assert [(v["key"], v["isControl"]) for v in native["variants"]] == [("a", True), ("b", False)]


async def test_the_baseline_is_the_control(tenant: Tenant) -> None:
    """Named beside the variants or alone; for good once it is launched; told as it is, whoever chose it."""
    found = await draft(tenant)
    at, native = f"{AT}/{found['id']}", f"/v1/experiments/{found['id']}"

    async def controls() -> list[bool]:
        return [variant["isControl"] for variant in (await tenant.ok("GET", native))["variants"]]

    def naming(key: Any) -> dict[str, Any]:
        return {"stats_config": {"baseline_variant_key": key}}

    await tenant.ok("PATCH", at, naming("test"))
    assert await controls() == [False, True]
    assert (await refused(tenant, "PATCH", at, naming("none")))["attr"] == "stats_config.baseline_variant_key"
    for key, yes in (("test", False), ("control", True)):
        await tenant.ok("PATCH", f"{native}/variants/{key}", {"isControl": yes})
    told = await tenant.ok("GET", at)
    assert told["stats_config"]["baseline_variant_key"] == "control"
    await tenant.ok("POST", f"{at}/launch/")
    assert "for good" in (await refused(tenant, "PATCH", at, naming("test")))["detail"]
    assert (await tenant.ok("PATCH", at, naming("control")))["stats_config"] == told["stats_config"]
    assert await controls() == [True, False]


async def test_ship_variant(tenant: Tenant) -> None:
    """The winner goes to everybody, and one that is running ends; nobody outside gets it."""
    found = await running(tenant)
    at = f"{AT}/{found['id']}"
    body = await refused(tenant, "POST", f"{at}/ship_variant/", {"variant_key": "nobody"})
    assert body["attr"] == "variant_key"
    assert (await refused(tenant, "POST", f"{at}/ship_variant/", {}))["attr"] == "variant_key"
    wide = {"variant_key": "test", "release_to_everyone": True}
    assert (await refused(tenant, "POST", f"{at}/ship_variant/", wide))["attr"] == "release_to_everyone"
    shipped = await tenant.ok("POST", f"{at}/ship_variant/", {"variant_key": "test", "conclusion": "won"})
    assert (shipped["status"], shipped["conclusion"]) == ("stopped", "won")
    values = shipped["feature_flag"]["filters"]["multivariate"]["variants"]
    assert {v["key"]: v["rollout_percentage"] for v in values} == {"control": 0, "test": 100}
    assert "draft" in (await refused(tenant, "POST", f"{AT}/{(await made(tenant))['id']}/ship_variant/",
                                     {"variant_key": "test"}))["detail"]  # fmt: skip


async def test_freezing_exposure(tenant: Tenant) -> None:
    """Nobody further takes part until it is unfrozen; files stay, it is running and measured, and can be ended."""
    found = await running(tenant)
    at, native = f"{AT}/{found['id']}", f"/v1/experiments/{found['id']}"
    frozen = await tenant.ok("POST", f"{at}/freeze_exposure/")
    assert (frozen["status"], frozen["end_date"]) == ("exposure_frozen", None)
    assert frozen["feature_flag"]["active"] is True
    actions = await tenant.ok("GET", f"{native}/deployments?limit=100")
    assert {item["action"] for item in actions["entities"]} == {"write"}
    for status, count in (("running", 1), ("exposure_frozen", 1), ("paused", 0), ("stopped", 0), ("all", 1)):
        assert (await tenant.ok("GET", f"{AT}?status={status}"))["count"] == count, status
    for active, count in (("true", 1), ("false", 0)):
        listed = await tenant.ok("GET", f"{AT}/eligible_feature_flags?active={active}")
        assert listed["count"] == count
    for verb in ("freeze_exposure", "pause", "resume", "launch"):
        assert "exposure_frozen" in (await refused(tenant, "POST", f"{at}/{verb}/"))["detail"], verb
    assert (await tenant.ok("POST", f"{at}/unfreeze_exposure/"))["status"] == "running"
    assert "running" in (await refused(tenant, "POST", f"{at}/unfreeze_exposure/"))["detail"]
    await tenant.ok("POST", f"{at}/freeze_exposure/")
    assert (await tenant.ok("POST", f"{at}/end/"))["status"] == "stopped"
    other = await running(tenant, name="B", feature_flag_key="b")
    await tenant.ok("POST", f"/v1/experiments/{other['id']}/stop")
    assert (await tenant.ok("GET", f"{AT}/{other['id']}"))["status"] == "exposure_frozen"
    body = await refused(tenant, "POST", f"{AT}/{other['id']}/unfreeze_exposure/")
    assert "for good" in body["detail"]


async def test_duplicate(tenant: Tenant) -> None:
    """A draft with everything but dates, conclusion, holdout; new metric uuids; its own name and key."""
    held = {"name": "H", "filters": [{"rollout_percentage": 5}]}
    holdout = await tenant.ok("POST", f"{BASE}/experiment_holdouts", held, status=201)
    found = await running(tenant, metrics=[MEAN, FUNNEL], holdout_id=holdout["id"], type="web")
    at = f"{AT}/{found['id']}"
    copy = await tenant.ok("POST", f"{at}/duplicate/", status=201)
    assert (copy["name"], copy["status"], copy["start_date"]) == ("Tone (Copy)", "draft", None)
    assert (copy["feature_flag_key"] != found["feature_flag_key"], copy["holdout_id"]) == (True, None)
    assert (copy["type"], copy["parameters"]) == ("web", found["parameters"])
    old = {item["uuid"] for item in found["metrics"]}
    assert not old & {item["uuid"] for item in copy["metrics"]}
    assert [item["metric_type"] for item in copy["metrics"]] == ["mean", "funnel"]
    assert copy["primary_metrics_ordered_uuids"] == [item["uuid"] for item in copy["metrics"]]
    assert (await tenant.ok("POST", f"{at}/duplicate/", {}, status=201))["name"] == "Tone (Copy) 2"
    own = {"name": "Mine", "feature_flag_key": "My_Own", "description": "not used"}
    mine = await tenant.ok("POST", f"{at}/duplicate/", own, status=201)
    assert (mine["name"], mine["feature_flag_key"], mine["description"]) == (
        "Mine",
        "My_Own",
        found["description"],
    )
    assert (await tenant.ok("GET", at))["metrics"] == found["metrics"]
    for place, old_fields in enumerate(
        ({"filters": {"insight": "FUNNELS"}}, {"secondary_metrics": [{"name": "a"}]})
    ):
        legacy = await made(tenant, feature_flag_key=f"legacy-{place}", **old_fields)
        assert "legacy" in (await refused(tenant, "POST", f"{AT}/{legacy['id']}/duplicate/"))["detail"]


async def test_a_copy_for_another_project(tenant: Tenant) -> None:
    """A key is of one project: any other is 403, an experiment there is not is 404, no target is 400."""
    found = await made(tenant)
    at = f"{AT}/{found['id']}/copy_to_project/"
    body = await refused(tenant, "POST", at, {"target_team_id": 2}, status=403)
    assert (body["code"], "one project" in body["detail"]) == ("permission_denied", True)
    assert (await refused(tenant, "POST", at, {}))["attr"] == "target_team_id"
    await refused(tenant, "POST", f"{AT}/99/copy_to_project/", {"target_team_id": 2}, status=404)
    assert (await tenant.ok("GET", AT))["count"] == 1


async def test_what_is_kept_hides_nothing(tenant: Tenant) -> None:
    """Whatever a client keeps in an experiment, lists show it."""
    found = await made(tenant, filters={"deleted": True})
    listed = await tenant.ok("GET", f"{AT}/")
    assert [item["id"] for item in listed["results"]] == [found["id"]]


async def test_deleting_is_hiding(tenant: Tenant) -> None:
    """DELETE is forbidden; `deleted` hides, archives and ends; and brings back."""
    found = await running(tenant)
    at = f"{AT}/{found['id']}"
    assert (await refused(tenant, "DELETE", at, status=405))["code"] == "method_not_allowed"
    gone = await tenant.ok("PATCH", at, {"deleted": True})
    assert (gone["deleted"], gone["archived"]) == (True, True)
    await refused(tenant, "GET", at, status=404)
    await refused(tenant, "PATCH", at, {"name": "x"}, status=404)
    assert (await tenant.ok("GET", f"{AT}?archived=true"))["count"] == 0
    native = await tenant.ok("GET", f"/v1/experiments/{found['id']}")
    assert (native["status"], native["archived"]) == ("completed", True)
    back = await tenant.ok("PATCH", at, {"deleted": False})
    assert (back["deleted"], back["archived"]) == (False, False)


# -- days, flags, pace


async def test_recalculation(tenant: Tenant) -> None:
    """201 for a new job, 200 for the one under way; a slot for each day; errors for what is missing."""
    found = await draft(tenant)
    at = f"{AT}/{found['id']}"
    uuid = MEAN["uuid"]
    query = f"metric_uuid={uuid}&fingerprint={'0' * 64}"
    assert "not started" in (await refused(tenant, "GET", f"{at}/timeseries_results/?{query}"))["detail"]
    asked: dict[str, Any] = {"metric": MEAN, "fingerprint": "0" * 64}
    assert "not started" in (await refused(tenant, "POST", f"{at}/recalculate_timeseries/", asked))["detail"]
    launched = await tenant.ok("POST", f"{at}/launch/")
    (metric,) = launched["metrics"]
    for missing in ({"metric": metric}, {"fingerprint": metric["fingerprint"]}):
        await refused(tenant, "POST", f"{at}/recalculate_timeseries/", missing)
    await refused(tenant, "GET", f"{at}/timeseries_results/?metric_uuid={uuid}")
    stale = await refused(tenant, "POST", f"{at}/recalculate_timeseries/", asked)
    assert metric["fingerprint"] in stale["detail"]
    query = f"metric_uuid={uuid}&fingerprint={metric['fingerprint']}"
    pending = await tenant.ok("GET", f"{at}/timeseries_results/?{query}")
    assert (pending["status"], set(pending["timeseries"].values())) == ("pending", {None})
    asked = {"metric": metric, "fingerprint": metric["fingerprint"]}
    job = await tenant.ok("POST", f"{at}/recalculate_timeseries/", asked, status=201)
    assert set(job) == {"id", "experiment_id", "metric_uuid", "fingerprint", "status", "created_at"}
    assert (job["experiment_id"], job["metric_uuid"], job["status"]) == (found["id"], uuid, "pending")
    assert await tenant.ok("POST", f"{at}/recalculate_timeseries/", asked) == job

    async def completed() -> bool:
        await tenant.clock.advance(1)
        return bool((await tenant.ok("GET", f"{at}/timeseries_results/?{query}"))["status"] == "completed")

    await eventually(completed, what="every day is computed")
    done = await tenant.ok("GET", f"{at}/timeseries_results/?{query}")
    assert set(done) == {
        "experiment_id", "metric_uuid", "fingerprint", "status", "timeseries", "errors", "computed_at",
        "created_at", "updated_at", "recalculation_status", "recalculation_created_at", "formatted_results",
    }  # fmt: skip
    assert (done["errors"], done["recalculation_status"]) == (None, "completed")
    (slot,) = done["timeseries"].values()
    assert {arm["key"] for arm in slot["variants"]} == {"control", "test"}
    other = await tenant.ok("GET", f"{at}/timeseries_results/?metric_uuid={uuid}&fingerprint={'1' * 64}")
    assert (other["status"], set(other["timeseries"].values())) == ("pending", {None})


async def test_eligible_flags(tenant: Tenant) -> None:
    """Two variants and more, the first `control`; limit, offset, search, active, order; anything else is 400."""
    for letter in "abc":
        await made(tenant, name=letter, feature_flag_key=f"flag-{letter}")
    pair = [{"key": "base", "split_percent": 50}, {"key": "control", "split_percent": 50}]
    await made(tenant, name="d", feature_flag_key="other", parameters={"feature_flag_variants": pair})
    at = f"{AT}/eligible_feature_flags"
    found = await tenant.ok("GET", f"{at}/?order=key")
    assert (found["count"], [f["key"] for f in found["results"]]) == (3, ["flag-a", "flag-b", "flag-c"])
    page = await tenant.ok("GET", f"{at}/?order=key&limit=1&offset=1")
    assert ([f["key"] for f in page["results"]], page["count"]) == (["flag-b"], 3)
    assert (await tenant.ok("GET", f"{at}?search=flag-c"))["count"] == 1
    assert (await tenant.ok("GET", f"{at}?active=true"))["count"] == 0
    assert (await tenant.ok("GET", f"{at}?evaluation_runtime=client"))["count"] == 0
    body = await refused(tenant, "GET", f"{at}?created_by_id=1")
    assert "no numbers" in body["detail"]
    for query in ("limit=x", "offset=x", "offset=-1", "order=wat", "active=maybe", "wat=1"):
        await refused(tenant, "GET", f"{at}?{query}")
    reader = await tenant.limited("feature_flag:read")
    assert (await tenant.ask("GET", f"{at}/", key=reader)).body["count"] == 3
    assert (await tenant.ask("GET", AT, key=reader)).status == 403
    other = await tenant.limited("experiment:read", "experiment:write")
    assert (await tenant.ask("GET", f"{at}/", key=other)).status == 403


async def test_a_window() -> None:
    """20 flags unless asked, at most 100; as many experiments as there may be at once."""
    for query, wanted in (
        ({}, (20, 0)),
        ({"limit": "100"}, (100, 0)),
        ({"limit": "101", "offset": "7"}, (100, 7)),
    ):
        assert posthog_reading.window(query, default=20) == wanted


async def test_pace_and_instrumentation(tenant: Tenant) -> None:
    """Counts of 30 days with the change in per cent; whether anything was reported in the last 7 days."""
    assert await tenant.ok("GET", f"{AT}/stats/") == {
        "launched_last_30d": 0, "launched_previous_30d": 0, "percent_change": 0.0,
        "active_experiments": 0, "completed_last_30d": 0,
    }  # fmt: skip
    assert await tenant.ok("GET", f"{AT}/requires_flag_implementation/") == {"result": True}
    await running(tenant)
    found = await tenant.ok("GET", f"{AT}/stats/")
    assert (found["launched_last_30d"], found["percent_change"], found["active_experiments"]) == (1, 100.0, 1)
    event = {"kind": "impression", "participantId": "p", "eventId": "1"}
    await tenant.ok("POST", "/v1/events:batch", {"events": [event]})
    assert await tenant.ok("GET", f"{AT}/requires_flag_implementation/") == {"result": False}
    tenant.clock.jump(8 * 86_400)
    assert await tenant.ok("GET", f"{AT}/requires_flag_implementation/") == {"result": True}


# -- holdouts and saved metrics


async def test_holdouts(tenant: Tenant) -> None:
    """A share by number; drafts lose it with its deletion, what is launched keeps it."""
    at = f"{BASE}/experiment_holdouts"
    asked = {"name": "Never", "description": "for good", "filters": [{"rollout_percentage": 10}]}
    held = await tenant.ok("POST", f"{at}/", asked, status=201)
    assert held["filters"] == [
        {"properties": [], "rollout_percentage": 10, "variant": f"holdout-{held['id']}"}
    ]
    assert (await tenant.ok("GET", at))["results"] == [held]
    assert (await tenant.ok("GET", f"/v1/holdouts/{held['id']}"))["share"] == 10
    wide = {"filters": [{"rollout_percentage": 20}]}
    assert (await tenant.ok("PATCH", f"{at}/{held['id']}/", wide))["filters"][0]["rollout_percentage"] == 20
    for filters in ([], [{"rollout_percentage": 101}], [{"rollout_percentage": 1, "properties": [1]}], 5):
        await refused(tenant, "PATCH", f"{at}/{held['id']}/", {"filters": filters})
    drafted = await made(tenant, holdout_id=held["id"])
    assert (await tenant.ask("DELETE", f"{at}/{held['id']}/")).status == 204
    assert (await tenant.ok("GET", f"{AT}/{drafted['id']}"))["holdout_id"] is None
    await refused(tenant, "GET", f"{at}/{held['id']}/", status=404)
    other = await tenant.ok("POST", f"{at}/", asked, status=201)
    assert other["id"] > held["id"]
    await running(tenant, holdout_id=other["id"])
    assert "name" in (await refused(tenant, "DELETE", f"{at}/{other['id']}/"))["detail"]


async def test_saved_metrics(tenant: Tenant) -> None:
    """A metric to name: its query, what is kept of it, and who names it."""
    at = f"{BASE}/experiment_saved_metrics"
    asked = {"name": "Closed", "description": "in time", "tags": ["a"], "query": FUNNEL}
    saved = await tenant.ok("POST", f"{at}/", asked, status=201)
    assert {**saved, **asked} == saved
    assert (await tenant.ok("GET", f"{at}/"))["results"] == [saved]
    named = [{"id": saved["id"], "metadata": {"type": "secondary"}}]
    found = await made(tenant, metrics=[MEAN], saved_metrics_ids=named)
    assert (found["saved_metrics_ids"], found["saved_metrics"][0]["query"]) == (named, FUNNEL)
    assert found["metrics"] == [MEAN]
    native = (await tenant.ok("GET", f"/v1/experiments/{found['id']}"))["metrics"]
    assert native["secondary"][0]["eventName"] == "closed"
    changed = await tenant.ok("PATCH", f"{at}/{saved['id']}/", {"query": RATIO, "tags": []})
    assert (changed["query"], changed["tags"], changed["description"]) == (RATIO, [], "in time")
    assert "name" in (await refused(tenant, "DELETE", f"{at}/{saved['id']}/"))["detail"]
    await tenant.ok("PATCH", f"{AT}/{found['id']}", {"saved_metrics_ids": []})
    assert (await tenant.ask("DELETE", f"{at}/{saved['id']}/")).status == 204
    await refused(tenant, "POST", f"{at}/", {"name": "x"})
    await refused(tenant, "POST", f"{at}/", {"name": "x", "query": {"metric_type": "retention"}})


# -- who may, and how failures are told


@pytest.mark.parametrize(
    ("method", "path", "body", "key", "status", "kind"),
    [
        ("POST", f"{AT}/", b"{", None, 400, "validation_error"),
        ("GET", AT, None, "", 401, "authentication_error"),
        ("GET", AT, None, "phx_someone", 401, "authentication_error"),
        ("GET", f"{AT}/424242/", None, None, 404, "invalid_request"),
        ("GET", "/api/projects/other/experiments/", None, None, 404, "invalid_request"),
        ("GET", f"{BASE}/dashboards/", None, None, 404, "invalid_request"),
        ("PUT", f"{AT}/1/", None, None, 405, "invalid_request"),
        ("POST", f"{AT}/1/launch/", None, None, 404, "invalid_request"),
        ("POST", AT, {"wat": True}, None, 400, "validation_error"),
    ],
)
async def test_failures_have_this_doors_shape(
    tenant: Tenant, method: str, path: str, body: Any, key: str | None, status: int, kind: str
) -> None:
    """`{type, code, detail, attr}`, whatever fails and wherever."""
    headers = {"Content_Type": "application/json"} if isinstance(body, bytes) else {}
    answer = await tenant.ask(method, path, body, key=key, **headers)
    assert (answer.status, answer.body["type"]) == (status, kind), answer.body
    assert set(answer.body) - {"extra"} == {"type", "code", "detail", "attr"}


async def test_scopes_and_another_project(tenant: Tenant) -> None:
    """experiment:read reads, experiment:write writes; numbers of another project are nobody's here."""
    found = await draft(tenant)
    reader = await tenant.limited("experiment:read")
    assert (await tenant.ask("GET", f"{AT}/{found['id']}/", key=reader)).status == 200
    denied = await tenant.ask("POST", f"{AT}/{found['id']}/launch/", key=reader)
    assert (denied.status, denied.body["code"]) == (403, "permission_denied")
    assert (await tenant.ask("GET", f"{AT}/{found['feature_flag_key']}/", key=tenant.plane.key)).status == 404
    limited = await tenant.limited("experiment:read", "experiment:write", team="a")
    assert (await tenant.ask("GET", AT, key=limited)).body["count"] == 0
    assert (await tenant.ask("GET", f"{BASE}/experiment_holdouts", key=limited)).status == 403
