"""Use cases of experiments: drafting, starting, and every other step of their life."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from control_plane.domain import requests
from control_plane.domain.assignment import ALGORITHM, Arm, Candidate, assign
from control_plane.domain.deployment import DeploymentFile, Origin
from control_plane.domain.experiment import (
    Assignment,
    Experiment,
    Phase,
    Readiness,
    Status,
    Variant,
    VariantFile,
    Verb,
    after,
    faults_at_start,
    key_from,
    plan,
    verb_towards,
)
from control_plane.domain.fleet import Participant, matches
from control_plane.services.results import summarise_phase
from control_plane.services.work import (
    Listing,
    Work,
    cursor_id,
    cursor_text,
    hex_of,
    listing,
    page_size,
)
from control_plane.store.deployments import NewDeployment
from shared.errors import AlreadyExists, FailedPrecondition, Fault, Invalid, NotFound
from shared.ids import new_secret, parse_id
from shared.model import OfferAction

MAX_CONTENT_BYTES = 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """An experiment as it is shown: with who has what, and what the caller may not have meant."""

    experiment: Experiment
    assignments: tuple[Assignment, ...]
    warnings: tuple[tuple[str, str], ...] = ()
    created: bool = False


def find(work: Work, id_or_key: str) -> Experiment:
    """The caller's experiment with this id or key. Raises NotFound."""
    experiment = work.store.experiments.find(work.project_id, id_or_key)
    if experiment is None:
        raise NotFound(f"there is no experiment {id_or_key!r}", reason="EXPERIMENT_NOT_FOUND")
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
    """One experiment with its variants."""
    return _view(work, find(work, request.id))


def list_page(work: Work, request: requests.ListExperiments) -> Listing:
    """A page of experiments, newest first."""
    size = page_size(request.limit)
    found = work.store.experiments.page(
        work.project_id,
        status=request.status,
        search=request.search,
        before=cursor_id(request.cursor),
        limit=size + 1,
    )
    page = listing(found, size, lambda item: hex_of(item.id))
    return replace(page, items=[_view(work, item) for item in page.items])


def list_variants(work: Work, request: requests.ById) -> View:
    """The experiment, for its variants."""
    return get(work, request)


def get_variant(work: Work, request: requests.OfVariant) -> tuple[View, Variant]:
    """One variant and the experiment around it."""
    view = _view(work, find(work, request.id))
    return view, find_variant(view.experiment, request.variant_id)


def list_assignments(work: Work, request: requests.PageOf) -> Listing:
    """A page of the present phase's assignments by participant; in draft, of the planned ones."""
    experiment = find(work, request.id)
    size, after_id = page_size(request.limit), cursor_text(request.cursor)
    if experiment.phase is None:
        planned = sorted(_planned(work, experiment), key=lambda item: item.participant)
        found = [item for item in planned if item.participant > after_id][: size + 1]
    else:
        found = work.store.experiments.assignments(experiment.phase.id, after=after_id, limit=size + 1)
    return listing(found, size, lambda item: hex_of(item.participant))


def _view(work: Work, experiment: Experiment) -> View:
    if experiment.phase is None:
        return View(experiment=experiment, assignments=_planned(work, experiment))
    return View(
        experiment=experiment,
        assignments=tuple(work.store.experiments.assignments(experiment.phase.id)),
    )


def _planned(work: Work, experiment: Experiment) -> tuple[Assignment, ...]:
    """What a start would assign now; locks nothing."""
    participants = _selected(work, experiment.selector)
    by_key = {variant.key: variant for variant in experiment.variants}
    placements = plan(experiment, _candidates(participants))
    return tuple(
        Assignment(
            id=None,
            experiment_id=experiment.id,
            phase_id=None,
            participant=placement.participant,
            variant_id=by_key[placement.arm].id,
            block=placement.block,
            stratum=placement.stratum,
            position=placement.position,
            from_at=0,
        )
        for placement in placements
    )


def _selected(work: Work, selector: dict[str, Any]) -> list[Participant]:
    ids, labels = selector.get("ids", []), selector.get("labels", {})
    if ids:
        found = [work.store.fleet.participant(work.project_id, public_id) for public_id in ids]
        return [participant for participant in found if participant is not None]
    if not labels:
        return []
    everyone = work.store.fleet.participants(work.project_id)
    return [participant for participant in everyone if matches(participant.labels, labels)]


