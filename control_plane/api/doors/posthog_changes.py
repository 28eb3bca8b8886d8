"""How an experiment is made and changed by PostHog's clients: its fields, its dates, and whether it is hidden."""

from control_plane.api.doors import posthog_writing as writing
from control_plane.api.doors.files import one_target
from control_plane.api.doors.mapping import Answered, Call, Json, Sent, take, wrong
from control_plane.api.doors.posthog_fields import EXPERIMENT
from control_plane.api.doors.posthog_reading import answered, here, told
from control_plane.api.doors.posthog_writing import NAME, is_draft, kept_of
from control_plane.domain import requests
from control_plane.domain.experiment import Experiment
from control_plane.domain.lifecycle import Status
from control_plane.services import experiments, foreign, lifecycle
from control_plane.services.work import Work
from shared.errors import NotFound
from shared.ids import show_id
from shared.moment import from_rfc3339

_SOON = 300_000_000  # a client's clock may be ahead of ours by so many microseconds


def get(work: Work, call: Call) -> Answered:
    """One experiment."""
    take(call, ())
    return answered(work, experiments.view_of(work, here(experiments.find(work, call.id))))


def create(work: Work, call: Call) -> Answered:
    """A draft, launched if it has a start date."""
    body = call.body
    sent = EXPERIMENT.read(body, verb="create")
    values = {name: value for name, value in sent.values.items() if name not in ("variants", "analysis")}
    for name in ("archived", "deleted", "conclusion", "conclusion_comment"):
        if body.get(name):
            raise wrong(name, "is nothing that a new experiment has", "leave it out")
    found = writing.variants(body, new=True) or []
    one_target(found, values, "parameters.feature_flag_variants")
    control = writing.baseline([item.values["key"] for item in found], body)
    values["variants"] = [
        {**writing.with_name(item), "isControl": item.values["key"] == control} for item in found
    ]
    measured, kept_metrics = writing.metrics(work, body, {})
    analysis, kept_stats = writing.analysis(None, body)
    criteria, kept_criteria = writing.exposure(None, body, values)
    for name, value in (("metrics", measured), ("analysis", analysis), ("exposureCriteria", criteria)):
        if value is not None:
            values[name] = value
    values |= writing.holdout(work, None, body)
    with EXPERIMENT.told():
        view = experiments.create(work, requests.parse(requests.CreateExperiment, values))
    for made, item in zip(view.experiment.variants, found, strict=True):
        foreign.keep_of_variant(work, made, NAME, item.kept)
    flag_key = body.get("feature_flag_key")
    other = {"feature_flag_key": flag_key} if flag_key and flag_key != view.experiment.key else {}
    keep = {**sent.kept, **kept_metrics, **kept_stats, **kept_criteria, **other}
    view = foreign.keep(work, view.experiment.id, NAME, keep)
    _move_dates(work, view.experiment, body)
    return _now(work, view.experiment)


def _now(work: Work, experiment: Experiment) -> Answered:
    return answered(work, experiments.view_of(work, work.store.experiments.get(experiment.id)))


def update(work: Work, call: Call) -> Answered:
    """The experiment is as sent; what was not sent stays."""
    experiment = experiments.find(work, call.id)
    before = told(work, experiments.view_of(work, experiment))
    body = EXPERIMENT.unechoed(call.body, before)
    if kept_of(experiment).get("deleted"):
        experiment = _brought_back(work, experiment, body)
    if experiment.archived and body.get("archived") is False:
        experiment = lifecycle.unarchive(work, requests.ById(id=show_id(experiment.id))).experiment
    sent = EXPERIMENT.read(body, verb="update")
    _write(work, experiment, body, sent, before)
    experiment = work.store.experiments.get(experiment.id)
    _move_dates(work, experiment, body)
    _conclude(work, work.store.experiments.get(experiment.id), body)
    if body.get("archived") is True and not experiment.archived:
        lifecycle.archive(work, requests.ById(id=show_id(experiment.id)))
    if body.get("deleted") is True:
        _delete(work, work.store.experiments.get(experiment.id))
    return _now(work, experiment)


def _write(work: Work, experiment: Experiment, body: Json, sent: Sent, before: Json) -> None:
    """Everything but the life of it is as sent."""
    draft = is_draft(experiment)
    values = {name: value for name, value in sent.values.items() if name not in ("variants", "analysis")}
    found = writing.variants(body, new=False)
    if found is not None:
        one_target(found, values, "parameters.feature_flag_variants")
    measured, kept_metrics = writing.metrics(work, body, before)
    analysis, kept_stats = writing.analysis(experiment, body)
    criteria, kept_criteria = writing.exposure(experiment, body, values)
    for name, value in (("metrics", measured), ("analysis", analysis), ("exposureCriteria", criteria)):
        if value is not None:
            values[name] = value
    values |= writing.holdout(work, experiment, body)
    share = values.pop("trafficAllocation", None)
    if draft and "parameters" in body:
        values["trafficAllocation"] = 100 if share is None else share
    writing.update(work, experiment, values)
    if draft and found is not None:
        with EXPERIMENT.told():
            writing.write_variants(work, work.store.experiments.get(experiment.id), found, body)
    else:
        writing.write_baseline(work, work.store.experiments.get(experiment.id), body)
    if not draft:
        allowed = body.get("update_feature_flag_params") is True
        writing.write_split(work, experiment, found, share, allowed=allowed)
    foreign.keep(work, experiment.id, NAME, {**sent.kept, **kept_metrics, **kept_stats, **kept_criteria})


