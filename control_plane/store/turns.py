"""What was done in the time blocks of a switchback, from tallies."""

from collections.abc import Sequence

from control_plane.store.database import Tx
from control_plane.store.tallies import Total

_NO_DAY = 1 << 40
"""After every day."""


class TurnStore:
    """Tallies by time block, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def totals(
        self, phase_id: bytes, names: Sequence[str] | None = None, *, until: int | None = None
    ) -> list[Total]:
        """As `EventStore.totals`, each time block by itself."""
        marks = "" if names is None else f" and t.event_name in ({', '.join('?' * len(names))})"
        rows = self._tx.all(
            "select t.variant_id, p.public_id, t.event_name, t.block, sum(t.assigned_count) as ac,"  # noqa: S608
            " sum(t.assigned_units) as au, sum(t.assigned_value) as av, sum(t.delivered_count) as dc,"
            " sum(t.delivered_units) as du, sum(t.delivered_value) as dv from tally t"
            " join participant p on p.id = t.participant_id"
            f" where t.phase_id = ? and t.day <= ?{marks}"
            " group by t.variant_id, p.id, t.block, t.event_name",
            (phase_id, _NO_DAY if until is None else until, *(names or ())),
        )
        return [
            Total(
                variant_id=row["variant_id"],
                participant=row["public_id"],
                event_name=row["event_name"],
                assigned=(row["ac"], row["au"], row["av"]),
                delivered=(row["dc"], row["du"], row["dv"]),
                block=row["block"],
            )
            for row in rows
        ]
