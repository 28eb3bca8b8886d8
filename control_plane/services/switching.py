"""A switchback's blocks in force: what is current is on the files, and what a pause cuts does not come back.

Intervals that have ended stay ended, whatever happens later, so an event counts alike whenever it arrives.
"""

from collections.abc import Iterator
from dataclasses import replace

from control_plane.domain.deployment import Origin
from control_plane.domain.experiment import Assignment, Experiment
from control_plane.domain.switchback import block_name, turns
from control_plane.services import delivery
from control_plane.services.work import Work
from shared.errors import FailedPrecondition
from shared.moment import to_rfc3339


def put_in_place(work: Work, experiment: Experiment, *, at: int, origin: Origin) -> None:
    """Every participant's slot should hold the variant of its block at the moment; those that do are left alone."""
    assert experiment.phase is not None
    holding = {
        slot.participant_id: slot.written
        for slot in work.store.deployments.slots_of(experiment.id)
        if slot.open
    }
    current = work.store.experiments.current(experiment.phase.id, now=at)
    for variant in experiment.variants:
        ids = [
            participant_id
            for participant_id, variant_id in current
            if variant_id == variant.id and holding.get(participant_id) != variant_id
        ]
        delivery.write(work, experiment, variant, ids, origin=origin)


def cut(work: Work, experiment: Experiment, *, for_good: bool) -> None:
    """The current blocks end now, and those to come are none, unless and until `go_on` draws on."""
    if experiment.calendar is not None and experiment.phase is not None:
        work.store.experiments.end_blocks(experiment.phase.id, now=work.now, for_good=for_good)


def go_on(work: Work, experiment: Experiment) -> None:
    """Blocks go on with the one that is current, from now, whoever waited for its first with that.

    Raises FailedPrecondition after the last.
    """
    calendar, phase = experiment.calendar, experiment.phase
    if calendar is None or phase is None:
        return
    store = work.store.experiments
    # Where the clock was set back meanwhile, "now" is when the cut was: what has ended stays ended.
    now = max(work.now, calendar.begins, store.blocks_ended(phase.id))
    block = calendar.at(now)
    if block is None:
        raise FailedPrecondition(
            f"the last block ended at {to_rfc3339(calendar.end)}; stop or complete the experiment",
            reason="BLOCKS_OVER",
        )
    ids = store.participant_ids(phase.id)
    rows = [
        (replace(turn, id=work.new_id()), ids[turn.participant])
        for item in store.present(phase.id, now=now)
        if item.time_block
        for turn in _remaining(experiment, item, first=max(block, item.time_block), now=now)
    ]
    store.forget_empty_blocks(phase.id)
    store.add_assignments(rows)
    put_in_place(work, experiment, at=now, origin=Origin.RESUME)


def _remaining(experiment: Experiment, item: Assignment, *, first: int, now: int) -> Iterator[Assignment]:
    assert experiment.calendar is not None
    assert experiment.phase is not None
    ids = {variant.key: variant.id for variant in experiment.arms}
    seed, blocks = experiment.phase.seed, experiment.calendar.blocks
    for turn in turns(item.unit, list(ids), seed=seed, blocks=blocks, first=first):
        begins, ends = experiment.calendar.span(turn.time_block)
        yield replace(
            item,
            variant_id=ids[turn.arm],
            block=block_name(turn.cycle),
            position=turn.place,
            time_block=turn.time_block,
            from_at=max(begins, now),
            to_at=ends,
            forced_by=None,
        )
