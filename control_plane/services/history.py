"""What participants did before the experiment first began: views and events are kept without one, too.

The first look of a phase freezes it, because a covariate that moved with late events would move what was decided.
"""

from collections.abc import Mapping, Sequence

from control_plane.domain.design import Type
from control_plane.domain.evidence import Json, Sums
from control_plane.domain.experiment import Experiment
from control_plane.services.evidence import Seating
from control_plane.services.work import Work
from control_plane.store.looks import Snapshot
from shared.moment import utc_day

Before = Mapping[str, Mapping[str, tuple[int, int]]]
"""(count, value in millionths) by event name ('' is impressions) and participant."""


def wanted(experiment: Experiment) -> bool:
    """Whether the analysis takes out what was there before; a switchback compares participants with themselves."""
    return experiment.design.analysis.variance == "cuped" and experiment.type is not Type.SWITCHBACK


def before(work: Work, seated: Seating, kept: Sequence[Snapshot] = ()) -> Before | None:
    """What was known of the history at the phase's first look, else what is now; None where nobody asks for it.

    `kept` are the phase's snapshots. The whole UTC days before the day on which the experiment began for the first
    time, in whatever run: later ones may have a variant's doing in them.
    """
    experiment, phase = seated.experiment, seated.phase
    if not wanted(experiment) or phase is None:
        return None
    if kept and "before" in kept[0]:
        return {
            name: {who: (row[0], row[1]) for who, row in rows.items()}
            for name, rows in kept[0]["before"].items()
        }
    store = work.store
    openings = [
        item.opened_at
        for run in range(1, experiment.run + 1)
        for item in store.experiments.phases(experiment.id, run)
    ]
    end = utc_day(min(openings)) - 1
    return store.events.activity(
        phase.id,
        ["", *experiment.target_files],
        first=end - experiment.design.analysis.history_days + 1,
        last=end,
    )


def sums(found: Before | None, seated: Seating, metric: Json) -> Sums | None:
    """What a metric's covariate is computed from, in the members' order; windows are of experiments, not of before."""
    if found is None:
        return None

    def column(name: str | None, place: int) -> tuple[int, ...]:
        rows = {} if name is None else found.get(name, {})
        return tuple(rows.get(who, (0, 0))[place] for who, _ in seated.members)

    event = metric["eventName"]
    return Sums(
        impressions=column("", 0),
        conversions=column(event, 0),
        values=column(event, 1),
        denominators=column(metric.get("denominatorEventName"), 0),
    )
