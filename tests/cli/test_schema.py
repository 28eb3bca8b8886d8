"""The published schema of a manifest: it takes what apply takes, and refuses what apply refuses."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from control_plane.cli.manifest import parse
from control_plane.cli.schema import manifest_schema
from control_plane.domain import fields
from tests.cli.conftest import Run

ROOT = Path(__file__).resolve().parent.parent.parent
HEAD = "apiVersion: variantd/v1\nkind: Experiment\n"


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    """The schema, which is one."""
    Draft202012Validator.check_schema(manifest_schema())
    return Draft202012Validator(manifest_schema())


# -- good ones


def _texts() -> Iterator[tuple[str, str]]:
    """Where a text is that may hold manifests, and the text."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        yield str(page.relative_to(ROOT)), page.read_text()
    yield "deploy/demo/experiment.yaml", (ROOT / "deploy/demo/experiment.yaml").read_text()
    for module in sorted((ROOT / "tests").rglob("*.py")):
        if module == Path(__file__) or "apiVersion" not in (text := module.read_text()):
            continue
        tree = ast.parse(text)
        pieces = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
                yield f"{module.relative_to(ROOT)}:{node.lineno}", node.value


def _manifests() -> Iterator[tuple[str, str]]:
    """Every manifest of the pages and of the tests, whole ones only."""
    for where, text in _texts():
        for found in re.findall(HEAD + r".+?(?=^YAML$|^```$|\Z)", text, re.DOTALL | re.MULTILINE):
            yield where, found


MANIFESTS = list(_manifests())


def test_there_are_manifests_to_look_at() -> None:
    """The pages' and the tests' manifests are found, so that what follows says something."""
    pages = {where.partition(":")[0] for where, _ in MANIFESTS}
    assert {"README.md", "docs/tutorial.md", "docs/reference/cli.md", "deploy/demo/experiment.yaml"} <= pages
    assert len(MANIFESTS) >= 15


@pytest.mark.parametrize(
    "text",
    [text for _, text in MANIFESTS],
    ids=[f"{index}-{where}" for index, (where, _) in enumerate(MANIFESTS)],
)
def test_a_manifest_that_is_used_is_valid(schema: Draft202012Validator, text: str, tmp_path: Path) -> None:
    """What the pages show and the tests apply is valid, and is a manifest."""
    assert [error.message for error in schema.iter_errors(yaml.safe_load(text))] == []
    for name in re.findall(r"contentFile: ([a-z.]+)", text):
        (tmp_path / name).write_text("x")
    parse(text, base=tmp_path, source="test")


GOOD = [
    "participants: [bot-1, bot-2]",
    "participants: {ids: [bot-1], labels: {}}",
    "participants: {labels: {tier: gold}}",
    "variants: [{name: A, files: [{path: a.md, contentBase64: /wA=}, {path: b.md, content: ''}]}]",
    "{targetFile: a.md, variants: [{name: A, content: '', contentFile: null}]}",
    "variants: [{name: A, levels: {tone: warm}, content: x}]",
    "metrics: {primary: {key: handled}, guardrail: [{eventName: e, key: null, margin: 0.1, window: PT72H}]}",
    "metrics: {primary: null}",
    "{type: switchback, switchback: {blockDuration: P1DT12H, blocks: 4}}",
    "schedule: {startAt: '2027-01-31T12:00:00Z', endAt: '2027-01-31T12:00:00.5+01:00'}",
    "{holdoutId: left-alone, strata: [tier], trafficAllocation: 0, analysis: {prior: {a: 2}, clusterBy: host}}",
    "{metadata: {anything: [1, {at: all}]}, labels: {empty: ''}, factors: [], schedule: null}",
]


@pytest.mark.parametrize("part", GOOD)
def test_what_a_manifest_may_say(schema: Draft202012Validator, part: str) -> None:
    """Every way to say a thing is valid, and is a manifest."""
    document = _document(part)
    assert [error.message for error in schema.iter_errors(document)] == []
    parse(json.dumps(document), base=Path(), source="test")


# -- bad ones

