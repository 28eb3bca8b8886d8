"""`variantctl holdouts`: one is made, named by an experiment, changed and removed."""

from tests.cli.conftest import Run
from tests.support.plane import Plane


async def test_a_holdout_on_the_command_line(ctl: Run, plane: Plane) -> None:
    """What people read says the share and who names it; --json is the resource."""
    made = await ctl("holdouts", "create", "--name", "Left alone", "--share", "12.5", "--json")
    assert (made.code, made.json["key"], made.json["share"]) == (0, "left-alone", 12.5)
    assert "no experiment names it yet" in (await ctl("holdouts", "get", "left-alone")).out
    values = {"name": "Tone", "targetFile": "soul.md", "participantIds": ["a"], "holdoutId": "left-alone"}
    experiment = await plane.made("/v1/experiments", values)
    assert experiment["holdoutId"] == made.json["id"]
    listed = await ctl("holdouts", "list")
    assert ("left-alone" in listed.out, "12.5 %" in listed.out, "tone" in listed.out) == (True, True, True)
    refused = await ctl("holdouts", "delete", "left-alone")
    assert (refused.code, "tone" in refused.err) == (4, True)
    changed = await ctl("holdouts", "update", "left-alone", "--share", "20")
    assert "left-alone keeps 20 % of participants out; named by tone" in changed.out
    assert (await ctl("experiments", "delete", "tone")).code == 0
    assert "is gone" in (await ctl("holdouts", "delete", "left-alone")).out
    assert (await ctl("holdouts", "get", "left-alone")).code == 1
    assert (await ctl("holdouts", "list")).out == "there is no holdout\n"
    assert (await ctl("holdouts", "create", "--name", "x", "--share", "101")).code == 2
