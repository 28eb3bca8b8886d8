"""An experiment as the text of a manifest: for `experiments get -o yaml`, and for the two sides of `diff`.

Hides what need not be said because it is the default, where contents go, and how any text gets through YAML
unchanged. What is written here, `manifest.parse` reads back as the same experiment.
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from control_plane.cli.comparison import defaults, fields_of, variant_of
from control_plane.cli.session import Failure
from shared.model import digest, show_digest
from shared.pb.variantd.operator.v1 import operator_pb2 as pb

Place = Callable[[Sequence[str], str], dict[str, Any]]
"""What a manifest says of a content, given where it belongs (variant and path, or factor and level) and its digest."""

Described = tuple[str | None, Mapping[str, Any]]
"""A variant: its key, None where there is none yet, and its fields with files as digests by path."""


def manifest_of(
    present: pb.Experiment,
    *,
    holdout: str | None = None,
    folder: Path | None = None,
    ascii_only: bool = False,
) -> str:
    """The manifest of an experiment, whose holdout has the key `holdout`; applying it changes nothing.

    Contents are in it, or with `folder` in files there, which the manifest names as `folder` is named. A file that
    is there already keeps what it holds: Failure where that is something else, and nothing is written then.
    Raises Failure where contents may not be read, or a variant has none.
    """
    if any(not variant.files and not variant.levels for variant in present.variants):
        bare = next(item.key for item in present.variants if not item.files and not item.levels)
        raise Failure(f"variant {bare} has no content yet, which no manifest can say")
    bodies = contents_of(present)
    files: dict[Path, bytes] = {}

    def place(where: Sequence[str], name: str) -> dict[str, Any]:
        if name not in bodies:
            raise Failure("the contents cannot be read with this key: it needs the scope content:read")
        if folder is None:
            return inline(bodies[name])
        path = folder.joinpath(*where)
        if not _within(where) or path in files:
            raise Failure(f"{'/'.join(where)!r} is no place for a file")
        files[path] = bodies[name]
        return {"contentFile": str(path)}

    variants = [(item.key, variant_of(item)) for item in present.variants]
    fields = fields_of(present, {present.holdout_id: holdout} if holdout else None)
    text = dump(document(present.key, fields, variants, place), ascii_only=ascii_only)
    _write(files)
    return text


def document(
    key: str, fields: Mapping[str, Any], variants: Iterable[Described], place: Place
) -> dict[str, Any]:
    """The manifest as a table: fields always in the same order, contents where `place` puts them.

    Defaults are left out, except where a project may have another one.
    """
    usual = defaults()
    shown: dict[str, Any] = {"apiVersion": "variantd/v1", "kind": "Experiment", "key": key}
    shown |= {
        name: _free(value) if name in _FREE else _said(value)
        for name, value in ((name, fields[name]) for name in usual)
        if name in _ALWAYS_SAID or value != usual[name]
    }
    for part, the_project_s in (("exposureCriteria", "settleSeconds"), ("analysis", "alpha")):
        shown[part] = {
            name: fields[part][name]
            for name, value in usual[part].items()
            if name == the_project_s or fields[part][name] != value
        }
    if "factors" in shown:
        shown["factors"] = [_factor(item, place) for item in fields["factors"]]
    written = [_variant(name, item, fields["targetFile"], place) for name, item in variants]
    return shown | ({"variants": written} if written else {})


_ALWAYS_SAID = frozenset({"name", "exposureCriteria", "analysis"})
_FREE = frozenset({"labels", "metadata", "config", "levels"})
"""Maps of the caller's own: nothing in them is left out."""


def _free(value: Any) -> Any:
    """By name, and whole numbers as such: a Struct has no order, and knows only floats."""
    if isinstance(value, Mapping):
        return {name: _free(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_free(item) for item in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole else value


def _said(value: Any) -> Any:
    """Without what is not there."""
    if isinstance(value, Mapping):
        kept = {name: _free(item) if name in _FREE else _said(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item not in (None, [], {})}
    return [_said(item) for item in value] if isinstance(value, list) else value


def _factor(factor: Mapping[str, Any], place: Place) -> dict[str, Any]:
    levels = [
        {"key": level["key"], "name": level["name"], **place((factor["key"], level["key"]), level["digest"])}
        for level in factor["levels"]
    ]
    return {"key": factor["key"], "targetFile": factor["targetFile"], "levels": levels}


def _variant(key: str | None, fields: Mapping[str, Any], target: str | None, place: Place) -> dict[str, Any]:
    named = {"key": key} if key else {}
    usual = {"description": "", "isControl": False, "weight": 0}
    plain = {
        name: _free(value) if name in _FREE else _said(value)
        for name, value in fields.items()
        if name not in ("files", "targetingRules") and value not in ({}, []) and usual.get(name) != value
    }
    if rules := _said(fields["targetingRules"]):
        plain["targetingRules"] = rules
    if fields["levels"]:
        return {**named, **plain}  # its files follow from them
    label = key or fields["name"]
    placed = {path: place((label, *path.split("/")), name) for path, name in fields["files"].items()}
    if list(placed) == [target] and "contentBase64" not in placed[target]:
        return {**named, **plain, **placed[target]}
    return {**named, **plain, "files": [{"path": path, **item} for path, item in placed.items()]}


# -- contents


def contents_of(present: pb.Experiment) -> dict[str, bytes]:
    """The contents of an experiment by digest, as far as they are shown."""
    files: list[pb.VariantFile | pb.Level] = [file for item in present.variants for file in item.files]
    files += [level for factor in present.factors for level in factor.levels]
    bodies = {}
    for file in files:
        if file.HasField("content"):
            bodies[file.digest] = file.content.encode()
        elif file.HasField("content_base64"):
            bodies[file.digest] = file.content_base64
    # Only what is what it is said to be: a manifest is applied elsewhere, and by then nobody compares.
    return {name: body for name, body in bodies.items() if show_digest(digest(body)) == name}


def inline(body: bytes) -> dict[str, Any]:
    """The content in the manifest itself."""
    try:
        return {"content": Content(body.decode())}
    except UnicodeDecodeError:
        return {"contentBase64": b64encode(body).decode()}


def _within(where: Sequence[str]) -> bool:
    """Whether these are names of files and folders, as every control plane sends them."""
    return all(
        part not in ("", ".", "..") and PurePosixPath(part).parts == (part,) and "\0" not in part
        for part in where
    )


def _write(files: Mapping[Path, bytes]) -> None:
    try:
        for path, body in files.items():
            if path.exists() and path.read_bytes() != body:
                raise Failure(f"{path} is there already and holds something else; nothing was written")
        for path, body in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
    except OSError as error:
        raise Failure(f"cannot write {error.filename}: {error.strerror}") from None


# -- YAML


class Content(str):
    """A text that is easier to read line by line."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_BREAKS = frozenset("\x85\u2028\u2029\ufeff")
"""What YAML takes for the end of a line, or for a mark, unless it is escaped."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    lines = isinstance(value, Content) and "\n" in value
    style = '"' if _BREAKS & set(value) else "|" if lines else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(value), style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(Content, _text)


def dump(table: Mapping[str, Any], *, ascii_only: bool = False) -> str:
    """The table as YAML, which reads back as the same table."""
    text = yaml.dump(dict(table), Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only, width=120)
    return str(text)
