"""Which metric and which phase a question about numbers means; in one place, so that two answers mean the same."""

from datetime import date
from typing import Any

from control_plane.domain.experiment import Experiment, Phase
from control_plane.services import metrics
from control_plane.services.work import Work
from shared.errors import Fault, Invalid, NotFound
from shared.ids import show_id
from shared.moment import to_rfc3339, utc_day


def metric(
    work: Work, experiment: Experiment, *, named: str, event_name: str
) -> tuple[dict[str, Any], str | None]:
    """The metric that is asked for and its role: by id, key, name or event; else the primary.

    Without a primary one it is the only conversion ever reported. The role is None for what the experiment does not
    declare. Raises NotFound for a metric there is not, Invalid where both are named or it is unclear which.
    """
    if named and event_name:
        raise _refusal("metric", "stands beside eventName", "name the metric or the event, not both")
    own = metrics.by_value(work, experiment.metrics)
    primary = own.get("primary")
    declared = [
        *([(primary, "primary")] if primary else []),
        *((item, "secondary") for item in own["secondary"]),
        *((item, "guardrail") for item in own["guardrail"]),
    ]
    if named:
        # What one metric is called may be what another counts.
        for called in ("id", "key", "name"):
            for item, role in declared:
                if item.get(called) == named:
                    return dict(item), role
        saved = work.store.metrics.find(work.project_id, named)
        for item, role in declared:
            if saved is None and item["eventName"] == named:
                return dict(item), role
        return metrics.copy_of(metrics.find(work, named)), None
    if event_name:
        for item, role in declared:
            if item["eventName"] == event_name:
                return dict(item), role
        return _of_event(event_name), None
    if primary:
        return dict(primary), "primary"
    seen = work.store.events.event_names(experiment.phase.id) if experiment.phase else []
    if len(seen) > 1:
        message = f"several conversions were reported: {', '.join(seen)}"
        raise _refusal("eventName", message, "name one, or set metrics.primary")
    return _of_event(seen[0] if seen else "conversion"), None


def secondary(work: Work, experiment: Experiment) -> list[dict[str, Any]]:
    """The secondary metrics of the experiment, by value."""
    return [dict(item) for item in metrics.by_value(work, experiment.metrics)["secondary"]]


def phase(work: Work, experiment: Experiment, wanted: str) -> Phase | None:
    """The phase of this id or number in the present run; the present one unless another is named.

    Raises NotFound for one that there is not.
    """
    if not wanted:
        return experiment.phase
    for item in work.store.experiments.phases(experiment.id, experiment.run):
        if wanted in (str(item.number), show_id(item.id)):
            return item
    raise NotFound(f"{experiment.key} has no phase {wanted!r} in this run", reason="PHASE_NOT_FOUND")


def day(work: Work, text: str | None) -> int | None:
    """The UTC day of a date, in days since 1970-01-01. Raises Invalid for one to come."""
    if text is None:
        return None
    found = (date.fromisoformat(text) - date(1970, 1, 1)).days
    if found > utc_day(work.now):
        message = f"{text} is to come: by UTC it is {to_rfc3339(work.now)[:10]}"
        raise _refusal("asOf", message, "leave it out for results as they stand now")
    return found


def _of_event(name: str) -> dict[str, Any]:
    return {"eventName": name, "kind": "proportion", "goal": "increase"}


def _refusal(field: str, message: str, remedy: str) -> Invalid:
    fault = Fault(field=field, message=message, remedy=remedy)
    return Invalid(f"{field}: {message}", reason="INVALID_FIELDS", faults=[fault])
