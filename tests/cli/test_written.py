"""An experiment as its manifest: what `experiments get -o yaml` writes, `apply` finds nothing to do about."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.cli.comparison import make_plan
from control_plane.cli.manifest import parse
from control_plane.cli.session import Failure
from control_plane.cli.written import manifest_of
from shared.model import digest, show_digest
from shared.pb.variantd.operator.v1 import operator_pb2 as pb
from tests.cli.conftest import Run
from tests.support.plane import Plane

VARIANTCTL = (sys.executable, "-c", "from control_plane.cli import main; main()")

# -- any experiment

TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r\t \x00\x85\u2028\u2029\ufeff:#-|>'\"{}"),
    max_size=40,
)
SOME = st.one_of(TEXT.filter(bool), st.sampled_from(["yes", "null", "1.0", "2027-01-31", "- a", "&a", "~"]))
BODY = st.one_of(TEXT.map(str.encode), st.binary(max_size=20))
KEYS = st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True)
PATHS = st.sampled_from(["config/soul.md", "SOUL.md", "a/b/c.txt", "ünï/naïve file.md"])
RULES = st.builds(
    lambda key, operator, value: pb.LabelRule(key=key, operator=operator, value=value),
    SOME,
    st.sampled_from(["equals", "exists", "regex"]),
    st.none() | TEXT,
)
FREE = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | TEXT | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)
POSITIVE = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
DEFINED = st.builds(
    pb.Metric,
    event_name=SOME.map(lambda name: name[:128]),
    goal=st.sampled_from([pb.GOAL_INCREASE, pb.GOAL_DECREASE]),
    kind=st.sampled_from(["proportion", "mean", "count", "ratio"]),
    of=st.none() | st.sampled_from(["impressions", "subjects", "participants"]),
    denominator_event_name=st.none() | SOME,
    window=st.none() | st.sampled_from(["PT72H", "P3D"]),
    margin=st.none() | POSITIVE,
    minimum_detectable_effect=st.none() | POSITIVE,
    funnel_id=st.none() | SOME,
)


def saved(defined: pb.Metric, key: str) -> pb.Metric:
    """The metric as one that is saved under this key."""
    defined.id, defined.key, defined.name = f"m-{key}", key, key.title()
    return defined


METRICS = DEFINED | st.builds(saved, DEFINED, KEYS)
ANALYSES = st.builds(
    pb.Analysis,
    alpha=st.floats(0.001, 0.5),
    decision=st.none() | st.sampled_from(["path_test", "sequence"]),
    horizon_days=st.none() | st.integers(1, 366),
    tuning=st.none() | POSITIVE,
    variance=st.sampled_from(["jackknife", "delta", "cuped"]),
    history_days=st.integers(1, 366),
    winsorize_at=st.none() | st.floats(50, 99.9),
    secondary_correction=st.sampled_from(["holm", "benjamini_hochberg"]),
    prior=st.builds(pb.Prior, a=POSITIVE, b=POSITIVE),
    power=st.floats(0.5, 0.999),
    minimum_detectable_effect=st.floats(0, 10, exclude_min=True),
    cluster_by=st.sampled_from(["participant", "host", "label:team"]),
    excluded_participant_ids=st.lists(SOME, max_size=2, unique=True),
)
MOMENTS = st.integers(0, 4_000_000_000)


def file_of(path: str, body: bytes) -> pb.VariantFile:
    """A file as the control plane shows it."""
    file = pb.VariantFile(path=path, digest=show_digest(digest(body)), size=len(body))
    try:
        file.content = body.decode()
    except UnicodeDecodeError:
        file.content_base64 = body
    return file


def level_of(key: str, name: str, body: bytes) -> pb.Level:
    """A level as the control plane shows it."""
    file = file_of("x", body)
    level = pb.Level(key=key, name=name, digest=file.digest, size=file.size)
    if file.HasField("content"):
        level.content = file.content
    else:
        level.content_base64 = file.content_base64
    return level


@st.composite
def experiments(draw: st.DrawFn) -> pb.Experiment:
    """Experiments of every type, as the control plane shows them."""
    kind = draw(st.sampled_from(["ab", "multivariate", "personalization", "switchback"]))
    made = pb.Experiment(
        key=draw(KEYS),
        name=draw(SOME),
        description=draw(TEXT),
        type=kind,
        status=draw(st.sampled_from([pb.EXPERIMENT_STATUS_DRAFT, pb.EXPERIMENT_STATUS_RUNNING])),
        labels=draw(st.dictionaries(SOME, TEXT, max_size=2)),
        traffic_allocation=draw(st.integers(0, 100)),
        exposure_criteria=pb.ExposureCriteria(
            settle_seconds=draw(st.integers(0, 86_400)),
            requires=draw(st.sampled_from(["written", "loaded"])),
            multiple_variants=draw(st.sampled_from(["exclude", "first_seen"])),
        ),
        analysis=draw(ANALYSES),
        metrics=pb.Metrics(
            primary=draw(st.none() | METRICS),
            secondary=draw(st.lists(METRICS, max_size=2)),
            guardrail=draw(st.lists(METRICS, max_size=2)),
        ),
        targeting_rules=pb.TargetingRules(labels=draw(st.lists(RULES, max_size=2))),
        allow_host_labels=draw(st.booleans()),
        strata=draw(st.lists(SOME, max_size=2)),
        holdout_id=draw(st.none() | SOME),
        require_preflight=draw(st.booleans()),
    )
    if draw(st.booleans()):
        made.participants.ids.extend(draw(st.lists(SOME, max_size=3, unique=True)))
    else:
        made.participants.labels.update(draw(st.dictionaries(SOME, TEXT, max_size=2)))
    if draw(st.booleans()):
        made.metadata.update(draw(FREE))
    if draw(st.booleans()):
        made.schedule.start_at.FromMilliseconds(draw(MOMENTS) * 1000)
    if draw(st.booleans()):
        made.schedule.end_at.FromMilliseconds(draw(MOMENTS) * 1000 + 500)
    if kind == "switchback":
        made.switchback.block_duration, made.switchback.blocks = "PT12H", draw(st.integers(2, 1000))
        made.switchback.washout = draw(st.sampled_from(["PT0S", "PT30M"]))
    if kind == "multivariate":
        for key in draw(st.lists(KEYS, max_size=3, unique=True)):
            levels = draw(
                st.lists(st.tuples(KEYS, SOME, BODY), min_size=1, max_size=3, unique_by=lambda i: i[0])
            )
            made.factors.add(key=key, target_file=draw(PATHS), levels=[level_of(*level) for level in levels])
    elif draw(st.booleans()):
        made.target_file = draw(PATHS)
    for key in draw(st.lists(KEYS, max_size=3, unique=True)):
        variant = made.variants.add(
            key=key,
            name=draw(SOME),
            description=draw(TEXT),
            is_control=draw(st.booleans()),
            weight=draw(st.integers(0, 100)),
            targeting_rules=pb.TargetingRules(labels=draw(st.lists(RULES, max_size=2))),
        )
        if draw(st.booleans()):
            variant.id = f"v-{key}"
            made.analysis.excluded_variant_ids.append(variant.id)
        if draw(st.booleans()):
            variant.config.update(draw(FREE))
        if draw(st.booleans()):
            variant.metadata.update(draw(FREE))
        if made.factors:
            variant.levels.update({factor.key: factor.levels[0].key for factor in made.factors})
            continue
        target = [made.target_file] if made.target_file and draw(st.booleans()) else None
        paths = target or draw(st.lists(PATHS, min_size=1, max_size=3, unique=True))
        variant.files.extend(file_of(path, draw(BODY)) for path in sorted(paths))
    return made


@settings(max_examples=150)
@given(experiments(), st.booleans())
def test_a_manifest_that_was_written_is_the_experiment(
    present: pb.Experiment, ascii_only: bool
) -> None:  # Hypothesis gives it
    """Whatever texts, bytes and values an experiment has, its manifest reads back without a change to make."""
    text = manifest_of(present, ascii_only=ascii_only)
    assert not ascii_only or text.isascii()
    plan = make_plan(parse(text, base=Path(), source="test"), present)
    assert (plan.action, [change.line() for change in plan.changes]) == ("none", [])


@settings(max_examples=25)
@given(experiments())
def test_contents_beside_the_manifest(
    tmp_path_factory: pytest.TempPathFactory, present: pb.Experiment
) -> None:
    """Every content has a file of its own, byte for byte, and writing them twice is the same as once."""
    folder = tmp_path_factory.mktemp("written")
    text = manifest_of(present, folder=folder / "contents")
    assert manifest_of(present, folder=folder / "contents") == text
    found = yaml.safe_load(text)
    variants = found.get("variants", [])
    items = [*variants, *(level for factor in found.get("factors", ()) for level in factor["levels"])]
    items += [file for variant in variants for file in variant.get("files", ())]
    assert not any("contentBase64" in item for item in items)
    assert make_plan(parse(text, base=folder, source="test"), present).changes == ()


# -- real ones

AB = """\
apiVersion: variantd/v1
kind: Experiment
key: all-of-it
name: "All: of it # really"
description: |
  Two lines,
    one of them indented.
