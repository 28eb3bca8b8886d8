"""Globs of files within a participant's root, as the hosts' own `targets` read them, over paths and one another.

`*` is any run of characters within a name, `**` as a whole segment any number of names; neither matches a name that
begins with a dot, or the dot it begins with. Everything else is literal. Matching is linear in the path (RE2), so no
glob can stall the control plane.
"""

import re
from functools import lru_cache
from typing import Annotated, Any

import re2
from pydantic import AfterValidator, Field, WithJsonSchema

MAX_GLOB = 256


def _glob(value: str) -> str:
    if not {"", ".", ".."}.isdisjoint(value.split("/")) or "\0" in value or "\\" in value:
        raise ValueError(
            f"{value!r} describes no file within a root; write a relative one such as config/*.md"
        )
    return value


Glob = Annotated[
    str,
    Field(min_length=1, max_length=MAX_GLOB),
    AfterValidator(_glob),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_GLOB}),
]


def is_glob(text: str) -> bool:
    """Whether it describes more than one path."""
    return "*" in text


def describes(glob: str, path: str) -> bool:
    """The glob describes the path."""
    return _compiled(glob).fullmatch(path + "/") is not None


@lru_cache(maxsize=4096)
def _compiled(glob: str) -> Any:
    # Each segment brings its own slash, so that `**` may stand for none at all.
    return re2.compile(
        "".join(
            r"(?:[^./][^/]*/)*" if segment == "**" else _segment(segment) + "/" for segment in glob.split("/")
        )
    )


def _segment(segment: str) -> str:
    first, *others = (str(re2.escape(piece)) for piece in re.split(r"\*+", segment))
    rest = "[^/]*".join(others)
    if first or not others:
        return first + (f"[^/]*{rest}" if others else "")
    # A leading star: either it stands for something that is no dot, or for nothing before what is no dot.
    something = r"[^./][^/]*" + rest
    return something if not rest or rest.startswith(r"\.") else f"(?:{something}|{rest})"


def overlap(one: str, other: str) -> bool:
    """Some path is described by both."""
    return _segments_overlap(tuple(one.split("/")), tuple(other.split("/")))


def _segments_overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Row by row over the two: from the ends of both up, so that no glob is walked twice."""
    below = [False] * (len(other) + 1)
    for i in range(len(one), -1, -1):
        row = [False] * (len(other) + 1)
        for j in range(len(other), -1, -1):
            if i == len(one) and j == len(other):
                row[j] = True
            elif i < len(one) and one[i] == "**":
                row[j] = below[j] or (j < len(other) and not other[j].startswith(".") and row[j + 1])
            elif j < len(other) and other[j] == "**":
                row[j] = row[j + 1] or (i < len(one) and not one[i].startswith(".") and below[j])
            elif i < len(one) and j < len(other):
                row[j] = below[j + 1] and _names_overlap(one[i], other[j])
        below = row
    return below[0]


@lru_cache(maxsize=4096)
def _names_overlap(one: str, other: str) -> bool:
    if {one[:1], other[:1]} == {"*", "."}:
        return False  # a star never stands for a leading dot
    below = [False] * (len(other) + 1)
    for i in range(len(one), -1, -1):
        row = [False] * (len(other) + 1)
        for j in range(len(other), -1, -1):
            if i == len(one) and j == len(other):
                row[j] = True
            elif i < len(one) and one[i] == "*":
                row[j] = below[j] or (j < len(other) and row[j + 1])
            elif j < len(other) and other[j] == "*":
                row[j] = row[j + 1] or (i < len(one) and below[j])
            elif i < len(one) and j < len(other):
                row[j] = one[i] == other[j] and below[j + 1]
        below = row
    return below[0]
