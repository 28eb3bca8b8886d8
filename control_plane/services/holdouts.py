"""Use cases of holdouts: a share of participants that stays out of every experiment that names it."""

from dataclasses import dataclass, replace

from control_plane.domain import requests
from control_plane.domain.experiment import key_from
from control_plane.domain.intake import Holdout
from control_plane.services.work import Listing, Work, cursor_text, hex_of, listing, page_size
from control_plane.store.holdouts import StoredHoldout
from shared.errors import AlreadyExists, FailedPrecondition, NotFound
from shared.ids import new_secret


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A holdout and the experiments that name it."""

    holdout: StoredHoldout
    experiments: tuple[str, ...]


def create(work: Work, request: requests.CreateHoldout) -> View:
    """The holdout exists, with a seed of its own, so that who is in it is the same in every experiment."""
    taken = work.store.holdouts.keys(work.project_id)
    if request.key in taken:
        raise AlreadyExists(f"a holdout with the key {request.key!r} exists already", reason="KEY_TAKEN")
    item = StoredHoldout(
        id=work.new_id(),
        project_id=work.project_id,
        key=request.key or key_from(request.name, taken),
        name=request.name,
        description=request.description,
        rule=Holdout(seed=new_secret(), share=request.share),
        created_at=work.now,
        updated_at=work.now,
        number=work.store.experiments.next_number(work.project_id),
    )
    work.store.holdouts.put(item)
    return View(holdout=item, experiments=())


def get(work: Work, request: requests.ById) -> View:
    """One holdout. Raises NotFound."""
    return _view(work, find(work, request.id))


def list_page(work: Work, request: requests.Page) -> Listing:
    """A page of holdouts by key."""
    size = page_size(request.limit)
    found = work.store.holdouts.page(work.project_id, after=cursor_text(request.cursor), limit=size + 1)
    page = listing(found, size, lambda item: hex_of(item.key))
    return replace(page, items=[_view(work, item) for item in page.items])


def update(work: Work, request: requests.UpdateHoldout) -> View:
    """The holdout is as asked; its share stays while an experiment that names it is under way."""
    item = find(work, request.id)
    if request.share is not None and request.share != item.rule.share:
        _refuse(work, item, started=True, what="its share cannot change")
    changed = replace(
        item,
        name=request.name or item.name,
        description=item.description if request.description is None else request.description,
        rule=item.rule if request.share is None else replace(item.rule, share=request.share),
        updated_at=work.now,
    )
    work.store.holdouts.put(changed)
    return _view(work, changed)


def delete(work: Work, request: requests.ById) -> None:
    """The holdout is gone. Raises FailedPrecondition naming the experiments that name it."""
    item = find(work, request.id)
    _refuse(work, item, started=False, what="it cannot be deleted")
    work.store.holdouts.delete(item.id)


def find(work: Work, id_or_key: str) -> StoredHoldout:
    """The caller's holdout with this id or key. Raises NotFound."""
    item = work.store.holdouts.find(work.project_id, id_or_key)
    if item is None:
        raise NotFound(f"there is no holdout {id_or_key!r}", reason="HOLDOUT_NOT_FOUND")
    return item


def _refuse(work: Work, item: StoredHoldout, *, started: bool, what: str) -> None:
    users = work.store.holdouts.named_by(item, started=started)
    if users:
        raise FailedPrecondition(
            f"experiments name {item.key}, so {what}: {', '.join(users[:10])}",
            reason="HOLDOUT_IN_USE",
            details={"experiments": users[:100]},
        )


def _view(work: Work, item: StoredHoldout) -> View:
    return View(holdout=item, experiments=tuple(work.store.holdouts.named_by(item, started=False)))
