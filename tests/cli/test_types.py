"""Experiments of every type as manifests: applied once or many times, and shown."""

from itertools import pairwise
from pathlib import Path

from tests.cli.conftest import Run
from tests.support.plane import Plane

PERSONAL = """\
apiVersion: variantd/v1
kind: Experiment
key: tone-by-tier
name: Tone by tier
type: personalization
targetFile: config/soul.md
participants: [bot-1, bot-2]
variants:
- name: Gold
  content: Take your time.
  targetingRules: {labels: [{key: tier, operator: equals, value: gold}, {key: gone, operator: not_exists}]}
- name: Rest
  content: Be brief.
"""


async def test_a_personalization(plane: Plane, ctl: Run, tmp_path: Path) -> None:
    """Rules go there and back, change and go; the type stays what it is."""
    manifest = tmp_path / "experiment.yaml"
    manifest.write_text(PERSONAL)
    words = ("apply", "-f", str(manifest), "--json")
    assert (await ctl(*words)).json["action"] == "create"
    again = (await ctl(*words)).json
    assert (again["action"], again["changes"]) == ("none", [])
    shown = (await plane.rest("GET", "/v1/experiments/tone-by-tier")).body
    assert [rule["key"] for rule in shown["variants"][0]["targetingRules"]["labels"]] == ["tier", "gone"]
    assert "tier equals gold and gone not_exists" in (await ctl("experiments", "get", "tone-by-tier")).out
    manifest.write_text(PERSONAL.replace("value: gold}, {key: gone, operator: not_exists", "value: tin"))
    changed = (await ctl(*words)).json
    assert [item["field"] for item in changed["changes"]] == ["variants.gold.targetingRules"]
    assert (await ctl(*words)).json["action"] == "none"
    assert (await ctl("experiments", "start", "tone-by-tier")).code == 0
    assert "(NOT_RANDOMIZED)" in (await ctl("results", "tone-by-tier")).out
    other = tmp_path / "other.yaml"
    other.write_text(PERSONAL.replace("tone-by-tier", "other"))
    assert (await ctl("apply", "-f", str(other))).code == 0
    other.write_text(other.read_text().replace("type: personalization\n", "").partition("variants:")[0])
    refused = await ctl("apply", "-f", str(other))
    assert refused.code != 0
    assert "TYPE_IS_FIXED" in refused.err


MULTIVARIATE = """\
apiVersion: variantd/v1
kind: Experiment
key: tone-and-model
name: Tone and model
type: multivariate
participants: [bot-1, bot-2]
factors:
- key: tone
  targetFile: config/soul.md
  levels: [{key: warm, content: Be warm.}, {key: terse, contentFile: terse.md}]
- key: model
  targetFile: config/model.txt
  levels: [{key: small, content: small}, {key: raw, contentBase64: /wA=}]
"""


async def test_a_multivariate(plane: Plane, ctl: Run, tmp_path: Path) -> None:
    """Generated variants are left to the control plane, chosen ones are not; a content is one of its factor."""
    manifest = tmp_path / "experiment.yaml"
    (tmp_path / "terse.md").write_text("Be terse.\n")
    manifest.write_text(MULTIVARIATE)
    words = ("apply", "-f", str(manifest), "--json")
    assert (await ctl(*words)).json["action"] == "create"
    assert (await ctl(*words)).json["changes"] == []
    shown = (await plane.rest("GET", "/v1/experiments/tone-and-model")).body
    assert [item["key"] for item in shown["variants"]] == [
        "warm-small",
        "warm-raw",
        "terse-small",
        "terse-raw",
    ]
    assert shown["factors"][0]["levels"][1]["content"] == "Be terse.\n"
    assert shown["factors"][1]["levels"][1]["contentBase64"] == "/wA="
    listed = (await plane.rest("GET", "/v1/experiments")).body["entities"][0]
    assert listed["factors"][0]["levels"][1]["content"] is None
    (tmp_path / "terse.md").write_text("Be very terse.\n")
    assert [item["field"] for item in (await ctl(*words)).json["changes"]] == ["factors"]
    assert (await ctl(*words)).json["action"] == "none"
    chosen = """\
variants:
- {key: warm-small, name: warm / small, isControl: true, weight: 50, levels: {tone: warm, model: small}}
- {key: mix, name: Mix, weight: 50, levels: {tone: terse, model: raw}}
"""
    manifest.write_text(MULTIVARIATE + chosen)
    assert (await ctl(*words)).json["action"] == "update"
    assert (await ctl(*words)).json["action"] == "none"
    said = (await ctl("experiments", "get", "tone-and-model")).out
    assert "config/model.txt" in said
    assert "multivariate" in said


