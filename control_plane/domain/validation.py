"""Whether the content of a file keeps to a validator's rules.

Bounded whatever the content: one that is too large to be read as its format is refused before it is read, nesting
and what aliases stand for are counted while YAML is read (nothing is built of it), patterns are RE2. Nothing that is
told quotes the content beyond a character.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from control_plane.domain.settings import Validator, expression

MAX_PARSED_BYTES = 262_144
MAX_DEPTH = 64
MAX_VALUES = 20_000
"""Values of a YAML document, each alias counted as all that it stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A rule that a content breaks, on which line (from 1) where that is known."""

    rule: str
    message: str
    remedy: str
    line: int | None = None


class _Malformed(Exception):
    """The text is not of the format."""

    def __init__(self, message: str, line: int | None = None) -> None:
        self.message, self.line = message, line
        super().__init__(message)


def breaches(validator: Validator, body: bytes) -> Iterator[Breach]:
    """Every rule of the validator that the content breaks; each pattern is one."""
    if validator.max_bytes is not None and len(body) > validator.max_bytes:
        yield Breach(
            rule="maxBytes",
            message=f"has {len(body)} bytes, at most {validator.max_bytes} are allowed",
            remedy="make it smaller",
        )
    try:
        text: str | None = body.decode()
    except UnicodeDecodeError as error:
        text = None
        if validator.encoding or validator.format:
            yield Breach(
                rule="encoding",
                message=f"is not UTF-8 from byte {error.start} on",
                remedy="save it as UTF-8",
                line=_line(body, error.start),
            )
    if validator.format and text is not None:
        yield from _of_format(validator.format, text, len(body))
    yield from _patterns(validator, body)


def _patterns(validator: Validator, body: bytes) -> Iterator[Breach]:
    for pattern in validator.required:
        if expression(pattern).search(body) is None:
            yield Breach(
                rule="required", message=f"does not have what is required: {pattern}", remedy="add it"
            )
    for pattern in validator.forbidden:
        found = expression(pattern).search(body)
        if found is not None:
            yield Breach(
                rule="forbidden",
                message=f"has what is forbidden: {pattern}",
                remedy="take it out",
                line=_line(body, found.start()),
            )


def _line(body: bytes, offset: int) -> int:
    return body.count(b"\n", 0, offset) + 1


def _of_format(name: str, text: str, size: int) -> Iterator[Breach]:
    try:
        if size > MAX_PARSED_BYTES:
            raise _Malformed(f"has {size} bytes, more than the {MAX_PARSED_BYTES} that are read as {name}")
        _READ[name](text)
    except _Malformed as found:
        yield Breach(rule="format", message=found.message, remedy=f"make it {_NAMES[name]}", line=found.line)
    except RecursionError:
        yield Breach(rule="format", message="is nested too deeply", remedy="make it flatter")


def _json(text: str) -> None:
    try:  # the length of a number will do: to make one of many digits takes long
        json.loads(text, parse_int=len, parse_float=len, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _Malformed(f"is not JSON: {error.msg}", error.lineno) from None


def _no_constant(name: str) -> None:
    raise _Malformed(f"is not JSON: {name} is no number of it")


_LONG_KEY = expression(r"""(?:(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*\.[ \t]*){64}""")
_TOML_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


def _toml(text: str) -> None:
    # The parser keeps every beginning of a dotted key, which is quadratic in its parts.
    if _LONG_KEY.search(text) is not None:
        raise _Malformed("has a key of more than 64 parts")
    try:
        tomllib.loads(text, parse_float=len)
    except ValueError as error:  # also a number of more digits than are read
        message = str(error)
        line = _TOML_LINE.search(message)
        raise _Malformed(
            f"is not TOML: {_TOML_LINE.sub('', message)}", int(line[1]) if line else None
        ) from None


def _yaml(text: str) -> None:
    for _ in _events(text):
        pass


def _front_matter(text: str) -> None:
    lines = text.split("\n")
    if not lines or lines[0].rstrip() != "---":
        raise _Malformed("does not begin with front matter: a line ---", 1)
    end = next((index for index, line in enumerate(lines) if index and line.rstrip() == "---"), None)
    if end is None:
        raise _Malformed("has front matter without its end: a line ---", 1)
    try:
        nodes = [event for event in _events("\n".join(lines[1:end])) if isinstance(event, yaml.NodeEvent)]
    except _Malformed as found:
        raise _Malformed(found.message, found.line and found.line + 1) from None
    if nodes and not isinstance(nodes[0], yaml.MappingStartEvent):
        raise _Malformed("has front matter that is no mapping", 2)


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _events(text: str) -> Iterator[yaml.Event]:
    """What the text consists of, as a safe loader would take it. Raises _Malformed."""
    sizes: dict[str, int | None] = {}  # None: the anchor's value is not over
    open_: list[tuple[str | None, int]] = []
    count = 0
    try:
        events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
        for event in events:
            yield event
            line = event.start_mark.line + 1
            anchor = getattr(event, "anchor", None)
            if isinstance(event, yaml.DocumentStartEvent):
                sizes, count = {}, 0
            elif isinstance(event, yaml.AliasEvent):
                size = sizes.get(str(anchor), 0)
                if not size:
                    what = "is within its own value" if size is None else "has no anchor before it"
                    raise _Malformed(f"is not plain YAML: an alias {what}", line)
                count += size
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_.pop()
                if anchor:
                    sizes[anchor] = count - before
            elif isinstance(event, yaml.NodeEvent):
                _check_tag(event, line)
                count += 1
                if isinstance(event, yaml.CollectionStartEvent):
                    open_.append((anchor, count - 1))
                if anchor:
                    sizes[anchor] = 1 if isinstance(event, yaml.ScalarEvent) else None
            if count > MAX_VALUES:
                raise _Malformed(f"has more than {MAX_VALUES} values, aliases counted", line)
            if len(open_) > MAX_DEPTH:
                raise _Malformed(f"is nested more than {MAX_DEPTH} deep", line)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it has a character that YAML does not allow"
        raise _Malformed(f"is not YAML: {problem}", mark.line + 1 if mark else None) from None


def _check_tag(event: Any, line: int) -> None:
    tag = event.tag
    if tag is not None and tag != "!" and tag not in yaml.SafeLoader.yaml_constructors:
        raise _Malformed("is not plain YAML: it has a tag of its own", line)


_READ: dict[str, Callable[[str], None]] = {
    "json": _json,
    "yaml": _yaml,
    "toml": _toml,
    "front_matter": _front_matter,
}
_NAMES = {
    "json": "well-formed JSON",
    "yaml": "well-formed YAML",
    "toml": "well-formed TOML",
    "front_matter": "begin with --- lines around a YAML mapping",
}