def _candidates(participants: Sequence[Participant]) -> list[Candidate]:
    """Stratum: the agent, because what is common to a host is common to its participants."""
    return [
        Candidate(
            participant=participant.public_id,
            stratum=participant.agent_uid.hex() if participant.agent_uid else "never_seen",
        )
        for participant in participants
    ]


# -- drafting


def create(work: Work, request: requests.CreateExperiment) -> View:
    """The draft exists, with its variants; participants nobody has seen exist too, with a warning."""
    store = work.store.experiments
    taken = store.keys(work.project_id)
    if request.key in taken:
        raise AlreadyExists(f"an experiment with the key {request.key!r} exists already", reason="KEY_TAKEN")
    selector, warnings = _ensure_participants(work, request.selector or requests.Selector())
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
        metrics=_json(request.metrics),
        settle_seconds=request.exposure_criteria.settle_seconds,
        alpha=request.analysis.alpha,
        labels=dict(request.labels),
        metadata=request.metadata,
        run=1,
        seed=new_secret(),
        created_by=work.caller.actor,
        version=1,
        created_at=work.now,
        updated_at=work.now,
    )
    store.add(experiment)
    for index, spec in enumerate(request.variants):
        _put_new_variant(work, experiment, spec, field=f"variants.{index}")
        experiment = replace(experiment, variants=store.variants(experiment.id))
    view = _view(work, experiment)
    return replace(view, warnings=tuple(warnings), created=True)


