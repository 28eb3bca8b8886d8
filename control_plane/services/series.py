"""Use cases of the daily series: tallies by day, of an experiment's present phase. Raw events are never read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from control_plane.domain.experiment import Experiment
from control_plane.domain.metrics import counted_as
from control_plane.domain.series import GetTimeSeries, OnDay, Window, days, fingerprint, window
from control_plane.services import asked
from control_plane.services.experiments import find
from control_plane.services.work import Work
from shared.moment import utc_day


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The days of an experiment, the oldest first; `within` is None where no day asked for was measured."""

    experiment: Experiment
    event_name: str
    fingerprint: str | None
    population: str
    within: Window | None
    days: tuple[OnDay, ...]


def get(work: Work, request: GetTimeSeries) -> Series:
    """The present phase day by day: what is counted on each UTC day of `startDate` to `endDate`, and up to it.

    The days are clamped to those since the phase began, up to its end or today, at most 366; the answer's dates are
    those in force. Days without impressions are left out unless `fillGaps`. Raises Invalid where it is unclear which
    conversion, and where more than 366 days are asked for.
    """
    experiment = find(work, request.id)
    metric, _ = asked.metric(work, experiment, named=request.metric, event_name=request.event_name)
    event_name = metric["eventName"]
    within = None
    if experiment.phase is not None:
        within = window(measured(work, experiment), request.start_date, request.end_date)
    found: tuple[OnDay, ...] = ()
    if experiment.phase is not None and within is not None:
        found = tuple(
            item
            for item in daily(
                work,
                experiment,
                experiment.phase.id,
                metric,
                population=request.population,
                within=within,
            )
            if request.fill_gaps or any(counts.impressions for counts in item.counts.values())
        )
    return Series(
        experiment=experiment,
        event_name=event_name,
        fingerprint=fingerprint(experiment, metric) if experiment.phase else None,
        population=request.population,
        within=within,
        days=found,
    )


def measured(work: Work, experiment: Experiment) -> Window:
    """The days since the present phase began, up to its end or today."""
    phase = experiment.phase
    assert phase is not None, "a draft has no days"
    end = work.now if phase.closed_at is None else min(phase.closed_at, work.now)
    first = utc_day(phase.opened_at)
    return Window(first=first, last=max(first, utc_day(end)))  # a clock that is set back takes no day away


def daily(
    work: Work,
    experiment: Experiment,
    phase_id: bytes,
    metric: Mapping[str, Any],
    *,
    population: str,
    within: Window,
) -> tuple[OnDay, ...]:
    """Every day of the window in a phase of the experiment, from tallies."""
    counted = work.store.series.by_day(
        phase_id, counted_as(dict(metric)), population=population, of=metric.get("of") or "impressions"
    )
    return tuple(days(counted, tuple(variant.id for variant in experiment.arms), within))
