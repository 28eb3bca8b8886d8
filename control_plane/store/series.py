"""What is counted day by day."""

from collections import defaultdict

from control_plane.domain.series import Counts
from control_plane.store.database import Tx


class SeriesStore:
    """Tallies by day, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def by_day(self, phase_id: bytes, event_name: str, *, population: str) -> dict[int, dict[bytes, Counts]]:
        """What is counted in a phase by UTC day and variant, of impressions and of this conversion."""
        count = "delivered_count" if population == "delivered" else "assigned_count"
        found: defaultdict[int, dict[bytes, Counts]] = defaultdict(dict)
        for row in self._tx.all(
            f"select day, variant_id, sum(case event_name when '' then {count} else 0 end) as m,"  # noqa: S608
            f" sum(case event_name when '' then 0 else {count} end) as c from tally"
            " where phase_id = ? and event_name in ('', ?) group by day, variant_id",
            (phase_id, event_name),
        ):
            found[row["day"]][row["variant_id"]] = Counts(row["m"], row["c"], 0)
        for row in self._tx.all(
            "select first, variant_id, count(*) as n from (select variant_id, participant_id, min(day) as first"  # noqa: S608
            f" from tally where phase_id = ? and event_name = '' and {count} > 0"
            " group by variant_id, participant_id) newcomer group by first, variant_id",
            (phase_id,),
        ):
            found[row["first"]][row["variant_id"]] += Counts(0, 0, row["n"])
        return dict(found)
