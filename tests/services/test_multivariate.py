"""A multivariate experiment: variants follow from factors, and all files of one are one deployment."""

from typing import Any

import pytest

from control_plane.domain import requests
from control_plane.services import experiments, lifecycle
from shared.errors import FailedPrecondition, Invalid
from shared.model import digest
from tests.support.builders import World


def factor(key: str, *levels: str, prefix: str = "") -> dict[str, Any]:
    """A factor on `KEY.md`; the content of a level is its key after the prefix."""
    made = [{"key": level, "content": prefix + level} for level in levels]
    return {"key": key, "targetFile": f"{key}.md", "levels": made}


TONE, MODEL = factor("tone", "warm", "terse"), factor("model", "small", "large", "huge")


async def drafted(world: World, *participants: str, **fields: Any) -> Any:
    """A draft of factors."""
    values = {
        "name": "Test",
        "type": "multivariate",
        "factors": [TONE, MODEL],
        "participantIds": list(participants),
        **fields,
    }
    return (await world.do(experiments.create, requests.parse(requests.CreateExperiment, values))).experiment


async def update(world: World, **fields: Any) -> Any:
    """The draft with other fields."""
    request = requests.parse(requests.UpdateExperiment, {"id": "test", **fields})
    return (await world.do(experiments.update, request)).experiment


def contents(experiment: Any) -> dict[str, dict[str, bytes]]:
    """Digest by path by variant key."""
    return {variant.key: dict(variant.digests()) for variant in experiment.variants}


async def test_factors_without_variants_make_every_combination(world: World) -> None:
    """Six of two by three: equal weights that sum to 100, the first the control, files from levels."""
    draft = await drafted(world)
    keys = ["warm-small", "warm-large", "warm-huge", "terse-small", "terse-large", "terse-huge"]
    assert [item.key for item in draft.variants] == keys
    assert [item.weight for item in draft.variants] == [17, 17, 17, 17, 16, 16]
    assert [item.key for item in draft.variants if item.is_control] == ["warm-small"]
    assert draft.target_files == ["model.md", "tone.md"]
    assert contents(draft)["terse-huge"] == {"tone.md": digest(b"terse"), "model.md": digest(b"huge")}
    stored = await world.rows("select factors, design from experiment")
    assert "content" not in stored[0]["factors"] + stored[0]["design"]


async def test_both_files_are_one_deployment(world: World) -> None:
    """A start writes each participant one slot with every file, and claims every file."""
    await world.agent("p", "q")
    started = await world.start(await drafted(world, "p", "q"))
    found = await world.rows(
        "select d.id, f.path from deployment d join deployment_file f on f.deployment_id = d.id order by d.id, f.path"
    )
    assert [row["path"] for row in found] == ["model.md", "tone.md"] * 2
    assert len({bytes(row["id"]) for row in found}) == 2
    assert len(await world.rows("select path from claim")) == 4
    assert started.phase.algorithm == "balanced-1"


async def test_chosen_combinations_stay_chosen(world: World) -> None:
    """Variants with levels of their own cover a part; a changed content reaches those that have the level."""
    chosen = [
        {"name": "A", "isControl": True, "weight": 50, "levels": {"tone": "warm", "model": "small"}},
        {"name": "B", "weight": 50, "levels": {"tone": "terse", "model": "huge"}},
    ]
    await drafted(world, variants=chosen)
    changed = await update(world, factors=[factor("tone", "warm", "terse", prefix="be "), MODEL])
    assert contents(changed) == {
        "a": {"tone.md": digest(b"be warm"), "model.md": digest(b"small")},
        "b": {"tone.md": digest(b"be terse"), "model.md": digest(b"huge")},
    }
    assert [item.weight for item in changed.variants] == [50, 50]


async def test_generated_combinations_follow_the_factors(world: World) -> None:
    """A level more adds combinations, one less takes them away; who stays keeps its id."""
    draft = await drafted(world)
    ids = {item.key: item.id for item in draft.variants}
    fewer = await update(world, factors=[TONE, factor("model", "large", "tiny")])
    assert sorted(contents(fewer)) == ["terse-large", "terse-tiny", "warm-large", "warm-tiny"]
    assert {item.weight for item in fewer.variants} == {25}
    assert [item.key for item in fewer.variants if item.is_control] == ["warm-large"]
    assert {item.id for item in fewer.variants if item.key in ids} == {ids["warm-large"], ids["terse-large"]}
    renamed = await update(world, factors=[factor("tone", "warm", "terse", prefix="x"), fewer_model()])
    assert contents(renamed)["warm-tiny"]["tone.md"] == digest(b"xwarm")


def fewer_model() -> dict[str, Any]:
    """The factor as the test before left it."""
    return factor("model", "large", "tiny")


async def test_a_start_names_what_is_missing(world: World) -> None:
    """Levels that are missing or unknown are faults of their variants; so are no factors at all."""
    await world.agent("p")
    chosen = [
        {"name": "A", "isControl": True, "weight": 50, "levels": {"tone": "warm"}},
        {"name": "B", "weight": 50, "levels": {"tone": "loud", "model": "huge"}},
    ]
    await drafted(world, "p", variants=chosen)
    with pytest.raises(FailedPrecondition) as refused:
        await world.do(lifecycle.start, requests.ById(id="test"))
    assert [fault.field for fault in refused.value.faults] == ["variants.a.levels", "variants.b.levels"]
    await update(world, factors=None)
    with pytest.raises(FailedPrecondition, match="there are none"):
        await world.do(lifecycle.start, requests.ById(id="test"))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"targetFile": "a.md"}, "targetFile"),
        ({"type": "ab"}, "factors"),
        ({"variants": [{"name": "A", "content": "a"}]}, "variants.0.content"),
        ({"variants": [{"name": "A", "files": [{"path": "a.md", "content": "a"}]}]}, "variants.0.files"),
        (
            {"type": "ab", "factors": [], "variants": [{"name": "A", "levels": {"x": "y"}}]},
            "variants.0.levels",
        ),
        ({"factors": [TONE, TONE]}, "factors"),
        ({"factors": [TONE, {**MODEL, "targetFile": "tone.md"}]}, "factors"),
        ({"factors": [factor("tone", "warm", "warm")]}, "factors.0"),
        ({"factors": [factor("tone")]}, "factors.0.levels"),
        ({"factors": [{**TONE, "targetFile": "../x"}]}, "factors.0.targetFile"),
    ],
)
async def test_what_does_not_fit_names_its_field(world: World, fields: dict[str, Any], field: str) -> None:
    """Contents come from factors and only from there; factors and levels are apart."""
    with pytest.raises(Invalid) as refused:
        await drafted(world, **fields)
    assert refused.value.faults[0].field == field
    assert await world.rows("select id from experiment") == []


async def test_an_update_of_a_variant_sets_levels(world: World) -> None:
    """Its files follow; its content cannot be set."""
    await drafted(world)
    values = {"id": "test", "variantId": "warm-small", "levels": {"tone": "terse", "model": "small"}}
    request = requests.parse(requests.UpdateVariant, values)
    _, changed = await world.do(experiments.update_variant, request)
    assert changed.digests()["tone.md"] == digest(b"terse")
    with pytest.raises(Invalid, match="follow from its levels"):
        values = {"id": "test", "variantId": "warm-small", "content": "x"}
        await world.do(experiments.update_variant, requests.parse(requests.UpdateVariant, values))
