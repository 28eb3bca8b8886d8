"""Use cases of metrics: saved ones, and the metrics of an experiment as they are stored and as they are meant."""

from dataclasses import dataclass, replace
from typing import Any

from control_plane.domain import requests
from control_plane.domain.experiment import key_from
from control_plane.domain.metrics import (
    CreateMetric,
    Definition,
    MetricSpec,
    MetricsSpec,
    UpdateMetric,
    kept,
)
from control_plane.services.work import Listing, Work, cursor_text, hex_of, listing, page_size
from control_plane.store.metrics import StoredMetric
from shared.errors import AlreadyExists, FailedPrecondition, Fault, Invalid, NotFound
from shared.ids import show_id


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A saved metric and the drafts that name it."""

    metric: StoredMetric
    experiments: tuple[str, ...]


def create(work: Work, request: CreateMetric) -> View:
    """The metric is saved, for drafts to name."""
    taken = work.store.metrics.keys(work.project_id)
    if request.key in taken:
        raise AlreadyExists(f"a metric with the key {request.key!r} exists already", reason="KEY_TAKEN")
    item = StoredMetric(
        id=work.new_id(),
        project_id=work.project_id,
        key=request.key or key_from(request.name, taken),
        name=request.name,
        definition=request.document(),
        created_at=work.now,
        updated_at=work.now,
        number=work.store.experiments.next_number(work.project_id),
    )
    work.store.metrics.put(item)
    return View(metric=item, experiments=())


def get(work: Work, request: requests.ById) -> View:
    """One saved metric. Raises NotFound."""
    return _view(work, find(work, request.id))


def list_page(work: Work, request: requests.Page) -> Listing:
    """A page of saved metrics by key."""
    size = page_size(request.limit)
    found = work.store.metrics.page(work.project_id, after=cursor_text(request.cursor), limit=size + 1)
    page = listing(found, size, lambda item: hex_of(item.key))
    return replace(page, items=[_view(work, item) for item in page.items])


def update(work: Work, request: UpdateMetric) -> View:
    """The metric is as asked, also in the drafts that name it; whatever has started keeps its copy."""
    item = find(work, request.id)
    definition = requests.parse(Definition, request.onto(item.definition))
    changed = replace(
        item, name=request.name or item.name, definition=definition.document(), updated_at=work.now
    )
    work.store.metrics.put(changed)
    return _view(work, changed)


def delete(work: Work, request: requests.ById) -> None:
    """The metric is gone. Raises FailedPrecondition naming the drafts that name it."""
    item = find(work, request.id)
    users = work.store.metrics.named_by(item)
    if users:
        raise FailedPrecondition(
            f"drafts name {item.key}, so it cannot be deleted: {', '.join(users[:10])}",
            reason="METRIC_IN_USE",
            details={"experiments": users[:100]},
        )
    work.store.metrics.delete(item.id)


def find(work: Work, id_or_key: str) -> StoredMetric:
    """The caller's saved metric with this id or key. Raises NotFound."""
    item = work.store.metrics.find(work.project_id, id_or_key)
    if item is None:
        raise NotFound(f"there is no metric {id_or_key!r}", reason="METRIC_NOT_FOUND")
    return item


def _view(work: Work, item: StoredMetric) -> View:
    return View(metric=item, experiments=tuple(work.store.metrics.named_by(item)))


# -- the metrics of an experiment


def stored(work: Work, spec: MetricsSpec, *, draft: bool) -> dict[str, Any]:
    """The metrics as an experiment keeps them: in draft a saved one is named, afterwards all are values.

    Raises Invalid where something is said beside a name that the saved metric does not say, NotFound for a
    name that there is not.
    """

    def one(item: MetricSpec, role: str, field: str) -> dict[str, Any]:
        if item.role not in (None, role):
            raise _refusal(f"{field}.role", f"it is in the place of a {role}", "leave it out")
        if item.event_name is None or (draft and item.id is not None):
            return _named(find(work, item.id or item.key or ""), item, field, draft=draft)
        called = {"id": item.id, "key": item.key, "name": item.name}
        return {**{k: v for k, v in called.items() if v}, **kept(item.definition().document())}

    return {
        **({"primary": one(spec.primary, "primary", "metrics.primary")} if spec.primary else {}),
        "secondary": [
            one(item, "secondary", f"metrics.secondary.{at}") for at, item in enumerate(spec.secondary)
        ],
        "guardrail": [
            one(item, "guardrail", f"metrics.guardrail.{at}") for at, item in enumerate(spec.guardrail)
        ],
    }


def _named(saved: StoredMetric, sent: MetricSpec, field: str, *, draft: bool) -> dict[str, Any]:
    for name, value in sent.said().items():
        if saved.definition.get(name) != value:
            raise _refusal(
                f"{field}.{name}",
                f"the saved metric {saved.key} says {saved.definition.get(name)!r}",
                "leave it out, change the saved metric, or write the metric without its id",
            )
    return {"id": show_id(saved.id)} if draft else copy_of(saved)


def copy_of(saved: StoredMetric) -> dict[str, Any]:
    """The saved metric by value, as an experiment that has started keeps it."""
    called = {"id": show_id(saved.id), "key": saved.key, "name": saved.name}
    return {**called, **kept(saved.definition)}


def by_value(work: Work, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of an experiment with every saved one that is named copied in."""

    def one(item: dict[str, Any]) -> dict[str, Any]:
        return item if "eventName" in item else copy_of(find(work, item["id"]))

    primary = metrics.get("primary")
    return {
        **({"primary": one(primary)} if primary else {}),
        "secondary": [one(item) for item in metrics.get("secondary", [])],
        "guardrail": [one(item) for item in metrics.get("guardrail", [])],
    }


def _refusal(field: str, message: str, remedy: str) -> Invalid:
    fault = Fault(field=field, message=message, remedy=remedy)
    return Invalid(f"{field}: {message}", reason="INVALID_FIELDS", faults=[fault])
