"""What is wrong with a content is named, and none makes the check slow or large."""

import time
from typing import Any

import pytest

from control_plane.domain.fields import parse
from control_plane.domain.settings import Settings, UpdateSettings, Validator
from control_plane.domain.validation import MAX_PARSED_BYTES, breaches
from shared.errors import Invalid


def found(content: str | bytes, **rules: Any) -> list[tuple[str, int | None]]:
    """The rules that the content breaks, with their lines."""
    validator = parse(Validator, {"glob": "**", **rules})
    body = content if isinstance(content, bytes) else content.encode()
    return [(item.rule, item.line) for item in breaches(validator, body)]


BAD = [("format", None)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("json", '{"a": [1, 2.5, "x", null]}\n', []),
        ("json", '{"a": 1,\n "b": }', [("format", 2)]),
        ("json", '{"a": NaN}', BAD),
        ("json", "", [("format", 1)]),
        ("yaml", "a: 1\nb: [x, y]\n---\nc: 2\n", []),
        ("yaml", "base: &b {x: 1}\nother: {<<: *b}\n", []),
        ("yaml", "a: 1\nb: [x\nc: 2\n", [("format", 3)]),
        ("yaml", "a: 1\nb: *nowhere\n", [("format", 2)]),
        ("yaml", "a: &a [*a]\n", [("format", 1)]),
        ("yaml", "a: 1\nb: !!python/object/apply:os.system [id]\n", [("format", 2)]),
        ("yaml", "a: \x07\n", BAD),
        ("toml", '[a]\nb = "c"\nd = 1.5\n', []),
        ("toml", "a = 1\nb = \n", [("format", 2)]),
        ("front_matter", "---\nname: x\n---\n# Text\n", []),
        ("front_matter", "---\r\nname: x\r\n---\r\n", []),
        ("front_matter", "# Text\n", [("format", 1)]),
        ("front_matter", "---\nname: x\n# Text\n", [("format", 1)]),
        ("front_matter", "---\na: 1\nname: [\n---\n", [("format", 4)]),
        ("front_matter", "---\n- a\n---\n", [("format", 2)]),
    ],
)
def test_formats(name: str, content: str, expected: list[tuple[str, int | None]]) -> None:
    """Well-formed or not, and on which line it ceases to be."""
    assert found(content, format=name) == expected


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("yaml", BOMB),
        ("yaml", "[" * 200_000),
        ("yaml", "- " * 100_000),
        ("yaml", "- a\n" * 60_000),
        ("json", "[" * 200_000),
        ("toml", "a." * 120_000 + "a = 1"),
        ("toml", '"x".' * 60_000 + "a = 1"),
        ("toml", "a = " + "[" * 200_000),
        ("toml", "a = " + "1" * 200_000),
        ("toml", "a" * 250_000),
        ("front_matter", f"---\n{BOMB}---\n"),
        ("json", " " * (MAX_PARSED_BYTES + 1) + "1"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else None,
)
def test_what_would_be_costly_to_read_is_refused_quickly(name: str, content: str) -> None:
    """Bombs of aliases, deep nesting, endless keys and mere size end the reading, not the control plane."""
    started = time.process_time()
    assert [rule for rule, _ in found(content, format=name)] == ["format"]
    assert time.process_time() - started < 2


def test_size_encoding_and_patterns() -> None:
    """Each broken rule is told once; a pattern is looked for in bytes, so that no encoding hides anything."""
    assert found("abc", maxBytes=3) == []
    assert found("abcd", maxBytes=3) == [("maxBytes", None)]
    assert found(b"ok\n\xff", encoding="utf-8") == [("encoding", 2)]
    assert found(b"ok\n\xff", format="json") == [("encoding", 2)]
    assert found(b"\xff", maxBytes=3) == []
    rules = {"required": ["(?m)^# ", "name"], "forbidden": ["LOREM", "sk_[a-z]+"]}
    assert found("# name\n", **rules) == []
    assert found("x\ny LOREM\nsk_abc", **rules) == [
        ("required", None),
        ("required", None),
        ("forbidden", 2),
        ("forbidden", 3),
    ]
    assert found(b"\xff\nLOREM", **rules)[-1] == ("forbidden", 2)


def test_what_is_told_does_not_quote_the_content() -> None:
    """A message names the rule, never what stands in the file."""
    secret = "hunter2-hunter2"
    for name in ("json", "yaml", "toml", "front_matter"):
        validator = parse(Validator, {"glob": "**", "format": name, "forbidden": ["hunter."]})
        for item in breaches(validator, f"---\n{secret}: [{secret}\n".encode()):
            assert secret not in item.message


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"targetAllowList": ["/etc/*"]}, "targetAllowList.0"),
        ({"targetAllowList": ["a/../b"]}, "targetAllowList.0"),
        ({"targetAllowList": [""]}, "targetAllowList.0"),
        ({"validators": [{"glob": "*", "required": ["("]}]}, "validators.0.required.0"),
        ({"validators": [{"glob": "*", "format": "xml"}]}, "validators.0.format"),
        ({"validators": [{"glob": "*", "maxBytes": 0}]}, "validators.0.maxBytes"),
        ({"defaults": {"alpha": 0.9}}, "defaults.alpha"),
        ({"defaults": {"horizonDays": 3}}, "defaults.horizonDays"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], field: str) -> None:
    """The field is named."""
    with pytest.raises(Invalid) as refused:
        parse(UpdateSettings, values)
    assert [fault.field for fault in refused.value.faults] == [field]


def test_an_empty_list_allows_everything() -> None:
    """Settings refuse nothing until they say so."""
    assert Settings().allows("any/file")
    some = parse(Settings, {"targetAllowList": ["config/*.md"]})
    assert some.allows("config/soul.md")
    assert not some.allows("soul.md")
