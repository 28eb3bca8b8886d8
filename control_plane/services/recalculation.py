"""Use cases of recalculation: the days of an experiment computed and kept, for one metric as it is defined.

What is asked for is a row, and a timer that is due at once; each turn of the timer computes some days and says in the
same transaction how far it is. So a job survives whatever the process does, and never holds the database for long.
"""

from dataclasses import dataclass, replace
from typing import Any

from control_plane.domain import requests
from control_plane.domain.experiment import Experiment
from control_plane.domain.lifecycle import allowed
from control_plane.domain.series import GetRecalculation, RecalculateTimeSeries, Window, fingerprint
from control_plane.services import asked, series
from control_plane.services.experiments import find
from control_plane.services.work import Work
from control_plane.store.recalculations import DayResult, Job, Progress, RecalculationStore
from control_plane.store.timers import Timer
from shared.errors import FailedPrecondition, NotFound

KIND = "recalculate"
"""The kind of the timer behind a job."""
DAYS_AT_ONCE = 31
POPULATION = "assigned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A job, and whether this very request made it."""

    job: Job
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The days of an experiment under a fingerprint, as far as they are computed.

    `current`: whether the metric is still defined so, and the phase is still the present one. `job`: the newest one.
    """

    experiment: Experiment
    phase_id: bytes
    metric: dict[str, Any]
    fingerprint: str
    current: bool
    within: Window
    days: dict[int, DayResult]
    job: Job | None

    @property
    def failure(self) -> str | None:
        """Why days are missing that should have been computed."""
        return self.job.failure if self.job else None

    @property
    def status(self) -> Progress:
        """`completed` with every day, `failed` with nothing but a failure, `pending` with nothing, else `partial`."""
        if not self.days:
            return Progress.FAILED if self.failure else Progress.PENDING
        whole = all(day in self.days for day in range(self.within.first, self.within.last + 1))
        return Progress.COMPLETED if whole else Progress.PARTIAL


def begin(work: Work, request: RecalculateTimeSeries) -> Accepted:
    """The days of the present phase are to be computed anew for a metric; what was computed of it is dropped.

    Whatever is under way for the same metric is answered as it is. Raises FailedPrecondition in draft, and where the
    metric is not, or not any more, the one of the fingerprint.
    """
    experiment = _started(work, request.id)
    metric, _ = asked.metric(work, experiment, named=request.metric, event_name="")
    present = fingerprint(experiment, metric)
    if request.fingerprint not in ("", present):
        raise FailedPrecondition(
            f"the metric, the analysis or the phase is another by now; its fingerprint is {present}",
            reason="FINGERPRINT_CHANGED",
            details={"fingerprint": present},
        )
    store = work.store.recalculations
    for job in store.under_way(experiment.id):
        if job.fingerprint == present:
            return Accepted(job=job, accepted=False)
    assert experiment.phase is not None, "it has started"
    days = series.measured(work, experiment)
    job = Job(
        id=work.new_id(),
        project_id=experiment.project_id,
        experiment_id=experiment.id,
        phase_id=experiment.phase.id,
        metric=metric,
        fingerprint=present,
        first_day=days.first,
        last_day=days.last,
        status=Progress.PENDING,
        created_by=work.caller.actor,
        created_at=work.now,
    )
    store.clear(experiment.id, present)
    store.put(job)
    _go_on(work, job)
    return Accepted(job=job, accepted=True)


def advance(work: Work, request: requests.ById) -> None:
    """Some more days of the oldest job are computed, and it goes on or is finished; nothing where there is none."""
    experiment = find(work, request.id)
    jobs = work.store.recalculations.under_way(experiment.id)
    if not jobs:
        return
    job, store = jobs[0], work.store.recalculations
    done = store.days(experiment.id, job.fingerprint)
    first = done[-1].day + 1 if done else job.first_day
    within = Window(first=first, last=min(first + DAYS_AT_ONCE - 1, job.last_day))
    found = series.daily(work, experiment, job.phase_id, job.metric, population=POPULATION, within=within)
    store.put_days(
        experiment.id,
        job.fingerprint,
        (DayResult(day=item.day, counts=item.so_far, computed_at=work.now) for item in found),
    )
    job = replace(job, status=Progress.IN_PROGRESS, started_at=job.started_at or work.now)
    if within.last >= job.last_day:
        store.put(replace(job, status=Progress.COMPLETED, finished_at=work.now))
    else:
        store.put(job)
        _go_on(work, job)


def give_up(store: RecalculationStore, experiment_id: bytes, failure: str, *, now: int) -> None:
    """What is under way for the experiment has failed, in part where some days are computed."""
    for job in store.under_way(experiment_id):
        some = store.days(experiment_id, job.fingerprint)
        status = Progress.PARTIAL if some else Progress.FAILED
        store.put(replace(job, status=status, finished_at=now, failure=failure))


def results(work: Work, request: GetRecalculation) -> Results:
    """Every day of a phase for a metric as it is, or was, defined: what was computed of it, and how far a job is.

    Days without a result were not computed yet. Raises FailedPrecondition in draft, and NotFound for a fingerprint
    under which nothing was ever asked for.
    """
    experiment = _started(work, request.id)
    metric, _ = asked.metric(work, experiment, named=request.metric, event_name="")
    present = fingerprint(experiment, metric)
    wanted = request.fingerprint or present
    store = work.store.recalculations
    job = store.newest(experiment.id, wanted)
    assert experiment.phase is not None, "it has started"
    if wanted == present:
        phase_id, within = experiment.phase.id, series.measured(work, experiment)
    elif job is None:
        raise NotFound(
            f"nothing was computed under this fingerprint; the metric's is {present}",
            reason="FINGERPRINT_NOT_FOUND",
        )
    else:
        phase_id, within = job.phase_id, Window(first=job.first_day, last=job.last_day)
        metric = job.metric
    return Results(
        experiment=experiment,
        phase_id=phase_id,
        metric=metric,
        fingerprint=wanted,
        current=wanted == present,
        within=within,
        days={item.day: item for item in store.days(experiment.id, wanted)},
        job=job,
    )


def _started(work: Work, id_or_key: str) -> Experiment:
    experiment = find(work, id_or_key)
    if experiment.phase is None:
        verbs = [verb.value for verb in allowed(experiment.status, archived=experiment.archived)]
        raise FailedPrecondition(
            "the experiment has not started, so there are no days to compute",
            reason="NOT_STARTED",
            details={"state": experiment.status.value, "allowedVerbs": verbs},
        )
    return experiment


def _go_on(work: Work, job: Job) -> None:
    work.store.timers.add(
        [
            Timer(
                id=work.new_id(),
                project_id=job.project_id,
                experiment_id=job.experiment_id,
                kind=KIND,
                due_at=work.now,
            )
        ]
    )
