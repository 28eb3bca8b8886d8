"""What a write is about, as the API shows it: for the audit log, before the write and after it.

Follows from the table of operations, so an operation needs nothing of its own here. A write that makes something is
about what its `Location` names; any other about the nearest resource at or above its path. What is shown is what a
caller sees who may read everything but contents, so an entry does not depend on who made it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from control_plane.api import resources
from control_plane.api.conditions import is_single, subject
from control_plane.api.doors import ROUTES
from control_plane.api.operations import OPERATIONS, Operation
from control_plane.domain import requests
from control_plane.services import phases
from control_plane.services.work import Scope, Witnessed, Work
from shared.errors import NotFound
from shared.ids import show_id

NOT_SHOWN = {
    "EventService.ReportServerEvents": "events are added; no resource is another than before",
    "ResultsService.RecalculateTimeSeries": "results are added up again; no resource is another than before",
    "FleetService.ReadFile": "a host's file is read; nothing is written",
    "Admin.CreateProject": "no call shows a project",
}
"""What is on record without a state before and after, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """How a resource is read; `named` are the fields of the request that say which."""

    named: tuple[str, ...]
    request: type[requests.Request]
    use_case: Callable[[Work, Any], Any]
    render: Callable[[Work, Any], Any]


def _shape(path: str) -> str:
    return re.sub(r"\{\w+\}", "{}", path)


def _reading(operation: Operation) -> _Reading:
    return _Reading(
        named=operation.named,
        request=operation.request,
        use_case=operation.use_case,
        render=operation.render,
    )


_BY_RPC = {operation.rpc: operation for operation in OPERATIONS}
_SINGLE = {_shape(operation.path): _reading(operation) for operation in OPERATIONS if is_single(operation)}
_EXPERIMENT = _SINGLE["/v1/experiments/{}"]
_ASSIGNMENT = _Reading(
    named=("id", "participantId"),
    request=requests.OfAssignment,
    use_case=phases.get_assignment,
    render=resources.one_assignment,
)
"""The one resource that is changed by itself and that no operation shows by itself."""

_ALL_BUT_CONTENTS = frozenset(Scope) - {Scope.ADMIN, Scope.CONTENT_READ}


def witness(rpc: str, body: Mapping[str, Any]) -> Witnessed:
    """What this request is about."""
    if rpc in NOT_SHOWN:
        return _Nothing()
    if rpc in ROUTES:
        reading = _SINGLE.get(ROUTES[rpc].shown_as)
        return _Nothing() if reading is None else _Behind(reading, body)
    if rpc.startswith("Timer."):
        return _Changed(_EXPERIMENT, body)
    operation = _BY_RPC[rpc]
    if operation.status == 201 and _shape(operation.path) not in _SINGLE:
        names = tuple(re.findall(r"\{(\w+)\}", operation.location))
        made = _SINGLE.get(_shape(operation.location))
        if made is not None or not operation.location:
            return _Made(made, names)
    if operation.path.startswith("/v1/experiments/{id}/assignments/{participantId}:"):
        return _Changed(_ASSIGNMENT, body)
    about = subject(operation)
    return _Nothing() if about is None else _Changed(_reading(about), body)


class _Nothing:
    """Nothing is shown of it."""

    def before(self, work: Work) -> Any:
        return None

    def after(self, work: Work, answer: Any) -> Any:
        return None


class _Changed:
    """A resource that has a state before and, unless it was deleted, after."""

    def __init__(self, reading: _Reading, body: Mapping[str, Any]) -> None:
        self._reading, self._body = reading, body

    def before(self, work: Work) -> Any:
        return _shown(work, self._reading, self._body)

    def after(self, work: Work, answer: Any) -> Any:
        return _shown(work, self._reading, self._body)


class _Made:
    """A resource that was not there before; where no call shows one, its answer is what there is of it."""

    def __init__(self, reading: _Reading | None, names: tuple[str, ...]) -> None:
        self._reading, self._names = reading, names

    def before(self, work: Work) -> Any:
        return None

    def after(self, work: Work, answer: Any) -> Any:
        if self._reading is None:
            return answer
        values = {mine: answer[name] for mine, name in zip(self._reading.named, self._names, strict=True)}
        return _shown(work, self._reading, values)


class _Behind:
    """What a door's call is about: what its path names, where that names one of ours, and afterwards its answer's."""

    def __init__(self, reading: _Reading, body: Mapping[str, Any]) -> None:
        self._reading, self._name = reading, str(body.get("id", ""))

    def before(self, work: Work) -> Any:
        if self._reading is _EXPERIMENT:
            owner = work.store.experiments.owner(work.project_id, self._name)
            self._name = self._name if owner is None else show_id(owner)
        return self._seen(work, self._name)

    def after(self, work: Work, answer: Any) -> Any:
        return self._seen(work, answer["id"] or self._name)

    def _seen(self, work: Work, name: str) -> Any:
        if not name and self._reading.named:
            return None
        return _shown(work, self._reading, dict.fromkeys(self._reading.named, name))


def _shown(work: Work, reading: _Reading, values: Mapping[str, Any]) -> Any:
    caller = replace(work.caller, scopes=_ALL_BUT_CONTENTS, labels={})
    seeing = replace(work, caller=caller, changes=False)
    request = requests.parse(reading.request, {name: values[name] for name in reading.named})
    try:
        return reading.render(seeing, reading.use_case(seeing, request))
    except NotFound:
        return None