SWITCHBACK = """\
apiVersion: variantd/v1
kind: Experiment
key: two-hosts
name: Two hosts
type: switchback
targetFile: config/soul.md
participants: [bot-1, bot-2]
switchback: {blockDuration: PT12H, blocks: 14, washout: PT30M}
variants:
- {name: Friendly, isControl: true, content: Be friendly.}
- {name: Concise, content: Be brief.}
"""


async def test_a_switchback(plane: Plane, ctl: Run, tmp_path: Path) -> None:
    """Blocks go there and back, change and are shown, and every turn is listed with its beginning and end."""
    manifest = tmp_path / "experiment.yaml"
    manifest.write_text(SWITCHBACK)
    words = ("apply", "-f", str(manifest), "--json")
    assert (await ctl(*words)).json["action"] == "create"
    assert (await ctl(*words)).json["changes"] == []
    manifest.write_text(SWITCHBACK.replace("blocks: 14", "blocks: 12"))
    assert [item["field"] for item in (await ctl(*words)).json["changes"]] == ["switchback"]
    assert (await ctl(*words)).json["action"] == "none"
    shown = (await plane.rest("GET", "/v1/experiments/two-hosts")).body
    assert shown["switchback"] == {"blockDuration": "PT12H", "blocks": 12, "washout": "PT30M"}
    assert "12 of PT12H, washout PT30M" in (await ctl("experiments", "get", "two-hosts")).out
    planned = (await ctl("experiments", "assignments", "two-hosts", "--json")).json["entities"]
    assert [(item["participantId"], item["timeBlock"]) for item in planned] == [("bot-1", 1), ("bot-2", 1)]
    assert (await ctl("experiments", "start", "two-hosts")).code == 0
    turns = (await ctl("experiments", "assignments", "two-hosts", "--json")).json["entities"]
    assert [(item["participantId"], item["timeBlock"]) for item in turns] == [
        (name, block) for name in ("bot-1", "bot-2") for block in range(1, 13)
    ]
    assert all(before["toAt"] == after["fromAt"] for before, after in pairwise(turns[:12]))
    table = (await ctl("experiments", "assignments", "two-hosts")).out
    assert "UNTIL" in table.splitlines()[0]
    assert "cycle:6" in table
    assert "(NO_CYCLE_YET)" in (await ctl("results", "two-hosts")).out
    why = (await ctl("results", "two-hosts", "--why")).out
    assert "0 of 12 differences are there" in why


CHOSEN = """\
apiVersion: variantd/v1
kind: Experiment
key: chosen
name: Chosen
targetFile: soul.md
participants: {labels: {role: support}}
variants:
- {name: A, isControl: true, weight: 50, content: a}
- {name: B, weight: 50, content: b}
"""
WHO = """\
trafficAllocation: 50
targetingRules: {labels: [{key: tier, operator: not_equals, value: gold}]}
allowHostLabels: true
strata: [tier, region]
schedule: {startAt: '2031-01-01T00:00:00Z', endAt: '2031-02-01T00:00:00+01:00'}
"""


async def test_who_takes_part_and_when(plane: Plane, ctl: Run, tmp_path: Path) -> None:
    """Allocation, rules, strata and schedule go there and back; what a manifest leaves out has its default again."""
    manifest = tmp_path / "experiment.yaml"
    manifest.write_text(CHOSEN + WHO)
    words = ("apply", "-f", str(manifest), "--json")
    made = (await ctl(*words)).json
    assert made["action"] == "create"
    again = (await ctl(*words)).json
    assert (again["action"], again["changes"]) == ("none", [])
    shown = (await plane.rest("GET", "/v1/experiments/chosen")).body
    assert (shown["trafficAllocation"], shown["allowHostLabels"], shown["strata"]) == (
        50,
        True,
        ["tier", "region"],
    )
    assert shown["targetingRules"]["labels"] == [{"key": "tier", "operator": "not_equals", "value": "gold"}]
    assert shown["schedule"] == {"startAt": "2031-01-01T00:00:00.000Z", "endAt": "2031-01-31T23:00:00.000Z"}
    manifest.write_text(CHOSEN)
    plain = (await ctl(*words)).json
    assert {item["field"] for item in plain["changes"]} == {
        *("trafficAllocation", "targetingRules", "allowHostLabels", "strata", "schedule")
    }
    back = (await plane.rest("GET", "/v1/experiments/chosen")).body
    assert (back["trafficAllocation"], back["allowHostLabels"], back["strata"]) == (100, False, [])
    assert back["targetingRules"] == {"labels": []}
    assert (await ctl(*words)).json["action"] == "none"


async def test_a_schedule_that_is_none_is_told(ctl: Run, tmp_path: Path) -> None:
    """By its field, before anything is asked of the control plane."""
    manifest = tmp_path / "experiment.yaml"
    manifest.write_text(CHOSEN + "schedule: {startAt: soon}\n")
    refused = await ctl("apply", "-f", str(manifest))
    assert (refused.code, "schedule.startAt" in refused.err) == (1, True)
