"""diff: what apply would change, shown and not done."""

from pathlib import Path

from hypothesis import given, settings

from control_plane.cli.comparison import make_plan, variant_as_wanted, variant_of
from control_plane.cli.manifest import parse
from control_plane.cli.written import document, dump, manifest_of
from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from tests.cli.conftest import Run
from tests.cli.test_written import MULTIVARIATE, experiments
from tests.support.plane import Plane


def change(manifest: Path, before: str, after: str) -> None:
    """The manifest says something else."""
    text = manifest.read_text()
    assert before in text
    manifest.write_text(text.replace(before, after))


async def test_what_is_the_same_is_exit_code_0(running: Run, manifest: Path) -> None:
    """Nothing is shown where nothing differs, also of an experiment that has started."""
    said = await running("diff", "-f", str(manifest))
    assert (said.code, said.out, said.err) == (0, "", "")
    shown = await running("diff", "-f", str(manifest), "--json")
    assert (shown.code, shown.json["differs"]) == (0, False)
    (only,) = shown.json["manifests"]
    assert (only["file"], only["key"], only["changes"]) == (str(manifest), "soul-tone", [])


async def test_what_differs_is_shown_and_exit_code_3(plane: Plane, running: Run, manifest: Path) -> None:
    """Contents line by line, fields by name, and nothing that is the same on both sides; the server is asked only."""
    before = (await plane.rest("GET", "/v1/experiments/soul-tone")).body
    (manifest.parent / "concise.md").write_text("be concise\nand kind\n")
    change(manifest, "weight: 50, contentFile: friendly.md", "weight: 40, contentFile: friendly.md")
    said = await running("diff", "-f", str(manifest))
    assert (said.code, said.err) == (3, "")
    lines = said.out.splitlines()
    assert lines[:2] == ["--- soul-tone (on the server)", f"+++ {manifest}"]
    changed = [line for line in lines[2:] if line[:1] in "+-"]
    assert changed == ["-  weight: 50", "+  weight: 40", "+    and kind"]
    shown = await running("diff", "-f", str(manifest), "--json")
    assert (shown.code, shown.json["differs"]) == (3, True)
    fields = [item["field"] for item in shown.json["manifests"][0]["changes"]]
    assert fields == ["variants.friendly.weight", "variants.concise.files[config/soul.md]"]
    assert (await plane.rest("GET", "/v1/experiments/soul-tone")).body == before


async def test_variants_that_come_and_go(ctl: Run, manifest: Path) -> None:
    """A variant on one side only is there whole, the others are matched, whatever their order."""
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    text = manifest.read_text()
    head, friendly, concise = text.rpartition("variants:\n")[0], *text.splitlines()[-2:]
    manifest.write_text(f"{head}variants:\n{concise}\n{friendly}\n")
    assert (await ctl("diff", "-f", str(manifest))).code == 0
    manifest.write_text(f"{head}variants:\n{friendly}\n  - {{name: Rude, weight: 50, content: be rude}}\n")
    said = await ctl("diff", "-f", str(manifest))
    changed = [line for line in said.out.splitlines()[2:] if line[:1] in "+-"]
    assert changed == [
        "-- key: concise",
        "-  name: Concise",
        "+- name: Rude",
        "-  content: |",
        "-    be concise",
        "+  content: be rude",
    ]


async def test_several_manifests(ctl: Run, manifest: Path) -> None:
    """Each is compared with its own experiment; one that is not there differs in everything."""
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    other = manifest.parent / "other.yaml"
    other.write_text(MULTIVARIATE)
    said = await ctl("diff", "-f", str(manifest), "-f", str(other))
    assert (said.code, said.out.splitlines()[:2]) == (3, ["--- /dev/null", f"+++ {other}"])
    assert "+key: tone-and-model\n" in said.out
    assert "\n-" not in said.out
    assert "there is no experiment 'tone-and-model' yet" in said.err
    shown = (await ctl("diff", "-f", str(manifest), "-f", str(other), "--json")).json["manifests"]
    assert [bool(item["changes"]) for item in shown] == [False, True]
    assert [item["experimentId"] is None for item in shown] == [False, True]
    assert (await ctl("apply", "-f", str(other))).code == 0
    assert (await ctl("diff", "-f", str(manifest), "-f", str(other))).code == 0
    change(other, "content: Be warm.", "content: Be very warm.")
    said = await ctl("diff", "-f", str(manifest), "-f", str(other))
    changed = [line for line in said.out.splitlines()[2:] if line[:1] in "+-"]
    assert changed == ["-    content: Be warm.", "+    content: Be very warm."]


async def test_a_key_that_may_not_read_contents(ctl: Run, plane: Plane, manifest: Path) -> None:
    """Contents are compared by digest, and neither side's is shown."""
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    key = (await plane.made("/v1/api-keys", {"name": "reader", "scopes": ["experiment:read"]}))["secret"]
    (manifest.parent / "key").write_text(key)
    words = ("diff", "-f", str(manifest), "--api-key-file", str(manifest.parent / "key"))
    same = await ctl(*words)
    assert (same.code, same.out) == (0, ""), same.err
    (manifest.parent / "concise.md").write_text("be very concise\n")
    said = await ctl(*words)
    assert said.code == 3, said.err
    changed = [line[:16] for line in said.out.splitlines()[2:] if line[:1] in "+-"]
    assert changed == ["-  digest: sha25", "+  digest: sha25"]
    assert "be " not in said.out


async def test_what_cannot_be_found_out_is_exit_code_1(ctl: Run, manifest: Path) -> None:
    """A manifest that is none, among several, is an error and nothing is compared."""
    (manifest.parent / "bad.yaml").write_text("key: [")
    said = await ctl("diff", "-f", str(manifest), "-f", str(manifest.parent / "bad.yaml"))
    assert (said.code, said.out) == (1, "")
    assert "bad.yaml is not YAML" in said.err


@settings(max_examples=60)
@given(experiments())
def test_both_sides_are_written_alike(present: pb.Experiment) -> None:
    """Where nothing differs, the two texts are the same: no line of a difference is about how it is written."""
    plan = make_plan(parse(manifest_of(present), base=Path(), source="test"), present)

    def place(_: object, name: str) -> dict[str, str]:
        return {"digest": name}

    before = [(item.key, variant_of(item)) for item in present.variants]
    after = [(item.key, variant_as_wanted(item)) for item in plan.manifest.variants]
    assert dump(document("k", plan.before, before, place)) == dump(document("k", plan.after, after, place))
