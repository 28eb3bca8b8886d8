"""What differs between a manifest and the experiment there is.

Hides how each is put into the one shape in which they are compared: defaults filled in, contents as digests,
variants matched by key or name.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.json_format import ParseDict

from control_plane.cli import document as shape
from control_plane.cli import show, specs
from control_plane.cli.manifest import Manifest, Metric, VariantManifest
from control_plane.cli.session import Exit, Failure, Session
from shared.errors import Fault
from shared.model import digest, show_digest
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

ALWAYS = frozenset({"name", "description", "labels", "metadata"})
"""What may change after the start, of an experiment and of a variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A variant of the manifest and the one there is; None where it is to be added or removed."""

    wanted: VariantManifest | None
    present: pb.Variant | None

    @property
    def label(self) -> str:
        """What to call it."""
        return self.present.key if self.present else self.wanted.label if self.wanted else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One field that will be different; `before` None: it is added, `after` None: it is removed.

    `variant` is None for a field of the experiment itself; `name` is empty for a variant as a whole.
    """

    variant: Pair | None = None
    name: str
    before: Any
    after: Any

    @property
    def field(self) -> str:
        """Where in the manifest."""
        if self.variant is None:
            return self.name
        return f"variants.{self.variant.label}" + (f".{self.name}" if self.name else "")

    @property
    def always(self) -> bool:
        """Allowed in every state."""
        return self.name in ALWAYS

    @property
    def said(self) -> str:
        """The change in words."""
        if self.before is None:
            return _brief(self.after)
        if self.after is None:
            return "removed"
        return _of_many(self.before, self.after) or f"{_brief(self.before)} → {_brief(self.after)}"

    def line(self) -> str:
        """The change for people."""
        sign = "+" if self.before is None else "~" if self.after is not None else "-"
        return f"  {sign} {self.field}: {self.said}"


def _brief(value: Any) -> str:
    if isinstance(value, str):
        return value[:19] + "…" if value.startswith("sha256:") else value
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_brief(item)}" for name, item in value.items() if not _empty(item))
    if isinstance(value, list) and len(value) > show.NAMED:
        return show.named(map(_brief, value))
    return json.dumps(value, ensure_ascii=False)


def _of_many(before: Any, after: Any) -> str | None:
    """Who comes and who goes, of participants by id that are too many to be listed twice."""
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return None
    old, new = before.get("ids") or [], after.get("ids") or []
    if not old or not new or max(len(old), len(new)) <= show.NAMED:
        return None
    came, went = set(new) - set(old), set(old) - set(new)
    words = [f"ids {len(old)} → {len(new)}"]
    words += [f"with {show.named(came)}"] if came else []
    words += [f"without {show.named(went)}"] if went else []
    return ", ".join(words)


