"""Views, events, and the sums that results read."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

from control_plane.domain.attribution import (
    Attributed,
    Enrolled,
    Firsts,
    Happening,
    Standing,
    Tallies,
    UnitKey,
    UnitState,
    Windows,
    settle,
)
from control_plane.domain.design import Design, Exposure
from control_plane.domain.fields import duration
from control_plane.domain.metrics import BELOW
from control_plane.store.database import Row, Tx, asked
from control_plane.store.sightings import Sightings
from control_plane.store.tallies import TallyStore
from shared.model import NAME_ENDS, Digest, Event, EventKind


class Origin(NamedTuple):
    """Where an event came from: the project, and the agent and epoch of a spool; a server's own has neither."""

    project_id: bytes
    agent_uid: bytes | None = None
    epoch: bytes | None = None


class Mark(NamedTuple):
    """How far a spool's epoch is stored: its high-water sequence, and the chain hash there."""

    high_seq: int
    chain: bytes


class StoredEvent(NamedTuple):
    """An event as it is kept; `reason` says why it takes part in nothing, if it does not."""

    origin: Origin
    record_id: bytes
    recorded_at: int
    event: Event
    participant_id: bytes | None
    seq: int | None
    reason: str | None


class EventStore(Sightings, TallyStore):
    """Views, receipts, events and tallies, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        super().__init__(tx)
        self._of_phase: dict[bytes, Windows] = {}
        self._declared: dict[bytes, set[str]] = {}
        self._of_experiment: dict[bytes, dict[bytes, dict[str, Digest]]] = {}
        self._of_others: dict[bytes, dict[str, frozenset[Digest]]] = {}

    # -- the position of each spool

    def marks(self, epochs: Sequence[tuple[bytes, bytes]]) -> dict[tuple[bytes, bytes], Mark]:
        """How far each (agent, epoch) is stored; one that no batch came of is left out."""
        rows = asked(
            self._tx,
            "with asked (agent_uid, epoch) as (values {}) select s.* from asked a cross join spool_epoch s"
            " where s.agent_uid = a.agent_uid and s.epoch = a.epoch",
            epochs,
        )
        return {(row["agent_uid"], row["epoch"]): Mark(row["high_seq"], row["chain"]) for row in rows}

    def put_marks(self, marks: Mapping[tuple[bytes, bytes], Mark], *, now: int) -> None:
        """Everything of each (agent, epoch) up to its mark is stored."""
        self._tx.many(
            "insert into spool_epoch (agent_uid, epoch, high_seq, chain, updated_at) values (?, ?, ?, ?, ?)"
            " on conflict (agent_uid, epoch) do update set high_seq = excluded.high_seq,"
            " chain = excluded.chain, updated_at = excluded.updated_at",
            [(*epoch, mark.high_seq, mark.chain, now) for epoch, mark in sorted(marks.items())],
        )

    def add_losses(self, losses: Iterable[tuple[bytes, bytes, str, int]]) -> None:
        """(agent, epoch, reason, count): so many records more are declared lost for this reason."""
        self._tx.many(
            "insert into spool_loss (agent_uid, epoch, reason, count) values (?, ?, ?, ?)"
            " on conflict (agent_uid, epoch, reason) do update set count = spool_loss.count + excluded.count",
            losses,
        )

    def note_losses(self, ids: Sequence[bytes]) -> None:
        """The declared losses of these record ids are counted."""
        self._tx.many("insert into loss (id) values (?)", [(record_id,) for record_id in ids])

    # -- facts

    def known(self, table: str, ids: Sequence[bytes]) -> set[bytes]:
        """Which of these record ids are stored already, as what the table holds."""
        rows = asked(self._tx, f"select id from {table} where id in ({{}})", [(one,) for one in ids])  # noqa: S608
        return {row["id"] for row in rows}

    def take_keys(self, keys: Iterable[tuple[bytes, str, bytes]], *, now: int) -> None:
        """(project, application's event id, record), none of them taken before: each is taken by its record."""
        self._tx.many(
            "insert into event_key (project_id, key, event_id, seen_at) values (?, ?, ?, ?)",
            [(*key, now) for key in keys],
        )

    def add_events(self, events: Sequence[StoredEvent], *, now: int) -> None:
        """The events are stored, each project's in this order behind whatever came in before."""
        arrivals = {
            project_id: count(self._last_arrival(project_id) + 1)
            for project_id in {item.origin.project_id for item in events}
        }
        self._tx.many(
            "insert into event (id, project_id, participant_id, participant_name, agent_uid, kind, event_name,"
            " subject, path, digest, value_micros, properties, event_id, source, occurred_at, recorded_at,"
            " received_at, epoch, seq, reason, arrival)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(record_id, origin.project_id, participant_id, event.participant, origin.agent_uid),
                    *(event.kind.value, event.event_name, event.subject, event.path, event.digest),
                    *(event.value_micros, event.properties_json, event.event_id, event.source.value),
                    *(event.occurred_at, recorded_at, now, origin.epoch, seq, reason and str(reason)),
                    next(arrivals[origin.project_id]),
                )
                for origin, record_id, recorded_at, event, participant_id, seq, reason in events
            ],
        )

    def number_from(self, moment: int) -> None:
        """Every project's next event has a number above the moment, in microseconds, and above all it ever gave here.

        For a database that was put back: which numbers it gave since that copy was made, nobody knows any more. Events
        that are numbered one by one do not overtake a clock that counts microseconds.
        """
        for row in self._tx.all("select id from project order by id"):
            last = max(self._last_arrival(row["id"]), moment)
            self._tx.run("update project set last_arrival = ? where id = ?", (last, row["id"]))

    def _last_arrival(self, project_id: bytes) -> int:
        """The number that the project's last event has or, where it is deleted, had."""
        row = self._tx.one(
            "select coalesce((select max(arrival) from event where project_id = p.id), 0) as last, p.last_arrival"
            " from project p where p.id = ?",
            (project_id,),
        )
        return max(row["last"], row["last_arrival"]) if row else 0

    # -- attribution

    def participants_of(
        self, names: Sequence[tuple[bytes, bytes, str]]
    ) -> defaultdict[bytes | None, dict[str, bytes]]:
        """By agent, internal id by public id of those of (project, agent, public id) that are bound to the agent."""
        rows = asked(
            self._tx,
            "with asked (project_id, agent_uid, public_id) as (values {}) select p.agent_uid, p.public_id, p.id"
            " from asked a cross join participant p where p.project_id = a.project_id"
            " and p.public_id = a.public_id and p.agent_uid = a.agent_uid and p.deleted_at is null",
            names,
        )
        found: defaultdict[bytes | None, dict[str, bytes]] = defaultdict(dict)
        for row in rows:
            found[row["agent_uid"]][row["public_id"]] = row["id"]
        return found

    def participants_named(self, project_id: bytes, names: Sequence[str]) -> dict[str, bytes]:
        """Internal id by public id of these participants of the project, as far as they are there."""
        rows = asked(
            self._tx,
            "with asked (project_id, public_id) as (values {}) select p.id, p.public_id from asked a"
            " cross join participant p where p.project_id = a.project_id and p.public_id = a.public_id"
            " and p.deleted_at is null",
            [(project_id, name) for name in names],
        )
        return {row["public_id"]: row["id"] for row in rows}

    def taken_keys(self, keys: Sequence[tuple[bytes, str]]) -> dict[tuple[bytes, str], bytes]:
        """Which of these (project, application's event id) were seen, by the record that has each."""
        rows = asked(
            self._tx,
            "with asked (project_id, key) as (values {}) select k.project_id, k.key, k.event_id from asked a"
            " cross join event_key k where k.project_id = a.project_id and k.key = a.key",
            keys,
        )
        return {(row["project_id"], row["key"]): row["event_id"] for row in rows}

    def enrolled(self, participant_ids: Sequence[bytes]) -> dict[bytes, list[Enrolled]]:
        """Every assignment each ever had in a phase that still counts, in order, as attribution needs it."""
        found: dict[bytes, list[Enrolled]] = {participant_id: [] for participant_id in participant_ids}
        for row in asked(
            self._tx,
            "select a.participant_id, a.phase_id, a.variant_id, a.time_block, a.from_at, a.to_at, e.id,"
            " e.settle_seconds, e.design, e.metrics from assignment a join experiment e on e.id = a.experiment_id"
            " join phase f on f.id = a.phase_id where a.participant_id in ({})"
            " and a.variant_id is not null and f.events_gone_at is null order by a.from_at",
            [(one,) for one in participant_ids],
        ):
            found[row["participant_id"]].append(self._enrolled(row))
        return found

    def _enrolled(self, row: Row) -> Enrolled:
        exposure, digests = _exposure(row["design"]), self._digests(row["id"])
        return Enrolled(
            phase_id=row["phase_id"],
            variant_id=row["variant_id"],
            block=row["time_block"],
            digests=digests.get(row["variant_id"], {}),
            from_at=row["from_at"],
            to_at=row["to_at"],
            settle=settle(row["settle_seconds"]),
            loaded=exposure.requires == "loaded",
            others={} if row["time_block"] else self._others(row["id"], row["variant_id"]),
            several=None if row["time_block"] else exposure.multiple_variants,
            windows=_windows(row["metrics"]),
        )

    def _others(self, experiment_id: bytes, variant_id: bytes) -> dict[str, frozenset[Digest]]:
        """By path, what all the other variants have there."""
        if variant_id not in self._of_others:
            self._of_others[variant_id] = _others(self._digests(experiment_id), variant_id)
        return self._of_others[variant_id]

    def over(self, participant_ids: Sequence[bytes]) -> dict[bytes, list[tuple[int, int | None]]]:
        """By participant, (from, to) of its assignments in phases that count nothing more."""
        found: dict[bytes, list[tuple[int, int | None]]] = {one: [] for one in participant_ids}
        for row in asked(
            self._tx,
            "select a.participant_id, a.from_at, a.to_at from assignment a join phase f on f.id = a.phase_id"
            " where a.participant_id in ({}) and a.variant_id is not null and f.events_gone_at is not null",
            [(one,) for one in participant_ids],
        ):
            found[row["participant_id"]].append((row["from_at"], row["to_at"]))
        return found

    def _digests(self, experiment_id: bytes) -> dict[bytes, dict[str, Digest]]:
        """Digest by path of every variant of the experiment, which has started: they are the same from then on."""
        if experiment_id in self._of_experiment:
            return self._of_experiment[experiment_id]
        found: defaultdict[bytes, dict[str, Digest]] = defaultdict(dict)
        for row in self._tx.all(
            "select f.variant_id, f.path, f.digest from variant v join variant_file f on f.variant_id = v.id"
            " where v.experiment_id = ?",
            (experiment_id,),
        ):
            found[row["variant_id"]][row["path"]] = row["digest"]
        self._of_experiment[experiment_id] = dict(found)
        return self._of_experiment[experiment_id]

    def windows(self, phase_id: bytes) -> Windows:
        """The windows of the metrics of the phase's experiment, by event name."""
        if phase_id not in self._of_phase:
            row = self._tx.one(
                "select e.metrics from phase p join experiment e on e.id = p.experiment_id where p.id = ?",
                (phase_id,),
            )
            self._of_phase[phase_id] = _windows(row["metrics"]) if row else {}
        return self._of_phase[phase_id]

    def declared(self, phase_id: bytes) -> set[str]:
        """Events that the metrics of the phase's experiment are of."""
        if (known := self._declared.get(phase_id)) is not None:
            return known
        row = self._tx.one(
            "select e.metrics from phase p join experiment e on e.id = p.experiment_id where p.id = ?",
            (phase_id,),
        )
        stored = json.loads(row["metrics"]) if row else {}
        items = (stored.get("primary") or {}, *stored.get("secondary", []), *stored.get("guardrail", []))
        names = ("eventName", "denominatorEventName")
        self._declared[phase_id] = {one[name] for one in items for name in names if one.get(name)}
        return self._declared[phase_id]

    def count_anew(
        self, phase_id: bytes, units: Iterable[tuple[UnitKey, UnitState]], tallies: Tallies
    ) -> None:
        """What counts within windows is this; whatever did before is gone."""
        for table in ("tally", "unit"):
            self._tx.run(
                f"delete from {table} where phase_id = ? and event_name like ?",  # noqa: S608
                (phase_id, f"%{NAME_ENDS}%"),
            )
        self.put_units(units)
        self.add_tallies(tallies)

    def attributed_since(self, since: Mapping[bytes, int]) -> dict[bytes, list[Attributed]]:
        """By participant, its attributed events from that moment on; who has none is left out."""
        rows = asked(
            self._tx,
            "with asked (participant_id, low) as (values {}) select t.*, e.path, e.digest from asked a"
            " cross join event e cross join attributed_event t where e.participant_id = a.participant_id"
            " and e.occurred_at >= a.low and t.event_id = e.id",
            sorted(since.items()),
        )
        found: defaultdict[bytes, list[Attributed]] = defaultdict(list)
        for row in rows:
            found[row["participant_id"]].append(attributed(row, self.windows(row["phase_id"])))
        return dict(found)

    def attributed_of(self, keys: Sequence[UnitKey]) -> dict[UnitKey, list[Attributed]]:
        """Every attributed event of each of these units."""
        found: dict[UnitKey, list[Attributed]] = {key: [] for key in keys}
        for row in asked(
            self._tx,
            "with asked (phase_id, participant_id, subject, block) as (values {}) select t.*, e.path, e.digest"
            " from asked a cross join attributed_event t cross join event e where t.phase_id = a.phase_id"
            " and t.participant_id = a.participant_id and t.block = a.block and t.subject = a.subject"
            " and e.id = t.event_id",
            keys,
        ):
            key = UnitKey(row["phase_id"], row["participant_id"], row["subject"], row["block"])
            found[key].append(attributed(row, self.windows(row["phase_id"])))
        return found

    def put_attributed(self, items: Iterable[tuple[bytes, Attributed]]) -> None:
        """(participant, event): it stands in its phase as given, new or judged again."""
        self._tx.many(
            "insert into attributed_event (phase_id, participant_id, block, subject, occurred_at, event_id,"
            " variant_id, kind, event_name, value_micros, assigned, delivered)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " on conflict (phase_id, participant_id, block, subject, occurred_at, event_id)"
            " do update set delivered = excluded.delivered",
            [
                (
                    item.phase_id,
                    participant_id,
                    item.block,
                    item.event.subject,
                    item.event.occurred_at,
                    item.event.id,
                    item.variant_id,
                    item.event.kind.value,
                    item.event.event_name,
                    item.event.value_micros,
                    item.assigned.value,
                    item.delivered.value,
                )
                for participant_id, item in items
            ],
        )

    def count_standings(self, changes: Mapping[tuple[bytes, str, str], int]) -> None:
        """So many events more (or fewer) stand so: (phase, population, standing) → change."""
        self._tx.many(
            "insert into standing (phase_id, population, standing, count) values (?, ?, ?, ?)"
            " on conflict (phase_id, population, standing) do update set count = standing.count + excluded.count",
            [(*key, change) for key, change in sorted(changes.items()) if change],
        )

    def units(self, keys: Sequence[UnitKey]) -> dict[UnitKey, UnitState]:
        """The first moments of each of these units."""
        found = {key: UnitState(assigned={}, delivered={}) for key in keys}
        for row in asked(
            self._tx,
            "with asked (phase_id, participant_id, subject, block) as (values {})"
            " select u.* from asked a cross join unit u where u.phase_id = a.phase_id"
            " and u.participant_id = a.participant_id and u.block = a.block and u.subject = a.subject",
            keys,
        ):
            key = UnitKey(row["phase_id"], row["participant_id"], row["subject"], row["block"])
            _take_up(found[key], row["event_name"], row["first_assigned"], row["first_delivered"])
        return found

    def put_units(self, units: Iterable[tuple[UnitKey, UnitState]]) -> None:
        """The units' first moments are as given."""
        self.change_units((key, UnitState(assigned={}, delivered={}), state) for key, state in units)

    def change_units(self, units: Iterable[tuple[UnitKey, UnitState, UnitState]]) -> None:
        """The units' first moments, known to be as the first state says, are as the second does."""
        self._tx.many(
            "insert into unit (phase_id, participant_id, block, subject, event_name, first_assigned,"
            " first_delivered) values (?, ?, ?, ?, ?, ?, ?)"
            " on conflict (phase_id, participant_id, block, subject, event_name) do update set"
            " first_assigned = excluded.first_assigned, first_delivered = excluded.first_delivered",
            [
                (key.phase_id, key.participant_id, key.block, key.subject, name, *moments)
                for key, before, after in units
                if before != after
                for name, moments in _moments(after)
                if (name, moments) not in _moments(before)
            ],
        )

    def add_tallies(self, tallies: Tallies) -> None:
        """Every tally row has changed by as much."""
        rows = []
        for cell in tallies.cells():
            a, d = tallies.assigned[cell], tallies.delivered[cell]
            sums = (a.count, a.units, a.value, d.count, d.units, d.value)
            if any(sums):
                whose = (cell.phase_id, cell.variant_id, cell.participant_id)
                key = (*whose, cell.block, cell.event_name, cell.day)
                rows.append((*key, *sums))
        self._tx.many(
            "insert into tally (phase_id, variant_id, participant_id, block, event_name, day, assigned_count,"
            " assigned_units, assigned_value, delivered_count, delivered_units, delivered_value)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " on conflict (phase_id, variant_id, participant_id, block, event_name, day) do update set"
            " assigned_count = tally.assigned_count + excluded.assigned_count,"
            " assigned_units = tally.assigned_units + excluded.assigned_units,"
            " assigned_value = tally.assigned_value + excluded.assigned_value,"
            " delivered_count = tally.delivered_count + excluded.delivered_count,"
            " delivered_units = tally.delivered_units + excluded.delivered_units,"
            " delivered_value = tally.delivered_value + excluded.delivered_value",
            rows,
        )

    def add_activity(self, activity: Mapping[tuple[bytes, str, str, int], tuple[int, int]]) -> None:
        """(participant, path, event name, day) → (count, value micros), added."""
        self._tx.many(
            "insert into activity (participant_id, path, event_name, day, count, value) values (?, ?, ?, ?, ?, ?)"
            " on conflict (participant_id, path, event_name, day) do update set"
            " count = activity.count + excluded.count, value = activity.value + excluded.value",
            [(*key, *sums) for key, sums in sorted(activity.items())],
        )

    def event_names(self, phase_id: bytes) -> list[str]:
        """Names of the conversions that were counted or are pending in the phase."""
        rows = self._tx.all(
            "select event_name from phase_event_name where phase_id = ? order by event_name", (phase_id,)
        )
        return [row["event_name"] for row in rows]

    def add_event_names(self, names: Iterable[tuple[bytes, str]]) -> None:
        """(phase, conversion's name) pairs, known from now on; impressions have none."""
        self._tx.many(
            "insert into phase_event_name (phase_id, event_name) values (?, ?) on conflict do nothing",
            sorted({pair for pair in names if pair[1]}),
        )


