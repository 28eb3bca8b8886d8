"""A manifest is an experiment, or a list of everything that is wrong with it."""

import os
from pathlib import Path

import pytest

from control_plane.cli.connection import Failure
from control_plane.cli.manifest import Manifest, load, parse
from tests.cli.conftest import MANIFEST

HEAD = "apiVersion: variantd/v1\nkind: Experiment\nkey: k\nname: N\n"


def faults(text: str, base: Path = Path()) -> dict[str, str]:
    """What is wrong, by field."""
    with pytest.raises(Failure) as caught:
        parse(text, base=base, source="test")
    return {fault.field: f"{fault.message}; {fault.remedy}" for fault in caught.value.faults}


def refusal(text: str) -> str:
    """The one sentence about a text that is no manifest at all."""
    with pytest.raises(Failure) as caught:
        parse(text, base=Path(), source="test")
    return caught.value.message


def good(text: str, base: Path = Path()) -> Manifest:
    """The manifest."""
    return parse(text, base=base, source="test")


def test_the_documented_shape_is_read_whole(manifest: Path) -> None:
    """Every field of the documented manifest arrives, contents from beside the file."""
    found = load(str(manifest))
    assert (found.key, found.name, found.target_file) == (
        "soul-tone",
        "Personality A/B test",
        "config/soul.md",
    )
    assert found.participant_ids == ("bot-1", "bot-2")
    assert found.primary is not None
    assert found.primary.fields == {"eventName": "resolved", "kind": "proportion", "goal": "increase"}
    assert [item.fields["eventName"] for item in found.guardrail] == ["escalated"]
    assert [item.fields["goal"] for item in found.guardrail] == ["decrease"]
    assert found.exposure["settleSeconds"] == 0
    assert [(item.name, item.is_control, item.weight) for item in found.variants] == [
        ("Friendly", True, 50),
        ("Concise", False, 50),
    ]
    assert found.variants[1].files == {"config/soul.md": b"be concise\n"}


def test_participants_by_labels() -> None:
    """Participants are a list of ids or a set of labels."""
    assert good(HEAD + "participants: {labels: {role: support}}").participant_labels == {"role": "support"}
    assert good(HEAD + "participants: {ids: [a, b]}").participant_ids == ("a", "b")


def test_content_is_exact_bytes(tmp_path: Path) -> None:
    """Line ends, a missing last newline and bytes that are no text arrive unchanged."""
    (tmp_path / "raw").write_bytes(b"\xff\x00\r\n")
    text = (
        HEAD
        + "targetFile: a.md\nvariants:\n- {name: A, contentFile: raw}\n"
        + '- {name: B, content: "x\\r\\ny"}\n'
        + "- {name: C, files: [{path: a.md, contentBase64: /wA=}, {path: b.md, contentFile: raw}]}\n"
    )
    bodies = [item.files for item in good(text, tmp_path).variants]
    assert bodies[0] == {"a.md": b"\xff\x00\r\n"}
    assert bodies[1] == {"a.md": b"x\r\ny"}
    assert bodies[2] == {"a.md": b"\xff\x00", "b.md": b"\xff\x00\r\n"}


def test_a_metric_is_a_definition_or_the_key_of_a_saved_one(tmp_path: Path) -> None:
    """Every field of a definition is read; a key stands alone."""
    metrics = (
        "metrics: {primary: {key: resolved-rate}, secondary: [{eventName: e, kind: mean, margin: 0.1}]}\n"
    )
    found = good(HEAD + metrics, tmp_path)
    assert found.primary is not None
    assert found.primary.fields == {"key": "resolved-rate"}
    assert found.secondary[0].fields["margin"] == 0.1
    wrong = faults(
        HEAD + "metrics: {primary: {key: resolved-rate, goal: decrease}, guardrail: [{margin: 0.1}]}\n"
    )
    assert set(wrong) == {"metrics.primary", "metrics.guardrail[0]"}


