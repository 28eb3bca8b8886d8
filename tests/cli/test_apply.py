"""apply: the experiment is what the manifest says, once or many times."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cli.conftest import Run
from tests.support.plane import Plane

KEY = "/v1/experiments/soul-tone"


async def applied(ctl: Run, manifest: Path, *words: str) -> Any:
    """The answer of apply."""
    said = await ctl("apply", "-f", str(manifest), "--json", *words)
    assert said.code == 0, said.err
    return said.json


def change(manifest: Path, before: str, after: str) -> None:
    """The manifest says something else."""
    text = manifest.read_text()
    assert before in text
    manifest.write_text(text.replace(before, after))


async def test_apply_creates_once(plane: Plane, ctl: Run, manifest: Path) -> None:
    """The first apply creates what the manifest says, the second finds nothing to do."""
    first = await applied(ctl, manifest)
    assert first["action"] == "create"
    assert first["experiment"]["assignments"] != []
    shown = (await plane.rest("GET", KEY)).body
    assert [item["content"] for item in shown["variants"]] == ["be friendly\n", "be concise\n"]
    assert [item["isControl"] for item in shown["variants"]] == [True, False]
    assert shown["participants"]["ids"] == ["bot-1", "bot-2"]
    (guardrail,) = shown["metrics"]["guardrail"]
    assert (guardrail["eventName"], guardrail["goal"], guardrail["role"]) == (
        "escalated",
        "decrease",
        "guardrail",
    )
    assert shown["exposureCriteria"]["settleSeconds"] == 0
    second = await applied(ctl, manifest)
    assert (second["action"], second["changes"]) == ("none", [])
    assert (await plane.rest("GET", KEY)).body["version"] == shown["version"]


async def test_a_dry_run_changes_nothing(plane: Plane, ctl: Run, manifest: Path) -> None:
    """The plan is shown, of a new experiment and of a changed one, and nothing in the database is other than before."""

    def stored() -> list[str]:
        with sqlite3.connect(f"file:{plane.data / 'variantd.db'}?mode=ro", uri=True) as database:
            rows = list(database.iterdump())
        # that a key was used is noted at most once a minute, by whichever request comes first
        return [row for row in rows if not row.startswith('INSERT INTO "api_key"')]

    empty = stored()
    shown = (await ctl("apply", "-f", str(manifest), "--dry-run", "--json")).json
    assert (shown["action"], shown["dryRun"]) == ("create", True)
    assert (shown["experiment"]["participantCount"], len(shown["experiment"]["assignments"])) == (2, 2)
    assert stored() == empty
    said = await ctl("apply", "-f", str(manifest), "--dry-run")
    assert (said.code, "will be created" in said.out) == (0, True)
    assert "targetingRules" not in said.out, "what says nothing is not told"
    assert (
        "a start would write config/soul.md on 2 participants: friendly 1, concise 1\n"
        "  no agent yet: bot-1, bot-2\n"
        "waits: bot-1, bot-2: no agent has declared it yet; its deployment waits until one does (NEVER_SEEN)\n"
        "nothing stands in the way of a start\n"
        "the design cannot decide\n" in said.out
    )
    assert {"(NEVER_SEEN)", "(DESIGN_CANNOT_DECIDE)"} <= set(said.err.split())
    assert (await plane.rest("GET", KEY)).status == 404
    before = (await applied(ctl, manifest))["experiment"]
    change(manifest, "weight: 50, contentFile: concise.md", "weight: 40, contentFile: concise.md")
    (manifest.parent / "concise.md").write_text("be very concise\n")
    said = await ctl("apply", "-f", str(manifest), "--dry-run")
    assert "  ~ variants.concise.weight: 50 → 40\n" in said.out
    assert "  ~ variants.concise.files[config/soul.md]: sha256:" in said.out
    assert "a start would write config/soul.md on 2 participants: " in said.out
    assert (await plane.rest("GET", KEY)).body["version"] == before["version"]


async def test_a_draft_becomes_what_the_manifest_says(plane: Plane, ctl: Run, manifest: Path) -> None:
    """Metadata, structure and variants change; variants that are gone from the manifest are removed."""
    before = (await applied(ctl, manifest))["experiment"]
    manifest.write_text(
        """\
apiVersion: variantd/v1
kind: Experiment
key: soul-tone
name: Renamed
labels: {team: a}
metadata: {ticket: 7}
targetFile: SOUL.md
participants: {labels: {role: support}}
exposureCriteria: {requires: loaded, multipleVariants: first_seen}
analysis: {alpha: 0.1, decision: sequence, tuning: 500, prior: {a: 2}, excludedVariantIds: [odd, even]}
variants:
  - {name: Terse, key: concise, weight: 60, isControl: true, contentFile: concise.md, config: {x: [1]}}
  - {name: Rude, weight: 40, content: be rude}
  - {name: Odd, weight: 0, content: be odd}
  - {name: Even, weight: 0, content: be even}
