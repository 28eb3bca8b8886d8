"""Whichever API made it, every other one finds the same experiment."""

from typing import Any

import pytest

from control_plane.api import doors
from tests.support.tenant import Tenant

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME, DESCRIPTION, FILE = "Tone of voice", "Friendly resolves more", "config/soul.md"
TEXTS = {"Friendly": "You are friendly.", "Concise": "You are concise."}
PEOPLE = ["p", "q"]


async def by_stamn(tenant: Tenant) -> Any:
    """Made as a client of Stamn makes it; our own API is the same."""
    variants = [
        {"name": name, "content": text, "weight": 50, "isControl": name == "Friendly"}
        for name, text in TEXTS.items()
    ]
    asked = {
        "name": NAME, "description": DESCRIPTION, "targetFile": FILE, "variants": variants,
        "participantIds": PEOPLE, "metrics": {"primary": {"eventName": "resolved"}},
    }  # fmt: skip
    return (await tenant.ok("POST", "/stamn/v1/experiments", asked, status=201))["data"]["id"]


async def by_ours(tenant: Tenant) -> Any:
    """Made as a client of Ours Privacy makes it."""
    (record,) = (await tenant.ok("GET", "/rest/v1/experiment-settings"))["entities"]
    asked = {
        "experimentSettingsId": record["id"], "name": NAME, "description": DESCRIPTION, "targetFile": FILE,
        "participantIds": PEOPLE, "metrics": {"primary": {"eventName": "resolved"}},
    }  # fmt: skip
    made = await tenant.ok("POST", "/rest/v1/experiments", asked, status=201)
    control = f"/rest/v1/experiment-variants/{made['variants'][0]['id']}"
    await tenant.ok("PATCH", control, {"name": "Friendly", "content": TEXTS["Friendly"]})
    other = {"experimentId": made["id"], "name": "Concise", "weight": 50, "content": TEXTS["Concise"]}
    await tenant.ok("POST", "/rest/v1/experiment-variants", other, status=201)
    return made["id"]


async def by_breakground(tenant: Tenant) -> Any:
    """Made as a client of BreakGround makes it."""
    variants = [
        {"name": name, "splitPercentage": 50, "config": {"targetFile": FILE, "content": text}}
        for name, text in TEXTS.items()
    ]
    asked = {
        "name": NAME, "description": DESCRIPTION, "type": "ab_test", "variants": variants,
        "participantIds": PEOPLE, "metrics": {"primary": {"eventName": "resolved"}},
    }  # fmt: skip
    return (await tenant.ok("POST", "/api/experiments", asked, status=201))["data"]["id"]


async def by_posthog(tenant: Tenant) -> Any:
    """Made as a client of PostHog makes it."""
    variants = [
        {
            "key": key,
            "name": name,
            "split_percent": 50,
            "payload": {"targetFile": FILE, "content": TEXTS[name]},
        }
        for key, name in (("control", "Friendly"), ("test", "Concise"))
    ]
    asked = {
        "name": NAME, "description": DESCRIPTION, "feature_flag_key": "tone", "participant_ids": PEOPLE,
        "parameters": {"feature_flag_variants": variants},
        "metrics": [{"metric_type": "mean", "source": {"event": "resolved"}}],
    }  # fmt: skip
    return (await tenant.ok("POST", "/api/projects/1/experiments/", asked, status=201))["id"]


async def seen(tenant: Tenant, native: Any) -> dict[str, dict[str, Any]]:
    """What each API says of it: name, description, state, and each variant's name with weight, text and whose it is."""
    number, key = native["number"], native["key"]
    stamn = (await tenant.ok("GET", f"/stamn/v1/experiments/{key}"))["data"]
    ours = await tenant.ok("GET", f"/rest/v1/experiments/{key}")
    breakground = (await tenant.ok("GET", f"/api/experiments/{native['id']}"))["data"]
    posthog = await tenant.ok("GET", f"/api/projects/1/experiments/{number}/")

    def told(found: Any, variants: dict[str, tuple[int, str]]) -> dict[str, Any]:
        return {
            "name": found["name"],
            "description": found["description"],
            "status": found["status"],
            **variants,
        }

    return {
        "own": told(native, {v["name"]: (v["weight"], v["content"]) for v in native["variants"]}),
        "stamn": told(stamn, {v["name"]: (v["weight"], v["content"]) for v in stamn["variants"]}),
        "ours": told(ours, {v["name"]: (v["weight"], v["content"]) for v in ours["variants"]}),
        "breakground": told(
            breakground,
            {v["name"]: (v["splitPercentage"], v["config"]["content"]) for v in breakground["variants"]},
        ),
        "posthog": told(
            posthog,
            {
                v["name"]: (v["split_percent"], v["payload"]["content"])
                for v in posthog["parameters"]["feature_flag_variants"]
            },
        ),
    }


