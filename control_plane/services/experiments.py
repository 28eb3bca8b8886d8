"""Use cases of experiments: reading them, and drafting them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from control_plane.domain import requests
from control_plane.domain.design import Design, DesignFields, Schedule, Selector, Type
from control_plane.domain.experiment import (
    UNTOLD,
    Assignment,
    Experiment,
    Variant,
    VariantFile,
    cannot_decide,
    key_from,
    name_of_copy,
)
from control_plane.domain.lifecycle import Status, Verb
from control_plane.domain.metrics import MetricsSpec
from control_plane.domain.targeting import TargetingRules
from control_plane.services import excluding, factoring, limits, metrics, settings, timers, windows
from control_plane.services.seating import planned
from control_plane.services.work import (
    Listing,
    Work,
    cursor_id,
    cursor_text,
    hex_of,
    listing,
    page_size,
)
from shared.errors import AlreadyExists, FailedPrecondition, Fault, Invalid, NotFound
from shared.ids import new_secret, parse_id, show_id
from shared.moment import to_rfc3339


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """An experiment as it is shown: with who has what, and what the caller may not have meant."""

    experiment: Experiment
    assignments: tuple[Assignment, ...]
    metrics: dict[str, Any]
    warnings: tuple[tuple[str, str], ...] = ()
    created: bool = False


def find(work: Work, id_or_key: str) -> Experiment:
    """The caller's experiment with this id or key. Raises NotFound.

    To a key limited to labels also PermissionDenied, where it changes what reaches further.
    """
    experiment = work.store.experiments.find(work.project_id, id_or_key)
    if experiment is None or not work.caller.sees(experiment.labels):
        raise NotFound(f"there is no experiment {id_or_key!r}", reason="EXPERIMENT_NOT_FOUND")
    if work.changes:
        limits.require_confined(work, experiment)
    work.about = show_id(experiment.id)
    return experiment


def find_variant(experiment: Experiment, id_or_key: str) -> Variant:
    """The experiment's variant with this id or key. Raises NotFound naming the variants there are."""
    wanted = parse_id(id_or_key)
    for variant in experiment.variants:
        if variant.id == wanted or variant.key == id_or_key:
            return variant
    known = ", ".join(variant.key for variant in experiment.variants) or "none"
    raise NotFound(
        f"experiment {experiment.key} has no variant {id_or_key!r}; it has {known}",
        reason="VARIANT_NOT_FOUND",
    )


# -- reading


def get(work: Work, request: requests.ById) -> View:
    """One experiment with its variants, and what did not happen by itself though it was scheduled."""
    view = view_of(work, find(work, request.id))
    failed = tuple(
        (
            "SCHEDULE_FAILED",
            f"the {timer.kind} scheduled for {to_rfc3339(timer.due_at)} failed: {timer.failure['message']}",
        )
        for timer in work.store.timers.failures(view.experiment.id)
        if timer.failure
    )
    return replace(view, warnings=(*view.warnings, *failed))


def list_page(work: Work, request: requests.ListExperiments) -> Listing:
    """A page of experiments, newest first."""
    size = page_size(request.limit)
    labels = limits.narrowed(work, request.labels)
    if labels is None:
        return Listing(items=[], next_cursor="", limit=size)
    found = work.store.experiments.page(
        work.project_id,
        status=request.status,
        kind=request.type,
        search=request.search,
        archived=request.archived,
        labels=labels,
        before=cursor_id(request.cursor),
        limit=size + 1,
    )
    page = listing(found, size, lambda item: hex_of(item.id))
    return replace(page, items=[view_of(work, item) for item in page.items])


def list_variants(work: Work, request: requests.ById) -> View:
    """The experiment, for its variants."""
    return get(work, request)


def get_variant(work: Work, request: requests.OfVariant) -> tuple[View, Variant]:
    """One variant and the experiment around it."""
    view = view_of(work, find(work, request.id))
    return view, find_variant(view.experiment, request.variant_id)


def list_assignments(work: Work, request: requests.PageOf) -> Listing:
    """A page of the present phase's assignments by participant (and time block); in draft, of the planned ones."""
    experiment = find(work, request.id)
    size, after = page_size(request.limit), _after(request.cursor)
    if experiment.phase is None:
        ahead = sorted(planned(work, experiment), key=lambda item: item.participant)
        found = [item for item in ahead if item.participant > after[0]][: size + 1]
    else:
        found = work.store.experiments.assignments(experiment.phase.id, after=after, limit=size + 1)
    return listing(found, size, lambda item: hex_of(f"{item.participant} {item.from_at}"))