"""
    )
    after = (await applied(ctl, manifest))["experiment"]
    assert (after["name"], after["description"], after["labels"]) == ("Renamed", "", {"team": "a"})
    assert after["metadata"] == {"ticket": 7}
    assert (after["targetFile"], after["targetFiles"]) == ("SOUL.md", ["SOUL.md"])
    assert after["participants"] == {"ids": [], "labels": {"role": "support"}}
    assert after["metrics"] == {"primary": None, "secondary": [], "guardrail": []}
    shown = {item["key"]: item for item in after["variants"]}
    analysis = after["analysis"]
    assert (analysis["alpha"], analysis["decision"], analysis["tuning"]) == (0.1, "sequence", 500)
    assert (analysis["prior"], analysis["horizonDays"]) == ({"a": 2, "b": 1}, None)
    assert set(analysis["excludedVariantIds"]) == {shown["odd"]["id"], shown["even"]["id"]}
    assert after["exposureCriteria"] == {
        "settleSeconds": 0,  # of that it says nothing
        "requires": "loaded",
        "multipleVariants": "first_seen",
    }
    assert set(shown) == {"concise", "rude", "odd", "even"}
    assert (shown["concise"]["name"], shown["concise"]["weight"]) == ("Terse", 60)
    assert (shown["concise"]["isControl"], shown["concise"]["config"]) == (True, {"x": [1]})
    assert shown["concise"]["id"] == before["variants"][1]["id"]
    assert shown["rude"]["content"] == "be rude"
    assert (await applied(ctl, manifest))["action"] == "none"


async def test_many_participants_are_counted(ctl: Run, manifest: Path) -> None:
    """Of a long list some are named; of a change of it who comes and who goes."""
    bots = [f"bot-{number:02}" for number in range(25)]
    change(manifest, "[bot-1, bot-2]", f"[{', '.join(bots)}]")
    said = await ctl("apply", "-f", str(manifest))
    assert f"  + participants: ids {', '.join(bots[:20])} and 5 more\n" in said.out
    change(manifest, "bot-00, bot-01", "ant, bee, cat")
    said = await ctl("apply", "-f", str(manifest), "--dry-run")
    told = "  ~ participants: ids 25 → 26, with ant, bee, cat, without bot-00, bot-01\n"
    assert (said.code, told in said.out) == (0, True), said.out


async def test_a_key_can_be_used_again_at_once(ctl: Run, manifest: Path) -> None:
    """A variant renamed without a key is another variant, and its old name is free."""
    await applied(ctl, manifest)
    change(manifest, "{name: Concise,", "{name: Friendly, key: concise,")
    change(manifest, "{name: Friendly, isControl: true,", "{name: Warm, isControl: true,")
    shown = (await applied(ctl, manifest))["experiment"]["variants"]
    assert sorted((item["key"], item["name"]) for item in shown) == [
        ("concise", "Friendly"),
        ("warm", "Warm"),
    ]


async def test_a_running_experiment_changes_in_metadata_only(plane: Plane, ctl: Run, manifest: Path) -> None:
    """After the start a name may change; anything else is a conflict that names every field, and no part of
    such a manifest is applied."""
    await applied(ctl, manifest)
    assert (await ctl("experiments", "start", "soul-tone")).code == 0
    assert (await applied(ctl, manifest))["action"] == "none"
    change(manifest, "name: Personality A/B test", "name: Personality")
    change(
        manifest,
        "weight: 50, contentFile: concise.md",
        "weight: 50, description: short, contentFile: concise.md",
    )
    after = await applied(ctl, manifest)
    assert [item["field"] for item in after["changes"]] == ["name", "variants.concise.description"]
    assert after["experiment"]["name"] == "Personality"
    change(manifest, "name: Personality", "name: Other")
    change(manifest, "settleSeconds: 0", "settleSeconds: 5")
    (manifest.parent / "concise.md").write_text("changed\n")
    manifest.write_text(manifest.read_text() + "  - {name: Third, weight: 0, content: x}\n")
    said = await ctl("apply", "-f", str(manifest))
    assert said.code == 4
    lines = said.err.splitlines()
    assert lines[0].startswith("variantctl: soul-tone is running")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "exposureCriteria",
        "variants.concise.files[config/soul.md]",
        "variants.Third",
    ]
    assert (await plane.rest("GET", KEY)).body["name"] == "Personality"


async def test_what_a_manifest_does_not_say_any_more_is_taken_away(
    plane: Plane, ctl: Run, manifest: Path
) -> None:
    """Labels and metadata of a draft are emptied by an update that names them and holds nothing."""
    manifest.write_text(manifest.read_text() + "labels: {team: a}\nmetadata: {a: 1}\n")
    await applied(ctl, manifest)
    change(manifest, "labels: {team: a}\nmetadata: {a: 1}\n", "")
    change(manifest, "Concise wins.", "Other.")
    await applied(ctl, manifest)
    now = (await plane.rest("GET", KEY)).body
    assert (now["description"], now["labels"], now["metadata"]) == ("Other.", {}, None)


async def test_the_control_planes_own_refusals_name_the_field(ctl: Run, manifest: Path) -> None:
    """What only the control plane can know comes back by field."""
    change(manifest, "targetFile: config/soul.md", "targetFile: ../soul.md")
    said = await ctl("apply", "-f", str(manifest))
    assert said.code == 1
    assert "  targetFile: PATH_ESCAPES_ROOT" in said.err


async def test_unknown_participants_are_warned_about(ctl: Run, manifest: Path) -> None:
    """A typo in a participant's id creates one nobody serves; the warning goes to standard error."""
    said = await ctl("apply", "-f", str(manifest), "--json")
    assert said.json["experiment"]["participantCount"] == 2
    assert "variantctl: warning: no agent has declared bot-1, bot-2 yet" in said.err