labels: {team: "yes", empty: ""}
metadata: {owner: {name: Ada, since: "2027-01-31"}, ratio: 0.25, big: 12345678901, none: null, list: [1, two]}
targetFile: config/soul.md
participants: [bot-2, bot-1]
metrics:
  primary: {eventName: resolved}
  secondary: [{eventName: "thumbs up", goal: increase, kind: mean, window: PT72H, minimumDetectableEffect: 0.2}]
  guardrail: [{eventName: escalated, goal: decrease}]
exposureCriteria: {settleSeconds: 0}
analysis: {alpha: 0.01, decision: sequence, prior: {a: 2.0, b: 3.5}, excludedVariantIds: [raw]}
trafficAllocation: 80
targetingRules: {labels: [{key: tier, operator: regex, value: "^(gold|tin)$"}, {key: gone, operator: not_exists}]}
allowHostLabels: true
strata: [tier]
schedule: {endAt: "2099-01-31T13:00:00+01:00"}
variants:
- {key: control, name: Friendly, isControl: true, weight: 50, content: "be friendly\\r\\n", config: {model: {name: x}}}
- {name: Concise, weight: 30, description: Short., content: "  be\\n\\nconcise", metadata: {a: 1}}
- name: Raw
  weight: 20
  files: [{path: config/soul.md, contentBase64: /wA=}, {path: b.md, content: ""}]