def _after(cursor: str) -> tuple[str, int]:
    """(participant, beginning) of the last assignment of a page. Raises Invalid where malformed."""
    if not cursor:
        return "", 0
    name, _, moment = cursor_text(cursor).partition(" ")
    if not moment.isascii() or not moment.isdecimal() or len(moment) > 18:
        raise Invalid("cursor: is not one that a list answered", reason="INVALID_CURSOR")
    return name, int(moment)


def view_of(work: Work, experiment: Experiment) -> View:
    """The experiment with its assignments: the present phase's, or in draft the planned ones.

    Of a switchback those of the current block, in draft of the first.
    """
    measured = metrics.by_value(work, experiment.metrics)
    if experiment.phase is None:
        return View(experiment=experiment, assignments=planned(work, experiment), metrics=measured)
    return View(
        experiment=experiment,
        assignments=tuple(work.store.experiments.present(experiment.phase.id, now=work.now)),
        metrics=measured,
    )


def design_warnings(view: View) -> tuple[tuple[str, str], ...]:
    """What an operator should know of a design that cannot decide."""
    why = cannot_decide(view.experiment, view.assignments)
    return (("DESIGN_CANNOT_DECIDE", why),) if why else ()


# -- drafting


def create(work: Work, request: requests.CreateExperiment) -> View:
    """The draft exists, with its variants; participants nobody has seen exist too, with a warning."""
    limits.require_labels(work, request.labels)
    store = work.store.experiments
    taken = store.keys(work.project_id)
    if request.key in taken:
        raise AlreadyExists(f"an experiment with the key {request.key!r} exists already", reason="KEY_TAKEN")
    selector, warnings = _ensure_participants(work, request.selector or Selector())
    experiment = Experiment(
        id=work.new_id(),
        project_id=work.project_id,
        number=store.next_number(work.project_id),
        key=request.key or key_from(request.name, taken | requests.RESERVED_KEYS),
        name=request.name,
        description=request.description,
        type=request.type,
        status=Status.DRAFT,
        archived=False,
        target_file=request.target_file,
        selector=selector,
        metrics=metrics.stored(work, request.metrics, draft=True),
        **_designed(work, Design(), request, new=True),
        factors=factoring.stored(work, request.type, request.factors),
        labels=dict(request.labels),
        metadata=request.metadata,
        run=1,
        seed=new_secret(),
        created_by=work.caller.actor,
        version=1,
        created_at=work.now,
        updated_at=work.now,
    )
    _check_schedule(work, replace(experiment, design=Design()), experiment.design.schedule)
    _check_type(experiment)
    store.add(experiment)
    for index, spec in enumerate(request.variants or factoring.generated(experiment)):
        _put_new_variant(work, experiment, spec, field=f"variants.{index}")
        experiment = replace(experiment, variants=store.variants(experiment.id))
    excluding.named(experiment)
    settings.refuse(work, experiment)
    timers.schedule(work, experiment)
    view = view_of(work, experiment)
    return replace(view, warnings=(*warnings, *design_warnings(view)), created=True)


def _json(model: requests.Request) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _ensure_participants(work: Work, selector: Selector) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    limits.require_choice(work, selector)
    there = work.store.fleet.participants_named(work.project_id, selector.ids)
    unseen = [public_id for public_id in selector.ids if public_id not in there]
    for public_id in unseen:
        work.store.fleet.add_participant(
            work.new_id(), project_id=work.project_id, public_id=public_id, labels={}, now=work.now
        )
    warnings = []
    if unseen:
        listed = ", ".join(unseen[:10]) + (f" and {len(unseen) - 10} more" if len(unseen) > 10 else "")
        warnings.append(
            ("NEVER_SEEN", f"no agent has declared {listed} yet; deployments wait until one does")
        )
    return _json(selector), warnings