def _empty(value: Any) -> bool:
    """It says nothing, on any level."""
    if isinstance(value, Mapping):
        return all(_empty(item) for item in value.values())
    return value in ("", None, [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What apply will do; `present` is None where the experiment is to be created.

    `manifest` says what its file leaves to the experiment there is as that has it; `before` and `after` are the
    fields of both sides that were compared, variants apart, `before` empty where there is no experiment.
    """

    manifest: Manifest
    present: pb.Experiment | None
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    pairs: tuple[Pair, ...]
    changes: tuple[Change, ...]

    @property
    def action(self) -> str:
        """`create`, `update` or `none`."""
        return "create" if self.present is None else "update" if self.changes else "none"

    def to_json(self) -> list[dict[str, Any]]:
        """The changes for a program."""
        return [{"field": item.field, "before": item.before, "after": item.after} for item in self.changes]


def plan_of(session: Session, manifest: Manifest) -> Plan:
    """What differs from the experiment of the manifest's key. Raises Failure, also for a holdout that is not there."""
    present = _find(session, manifest.key)
    named = {manifest.intake["holdoutId"], present.holdout_id if present else None} - {None, ""}
    return make_plan(manifest, present, {name: holdout_key(session, name) for name in named})


def holdout_key(session: Session, name: str) -> str:
    """The key of the holdout with this id or key."""
    return session.call(session.holdouts.GetHoldout, pb.GetHoldoutRequest(id=name)).key


def _find(session: Session, key: str) -> pb.Experiment | None:
    """The experiment of this key, or None."""
    try:
        return session.experiment(key)
    except Failure as failure:
        if failure.reason == "EXPERIMENT_NOT_FOUND":
            return None
        raise


def make_plan(
    manifest: Manifest, present: pb.Experiment | None, holdouts: Mapping[str, str] | None = None
) -> Plan:
    """Everything that is not yet as the manifest says; `holdouts` are keys by the names that either side has."""
    # Generated variants follow from the factors: the control plane keeps them true to those.
    pairs = (
        () if manifest.generated else tuple(_pairs(manifest.variants, present.variants if present else ()))
    )
    whole = _filled(manifest, present or _USUAL)
    before = fields_of(present, holdouts) if present else {}
    after = _by_key(_fields(whole), holdouts)
    unlike = before if present else defaults()
    changes = [
        Change(name=name, before=before.get(name), after=value)
        for name, value in after.items()
        if unlike[name] != value
    ]
    for pair in pairs:
        changes += _variant_changes(pair)
    return Plan(
        manifest=whole
        if present
        else manifest,  # of what is created the project says what the manifest does not
        present=present,
        before=before,
        after=after,
        pairs=pairs,
        changes=tuple(changes),
    )


_USUAL = pb.Experiment(
    type="ab",
    traffic_allocation=100,
    exposure_criteria=ParseDict(shape.Exposure().model_dump(by_alias=True), pb.ExposureCriteria()),
    analysis=ParseDict(shape.Analysis().model_dump(by_alias=True), pb.Analysis()),
)


def defaults() -> dict[str, Any]:
    """The fields of an experiment of which nothing was said."""
    return fields_of(_USUAL)


def _filled(manifest: Manifest, present: pb.Experiment) -> Manifest:
    """With what a project decides, where the manifest does not, as the experiment has it."""
    return replace(
        manifest,
        exposure={"settleSeconds": present.exposure_criteria.settle_seconds} | manifest.exposure,
        analysis={"alpha": present.analysis.alpha} | manifest.analysis,
    )


def _by_key(fields: dict[str, Any], holdouts: Mapping[str, str] | None) -> dict[str, Any]:
    named = fields["holdoutId"]
    return fields | {"holdoutId": (holdouts or {}).get(named, named)}


def _fields(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "description": manifest.description,
        "type": manifest.type,
        "labels": manifest.labels,
        "metadata": manifest.metadata,
        "targetFile": manifest.target_file,
        "factors": [specs.factor(factor) for factor in manifest.factors],
        **manifest.intake,
        "switchback": show.to_json(blocks) if (blocks := specs.switchback(manifest)) else None,
        "participants": {"ids": sorted(manifest.participant_ids), "labels": manifest.participant_labels},
        "metrics": {
            "primary": _metric(manifest.primary) if manifest.primary else None,
            "secondary": [_metric(item) for item in manifest.secondary],
            "guardrail": [_metric(item) for item in manifest.guardrail],
        },
        "exposureCriteria": manifest.exposure,
        "analysis": manifest.analysis,
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return metric.fields


def _metric_of(present: pb.Metric) -> dict[str, Any]:
    """A metric there is, as a manifest says it: a saved one by its key."""
    if present.HasField("id"):
        return {"key": present.key}
    kept = (
        "eventName",
        "kind",
        "of",
        "goal",
        "denominatorEventName",
        "window",
        "margin",
        "minimumDetectableEffect",
    )
    shown = show.to_json(present)
    return {name: shown[name] for name in (*kept, "funnelId") if shown[name] is not None}


def fields_of(present: pb.Experiment, holdouts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The fields of an experiment there is, without its key and its variants; its holdout by key, if that is known."""
    shown = show.to_json(present)
    selector, measured = present.participants, present.metrics
    fields = {
        "name": present.name,
        "description": present.description,
        "type": present.type,
        "labels": shown["labels"],
        "metadata": shown["metadata"] or {},
        "targetFile": shown["targetFile"],
        "factors": [specs.factor_of(factor) for factor in present.factors],
        "switchback": shown["switchback"],
        **specs.intake_of(present),
        "participants": {"ids": sorted(selector.ids), "labels": dict(selector.labels)},
        "metrics": {
            "primary": _metric_of(measured.primary) if measured.HasField("primary") else None,
            "secondary": [_metric_of(item) for item in measured.secondary],
            "guardrail": [_metric_of(item) for item in measured.guardrail],
        },
        "exposureCriteria": show.to_json(present.exposure_criteria),
        "analysis": specs.analysis_of(present),
    }
    return _by_key(fields, holdouts)


def _pairs(wanted: Sequence[VariantManifest], present: Iterable[pb.Variant]) -> Iterator[Pair]:
    """Variants by key, or by name where the manifest gives no key."""
    left = list(present)
    matched: dict[int, pb.Variant] = {}
    for index, item in sorted(enumerate(wanted), key=lambda entry: entry[1].key is None):
        for other in left:
            if other.key == item.key if item.key else other.name == item.name:
                matched[index] = other
                left.remove(other)
                break
    for index, item in enumerate(wanted):
        yield Pair(wanted=item, present=matched.get(index))
    for other in left:
        yield Pair(wanted=None, present=other)


def _variant_changes(pair: Pair) -> Iterator[Change]:
    before = variant_of(pair.present) if pair.present else None
    after = variant_as_wanted(pair.wanted) if pair.wanted else None
    if before is None or after is None:
        yield Change(variant=pair, name="", before=before, after=after)
        return
    for name in (name for name in after if name != "files" and before[name] != after[name]):
        yield Change(variant=pair, name=name, before=before[name], after=after[name])
    if after["levels"]:
        return  # its files follow from its levels
    old, new = before["files"], after["files"]
    for path in sorted({*old, *new}):
        if old.get(path) != new.get(path):
            yield Change(variant=pair, name=f"files[{path}]", before=old.get(path), after=new.get(path))


def variant_as_wanted(wanted: VariantManifest) -> dict[str, Any]:
    """The fields of a variant of a manifest, as `variant_of` has those of one there is."""
    return {
        "name": wanted.name,
        "description": wanted.description,
        "isControl": wanted.is_control,
        "weight": wanted.weight,
        "config": wanted.config,
        "metadata": wanted.metadata,
        "targetingRules": {"labels": [show.to_json(rule) for rule in specs.rules(wanted).labels]},
        "levels": wanted.levels,
        "files": {path: show_digest(digest(body)) for path, body in sorted(wanted.files.items())},
    }


def variant_of(present: pb.Variant) -> dict[str, Any]:
    """The fields of a variant there is, without its key; its files as digests by path."""
    shown = show.to_json(present)
    return {
        **{name: shown[name] for name in ("name", "description", "isControl", "weight")},
        "config": shown["config"] or {},
        "metadata": shown["metadata"] or {},
        "targetingRules": {"labels": [show.to_json(rule) for rule in present.targeting_rules.labels]},
        "levels": dict(present.levels),
        "files": {file.path: file.digest for file in present.files},
    }


def refuse_locked(plan: Plan) -> None:
    """Raises Failure for a plan that the experiment's state, or the protocol, does not allow."""
    if plan.present is None:
        return
    status = show.word(plan.present, "status")
    locked = [change for change in plan.changes if not change.always]
    if status != "draft" and locked:
        faults = [Fault(field=change.field, message=change.said) for change in locked]
        raise Failure(
            f"{plan.manifest.key} is {status}: variants, contents and settings are locked after the start;"
            " nothing was changed",
            exit_code=Exit.CONFLICT,
            reason="LOCKED",
            faults=faults,
        )
    for change in plan.changes:
        if change.field == "type":
            fault = Fault(
                field="type", message=f"is {change.before} and stays so", remedy="delete the draft first"
            )
            raise Failure("the draft cannot become that", reason="TYPE_IS_FIXED", faults=[fault])