async def test_a_manifest_from_standard_input(ctl: Run) -> None:
    """`-f -` reads the manifest from a pipe."""
    text = "apiVersion: variantd/v1\nkind: Experiment\nkey: piped\nname: Piped\n"
    said = await ctl("apply", "-f", "-", "--json", stdin=text)
    assert (said.code, said.json["experiment"]["status"]) == (0, "draft")


async def test_standard_input_is_utf_8_whatever_the_locale(plane: Plane, ctl: Run) -> None:
    """The same manifest is the same experiment by `-f FILE` and by `-f -`, where the terminal is another's too."""
    told = {"name": "Grüße", "description": "naïve"}
    text = "apiVersion: variantd/v1\nkind: Experiment\nkey: piped\nname: Grüße\ndescription: naïve\n"
    assert await piped("apply", "-f", "-", body=b"\xef\xbb\xbf" + text.encode()) == (0, "")
    shown = (await plane.rest("GET", "/v1/experiments/piped")).body
    assert {name: shown[name] for name in told} == told
    for words in (("apply", "-f", "-"), ("analyze", "-")):
        refused = await piped(*words, body=text.encode("latin-1"))
        assert refused == (1, "variantctl: standard input is not UTF-8 text\n")


async def piped(*words: str, body: bytes) -> tuple[int, str]:
    """The command's exit code and standard error, with this on standard input, in a locale of another encoding."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "variantctl"), *words,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    _, err = await process.communicate(body)
    return process.returncode or 0, err.decode()


async def test_bytes_that_are_no_text_arrive_exactly(plane: Plane, ctl: Run, manifest: Path) -> None:
    """A content file is bytes."""
    (manifest.parent / "concise.md").write_bytes(b"\xff\x00\r\n")
    shown = (await applied(ctl, manifest))["experiment"]["variants"][1]
    assert shown["content"] is None
    assert shown["files"][0]["contentBase64"] == "/wANCg=="
    assert (await applied(ctl, manifest))["action"] == "none"


async def test_what_a_manifest_leaves_out_the_project_says(plane: Plane, ctl: Run, manifest: Path) -> None:
    """A new experiment has the project's defaults; once it is there, what the manifest leaves out stays as it is."""
    defaults = {"defaults": {"settleSeconds": 5, "alpha": 0.2}}
    assert (await plane.rest("PATCH", "/v1/settings", defaults)).status == 200
    change(manifest, "exposureCriteria: {settleSeconds: 0}\n", "")
    made = await applied(ctl, manifest)
    assert made["experiment"]["exposureCriteria"]["settleSeconds"] == 5
    assert made["experiment"]["analysis"]["alpha"] == 0.2
    assert not {"exposureCriteria", "analysis"} & {item["field"] for item in made["changes"]}
    assert (await applied(ctl, manifest))["action"] == "none"
    defaults = {"defaults": {"settleSeconds": 7, "alpha": 0.1}}
    assert (await plane.rest("PATCH", "/v1/settings", defaults)).status == 200
    assert (await applied(ctl, manifest))["action"] == "none"
    change(manifest, "key: soul-tone\n", "key: soul-tone\nanalysis: {power: 0.9}\n")
    after = await applied(ctl, manifest)
    assert [item["field"] for item in after["changes"]] == ["analysis"]
    analysis = after["experiment"]["analysis"]
    assert (analysis["alpha"], analysis["power"]) == (0.2, 0.9)
    change(
        manifest,
        "analysis: {power: 0.9}\n",
        "analysis: {alpha: 0.05}\nexposureCriteria: {settleSeconds: 60}\n",
    )
    said = (await applied(ctl, manifest))["experiment"]
    assert (said["analysis"]["alpha"], said["analysis"]["power"]) == (0.05, 0.8)
    assert said["exposureCriteria"]["settleSeconds"] == 60
