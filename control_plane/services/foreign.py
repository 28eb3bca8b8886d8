"""What the doors need besides the use cases that every client has: searches in their ways, and what they keep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from control_plane.domain.design import Selector
from control_plane.domain.experiment import Experiment, Variant, refuse_phase
from control_plane.domain.lifecycle import Status
from control_plane.domain.requests import ById, Complete, OpenPhase, UpdateExperiment
from control_plane.domain.targeting import TargetingRules
from control_plane.services import experiments, lifecycle, limits
from control_plane.services.experiments import View, find, find_variant, view_of
from control_plane.services.work import Work, cursor_text, hex_of
from control_plane.store.searches import Wanted
from shared.errors import AlreadyExists, FailedPrecondition, Invalid, NotFound
from shared.ids import parse_id, show_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Experiments, how many there are altogether, and where the next page starts (empty: nowhere)."""

    views: tuple[View, ...]
    total: int
    next_cursor: str = ""


def search(
    work: Work, wanted: Wanted, *, order: str = "number", descending: bool = True, offset: int = 0, limit: int
) -> Found:
    """So many of the experiments that the caller sees, from a place on."""
    mine = _narrowed(work, wanted)
    if mine is None:
        return Found(views=(), total=0)
    ids = work.store.searches.page(
        mine, order=order, descending=descending, offset=offset, limit=limit, now=work.now
    )
    return Found(views=_views(work, ids), total=work.store.searches.count(mine))


def last_changed(work: Work, wanted: Wanted, *, cursor: str, limit: int) -> Found:
    """So many of them, the last changed first, from where a page ended. Raises Invalid for another cursor."""
    mine = _narrowed(work, wanted)
    after = _after(cursor)
    if mine is None:
        return Found(views=(), total=0)
    rows = work.store.searches.below(mine, after=after, limit=limit + 1)
    page = rows[:limit]
    more = len(rows) > limit
    cursor = hex_of(f"{page[-1]['updated_at']} {show_id(page[-1]['id'])}") if more else ""
    return Found(views=_views(work, [row["id"] for row in page]), total=len(rows), next_cursor=cursor)


def _narrowed(work: Work, wanted: Wanted) -> Wanted | None:
    labels = limits.narrowed(work, wanted.labels)
    return None if labels is None else replace(wanted, labels=labels)


def _views(work: Work, ids: list[bytes]) -> tuple[View, ...]:
    return tuple(view_of(work, work.store.experiments.get(experiment_id)) for experiment_id in ids)


def _after(cursor: str) -> tuple[int, bytes] | None:
    if not cursor:
        return None
    moment, _, shown = cursor_text(cursor).partition(" ")
    identifier = parse_id(shown)
    if not (moment.isascii() and moment.isdecimal() and len(moment) <= 18) or identifier is None:
        raise Invalid("cursor: is not one that a list answered", reason="INVALID_CURSOR")
    return int(moment), identifier


def of_variant(work: Work, variant_id: str) -> tuple[Experiment, Variant]:
    """The variant with this id, and whose it is. Raises NotFound."""
    owner = work.store.experiments.owner(work.project_id, variant_id)
    if owner is None:
        raise NotFound(f"there is no variant {variant_id!r}", reason="VARIANT_NOT_FOUND")
    experiment = find(work, show_id(owner))
    return experiment, find_variant(experiment, variant_id)


def keep(work: Work, experiment_id: bytes, door: str, fields: Mapping[str, Any]) -> View:
    """The experiment keeps these fields of a door, besides those it kept that are not among them."""
    experiment = work.store.experiments.get(experiment_id)
    if fields:
        merged = {**experiment.kept, door: {**experiment.kept.get(door, {}), **fields}}
        work.store.experiments.save(replace(experiment, kept=merged, updated_at=work.now))
    return view_of(work, work.store.experiments.get(experiment_id))


def keep_of_variant(work: Work, variant: Variant, door: str, fields: Mapping[str, Any]) -> None:
    """The variant keeps these fields of a door, besides those it kept that are not among them."""
    if fields:
        merged = {**variant.kept, door: {**variant.kept.get(door, {}), **fields}}
        work.store.experiments.put_variant(replace(variant, kept=merged, updated_at=work.now))


def rekey(work: Work, experiment: Experiment, key: str) -> None:
    """The experiment goes by another key. Raises AlreadyExists where it is another's."""
    if key == experiment.key:
        return
    if key in work.store.experiments.keys(work.project_id):
        raise AlreadyExists(f"an experiment with the key {key!r} exists already", reason="KEY_TAKEN")
    work.store.experiments.save(replace(experiment, key=key, updated_at=work.now))


def retarget(work: Work, experiment: Experiment, wanted: UpdateExperiment) -> None:
    """From now on these rules, and these labels if they are given, say who comes in; whoever takes part stays."""
    present = work.store.experiments.get(experiment.id)
    rules = wanted.targeting_rules or TargetingRules()
    changed = replace(present, design=present.design.model_copy(update={"targeting_rules": rules}))
    if wanted.given("participants"):
        selector = wanted.participants or Selector()
        limits.require_choice(work, selector)
        shown = selector.model_dump(mode="json", by_alias=True, exclude_none=True)
        changed = replace(changed, selector=shown)
    work.store.experiments.save(replace(changed, updated_at=work.now))


def reallocate(work: Work, experiment: Experiment, wanted: OpenPhase) -> None:
    """With its resume a paused experiment has the allocation, as a phase. Raises FailedPrecondition for no phases."""
    refuse_phase(experiment)
    present = work.store.experiments.get(experiment.id)
    design = present.design.model_copy(update={"traffic_allocation": wanted.traffic_allocation})
    work.store.experiments.save(replace(present, design=design, updated_at=work.now))


def end(work: Work, experiment: Experiment) -> None:
    """It is not under way any more: what was has ended, and files stay as they are."""
    if experiment.status not in (Status.DRAFT, Status.COMPLETED):
        lifecycle.complete(work, Complete(id=show_id(experiment.id)))


def delete(work: Work, request: ById) -> None:
    """A draft is gone, anything else has ended and is archived. Files stay as they are."""
    end(work, find(work, request.id))
    experiments.delete(work, request)


def conclude(work: Work, experiment: Experiment, conclusion: str | None, comment: str | None) -> None:
    """What was concluded of an experiment that has ended is as said."""
    changed = replace(experiment, conclusion=conclusion, conclusion_comment=comment, updated_at=work.now)
    work.store.experiments.save(changed)


def require_not(experiment: Experiment, states: Callable[[Experiment], bool], sentence: str) -> None:
    """The experiment is none of these. Raises FailedPrecondition with the sentence and its state."""
    if states(experiment):
        state = "archived" if experiment.archived else experiment.status.value
        raise FailedPrecondition(sentence, reason="WRONG_STATE", details={"state": state})


def is_over(experiment: Experiment) -> bool:
    """Whether it has ended for good."""
    return experiment.status is Status.COMPLETED
