"""`variantctl metrics`: one is saved, named by an experiment, changed and removed."""

from tests.cli.conftest import Run
from tests.support.plane import Plane


async def test_a_saved_metric_on_the_command_line(ctl: Run, plane: Plane) -> None:
    """What people read says what is measured and which drafts name it; --json is the resource."""
    made = await ctl("metrics", "create", "--name", "Resolved", "--event", "resolved", "--json")
    assert (made.code, made.json["key"], made.json["kind"]) == (0, "resolved", "proportion")
    assert "no draft names it" in (await ctl("metrics", "get", "resolved")).out
    values = {"name": "Tone", "targetFile": "soul.md", "metrics": {"primary": {"key": "resolved"}}}
    experiment = await plane.made("/v1/experiments", values)
    assert experiment["metrics"]["primary"]["id"] == made.json["id"]
    listed = await ctl("metrics", "list")
    assert ("resolved" in listed.out, "tone" in listed.out) == (True, True)
    refused = await ctl("metrics", "delete", "resolved")
    assert (refused.code, "tone" in refused.err) == (4, True)
    changed = await ctl("metrics", "update", "resolved", "--goal", "decrease", "--window", "P7D")
    assert "resolved: proportion of resolved, to decrease; named by tone" in changed.out
    assert (await ctl("experiments", "delete", "tone")).code == 0
    assert "is gone" in (await ctl("metrics", "delete", "resolved")).out
    assert (await ctl("metrics", "list")).out == "there is no saved metric\n"
    assert (await ctl("metrics", "create", "--name", "x", "--event", "e", "--kind", "ratio")).code == 1