"""
BY_LABELS = """\
apiVersion: variantd/v1
kind: Experiment
key: by-labels
name: By labels
participants: {labels: {role: support}}
"""
PERSONALIZATION = """\
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
  targetingRules: {labels: [{key: tier, operator: equals, value: ""}, {key: gone, operator: not_exists}]}
- {name: Rest, content: Be brief.}
"""
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
  levels: [{key: warm, name: Very warm, content: Be warm.}, {key: terse, content: "Be terse.\\n"}]
- key: model
  targetFile: config/model.txt
  levels: [{key: small, content: small}, {key: raw, contentBase64: /wA=}]
"""
CHOSEN = """\
variants:
- {key: mix, name: Mix, isControl: true, weight: 50, levels: {tone: terse, model: raw}}
- {key: other, name: Other, weight: 50, levels: {tone: warm, model: raw}}
"""
SWITCHBACK = """\
apiVersion: variantd/v1
kind: Experiment
key: turns
name: Turns
type: switchback
targetFile: config/soul.md
participants: [bot-1, bot-2]
switchback: {blockDuration: PT12H, blocks: 14, washout: PT30M}
variants:
- {name: Friendly, isControl: true, content: Be friendly.}
- {name: Concise, content: Be brief.}
"""


@pytest.mark.parametrize(
    "text",
    [AB, BY_LABELS, PERSONALIZATION, MULTIVARIATE, MULTIVARIATE + CHOSEN, SWITCHBACK],
    ids=["ab", "labels", "personalization", "generated", "chosen", "switchback"],
)
async def test_there_and_back(ctl: Run, tmp_path: Path, text: str) -> None:
    """Of every type: applied, written, applied again is nothing to do, and a fresh one of it is the same."""
    (tmp_path / "first.yaml").write_text(text)
    made = await ctl("apply", "-f", str(tmp_path / "first.yaml"), "--json")
    assert made.code == 0, made.err
    key = made.json["experiment"]["key"]
    for more in ([], ["--contents", str(tmp_path / "contents")]):
        said = await ctl("experiments", "get", key, "-o", "yaml", *more)
        assert (said.code, said.err) == (0, "")
        (tmp_path / "again.yaml").write_text(said.out)
        again = (await ctl("apply", "-f", str(tmp_path / "again.yaml"), "--json")).json
        assert (again["action"], again["changes"]) == ("none", [])
    assert (await ctl("experiments", "delete", key)).code == 0
    assert (await ctl("apply", "-f", str(tmp_path / "again.yaml"), "--json")).json["action"] == "create"
    second = await ctl("experiments", "get", key, "-o", "yaml", "--contents", str(tmp_path / "contents"))
    assert second.out == said.out


