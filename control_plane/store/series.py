"""What is counted day by day."""

from collections import defaultdict
from collections.abc import Iterator

from control_plane.domain.series import Counts
from control_plane.store.database import Tx


class SeriesStore:
    """Tallies by day, within one transaction."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    def by_day(
        self, phase_id: bytes, event_name: str, *, population: str, of: str = "impressions"
    ) -> dict[int, dict[bytes, Counts]]:
        """What is counted in a phase by UTC day and variant, of impressions and of this conversion.

        `of` what the rate is a share: with subjects or participants, who is met or converts for the first time.
        """
        side = "delivered" if population == "delivered" else "assigned"
        count = f"{side}_count"
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
        if of != "impressions":
            for day, variant_id, share in self._firsts(phase_id, event_name, side=side, of=of):
                found[day][variant_id] = found[day].get(variant_id, Counts()) + Counts(share=share)
        return dict(found)

    def _firsts(
        self, phase_id: bytes, event_name: str, *, side: str, of: str
    ) -> Iterator[tuple[int, bytes, tuple[int, int]]]:
        """(day, variant, (met, converted) for the first time) of subjects or participants."""
        tallied = (
            f"select day, variant_id, event_name, sum({side}_units) as n from tally"  # noqa: S608
            " where phase_id = ? and event_name in ('', ?) group by day, variant_id, event_name"
            if of == "subjects"
            else "select first as day, variant_id, event_name, count(*) as n from (select variant_id,"  # noqa: S608
            f" participant_id, event_name, min(day) as first from tally where phase_id = ? and {side}_count > 0"
            " and event_name in ('', ?) group by variant_id, participant_id, event_name) newcomer"
            " group by first, variant_id, event_name"
        )
        for row in self._tx.all(tallied, (phase_id, event_name)):
            yield row["day"], row["variant_id"], (0, row["n"]) if row["event_name"] else (row["n"], 0)
