"""The sums that results read: what everybody did, by day, without an event being looked at."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from control_plane.domain.attribution import Standing
from control_plane.store.database import Tx
from shared.model import NAME_ENDS

_NO_DAY = 1 << 40
"""After every day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantSums:
    """What one assigned participant did in a phase, for one population and one conversion."""

    variant_id: bytes
    participant: str
    impressions: int
    conversions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """(count, units, value in millionths) of one participant's events of a name, in both populations."""

    variant_id: bytes
    participant: str
    event_name: str
    assigned: tuple[int, int, int]
    delivered: tuple[int, int, int]
    block: int = 0


class TallyStore:
    """Tallies and what stands beside them, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def activity(
        self, phase_id: bytes, paths: Sequence[str], *, first: int, last: int
    ) -> dict[str, dict[str, tuple[int, int]]]:
        """(count, value in millionths) by event name and public id of who is assigned in the phase.

        On the UTC days `first` to `last`, of events that were about one of the paths, with or without an experiment.
        """
        marks = ", ".join("?" * len(paths))
        rows = self._tx.all(
            "select a.event_name, p.public_id, sum(a.count) as n, sum(a.value) as v from (select distinct"  # noqa: S608
            " participant_id from assignment where phase_id = ? and variant_id is not null) s join participant p"
            " on p.id = s.participant_id join activity a on a.participant_id = s.participant_id"
            f" where a.path in ({marks}) and a.day between ? and ? group by a.event_name, p.public_id",
            (phase_id, *paths, first, last),
        )
        found: defaultdict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        for row in rows:
            found[row["event_name"]][row["public_id"]] = (row["n"], row["v"])
        return dict(found)

    def sums(self, phase_id: bytes, event_name: str, *, population: str) -> list[ParticipantSums]:
        """Impressions and conversions of every assigned participant of the phase, also of the silent ones."""
        count = "delivered_count" if population == "delivered" else "assigned_count"
        rows = self._tx.all(
            f"select a.variant_id, p.public_id, coalesce(sum(case t.event_name when '' then t.{count} end), 0) as m,"  # noqa: S608
            f" coalesce(sum(case t.event_name when ? then t.{count} end), 0) as c"
            # Once per variant that the participant has or will have, whatever the number of its blocks.
            " from (select distinct phase_id, variant_id, participant_id from assignment where phase_id = ?"
            " and variant_id is not null) a join participant p on p.id = a.participant_id left join tally t"
            " on t.phase_id = a.phase_id and t.variant_id = a.variant_id and t.participant_id = a.participant_id"
            " and t.event_name in ('', ?) group by a.variant_id, p.public_id order by a.variant_id, p.public_id",
            (event_name, phase_id, event_name),
        )
        return [
            ParticipantSums(
                variant_id=row["variant_id"],
                participant=row["public_id"],
                impressions=row["m"],
                conversions=row["c"],
            )
            for row in rows
        ]

    def totals(
        self, phase_id: bytes, names: Sequence[str] | None = None, *, until: int | None = None
    ) -> list[Total]:
        """What everybody did in the phase by conversion (of these names, or any) and variant; '' is impressions.

        With `until`, only what happened up to the end of that UTC day.
        """
        marks = "" if names is None else f" and t.event_name in ({', '.join('?' * len(names))})"
        rows = self._tx.all(
            "select t.variant_id, p.public_id, t.event_name, sum(t.assigned_count) as ac, sum(t.assigned_units) as au,"  # noqa: S608
            " sum(t.assigned_value) as av, sum(t.delivered_count) as dc, sum(t.delivered_units) as du,"
            " sum(t.delivered_value) as dv from tally t join participant p on p.id = t.participant_id"
            f" where t.phase_id = ? and t.day <= ?{marks} group by t.variant_id, p.id, t.event_name",
            (phase_id, _NO_DAY if until is None else until, *(names or ())),
        )
        return [
            Total(
                variant_id=row["variant_id"],
                participant=row["public_id"],
                event_name=row["event_name"],
                assigned=(row["ac"], row["au"], row["av"]),
                delivered=(row["dc"], row["du"], row["dv"]),
            )
            for row in rows
        ]

    def not_counted(self, phase_id: bytes, *, population: str) -> dict[str, int]:
        """Events of the phase that count for nothing, by reason; `pending` ones wait for an impression."""
        rows = self._tx.all(
            "select standing, count from standing where phase_id = ? and population = ? and count > 0",
            (phase_id, population),
        )
        standings = {row["standing"]: row["count"] for row in rows}
        eligible = standings.pop(Standing.ELIGIBLE.value, 0)
        count = "delivered_count" if population == "delivered" else "assigned_count"
        counted = self._tx.one(
            f"select sum({count}) as n from tally where phase_id = ? and event_name not like ?",  # noqa: S608
            (phase_id, f"%{NAME_ENDS}%"),
        )
        pending = eligible - ((counted["n"] or 0) if counted else 0)
        return {**({"pending": pending} if pending else {}), **standings}

    def lost(self, experiment_id: bytes) -> int:
        """Records declared lost by agents that serve participants of the experiment."""
        row = self._tx.one(
            "select sum(count) as n from spool_loss where agent_uid in (select distinct p.agent_uid"
            " from assignment a join participant p on p.id = a.participant_id where a.experiment_id = ?)",
            (experiment_id,),
        )
        return (row["n"] or 0) if row else 0
