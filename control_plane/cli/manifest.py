"""The manifest of `variantctl apply`: an experiment as a file, with its contents beside it.

Hides YAML, where contents are read from, and how every fault of a file is found at once and named by
field. What the control plane cannot do yet is refused here with that reason, so that a manifest is never
applied in part.
"""

import copy
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from control_plane.cli import document as shape
from control_plane.cli.connection import Failure
from control_plane.cli.contents import name_of, read_content, read_text
from shared.errors import Fault
from shared.moment import from_rfc3339, to_rfc3339

KEY = re.compile(r"[a-z][a-z0-9-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A saved metric by its key, or a definition; in the words of the API."""

    fields: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that must be so of a label for a variant to fit."""

    key: str
    operator: str
    value: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelManifest:
    """One content of a factor."""

    key: str
    name: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorManifest:
    """A target file and the contents it may have."""

    key: str
    target_file: str
    levels: tuple[LevelManifest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantManifest:
    """One variant; `key` is None where the control plane makes it from the name. `files` by path."""

    key: str | None
    name: str
    description: str
    is_control: bool
    weight: int
    files: dict[str, bytes]
    config: dict[str, Any]
    metadata: dict[str, Any]
    rules: tuple[Rule, ...] = ()
    levels: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What to call it in a sentence."""
        return self.key or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """An experiment as it should be; what the file leaves out has its default.

    `intake` is who of the participants takes part and when it begins and ends, `exposure` which events count,
    `analysis` how it is decided, all as the resource shows them; excluded variants go by their keys. An `exposure`
    without `settleSeconds`, and an `analysis` without `alpha`: the manifest leaves to the project, or to the
    experiment there is, what these are.
    """

    key: str
    name: str
    description: str
    type: str
    labels: dict[str, str]
    metadata: dict[str, Any]
    target_file: str | None
    participant_ids: tuple[str, ...]
    participant_labels: dict[str, str]
    primary: Metric | None
    secondary: tuple[Metric, ...]
    guardrail: tuple[Metric, ...]
    exposure: dict[str, Any]
    analysis: dict[str, Any]
    intake: dict[str, Any]
    switchback: dict[str, Any] | None = None
    factors: tuple[FactorManifest, ...] = ()
    variants: tuple[VariantManifest, ...] = field(default=())

    @property
    def generated(self) -> bool:
        """The control plane makes the variants: every combination of the factors' levels."""
        return bool(self.factors) and not self.variants


def load(file: str) -> Manifest:
    """The manifest in `file` (`-`: standard input), contents read. Raises Failure listing every fault."""
    base = Path() if file == "-" else Path(file).parent
    return parse(read_text(file), base=base, source=name_of(file))


def parse(text: str, *, base: Path, source: str) -> Manifest:
    """The manifest in a YAML text; content files are relative to `base`.

    Raises Failure that lists every fault by field.
    """
    table = _yaml(text, source)
    if isinstance(table.get("participants"), list):
        table["participants"] = {"ids": table["participants"]}
    document, faults = _document(table)
    variants: list[VariantManifest] = []
    factors: list[FactorManifest] = []
    if document is not None:
        further = list(_semantic_faults(document))
        factors = [_factor(item, index, base, further) for index, item in enumerate(document.factors)]
        for index, item in enumerate(document.variants):
            variants.append(_variant(item, index, document, base, further))
        # A repaired document may lack what a fault took away: nothing is said twice.
        told = [fault.field for fault in faults]
        faults += [fault for fault in further if not any(name.startswith(fault.field) for name in told)]
    if faults or document is None:
        raise Failure(f"{source} cannot be applied", reason="INVALID_MANIFEST", faults=faults)
    return _manifest(document, factors, variants)


def _document(table: dict[str, Any]) -> tuple[shape.Document | None, list[Fault]]:
    """The document and what is wrong with its fields.

    Each faulty field is taken out or replaced and the rest is looked at again, so that one typo does not hide
    the faults behind it; None where that does not help.
    """
    faults: list[Fault] = []
    for _ in range(3):
        try:
            return shape.Document.model_validate(table), faults
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False)
        found = [shape.fault_of(item["loc"], item["type"], item["msg"], item.get("input")) for item in errors]
        told = {fault.field for fault in faults}
        faults += [fault for fault in found if fault.field not in told]
        table = _repaired(table, [item["loc"] for item in errors])
    return None, faults


