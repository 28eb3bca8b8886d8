"""What is counted day by day."""

from control_plane.api.resources.shown import Json, ident
from control_plane.domain.experiment import Variant
from control_plane.domain.series import OnDay, date_of
from control_plane.services.series import Series
from control_plane.services.work import Work
from shared.ids import show_id


def time_series(work: Work, found: Series) -> Json:
    """The days of an experiment."""
    e, within = found.experiment, found.within
    return {
        "experimentId": show_id(e.id),
        "key": e.key,
        "phaseId": ident(e.phase.id if e.phase else None),
        "eventName": found.event_name,
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
        "cumulative": {
            "impressions": so_far.impressions,
            "conversions": so_far.conversions,
            "conversionRate": so_far.rate,
            "participants": so_far.participants,
        },
    }