def _put_new_variant(
    work: Work, experiment: Experiment, spec: requests.VariantSpec, *, field: str
) -> Variant:
    keys = {variant.key for variant in experiment.variants}
    if spec.key in keys:
        raise AlreadyExists(
            f"{field}: a variant with the key {spec.key!r} exists already", reason="KEY_TAKEN"
        )
    factoring.check_levels(experiment, spec, field=field)
    multivariate = experiment.type is Type.MULTIVARIATE
    variant = Variant(
        id=work.new_id(),
        experiment_id=experiment.id,
        position=1 + max((variant.position for variant in experiment.variants), default=0),
        key=spec.key or key_from(spec.name, keys),
        name=spec.name,
        description=spec.description,
        is_control=spec.is_control,
        weight=spec.weight,
        files=factoring.files(experiment, spec.levels)
        if multivariate
        else _files(work, experiment, spec.content, spec.files, field=field),
        levels=dict(spec.levels),
        targeting_rules=_rules(experiment, spec.targeting_rules, field=field),
        config=spec.config,
        metadata=spec.metadata,
        created_at=work.now,
        updated_at=work.now,
    )
    work.store.experiments.put_variant(variant)
    return variant


def _rules(experiment: Experiment, rules: TargetingRules, *, field: str) -> TargetingRules:
    """The rules of a variant. Raises Invalid where the type has no place for any."""
    if rules.labels and experiment.type is not Type.PERSONALIZATION:
        fault = Fault(
            field=f"{field}.targetingRules",
            message=f"variants of type {experiment.type.value} are drawn, not chosen by rules",
            remedy="use type personalization, or the experiment's own targetingRules for who takes part",
        )
        raise Invalid(f"{fault.field}: {fault.message}", reason="INVALID_FIELDS", faults=[fault])
    return rules


def _files(
    work: Work,
    experiment: Experiment,
    content: str | None,
    files: Sequence[requests.FileSpec],
    *,
    field: str,
) -> tuple[VariantFile, ...]:
    bodies = {file.path: file.body() for file in files}
    if content is not None:
        if experiment.target_file is None:
            fault = Fault(
                field=f"{field}.content",
                message="the experiment has no targetFile to put it into",
                remedy="set targetFile, or send files with their paths",
            )
            raise Invalid(f"{fault.field}: {fault.message}", reason="INVALID_FIELDS", faults=[fault])
        bodies[experiment.target_file] = content.encode()
    for path, body in bodies.items():
        if len(body) > factoring.MAX_CONTENT_BYTES:
            fault = Fault(
                field=f"{field}.files.{path}", message="is larger than 1 MiB", remedy="make it smaller"
            )
            raise Invalid(f"{fault.field}: {fault.message}", reason="TOO_LARGE", faults=[fault])
    return tuple(
        VariantFile(
            path=path, digest=work.store.experiments.put_content(work.project_id, body), size=len(body)
        )
        for path, body in sorted(bodies.items())
    )


_STRUCTURE = {
    "target_file",
    "factors",
    "participant_ids",
    "participants",
    "metrics",
    *Design.model_fields,
} - {"schedule"}  # its end may move until it is reached


def update(work: Work, request: requests.UpdateExperiment) -> View:
    """The experiment is as asked; structure changes only in draft, metrics as long as it is under way.

    That metrics changed after the start stays visible: results and findings say so.
    """
    experiment = find(work, request.id)
    locked = _STRUCTURE - {"metrics"} if experiment.replannable else _STRUCTURE
    if any(request.given(name) for name in locked):
        experiment.after(Verb.EDIT)
    if request.given("schedule"):
        _check_schedule(work, experiment, request.schedule or Schedule())
    changed = replace(
        experiment,
        name=request.name or experiment.name,
        description=(request.description or "") if request.given("description") else experiment.description,
        target_file=request.target_file if request.given("target_file") else experiment.target_file,
        labels=dict(request.labels or {}) if request.given("labels") else experiment.labels,
        metadata=request.metadata if request.given("metadata") else experiment.metadata,
        metrics=_measured(work, experiment, request),
        **_designed(work, experiment.design, request),
        updated_at=work.now,
    )
    if request.given("factors"):
        factors = factoring.stored(work, experiment.type, request.factors or ())
        changed = replace(changed, factors=factors)
    limits.require_labels(work, changed.labels)
    changed = excluding.named(changed)
    _check_type(changed)
    warnings: list[tuple[str, str]] = []
    if request.given("participants") or request.given("participant_ids"):
        selector, warnings = _ensure_participants(work, request.selector or Selector())
        changed = replace(changed, selector=selector)
    if request.target_file and request.target_file != experiment.target_file:
        _retarget(work, experiment, request.target_file)
    work.store.experiments.save(changed)
    if changed.metrics != experiment.metrics and experiment.phase is not None:
        windows.count_anew(work, changed, work.store.events)
    if changed.factors != experiment.factors:
        for spec in factoring.recompose(work, experiment, changed):
            present = work.store.experiments.get(experiment.id)
            _put_new_variant(work, present, spec, field="factors")
    timers.schedule(work, changed)
    view = view_of(work, work.store.experiments.get(experiment.id))
    if request.given("target_file") or request.given("factors"):
        settings.refuse(work, view.experiment)
    return replace(view, warnings=(*warnings, *design_warnings(view)))