_STAND_INS = {"apiVersion": "variantd/v1", "kind": "Experiment", "key": "x", "name": "x", "path": "x"}
_STAND_INS |= {"targetFile": "x", "eventName": "x"}


def _repaired(table: dict[str, Any], places: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    repaired = copy.deepcopy(table)
    for place in places:
        parent: Any = repaired
        for part in place[:-1]:
            parent = parent[part]
        last = place[-1]
        if last in _STAND_INS:
            parent[last] = _STAND_INS[str(last)]
        elif isinstance(parent, list):
            parent[int(last)] = f"x{last}"
        else:
            parent.pop(last, None)
    return repaired


def _factor(item: shape.Factor, index: int, base: Path, faults: list[Fault]) -> FactorManifest:
    levels = []
    for number, level in enumerate(item.levels):
        place = f"factors[{index}].levels[{number}]"
        given = (level.content, level.content_file, level.content_base64)
        if sum(value is not None for value in given) != 1:
            message = "needs exactly one of content, contentFile and contentBase64"
            faults.append(Fault(field=place, message=message))
            continue
        body = read_content(*given, place, base, faults)
        levels.append(LevelManifest(key=level.key, name=level.name or level.key, body=body))
    return FactorManifest(key=item.key, target_file=item.target_file, levels=tuple(levels))


def _manifest(
    document: shape.Document, factors: Sequence[FactorManifest], variants: Sequence[VariantManifest]
) -> Manifest:
    metrics = document.metrics
    return Manifest(
        key=document.key,
        name=document.name,
        description=document.description,
        type=document.type,
        labels=document.labels,
        metadata=document.metadata,
        target_file=document.target_file,
        participant_ids=tuple(document.participants.ids),
        participant_labels=document.participants.labels,
        primary=_metric(metrics.primary) if metrics.primary else None,
        secondary=tuple(_metric(item) for item in metrics.secondary),
        guardrail=tuple(_metric(item) for item in metrics.guardrail),
        exposure=_exposure(document.exposure_criteria),
        analysis=_analysis(document.analysis),
        intake=_intake(document),
        switchback=document.switchback.model_dump() if document.switchback else None,
        factors=tuple(factors),
        variants=tuple(variants),
    )


def _exposure(criteria: shape.Exposure) -> dict[str, Any]:
    unsaid = None if "settle_seconds" in criteria.model_fields_set else {"settle_seconds"}
    return criteria.model_dump(by_alias=True, exclude=unsaid)


def _analysis(analysis: shape.Analysis) -> dict[str, Any]:
    unsaid = None if "alpha" in analysis.model_fields_set else {"alpha"}
    shown = analysis.model_dump(by_alias=True, exclude=unsaid)
    return shown | {name: sorted(shown[name]) for name in ("excludedVariantIds", "excludedParticipantIds")}


def _intake(document: shape.Document) -> dict[str, Any]:
    names = {
        "traffic_allocation",
        "targeting_rules",
        "allow_host_labels",
        "strata",
        "holdout_id",
        "require_preflight",
    }
    schedule = document.schedule
    moments = (schedule.start_at, schedule.end_at) if schedule else (None, None)
    shown = [None if moment is None else to_rfc3339(from_rfc3339(moment)) for moment in moments]
    times = {"startAt": shown[0], "endAt": shown[1]} if any(shown) else None
    return {**document.model_dump(by_alias=True, include=names), "schedule": times}


def _metric(item: shape.Metric) -> Metric:
    if item.event_name is None:
        return Metric(fields={"key": item.key})
    fields = item.model_dump(by_alias=True, exclude_none=True, exclude={"key"})
    return Metric(fields=fields)


# -- YAML


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that is there twice is an error, not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001  # the base class's signature
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _yaml(text: str, source: str) -> dict[str, Any]:
    try:
        table = yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Failure(f"{source} is not YAML: {error.problem}{where}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else "malformed"
        raise Failure(f"{source} is not YAML: {first}") from None
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise Failure(f"{source} is no manifest: it has to begin with apiVersion: variantd/v1")
    return table


# -- faults


def _semantic_faults(document: shape.Document) -> Iterator[Fault]:
    if not KEY.fullmatch(document.key):
        yield Fault(
            field="key",
            message=f"{document.key!r} is not a key",
            remedy="lower-case letters, digits and -, from a letter on, at most 64",
        )
    chosen = document.participants
    if chosen.ids and chosen.labels:
        yield Fault(field="participants", message="has ids and labels", remedy="keep one of the two")
    for name, times in Counter(chosen.ids).items():
        if times > 1:
            yield Fault(field="participants", message=f"{name} is there {times} times")
    yield from _moments(document.schedule)
    yield from _metric_faults(document.metrics)
    yield from _free_form("metadata", document.metadata)
    for index, item in enumerate(document.variants):
        yield from _free_form(f"variants[{index}].metadata", item.metadata)
        yield from _free_form(f"variants[{index}].config", item.config)
    labels = [item.key or item.name for item in document.variants]
    for index, label in enumerate(labels):
        if label in labels[:index]:
            yield Fault(
                field=f"variants[{index}]",
                message=f"another variant is called {label!r} too",
                remedy="give each its own key",
            )


def _moments(schedule: shape.Schedule | None) -> Iterator[Fault]:
    for name, text in (("startAt", schedule.start_at), ("endAt", schedule.end_at)) if schedule else ():
        try:
            if text is not None:
                from_rfc3339(text)
        except (ValueError, OverflowError):
            remedy = "write it as '2027-01-31T12:00:00Z'"
            yield Fault(field=f"schedule.{name}", message=f"{text!r} is no moment", remedy=remedy)


def _metric_faults(metrics: shape.Metrics) -> Iterator[Fault]:
    every = [("primary", metrics.primary)]
    every += [(f"secondary[{at}]", item) for at, item in enumerate(metrics.secondary)]
    every += [(f"guardrail[{at}]", item) for at, item in enumerate(metrics.guardrail)]
    for where, item in every:
        if item is None:
            continue
        by_key = item.key is not None and item.model_fields_set == {"key"}
        if not by_key and (item.event_name is None or item.key is not None):
            message = "needs eventName, or the key of a saved metric and nothing else"
            yield Fault(field=f"metrics.{where}", message=message)


def _free_form(where: str, value: dict[str, Any]) -> Iterator[Fault]:
    """YAML says more than JSON: dates, sets and keys that are numbers have no place in a resource."""
    try:
        if json.loads(json.dumps(value, allow_nan=False)) == value:
            return
    except (TypeError, ValueError):
        pass
    yield Fault(field=where, message="holds something JSON cannot, such as a date", remedy="put it in quotes")


# -- contents


def _variant(
    item: shape.Variant, index: int, document: shape.Document, base: Path, faults: list[Fault]
) -> VariantManifest:
    where = f"variants[{index}]"
    if item.key is not None and not KEY.fullmatch(item.key):
        faults.append(Fault(field=f"{where}.key", message=f"{item.key!r} is not a key"))
    return VariantManifest(
        key=item.key,
        name=item.name,
        description=item.description,
        is_control=item.is_control,
        weight=item.weight,
        files={} if item.levels else _files(item, where, document.target_file, base, faults),
        levels=dict(item.levels),
        config=item.config,
        metadata=item.metadata,
        rules=tuple(
            Rule(key=rule.key, operator=rule.operator, value=rule.value)
            for rule in item.targeting_rules.labels
        ),
    )


def _files(
    item: shape.Variant, where: str, target: str | None, base: Path, faults: list[Fault]
) -> dict[str, bytes]:
    if sum((item.content is not None, item.content_file is not None, bool(item.files))) != 1:
        faults.append(
            Fault(
                field=where,
                message="needs exactly one of content, contentFile and files",
                remedy="content and contentFile are for the experiment's targetFile",
            )
        )
        return {}
    if not item.files:
        if target is None:
            name = "content" if item.content is not None else "contentFile"
            faults.append(
                Fault(
                    field=f"{where}.{name}", message="there is no targetFile for it", remedy="set targetFile"
                )
            )
        body = read_content(item.content, item.content_file, None, where, base, faults)
        return {target or "": body}
    files: dict[str, bytes] = {}
    for number, file in enumerate(item.files):
        place = f"{where}.files[{number}]"
        given = (file.content, file.content_file, file.content_base64)
        if sum(value is not None for value in given) != 1:
            message = "needs exactly one of content, contentFile and contentBase64"
            faults.append(Fault(field=place, message=message))
            continue
        if file.path in files:
            faults.append(Fault(field=f"{place}.path", message=f"{file.path} is there twice"))
        files[file.path] = read_content(*given, place, base, faults)
    return files