def _moments(state: UnitState) -> list[tuple[str, tuple[int | None, int | None]]]:
    """The unit's rows: first moments by event name, as `_take_up` reads them."""
    delivered: Firsts = state.delivered if state.other is None else {**state.delivered, "": -state.other}
    names = sorted({*state.assigned, *state.delivered})
    return [(name, (state.assigned.get(name), delivered.get(name))) for name in names]


def _take_up(state: UnitState, name: str, assigned: int | None, delivered: int | None) -> None:
    """The unit's state has what one of its rows says."""
    for firsts, value in ((state.assigned, assigned), (state.delivered, delivered)):
        if name or (value is not None and value >= 0):
            firsts[name] = value
    # Who has crossed has no first exposure in `delivered`: its place says when it met the other variant.
    if not name and (delivered or 0) < 0:
        state.other = -(delivered or 0)


@lru_cache(maxsize=256)
def _exposure(design: str) -> Exposure:
    """What a design says of which events count; for every batch of every participant, so each is read once."""
    return Design.model_validate_json(design).exposure_criteria


def _others(digests: Mapping[bytes, Mapping[str, Digest]], variant_id: bytes) -> dict[str, frozenset[Digest]]:
    """By path, what all the other variants have there."""
    others = [files for key, files in digests.items() if key != variant_id]
    paths = {path for files in others for path in files}
    return {path: frozenset(files[path] for files in others if path in files) for path in paths}