async def test_a_started_experiment_is_written_as_it_is(running: Run, tmp_path: Path) -> None:
    """What nobody may change any more is no change either; the manifest reads as a person would write it."""
    said = await running("experiments", "get", "soul-tone", "-o", "yaml")
    assert said.out.endswith(
        "- key: concise\n  name: Concise\n  weight: 50\n  content: |\n    be concise\n"
    ), said.out
    (tmp_path / "again.yaml").write_text(said.out)
    assert (await running("apply", "-f", str(tmp_path / "again.yaml"))).out == "soul-tone: nothing to do\n"


async def test_a_saved_metric_is_written_by_its_key(ctl: Run, plane: Plane, manifest: Path) -> None:
    """What the metric says is said once, where it is saved; applying the manifest changes nothing."""
    await plane.made("/v1/metrics", {"name": "Handled", "eventName": "resolved", "kind": "mean"})
    manifest.write_text(
        manifest.read_text().replace("{eventName: resolved, goal: increase}", "{key: handled}")
    )
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    said = await ctl("experiments", "get", "soul-tone", "-o", "yaml")
    assert "  primary:\n    key: handled\n" in said.out
    manifest.write_text(said.out)
    assert (await ctl("apply", "-f", str(manifest))).out == "soul-tone: nothing to do\n"


async def test_a_holdout_is_written_by_its_key(ctl: Run, plane: Plane, manifest: Path) -> None:
    """Key and id name the same holdout; a manifest that no longer names it takes it away again."""
    made = await plane.made("/v1/holdouts", {"name": "Left alone", "share": 5})
    plain = manifest.read_text()
    manifest.write_text(plain + f"holdoutId: {made['id']}\n")
    assert (await ctl("apply", "-f", str(manifest), "--json")).json["experiment"]["holdoutId"] == made["id"]
    assert (await ctl("apply", "-f", str(manifest))).out == "soul-tone: nothing to do\n"
    said = await ctl("experiments", "get", "soul-tone", "-o", "yaml")
    assert "\nholdoutId: left-alone\n" in said.out
    manifest.write_text(said.out)
    assert (await ctl("apply", "-f", str(manifest))).out == "soul-tone: nothing to do\n"
    manifest.write_text(plain)
    gone = await ctl("apply", "-f", str(manifest), "--json")
    changes = [(item["field"], item["before"], item["after"]) for item in gone.json["changes"]]
    assert changes == [("holdoutId", "left-alone", None)]
    assert gone.json["experiment"]["holdoutId"] is None
    manifest.write_text(plain + "holdoutId: nowhere\n")
    refused = await ctl("apply", "-f", str(manifest))
    assert (refused.code, "HOLDOUT_NOT_FOUND" in refused.err) == (1, True)