BAD = [
    "apiVersion: variantd/v2",
    "kind: Rollout",
    "key: No Key",
    "key: stats",
    "key: 7",
    "name: ''",
    "nme: N",
    "rollout: {waves: [10%]}",
    "type: switch",
    "description: 7",
    "labels: {tier: 1}",
    "labels: [a]",
    "targetFile: /etc/passwd",
    "targetFile: a/../../b",
    "participants: bot-1",
    "participants: [1]",
    "participants: ['no id']",
    "participants: [bot-1, bot-1]",
    "participants: {ids: [bot-1], labels: {tier: gold}}",
    "participants: {names: [bot-1]}",
    "{targetFile: a.md, variants: [{name: A}]}",
    "{targetFile: a.md, variants: [{name: A, files: []}]}",
    "{targetFile: a.md, variants: [{name: A, content: a, contentFile: b}]}",
    "{targetFile: a.md, variants: [{name: A, content: a, files: [{path: a, content: b}]}]}",
    "{targetFile: a.md, variants: [{content: a}]}",
    "{targetFile: a.md, variants: [{name: A, key: 'No Key', content: a}]}",
    "{targetFile: a.md, variants: [{name: A, weight: 101, content: a}]}",
    "{targetFile: a.md, variants: [{name: A, weight: 0.5, content: a}]}",
    "{targetFile: a.md, variants: [{name: A, isControl: 'true', content: a}]}",
    "{targetFile: a.md, variants: [{name: A, content: a, contentBase64: YQ==}]}",
    "variants: [{name: A, content: a}]",
    "variants: [{name: A, files: [{path: a, content: a}]}, {name: B, content: a}]",
    "variants: [just a text]",
    "variants: [{name: A, files: [{path: a}]}]",
    "variants: [{name: A, files: [{path: ../a, content: a}]}]",
    "variants: [{name: A, files: [{content: a}]}]",
    "variants: [{name: A, files: [{path: a, content: a, contentBase64: YQ==}]}]",
    "variants: [{name: A, files: [{path: a, contentBase64: '?'}]}]",
    "{targetFile: a.md, variants: [{name: A, content: a, targetingRules: {labels: [{key: a, operator: is}]}}]}",
    "{type: multivariate, factors: [{key: tone, targetFile: a.md, levels: []}]}",
    "{type: multivariate, factors: [{key: tone, targetFile: a.md, levels: [{key: warm}]}]}",
    "{type: multivariate, factors: [{key: Tone, targetFile: a.md, levels: [{key: warm, content: a}]}]}",
    "metrics: {primary: {}}",
    "metrics: {primary: {key: handled, goal: decrease}}",
    "metrics: {primary: {key: handled, eventName: resolved}}",
    "metrics: {primary: {key: null}}",
    "metrics: {primary: {eventName: resolved, goal: up}}",
    "metrics: {primary: {eventName: resolved, role: primary}}",
    "metrics: {guardrail: [{eventName: resolved, margin: 0}]}",
    "metrics: {primary: {eventName: resolved, window: 3 days}}",
    "metrics: [{eventName: resolved}]",
    "exposureCriteria: {settleSeconds: -1}",
    "exposureCriteria: {requires: seen}",
    "analysis: {alpha: 2}",
    "analysis: {alpha: null}",
    "analysis: {clusterBy: town}",
    "analysis: {excludedParticipantIds: [a, a]}",
    "trafficAllocation: 101",
    "allowHostLabels: 'yes'",
    "requirePreflight: 'yes'",
    "strata: [tier, tier]",
    "holdoutId: ''",
    "schedule: {startAt: tomorrow}",
    "schedule: {startAt: '2027-01-31T12:00:00'}",
    "{type: switchback, switchback: {blockDuration: a day, blocks: 4}}",
    "{type: switchback, switchback: {blockDuration: P1D, blocks: 1}}",
    "{type: switchback, switchback: {blocks: 4}}",
]


def _document(part: str) -> dict[str, Any]:
    return {"apiVersion": "variantd/v1", "kind": "Experiment", "key": "k", "name": "N"} | yaml.safe_load(part)


@pytest.mark.parametrize("part", BAD)
def test_what_is_wrong_is_invalid(schema: Draft202012Validator, part: str) -> None:
    """Each of them has something of the wrong kind, too much, too little, or what excludes something else."""
    assert not schema.is_valid(_document(part))


@pytest.mark.parametrize("missing", ["apiVersion", "kind", "key", "name"])
def test_what_is_required_has_to_be_there(schema: Draft202012Validator, missing: str) -> None:
    """As apply says it too."""
    document = _document("{}")
    assert schema.is_valid(document)
    del document[missing]
    assert not schema.is_valid(document)


async def test_apply_refuses_the_same(ctl: Run, tmp_path: Path) -> None:
    """Nothing is invalid by the schema alone: a control plane is asked to make each of them, and makes none."""
    taken = []
    (tmp_path / "b").write_text("b")
    for part in BAD:
        (tmp_path / "bad.yaml").write_text(json.dumps(_document(part)))
        said = await ctl("apply", "-f", str(tmp_path / "bad.yaml"))
        if said.code != 1:
            taken.append((part, said))
    assert taken == []
    assert (await ctl("experiments", "list", "--json")).json["entities"] == []


# -- what it is


async def test_it_is_printed(run: Run) -> None:
    """`variantctl schema` asks no control plane, and prints what is published with the pages."""
    said = await run("schema")
    assert (said.code, said.err) == (0, "")
    assert said.out == (ROOT / "docs" / "reference" / "experiment.schema.json").read_text()
    assert said.json == manifest_schema()


def test_a_project_has_its_own_defaults() -> None:
    """No editor fills in as a default what a project may have another one of."""
    parts = manifest_schema()["$defs"]
    assert "default" not in parts["Exposure"]["properties"]["settleSeconds"]
    assert "default" not in parts["Analysis"]["properties"]["alpha"]
    assert parts["Analysis"]["properties"]["power"]["default"] == 0.8


def test_it_says_of_a_key_and_a_path_what_the_control_plane_says() -> None:
    """The command line knows the control plane's patterns by heart; here they are compared."""
    shown = manifest_schema()["properties"]
    assert shown["key"]["pattern"] == f"^{fields.KEY.pattern}$"
    assert set(shown["key"]["not"]["enum"]) == fields.RESERVED_KEYS
    (target,) = [item for item in shown["targetFile"]["anyOf"] if item["type"] == "string"]
    assert target["pattern"] == f"^{fields._PART}(/{fields._PART})*$"
