"""Contents, levels and rules of a manifest as the messages and the resources that have them."""

from typing import Any

from google.protobuf.json_format import ParseDict

from control_plane.cli import show
from control_plane.cli.manifest import FactorManifest, LevelManifest, Manifest, VariantManifest
from shared.model import digest, show_digest
from shared.pb.variantd.operator.v1 import operator_pb2 as pb


def factor(factor: FactorManifest) -> dict[str, Any]:
    """A factor of a manifest, to be compared."""
    levels = [
        {"key": level.key, "name": level.name, "digest": show_digest(digest(level.body))}
        for level in factor.levels
    ]
    return {"key": factor.key, "targetFile": factor.target_file, "levels": levels}


def factor_of(present: pb.Factor) -> dict[str, Any]:
    """A factor there is, to be compared."""
    levels = [{"key": level.key, "name": level.name, "digest": level.digest} for level in present.levels]
    return {"key": present.key, "targetFile": present.target_file, "levels": levels}


def factors(manifest: Manifest) -> list[pb.FactorSpec]:
    """The factors of a manifest, to be sent."""
    return [
        pb.FactorSpec(
            key=factor.key,
            target_file=factor.target_file,
            levels=[_level(level) for level in factor.levels],
        )
        for factor in manifest.factors
    ]


def _level(level: LevelManifest) -> pb.LevelSpec:
    spec = file_spec("", level.body)
    content = spec.content if spec.HasField("content") else None
    encoded = spec.content_base64 if spec.HasField("content_base64") else None
    return pb.LevelSpec(key=level.key, name=level.name, content=content, content_base64=encoded)


def rules(variant: VariantManifest) -> pb.TargetingRules:
    """For whom a variant of a manifest is, to be sent."""
    return pb.TargetingRules(
        labels=[
            pb.LabelRule(key=rule.key, operator=rule.operator, value=rule.value) for rule in variant.rules
        ]
    )


def files(variant: VariantManifest) -> list[pb.FileSpec]:
    """The files of a variant of a manifest, to be sent."""
    return [file_spec(path, body) for path, body in sorted(variant.files.items())]


def file_spec(path: str, body: bytes) -> pb.FileSpec:
    """Content as text where it is UTF-8, else as bytes."""
    try:
        return pb.FileSpec(path=path, content=body.decode())
    except UnicodeDecodeError:
        return pb.FileSpec(path=path, content_base64=body)


def switchback(manifest: Manifest) -> pb.Switchback | None:
    """The blocks of a manifest, to be sent; None where there are none."""
    return pb.Switchback(**manifest.switchback) if manifest.switchback else None


def exposure(manifest: Manifest) -> pb.ExposureCriteria:
    """Which events of a manifest count, to be sent."""
    return ParseDict(manifest.exposure, pb.ExposureCriteria())


def analysis(manifest: Manifest) -> pb.Analysis:
    """How a manifest is decided, to be sent."""
    return ParseDict(manifest.analysis, pb.Analysis())


def analysis_of(present: pb.Experiment) -> dict[str, Any]:
    """How an experiment is decided, as a manifest has it."""
    keys = {variant.id: variant.key for variant in present.variants}
    shown = show.to_json(present.analysis)
    variants = sorted(keys[item] for item in shown["excludedVariantIds"])
    participants = sorted(shown["excludedParticipantIds"])
    return shown | {"excludedVariantIds": variants, "excludedParticipantIds": participants}


def intake_of(present: pb.Experiment) -> dict[str, Any]:
    """Who of the participants takes part and when it begins and ends, as a manifest has it."""
    shown = show.to_json(present)
    schedule = shown["schedule"]
    return {
        "trafficAllocation": present.traffic_allocation,
        "targetingRules": {"labels": [show.to_json(rule) for rule in present.targeting_rules.labels]},
        "allowHostLabels": present.allow_host_labels,
        "strata": list(present.strata),
        "holdoutId": present.holdout_id or None,
        "requirePreflight": present.require_preflight,
        "schedule": schedule if schedule and any(schedule.values()) else None,
    }
