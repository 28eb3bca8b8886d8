"""What is counted day by day."""

from control_plane.api.resources.shown import Json, at, ident
from control_plane.domain.experiment import Variant
from control_plane.domain.metrics import shown
from control_plane.domain.series import Counts, OnDay, date_of
from control_plane.services.recalculation import Accepted, Results
from control_plane.services.series import Series
from control_plane.services.work import Work
from control_plane.store.recalculations import Job
from shared.ids import show_id


def time_series(work: Work, found: Series) -> Json:
    """The days of an experiment."""
    e, within = found.experiment, found.within
    return {
        "experimentId": show_id(e.id),
        "key": e.key,
        "phaseId": ident(e.phase.id if e.phase else None),
        "eventName": found.event_name,
        "fingerprint": found.fingerprint,
        "population": found.population,
        "startDate": date_of(within.first) if within else None,
        "endDate": date_of(within.last) if within else None,
        "days": [
            {"date": date_of(item.day), "variants": [_variant(variant, item) for variant in e.arms]}
            for item in found.days
        ],
    }


def _variant(variant: Variant, item: OnDay) -> Json:
    own, so_far = item.counts[variant.id], item.so_far[variant.id]
    return {
        "id": show_id(variant.id),
        "key": variant.key,
        "impressions": own.impressions,
        "conversions": own.conversions,
        "conversionRate": own.rate,
        "newParticipants": own.participants,
        "cumulative": _counts(so_far),
    }


def _counts(counts: Counts) -> Json:
    return {
        "impressions": counts.impressions,
        "conversions": counts.conversions,
        "conversionRate": counts.rate,
        "participants": counts.participants,
    }


def recalculation(work: Work, found: Accepted) -> Json:
    """A job, new or under way."""
    return {**_job(found.job), "accepted": found.accepted}


def _job(job: Job) -> Json:
    return {
        "id": show_id(job.id),
        "experimentId": show_id(job.experiment_id),
        "phaseId": show_id(job.phase_id),
        "metric": shown(job.metric),
        "fingerprint": job.fingerprint,
        "status": job.status.value,
        "startDate": date_of(job.first_day),
        "endDate": date_of(job.last_day),
        "createdBy": job.created_by,
        "createdAt": at(job.created_at),
        "startedAt": at(job.started_at),
        "finishedAt": at(job.finished_at),
        "failure": job.failure,
    }


def recalculated(work: Work, found: Results) -> Json:
    """The days as far as they are computed."""
    moments = [item.computed_at for item in found.days.values()]
    return {
        "experimentId": show_id(found.experiment.id),
        "key": found.experiment.key,
        "phaseId": show_id(found.phase_id),
        "metric": shown(found.metric),
        "fingerprint": found.fingerprint,
        "current": found.current,
        "status": found.status.value,
        "startDate": date_of(found.within.first),
        "endDate": date_of(found.within.last),
        "days": [_computed(found, day) for day in range(found.within.first, found.within.last + 1)],
        "computedAt": at(max(moments, default=None)),
        "recalculation": _job(found.job) if found.job else None,
    }


def _computed(found: Results, day: int) -> Json:
    item = found.days.get(day)
    return {
        "date": date_of(day),
        "computedAt": at(item.computed_at) if item else None,
        "error": None if item else found.failure,
        "variants": [
            {"id": show_id(arm.id), "key": arm.key, **_counts(item.counts[arm.id])}
            for arm in found.experiment.arms
            if arm.id in item.counts
        ]
        if item
        else [],
    }