async def test_what_is_written_is_the_same_under_other_defaults(
    ctl: Run, plane: Plane, manifest: Path
) -> None:
    """Settle and level are always in it: another project's defaults make no other experiment of it."""
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    said = await ctl("experiments", "get", "soul-tone", "-o", "yaml")
    assert "exposureCriteria:\n  settleSeconds: 0\nanalysis:\n  alpha: 0.05\n" in said.out
    manifest.write_text(said.out)
    assert (await ctl("experiments", "delete", "soul-tone")).code == 0
    await plane.rest("PATCH", "/v1/settings", {"defaults": {"settleSeconds": 5, "alpha": 0.2}})
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    assert (await ctl("experiments", "get", "soul-tone", "-o", "yaml")).out == said.out


# -- what is refused


async def test_a_key_that_may_not_read_contents(
    ctl: Run, plane: Plane, manifest: Path, tmp_path: Path
) -> None:
    """A manifest without its contents would be another experiment: it is refused, and nothing is written."""
    assert (await ctl("apply", "-f", str(manifest))).code == 0
    key = (await plane.made("/v1/api-keys", {"name": "reader", "scopes": ["experiment:read"]}))["secret"]
    (tmp_path / "key").write_text(key)
    folder = tmp_path / "contents"
    words = ("experiments", "get", "soul-tone", "-o", "yaml", "--contents", str(folder))
    said = await ctl(*words, "--api-key-file", str(tmp_path / "key"))
    assert (said.code, said.out) == (1, "")
    assert "content:read" in said.err
    assert not folder.exists()


async def test_a_file_that_is_there_keeps_what_it_holds(running: Run, tmp_path: Path) -> None:
    """What somebody wrote is not overwritten, and nothing else is written then."""
    folder = tmp_path / "contents"
    mine = folder / "friendly" / "config" / "soul.md"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    said = await running("experiments", "get", "soul-tone", "-o", "yaml", "--contents", str(folder))
    assert (said.code, said.out) == (1, "")
    assert f"{mine} is there already and holds something else" in said.err
    assert [path for path in folder.rglob("*") if path.is_file()] == [mine]


@pytest.mark.parametrize("path", ["../../etc/x", "/etc/x", "a/../../x", "a//x", "./x"])
def test_a_path_that_leads_elsewhere_is_not_written(tmp_path: Path, path: str) -> None:
    """Whatever a control plane says, files are written below the folder that was named."""
    present = pb.Experiment(key="k", name="N", type="ab")
    present.variants.add(key="a", name="A", files=[file_of(path, b"x")])
    with pytest.raises(Failure, match="is no place for a file"):
        manifest_of(present, folder=tmp_path / "contents")
    assert list(tmp_path.iterdir()) == []


def test_a_variant_without_content_is_no_manifest() -> None:
    """A draft may lack contents; a manifest cannot say that, and it is told of which variant."""
    present = pb.Experiment(key="k", name="N", type="ab")
    present.variants.add(key="bare", name="Bare")
    with pytest.raises(Failure, match="variant bare has no content yet"):
        manifest_of(present)


async def test_contents_go_with_yaml(running: Run, tmp_path: Path) -> None:
    """--contents without -o yaml would silently write nothing: it is a usage error."""
    said = await running("experiments", "get", "soul-tone", "--contents", str(tmp_path / "x"))
    assert said.code == 2


async def test_a_locale_without_the_characters(ctl: Run, plane: Plane, tmp_path: Path) -> None:
    """Where standard output has no UTF-8, contents are escaped, never replaced by question marks."""
    text = AB.replace("be friendly", "seid fröhlich 😀")
    (tmp_path / "first.yaml").write_text(text)
    assert (await ctl("apply", "-f", str(tmp_path / "first.yaml"))).code == 0
    done = await asyncio.to_thread(
        subprocess.run,
        [*VARIANTCTL, "experiments", "get", "all-of-it", "-o", "yaml"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.isascii()
    (tmp_path / "again.yaml").write_bytes(done.stdout)
    assert (await ctl("apply", "-f", str(tmp_path / "again.yaml"), "--json")).json["action"] == "none"
