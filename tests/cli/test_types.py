"""Experiments of every type as manifests: applied once or many times, and shown."""

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
