"""Sums against the events behind them: everything results read is added up once more, from the events that are kept."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from control_plane.domain import requests
from control_plane.domain.attribution import Sums, Tallies, UnitState, recount
from control_plane.domain.experiment import Experiment
from control_plane.services.experiments import find
from control_plane.services.work import Work
from control_plane.store.doctor import DoctorStore, Whose

LISTED = 1_000
"""So many differences are listed; all of them are counted."""

POPULATIONS = ("assigned", "delivered")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One number, or one moment, that is kept otherwise than the events say; None: there is none.

    `table` is tally, unit or standing, and what identifies its row is set; a `moment` is in microseconds.
    """

    table: str
    phase_id: bytes
    population: str
    field: str
    stored: int | None
    recomputed: int | None
    variant_id: bytes | None = None
    participant: str | None = None
    time_block: int = 0
    subject: str = ""
    event_name: str = ""
    day: int | None = None
    standing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What was added up again, and every number that came out otherwise (`differences` has the first of them)."""

    experiment: Experiment
    phases: int
    participants: int
    events: int
    gone: int
    """Phases among them whose raw events are deleted: their sums stand alone."""
    count: int
    differences: tuple[Difference, ...]


def check_tallies(work: Work, request: requests.ById) -> Checked:
    """Tallies, units and standings of every phase, added up again from attributed events; every difference is told.

    Changes nothing. There are none, unless the database was changed by something else than variantd.
    """
    experiment = find(work, request.id)
    store, tried = work.store.doctor, Counter[str]()
    found: list[Difference] = []
    for phase_id in store.phases(experiment.id):
        tried["phases"] += 1
        if store.gone(phase_id):
            tried["gone"] += 1
            continue
        for item in _phase(store, phase_id, tried):
            tried["differences"] += 1
            if len(found) < LISTED:
                found.append(item)
    return Checked(
        experiment=experiment,
        phases=tried["phases"],
        gone=tried["gone"],
        participants=tried["participants"],
        events=tried["events"],
        count=tried["differences"],
        differences=tuple(found),
    )


def _phase(store: DoctorStore, phase_id: bytes, tried: Counter[str]) -> Iterator[Difference]:
    standings = Counter[tuple[str, str]]()
    variants = store.variants(phase_id)
    for whose in store.participants(phase_id):
        tried["participants"] += 1
        tallies, states = Tallies(), {}
        for key, events in store.events(phase_id, whose.id).items():
            tried["events"] += len(events)
            states[key] = recount(key, (), events, tallies)
            standings.update(("assigned", item.assigned.value) for item in events)
            standings.update(("delivered", item.delivered.value) for item in events)
        kept = store.units(phase_id, whose.id)
        for key in sorted(kept.keys() | states.keys(), key=lambda unit: (unit.block, unit.subject)):
            nothing = UnitState(assigned={}, delivered={})
            about = Difference(
                table="unit",
                phase_id=phase_id,
                population="",
                field="",
                stored=None,
                recomputed=None,
                participant=whose.public_id,
                time_block=key.block,
                subject=key.subject,
            )
            yield from _unit(about, kept.get(key, nothing), states.get(key, nothing))
        yield from _tallies(store, phase_id, variants, whose, tallies)
    stored = store.standings(phase_id)
    for population, standing in sorted(stored.keys() | standings.keys()):
        before, now = stored.get((population, standing), 0), standings[population, standing]
        if before != now:
            yield Difference(
                table="standing",
                phase_id=phase_id,
                population=population,
                field="count",
                stored=before,
                recomputed=now,
                standing=standing,
            )


def _unit(about: Difference, kept: UnitState, state: UnitState) -> Iterator[Difference]:
    for population in POPULATIONS:
        stored, recomputed = getattr(kept, population), getattr(state, population)
        for name in sorted(stored.keys() | recomputed.keys()):
            if stored.get(name) != recomputed.get(name):
                yield replace(
                    about,
                    population=population,
                    field="first",
                    event_name=name,
                    stored=stored.get(name),
                    recomputed=recomputed.get(name),
                )


def _tallies(
    store: DoctorStore, phase_id: bytes, variants: list[bytes], whose: Whose, tallies: Tallies
) -> Iterator[Difference]:
    kept = store.tallies(phase_id, variants, whose.id)
    for cell in sorted(
        kept.keys() | set(tallies.cells()), key=lambda c: (c.variant_id, c.block, c.event_name, c.day)
    ):
        stored = kept.get(cell, (Sums(), Sums()))
        recomputed = (tallies.assigned[cell], tallies.delivered[cell])
        for population, before, now in zip(POPULATIONS, stored, recomputed, strict=True):
            for name in (field.name for field in fields(Sums)):
                if getattr(before, name) != getattr(now, name):
                    yield Difference(
                        table="tally",
                        phase_id=phase_id,
                        population=population,
                        field=name,
                        stored=getattr(before, name),
                        recomputed=getattr(now, name),
                        variant_id=cell.variant_id,
                        participant=whose.public_id,
                        time_block=cell.block,
                        event_name=cell.event_name,
                        day=cell.day,
                    )