def _measured(work: Work, experiment: Experiment, request: requests.UpdateExperiment) -> dict[str, Any]:
    if not request.given("metrics"):
        return experiment.metrics
    draft = experiment.status is Status.DRAFT
    return metrics.stored(work, request.metrics or MetricsSpec(), draft=draft)


def _check_type(experiment: Experiment) -> None:
    """What belongs to one type is in that. Raises Invalid naming the field."""
    if experiment.design.switchback is not None and experiment.type is not Type.SWITCHBACK:
        message = f"an experiment of type {experiment.type.value} has no blocks"
        factoring.refuse("switchback", message, "use type switchback")
    if experiment.type is Type.MULTIVARIATE and experiment.target_file is not None:
        factoring.refuse("targetFile", "each factor has its own", "leave it out, and set factors.targetFile")


def _designed(work: Work, design: Design, sent: DesignFields, *, new: bool = False) -> dict[str, Any]:
    """The design with what was sent and the project's defaults for what was not, and the rule of its holdout.

    A holdout goes by its id from then on. Raises NotFound for none.
    """
    changed = settings.of(work).defaults.fill(design.changed(sent), sent, new=new)
    if changed.holdout_id is None:
        return {"design": changed, "holdout": None}
    item = work.store.holdouts.find(work.project_id, changed.holdout_id)
    if item is None:
        raise NotFound(f"there is no holdout {changed.holdout_id!r}", reason="HOLDOUT_NOT_FOUND")
    named = changed.model_copy(update={"holdout_id": show_id(item.id)})
    return {"design": named, "holdout": item.rule}


def _check_schedule(work: Work, experiment: Experiment, wanted: Schedule) -> None:
    """What is scheduled is ahead, and still possible. Raises Invalid naming the field."""
    past = [
        Fault(
            field=f"schedule.{name}",
            message=f"{text} is past",
            remedy="choose a moment ahead, or leave it out",
        )
        for name, text, moment, before in (
            ("startAt", wanted.start_at, wanted.start, experiment.design.schedule.start),
            ("endAt", wanted.end_at, wanted.end, experiment.design.schedule.end),
        )
        if moment is not None and moment <= work.now and moment != before
    ]
    if experiment.status is not Status.DRAFT and wanted.start != experiment.design.schedule.start:
        past = [
            Fault(field="schedule.startAt", message="it has started", remedy="send the startAt it has"),
            *past,
        ]
    if past:
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in past)
        raise Invalid(listed, reason="INVALID_FIELDS", faults=past)


def _retarget(work: Work, experiment: Experiment, target: str) -> None:
    """The content of the old target file is the content of the new one."""
    for variant in experiment.variants:
        files = tuple(
            replace(file, path=target) if file.path == experiment.target_file else file
            for file in variant.files
        )
        work.store.experiments.put_variant(replace(variant, files=files, updated_at=work.now))


def delete(work: Work, request: requests.ById) -> None:
    """A draft is gone; a completed experiment, or a draft that has run before, is archived.

    Anything else is refused naming `complete`.
    """
    experiment = find(work, request.id)
    experiment.after(Verb.DELETE)
    require_unused(work, experiment)
    if experiment.status is Status.COMPLETED or experiment.run > 1:
        work.store.experiments.save(replace(experiment, archived=True, updated_at=work.now))
        return
    work.store.experiments.delete(experiment.id)