def _moment(body: Json, name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    try:
        return from_rfc3339(value)
    except (ValueError, TypeError, OverflowError, AttributeError):
        raise wrong(
            name, f"{value!r} is not a moment such as 2026-01-31T12:00:00Z", "send one, or null"
        ) from None


def _move_dates(work: Work, experiment: Experiment, body: Json) -> None:
    """A start date launches or schedules, an end date ends or schedules; those that it has change nothing."""
    start, end = _moment(body, "start_date"), _moment(body, "end_date")
    begun = start or experiment.started_at or experiment.design.schedule.start
    if begun is not None and end is not None and end <= begun and not _is_at(end, experiment.completed_at):
        raise wrong("end_date", "is not after start_date", "send a later one")
    at = show_id(experiment.id)
    if "start_date" in body and start is None and not is_draft(experiment):
        raise wrong("start_date", "what was launched has a start date", "reset the experiment")
    _unschedule(work, experiment, body)
    experiment = work.store.experiments.get(experiment.id)
    if start is not None and start != experiment.started_at and is_draft(experiment):
        if start > work.now + _SOON:
            _schedule(work, experiment, "startAt", body["start_date"])
        else:
            with EXPERIMENT.told():
                lifecycle.begin(work, requests.Start(id=at))
    elif start is not None and not _is_at(start, experiment.started_at):
        raise wrong("start_date", "it was launched already", "reset the experiment to launch it again")
    experiment = work.store.experiments.get(experiment.id)
    if "end_date" in body and end is None and experiment.status is Status.COMPLETED:
        raise wrong("end_date", "what has ended is not opened again", "reset the experiment, or duplicate it")
    if end is None or _is_at(end, experiment.completed_at):
        return
    if is_draft(experiment) and not experiment.design.schedule.start:
        raise wrong("end_date", "a draft has none", "launch it first")
    if end > work.now + _SOON:
        _schedule(work, experiment, "endAt", body["end_date"])
    else:
        lifecycle.complete(work, requests.parse(requests.Complete, {"id": at, **_conclusion(body)}))


def _is_at(moment: int, present: int | None) -> bool:
    """Whether it is the moment there is, as it was shown: in milliseconds."""
    return present is not None and abs(moment - present) < 1_000


def _unschedule(work: Work, experiment: Experiment, body: Json) -> None:
    """What is scheduled and sent as null is scheduled no more."""
    plan = experiment.design.schedule
    if is_draft(experiment) and plan.start and "start_date" in body and body["start_date"] is None:
        _schedule(work, experiment, "startAt", None)
    if (plan.end or 0) > work.now and "end_date" in body and body["end_date"] is None:
        _schedule(work, work.store.experiments.get(experiment.id), "endAt", None)


def _schedule(work: Work, experiment: Experiment, name: str, value: str | None) -> None:
    present = experiment.design.schedule.model_dump(mode="json", by_alias=True)
    writing.update(work, experiment, {"schedule": {**present, name: value}})


def _conclusion(body: Json) -> Json:
    names = {"conclusion": "conclusion", "conclusion_comment": "conclusionComment"}
    return {native: body[name] for name, native in names.items() if body.get(name) is not None}


def _conclude(work: Work, experiment: Experiment, body: Json) -> None:
    said = _conclusion(body)
    present = {"conclusion": experiment.conclusion, "conclusionComment": experiment.conclusion_comment}
    if all(present[name] == value for name, value in said.items()):
        return
    if experiment.status is not Status.COMPLETED:
        raise wrong("conclusion", "only what has ended has one", "end it, with its conclusion")
    checked = requests.parse(requests.Complete, {"id": show_id(experiment.id), **present, **said})
    foreign.conclude(work, experiment, checked.conclusion, checked.conclusion_comment)


def _delete(work: Work, experiment: Experiment) -> None:
    """Hidden from this door, and archived; files stay as they are."""
    at = show_id(experiment.id)
    if not experiment.archived:
        foreign.end(work, experiment)
        lifecycle.archive(work, requests.ById(id=at))
    foreign.keep(work, experiment.id, NAME, {"deleted": True})


def _brought_back(work: Work, experiment: Experiment, body: Json) -> Experiment:
    if body.get("deleted") is not False:
        raise NotFound(f"there is no experiment {experiment.number}", reason="EXPERIMENT_NOT_FOUND")
    if experiment.archived:
        lifecycle.unarchive(work, requests.ById(id=show_id(experiment.id)))
    return foreign.keep(work, experiment.id, NAME, {"deleted": False}).experiment