@lru_cache(maxsize=256)
def _windows(metrics: str) -> Windows:
    """Windows by event name of an experiment's metrics as they are stored."""
    stored = json.loads(metrics)
    found: defaultdict[str, set[int]] = defaultdict(set)
    primary = stored.get("primary")
    for item in (*([primary] if primary else []), *stored.get("secondary", []), *stored.get("guardrail", [])):
        for event, window in (("eventName", "window"), ("denominatorEventName", BELOW)):
            if item.get(window) and event in item:
                found[item[event]].add(duration(item[window]) or 0)
    return {name: tuple(sorted(lengths)) for name, lengths in found.items()}


def attributed(row: Row, windows: Windows) -> Attributed:
    """An attributed event of its row, with path and digest of the event's own; `windows` are its phase's."""
    is_conversion = row["kind"] == EventKind.CONVERSION.value
    return Attributed(
        phase_id=row["phase_id"],
        variant_id=row["variant_id"],
        block=row["block"],
        event=Happening(
            id=row["event_id"],
            kind=EventKind(row["kind"]),
            event_name=row["event_name"],
            subject=row["subject"],
            path=row["path"],
            digest=row["digest"],
            value_micros=row["value_micros"],
            occurred_at=row["occurred_at"],
        ),
        assigned=Standing(row["assigned"]),
        delivered=Standing(row["delivered"]),
        windows=windows.get(row["event_name"], ()) if is_conversion else (),
    )
