"""`If-Match` and `ETag`: a change is made only to what its caller has seen.

A tag is a digest of what `GET` of the resource shows this caller, so it changes with everything that is shown, and
needs no column. A write is about the nearest resource at or above its path: `POST /v1/experiments/{id}/start` is
about the experiment. What is compared is read in the transaction that changes it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from control_plane.api.operations import OPERATIONS, Operation
from control_plane.domain import requests
from control_plane.services.work import Work
from shared.errors import Conflict, NotFound

GZIPPED = "-gzip"
"""What the tag of a compressed answer ends with: the same resource, in other bytes."""

_TAG = re.compile(r'\s*(W/)?"([^"]*)"\s*')


def tag_of(shown: Any) -> str:
    """The strong entity tag of what is shown, in its quotes."""
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
    return f'"{digest[:32]}"'


def names(header: str, tag: str, *, weak: bool = False) -> bool:
    """Whether a list of tags, or `*`, names this one; weak ones count only where `weak` comparison does.

    What is no tag names nothing.
    """
    if header.strip() == "*":
        return True
    for part in header.split(","):
        found = _TAG.fullmatch(part)
        if found and (weak or not found[1]) and found[2].removesuffix(GZIPPED) == tag.strip('"'):
            return True
    return False


def is_single(operation: Operation) -> bool:
    """Whether it reads one resource."""
    return operation.method == "GET" and not operation.rpc.partition(".")[2].startswith("List")


_SINGLE = {operation.path: operation for operation in OPERATIONS if is_single(operation)}


def subject(operation: Operation) -> Operation | None:
    """The operation that shows what a write is about; None where it only adds to a collection."""
    path = re.sub(r":\w+$", "", operation.path)
    while path:
        if path in _SINGLE:
            return _SINGLE[path]
        path = path.rpartition("/")[0]
    return None


class Condition:
    """That a write finds its subject as `if_match` has it; `tag` is the subject's afterwards, where it is known."""

    def __init__(self, operation: Operation, values: Mapping[str, Any], if_match: str) -> None:
        self._operation, self._values, self._if_match = operation, values, if_match
        self.tag = ""

    def before(self, work: Work) -> None:
        """Raises Conflict STALE where the subject is another, and NotFound where there is none."""
        shown = self._shown(work)
        if shown is None:
            raise Conflict("If-Match: this call changes no resource that has an ETag", reason="STALE")
        tag = tag_of(shown)
        if not names(self._if_match, tag):
            raise Conflict(
                "If-Match: the resource is not as you have seen it; read it again and repeat the request",
                reason="STALE",
                details={"etag": tag},
            )

    def after(self, work: Work) -> None:
        """`tag` is the subject's as it is now, empty where it is gone."""
        try:
            self.tag = tag_of(self._shown(work))
        except NotFound:
            self.tag = ""

    def _shown(self, work: Work) -> Any:
        about = subject(self._operation)
        if about is None:
            return None
        request = requests.parse(about.request, {name: self._values[name] for name in about.named})
        return about.render(work, about.use_case(work, request))
