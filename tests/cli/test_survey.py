"""`variantctl experiments targets|instrumentation|stats` and REST's other name of the findings."""

from tests.cli.conftest import Run
from tests.support.builders import make_hello
from tests.support.plane import Plane
from tests.support.stream import sharing


async def test_what_can_be_tested_and_what_is_reported(plane: Plane, running: Run) -> None:
    """A file that is held somewhere is shown with its holder; what was never reported says so, with what to do."""
    assert "no host declares" in (await running("experiments", "targets")).out
    identity = await plane.enroll(await plane.token())
    async with sharing(identity, make_hello("bot-1", "bot-2"), {}):
        shown = await running("experiments", "targets", "--json")
        assert [item["target"] for item in shown.json["entities"]] == ["*.md"]
        assert "*.md" in (await running("experiments", "targets", "--search", "md")).out
    said = await running("experiments", "instrumentation", "soul-tone")
    assert said.code == 0
    assert "0 of 2" in said.out
    assert "never reported" in said.out
    as_json = await running("experiments", "instrumentation", "soul-tone", "--json")
    assert as_json.json["requiresInstrumentation"] is True
    assert [item["eventName"] for item in as_json.json["metrics"]] == ["resolved", "escalated"]
    assert (await running("experiments", "instrumentation", "nobody")).code == 1


async def test_stats(running: Run) -> None:
    """One launched, out of nothing."""
    said = await running("experiments", "stats")
    assert "+100 %" in said.out
    assert "1 running now" in said.out
    shown = (await running("experiments", "stats", "--json")).json
    assert shown["launched"] == {"current": 1, "previous": 0, "percentChange": 100.0}
    assert shown["completed"] == {"current": 0, "previous": 0, "percentChange": 0.0}


async def test_findings_are_health_as_well(plane: Plane, running: Run) -> None:
    """REST answers the same under both names."""
    for variant in ("friendly", "concise"):  # one of them is not the assigned one
        assert (await running("deploy", "soul-tone", "-p", "bot-1", "-v", variant)).code == 0
    findings = await plane.rest("GET", "/v1/experiments/soul-tone/findings")
    health = await plane.rest("GET", "/v1/experiments/soul-tone/health")
    assert health.status == findings.status == 200
    assert health.body["findings"] == findings.body["findings"] != []
    assert (await plane.rest("GET", "/v1/experiments/nobody/health")).status == 404


async def test_words_of_routes_are_no_keys(plane: Plane) -> None:
    """What follows `/v1/experiments/` in a route of its own is never taken for an experiment, nor can be one."""
    for word in ("stats", "eligible-targets"):
        made = await plane.rest("POST", "/v1/experiments", {"name": "x", "key": word})
        assert made.status == 400
        named = await plane.rest("POST", "/v1/experiments", {"name": word.replace("-", " ")})
        assert named.body["key"] != word
        assert (await plane.rest("GET", f"/v1/experiments/{word}")).status == 200
        other = await plane.rest("DELETE", f"/v1/experiments/{word}")
        assert (other.status, other.headers["Allow"]) == (405, "GET,HEAD")
