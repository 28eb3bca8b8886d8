"""Sums as they are kept and the events behind them, side by side, for whoever checks the one against the other."""

from dataclasses import dataclass

from control_plane.domain.attribution import Attributed, Cell, Sums, UnitKey, UnitState
from control_plane.store.database import Tx
from control_plane.store.events import EventStore, attributed


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """A participant of whom something is kept."""

    id: bytes
    public_id: str


class DoctorStore:
    """What is kept of a phase, participant by participant, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def phases(self, experiment_id: bytes) -> list[bytes]:
        """Every phase of every run, the oldest first."""
        rows = self._tx.all(
            "select id from phase where experiment_id = ? order by run, number", (experiment_id,)
        )
        return [row["id"] for row in rows]

    def gone(self, phase_id: bytes) -> bool:
        """The events of the phase are deleted, or being so."""
        row = self._tx.one("select events_gone_at from phase where id = ?", (phase_id,))
        return row is not None and row["events_gone_at"] is not None

    def participants(self, phase_id: bytes) -> list[Whose]:
        """Whoever has an event, a unit or a sum in the phase."""
        rows = self._tx.all(
            "select found.id, coalesce(p.public_id, '') as public_id from ("
            "select participant_id as id from attributed_event where phase_id = ?"
            " union select participant_id from unit where phase_id = ?"
            " union select participant_id from tally where phase_id = ?"
            ") found left join participant p on p.id = found.id order by 2, 1",
            (phase_id, phase_id, phase_id),
        )
        return [Whose(id=row["id"], public_id=row["public_id"]) for row in rows]

    def variants(self, phase_id: bytes) -> list[bytes]:
        """Whatever sums of the phase are said to be of."""
        rows = self._tx.all("select distinct variant_id from tally where phase_id = ?", (phase_id,))
        return [row["variant_id"] for row in rows]

    def events(self, phase_id: bytes, participant_id: bytes) -> dict[UnitKey, list[Attributed]]:
        """Every event of the participant in the phase, by unit."""
        found: dict[UnitKey, list[Attributed]] = {}
        windows = EventStore(self._tx).windows(phase_id)
        for row in self._tx.all(
            "select t.*, e.path, e.digest from attributed_event t join event e on e.id = t.event_id"
            " where t.phase_id = ? and t.participant_id = ?",
            (phase_id, participant_id),
        ):
            key = UnitKey(phase_id, participant_id, row["subject"], row["block"])
            found.setdefault(key, []).append(attributed(row, windows))
        return found

    def units(self, phase_id: bytes, participant_id: bytes) -> dict[UnitKey, UnitState]:
        """Every unit of the participant in the phase as it is kept."""
        rows = self._tx.all(
            "select distinct block, subject from unit where phase_id = ? and participant_id = ?",
            (phase_id, participant_id),
        )
        keys = [UnitKey(phase_id, participant_id, row["subject"], row["block"]) for row in rows]
        return EventStore(self._tx).units(keys)

    def tallies(
        self, phase_id: bytes, variants: list[bytes], participant_id: bytes
    ) -> dict[Cell, tuple[Sums, Sums]]:
        """(assigned, delivered) of every tally row of the participant."""
        found = {}
        for variant_id in variants:
            for row in self._tx.all(
                "select * from tally where phase_id = ? and variant_id = ? and participant_id = ?",
                (phase_id, variant_id, participant_id),
            ):
                cell = Cell(phase_id, variant_id, participant_id, row["event_name"], row["day"], row["block"])
                found[cell] = (
                    Sums(row["assigned_count"], row["assigned_units"], row["assigned_value"]),
                    Sums(row["delivered_count"], row["delivered_units"], row["delivered_value"]),
                )
        return found

    def standings(self, phase_id: bytes) -> dict[tuple[str, str], int]:
        """How many events stand how, by population and standing."""
        rows = self._tx.all("select * from standing where phase_id = ?", (phase_id,))
        return {(row["population"], row["standing"]): row["count"] for row in rows}
