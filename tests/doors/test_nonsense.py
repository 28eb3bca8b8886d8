"""Whatever stands in a place of a client's body, the answer of a door is a refusal or an experiment: never a 500."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.tenant import Tenant

pytestmark = pytest.mark.asyncio(loop_scope="module")

UUID = "0a6d0ff0-1111-4222-8333-444455556666"
ODD: list[Any] = [None, 7, "x", ["x"], {"a": 1}]
FILE = {"targetFile": "soul.md", "content": "I am."}
AUDIENCE = {"key": "audience", "operator": "equals"}

POSTHOG = {
    "name": "Tone",
    "target_file": "soul.md",
    "participant_ids": ["p"],
    "labels": {"team": "a"},
    "parameters": {
        "feature_flag_variants": [
            {"key": "control", "split_percent": 50, "payload": {**FILE}},
            {"key": "test", "split_percent": 50, "payload": {"files": [{"path": "soul.md", "content": "x"}]}},
        ],
        "feature_flag_payloads": {"test": FILE},
        "excluded_variants": [],
    },
    "metrics": [
        {
            "uuid": UUID,
            "metric_type": "funnel",
            "series": [{"event": "closed"}],
            "conversion_window": 3,
            "conversion_window_unit": "day",
        }
    ],
    "primary_metrics_ordered_uuids": [UUID],
    "saved_metrics_ids": [{"id": 1, "metadata": {"type": "secondary"}}],
    "exposure_criteria": {"multiple_variant_handling": "exclude", "exposure_config": {"properties": []}},
    "stats_config": {"method": "frequentist", "frequentist": {"alpha": 0.05}, "baseline_variant_key": "test"},
    "archived": False,
    "deleted": False,
    "update_feature_flag_params": False,
}
OURS = {
    "name": "Tone",
    "targetFile": "soul.md",
    "participantIds": ["p"],
    "targetingRules": {"audienceId": "a", "labels": [{**AUDIENCE, "value": "b"}]},
    "metrics": {"primary": {"eventName": "signup"}},
}
BREAKGROUND = {
    "name": "Tone",
    "audienceId": "a",
    "variants": [
        {"name": "A", "splitPercentage": 50, "config": {**FILE}},
        {"name": "B", "splitPercentage": 50, "config": {"files": [{"path": "soul.md", "content": "x"}]}},
    ],
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place below."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inside:
        yield (*at, name)
        yield from places(item, (*at, name))


def with_odd(value: Any, at: tuple[Any, ...], odd: Any) -> Any:
    """The value with something odd in that place."""
    if not at:
        return odd
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[at[0]] = with_odd(value[at[0]], at[1:], odd)
    return changed


async def tried(tenant: Tenant, path: str, whole: dict[str, Any], drafts: list[str]) -> None:
    """The body with nonsense in each of its places makes and changes experiments, or is refused."""
    for at in places(whole):
        for odd in ODD:
            body = with_odd(whole, at, odd)
            calls = [("POST", path, body)]
            calls += [("PATCH", f"{path}/{draft}", {at[0]: body[at[0]]}) for draft in drafts]
            for method, to, said in calls:
                answer = await tenant.ask(method, to, said)
                assert answer.status < 500, (method, at, odd, answer.body)


async def test_posthog(tenant: Tenant) -> None:
    """A draft and one that is launched."""
    path = "/api/projects/@current/experiments"
    without = {name: value for name, value in POSTHOG.items() if name != "saved_metrics_ids"}
    drafts = [str((await tenant.ok("POST", path, without, status=201))["id"]) for _ in range(2)]
    await tenant.ok("POST", f"{path}/{drafts[1]}/launch")
    query = {"uuid": UUID, "metric_type": "mean", "source": {"event": "sold"}}
    saved = await tenant.ok(
        "POST", "/api/projects/@current/experiment_saved_metrics", {"name": "s", "query": query}, status=201
    )
    named = [{"id": saved["id"], "metadata": {"type": "secondary"}}]
    await tried(tenant, path, {**POSTHOG, "saved_metrics_ids": named}, drafts)


async def test_ours_privacy(tenant: Tenant) -> None:
    """Also an audience's rule that says no value."""
    path = "/rest/v1/experiments"
    settings = (await tenant.ok("GET", "/rest/v1/experiment-settings"))["entities"][0]["id"]
    whole = {**OURS, "experimentSettingsId": settings}
    draft = (await tenant.ok("POST", path, whole, status=201))["id"]
    await tried(tenant, path, whole, [draft])
    answer = await tenant.ask("PATCH", f"{path}/{draft}", {"targetingRules": {"labels": [AUDIENCE]}})
    assert answer.status == 400, answer.body


async def test_breakground(tenant: Tenant) -> None:
    """Variants of a change may have an id of any kind."""
    path = "/api/experiments"
    draft = (await tenant.ok("POST", path, BREAKGROUND, status=201))["data"]["id"]
    await tried(tenant, path, BREAKGROUND, [draft])
    for odd in ODD:
        body = with_odd(BREAKGROUND, ("variants", 0), {"id": odd, "name": "A", "splitPercentage": 50})
        answer = await tenant.ask("PATCH", f"{path}/{draft}", body)
        assert answer.status < 500, (odd, answer.body)