def require_unused(work: Work, experiment: Experiment) -> None:
    """Raises FailedPrecondition for a draft that holds files: out of sight, nobody would know how to free them."""
    if experiment.status is Status.DRAFT and work.store.experiments.holds(experiment.id):
        raise FailedPrecondition(
            "something was deployed by hand from this draft; start and complete it with `restore` first",
            reason="DRAFT_IN_USE",
        )


def duplicate(work: Work, request: requests.Duplicate) -> View:
    """There is a new draft with the same design: variants, participants, metrics and settings.

    Its key and seed are its own; what happened to the other one (dates, conclusion, assignments) is not copied.
    """
    source = find(work, request.id)
    store = work.store.experiments
    taken = store.keys(work.project_id)
    if request.key in taken:
        raise AlreadyExists(f"an experiment with the key {request.key!r} exists already", reason="KEY_TAKEN")
    name = request.name or name_of_copy(source.name, store.names(work.project_id))
    copy = replace(
        source,
        id=work.new_id(),
        number=store.next_number(work.project_id),
        key=request.key or key_from(name, taken | requests.RESERVED_KEYS),
        name=name,
        status=Status.DRAFT,
        archived=False,
        run=1,
        seed=new_secret(),
        created_by=work.caller.actor,
        version=1,
        created_at=work.now,
        updated_at=work.now,
        design=source.design.model_copy(update={"schedule": Schedule()}),
        variants=(),
        phase=None,
        **UNTOLD,
    )
    store.add(copy)
    for variant in source.variants:
        store.put_variant(
            replace(
                variant, id=work.new_id(), experiment_id=copy.id, created_at=work.now, updated_at=work.now
            )
        )
    view = view_of(work, store.get(copy.id))
    return replace(view, warnings=design_warnings(view), created=True)


def add_variant(work: Work, request: requests.AddVariant) -> tuple[View, Variant]:
    """The draft has one variant more."""
    experiment = find(work, request.id)
    experiment.after(Verb.EDIT)
    variant = _put_new_variant(work, experiment, request, field="variant")
    settings.refuse(work, experiment, [variant])
    work.store.experiments.save(replace(experiment, updated_at=work.now))
    return view_of(work, work.store.experiments.get(experiment.id)), variant


_LOCKED = ("is_control", "weight", "content", "files", "targeting_rules", "levels", "config")
"""What of a variant changes only in draft."""


def update_variant(work: Work, request: requests.UpdateVariant) -> tuple[View, Variant]:
    """The variant is as asked; after start only name, description and metadata change."""
    experiment = find(work, request.id)
    variant = find_variant(experiment, request.variant_id)
    if any(request.given(name) for name in _LOCKED):
        experiment.after(Verb.EDIT)
    files = variant.files
    factoring.check_levels(experiment, request, field="variant")
    levels = dict(request.levels or {}) if request.given("levels") else variant.levels
    if experiment.type is Type.MULTIVARIATE:
        files = factoring.files(experiment, levels)
    elif request.given("files") or request.content is not None:
        files = _files(work, experiment, request.content, request.files or (), field="variant")
    elif request.given("content"):
        files = tuple(file for file in files if file.path != experiment.target_file)
    changed = replace(
        variant,
        name=request.name or variant.name,
        description=(request.description or "") if request.given("description") else variant.description,
        is_control=bool(request.is_control) if request.given("is_control") else variant.is_control,
        weight=(request.weight or 0) if request.given("weight") else variant.weight,
        files=files,
        levels=levels,
        targeting_rules=_rules(experiment, request.targeting_rules or TargetingRules(), field="variant")
        if request.given("targeting_rules")
        else variant.targeting_rules,
        config=request.config if request.given("config") else variant.config,
        metadata=request.metadata if request.given("metadata") else variant.metadata,
        updated_at=work.now,
    )
    if changed.files != variant.files:
        settings.refuse(work, experiment, [changed])
    work.store.experiments.put_variant(changed)
    work.store.experiments.save(replace(experiment, updated_at=work.now))
    return view_of(work, work.store.experiments.get(experiment.id)), changed


def delete_variant(work: Work, request: requests.OfVariant) -> None:
    """The draft has one variant less."""
    experiment = find(work, request.id)
    variant = find_variant(experiment, request.variant_id)
    experiment.after(Verb.EDIT)
    work.store.experiments.delete_variant(variant.id)
    left = excluding.without(experiment, variant.key)
    work.store.experiments.save(replace(left, updated_at=work.now))