def test_every_fault_is_told_at_once() -> None:
    """A typo does not hide the faults behind it, nor one part of the manifest another's."""
    text = """\
apiVersion: variantd/v2
kind: Experiment
key: Soul Tone
nme: N
type: switch
participants: {labels: {tier: 1}}
metrics: {primary: {eventName: resolved, goal: up, role: primary}}
analysis: {alpha: 2}
metadata: {due: 2026-01-01}
variants:
- {name: A, weight: fifty, content: a, levles: {x: y}}
- {name: A, weight: 50}
rollout: {waves: [10%]}
"""
    found = faults(text)
    assert set(found) == {
        "apiVersion",
        "key",
        "name",
        "nme",
        "type",
        "participants.labels.tier",
        "metrics.primary.goal",
        "metrics.primary.role",
        "analysis.alpha",
        "metadata",
        "variants[0].weight",
        "variants[0].levles",
        "variants[0].content",
        "variants[1]",
        "rollout",
    }
    assert "did you mean name?" in found["nme"]
    assert "switchback" in found["type"]
    assert "put it in quotes" in found["participants.labels.tier"]


@pytest.mark.parametrize(
    "part",
    [
        "rollout: {waves: [10%]}",
        "metrics: {primary: {eventName: e, role: primary}}",
    ],
)
def test_what_the_control_plane_cannot_do_yet_is_refused_as_such(part: str) -> None:
    """A manifest is not applied in part: what would be ignored is refused, naming the field."""
    (message,) = faults(HEAD + part).values()
    assert "this control plane does not have" in message
    assert "yet" in message


@pytest.mark.parametrize("missing", ["apiVersion", "kind", "key", "name"])
def test_what_is_required(missing: str) -> None:
    """A key is required: it is what makes applying twice the same as once."""
    text = "".join(line + "\n" for line in HEAD.splitlines() if not line.startswith(missing))
    assert faults(text) == {missing: "is missing; "}


@pytest.mark.parametrize(
    ("variant", "field"),
    [
        ("{name: A}", "variants[0]"),
        ("{name: A, content: a, contentFile: b}", "variants[0]"),
        ("{name: A, contentFile: nowhere.md}", "variants[0].contentFile"),
        ("{name: A, contentFile: .}", "variants[0].contentFile"),
        ("{name: A, contentFile: big}", "variants[0].contentFile"),
        ("{name: A, contentFile: pipe}", "variants[0].contentFile"),
        ("{name: A, contentFile: /dev/zero}", "variants[0].contentFile"),
        ("{name: A, files: [{path: a.md}]}", "variants[0].files[0]"),
        ("{name: A, files: [{path: a, content: x}, {path: a, content: y}]}", "variants[0].files[1].path"),
        ("{name: A, files: [{path: a, contentBase64: '?'}]}", "variants[0].files[0].contentBase64"),
        ("{name: A, key: 'No Key', content: a}", "variants[0].key"),
        ("{name: A, weight: 101, content: a}", "variants[0].weight"),
        ("{name: A, isControl: 'true', content: a}", "variants[0].isControl"),
        ("just a text", "variants[0]"),
    ],
)
def test_contents_are_whole_or_refused(tmp_path: Path, variant: str, field: str) -> None:
    """A variant has exactly one content that can be read, or the manifest is refused without waiting."""
    (tmp_path / "big").write_bytes(b"x" * (1_048_576 + 1))
    os.mkfifo(tmp_path / "pipe")
    assert set(faults(HEAD + f"targetFile: a.md\nvariants: [{variant}]", tmp_path)) == {field}


def test_the_largest_content_is_accepted(tmp_path: Path) -> None:
    """1 MiB is the limit, not below it."""
    (tmp_path / "big").write_bytes(b"x" * 1_048_576)
    text = HEAD + "targetFile: a.md\nvariants: [{name: A, contentFile: big}]"
    assert len(good(text, tmp_path).variants[0].files["a.md"]) == 1_048_576


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no manifest"),
        ("- a", "no manifest"),
        ("1: a", "no manifest"),
        ("key: [", "not YAML"),
        ("key: a\nkey: b", "'key' is there twice in line 2"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("key: !!python/object:os.system x", "not YAML"),
        ("a: &a [*a]", "cannot be applied"),
        ("key: \x00", "not YAML"),
    ],
)
def test_what_is_no_manifest_says_so(text: str, why: str) -> None:
    """Malformed and foreign files cost one sentence."""
    assert why in refusal(text)


def test_two_variants_need_two_names(manifest: Path) -> None:
    """Variants are told apart by key, else by name."""
    text = MANIFEST.replace("Concise,", "Friendly,")
    assert set(faults(text, manifest.parent)) == {"variants[1]"}
    keyed = text.replace("name: Friendly, weight", "name: Friendly, key: other, weight")
    assert good(keyed, manifest.parent).variants[1].key == "other"
