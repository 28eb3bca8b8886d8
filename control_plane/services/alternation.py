"""The turns of a switchback as results compare them: each time block once, and what its participant did in it.

Hides which rows of the record they are: a pause leaves a block in two rows, or in one that is empty.
"""

from collections.abc import Iterable, Sequence

from control_plane.domain.evidence import Alternation, Sums, Turn
from control_plane.domain.experiment import Assignment, Experiment, Phase
from control_plane.domain.switchback import Calendar, order
from shared.moment import SECOND

DAY = 86_400 * SECOND


def turns_of(rows: Iterable[Assignment]) -> tuple[Assignment, ...]:
    """Each time block of who was there when the switchback began, once, by participant and block.

    Whoever came later has a first block after everybody else's; it is counted and shown, but looks, whose redraws
    were fixed beforehand, do not decide with it.
    """
    found: dict[tuple[str, int], Assignment] = {}
    for item in rows:
        if (
            item.variant_id is not None
            and item.time_block
            and (item.to_at is None or item.from_at < item.to_at)
        ):
            found.setdefault((item.participant, item.time_block), item)
    first: dict[str, int] = {}
    for participant, block in sorted(found):
        first.setdefault(participant, block)
    begun = min(first.values(), default=0)
    return tuple(item for (participant, _), item in sorted(found.items()) if first[participant] == begun)


def alternation(
    experiment: Experiment,
    phase: Phase | None,
    turns: Sequence[Assignment],
    sums: Sums,
    *,
    at: int,
    first_at: int | None = None,
) -> Alternation | None:
    """The turns with what was done in them up to the moment `at`; `first_at` is the cut-off of the first look.

    None where there is nothing to compare, or nothing yet.
    """
    calendar = experiment.calendar_of(phase)
    settings = experiment.design.switchback
    size = len(experiment.arms)
    comparable = size > 1 and experiment.control in experiment.arms and bool(turns)
    if calendar is None or settings is None or not comparable:
        return None
    keys = {variant.id: variant.key for variant in experiment.variants}

    def days(moment: int) -> float:
        return (moment - calendar.begins) / DAY

    return Alternation(
        cycles=settings.blocks // size,
        block_days=settings.length / DAY,
        washout=settings.settling / SECOND,
        day=days(at),
        first_day=None if first_at is None else days(first_at),
        turns=tuple(
            Turn(
                participant=item.participant,
                arm=keys[item.variant_id],
                cycle=(item.time_block - 1) // size + 1,
                block=item.time_block,
                over=days(_end(calendar, item)),
                cluster=item.cluster,
            )
            for item in turns
            if item.variant_id is not None
        ),
        sums=sums,
    )


def _end(calendar: Calendar, item: Assignment) -> int:
    """When its block is over, also where it was cut: what was cut stays as it is from then on."""
    return calendar.span(item.time_block)[1]


def replays(experiment: Experiment, phase: Phase, turns: Sequence[Assignment]) -> bool:
    """Whether every turn is the one that the seed draws."""
    keys = {variant.id: variant.key for variant in experiment.arms}
    drawn: dict[tuple[str, int], list[str]] = {}
    for item in turns:
        cycle, place = divmod(item.time_block - 1, len(keys))
        own = (item.unit, cycle + 1)
        if own not in drawn:
            drawn[own] = order(*own, list(keys.values()), seed=phase.seed)
        if item.variant_id is None or keys.get(item.variant_id) != drawn[own][place]:
            return False
    return True