def _json(model: requests.Request) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _ensure_participants(
    work: Work, selector: requests.Selector
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    unseen = []
    for public_id in selector.ids:
        if work.store.fleet.participant(work.project_id, public_id) is None:
            work.store.fleet.add_participant(
                work.new_id(), project_id=work.project_id, public_id=public_id, labels={}, now=work.now
            )
            unseen.append(public_id)
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
    variant = Variant(
        id=work.new_id(),
        experiment_id=experiment.id,
        position=1 + max((variant.position for variant in experiment.variants), default=0),
        key=spec.key or key_from(spec.name, keys),
        name=spec.name,
        description=spec.description,
        is_control=spec.is_control,
        weight=spec.weight,
        files=_files(work, experiment, spec.content, spec.files, field=field),
        config=spec.config,
        metadata=spec.metadata,
        created_at=work.now,
        updated_at=work.now,
    )
    work.store.experiments.put_variant(variant)
    return variant


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
        if len(body) > MAX_CONTENT_BYTES:
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


_STRUCTURE = ("target_file", "participant_ids", "participants", "exposure_criteria", "analysis", "metrics")


def update(work: Work, request: requests.UpdateExperiment) -> View:
    """The experiment is as asked; structure changes only in draft."""
    experiment = find(work, request.id)
    if any(request.given(name) for name in _STRUCTURE):
        after(experiment.status, Verb.EDIT)
    changed = replace(
        experiment,
        name=request.name or experiment.name,
        description=experiment.description if request.description is None else request.description,
        target_file=request.target_file or experiment.target_file,
        labels=dict(experiment.labels if request.labels is None else request.labels),
        metadata=request.metadata if request.given("metadata") else experiment.metadata,
        metrics=_json(request.metrics) if request.metrics else experiment.metrics,
        settle_seconds=request.exposure_criteria.settle_seconds
        if request.exposure_criteria
        else experiment.settle_seconds,
        alpha=request.analysis.alpha if request.analysis else experiment.alpha,
        updated_at=work.now,
    )
    warnings: list[tuple[str, str]] = []
    if request.selector is not None:
        selector, warnings = _ensure_participants(work, request.selector)
        changed = replace(changed, selector=selector)
    if request.target_file and request.target_file != experiment.target_file:
        _retarget(work, experiment, request.target_file)
    work.store.experiments.save(changed)
    return replace(_view(work, work.store.experiments.get(experiment.id)), warnings=tuple(warnings))


def _retarget(work: Work, experiment: Experiment, target: str) -> None:
    """The content of the old target file is the content of the new one."""
    for variant in experiment.variants:
        files = tuple(
            replace(file, path=target) if file.path == experiment.target_file else file
            for file in variant.files
        )
        work.store.experiments.put_variant(replace(variant, files=files, updated_at=work.now))


def delete(work: Work, request: requests.ById) -> None:
    """A draft is gone, a completed experiment is archived; anything else is refused naming `complete`."""
    experiment = find(work, request.id)
    after(experiment.status, Verb.DELETE)
    if experiment.status is Status.COMPLETED:
        work.store.experiments.save(replace(experiment, archived=True, updated_at=work.now))
        return
    if work.store.deployments.slots_of(experiment.id):
        raise FailedPrecondition(
            "something was deployed by hand from this draft; start and complete it with `restore` first",
            reason="DRAFT_IN_USE",
        )
    work.store.experiments.delete(experiment.id)


def add_variant(work: Work, request: requests.AddVariant) -> tuple[View, Variant]:
    """The draft has one variant more."""
    experiment = find(work, request.id)
    after(experiment.status, Verb.EDIT)
    variant = _put_new_variant(work, experiment, request, field="variant")
    work.store.experiments.save(replace(experiment, updated_at=work.now))
    return _view(work, work.store.experiments.get(experiment.id)), variant


def update_variant(work: Work, request: requests.UpdateVariant) -> tuple[View, Variant]:
    """The variant is as asked; after start only name, description and metadata change."""
    experiment = find(work, request.id)
    variant = find_variant(experiment, request.variant_id)
    if any(request.given(name) for name in ("is_control", "weight", "content", "files", "config")):
        after(experiment.status, Verb.EDIT)
    files = variant.files
    if request.content is not None or request.files:
        files = _files(work, experiment, request.content, request.files or (), field="variant")
    changed = replace(
        variant,
        name=request.name or variant.name,
        description=variant.description if request.description is None else request.description,
        is_control=variant.is_control if request.is_control is None else request.is_control,
        weight=variant.weight if request.weight is None else request.weight,
        files=files,
        config=request.config if request.given("config") else variant.config,
        metadata=request.metadata if request.given("metadata") else variant.metadata,
        updated_at=work.now,
    )
    work.store.experiments.put_variant(changed)
    work.store.experiments.save(replace(experiment, updated_at=work.now))
    return _view(work, work.store.experiments.get(experiment.id)), changed


def delete_variant(work: Work, request: requests.OfVariant) -> None:
    """The draft has one variant less."""
    experiment = find(work, request.id)
    variant = find_variant(experiment, request.variant_id)
    after(experiment.status, Verb.EDIT)
    work.store.experiments.delete_variant(variant.id)
    work.store.experiments.save(replace(experiment, updated_at=work.now))


# -- life


def start(work: Work, request: requests.ById) -> View:
    """Assignments are fixed, claims taken, and every participant's slot should hold its variant.

    Raises FailedPrecondition with every fault by field where the experiment is not ready.
    """
    experiment = find(work, request.id)
    status = after(experiment.status, Verb.START)
    participants = _selected(work, experiment.selector)
    ids = {participant.public_id: participant.id for participant in participants}
    store = work.store.experiments
    conflicts = store.conflicts(experiment.id, list(ids.values()), experiment.target_files)
    faults = faults_at_start(experiment, Readiness(participants=len(participants), conflicts=conflicts))
    if faults:
        listed = "; ".join(f"{fault.field}: {fault.message}" for fault in faults)
        raise FailedPrecondition(f"the experiment is not ready: {listed}", reason="NOT_READY", faults=faults)
    store.claim(experiment.id, ids.values(), experiment.target_files, now=work.now)
    phase = Phase(
        id=work.new_id(),
        number=1,
        algorithm=ALGORITHM,
        seed=experiment.seed,
        weights={variant.id: variant.weight for variant in experiment.variants},
        traffic_allocation=100,
        opened_at=work.now,
        closed_at=None,
    )
    store.add_phase(experiment.id, experiment.run, phase)
    _assign(work, experiment, phase, participants)
    store.save(replace(experiment, status=status, phase=phase, started_at=work.now, updated_at=work.now))
    return _view(work, store.get(experiment.id))


def _assign(work: Work, experiment: Experiment, phase: Phase, participants: Sequence[Participant]) -> None:
    by_key = {variant.key: variant for variant in experiment.variants}
    by_name = {participant.public_id: participant for participant in participants}
    arms = [Arm(key=variant.key, weight=variant.weight) for variant in experiment.variants]
    rows = []
    for placement in assign(_candidates(participants), arms, seed=phase.seed):
        participant, variant = by_name[placement.participant], by_key[placement.arm]
        assignment = Assignment(
            id=work.new_id(),
            experiment_id=experiment.id,
            phase_id=phase.id,
            participant=placement.participant,
            variant_id=variant.id,
            block=placement.block,
            stratum=placement.stratum,
            position=placement.position,
            from_at=work.now,
        )
        rows.append((assignment, participant.id, participant.labels))
        work.store.deployments.desire(
            NewDeployment(
                id=work.new_id(),
                project_id=work.project_id,
                experiment_id=experiment.id,
                variant_id=variant.id,
                phase_id=phase.id,
                participant_id=participant.id,
                slot_id=experiment.id,
                origin=Origin.START,
                action=OfferAction.WRITE,
                files=files_of(variant),
                requested_by=work.caller.actor,
            ),
            now=work.now,
        )
    work.store.experiments.add_assignments(rows)
    work.touch(participant_id for _, participant_id, _ in rows)


def files_of(variant: Variant) -> list[DeploymentFile]:
    """What a slot holds once it holds the variant."""
    return [DeploymentFile(path=file.path, desired=file.digest, size=file.size) for file in variant.files]


def pause(work: Work, request: requests.ById) -> View:
    """Intake is closed; files stay and are measured."""
    return _move(work, request.id, Verb.PAUSE, paused_at=work.now)


def resume(work: Work, request: requests.ById) -> View:
    """Intake is open again; every participant keeps its variant."""
    return _move(work, request.id, Verb.RESUME, paused_at=None)


def stop(work: Work, request: requests.ById) -> View:
    """Intake is closed for good; files stay and are measured."""
    return _move(work, request.id, Verb.STOP, paused_at=None, stopped_at=work.now)


def _move(work: Work, id_or_key: str, verb: Verb, **moments: int | None) -> View:
    experiment = find(work, id_or_key)
    moved = replace(experiment, status=after(experiment.status, verb), updated_at=work.now, **moments)  # type: ignore[arg-type]  # only the optional moments are given
    work.store.experiments.save(moved)
    return _view(work, work.store.experiments.get(experiment.id))


def complete(work: Work, request: requests.Complete) -> View:
    """The experiment has ended: results frozen, claims released, files kept or restored exactly."""
    experiment = find(work, request.id)
    status = after(experiment.status, Verb.COMPLETE)
    winner = find_variant(experiment, request.winner_variant_id) if request.winner_variant_id else None
    store = work.store.experiments
    store.keep_snapshot(experiment.id, summarise_phase(work, experiment))
    if experiment.phase:
        store.close_phase(experiment.phase.id, now=work.now)
    restore = request.then == "restore"
    slots = work.store.deployments.slots_of(experiment.id)
    for participant_id, slot_id, paths, is_open in slots:
        if not is_open:
            continue
        work.store.deployments.desire(
            NewDeployment(
                id=work.new_id(),
                project_id=work.project_id,
                experiment_id=experiment.id,
                variant_id=None,
                phase_id=experiment.phase.id if experiment.phase else None,
                participant_id=participant_id,
                slot_id=slot_id,
                origin=Origin.RESTORE if restore else Origin.CLOSE,
                action=OfferAction.RESTORE if restore else OfferAction.CLOSE,
                files=[DeploymentFile(path=path, desired=None, size=0) for path in paths],
                requested_by=work.caller.actor,
            ),
            now=work.now,
        )
    work.touch(participant_id for participant_id, _, _, is_open in slots if is_open)
    store.release(experiment.id)
    store.save(
        replace(
            experiment,
            status=status,
            winner_variant_id=winner.id if winner else None,
            conclusion=request.conclusion,
            conclusion_comment=request.conclusion_comment,
            paused_at=None,
            completed_at=work.now,
            updated_at=work.now,
        )
    )
    return _view(work, store.get(experiment.id))


def transition(work: Work, request: requests.Transition) -> View:
    """The experiment is running, paused or completed; asking for where it is changes nothing."""
    experiment = find(work, request.id)
    verb = verb_towards(experiment.status, Status(request.status))
    by_id = requests.ById(id=request.id)
    if verb is None:
        return _view(work, experiment)
    if verb is Verb.COMPLETE:
        return complete(work, requests.Complete(id=request.id))
    return {Verb.START: start, Verb.PAUSE: pause, Verb.RESUME: resume}[verb](work, by_id)