@pytest.mark.parametrize("make", [by_stamn, by_ours, by_breakground, by_posthog])
async def test_the_same_experiment_everywhere(tenant: Tenant, make: Any) -> None:
    """Made through one, read through every other, started through the next, and listed by all."""
    made = await make(tenant)
    (native,) = (await tenant.ok("GET", "/v1/experiments"))["entities"]
    native = await tenant.ok("GET", f"/v1/experiments/{native['id']}")
    assert made in (native["id"], native["number"], "exp_" + native["id"].replace("-", ""))
    wanted = {
        "name": NAME, "description": DESCRIPTION, "status": "draft",
        **{name: (50, text) for name, text in TEXTS.items()},
    }  # fmt: skip
    for api, found in (await seen(tenant, native)).items():
        assert found == wanted, api
    start = {
        by_stamn: f"/rest/v1/experiments/{native['id']}/start",
        by_ours: f"/api/experiments/{native['id']}/start",
        by_breakground: f"/api/projects/1/experiments/{native['number']}/launch/",
        by_posthog: f"/v1/experiments/{native['id']}/start",
    }[make]
    await tenant.ok("POST", start)
    native = await tenant.ok("GET", f"/v1/experiments/{native['id']}")
    for api, found in (await seen(tenant, native)).items():
        assert found == {**wanted, "status": "running"}, api
    assert len((await tenant.ok("GET", "/rest/v1/experiments?status=running"))["entities"]) == 1
    assert (await tenant.ok("GET", "/api/experiments?status=running"))["meta"]["total"] == 1
    assert (await tenant.ok("GET", "/api/projects/1/experiments/?status=running"))["count"] == 1
    assert len((await tenant.ok("GET", "/stamn/v1/experiments"))["data"]) == 1


async def test_what_another_door_keeps_stays(tenant: Tenant) -> None:
    """A change through one door leaves what the others keep, and so does one through our own API."""
    made = await by_ours(tenant)
    await tenant.ok("PATCH", f"/rest/v1/experiments/{made}", {"includeQueryString": True})
    native = (await tenant.ok("GET", "/v1/experiments"))["entities"][0]
    await tenant.ok("PATCH", f"/api/experiments/{native['id']}", {"hypothesis": "It works"})
    at = f"/api/projects/1/experiments/{native['number']}/"
    await tenant.ok("PATCH", at, {"type": "web", "parameters": {"recommended_running_time": 9}})
    await tenant.ok("PATCH", f"/v1/experiments/{native['id']}", {"name": "Renamed"})
    assert (await tenant.ok("GET", f"/rest/v1/experiments/{made}"))["includeQueryString"] is True
    assert (await tenant.ok("GET", f"/api/experiments/{native['id']}"))["data"]["hypothesis"] == "It works"
    found = await tenant.ok("GET", at)
    assert (found["type"], found["parameters"]["recommended_running_time"]) == ("web", 9)
    copy = await tenant.ok("POST", f"/v1/experiments/{native['id']}/duplicate", status=201)
    assert (await tenant.ok("GET", f"/rest/v1/experiments/{copy['id']}"))["includeQueryString"] is True


async def test_a_key_that_is_limited_to_labels(tenant: Tenant) -> None:
    """It makes and sees through every door only what carries them."""
    for name in PEOPLE:
        await tenant.ok("POST", "/v1/participants", {"id": name, "labels": {"team": "a"}}, status=201)
    key = await tenant.limited("experiment:read", "experiment:write", team="a")
    (record,) = (await tenant.ok("GET", "/rest/v1/experiment-settings"))["entities"]
    pair = [{"name": name, "splitPercentage": 50} for name in "AB"]
    for path, asked in (
        ("/stamn/v1/experiments", {"name": "S"}),
        ("/rest/v1/experiments", {"name": "O", "experimentSettingsId": record["id"]}),
        ("/api/experiments", {"name": "B", "variants": pair}),
        ("/api/projects/1/experiments/", {"name": "P", "feature_flag_key": "p"}),
    ):
        refused = await tenant.ask("POST", path, asked, key=key)
        assert refused.status == 403, refused.body
        made = await tenant.ask("POST", path, {**asked, "labels": {"team": "a"}}, key=key)
        assert made.status == 201, made.body
        outside = {**asked, "name": f"{asked['name']} elsewhere"}
        if "feature_flag_key" not in asked:
            await tenant.ok("POST", path, outside, status=201)
    assert len((await tenant.ask("GET", "/rest/v1/experiments", key=key)).body["entities"]) == 4
    assert (await tenant.ask("GET", "/api/experiments", key=key)).body["meta"]["total"] == 4
    assert (await tenant.ask("GET", "/api/projects/1/experiments/", key=key)).body["count"] == 4
    assert (await tenant.ok("GET", "/api/experiments"))["meta"]["total"] == 7


async def test_every_call_of_every_door_is_refused_without_a_key(tenant: Tenant) -> None:
    """Whatever the table of a door has, nobody gets in without a key, and the answer is in the door's shape."""
    for found in doors.DOORS:
        for route in found.routes:
            path = route.path.replace("{id}", "1").replace("{project}", "1")
            answer = await tenant.ask(route.method, path, key="")
            assert answer.status == 401, (route.method, path)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "title" not in answer.body
