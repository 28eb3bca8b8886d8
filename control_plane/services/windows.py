"""Counts within windows, made anew where the windows of a running experiment's metrics became others."""

from control_plane.domain.attribution import Tallies, UnitKey, UnitState, recount
from control_plane.domain.experiment import Experiment
from control_plane.services.work import Work
from control_plane.store.events import EventStore
from shared.model import NAME_ENDS


def count_anew(work: Work, experiment: Experiment, events: EventStore) -> None:
    """What counts within a window in the phases of the present run follows from the metrics as they are stored now.

    `events` has not been asked for windows since they were stored.
    """
    for phase in work.store.experiments.phases(experiment.id, experiment.run):
        if phase.events_gone_at is not None:  # what is counted of it stays as it is
            continue
        units: list[tuple[UnitKey, UnitState]] = []
        all_tallies = Tallies()
        for whose in work.store.doctor.participants(phase.id):
            for key, happened in work.store.doctor.events(phase.id, whose.id).items():
                units.append((key, recount(key, (), happened, all_tallies)))
        tallies = Tallies()
        for cell in all_tallies.cells():
            if NAME_ENDS in cell.event_name:
                tallies.assigned[cell] = all_tallies.assigned[cell]
                tallies.delivered[cell] = all_tallies.delivered[cell]
        events.count_anew(phase.id, units, tallies)
