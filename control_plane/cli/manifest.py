"""The manifest of `variantctl apply`: an experiment as a file, with its contents beside it.

Hides YAML, where contents are read from, and how every fault of a file is found at once and named by
field. What the control plane cannot do yet is refused here with that reason, so that a manifest is never
applied in part.
"""

import copy
import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from control_plane.cli.connection import Failure
from control_plane.cli.contents import read_content
from shared.errors import Fault

KEY = re.compile(r"[a-z][a-z0-9-]{0,63}")


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", alias_generator=to_camel, allow_inf_nan=False)


class _Metric(_Part):
    event_name: Annotated[str, Field(min_length=1, max_length=128)]
    goal: Literal["increase", "decrease"] = "increase"


class _Metrics(_Part):
    primary: _Metric | None = None
    secondary: list[_Metric] = []
    guardrail: list[_Metric] = []


class _Selector(_Part):
    ids: list[str] = []
    labels: dict[str, str] = {}


class _File(_Part):
    path: Annotated[str, Field(min_length=1)]
    content: str | None = None
    content_file: str | None = None
    content_base64: str | None = None


class _Rule(_Part):
    key: Annotated[str, Field(min_length=1)]
    operator: Literal["equals", "not_equals", "contains", "exists", "not_exists", "regex"]
    value: str | None = None


class _Rules(_Part):
    labels: list[_Rule] = []


class _Variant(_Part):
    key: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: Annotated[str, Field(max_length=3000)] = ""
    is_control: bool = False
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    content: str | None = None
    content_file: str | None = None
    files: list[_File] = []
    targeting_rules: _Rules = _Rules()
    levels: dict[str, str] = {}
    config: dict[str, Any] = {}
    metadata: dict[str, Any] = {}


class _Level(_Part):
    key: str
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    content: str | None = None
    content_file: str | None = None
    content_base64: str | None = None


class _Factor(_Part):
    key: str
    target_file: Annotated[str, Field(min_length=1)]
    levels: list[_Level]


class _Switchback(_Part):
    block_duration: str
    blocks: Annotated[int, Field(ge=2, le=1000)]
    washout: str = "PT0S"


class _Exposure(_Part):
    settle_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60


class _Analysis(_Part):
    alpha: Annotated[float, Field(ge=0.001, le=0.5)] = 0.05


class _Document(_Part):
    api_version: Literal["variantd/v1"]
    kind: Literal["Experiment"]
    key: str
    name: Annotated[str, Field(min_length=1, max_length=400)]
    description: Annotated[str, Field(max_length=3000)] = ""
    type: Literal["ab", "multivariate", "personalization", "switchback"] = "ab"
    labels: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    target_file: Annotated[str, Field(min_length=1)] | None = None
    participants: _Selector = _Selector()
    metrics: _Metrics = _Metrics()
    exposure_criteria: _Exposure = _Exposure()
    analysis: _Analysis = _Analysis()
    switchback: _Switchback | None = None
    factors: list[_Factor] = []
    variants: list[_Variant] = []


NOT_YET = frozenset(
    (
        *("rollout", "schedule", "targetingRules", "trafficAllocation"),
        *("allowHostLabels", "holdoutId", "requires", "multipleVariants", "decision", "horizonDays"),
        *("tuning", "variance", "prior", "power", "minimumDetectableEffect", "clusterBy", "margin"),
        *("excludedVariantIds", "excludedParticipantIds", "kind", "role", "window", "denominatorEventName"),
    )
)
"""Words of an experiment that this release does not act on; accepting them would be a promise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A conversion's name and which way it should move."""

    event_name: str
    goal: str


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
    """An experiment as it should be; what the file leaves out has its default."""

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
    settle_seconds: int
    alpha: float
    switchback: dict[str, Any] | None = None
    factors: tuple[FactorManifest, ...] = ()
    variants: tuple[VariantManifest, ...] = field(default=())

    @property
    def generated(self) -> bool:
        """The control plane makes the variants: every combination of the factors' levels."""
        return bool(self.factors) and not self.variants


def load(file: str) -> Manifest:
    """The manifest in `file` (`-`: standard input), contents read. Raises Failure listing every fault."""
    if file == "-":
        return parse(sys.stdin.read(), base=Path(), source="standard input")
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(f"{path} is not UTF-8 text") from None
    return parse(text, base=path.parent, source=str(path))


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


def _document(table: dict[str, Any]) -> tuple[_Document | None, list[Fault]]:
    """The document and what is wrong with its fields.

    Each faulty field is taken out or replaced and the rest is looked at again, so that one typo does not hide
    the faults behind it; None where that does not help.
    """
    faults: list[Fault] = []
    for _ in range(3):
        try:
            return _Document.model_validate(table), faults
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False)
        found = [_fault(item["loc"], item["type"], item["msg"], item.get("input")) for item in errors]
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


def _factor(item: _Factor, index: int, base: Path, faults: list[Fault]) -> FactorManifest:
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
    document: _Document, factors: Sequence[FactorManifest], variants: Sequence[VariantManifest]
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
        settle_seconds=document.exposure_criteria.settle_seconds,
        alpha=document.analysis.alpha,
        switchback=document.switchback.model_dump() if document.switchback else None,
        factors=tuple(factors),
        variants=tuple(variants),
    )


def _metric(item: _Metric) -> Metric:
    return Metric(event_name=item.event_name, goal=item.goal)


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


def _field(path: Sequence[object]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


_MESSAGES = {
    "missing": "is missing",
    "string_type": "is not a text; put it in quotes",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is neither true nor false",
    "list_type": "is not a list",
    "dict_type": "is not a mapping",
    "model_type": "is not a mapping",
    "model_attributes_type": "is not a mapping",
}


def _fault(path: Sequence[object], kind: str, message: str, value: object) -> Fault:
    where, last = _field(path), str(path[-1])
    if kind == "extra_forbidden":
        if last in NOT_YET:
            return Fault(
                field=where, message="this control plane does not have it yet", remedy="leave it out"
            )
        close = difflib.get_close_matches(last, sorted(_known(path[:-1])), n=1)
        remedy = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(_known(path[:-1])))}"
        return Fault(field=where, message="is not a known field", remedy=remedy)
    if where == "participants":
        return Fault(field=where, message="is neither a list of ids nor {labels: …}")
    if kind == "literal_error":
        return Fault(field=where, message=f"is {value!r}: {message[0].lower()}{message[1:]}")
    return Fault(field=where, message=_MESSAGES.get(kind, message[:1].lower() + message[1:]))


def _known(path: Sequence[object]) -> set[str]:
    """The fields there are at a place in the manifest."""
    model: Any = _Document
    steps = {
        "metrics": _Metrics,
        "participants": _Selector,
        "exposureCriteria": _Exposure,
        "analysis": _Analysis,
    }
    steps |= {
        "variants": _Variant,
        "files": _File,
        "targetingRules": _Rules,
        "factors": _Factor,
        "switchback": _Switchback,
        "levels": _Level,
        "primary": _Metric,
        "secondary": _Metric,
        "guardrail": _Metric,
    }
    for part in path:
        model = steps.get(str(part), model)
    return {item.alias for item in model.model_fields.values()}


def _semantic_faults(document: _Document) -> Iterator[Fault]:
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
    item: _Variant, index: int, document: _Document, base: Path, faults: list[Fault]
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
    item: _Variant, where: str, target: str | None, base: Path, faults: list[Fault]
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
