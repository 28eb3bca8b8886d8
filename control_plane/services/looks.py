"""The ledger of looks: after each UTC day, what everybody did so far and what that decides, for good.

A look is computed over a reading and recorded in the transaction that takes its timer, so nothing waits for the
computing, a crash in between repeats it, and nothing is recorded twice. Days that passed while the process was
away each get their look, with what is known when it is back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from control_plane.domain import evidence as domain
from control_plane.domain import requests
from control_plane.domain.design import Type
from control_plane.domain.evidence import Json
from control_plane.domain.experiment import Experiment, Phase
from control_plane.services import alternation, evidence, history, metrics, timers
from control_plane.services.evidence import Seating, Seen
from control_plane.services.experiments import find
from control_plane.services.work import Work
from control_plane.store.looks import LookRow, Snapshot
from shared.moment import SECOND, utc_day

DAY = 86_400 * SECOND

Prepared = list[tuple[LookRow, Snapshot]]


class _Shot(NamedTuple):
    """What a look saw, so many days after the phase began; `open`: who had joined by then takes part in it."""

    seen: Seen
    day: float
    open: bool


def prepare(work: Work, request: requests.ById) -> Prepared:
    """The looks that are due and not on record, oldest first, of every phase of the present run."""
    experiment = find(work, request.id)
    found: Prepared = []
    earlier: list[list[LookRow]] = []
    for phase in work.store.experiments.phases(experiment.id, experiment.run):
        fresh = list(_of_phase(work, experiment, phase, earlier))
        found += fresh
        earlier.append([*work.store.looks.all(phase.id), *(look for look, _ in fresh)])
    return found


def record(work: Work, request: requests.ById, prepared: Prepared) -> None:
    """What was prepared is on record, as far as it is new, and the next look has its timer."""
    experiment = find(work, request.id)
    present = {phase.id for phase in work.store.experiments.phases(experiment.id, experiment.run)}
    fresh = []
    for look, kept in prepared:
        last = work.store.looks.last_day(look.phase_id)
        if look.phase_id in present and (last is None or look.day > last):
            fresh.append((replace(look, at=work.now), kept))
    work.store.looks.add(fresh)
    timers.schedule(work, experiment)


def _of_phase(
    work: Work, experiment: Experiment, phase: Phase, former: Sequence[Sequence[LookRow]]
) -> Iterator[tuple[LookRow, Snapshot]]:
    if phase.closed_at is not None and phase.closed_at <= phase.opened_at:
        return  # the clock was set back over it: it took no time, and nothing can have happened in it
    days = list(_due(work, experiment, phase))
    if not days:
        return
    seated = evidence.seating(work, experiment, phase)
    earlier = work.store.looks.snapshots(phase.id)
    for number, day in enumerate(days, start=len(earlier) + 1):
        tallied = work.store.turns if experiment.type is Type.SWITCHBACK else work.store.events
        found = evidence.seen(tallied.totals(phase.id, until=day))
        kept = dict(evidence.snapshot(found, seated))
        if not earlier and (past := history.before(work, seated)) is not None:
            kept["before"] = past
        cut_off = min((day + 1) * DAY, phase.closed_at or work.now)
        look = LookRow(
            phase_id=phase.id,
            number=number,
            day=day,
            cut_off=cut_off,
            at=work.now,
            decisions=_decisions(work, seated, [*earlier, kept], cut_off, former),
        )
        earlier.append(kept)
        yield look, kept


def _due(work: Work, experiment: Experiment, phase: Phase) -> Iterator[int]:
    """The closed UTC days of the phase without a look."""
    last = work.store.looks.last_day(phase.id)
    first = utc_day(phase.opened_at) if last is None else last + 1
    end = utc_day(work.now - timers.GRACE) - 1
    for ended in (phase.closed_at, experiment.completed_at):
        if ended is not None:
            end = min(end, utc_day(ended))
    yield from range(first, end + 1)


def _decisions(
    work: Work,
    seated: Seating,
    snapshots: Sequence[Snapshot],
    cut_off: int,
    former: Sequence[Sequence[LookRow]],
) -> dict[str, Any]:
    """What is recorded of a look: the comparisons of the primary metric, the guardrails, and who was left out.

    `former` are the looks of the phases before, which have spent some of alpha.
    """
    assert seated.phase is not None
    shots = _shots(work, seated.phase, snapshots, cut_off)
    wanted = metrics.by_value(work, seated.experiment.metrics)
    past = history.before(work, seated, snapshots)
    found: dict[str, Any] = {
        "standings": {
            population: work.store.events.not_counted(seated.phase.id, population=population)
            for population in ("assigned", "delivered")
        },
        "lost": work.store.events.lost(seated.experiment.id),
        "exclusions": [
            item.model_dump(mode="json", by_alias=True) for item in evidence.exclusions(work, seated)
        ],
        "primary": None,
        "guardrails": [],
        "open": True,
    }
    primary = wanted.get("primary")
    if primary is None or not _comparable(seated):
        return found
    found["primary"] = {
        "metric": evidence.fingerprint(primary),
        "day": shots[-1].day,
        **{
            population: _compared(
                seated, primary, population, shots, past, evidence.unspent(former, primary, population)
            )
            for population in ("assigned", "delivered")
        },
    }
    guardrails = wanted["guardrail"]
    for metric in guardrails:
        item = _evidence(seated, metric, "assigned", shots[-1].seen, past)
        sums = _sums(item, seated, metric, "assigned", shots)
        found["guardrails"] += domain.guardrail(item, sums, guardrails=len(guardrails))
    return found


def _comparable(seated: Seating) -> bool:
    experiment = seated.experiment
    if experiment.type is Type.SWITCHBACK:
        return experiment.control in experiment.arms and len(experiment.arms) > 1 and bool(seated.turns)
    weighted = [
        variant for variant in experiment.variants if seated.phase and seated.phase.weights.get(variant.id)
    ]
    compared = experiment.type not in evidence.UNCOMPARED
    return compared and experiment.control in weighted and len(weighted) > 1 and bool(seated.assignments)


def _compared(
    seated: Seating,
    metric: Json,
    population: domain.Population,
    shots: Sequence[_Shot],
    past: history.Before | None,
    unspent: float,
) -> list[Json]:
    item = _evidence(seated, metric, population, shots[-1].seen, past, unspent=unspent)
    return list(domain.look(item, _sums(item, seated, metric, population, shots)))


def _evidence(
    seated: Seating,
    metric: Json,
    population: domain.Population,
    seen: Seen,
    past: history.Before | None,
    *,
    unspent: float = 1.0,
) -> domain.Evidence:
    before = history.sums(past, seated, metric)
    sums = seen.sums(seated.members, metric, population)
    assert seated.phase is not None
    of_turns = seen.sums(seated.turn_keys, metric, population)
    # When that is does not matter: every snapshot says of when it is.
    turns = alternation.alternation(
        seated.experiment, seated.phase, seated.turns, of_turns, at=seated.phase.opened_at
    )
    return evidence.evidence(
        seated, metric, population, sums, primary=True, about={}, history=before, unspent=unspent, turns=turns
    )


def _sums(
    item: domain.Evidence, seated: Seating, metric: Json, population: str, shots: Sequence[_Shot]
) -> list[Any]:
    return [
        domain.snapshot_of(
            item,
            shot.seen.sums(seated.compared, metric, population),
            day=shot.day,
            until=shot.day if shot.open else None,
        )
        for shot in shots
    ]


def _shots(work: Work, phase: Phase, snapshots: Sequence[Snapshot], cut_off: int) -> list[_Shot]:
    """The looks whose snapshots these are, the last of which is cut off there."""
    known = work.store.looks.all(phase.id)
    cut_offs = [look.cut_off for look in known]
    # Looks that are prepared together are not on record yet: they end with their days.
    while len(cut_offs) < len(snapshots) - 1:
        before = cut_offs[-1] if cut_offs else phase.opened_at
        cut_offs.append((utc_day(before) + 1) * DAY)
    # Those of an earlier version were of who was there when the phase began, and stay so.
    opens = [look.decisions.get("open", False) for look in known]
    return [
        _Shot(seen=evidence.remembered(kept), day=(moment - phase.opened_at) / DAY, open=is_open)
        for kept, moment, is_open in zip(
            snapshots, [*cut_offs, cut_off], [*opens, *[True] * (len(snapshots) - len(opens))], strict=True
        )
    ]
